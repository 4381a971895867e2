"""COCO: instances (outlines, run lengths, crowds) and panoptic segmentation.

Read as cocoapi (PythonAPI/pycocotools/coco.py) and panopticapi do. The parts of an object's outline are united. What
is on top the format does not say: here, the smaller object.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnest_seg.annotations.objects import (
    AnnotatedImage,
    AnnotatedObject,
    AnnotatedSet,
    Order,
    Part,
    Patch,
    ReadOptions,
    Rings,
)
from resnest_seg.annotations.raster import parse_runs, runs_to_mask
from resnest_seg.annotations.reading import (
    MOST_OBJECTS,
    Item,
    Photos,
    read_bytes,
    read_json,
    small_picture,
    split_in,
)
from resnest_seg.errors import DatasetError, printable

MOST_EDGE = 1 << 20
"""Height or width of an image, at most."""

_KEYS = {"images", "annotations", "categories"}


def is_instances(value: Any) -> bool:
    """True for the content of a COCO file that is not panoptic."""
    return isinstance(value, Mapping) and value.keys() >= _KEYS and not is_panoptic(value)


def is_panoptic(value: Any) -> bool:
    """True for the content of a COCO panoptic file."""
    if not isinstance(value, Mapping) or not value.keys() >= _KEYS or not isinstance(value["annotations"], list):
        return False
    return any(isinstance(one, Mapping) and "segments_info" in one for one in value["annotations"][:1])


def read(source: Path, options: ReadOptions) -> AnnotatedSet:
    """Read an instances file, or a folder with one file a split, such as annotations/instances_val2017.json.

    Raises:
        DatasetError: A file is damaged, or holds a value that cannot be; a photo is missing; files disagree.
    """
    return _read(source, options, panoptic=False)


def read_panoptic(source: Path, options: ReadOptions) -> AnnotatedSet:
    """Read a panoptic file, whose pictures lie in a folder of its name, or a folder with one file a split.

    Raises:
        DatasetError: As `read`.
    """
    return _read(source, options, panoptic=True)


def _read(source: Path, options: ReadOptions, *, panoptic: bool) -> AnnotatedSet:
    files = _files(source, panoptic)
    images: list[AnnotatedImage] = []
    classes: dict[str, tuple[int, int, int] | None] = {}
    listed_images, projects = 0, set[str | None]()
    folder = source if source.is_dir() and not panoptic else None  # panoptic masks are called like their photos
    for file in files:
        document = read_json(file)
        names, colors = _categories(document)
        projects.add(None if panoptic else _unused_project(document))
        listed = {names[number]: colors.get(number) for number in names}
        if classes and list(classes) != list(listed):
            raise DatasetError(f"{printable(str(file))} has other categories than {printable(str(files[0]))}.")
        classes = listed
        photos = Photos([options.photos] if options.photos else _roots(source, file), below=options.photos or folder)
        split = split_in(file.stem) or split_in(file.parent.name)
        images += (_segments if panoptic else _instances)(document, file, names, photos, split)
        listed_images += len(document["images"].value)
    project = projects.pop()
    if project is not None and not projects:  # no file uses it
        del classes[project]
    without = listed_images - len(images)
    left_out = {"images without a panoptic annotation": without} if panoptic and without else {}
    order: Order = "list" if panoptic else "area"
    return AnnotatedSet(classes, images, order, "ignore" if panoptic else "background", files, left_out)


def _files(source: Path, panoptic: bool) -> list[Path]:
    if source.is_file():
        return [source]
    test = is_panoptic if panoptic else is_instances
    every = sorted(
        {*source.glob("*.json"), *source.glob("annotations/*.json"), *source.glob("*/_annotations.coco.json")}
    )
    every = [
        path for path in every if not path.name.startswith(("captions_", "person_keypoints_", "stuff_", "image_info"))
    ]
    named = [path for path in every if path.name.startswith("panoptic_" if panoptic else "instances_")]
    files = named or [path for path in every if test(read_json(path).value)]
    if not files:
        raise DatasetError(f"{printable(str(source))} holds no COCO file: name the JSON file itself.")
    splits = [split_in(path.stem) or split_in(path.parent.name) for path in files]
    if len(set(splits)) < len(files):
        shown = ", ".join(printable(path.relative_to(source).as_posix()) for path in files[:6])
        raise DatasetError(
            f"{printable(str(source))} holds several COCO files that are not one for each of train, val and test: "
            f"{shown}. Name one of them."
        )
    return files


def _roots(source: Path, file: Path) -> list[Path]:
    """The folders in which a file's photos usually are."""
    base = source if source.is_dir() else file.parent
    bare = file.stem.removeprefix("instances_").removeprefix("panoptic_")
    above = [base, file.parent] if file.parent.name != "annotations" else [file.parent.parent, file.parent]
    inner = [folder / name for folder in above for name in (bare, f"images/{bare}", "images")]
    return [folder for folder in (*inner, *above) if folder not in (file.with_suffix(""), file.parent / "panoptic")]


