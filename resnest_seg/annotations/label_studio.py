"""Label Studio: its JSON export, a list of tasks.

Coordinates are percent of width and height; later regions are on top. Of several annotations of a task, the one marked
as ground truth counts, else the latest that was not cancelled. Brushes and bit masks are read from their opacity.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
from numpy.typing import NDArray

from resnest_seg.annotations.objects import (
    AnnotatedImage,
    AnnotatedObject,
    AnnotatedSet,
    Part,
    Patch,
    ReadOptions,
    Rings,
)
from resnest_seg.annotations.raster import ellipse, rectangle, rotated
from resnest_seg.annotations.reading import (
    Item,
    Photos,
    from_base64,
    json_files,
    opacity_or_value,
    read_json,
    small_picture,
)
from resnest_seg.errors import DatasetError, printable

MOST_EDGE = 1 << 20
"""Height or width of an image, at most."""

FARTHEST_PERCENT = 1e6
"""Largest coordinate in percent."""


def is_label_studio(value: Any) -> bool:
    """True for the content of a Label Studio export."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(task, Mapping) and "data" in task and "annotations" in task for task in value[:3])
    )


def read(source: Path, options: ReadOptions) -> AnnotatedSet:
    """Read an exported JSON file, or the first of a folder.

    Raises:
        DatasetError: The file is damaged, or holds a value that cannot be; a photo is missing.
    """
    found = (path for path in json_files(source) if is_label_studio(read_json(path).value))
    file = source if source.is_file() else next(found, None)
    if file is None:
        raise DatasetError(
            f"{printable(str(source))} holds no export of Label Studio, a JSON list of tasks with data and annotations."
        )
    document = read_json(file)
    photos = Photos([options.photos] if options.photos else [file.parent / "images", file.parent], below=options.photos)
    images, labels, without = list[AnnotatedImage](), set[str](), 0
    for task in document.items():
        regions = _regions(task)
        if regions is None:
            without += 1
            continue
        size: tuple[int, int] | None = None
        for region in regions:
            labels |= {label for label in _labels(region) if label is not None}
            size = size or _size(region)
        photo, name = photos.find(_photo_name(task), task.place)

        def objects(height: int, width: int, those: tuple[Item, ...] = tuple(regions)) -> Iterator[AnnotatedObject]:
            for region in those:
                yield from _objects(region, height, width)

        images.append(AnnotatedImage(name, photo, task.place, objects, size))
    if not images:
        raise document.wrong(f"there is no annotated task, only {without} without annotation")
    left_out = {"tasks without annotation": without} if without else {}
    return AnnotatedSet(dict.fromkeys(sorted(labels)), images, "list", "background", [file], left_out)


def _regions(task: Item) -> list[Item] | None:
    """Return the regions of the annotation that counts, or None if the task has no annotation."""
    best: tuple[tuple[bool, str, int], Item] | None = None
    for index, annotation in enumerate(task["annotations"].items()):
        cancelled, truth = annotation.get("was_cancelled"), annotation.get("ground_truth")
        if cancelled is not None and cancelled.value:
            continue
        changed = annotation.get("updated_at") or annotation.get("created_at")
        key = truth is not None and bool(truth.value), "" if changed is None else changed.text(), index
        if best is None or key > best[0]:
            best = key, annotation
    return None if best is None else list(best[1]["result"].items())


def _photo_name(task: Item) -> str:
    """Return the path of a task's photo; of an address, what is behind the machine's name."""
    data = task["data"]
    key = next((key for key in ("image", "img", "photo", "url") if data.get(key) is not None), None)
    if key is None:
        key = next((key for key, value in data.pairs() if isinstance(value.value, str)), "image")
    word = data[key].text()
    try:
        address = urlsplit(word)
    except ValueError:
        raise data[key].wrong(f"{word!r} is no path and no address"[:200]) from None
    inner = parse_qs(address.query).get("d")  # /data/local-files/?d=folder/photo.jpg
    return inner[0] if inner else unquote(address.path) if address.scheme else word


def _size(region: Item) -> tuple[int, int] | None:
    if region.get("original_width") is None:
        return None
    return region["original_height"].whole(1, MOST_EDGE), region["original_width"].whole(1, MOST_EDGE)


def _labels(region: Item) -> list[str | None]:
    """Return the classes of a region; none if it has no area."""
    kind = region["type"].text()
    names = region["value"].get(kind) if kind in _PARTS else None
    return [] if names is None else [name.text().strip() for name in names.items()]


