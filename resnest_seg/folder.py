"""Somebody's own data: a folder of photos and a folder of masks."""

from __future__ import annotations

import codecs
import hashlib
import unicodedata
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from resnest_seg.classes_file import infer_classes, names_id, parse_classes, read_classes
from resnest_seg.datasets import IMAGE_SUFFIXES, PairedFiles
from resnest_seg.errors import DatasetError, printable, unknown_name
from resnest_seg.labels import IGNORE_LABEL, LabelSpace
from resnest_seg.samples import decode_mask, mask_palette
from resnest_seg.sources import Source, base_of, open_source

SPLITS = ("train", "val", "test")

CLASS_FILES = ("classes.csv", "classes.yaml", "classes.yml")
"""Names under which the list of classes is looked for."""

VAL_SHARE = 0.1
"""Share of the photos that become the val split where nothing else says which do."""


class FolderDataset(PairedFiles):
    """Your own photos and masks, paired by their names without ending.

    Files below `root` (a folder, or one zip file of it):

        images/...   photos: JPEG, PNG, WebP, TIFF, BMP; subfolders are part of the name
        masks/...    masks with the same names: ids (8-bit greyscale or palette indices), or the classes' colours (RGB)
        classes.csv (or .yaml)   names, ids and colours, see `resnest_seg.classes_file`; without it, every id or colour
                                 that the masks hold is a class

    The splits are, whichever is there first: folders images/train, images/val (and test) with the same below masks;
    lists train.txt, val.txt of names; or one photo in ten, chosen by a hash of its name, so that adding photos moves
    none from one split to the other.

    Args:
        root: The folder, or a zip file.
        split: "train", "val" or "test".
        classes: The list of classes, where it lies elsewhere.

    Attributes:
        listed: Whether there is a list of classes; they are those that the masks hold otherwise.
        assumes_ignored: Whether pixels of 255 are ignored only because the list does not say what 255 is.

    Raises:
        DatasetError: A folder, a mask or the split is missing, two photos have the same name, or the classes cannot be
            read or inferred.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        *,
        classes: str | Path | None = None,
        allow_missing: bool = False,
    ) -> None:
        if split not in SPLITS:
            raise DatasetError(str(unknown_name("split", split, SPLITS)))
        source = open_source(root, zips=())
        base = base_of(source, "images")
        photos, masks = _by_name(source, f"{base}images"), _by_name(source, f"{base}masks")
        for folder, files in (("images", photos), ("masks", masks)):
            if not files:
                raise DatasetError(
                    f"no {folder} found: {source.locate(folder)} is missing or holds no image "
                    f"({', '.join(IMAGE_SUFFIXES)}). A data set of your own needs the folders images and masks."
                )
        space, names_255 = _label_space(source, base, masks, classes, lenient=allow_missing)
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


def _has(source: Source, name: str) -> bool:
    """Whether there is such a file; what bears its name and is none is not passed over."""
    if source.blocks(name):
        raise DatasetError(f"{source.locate(name)} must be a file: it is a folder, or a link to nothing.")
    return source.has(name)


def _by_name(source: Source, folder: str) -> dict[str, str]:
    """Name below the folder, without ending -> file."""
    found: dict[str, str] = {}
    for name in source.names(folder):
        path = PurePosixPath(name).relative_to(folder)
        if path.suffix.lower() not in IMAGE_SUFFIXES or any(part.startswith((".", "__")) for part in path.parts):
            continue
        stem = unicodedata.normalize("NFC", str(path.with_suffix("")))  # macOS writes accents in another way
        if stem in found:
            raise DatasetError(
                f"{source.locate(found[stem])} and {source.locate(name)} have the same name but for the ending."
            )
        found[stem] = name
    return found


def _split(source: Source, base: str, names: list[str], split: str) -> list[str]:
    """The names of a split; an empty one is the caller's to refuse."""
    tops = {name.partition("/")[0] for name in names if "/" in name}
    if "train" in tops:
        outside = [name for name in names if name.partition("/")[0] not in SPLITS]
        if outside:
            raise DatasetError(
                f"{len(outside)} photos lie beside the folders train, val and test and would not be used, the first is "
                f"{source.locate(f'{base}images/{outside[0]}')}. Move them into one of these folders, or away."
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
    """The names that a list file holds, without ending."""
    data = source.read(listing)
    if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        raise DatasetError(f"{source.locate(listing)} is UTF-16: save it as UTF-8.")
    # As the system's names of files: bytes that are no UTF-8 mean the files that have the same ones.
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
    """A number in 0..1 that depends on the name alone."""
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()[:6], "big") / 2**48


def _label_space(
    source: Source, base: str, masks: Mapping[str, str], classes: str | Path | None, *, lenient: bool
) -> tuple[LabelSpace, bool | None]:
    """The classes, and whether their list says what 255 is; None where they are inferred."""
    if classes is not None:
        space, data, path = read_classes(classes, name="folder"), Path(classes).read_bytes(), str(classes)
        return space, names_id(data, path, IGNORE_LABEL)
    inside = next((f"{base}{name}" for name in CLASS_FILES if _has(source, f"{base}{name}")), None)
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
                refused.append(error)  # whoever scans the data set names it
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
