"""Class lists of somebody's own data: a CSV or YAML file, or what the masks hold."""

from __future__ import annotations

import csv
import io
import reprlib
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnest_seg.errors import DatasetError
from resnest_seg.labels import IGNORE_LABEL, LabelSpace
from resnest_seg.yaml_files import load_yaml

COLUMNS = ("name", "id", "red", "green", "blue", "ignore")
"""Columns of a CSV file of classes; all but the name may be missing."""

IGNORE_WORDS = dict.fromkeys(("1", "true", "yes", "x"), True) | dict.fromkeys(("", "0", "false", "no"), False)
"""What the column `ignore` may hold, in lower case."""


def read_classes(path: str | Path, *, name: str = "custom") -> LabelSpace:
    """Read a label space from a file.

    A CSV file has a header with columns of `COLUMNS`; rows without any value are skipped. A YAML file is a list of
    names, or of mappings with the keys name, id, color (three numbers 0..255) and ignore. Without ids, the order counts
    from 0; without colours, they are Pascal VOC's. Entries whose `ignore` says yes (see `IGNORE_WORDS`) are no classes:
    their pixels count neither in training nor in metrics. The id 255 is ignored unless it is listed.

    Raises:
        DatasetError: The file is missing or no such list, or two classes have the same name or id; names the line.
    """
    path = Path(path)
    if not path.is_file():
        raise DatasetError(f"no class list {path}" + (", which is a folder." if path.is_dir() else "."))
    return parse_classes(path.read_bytes(), str(path), name=name)


def parse_classes(data: bytes, path: str, *, name: str = "custom") -> LabelSpace:
    """The same from a file's content; `path` tells its kind, and errors name it."""
    try:
        return _label_space(_rows(data, path), name)
    except (ValueError, csv.Error) as error:
        raise DatasetError(
            f"{path} is no class list ({' '.join(str(error).split())}). A CSV file needs a header with name and, "
            f"optionally, {', '.join(COLUMNS[1:])}; a YAML file a list of names, or of mappings with name, id, color, "
            "ignore."
        ) from None


def _rows(data: bytes, path: str) -> list[dict[str, Any]]:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"its byte {error.start} is not UTF-8: save it as UTF-8") from None
    return _rows_of_csv(text) if path.lower().endswith(".csv") else _rows_of_yaml(text, "it")


def names_id(data: bytes, path: str, value: int) -> bool:
    """Whether a list that `parse_classes` reads says what an id is: a class, or ignored."""
    return value in _ids(_rows(data, path))


def csv_lines(rows: Iterable[tuple[str, int]]) -> str:
    """Names and ids as the lines of a CSV file, for errors that say what to write."""
    lines = io.StringIO()
    csv.writer(lines, lineterminator="\n").writerows([("name", "id"), *rows])
    return lines.getvalue().rstrip().replace("\n", "\n    ")


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
            "ignored pixels. Write a list of classes with these ids (classes.csv beside images and masks, or another "
            f"file for data.classes); names alone would mean the ids 0 to {len(ids) - 1}:\n    "
            + csv_lines(
                [
                    ("background", int(ids[0])),
                    *((f"object {place}", int(value)) for place, value in enumerate(ids[1:], 1)),
                ]
            )
        )


