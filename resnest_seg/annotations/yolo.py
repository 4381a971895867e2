"""YOLO segmentation: data.yaml, and beside every photo a text file with one outline a line.

Read as ultralytics does (data/utils.py): coordinates are shares of width and height, the smaller object is on top
(polygons2masks_overlap), a photo without a text file has no objects, exact duplicates of a line count once. With
`masks_dir` (task semantic), PNG masks of class numbers are read instead, and 255 is ignored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

import numpy as np

from resnest_seg.annotations.objects import AnnotatedImage, AnnotatedObject, AnnotatedSet, ReadOptions, Rings
from resnest_seg.annotations.reading import Item, is_file, is_finite, is_folder, read_text, shown, walk, without_root
from resnest_seg.annotations.voc import ids_of, objects_of_ids
from resnest_seg.errors import ConfigError, DatasetError, printable
from resnest_seg.io.images import IMAGE_SUFFIXES
from resnest_seg.yaml_files import load_yaml

KEYS = {"train": "train", "val": "val", "test": "test"}
"""Keys of data.yaml that name photos -> split."""

MARGIN = 0.01
"""How far coordinates may lie outside of 0..1."""


def is_description(path: Path) -> bool:
    """True if a YAML file describes a YOLO data set."""
    try:
        value = load_yaml(read_text(path), str(path))
    except (ConfigError, DatasetError):
        return False
    return isinstance(value, Mapping) and "names" in value and bool(value.keys() & KEYS.keys())


def description_in(folder: Path) -> Path | None:
    """Find the YAML file that describes a YOLO data set in its folder."""
    files = sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")], key=lambda path: (path.stem != "data", path))
    return next((path for path in files if is_description(path)), None)


def read(source: Path, options: ReadOptions) -> AnnotatedSet:
    """Read a data.yaml, or the folder that holds it.

    Raises:
        DatasetError: A file is damaged, or holds a value that cannot be; there are boxes only, or no photos.
    """
    file = source if source.is_file() else description_in(source)
    if file is None:
        raise DatasetError(f"{printable(str(source))} holds no data.yaml with the key names, and train or val.")
    try:
        document = Item(load_yaml(read_text(file), printable(str(file))), printable(str(file)))
    except ConfigError as error:
        raise DatasetError(str(error)) from None
    names = _names(document)
    masks = document.get("masks_dir")
    folder = masks.text() if masks is not None else "labels"
    images, files, folders = list[AnnotatedImage](), [file], set[Path]()
    given = {key: entry for key in KEYS if (entry := document.get(key)) is not None}
    for key, entry in given.items():
        same = [other for other in given if given[other].value == entry.value]
        if key != same[0]:
            continue  # read before; ultralytics demands train and val, also of a set that is not divided
        split = KEYS[key] if len(same) == 1 else None
        for photo, name, inner in _photos(entry, file.parent, document, options):
            beside = _labels_of(photo, name, folder, file.parent, inner)
            if masks is not None:
                images.append(_with_mask(photo, name, beside, names, document, split))
                continue
            files += [beside] if beside.is_file() else []
            folders |= {beside.parent} if inner.parts and beside.parent.is_dir() else set()
            images.append(_with_text(photo, name, beside, names, split))
    if not images:
        raise DatasetError(f"{printable(str(file))} leads to no photo ({', '.join(IMAGE_SUFFIXES)}).")
    if len(files) == 1 and masks is None:
        raise DatasetError(
            f"none of the {len(images)} photos of {printable(str(file))} has labels. The first would be "
            f"{images[0].place}."
        )
    orphans = {path for one in folders for path in one.glob("*.txt") if path.name != "classes.txt"} - set(files)
    if orphans:
        raise DatasetError(f"{len(orphans)} label files have no photo. The first: {printable(str(min(orphans)))}.")
    kind = "ignore" if masks is not None else "background"
    return AnnotatedSet(dict.fromkeys(names), images, "area", kind, files)  # type: ignore[arg-type]


def _names(document: Item) -> list[str]:
    entry = document["names"]
    if isinstance(entry.value, Mapping):
        numbered = {Item(key, entry, f"key {key}").whole(0, 10_000): name.text().strip() for key, name in
                    ((key, Item(value, entry, str(key))) for key, value in entry.value.items())}  # fmt: skip
        if sorted(numbered) != list(range(len(numbered))):
            raise entry.wrong(f"the numbers {shown(sorted(numbered))} are not 0, 1, 2, ... without gaps")
        names = [numbered[number] for number in range(len(numbered))]
    else:
        names = [name.text().strip() for name in entry.items()]
    if not names or len(set(names)) < len(names):
        raise entry.wrong("there is no class" if not names else f"a name is used twice: {shown(names)}")
    count = document.get("nc")
    if count is not None and count.whole(0, 10_000) != len(names):
        raise count.wrong(f"nc is {count.value}, and there are {len(names)} names")
    return names


def _photos(entry: Item, home: Path, document: Item, options: ReadOptions) -> Iterator[tuple[Path, str, PurePosixPath]]:
    """Yield the photos of a split, their names below its folder, and the folder as the file names it."""
    base = document.get("path")
    for place in entry.items() if isinstance(entry.value, list) else (entry,):
        word = place.text()
        # Only what lies below the file counts: `../train/images` (Roboflow) and absolute paths are looked up there.
        parts = [part for part in without_root(word) if part != ".."]
        above = [part for part in without_root(base.text()) if part != ".."] if base is not None else []
        roots = [options.photos] if options.photos else [home, *(home.joinpath(*above[i:]) for i in range(len(above)))]
        tails = [Path(*parts[start:]) for start in range(len(parts))] + ([Path()] if options.photos else [])
        places = [root / tail for tail in tails for root in roots]
        found = next((path for path in places if is_file(path) or is_folder(path)), None)
        if found is None:
            raise place.wrong(f"{shown(word)} is not below {printable(str(roots[0]))}")
        if found.is_dir():
            inner = PurePosixPath(*parts)
            yield from ((path, path.relative_to(found).as_posix(), inner) for path in walk(found, IMAGE_SUFFIXES))
            continue
        for number, line in enumerate(read_text(found).splitlines(), 1):
            name = line.strip()
            if not name:
                continue
            tail = [part for part in without_root(name) if part != ".."]
            places = [found.parent.joinpath(*tail[start:]) for start in range(len(tail))]
            photo = next((path for path in places if is_file(path)), None)
            if photo is None:
                raise DatasetError(f"{printable(str(found))}, line {number}: there is no photo {shown(name)} below it.")
            yield photo, photo.relative_to(found.parent).as_posix(), PurePosixPath()


def _labels_of(photo: Path, name: str, folder: str, home: Path, inner: PurePosixPath) -> Path:
    """Return the file that belongs to a photo: the last folder `images` of its path becomes `folder`.

    If photos are elsewhere, it is looked for below the description, as the photo would be there.
    """
    beside = labels_beside(photo, folder)
    if any((path := beside.with_suffix(suffix)).is_file() and path != photo for suffix in (".txt", ".png")):
        return beside
    there = labels_beside(home / inner / name, folder)
    return there if there.parent.is_dir() else beside


def labels_beside(photo: Path, folder: str = "labels") -> Path:
    """Return the text file of a photo: the last folder `images` of the photo's path becomes `folder`."""
    parts = list(photo.parent.parts)
    if "images" in parts:
        place = len(parts) - 1 - parts[::-1].index("images")
        parts[place : place + 1] = PurePosixPath(folder).parts
    return Path(*parts) / f"{photo.stem}.txt"


