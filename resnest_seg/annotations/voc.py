"""Pascal VOC: palette masks in SegmentationClass, photos in JPEGImages; also with CVAT's labelmap.txt and RGB masks.

Masks say every pixel, so nothing is drawn over anything; 255, the border between objects, is ignored. `ids_of` and
`objects_of_ids` are for masks of class numbers in any format.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from resnest_seg.annotations.objects import AnnotatedImage, AnnotatedObject, AnnotatedSet, Patch, ReadOptions
from resnest_seg.annotations.reading import Photos, read_bytes, read_text, shown, split_in, walk
from resnest_seg.errors import DatasetError, printable
from resnest_seg.io.images import refuse_too_large
from resnest_seg.io.masks import decode_mask
from resnest_seg.labels import IGNORE_LABEL

NAMES = ("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
         "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
         "tvmonitor")  # fmt: skip
"""The classes of Pascal VOC 2012 by number."""

MASKS = "SegmentationClass"
"""The folder of masks; VOC's augmented masks are in SegmentationClassAug."""


def folder_of(source: Path) -> Path | None:
    """Find the folder that holds SegmentationClass: the source, or VOCdevkit/VOC2012 and the like below it."""
    candidates = [source, *sorted(source.glob("VOC*")), *sorted(source.glob("VOCdevkit/VOC*"))]
    return next((path for path in candidates if (path / MASKS).is_dir()), None)


def read(source: Path, options: ReadOptions) -> AnnotatedSet:
    """Read a folder with SegmentationClass and JPEGImages; its splits are those of ImageSets/Segmentation.

    Raises:
        DatasetError: A file is damaged, holds an unknown number or colour, or has no photo.
    """
    folder = folder_of(source)
    if folder is None:
        raise DatasetError(f"{printable(str(source))} holds no folder {MASKS}.")
    masks = {
        path.relative_to(folder / MASKS).with_suffix("").as_posix(): path for path in walk(folder / MASKS, (".png",))
    }
    if not masks:
        raise DatasetError(f"{printable(str(folder / MASKS))} holds no mask (.png).")
    listing = folder / "labelmap.txt"
    table = _label_map(listing) if listing.is_file() else None
    named = options.numbers or dict(enumerate(NAMES))
    numbers: Mapping[int, str | None] = named if table is None else dict(enumerate(table))
    photos = Photos([options.photos] if options.photos else [folder / "JPEGImages", folder / "images"])
    every = len(masks)
    splits = _splits(folder, masks)
    left_out = {"masks that no list of ImageSets names": every - len(masks)} if every > len(masks) else {}
    images = []
    for name, mask in masks.items():
        photo, found = _photo(photos, name, mask)

        def objects(height: int, width: int, mask: Path = mask) -> Iterator[AnnotatedObject]:
            pixels = _pixels(mask, height, width)
            ids = pixels if pixels.ndim == 2 else _of_colors(pixels, table, printable(str(mask)))
            return objects_of_ids(ids, numbers, printable(str(mask)))

        images.append(AnnotatedImage(found, photo, printable(str(mask)), objects, None, splits.get(name)))
    colors = table if table is not None else dict.fromkeys(name for name in numbers.values() if name is not None)
    return AnnotatedSet(
        dict(colors), images, "list", "ignore", [*masks.values(), *([listing] if table else [])], left_out
    )


def _photo(photos: Photos, name: str, mask: Path) -> tuple[Path, str]:
    for suffix in (".jpg", ".jpeg", ".png", ".JPG", ".bmp", ".tif", ".tiff", ".webp"):
        for root in photos.roots:
            path = root / f"{name}{suffix}"
            if path.is_file() and path != mask:
                return path, f"{name}{suffix}"
    return photos.find(f"{name}.jpg", printable(str(mask)))


def _splits(folder: Path, masks: dict[str, Path]) -> dict[str, str]:
    """Map names of masks to splits, where there are lists; those that no list has are left out of the import."""
    found: dict[str, str] = {}
    for split in ("train", "val", "test"):
        listing = folder / "ImageSets" / "Segmentation" / f"{split}.txt"
        for number, line in enumerate(read_text(listing).splitlines() if listing.is_file() else [], 1):
            name = line.strip()
            if not name:
                continue
            if name in masks and found.setdefault(name, split) != split:
                raise DatasetError(
                    f"{printable(str(listing))}, line {number}: {name!r} is in the list {found[name]}, too."
                )
            if name not in masks and split != "test":
                raise DatasetError(
                    f"{printable(str(listing))}, line {number}: there is no mask {shown(name)} in {MASKS}."
                )
    if not found:
        tops = {name: split_in(name.partition("/")[0]) if "/" in name else None for name in masks}
        return {name: split for name, split in tops.items() if split is not None}
    if len(found) < len(masks):
        for name in [name for name in masks if name not in found]:
            del masks[name]
    return found


