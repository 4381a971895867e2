"""The user's data sets: a folder of photos, a folder of masks, and a class list.

A class list is a CSV or YAML file; without one, the classes are inferred from the masks.
"""

from __future__ import annotations

import codecs
import csv
import hashlib
import io
import reprlib
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnest_seg.data.datasets import PairedFiles
from resnest_seg.data.storage import Source, base_of, open_source
from resnest_seg.errors import DatasetError, printable, unknown_name
from resnest_seg.io.images import IMAGE_SUFFIXES
from resnest_seg.io.masks import decode_mask, mask_palette
from resnest_seg.labels import IGNORE_LABEL, LabelSpace, is_class_name
from resnest_seg.yaml_files import load_yaml

COLUMNS = ("name", "id", "red", "green", "blue", "ignore")
"""Columns of a CSV class list; only `name` is required."""

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
    path = Path(path)
    if not path.is_file():
        raise DatasetError(f"no class list {path}" + (", which is a folder." if path.is_dir() else "."))
    return parse_classes(path.read_bytes(), str(path), name=name)


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
    lines = io.StringIO()
    csv.writer(lines, lineterminator="\n").writerows([("name", "id"), *rows])
    return lines.getvalue().rstrip().replace("\n", "\n    ")


def infer_classes(masks: Iterable[NDArray[np.uint8]], *, name: str = "custom") -> LabelSpace:
    """Infer the label space of masks: every id but 255, or every colour, in ascending order.

    Args:
        masks: Masks of ids [H, W] or of colours [H, W, 3], all of one kind.
        name: Name of the label space.

    Raises:
        DatasetError: There is no mask, masks of both kinds, or more than 253 classes.
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
                    "the masks hold more than 253 colours: these are not classes (JPEG blurs colours). Give a list "
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
    """Reject masks in which 255 seems to be a class: black and white, or evenly spaced grey levels.

    Raises:
        DatasetError: 255 seems to be a class; the message says how to list the classes.
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
                    *((f"object {index}", int(value)) for index, value in enumerate(ids[1:], 1)),
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


SPLITS = ("train", "val", "test")

CLASS_FILES = ("classes.csv", "classes.yaml", "classes.yml")
"""File names of the class list, in order of precedence."""

VAL_SHARE = 0.1
"""Share of the photos in the val split if neither folders nor lists define it."""


