"""Class lists: CSV and YAML files of names, ids and colours; the classes that masks show, and drafts of lists."""

from __future__ import annotations

import csv
import dataclasses
import io
import reprlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnest_seg.errors import DatasetError
from resnest_seg.labels import IGNORE_LABEL, MAX_LABELS, MULTILABEL_IGNORE, LabelSpace, is_class_name
from resnest_seg.storage.remote import is_address, read_address
from resnest_seg.yaml_files import load_yaml

COLUMNS = ("name", "id", "red", "green", "blue", "ignore", "pixels")
"""Columns of a CSV class list; only `name` is required, and `pixels` is for the reader: nothing depends on it."""

COLUMN_WORDS = {"class": "name", "pixel value": "id"}
"""Roboflow's names of columns, in lower case -> ours."""

IGNORE_WORDS = dict.fromkeys(("1", "true", "yes", "x"), True) | dict.fromkeys(("", "0", "false", "no"), False)
"""Values of the column `ignore`, in lower case."""


def read_classes(path: str | Path, *, name: str = "custom") -> LabelSpace:
    """Read a label space from a class list.

    A CSV file has a header with columns of `COLUMNS`; empty rows are skipped. A YAML file is a list of names, or of
    mappings with the keys name, id, color (three numbers 0..255) and ignore. Ids default to the order, from 0, and
    colours to Pascal VOC's. Entries whose `ignore` is yes (see `IGNORE_WORDS`) are not classes: their pixels are
    ignored by training and metrics. The id 255 is ignored unless it is listed.

    Raises:
        DatasetError: The file is missing or malformed, or two classes share a name or id; the message names the line.
    """
    return parse_classes(class_list(path), str(path), name=name)


def class_list(path: str | Path) -> bytes:
    """Read the file of a class list, at a path or an address.

    Raises:
        DatasetError: It is missing.
    """
    if is_address(path):
        return read_address(str(path))
    path = Path(path)
    if not path.is_file():
        raise DatasetError(f"no class list {path}" + (", which is a folder." if path.is_dir() else "."))
    return path.read_bytes()