def _with_text(photo: Path, name: str, text: Path, names: list[str], split: str | None) -> AnnotatedImage:
    def objects(height: int, width: int) -> Iterator[AnnotatedObject]:
        if not text.is_file():
            return
        where, seen = printable(str(text)), set[str]()
        for number, line in enumerate(read_text(text).splitlines(), 1):
            words = line.split()
            if not words or line.strip() in seen:
                continue
            seen.add(line.strip())
            yield _outline(words, f"{where}, line {number}", names, height, width)

    return AnnotatedImage(name, photo, printable(str(text)), objects, None, split)


def _outline(words: list[str], place: str, names: list[str], height: int, width: int) -> AnnotatedObject:
    try:
        label, shares = float(words[0]), np.array([float(word) for word in words[1:]])
    except ValueError as error:
        raise DatasetError(f"{place}: {error}; a line is a class and shares of width and height.") from None
    if not is_finite(label) or label != int(label) or not 0 <= label < len(names):
        raise DatasetError(f"{place}: the class {words[0]} is not one of 0..{len(names) - 1} ({shown(names)}).")
    if len(shares) == 4:
        return AnnotatedObject(names[int(label)], (), place, dropped="only a box")
    if len(shares) < 6 or len(shares) % 2:
        raise DatasetError(f"{place}: {len(shares)} numbers are no outline: x and y of at least 3 points are needed.")
    beyond = ~((shares >= -MARGIN) & (shares <= 1 + MARGIN))
    if beyond.any():
        raise DatasetError(
            f"{place}: the coordinate {shares[beyond][0]:g} is not a share of width or height (0..1): are these pixels?"
        )
    return AnnotatedObject(names[int(label)], (Rings((shares.reshape(-1, 2) * (width, height),)),), place)


def _with_mask(
    photo: Path, name: str, beside: Path, names: list[str], document: Item, split: str | None
) -> AnnotatedImage:
    mask = next((path for suffix in (".png", ".bmp", ".tif") if (path := beside.with_suffix(suffix)).is_file()), None)
    if mask is None:
        raise DatasetError(f"{printable(str(photo))} has no mask {printable(str(beside.with_suffix('.png')))}.")
    table: dict[int, int] = {}
    mapping = document.get("label_mapping")
    for key, value in mapping.value.items() if mapping is not None and isinstance(mapping.value, Mapping) else ():
        table[Item(key, document, f"label_mapping {key}").whole(0, 255)] = Item(
            value, document, f"label_mapping.{key}"
        ).whole(-1, 255)

    def objects(height: int, width: int) -> Iterator[AnnotatedObject]:
        ids = ids_of(mask, height, width)
        lookup = np.arange(256)
        for raw, meant in table.items():
            lookup[raw] = 255 if meant < 0 else meant
        numbers = lookup[ids].astype(np.uint8)
        return objects_of_ids(numbers, dict(enumerate(names)), printable(str(mask)), listing=document.place)

    return AnnotatedImage(name, photo, printable(str(mask)), objects, None, split, mask)
