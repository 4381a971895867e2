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
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnest_seg.data.datasets import PairedFiles
from resnest_seg.data.layouts import (
    LAYOUTS,
    SPLIT_WORDS,
    Pairing,
    Photo,
    explained,
    given,
    pair_below,
    recognise,
    visible,
)
from resnest_seg.data.storage import Source, open_source
from resnest_seg.errors import DatasetError, printable, unknown_name
from resnest_seg.io.images import IMAGE_SUFFIXES
from resnest_seg.io.masks import decode_mask, mask_palette
from resnest_seg.labels import IGNORE_LABEL, LabelSpace, is_class_name
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


def draft_classes(masks: Iterable[tuple[str, NDArray[np.uint8], NDArray[np.uint8] | None]]) -> str:
    """Draft a class list of all ids or colours in masks, with their numbers of pixels and names to be replaced.

    Args:
        masks: Names, masks of ids [H, W] or of colours [H, W, 3], and palettes uint8 [256, 3] of those that have one.

    Returns:
        A CSV file of `COLUMNS`. The id 255 is ignored, unless the ids are black and white or evenly spaced greys.

    Raises:
        DatasetError: There is no mask, masks of both kinds, or more than 253 colours.
    """
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
    lines = io.StringIO()
    csv.writer(lines, lineterminator="\n").writerows(rows)
    return lines.getvalue()


def _is_brightness(ids: NDArray[np.intp]) -> bool:
    """True if 255 seems to be a class: black and white, or evenly spaced grey levels."""
    steps = np.diff(ids)
    return bool(len(ids) >= 2 and ids[-1] == IGNORE_LABEL and steps.min() >= 20 and np.ptp(steps) <= 1)


def _refuse_brightness(ids: NDArray[np.intp]) -> None:
    """Reject masks in which 255 seems to be a class: black and white, or evenly spaced grey levels.

    Raises:
        DatasetError: 255 seems to be a class; the message says how to list the classes.
    """
    if _is_brightness(ids):
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

SPLIT_CLASS_FILE = "_classes.csv"
"""Name of Roboflow's class list in the folder of each split."""

LIST_FOLDERS = ("", "ImageSets/Segmentation/")
"""Folders of the lists train.txt, val.txt, test.txt."""

VAL_SHARE = 0.1
"""Share of the photos in the val split if neither folders nor lists define it."""


