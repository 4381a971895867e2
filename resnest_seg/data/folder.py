"""The user's data sets: a folder, zip file or address of photos and masks, paired by their names or by patterns."""

from __future__ import annotations

import codecs
import dataclasses
import hashlib
import shlex
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnest_seg.data.class_lists import class_list, infer_classes, names_id, parse_classes, read_classes
from resnest_seg.data.datasets import PairedFiles
from resnest_seg.data.layouts import (
    LAYOUTS,
    PHOTO_SUFFIXES,
    SPLIT_WORDS,
    Pairing,
    Photo,
    explained,
    given,
    pair_below,
    recognise,
    visible,
)
from resnest_seg.errors import ConfigError, DatasetError, printable, unknown_name
from resnest_seg.io.images import IMAGE_SUFFIXES
from resnest_seg.io.masks import decode_bits, decode_mask, mask_palette
from resnest_seg.labels import IGNORE_LABEL, LabelSpace
from resnest_seg.storage.opening import open_source
from resnest_seg.storage.retries import without_secrets
from resnest_seg.storage.sources import Source

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

    Files below `root` (a folder, one zip file of it, or an address such as s3://bucket/mine), without patterns::

        images/...   photos: JPEG, PNG, WebP, TIFF, BMP, or only .npy arrays; subfolders are part of the name
        masks/...    masks with the same names: ids (8-bit greyscale or palette indices), or the classes' colours (RGB)
        classes.csv (or .yaml)   names, ids and colours, see `resnest_seg.data.folder`; without it, every id or colour
                                 that the masks hold is a class

    or one of `resnest_seg.data.layouts.LAYOUTS`. The splits are, in order of precedence: folders train, val (and test)
    in images and masks, or what `{split}` matches; lists train.txt, val.txt of names; or one photo in ten as val,
    chosen by a hash of its name, so that adding photos moves none from one split to the other. Where there is a folder
    train and none for val, val is such a tenth of train.

    Args:
        root: The folder, a zip file, an address, or a storage that is open.
        split: "train", "val" or "test".
        images: Pattern of the photos below `root`, such as `photos/{split}/*.jpg`, or their folder.
        masks: Pattern of the masks, with as many wildcards; both or none.
        classes: The class list, if it is outside `root`, or the classes themselves.
        allow_missing: Raise for a missing mask when its sample is read, not here; for tools that list all of them.
        task: The task of the masks, one of `resnest_seg.labels.TASKS`, see `infer_classes`. A class list of a binary
            task has two classes, the object last; of a multi-label task, up to 15 with the ids 0, 1, ... of their bits.

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
        root: str | Path | Source,
        split: str = "train",
        *,
        images: str | None = None,
        masks: str | None = None,
        classes: str | Path | LabelSpace | None = None,
        allow_missing: bool = False,
        task: str = "multiclass",
    ) -> None:
        if split not in SPLITS:
            raise DatasetError(str(unknown_name("split", split, SPLITS)))
        source = open_source(root, zips=())
        shown = named(root)
        found = find_pairs(source, shown, images=images, masks=masks)
        labelled = [photo.mask for photo in found.photos if photo.mask is not None]
        space, names_255 = _folder_label_space(
            source, found.layout.base, labelled, classes, lenient=allow_missing, task=task
        )
        if space.task != task:
            space = _listed_for(space, task)
        self.listed, self.assumes_ignored = names_255 is not None, names_255 is False
        chosen, how = _split(source, found, split)
        self.layout = f"{found.layout.title}: {found.layout.options()}; splits: {how}"
        if not self.listed:
            self.layout += f"; no class list, {len(space)} classes in the masks (check --write-classes drafts one)"
        self.usual = (found.layout.title, images) == (LAYOUTS[0].title, None)
        unlabelled = split == "test" and bool(found.splits) and not any(photo.mask for photo in chosen)
        if not chosen:
            raise DatasetError(
                f"the {split} split of {space.name} is empty: none of {len(found.photos)} photos is in it ({how}). "
                "Make folders images/train, images/val and the same below masks, or lists train.txt and val.txt."
            )
        alone = [photo for photo in chosen if photo.mask is None]
        if 2 * len(alone) > len(chosen) and not unlabelled and not allow_missing:
            raise DatasetError(
                f"{len(alone)} of {len(chosen)} images of the {split} split have no mask. The first: "
                f"{source.locate(alone[0].image)} needs {source.locate(alone[0].wanted)}."
                f"{explained(source, visible(source.names('')), shown, found)}"
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


def _listed_for(space: LabelSpace, task: str) -> LabelSpace:
    """The classes of a list as those of a task.

    Raises:
        DatasetError: The list does not fit the task.
    """
    if task == "binary" and len(space) != 2:
        raise DatasetError(
            f"model.task binary: the class list has {len(space)} classes ({', '.join(space.names[:6])}), and a binary "
            f"task has two, the object last. Of more, name the object: --data.positive {shlex.quote(space.names[-1])}"
        )
    try:
        ignored = () if task == "multilabel" else space.ignored_raw_ids
        return dataclasses.replace(space, task=task, ignored_raw_ids=ignored)
    except ConfigError as error:
        raise DatasetError(f"model.task {task}: the class list does not fit: {error}") from None


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


def read_masks(
    source: Source, found: Pairing, *, task: str = "multiclass"
) -> Iterator[tuple[str, NDArray[Any], NDArray[np.uint8] | None]]:
    """Read the masks of all photos: names, masks of ids [H, W] or colours [H, W, 3], palettes [256, 3]; one at a time.

    Masks of a "multilabel" `task` are bits, uint16 [H, W].

    Raises:
        DatasetError: A mask cannot be read; the message names it.
    """
    for photo in found.photos:
        if photo.mask is not None:
            data, where = source.read(photo.mask), source.locate(photo.mask)
            if task == "multilabel":
                yield where, decode_bits(data, where), None
                continue
            mask = decode_mask(data, where)
            yield where, mask, mask_palette(data) if mask.ndim == 2 else None


def lists_classes(root: str | Path | Source, *, images: str | None = None, masks: str | None = None) -> bool:
    """True if a folder, zip file or address of the user's has a class list.

    Raises:
        DatasetError: There is no such folder or file.
    """
    source = open_source(root, zips=())
    found = find_pairs(source, named(root), images=images, masks=masks)
    return _class_list(source, found.layout.base) is not None


def named(root: str | Path | Source) -> str:
    """Where a data set is, for messages."""
    return root.locate("") if isinstance(root, Source) else without_secrets(str(root))


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
    chosen: dict[Photo, str] = {}
    for line in (str(PurePosixPath(line.strip())) for line in text.splitlines() if line.strip()):
        stem = str(PurePosixPath(line).with_suffix("")) if line.lower().endswith(PHOTO_SUFFIXES) else line
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
        if meant[0] in chosen:
            raise DatasetError(
                f"{source.locate(listing)} lists '{printable(chosen[meant[0]])}' and '{printable(line)}', which are "
                "one photo: it would count twice. Leave one of the lines out."
            )
        chosen[meant[0]] = line
    return list(chosen)


def _hash_share(name: str) -> float:
    """Return a number in [0, 1) that depends on the name alone."""
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()[:6], "big") / 2**48