def parse_classes(data: bytes, path: str, *, name: str = "custom") -> LabelSpace:
    """Parse the content of a class list as `read_classes` does; the suffix of `path` tells CSV from YAML."""
    try:
        return _label_space(_rows(data, path), name)
    except (ValueError, csv.Error) as error:
        raise DatasetError(
            f"{path} is not a class list ({' '.join(str(error).split())}). A CSV file needs a header with name and, "
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
    """True if a class list declares an id as a class or as ignored."""
    return value in _ids(_rows(data, path))


def csv_lines(rows: Iterable[tuple[str, int]]) -> str:
    """Format names and ids as lines of a CSV file, for error messages."""
    return _as_csv([("name", "id"), *rows]).rstrip().replace("\n", "\n    ")


def _as_csv(rows: Iterable[Sequence[object]]) -> str:
    lines = io.StringIO()
    csv.writer(lines, lineterminator="\n").writerows(rows)
    return lines.getvalue()


def infer_classes(masks: Iterable[NDArray[Any]], *, name: str = "custom", task: str = "multiclass") -> LabelSpace:
    """Infer the label space of masks: every id but 255, or every colour, in ascending order.

    Args:
        masks: Masks of ids [H, W] or of colours [H, W, 3], all of one kind.
        name: Name of the label space.
        task: Of "binary" masks, background and object are 0 and 1, of which 255 is ignored, or 0 and 255, of which 254
            is ignored, or black and another colour. Masks of a "multilabel" task are bits, uint16 [H, W]; every bit
            that occurs is a label.

    Raises:
        DatasetError: There is no mask, masks of both kinds, or more than 253 classes; or the masks do not fit the task.
    """
    if task == "multilabel":
        return _infer_labels(masks, name)
    ids, colors = np.zeros(256, bool), set[tuple[int, int, int]]()
    for mask in masks:
        if mask.ndim == 2:
            ids |= np.bincount(mask.ravel(), minlength=256) > 0
        else:
            codes = np.unique(mask.reshape(-1, 3).astype(np.int64) @ np.array([65536, 256, 1]))
            colors |= {(int(code) >> 16, int(code) >> 8 & 255, int(code) & 255) for code in codes}
            if len(colors) > 253:
                raise DatasetError(
                    "the masks hold more than 253 colours: these are not classes (JPEG blurs colours). Give a list "
                    "of classes with data.classes."
                )
    if task == "binary":
        return _infer_object(np.flatnonzero(ids).tolist(), sorted(colors), name)
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


def draft_classes(
    masks: Iterable[tuple[str, NDArray[Any], NDArray[np.uint8] | None]], *, task: str = "multiclass"
) -> str:
    """Draft a class list of all ids or colours in masks, with their numbers of pixels and names to be replaced.

    Args:
        masks: Names, masks of ids [H, W] or of colours [H, W, 3], and palettes uint8 [256, 3] of those that have one.
        task: Of "multilabel" masks, bits in uint16 [H, W], every bit up to the highest is an entry.

    Returns:
        A CSV file of `COLUMNS`. The id 255 is ignored, unless the ids are black and white or evenly spaced greys.

    Raises:
        DatasetError: There is no mask, masks of both kinds, or more than 253 colours; or bits that are no labels.
    """
    if task == "multilabel":
        return _draft_labels(masks)
    ids, colors, palette, last = np.zeros(256, np.int64), Counter[int](), None, ["", ""]
    for name, mask, painted in masks:
        last[mask.ndim - 2] = name
        if mask.ndim == 2:
            ids += np.bincount(mask.ravel(), minlength=256)
            palette = painted if palette is None else palette
            continue
        codes, counts = np.unique(mask.reshape(-1, 3).astype(np.int64) @ np.array([65536, 256, 1]), return_counts=True)
        colors.update(dict(zip(codes.tolist(), counts.tolist(), strict=True)))
        if len(colors) > 253:
            raise DatasetError(
                f"the masks hold more than 253 colours, up to {name}: these are not classes (JPEG and smoothed edges "
                "blur colours). Save masks as PNG without smoothing."
            )
    if all(last) or not any(last):
        what = (
            f"some masks hold ids, such as {last[0]}, and some colours, such as {last[1]}" if any(last) else "no masks"
        )
        raise DatasetError(f"no class list can be drafted: {what}.")
    rows: list[Sequence[object]] = [COLUMNS]
    if colors:
        for index, code in enumerate(sorted(colors)):
            rows.append([f"class {index}", index, code >> 16, code >> 8 & 255, code & 255, "", colors[code]])
    values = np.flatnonzero(ids)
    grey = _is_brightness(values)
    defaults = LabelSpace.numbered(253).colors
    for place, value in enumerate(values.tolist()):
        ignored = value == IGNORE_LABEL and not grey
        title = "unlabelled" if ignored else f"object {place}" if grey and place else f"class {value}"
        color = defaults[value % 253] if palette is None else palette[value].tolist()
        rows.append(
            ["background" if grey and not place else title, value, *color, "yes" if ignored else "", ids[value]]
        )
    return _as_csv(rows)


def _draft_labels(masks: Iterable[tuple[str, NDArray[Any], NDArray[np.uint8] | None]]) -> str:
    """Draft the class list of multi-label masks: one entry a bit."""
    pixels = np.zeros(MAX_LABELS, np.int64)

    def counted() -> Iterator[NDArray[Any]]:
        for _, mask, _ in masks:
            bits = mask[mask < MULTILABEL_IGNORE]
            pixels[:] += [np.count_nonzero(bits >> label & 1) for label in range(MAX_LABELS)]
            yield mask

    space = _infer_labels(counted(), "custom")
    rows = [[name, label, *space.colors[label], "", pixels[label]] for label, name in enumerate(space.names)]
    return _as_csv([COLUMNS, *rows])


def _is_brightness(ids: NDArray[np.intp]) -> bool:
    """True if 255 seems to be a class: black and white, or evenly spaced grey levels."""
    steps = np.diff(ids)
    return bool(len(ids) >= 2 and ids[-1] == IGNORE_LABEL and steps.min() >= 20 and np.ptp(steps) <= 1)


def _infer_object(ids: Sequence[int], colors: Sequence[tuple[int, int, int]], name: str) -> LabelSpace:
    """Infer the label space of all binary masks of a data set from the ids or the colours that occur."""
    names = ("background", "object")
    palette = ((0, 0, 0), (220, 20, 60))
    if colors and not ids and len(colors) == 2 and colors[0] == (0, 0, 0):
        return LabelSpace(name, names, (colors[0], colors[1]), (0, 1), (IGNORE_LABEL,), task="binary")
    whole = LabelSpace(name, names, palette, (0, IGNORE_LABEL), task="binary")
    if not colors and set(ids) <= {0, whole.ignored_raw_id, IGNORE_LABEL} and IGNORE_LABEL in ids:
        ignored = (whole.ignored_raw_id,) if whole.ignored_raw_id in ids else ()  # as our own predictions have it
        return dataclasses.replace(whole, ignored_raw_ids=ignored)
    if not colors and set(ids) <= {0, 1, IGNORE_LABEL} and ids:
        return LabelSpace(name, names, palette, (0, 1), (IGNORE_LABEL,), task="binary")
    seen = f"the colours {', '.join(map(str, colors[:6]))}" if colors else f"the ids {', '.join(map(str, ids[:12]))}"
    raise DatasetError(
        f"model.task binary: masks hold 0 and 1 (and 255, ignored), or 0 and 255 (and 254, ignored), and these hold "
        f"{seen if colors or ids else 'nothing'}. Of more classes, name the object: --data.positive 'class 1'"
    )


def _infer_labels(masks: Iterable[NDArray[Any]], name: str) -> LabelSpace:
    """Infer the label space of multi-label masks: as many labels as the highest bit that occurs says."""
    every, count, white = 0, 0, True
    for mask in masks:
        bits = mask[mask < MULTILABEL_IGNORE]
        every, count = every | int(np.bitwise_or.reduce(bits, axis=None)) if bits.size else every, count + 1
        white = white and bool(np.isin(bits, (0, 255)).all())
    if not every:
        raise DatasetError(
            f"model.task multilabel: the {count} masks hold no label. They are 16-bit images, of which bit k says that "
            f"label k is present, and {MULTILABEL_IGNORE} marks ignored pixels."
        )
    if white:
        raise DatasetError(
            f"model.task multilabel: the {count} masks hold 0 and 255 alone, which is black and white, or eight labels "
            "that are always together. For one object: --model.task binary. For several, bit k of a mask is label k."
        )
    known = every.bit_length()
    names = [f"label {label}" for label in range(known)]
    return LabelSpace(name, tuple(names), LabelSpace.numbered(known).colors, tuple(range(known)), task="multilabel")


def _refuse_brightness(ids: NDArray[np.intp]) -> None:
    """Reject masks in which 255 seems to be a class: black and white, or evenly spaced grey levels.

    Raises:
        DatasetError: 255 seems to be a class; the message says how to list the classes.
    """
    if _is_brightness(ids):
        advice = "Write a list of classes with"
        if len(ids) == 2:
            advice = "For an object on background, give --model.task binary. Else write a list of classes with"
        raise DatasetError(
            f"the masks hold the values {', '.join(str(value) for value in ids)}, as if 255 were a class and not "
            f"ignored pixels. {advice} these ids (classes.csv beside images and masks, or another "
            f"file for data.classes); names alone would mean the ids 0 to {len(ids) - 1}:\n    "
            + csv_lines(
                [
                    ("background", int(ids[0])),
                    *((f"object {index}", int(value)) for index, value in enumerate(ids[1:], 1)),
                ]
            )
        )


def _rows_of_csv(text: str) -> list[dict[str, Any]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    columns = [column.strip() for column in reader.fieldnames or ()]
    columns = [COLUMN_WORDS.get(column.lower(), column) for column in columns]
    strangers = set(columns) - set(COLUMNS)
    if strangers:
        raise ValueError(f"unknown columns {', '.join(sorted(strangers))}")
    if len(set(columns)) < len(columns) or "name" not in columns:
        raise ValueError(f"the header is {','.join(columns)}: it must have name, and each column once")
    reader.fieldnames = columns
    rows: list[dict[str, Any]] = []
    for line in _complete(reader):
        where = f"line {reader.line_num}"
        if None in line:
            raise ValueError(f"{where} has more values than the header has columns")
        values = {column: (value or "").strip() for column, value in line.items()}
        if not any(values.values()):  # spreadsheets leave such rows below a table
            continue
        row: dict[str, Any] = {"name": values["name"], "where": where, "ignore": values.get("ignore", "")}
        if values.get("id"):
            row["id"] = _whole(values["id"], f"{where}: the id")
        channels = [values.get(channel, "") for channel in ("red", "green", "blue")]
        if any(channels):
            row["color"] = [_whole(value, f"{where}: a colour's share") for value in channels]
        rows.append(row)
    return rows


def _complete(reader: csv.DictReader[str]) -> Iterator[dict[str, str]]:
    """The lines; a `ValueError` that explains quotes where they do not fit."""
    last = reader.line_num
    try:
        for line in reader:
            yield line
            last = reader.line_num
    except csv.Error as error:
        raise ValueError(
            f'after line {last}: {error}. Is a quote (") without its partner? A quoted value begins and ends with one, '
            "and within it a quote is written twice"
        ) from None


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
    for index, row in enumerate(rows, 1):
        where = f"entry {index}"
        strangers = set(row) - {"name", "id", "color", "ignore"}
        if strangers:
            raise ValueError(f"{where}: unknown keys {', '.join(sorted(map(str, strangers)))}")
        if "name" not in row:
            raise ValueError(f"{where} has no name")
        if not isinstance(row["name"], str):
            raise ValueError(
                f"{where}: YAML reads the name as {_shown(row['name'])}, which is not text (as with no, yes, "
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
        raise ValueError(f"{len(classes)} classes; 1 to 253 are allowed")
    first: dict[str, str] = {}
    for row, _ in classes + ignored:
        if not is_class_name(row["name"]):
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
        ignored_names=tuple(row["name"] for row, _ in ignored),
    )


def _ids(rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return the id of each row, or its index if no row has an id."""
    without = [row["where"] for row in rows if "id" not in row]
    if 0 < len(without) < len(rows):
        raise ValueError(f"{without[0]} has no id, but others have: give all of them an id, or none")
    given = [int(row.get("id", index)) for index, row in enumerate(rows)]
    twins = [value for value in given if given.count(value) > 1]
    if twins:
        raise ValueError(f"the id {twins[0]} is listed twice")
    if not all(0 <= value <= 255 for value in given):
        raise ValueError("ids must lie in 0..255")
    return given


def _is_ignored(row: Mapping[str, Any]) -> bool:
    value = row.get("ignore")
    word = "" if value is None else str(value).strip().lower()  # YAML has parsed some as booleans and numbers
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
