"""Class lists of somebody's own data: a CSV or YAML file, or what the masks hold."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from resnest_seg.errors import DatasetError
from resnest_seg.labels import IGNORE_LABEL, LabelSpace

COLUMNS = ("name", "id", "red", "green", "blue", "ignore")
"""Columns of a CSV file of classes; all but the name may be missing."""


def read_classes(path: str | Path, *, name: str = "custom") -> LabelSpace:
    """Read a label space from a file.

    A CSV file has a header with columns of `COLUMNS`. A YAML file is a list of names, or of mappings with the keys
    name, id, color (three numbers 0..255) and ignore. Without ids, the order counts from 0; without colours, they are
    Pascal VOC's. Entries with a true `ignore` are no classes: their pixels count neither in training nor in metrics.
    The id 255 is ignored unless it is listed.

    Raises:
        DatasetError: The file is missing or no such list; names the line.
    """
    path = Path(path)
    if not path.is_file():
        raise DatasetError(f"no class list {path}.")
    return parse_classes(path.read_bytes(), str(path), name=name)


def parse_classes(data: bytes, path: str, *, name: str = "custom") -> LabelSpace:
    """The same from a file's content; `path` tells its kind, and errors name it."""
    try:
        text = data.decode("utf-8-sig")
        rows = _rows_of_csv(text) if path.lower().endswith(".csv") else _rows_of_yaml(text)
        return _label_space(rows, name)
    except (ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError, csv.Error) as error:
        problem = " ".join(str(error).split()) if not isinstance(error, KeyError) else f"no {error}"
        raise DatasetError(
            f"{path} is no class list ({problem}). A CSV file needs a header with name and, optionally, "
            f"{', '.join(COLUMNS[1:])}; a YAML file a list of names, or of mappings with name, id, color, ignore."
        ) from None


def infer_classes(masks: Iterable[NDArray[np.uint8]], *, name: str = "custom") -> LabelSpace:
    """The label space that masks hold: every id but 255, or every colour, in ascending order.

    Args:
        masks: Of ids [H, W] or of colours [H, W, 3], all of one kind.
        name: Name of the label space.

    Raises:
        DatasetError: No mask, masks of both kinds, or more than 253 classes.
    """
    ids, colors = np.zeros(256, bool), set[tuple[int, int, int]]()
    for mask in masks:
        if mask.ndim == 2:
            ids |= np.bincount(mask.ravel(), minlength=256) > 0
        else:
            codes = np.unique(mask.reshape(-1, 3).astype(np.int64) @ np.array([65536, 256, 1]))
            colors |= {(int(code) >> 16, int(code) >> 8 & 255, int(code) & 255) for code in codes}
            if len(colors) > 253:
                raise DatasetError(
                    "the masks hold more than 253 colours: these are no classes (JPEG masks blur colours). Give a list "
                    "of classes with data.classes."
                )
    _refuse_brightness(np.flatnonzero(ids))
    ids[IGNORE_LABEL] = False
    if colors and ids.any():
        raise DatasetError("some masks hold ids and some hold colours: give a list of classes with data.classes.")
    if colors:
        ordered = sorted(colors)
        named = [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in ordered]
        return LabelSpace.numbered(len(ordered), names=named, colors=ordered, name=name)
    raw = np.flatnonzero(ids).tolist()
    if not raw:
        raise DatasetError("the masks hold no class: every pixel is 255, or there is no mask.")
    space = LabelSpace.numbered(len(raw), names=[f"class {value}" for value in raw], name=name)
    return LabelSpace(name, space.names, space.colors, tuple(raw), (IGNORE_LABEL,))


def _refuse_brightness(ids: NDArray[np.intp]) -> None:
    """Refuse masks of which 255 is a class: black and white, or evenly spread grey levels.

    Raises:
        DatasetError: Says what to do.
    """
    steps = np.diff(ids)
    if len(ids) and ids[-1] == IGNORE_LABEL and len(ids) >= 2 and steps.min() >= 20 and np.ptp(steps) <= 1:
        raise DatasetError(
            f"the masks hold the values {', '.join(str(value) for value in ids)}, as if 255 were a class and not "
            "ignored pixels. Give a list of classes with their ids (classes.csv, data.classes)."
        )


def _rows_of_csv(text: str) -> list[dict[str, Any]]:
    reader = csv.DictReader(text.splitlines())
    strangers = set(reader.fieldnames or ()) - set(COLUMNS)
    if strangers:
        raise ValueError(f"unknown columns {', '.join(sorted(strangers))}")
    rows: list[dict[str, Any]] = []
    for line in reader:
        row: dict[str, Any] = {"name": line["name"]}
        if line.get("id"):
            row["id"] = int(line["id"])
        if line.get("red"):
            row["color"] = [int(line[channel]) for channel in ("red", "green", "blue")]
        row["ignore"] = (line.get("ignore") or "").strip().lower() in ("1", "true", "yes")
        rows.append(row)
    return rows


def _rows_of_yaml(text: str) -> list[dict[str, Any]]:
    entries = yaml.safe_load(text)
    if not isinstance(entries, list):
        raise ValueError("not a list")
    rows = [dict(entry) if isinstance(entry, Mapping) else {"name": str(entry)} for entry in entries]
    for row in rows:
        strangers = set(row) - {"name", "id", "color", "ignore"}
        if strangers:
            raise ValueError(f"unknown keys {', '.join(sorted(strangers))}")
    return rows


def _label_space(rows: Sequence[Mapping[str, Any]], name: str) -> LabelSpace:
    given = [int(row.get("id", place)) for place, row in enumerate(rows)]
    if len(set(given)) < len(given):
        raise ValueError(f"the id {next(value for value in given if given.count(value) > 1)} is listed twice")
    if not all(0 <= value <= 255 for value in given):
        raise ValueError("ids must lie in 0..255")
    classes = [(row, value) for row, value in zip(rows, given, strict=True) if not row.get("ignore", False)]
    if not 1 <= len(classes) <= 253:
        raise ValueError(f"{len(classes)} classes, there must be 1 to 253")
    defaults = LabelSpace.numbered(len(classes)).colors
    ignored = [(row, value) for row, value in zip(rows, given, strict=True) if row.get("ignore", False)]
    extra = () if IGNORE_LABEL in given else (IGNORE_LABEL,)
    return LabelSpace(
        name=name,
        names=tuple(str(row["name"]) for row, _ in classes),
        colors=tuple(_color(row, default) for (row, _), default in zip(classes, defaults, strict=True)),
        raw_ids=tuple(value for _, value in classes),
        ignored_raw_ids=tuple(value for _, value in ignored) + extra,
        ignored_colors=tuple(_color(row, (0, 0, 0)) for row, _ in ignored if "color" in row),
    )


def _color(row: Mapping[str, Any], default: tuple[int, int, int]) -> tuple[int, int, int]:
    red, green, blue = (int(value) for value in row.get("color", default))
    if not all(0 <= value <= 255 for value in (red, green, blue)):
        raise ValueError(f"colour {row['color']} of {row['name']} does not lie in 0..255")
    return red, green, blue
