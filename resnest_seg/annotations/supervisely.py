"""Supervisely: meta.json, and in every data set's folder img/ and ann/.

Drawn as its own library draws: vertices are pixel indices and the border belongs to the object, interiors with their
border are cut out, later objects are on top.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from resnest_seg.annotations.objects import (
    AnnotatedImage,
    AnnotatedObject,
    AnnotatedSet,
    Part,
    Patch,
    ReadOptions,
    Rings,
)
from resnest_seg.annotations.raster import rectangle
from resnest_seg.annotations.reading import (
    Item,
    Photos,
    color_of,
    from_base64,
    opacity_or_value,
    read_json,
    shown,
    small_picture,
    split_in,
    walk,
)
from resnest_seg.errors import DatasetError, printable

MOST_EDGE = 1 << 20
"""Height or width of an image, at most."""

UNDRAWN = ("line", "polyline", "point", "graph", "cuboid", "any_geometry", "alpha_mask", "oriented_bbox")
"""Geometries without an area, or that this reader does not draw."""


def read(source: Path, options: ReadOptions) -> AnnotatedSet:
    """Read a project: the folder of meta.json.

    Raises:
        DatasetError: A file is damaged, or holds a value that cannot be; a photo is missing.
    """
    meta = (source if source.is_dir() else source.parent) / "meta.json"
    classes: dict[str, tuple[int, int, int] | None] = {}
    for one in read_json(meta)["classes"].items():
        title = one["title"].text().strip()
        if title in classes:
            raise one["title"].wrong(f"the class {title!r} is listed twice")
        classes[title] = color_of(one.get("color"))
    if not classes:
        raise DatasetError(f"{printable(str(meta))} lists no class.")
    home = meta.parent
    folders = sorted({path.parent for path in walk(home, (".json",)) if path.parent.name == "ann"})
    images, files = list[AnnotatedImage](), [meta]
    for folder in folders:
        inner = folder.parent.relative_to(home)
        photos = Photos(
            [options.photos / inner, options.photos] if options.photos else [folder.parent / "img"],
            below=options.photos,
        )
        for file in walk(folder, (".json",)):
            document = read_json(file)
            photo, _ = photos.find(file.relative_to(folder).as_posix().removesuffix(".json"), printable(str(file)))
            size = document["size"]
            edges = size["height"].whole(1, MOST_EDGE), size["width"].whole(1, MOST_EDGE)
            split = split_in(inner.parts[0]) if inner.parts else None
            below = Path(*inner.parts[1:]) if split else inner
            name = (below / file.relative_to(folder)).as_posix().removesuffix(".json")
            kept = document["objects"]

            def objects(height: int, width: int, those: Item = kept) -> Iterator[AnnotatedObject]:
                for one in those.items():
                    yield _object(one, classes, height, width)

            images.append(AnnotatedImage(name, photo, printable(str(file)), objects, edges, split))
            files.append(file)
    if not images:
        raise DatasetError(f"{printable(str(home))} holds no annotation: they would be in DATASET/ann/PHOTO.jpg.json.")
    return AnnotatedSet(classes, images, "list", "background", files)


def _object(one: Item, classes: Mapping[str, object], height: int, width: int) -> AnnotatedObject:
    label, kind = one["classTitle"].text().strip(), one["geometryType"].text()
    if label not in classes:
        raise one["classTitle"].wrong(
            f"the class {shown(label)} is not in meta.json, which lists {shown(list(classes))}"
        )
    if kind in UNDRAWN:
        return AnnotatedObject(label, (), one.place, dropped=f"a {kind}")
    if kind == "bitmap":
        return AnnotatedObject(label, (_bitmap(one["bitmap"], height, width),), one.place)
    if kind not in ("polygon", "rectangle"):
        raise one["geometryType"].error("polygon, rectangle or bitmap")
    points = one["points"]
    exterior = points["exterior"].points(2 if kind == "rectangle" else 3) + 0.5
    if kind == "rectangle":
        ring = rectangle(*exterior.min(axis=0), *exterior.max(axis=0))
        return AnnotatedObject(label, (Rings((ring,), closed=True),), one.place)
    holes = points.get("interior")
    interiors = [] if holes is None else [hole.points(1) + 0.5 for hole in holes.items()]
    return AnnotatedObject(label, (Rings((exterior, *interiors), closed=True),), one.place)


def _bitmap(bitmap: Item, height: int, width: int) -> Part:
    data = from_base64(bitmap["data"])
    origin = [edge.whole(-MOST_EDGE, MOST_EDGE) for edge in bitmap["origin"].items()]
    if len(origin) != 2:
        raise bitmap["origin"].error("[x, y]")
    if data[:4] != b"\x89PNG":
        most = 8 * (height + 1) * (width + 1) + 65536
        packer = zlib.decompressobj()
        try:
            data = packer.decompress(data, most)
        except zlib.error as error:
            raise bitmap["data"].wrong(f"neither a PNG nor packed by zlib ({error})") from None
        if packer.unconsumed_tail:
            raise bitmap["data"].wrong(f"it unpacks to more than {most} bytes, for a photo of {width} x {height}")
    mask = opacity_or_value(small_picture(data, bitmap["data"].place, most=(height, width)))
    return Patch(origin[1], origin[0], np.asarray(mask, bool))