def _categories(document: Item) -> tuple[dict[int, str], dict[int, tuple[int, int, int]]]:
    """Return names and colours by id, in the order of the ids."""
    names: dict[int, str] = {}
    colors: dict[int, tuple[int, int, int]] = {}
    for category in document["categories"].items():
        number, name = category["id"].whole(0, MOST_OBJECTS), category["name"].text().strip()
        if number in names:
            raise category["id"].wrong(f"the id {number} is used twice")
        if name in names.values():
            raise category["name"].wrong(f"the name {name!r} is used twice")
        names[number] = name
        color = category.get("color")
        if color is not None:
            channels = [channel.whole(0, 255) for channel in color.items()]
            if len(channels) != 3:
                raise color.error("[red, green, blue]")
            colors[number] = (channels[0], channels[1], channels[2])
    if not names:
        raise document["categories"].wrong("there is no category")
    return {number: names[number] for number in sorted(names)}, colors


def _unused_project(document: Item) -> str | None:
    """Return the category for the project itself that Roboflow lists above all others, if no object belongs to it."""
    categories = [category.value for category in document["categories"].items()]
    for top in categories:
        others = {str(one.get("supercategory")).strip() for one in categories if one is not top}
        if top.get("supercategory") == "none" and others == {top["name"].strip()}:
            number, objects = top["id"], document["annotations"].items()
            used = any(isinstance(one.value, Mapping) and one.value.get("category_id") == number for one in objects)
            return None if used else top["name"].strip()
    return None


def _images(document: Item) -> dict[int | str, Item]:
    found: dict[int | str, Item] = {}
    for image in document["images"].items():
        number = image["id"].value
        if not isinstance(number, int | str) or isinstance(number, bool):
            raise image["id"].error("a whole number or text")
        if number in found:
            raise image["id"].wrong(f"the id {number!r} is used twice")
        found[number] = image
    if not found:
        raise document["images"].wrong("there is no image")
    return found


def _size(image: Item) -> tuple[int, int]:
    return image["height"].whole(1, MOST_EDGE), image["width"].whole(1, MOST_EDGE)


def _image_id(annotation: Item, images: Mapping[int | str, Item]) -> int | str:
    number = annotation["image_id"].value
    if not isinstance(number, int | str) or number not in images:
        raise annotation["image_id"].wrong(f"there is no image with the id {number!r}"[:200])
    return number


def _instances(
    document: Item, file: Path, names: Mapping[int, str], photos: Photos, split: str | None
) -> list[AnnotatedImage]:
    images = _images(document)
    grouped: dict[int | str, list[Item]] = collections.defaultdict(list)
    seen: set[int | str] = set()
    for annotation in document["annotations"].items():
        number = annotation.get("id")
        if number is not None:
            if not isinstance(number.value, int | str):
                raise number.error("a whole number or text")
            if number.value in seen:
                raise number.wrong(f"the id {number.value!r} is used twice")
            seen.add(number.value)
        grouped[_image_id(annotation, images)].append(annotation)
    found = []
    for key, image in images.items():
        photo, name = photos.find(image["file_name"].text(), image.place)

        def objects(height: int, width: int, those: Sequence[Item] = tuple(grouped[key])) -> Iterator[AnnotatedObject]:
            for annotation in those:
                yield _object(annotation, names, height, width)

        found.append(AnnotatedImage(name, photo, image.place, objects, _size(image), split))
    return found