class FolderDataset(PairedFiles):
    """The user's photos and masks, paired by their names without suffix.

    Files below `root` (a folder, or one zip file of it):

        images/...   photos: JPEG, PNG, WebP, TIFF, BMP, or only .npy arrays; subfolders are part of the name
        masks/...    masks with the same names: ids (8-bit greyscale or palette indices), or the classes' colours (RGB)
        classes.csv (or .yaml)   names, ids and colours, see `resnest_seg.data.folder`; without it, every id or colour
                                 that the masks hold is a class

    The splits are, in order of precedence: folders images/train, images/val (and test) with the same below masks;
    lists train.txt, val.txt of names; or one photo in ten as val, chosen by a hash of its name, so that adding photos
    moves none from one split to the other.

    Args:
        root: The folder, or a zip file.
        split: "train", "val" or "test".
        classes: The class list, if it is outside `root`, or the classes themselves.
        allow_missing: Raise for a missing mask when its sample is read, not here; for tools that list all of them.

    Attributes:
        listed: True if there is a class list; else the classes are inferred from the masks.
        assumes_ignored: True if the class list does not mention 255, which is ignored by default.

    Raises:
        DatasetError: A folder, a mask or the split is missing, two photos have the same name, or the classes cannot be
            read or inferred.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        *,
        classes: str | Path | LabelSpace | None = None,
        allow_missing: bool = False,
    ) -> None:
        if split not in SPLITS:
            raise DatasetError(str(unknown_name("split", split, SPLITS)))
        source = open_source(root, zips=())
        base = base_of(source, "images")
        photos = _by_name(source, f"{base}images") or _by_name(source, f"{base}images", suffixes=(".npy",))
        masks = _by_name(source, f"{base}masks")
        for folder, files in (("images", photos), ("masks", masks)):
            if not files:
                raise DatasetError(
                    f"no {folder} found: {source.locate(folder)} is missing or holds no image "
                    f"({', '.join(IMAGE_SUFFIXES)}). A data set of your own needs the folders images and masks."
                )
        space, names_255 = _folder_label_space(source, base, masks, classes, lenient=allow_missing)
        self.listed, self.assumes_ignored = names_255 is not None, names_255 is False
        chosen = _split(source, base, sorted(photos), split)
        pairs = [(photos[name], masks.get(name, f"{base}masks/{name}.png")) for name in chosen]
        orphans = [masks[name] for name in masks if name not in photos]
        super().__init__(
            space,
            split,
            source,
            pairs,
            colors=True,
            palettes=space.colors != LabelSpace.numbered(len(space)).colors,
            masks=[mask for _, mask in pairs] + orphans,
            allow_missing=allow_missing,
        )


def lists_classes(root: str | Path) -> bool:
    """True if a folder or zip file of the user's has a class list.

    Raises:
        DatasetError: There is no such folder or file.
    """
    source = open_source(root, zips=())
    return _class_list(source, base_of(source, "images")) is not None


def _class_list(source: Source, base: str) -> str | None:
    return next((f"{base}{name}" for name in CLASS_FILES if _has(source, f"{base}{name}")), None)


def _has(source: Source, name: str) -> bool:
    """True if there is such a file; raises `DatasetError` if the name is that of a folder or a dangling link."""
    if source.blocks(name):
        raise DatasetError(f"{source.locate(name)} must be a file: it is a folder, or a dangling link.")
    return source.has(name)


def _by_name(source: Source, folder: str, *, suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> dict[str, str]:
    """Map the names below a folder, without suffix, to files."""
    files: dict[str, str] = {}
    for name in source.names(folder):
        path = PurePosixPath(name).relative_to(folder)
        if path.suffix.lower() not in suffixes or any(part.startswith((".", "__")) for part in path.parts):
            continue
        stem = unicodedata.normalize("NFC", str(path.with_suffix("")))  # macOS decomposes accents
        if stem in files:
            raise DatasetError(
                f"{source.locate(files[stem])} and {source.locate(name)} have the same name except for the suffix."
            )
        files[stem] = name
    return files


def _split(source: Source, base: str, names: list[str], split: str) -> list[str]:
    """Return the names of a split, possibly none."""
    tops = {name.partition("/")[0] for name in names if "/" in name}
    if "train" in tops:
        outside = [name for name in names if name.partition("/")[0] not in SPLITS]
        if outside:
            raise DatasetError(
                f"{len(outside)} photos are beside the folders train, val and test and would not be used, the first is "
                f"{source.locate(f'{base}images/{outside[0]}')}. Move them into one of these folders, or remove them."
            )
        return [name for name in names if name.startswith(f"{split}/")]
    if _has(source, f"{base}train.txt"):
        listing = f"{base}{split}.txt"
        if not _has(source, listing):
            raise DatasetError(f"there is a train.txt but no {source.locate(listing)}: list the split there.")
        return _listed(source, listing, set(names))
    if split == "test":
        raise DatasetError("there is no test split: make folders images/test and masks/test, or a test.txt.")
    return [name for name in names if (_hash_share(name) < VAL_SHARE) == (split == "val")]


def _listed(source: Source, listing: str, known: Collection[str]) -> list[str]:
    """Read the names in a list file, without suffix."""
    data = source.read(listing)
    if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        raise DatasetError(f"{source.locate(listing)} is UTF-16: save it as UTF-8.")
    # Decoded like the system's file names, so that bytes that are not UTF-8 match the same bytes there.
    text = unicodedata.normalize("NFC", data.decode("utf-8-sig", "surrogateescape"))
    chosen = []
    for line in (str(PurePosixPath(line.strip())) for line in text.splitlines() if line.strip()):
        stem = str(PurePosixPath(line).with_suffix("")) if line.lower().endswith(IMAGE_SUFFIXES) else line
        if stem not in known:
            shown = printable(line)
            hint = "" if shown == line else " The line is not UTF-8: save the list as UTF-8."
            raise DatasetError(f"{source.locate(listing)} lists '{shown}', and there is no such photo in images.{hint}")
        chosen.append(stem)
    return chosen


def _hash_share(name: str) -> float:
    """Return a number in [0, 1) that depends on the name alone."""
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()[:6], "big") / 2**48


def _folder_label_space(
    source: Source, base: str, masks: Mapping[str, str], classes: str | Path | LabelSpace | None, *, lenient: bool
) -> tuple[LabelSpace, bool | None]:
    """Return the classes, and True if their list mentions 255; None in its stead if they are inferred."""
    if isinstance(classes, LabelSpace):
        return classes, IGNORE_LABEL in classes.raw_ids + classes.ignored_raw_ids
    if classes is not None:
        space, data, path = read_classes(classes, name="folder"), Path(classes).read_bytes(), str(classes)
        return space, names_id(data, path, IGNORE_LABEL)
    inside = _class_list(source, base)
    if inside is not None:
        data, path = source.read(inside), source.locate(inside)
        return parse_classes(data, path, name="folder"), names_id(data, path, IGNORE_LABEL)

    refused: list[DatasetError] = []

    def contents() -> Iterator[NDArray[np.uint8]]:
        painted: dict[int, tuple[str, list[int]]] = {}
        for name in masks.values():
            try:
                data = source.read(name)
                mask = decode_mask(data, source.locate(name))
            except DatasetError as error:
                if not lenient:
                    raise
                refused.append(error)  # a scan of the data set reports it
                continue
            palette = mask_palette(data) if mask.ndim == 2 else None
            for index in np.unique(mask).tolist() if palette is not None else ():
                assert palette is not None
                first, color = painted.setdefault(index, (name, palette[index].tolist()))
                if color != palette[index].tolist():
                    raise DatasetError(
                        f"the palettes of {source.locate(first)} and {source.locate(name)} differ: the same index has "
                        "another colour. Give a list of classes with their colours (classes.csv, data.classes)."
                    )
            yield mask

    try:
        return infer_classes(contents(), name="folder"), None
    except DatasetError:
        if len(refused) < len(masks):
            raise
        raise DatasetError(f"none of the {len(masks)} masks can be read. The first: {refused[0]}") from None