def _rows_of_csv(text: str) -> list[dict[str, Any]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    columns = [column.strip() for column in reader.fieldnames or ()]
    strangers = set(columns) - set(COLUMNS)
    if strangers:
        raise ValueError(f"unknown columns {', '.join(sorted(strangers))}")
    if len(set(columns)) < len(columns) or "name" not in columns:
        raise ValueError(f"the header is {','.join(columns)}: it must have name, and each column once")
    reader.fieldnames = columns
    rows: list[dict[str, Any]] = []
    for line in reader:
        where = f"line {reader.line_num}"
        if None in line:
            raise ValueError(f"{where} has more values than the header has columns")
        values = {column: (value or "").strip() for column, value in line.items()}
        if not any(values.values()):  # as spreadsheets leave below a table
            continue
        row: dict[str, Any] = {"name": values["name"], "where": where, "ignore": values.get("ignore", "")}
        if values.get("id"):
            row["id"] = _whole(values["id"], f"{where}: the id")
        channels = [values.get(channel, "") for channel in ("red", "green", "blue")]
        if any(channels):
            row["color"] = [_whole(value, f"{where}: a colour's share") for value in channels]
        rows.append(row)
    return rows


def _whole(word: str, what: str) -> int:
    try:
        return int(word)
    except ValueError:
        raise ValueError(f"{what} must be a whole number, not {word!r}") from None


def _rows_of_yaml(text: str, path: str) -> list[dict[str, Any]]:
    entries = load_yaml(text, path)
    if not isinstance(entries, list):
        raise ValueError("not a list")
    rows = [dict(entry) if isinstance(entry, Mapping) else {"name": entry} for entry in entries]
    for place, row in enumerate(rows, 1):
        where = f"entry {place}"
        strangers = set(row) - {"name", "id", "color", "ignore"}
        if strangers:
            raise ValueError(f"{where}: unknown keys {', '.join(sorted(map(str, strangers)))}")
        if "name" not in row:
            raise ValueError(f"{where} has no name")
        if not isinstance(row["name"], str):
            raise ValueError(
                f"{where}: YAML reads the name as {_shown(row['name'])}, which is no text (so it does with no, yes, "
                "on, off, null, numbers and dates): write it in quotes"
            )
        if "id" in row and type(row["id"]) is not int:
            raise ValueError(f"{where}: the id must be a whole number without quotes, not {_shown(row['id'])}")
        color = row.get("color", [0, 0, 0])
        if not isinstance(color, list) or len(color) != 3 or any(type(value) is not int for value in color):
            raise ValueError(f"{where}: a colour must be three whole numbers, [red, green, blue], not {_shown(color)}")
        row["where"] = where
    return rows


def _shown(value: object) -> str:
    return reprlib.repr(value)


def _label_space(rows: Sequence[Mapping[str, Any]], name: str) -> LabelSpace:
    given = _ids(rows)
    ignore = [_is_ignored(row) for row in rows]
    classes = [(row, value) for row, value, out in zip(rows, given, ignore, strict=True) if not out]
    ignored = [(row, value) for row, value, out in zip(rows, given, ignore, strict=True) if out]
    if not 1 <= len(classes) <= 253:
        raise ValueError(f"{len(classes)} classes, there must be 1 to 253")
    first: dict[str, str] = {}
    for row, _ in classes + ignored:
        if not row["name"].strip() or any(unicodedata.category(letter) in ("Cc", "Cs") for letter in row["name"]):
            raise ValueError(f"{row['where']}: the name {row['name']!r} is empty or holds control characters")
    for row, _ in classes:
        if row["name"] in first:
            raise ValueError(f"the name {row['name']!r} is listed twice, in {first[row['name']]} and {row['where']}")
        first[row["name"]] = row["where"]
    defaults = LabelSpace.numbered(len(classes)).colors
    extra = () if IGNORE_LABEL in given else (IGNORE_LABEL,)
    return LabelSpace(
        name=name,
        names=tuple(row["name"] for row, _ in classes),
        colors=tuple(_color(row, default) for (row, _), default in zip(classes, defaults, strict=True)),
        raw_ids=tuple(value for _, value in classes),
        ignored_raw_ids=tuple(value for _, value in ignored) + extra,
        ignored_colors=tuple(_color(row, (0, 0, 0)) for row, _ in ignored if "color" in row),
    )


def _ids(rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """The id of each row: its own, or its place where no row has one."""
    without = [row["where"] for row in rows if "id" not in row]
    if 0 < len(without) < len(rows):
        raise ValueError(f"{without[0]} has no id, and others have: give all of them one, or none")
    given = [int(row.get("id", place)) for place, row in enumerate(rows)]
    twins = [value for value in given if given.count(value) > 1]
    if twins:
        raise ValueError(f"the id {twins[0]} is listed twice")
    if not all(0 <= value <= 255 for value in given):
        raise ValueError("ids must lie in 0..255")
    return given


def _is_ignored(row: Mapping[str, Any]) -> bool:
    value = row.get("ignore")
    word = "" if value is None else str(value).strip().lower()  # YAML has made booleans and numbers of some
    if word not in IGNORE_WORDS:
        raise ValueError(
            f"{row['where']}: ignore must be yes, true, 1 or x, or no, false, 0 or nothing, not {_shown(value)}"
        )
    return IGNORE_WORDS[word]


def _color(row: Mapping[str, Any], default: tuple[int, int, int]) -> tuple[int, int, int]:
    red, green, blue = row.get("color", default)
    if not all(0 <= value <= 255 for value in (red, green, blue)):
        raise ValueError(f"{row['where']}: colour {row['color']} of {row['name']} does not lie in 0..255")
    return red, green, blue