def _objects(region: Item, height: int, width: int) -> Iterator[AnnotatedObject]:
    kind = region["type"].text()
    if kind not in _PARTS:
        named = {"keypointlabels": "a point", "choices": "a choice", "textarea": "a text"}
        bare = kind in ("polygon", "rectangle", "ellipse", "brush", "bitmask")
        yield AnnotatedObject(None, (), region.place, dropped="no class" if bare else named.get(kind, f"{kind[:40]}"))
        return
    size = _size(region)
    if size is not None and size != (height, width):
        raise region["original_width"].wrong(
            f"the region is for {size[1]} x {size[0]} pixels, the photo has {width} x {height}"
        )
    turned = region.get("image_rotation")
    if turned is not None and turned.number() % 360:
        raise turned.wrong(f"the photo was turned by {turned.value} degrees while it was labelled: turn the file alike")
    labels = _labels(region)
    if not labels:
        yield AnnotatedObject(None, (), region.place, dropped="no class")
    part = _PARTS[kind](region["value"], height, width) if labels else None
    for label in labels:
        assert part is not None
        yield AnnotatedObject(label, (part,), region.place)


def _percent(value: Item, key: str, whole: int) -> float:
    return value[key].number(-FARTHEST_PERCENT, FARTHEST_PERCENT) * whole / 100


def _rotation(value: Item) -> float:
    found = value.get("rotation")
    return 0.0 if found is None else found.number(-3600, 3600)


def _polygon(value: Item, height: int, width: int) -> Part:
    return Rings((value["points"].points(3) * (width / 100, height / 100),))


def _rectangle(value: Item, height: int, width: int) -> Part:
    left, top = _percent(value, "x", width), _percent(value, "y", height)
    ring = rectangle(left, top, left + _percent(value, "width", width), top + _percent(value, "height", height))
    return Rings((rotated(ring, (left, top), _rotation(value)),))


def _ellipse(value: Item, height: int, width: int) -> Part:
    x, y = _percent(value, "x", width), _percent(value, "y", height)
    across, down = _percent(value, "radiusX", width), _percent(value, "radiusY", height)
    return Rings((ellipse(x, y, abs(across), abs(down), _rotation(value)),))


def _brush(value: Item, height: int, width: int) -> Part:
    form = value.get("format")
    if form is not None and form.value != "rle":
        raise form.error("'rle'")
    numbers = value["rle"]
    try:
        data = bytes(numbers.value) if isinstance(numbers.value, list) else None
    except (TypeError, ValueError):
        data = None
    if data is None:
        raise numbers.error("a list of bytes, 0..255")
    try:
        pixels = decode_brush(data, height * width * 4)
    except ValueError as error:
        raise numbers.wrong(f"{error}: no mask of {height} x {width} pixels") from None
    return Patch(0, 0, pixels.reshape(height, width, 4)[..., 3] > 0)


def decode_brush(data: bytes, length: int) -> NDArray[np.uint8]:
    """Decode a brush's stream of bits to `length` values, uint8.

    A number of values (32 bits), a word's bits less 1 (5), four sizes less 1 (4 each); then records: 1 bit says run or
    literals, 2 bits which size, as many bits as this the number of values less 1, and the value or values.

    Raises:
        ValueError: It decodes to another number of values, or is truncated.
    """
    bits = np.unpackbits(np.frombuffer(data, np.uint8))
    place = 0

    def take(size: int) -> int:
        nonlocal place
        if place + size > len(bits):
            raise ValueError(f"it is truncated after {len(data)} bytes")
        chunk = bits[place : place + size]
        place += size
        return int(chunk @ (1 << np.arange(size - 1, -1, -1, dtype=np.int64)))

    count, word, sizes = take(32), take(5) + 1, [take(4) + 1 for _ in range(4)]
    if count != length or word != 8:
        raise ValueError(f"it has {count} values of {word} bits in place of {length} of 8")
    values = np.zeros(length, np.uint8)
    at = 0
    while at < length:
        is_run = take(1)
        end = at + 1 + take(sizes[take(2)])
        if end > length:
            raise ValueError(f"a record leads to value {end} of {length}")
        if is_run:
            values[at:end] = take(word)
        else:
            size = (end - at) * word
            if place + size > len(bits):
                raise ValueError(f"it is truncated after {len(data)} bytes")
            values[at:end] = np.packbits(bits[place : place + size])
            place += size
        at = end
    return values


def _bitmask(value: Item, height: int, width: int) -> Part:
    address = value["imageDataURL"]
    mask = opacity_or_value(small_picture(from_base64(address), address.place, most=(height, width)))
    if mask.shape != (height, width):
        raise address.wrong(f"the mask has {mask.shape[1]} x {mask.shape[0]} pixels, the photo {width} x {height}")
    return Patch(0, 0, mask)


_PARTS = {
    "polygonlabels": _polygon,
    "rectanglelabels": _rectangle,
    "ellipselabels": _ellipse,
    "brushlabels": _brush,
    "bitmasklabels": _bitmask,
}