def _object(annotation: Item, names: Mapping[int, str], height: int, width: int) -> AnnotatedObject:
    category = annotation["category_id"].whole(0, MOST_OBJECTS)
    if category not in names:
        raise annotation["category_id"].wrong(f"there is no category with the id {category}")
    crowd = annotation.get("iscrowd")
    segmentation = annotation.get("segmentation")
    parts: tuple[Part, ...] = ()
    if segmentation is not None and segmentation.value != []:
        is_runs = isinstance(segmentation.value, Mapping)
        parts = (_of_runs(segmentation, height, width),) if is_runs else tuple(map(_outline, segmentation.items()))
    reason = "" if parts else "no segmentation, only a box"
    return AnnotatedObject(
        names[category], parts, annotation.place, crowd is not None and bool(crowd.whole(0, 1)), dropped=reason
    )


def _outline(part: Item) -> Rings:
    flat = part.numbers()
    if flat.ndim != 1 or len(flat) < 6 or len(flat) % 2:
        what = "a box, and an outline is needed" if flat.ndim == 1 and len(flat) == 4 else "no outline"
        raise part.wrong(f"{flat.size} numbers are {what}: [x1, y1, x2, y2, x3, y3, ...] with at least 3 points")
    return Rings((flat.reshape(-1, 2),))


def _of_runs(segmentation: Item, height: int, width: int) -> Patch:
    size = [edge.whole(1, MOST_EDGE) for edge in segmentation["size"].items()]
    if size != [height, width]:
        raise segmentation["size"].wrong(f"the size {size} is not that of the photo, [{height}, {width}]")
    counts = segmentation["counts"]
    try:
        if isinstance(counts.value, str):
            runs = parse_runs(counts.value)
        else:
            runs = [run.whole(0, height * width) for run in counts.items()]
        return Patch(0, 0, runs_to_mask(runs, height, width, by_columns=True))
    except (ValueError, OverflowError) as error:
        if isinstance(error, DatasetError):
            raise
        raise counts.wrong(f"{error}: these are not the run lengths of a mask of {height} x {width}") from None


def _segments(
    document: Item, file: Path, names: Mapping[int, str], photos: Photos, split: str | None
) -> list[AnnotatedImage]:
    images, found, seen = _images(document), [], set[int | str]()
    folders = Photos([file.with_suffix(""), file.parent / "panoptic", file.parent])
    for annotation in document["annotations"].items():
        key = _image_id(annotation, images)
        if key in seen:
            raise annotation["image_id"].wrong(f"the image {key!r} has two annotations")
        seen.add(key)
        image = images[key]
        photo, name = photos.find(image["file_name"].text(), image.place)
        picture, _ = folders.find(annotation["file_name"].text(), annotation.place)

        def objects(
            height: int, width: int, one: Item = annotation, picture: Path = picture
        ) -> Iterator[AnnotatedObject]:
            ids = _ids_of(picture, height, width)
            present = set(np.unique(ids).tolist()) - {0}
            for segment in one["segments_info"].items():
                number = segment["id"].whole(1, MOST_OBJECTS)
                category = segment["category_id"].whole(0, MOST_OBJECTS)
                if category not in names:
                    raise segment["category_id"].wrong(f"there is no category with the id {category}")
                if number not in present:
                    raise segment["id"].wrong(f"no pixel of {printable(str(picture))} has the id {number}")
                present.remove(number)
                crowd = segment.get("iscrowd")
                mask = Patch(0, 0, ids == number)
                yield AnnotatedObject(
                    names[category], (mask,), segment.place, crowd is not None and bool(crowd.whole(0, 1))
                )
            if present:
                raise one["segments_info"].wrong(
                    f"{printable(str(picture))} holds the id {min(present)}, which is not listed"
                )

        found.append(AnnotatedImage(name, photo, image.place, objects, _size(image), split, picture))
    return found


def _ids_of(picture: Path, height: int, width: int) -> NDArray[np.int32]:
    """Read the picture of a panoptic annotation: R + 256 G + 65536 B."""
    where = printable(str(picture))
    opened = small_picture(read_bytes(picture), where, most=(height, width))
    if opened.mode not in ("RGB", "RGBA") or (opened.height, opened.width) != (height, width):
        raise DatasetError(
            f"{where} is a {opened.mode} picture of {opened.width} x {opened.height}: panoptic masks are RGB, "
            f"of the photo's size, {width} x {height}."
        )
    pixels = np.asarray(opened.convert("RGB")).astype(np.int32)
    ids: NDArray[np.int32] = pixels @ np.array([1, 256, 65536], np.int32)
    return ids