def _label_map(path: Path) -> dict[str, tuple[int, int, int] | None]:
    """Read CVAT's list of classes: `name:red,green,blue:parts:actions` a line."""
    table: dict[str, tuple[int, int, int] | None] = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, rest = line.partition(":")
        try:
            red, green, blue = (int(word) for word in rest.split(":")[0].split(","))
        except ValueError:
            red = green = blue = -1
        if not name.strip() or min(red, green, blue) < 0 or max(red, green, blue) > 255:
            raise DatasetError(
                f"{printable(str(path))}, line {number} must be name:red,green,blue::, not {shown(line)}."
            )
        if name.strip() in table or (red, green, blue) in table.values():
            raise DatasetError(
                f"{printable(str(path))}, line {number}: the name or the colour is used twice: {shown(line)}."
            )
        table[name.strip()] = (red, green, blue)
    if not table:
        raise DatasetError(f"{printable(str(path))} lists no class.")
    return table


def _pixels(path: Path, height: int, width: int) -> NDArray[np.uint8]:
    data, where = read_bytes(path), printable(str(path))
    refuse_too_large(data, where)
    pixels = decode_mask(data, where)
    if pixels.shape[:2] != (height, width):
        raise DatasetError(
            f"{where} has {pixels.shape[1]} x {pixels.shape[0]} pixels (width x height), and its photo has {width} x "
            f"{height}."
        )
    return pixels


def ids_of(path: Path, height: int, width: int) -> NDArray[np.uint8]:
    """Read a mask of class numbers [H, W].

    Raises:
        DatasetError: It cannot be read, holds colours, or has another size than the photo.
    """
    pixels = _pixels(path, height, width)
    if pixels.ndim == 3:
        raise DatasetError(
            f"{printable(str(path))} is a mask of colours (RGB), and what they mean is not said: it must hold numbers."
        )
    return pixels


def _of_colors(
    pixels: NDArray[np.uint8], table: dict[str, tuple[int, int, int] | None] | None, where: str
) -> NDArray[np.uint8]:
    if table is None:
        raise DatasetError(
            f"{where} is a mask of colours (RGB), and what they mean is not said: put a labelmap.txt with "
            f"name:red,green,blue:: lines beside the folder {MASKS}."
        )
    codes = pixels.astype(np.int64) @ np.array([65536, 256, 1])
    ids = np.full(codes.shape, IGNORE_LABEL, np.uint8)
    known = codes == (224 * 65536 + 224 * 256 + 192)  # VOC's border
    for number, color in enumerate(color for color in table.values() if color is not None):
        here = codes == color[0] * 65536 + color[1] * 256 + color[2]
        ids[here] = number
        known |= here
    if not known.all():
        red, green, blue = pixels[~known][0].tolist()
        raise DatasetError(f"{where} holds the colour ({red}, {green}, {blue}), which labelmap.txt does not list.")
    return ids


def objects_of_ids(
    ids: NDArray[np.uint8], numbers: Mapping[int, str | None], where: str, *, listing: str = "--classes FILE"
) -> Iterator[AnnotatedObject]:
    """Yield one object for each class number that occurs in a mask [H, W].

    Args:
        ids: The mask.
        numbers: Class names by number; None for ignored ones, as 255 is if it is not among them.
        where: The mask's place, for messages.
        listing: What numbers have their names from, for messages.

    Raises:
        DatasetError: A number has no name.
    """
    known = {IGNORE_LABEL: None, **numbers}
    for number in np.unique(ids).tolist():
        if number not in known:
            raise DatasetError(
                f"{where} holds the number {number}, and there are {len(numbers)} classes, {shown(dict(numbers))}: "
                f"give it a name in {listing}."
            )
        yield AnnotatedObject(known[number], (Patch(0, 0, ids == number),), f"{where}: number {number}")