class FolderDataset(PairedFiles):
    """The user's photos and masks, paired by what the wildcards of two patterns match, or by a layout that is known.

    Files below `root` (a folder, one zip file of it, or an address such as s3://bucket/mine), without patterns:

        images/...   photos: JPEG, PNG, WebP, TIFF, BMP, or only .npy arrays; subfolders are part of the name
        masks/...    masks with the same names: ids (8-bit greyscale or palette indices), or the classes' colours (RGB)
        classes.csv (or .yaml)   names, ids and colours, see `resnest_seg.data.folder`; without it, every id or colour
                                 that the masks hold is a class

    or one of `resnest_seg.data.layouts.LAYOUTS`. The splits are, in order of precedence: folders train, val (and test)
    in images and masks, or what `{split}` matches; lists train.txt, val.txt of names; or one photo in ten as val,
    chosen by a hash of its name, so that adding photos moves none from one split to the other. Where there is a folder
    train and none for val, val is such a tenth of train.

    Args:
        root: The folder, a zip file, or an address.
        split: "train", "val" or "test".
        images: Pattern of the photos below `root`, such as "photos/{split}/*.jpg", or their folder.
        masks: Pattern of the masks, with as many wildcards; both or none.
        classes: The class list, if it is outside `root`, or the classes themselves.
        allow_missing: Raise for a missing mask when its sample is read, not here; for tools that list all of them.

    Attributes:
        layout: Where photos and masks are, in words and as the two patterns.
        usual: True for images and masks, the layout of which nothing needs to be said.
        listed: True if there is a class list; else the classes are inferred from the masks.
        assumes_ignored: True if the class list does not mention 255, which is ignored by default.

    Raises:
        ConfigError: The patterns do not fit together.
        DatasetError: A folder, a mask or the split is missing, two photos have the same name, no mask belongs to a
            photo (the message suggests patterns), or the classes cannot be read or inferred.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        *,
        images: str | None = None,
        masks: str | None = None,
        classes: str | Path | LabelSpace | None = None,
        allow_missing: bool = False,
    ) -> None:
        if split not in SPLITS:
            raise DatasetError(str(unknown_name("split", split, SPLITS)))
        source = open_source(root, zips=())
        found = find_pairs(source, root, images=images, masks=masks)
        labelled = [photo.mask for photo in found.photos if photo.mask is not None]
        space, names_255 = _folder_label_space(source, found.layout.base, labelled, classes, lenient=allow_missing)
        self.listed, self.assumes_ignored = names_255 is not None, names_255 is False
        chosen, how = _split(source, found, split)
        self.layout = f"{found.layout.title}: {found.layout.options()}; splits by {how}"
        if not self.listed:
            self.layout += f"; no class list, {len(space)} classes in the masks (check --write-classes drafts one)"
        self.usual = (found.layout.title, images) == (LAYOUTS[0].title, None)
        unlabelled = split == "test" and bool(found.splits) and not any(photo.mask for photo in chosen)
        if not chosen:
            raise DatasetError(
                f"the {split} split of {space.name} is empty: {len(found.photos)} photos, splits by {how}. Make "
                "folders images/train, images/val and the same below masks, or lists train.txt and val.txt."
            )
        alone = [photo for photo in chosen if photo.mask is None]
        if 2 * len(alone) > len(chosen) and not unlabelled and not allow_missing:
            raise DatasetError(
                f"{len(alone)} of {len(chosen)} images of the {split} split have no mask. The first: "
                f"{source.locate(alone[0].image)} needs {source.locate(alone[0].wanted)}."
                f"{explained(source, visible(source.names('')), str(root), found)}"
            )
        pairs = [(photo.image, None if unlabelled else photo.mask or photo.wanted) for photo in chosen]
        super().__init__(
            space,
            split,
            source,
            pairs,
            colors=True,
            palettes=space.colors != LabelSpace.numbered(len(space)).colors,
            masks=[mask for _, mask in pairs if mask is not None]
            + [mask for part, mask in found.orphans if part in (None, split)],
            allow_missing=allow_missing,
        )


def find_pairs(source: Source, root: str | Path, *, images: str | None = None, masks: str | None = None) -> Pairing:
    """Find the photos of all splits with their masks: by patterns, or by the layout that the files have.

    Args:
        source: The storage.
        root: Where it is, for messages.
        images: See `FolderDataset`.
        masks: See `FolderDataset`.

    Raises:
        ConfigError: The patterns do not fit together.
        DatasetError: There are no photos, no masks, or no pairs; the message suggests patterns that make pairs.
    """
    layout, names = given(images, masks), visible(source.names(""))
    try:
        found = recognise(names) if layout is None else pair_below(names, layout)
    except DatasetError as error:
        raise DatasetError(f"{printable(str(root))}: {error}") from None
    if found is None:
        there = {folder: any(name.startswith(f"{folder}/") for name in names) for folder in ("images", "masks")}
        missing = next((folder for folder, found in there.items() if not found), "masks")
        if not names or sum(there.values()) == 1:
            raise DatasetError(
                f"no {missing} found: {source.locate(missing)} is missing or holds no image "
                f"({', '.join(IMAGE_SUFFIXES)}). A data set of your own needs the folders images and masks, or other "
                "files and --data.images and --data.masks."
                f"{explained(source, names, str(root), None) if names else ''}"
            )
        shown = printable(str(root))
        raise DatasetError(
            f"no known layout of photos and masks in {shown} ({len(names)} image files): name them with --data.images "
            f"and --data.masks.{explained(source, names, str(root), None)}"
        )
    if not found.pairs:
        what = f"{len(found.photos)} photos match data.images '{images}', {found.masks} masks data.masks '{masks}'"
        raise DatasetError(
            f"no mask belongs to a photo in {printable(str(root))}: {printable(what)}"
            f"{', and no texts of their wildcards are equal' if found.photos and found.masks else ''}."
            f"{explained(source, names, str(root), found)}"
        )
    return found


def read_masks(source: Source, found: Pairing) -> Iterator[tuple[str, NDArray[np.uint8], NDArray[np.uint8] | None]]:
    """Read the masks of all photos: names, masks of ids [H, W] or colours [H, W, 3], palettes [256, 3]; one at a time.

    Raises:
        DatasetError: A mask cannot be read; the message names it.
    """
    for photo in found.photos:
        if photo.mask is not None:
            data, where = source.read(photo.mask), source.locate(photo.mask)
            mask = decode_mask(data, where)
            yield where, mask, mask_palette(data) if mask.ndim == 2 else None


def lists_classes(root: str | Path, *, images: str | None = None, masks: str | None = None) -> bool:
    """True if a folder, zip file or address of the user's has a class list.

    Raises:
        DatasetError: There is no such folder or file.
    """
    source = open_source(root, zips=())
    return _class_list(source, find_pairs(source, root, images=images, masks=masks).layout.base) is not None


def _class_list(source: Source, base: str) -> str | None:
    """The class list of a data set, if it has one: in its folder, or Roboflow's in those of the splits.

    Raises:
        DatasetError: The lists of the splits differ.
    """
    inside = next((f"{base}{name}" for name in CLASS_FILES if _has(source, f"{base}{name}")), None)
    if inside is not None:
        return inside
    places = [f"{base}{folder}{SPLIT_CLASS_FILE}" for folder in ("", *(f"{word}/" for word in SPLIT_WORDS))]
    lists = [place for place in places if source.has(place)]
    for other in lists[1:]:
        one, two = (parse_classes(source.read(name), source.locate(name)) for name in (lists[0], other))
        if one != two:
            raise DatasetError(
                f"{source.locate(lists[0])} and {source.locate(other)} differ, and all splits need the same classes: "
                "give one list of them with data.classes."
            )
    return lists[0] if lists else None


def _has(source: Source, name: str) -> bool:
    """True if there is such a file; raises `DatasetError` if the name is that of a folder or a dangling link."""
    if source.blocks(name):
        raise DatasetError(f"{source.locate(name)} must be a file: it is a folder, or a dangling link.")
    return source.has(name)


def _split(source: Source, found: Pairing, split: str) -> tuple[list[Photo], str]:
    """Return the photos of a split, possibly none, and in words what decides."""
    base, photos, drawn = found.layout.base, list(found.photos), "one photo in ten, by a hash of its name, is val"
    if found.splits:
        chosen = [photo for photo in photos if photo.split == split]
        if "val" in found.splits or "train" not in found.splits or split == "test":
            return chosen, f"folders or names ({', '.join(found.splits)})"
        train = [photo for photo in photos if photo.split == "train"]
        return _drawn(train, split), f"folders or names ({', '.join(found.splits)}; of train, {drawn})"
    for folder in LIST_FOLDERS:
        if _has(source, f"{base}{folder}train.txt"):
            listing = f"{base}{folder}{split}.txt"
            if not _has(source, listing):
                raise DatasetError(f"there is a train.txt but no {source.locate(listing)}: list the split there.")
            return _listed(source, listing, photos, base), f"lists ({folder}train.txt ...)"
    if split == "test":
        raise DatasetError("there is no test split: make folders images/test and masks/test, or a test.txt.")
    return _drawn(photos, split), drawn


def _drawn(photos: Sequence[Photo], split: str) -> list[Photo]:
    return [photo for photo in photos if (_hash_share(photo.name) < VAL_SHARE) == (split == "val")]


def _listed(source: Source, listing: str, photos: Sequence[Photo], base: str) -> list[Photo]:
    """Return the photos that a list file names: by what their wildcards match, by path, or by file name."""
    data = source.read(listing)
    if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        raise DatasetError(f"{source.locate(listing)} is UTF-16: save it as UTF-8.")
    known: dict[str, list[Photo]] = {}
    for photo in photos:
        path = PurePosixPath(unicodedata.normalize("NFC", photo.image)).with_suffix("")
        for name in {photo.name, str(path), str(path).removeprefix(base), path.name}:
            known.setdefault(name, []).append(photo)
    # Decoded like the system's file names, so that bytes that are not UTF-8 match the same bytes there.
    text = unicodedata.normalize("NFC", data.decode("utf-8-sig", "surrogateescape"))
    chosen = []
    for line in (str(PurePosixPath(line.strip())) for line in text.splitlines() if line.strip()):
        stem = str(PurePosixPath(line).with_suffix("")) if line.lower().endswith(IMAGE_SUFFIXES) else line
        meant = [photo for photo in known.get(stem, ()) if photo.name == stem] or known.get(stem, [])
        if len(meant) != 1:
            shown = printable(line)
            hint = "" if shown == line else " The line is not UTF-8: save the list as UTF-8."
            if meant:
                raise DatasetError(
                    f"{source.locate(listing)} lists '{shown}', which may be {source.locate(meant[0].image)} or "
                    f"{source.locate(meant[1].image)}: write their paths below the root.{hint}"
                )
            raise DatasetError(
                f"{source.locate(listing)} lists '{shown}', and there is no such photo in images, such as "
                f"'{printable(photos[0].name)}'.{hint}"
            )
        chosen.append(meant[0])
    return chosen


def _hash_share(name: str) -> float:
    """Return a number in [0, 1) that depends on the name alone."""
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()[:6], "big") / 2**48


def _folder_label_space(
    source: Source, base: str, masks: Sequence[str], classes: str | Path | LabelSpace | None, *, lenient: bool
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
        for name in masks:
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