def _folder_label_space(
    source: Source,
    base: str,
    masks: Sequence[str],
    classes: str | Path | LabelSpace | None,
    *,
    lenient: bool,
    task: str,
) -> tuple[LabelSpace, bool | None]:
    """Return the classes, and True if their list mentions 255; None in its stead if they are inferred."""
    if isinstance(classes, LabelSpace):
        return classes, IGNORE_LABEL in classes.raw_ids + classes.ignored_raw_ids
    if classes is not None:
        space = read_classes(classes, name="folder")
        return space, names_id(class_list(classes), str(classes), IGNORE_LABEL)
    inside = _class_list(source, base)
    if inside is not None:
        data, path = source.read(inside), source.locate(inside)
        return parse_classes(data, path, name="folder"), names_id(data, path, IGNORE_LABEL)

    refused: list[DatasetError] = []

    def contents() -> Iterator[NDArray[Any]]:
        painted: dict[int, tuple[str, list[int]]] = {}
        for name in masks:
            try:
                data = source.read(name)
                mask = (decode_bits if task == "multilabel" else decode_mask)(data, source.locate(name))
            except DatasetError as error:
                if not lenient:
                    raise
                refused.append(error)  # a scan of the data set reports it
                continue
            palette = mask_palette(data) if mask.ndim == 2 and task == "multiclass" else None
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
        return infer_classes(contents(), name="folder", task=task), None
    except DatasetError:
        if len(refused) < len(masks):
            raise
        raise DatasetError(f"none of the {len(masks)} masks can be read. The first: {refused[0]}") from None
