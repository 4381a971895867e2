"""Reading files of strangers: JSON, XML, small pictures and names of photos, with the place of every value in messages.

Nothing here trusts a file: depth, sizes and numbers are bounded, entities in XML are refused, pictures are measured
before they are decoded, and names of photos are looked up below the folders that the user named, never elsewhere.
"""

from __future__ import annotations

import base64
import binascii
import functools
import io
import json
import math
import os
import re
import reprlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote
from xml.parsers import expat

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from resnest_seg.annotations.objects import Ring
from resnest_seg.annotations.raster import FARTHEST
from resnest_seg.errors import DatasetError, printable
from resnest_seg.io.georeference import is_tiff, raster_size
from resnest_seg.io.images import IMAGE_SUFFIXES, size_in_header
from resnest_seg.io.masks import BROKEN, image_size

DEEPEST = 40
"""Nesting of elements in an XML file, at most."""

MOST_OBJECTS = 1 << 24
"""Largest number of a class, an id of a segment, and the like."""


class Item:
    """A value in a document, with its place for messages: `labels.json: annotations[3].bbox`.

    Args:
        value: What JSON, YAML or an XML attribute holds.
        parent: The item that holds it, or the name of the file.
        key: Its key or index there.
    """

    __slots__ = ("_key", "_parent", "value")

    def __init__(self, value: Any, parent: Item | str, key: str | int | None = None) -> None:
        self.value, self._parent, self._key = value, parent, key

    @property
    def place(self) -> str:
        """File and path within it."""
        if isinstance(self._parent, str):
            return self._parent if self._key is None else f"{self._parent}: {self._step}"
        outer, root = self._parent.place, isinstance(self._parent._parent, str) and self._parent._key is None
        return f"{outer}: {self._step}" if root else f"{outer}{'' if self._step.startswith('[') else '.'}{self._step}"

    @property
    def _step(self) -> str:
        return f"[{self._key}]" if isinstance(self._key, int) else printable(str(self._key))

    def error(self, wanted: str) -> DatasetError:
        """Return the error that says what the value must be, and what it is."""
        return DatasetError(f"{self.place} must be {wanted}, not {shown(self.value)}.")

    def wrong(self, why: str) -> DatasetError:
        """Return the error that says what is wrong with the value."""
        return DatasetError(f"{self.place}: {why}.")

    def __getitem__(self, key: str) -> Item:
        found = self.get(key)
        if found is None:
            if key in self.value:
                raise DatasetError(f"{Item(None, self, key).place} is null, and a value is needed.")
            raise DatasetError(f"{self.place} has no {key!r}, only {shown(list(self.value))}.")
        return found

    def get(self, key: str) -> Item | None:
        """Return the value of a key, or None if it is missing or null."""
        if not isinstance(self.value, Mapping):
            raise self.error(f"a mapping with {key!r}")
        value = self.value.get(key)
        return None if value is None else Item(value, self, key)

    def items(self) -> Iterator[Item]:
        """Yield the values of a list."""
        if not isinstance(self.value, list | tuple):
            raise self.error("a list")
        for index, value in enumerate(self.value):
            yield Item(value, self, index)

    def pairs(self) -> Iterator[tuple[str, Item]]:
        """Yield keys and values of a mapping."""
        if not isinstance(self.value, Mapping):
            raise self.error("a mapping")
        for key, value in self.value.items():
            yield str(key), Item(value, self, str(key))

    def text(self) -> str:
        """Return the value if it is text that is not empty."""
        if not isinstance(self.value, str) or not self.value.strip():
            raise self.error("text")
        return self.value

    def whole(self, low: int, high: int) -> int:
        """Return the value if it is a whole number of the range."""
        value = self.value
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if type(value) is not int or not low <= value <= high:
            raise self.error(f"a whole number from {low} to {high}")
        return value

    def number(self, low: float = -FARTHEST, high: float = FARTHEST) -> float:
        """Return the value if it is a number of the range."""
        if type(self.value) not in (int, float) or not low <= self.value <= high:
            raise self.error(f"a number from {low:g} to {high:g}")
        return float(self.value)

    def numbers(self, farthest: float = FARTHEST, unit: str = "pixels") -> NDArray[np.float64]:
        """Return a list of coordinates, or of lists of them, as an array of one or two axes."""
        try:
            found = np.array(self.value) if isinstance(self.value, list | tuple) else None
        except (ValueError, OverflowError):
            found = None
        if found is None or (found.size and found.dtype.kind not in "iuf"):
            raise self.error("a list of numbers")
        found = found.astype(np.float64)
        if not (np.abs(found) <= farthest).all():
            value = found[~(np.abs(found) <= farthest)][0]
            raise DatasetError(f"{self.place} holds the coordinate {value}: they must lie within {farthest:g} {unit}.")
        return found

    def points(self, least: int = 1) -> Ring:
        """Return a list of points [[x, y], ...] as an array [N, 2]."""
        found = self.numbers()
        if found.ndim != 2 or found.shape[1] != 2 or len(found) < least:
            raise self.error(f"a list of at least {least} points [x, y]")
        return found


def shown(value: Any) -> str:
    """Return a short form of a value for messages."""
    return printable(reprlib.repr(value))


def read_bytes(path: Path) -> bytes:
    """Read a file.

    Raises:
        DatasetError: It cannot be read.
    """
    try:
        return path.read_bytes()
    except (OSError, MemoryError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise DatasetError(f"cannot read {printable(str(path))}: {why}.") from None


def read_text(path: Path) -> str:
    """Read a UTF-8 file, with or without a byte order mark.

    Raises:
        DatasetError: It cannot be read, or is not UTF-8.
    """
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DatasetError(
            f"cannot read {printable(str(path))}: its byte {error.start} is not UTF-8. Save it as UTF-8."
        ) from None


def read_json(path: Path) -> Item:
    """Read a JSON file; the last one is kept, as recognising a format reads it, too.

    Raises:
        DatasetError: It cannot be read, is not JSON (NaN and Infinity are not), or is nested too deep.
    """
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        raise DatasetError(f"cannot read {printable(str(path))}: {getattr(error, 'strerror', error)}.") from None
    return _parsed(path, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=1)
def _parsed(path: Path, modified: int, size: int) -> Item:
    name = printable(str(path))
    text = read_text(path)
    if not text.strip():
        raise DatasetError(f"{name} is empty: it must be a JSON file.")

    def refuse(word: str) -> Any:
        raise DatasetError(f"{name} holds the number {word}, which is no coordinate, and no JSON.")

    try:
        return Item(json.loads(text, parse_constant=refuse), name)
    except json.JSONDecodeError as error:
        ends = error.pos >= len(text.rstrip()) - 1
        hint = " The file ends there: it is truncated." if ends else ""
        raise DatasetError(
            f"{name} is not valid JSON: {error.msg}, line {error.lineno}, column {error.colno}.{hint}"
        ) from None
    except RecursionError:
        raise DatasetError(f"{name} is nested too deep to be annotations.") from None
    except ValueError as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(f"{name} holds a number of too many digits: {error}.") from None


def forget() -> None:
    """Drop the document that `read_json` keeps."""
    _parsed.cache_clear()


def parse_xml(path: Path, start: Callable[[list[str], dict[str, str], int], None],
              end: Callable[[list[str], str], None]) -> None:  # fmt: skip
    """Parse an XML file as a stream.

    Args:
        path: The file.
        start: Called at the beginning of an element with the names from the root down to it, attributes, and its line.
        end: Called at the end of an element with these names and the text within.

    Raises:
        DatasetError: It is not XML, declares entities, or is nested too deep.
    """
    name, stack, words = printable(str(path)), list[str](), list[str]()
    parser = expat.ParserCreate()
    parser.buffer_text = True

    def refuse(*declaration: Any) -> Any:
        raise DatasetError(
            f"{name}, line {parser.CurrentLineNumber}: declares the entity {shown(declaration[0])}. No annotation tool "
            "writes entities, and they can be made to fill the memory or to read other files."
        )

    def begin(tag: str, attributes: dict[str, str]) -> None:
        stack.append(tag)
        if len(stack) > DEEPEST:
            raise DatasetError(f"{name}, line {parser.CurrentLineNumber}: more than {DEEPEST} elements in each other.")
        words.clear()
        start(stack, attributes, parser.CurrentLineNumber)

    def finish(tag: str) -> None:
        end(stack, "".join(words).strip())
        stack.pop()
        words.clear()

    parser.EntityDeclHandler = refuse
    parser.ExternalEntityRefHandler = refuse
    parser.StartElementHandler, parser.EndElementHandler = begin, finish
    parser.CharacterDataHandler = words.append
    try:
        with open(path, "rb") as file:
            parser.ParseFile(file)
    except (expat.ExpatError, LookupError) as error:  # LookupError: an encoding that does not exist
        raise DatasetError(f"{name} is not valid XML: {error}.") from None
    except OSError as error:
        raise DatasetError(f"cannot read {name}: {error.strerror}.") from None


def from_base64(item: Item) -> bytes:
    """Decode text of base64, with or without the head of a data address.

    Raises:
        DatasetError: It is none.
    """
    text = item.text()
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode(re.sub(r"\s", "", text), validate=True)
    except (binascii.Error, ValueError) as error:
        raise item.wrong(f"not base64 ({error}): {shown(item.value)}") from None


def small_picture(data: bytes, place: str, *, most: tuple[int, int]) -> Image.Image:
    """Decode a picture of a mask that may have `most` = (height, width) at most.

    Raises:
        DatasetError: It is no picture, a damaged one, or a larger one; it is measured before it is decoded.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            size, picture = size_in_header(data), None
            if size is None:
                picture = Image.open(io.BytesIO(data), formats=("BMP", "TIFF"))
                size = picture.height, picture.width
            if size[0] > most[0] or size[1] > most[1]:
                raise DatasetError(
                    f"{place}: a mask of {size[1]} x {size[0]} pixels in a photo of {most[1]} x {most[0]}."
                )
            picture = picture or Image.open(io.BytesIO(data), formats=("PNG",))
            picture.load()
    except DatasetError:
        raise
    except BROKEN as error:
        why = " ".join(str(error).split())[:100] or type(error).__name__
        raise DatasetError(f"{place}: not a picture, or a corrupt one ({why}); {len(data)} bytes.") from None
    return picture


def opacity_or_value(picture: Image.Image) -> NDArray[np.bool_]:
    """Return where a picture of one object has it: where it is opaque, or without opacity where it is not black."""
    if picture.mode == "P" and "transparency" in picture.info:
        picture = picture.convert("RGBA")
    if picture.mode in ("RGBA", "LA", "PA"):
        return np.asarray(picture.getchannel("A")) > 0
    values: NDArray[np.bool_] = np.asarray(picture) > 0
    return np.any(values, axis=2).astype(bool) if values.ndim == 3 else values


def color_of(item: Item | None) -> tuple[int, int, int] | None:
    """Parse a colour, `#rrggbb`; None if there is none."""
    if item is None or item.value == "":
        return None
    match = re.fullmatch(r"#([0-9a-fA-F]{6})(?:[0-9a-fA-F]{2})?", item.text())
    if match is None:
        raise item.error("a colour such as #ff8000")
    return int(match[1][:2], 16), int(match[1][2:4], 16), int(match[1][4:], 16)


SPLITS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
"""Words for splits -> split."""


def split_in(name: str) -> str | None:
    """Return the split that the name of a file or folder holds as a word, such as `instances_val2017`, or None."""
    found = {SPLITS[word] for word in re.findall(r"[a-z]+", name.lower()) if word in SPLITS}
    return found.pop() if len(found) == 1 else None


def walk(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    """List the files below a folder with one of the suffixes (in lower case), without hidden ones, sorted."""
    found, visited = list[Path](), set[str]()
    for parent, folders, files in os.walk(folder, followlinks=True):
        place = os.path.realpath(parent)
        if place in visited:  # a link back
            folders.clear()
            continue
        visited.add(place)
        folders[:] = [name for name in folders if not name.startswith((".", "__MACOSX"))]
        found += [Path(parent, name) for name in files if name.lower().endswith(tuple(suffixes)) and name[0] != "."]
    return sorted(found)


def json_files(folder: Path) -> list[Path]:
    """List the JSON files of a folder, of its folder `annotations`, and of its other folders, in this order."""
    patterns = ("*.json", "annotations/*.json", "*/*.json")
    return list(dict.fromkeys(path for pattern in patterns for path in sorted(folder.glob(pattern))))


class Photos:
    """The folders in which photos are looked up by the names that annotations have for them.

    A name is never followed out of them: of `C:\\data\\..\\a\\b.jpg`, `a/b.jpg` and then `b.jpg` are looked for, in
    each folder.

    Args:
        roots: The folders, in order; those that do not exist are left out.
        below: A folder that the user named: at last, `b.jpg` is looked for anywhere below it; where that has a folder
            `a` with photos, in such folders only.
    """

    def __init__(self, roots: Sequence[Path], *, below: Path | None = None) -> None:
        self.roots = list(dict.fromkeys(root for root in roots if is_folder(root)))
        self.asked, self.below = list(dict.fromkeys(roots)), below

    def find(self, name: str, place: str) -> tuple[Path, str]:
        """Find a photo; returns its file, and its name below the folder in which it was found.

        Raises:
            DatasetError: There is none, or several fit.
        """
        names = _suffixes_of(name)
        names += [re.sub(r"^[0-9a-f]{8}-", "", last) for last in names[-1:]]  # Label Studio adds a hash to uploads
        for candidate in dict.fromkeys(names):
            for root in self.roots:
                path = root / candidate
                if is_file(path):
                    return path, candidate
        for word in dict.fromkeys(names[-2:]) if self.below is not None else ():
            found = self._anywhere.get(word, [])
            above = {name.partition("/")[0] for name in names if name.count("/") == 1} & self._folders
            found = [one for one in found if one[0].parent.name in above] if above else found
            if len(found) > 1:
                raise DatasetError(
                    f"{place} names the photo {shown(name)}, and {len(found)} files are called so: {found[0][0]} and "
                    f"{found[1][0]}. Say which folder is meant: --photos FOLDER."
                )
            if found:
                return found[0]
        tried = ", ".join(printable(str(root)) for root in self.asked[:4])
        raise DatasetError(
            f"{place} names the photo {shown(name)}, which is not below {tried}. Say where the photos are: "
            "--photos FOLDER."
        )

    @functools.cached_property
    def _anywhere(self) -> dict[str, list[tuple[Path, str]]]:
        assert self.below is not None
        index: dict[str, list[tuple[Path, str]]] = {}
        for path in walk(self.below, IMAGE_SUFFIXES):
            index.setdefault(path.name, []).append((path, path.relative_to(self.below).as_posix()))
        return index

    @functools.cached_property
    def _folders(self) -> set[str]:
        """Names of the folders with photos below the folder that the user named."""
        return {path.parent.name for found in self._anywhere.values() for path, _ in found if path.parent != self.below}


def is_file(path: Path) -> bool:
    """True for a file; False also for what can be no name: one too long, or with a zero byte."""
    return os.path.isfile(path)  # noqa: PTH113  # Path's raises for a name too long


def is_folder(path: Path) -> bool:
    """True for a folder; False also for what can be no name."""
    return os.path.isdir(path)  # noqa: PTH112  # Path's raises for a name too long


def without_root(word: str) -> list[str]:
    """Split a path of a stranger into its parts, without a drive or a root, which is `//` behind two slashes."""
    path = PurePosixPath(re.sub(r"^[a-zA-Z]:", "", word.replace("\\", "/")))
    return [part for part in path.parts if part.strip("/")]


def _suffixes_of(name: str) -> list[str]:
    """Return what a name may mean below a folder, the longest path first; nothing that leads out of it."""
    forms = [name.replace("\\", "/")]
    if (plain := unquote(forms[0])) != forms[0]:
        forms.append(plain)
    found: list[str] = []
    for form in forms:
        parts = without_root(form)
        if ".." in parts:
            parts = parts[len(parts) - parts[::-1].index("..") :]
        found += ["/".join(parts[start:]) for start in range(len(parts))]
    return list(dict.fromkeys(found))


def shown_size(path: Path | bytes) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return (height, width) of a photo as it is stored, and as it is shown, turned by its orientation tag.

    Both are (0, 0) if it cannot be read.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(path) if isinstance(path, bytes) else path) as picture:
                stored = picture.height, picture.width
                tagged = picture.format != "PNG" or _has_exif(path)
                turned = tagged and picture.getexif().get(274, 1) in (5, 6, 7, 8)
    except BROKEN:
        stored, turned = (0, 0) if isinstance(path, bytes) else image_size(path), False
        if not isinstance(path, bytes) and not min(stored) and is_tiff(path):  # of bands that Pillow does not know
            stored = raster_size(path)
    return stored, stored[::-1] if turned else stored


def _has_exif(path: Path | bytes) -> bool:
    """True if a PNG has a chunk of EXIF; without one, Pillow would decode all pixels to look behind them."""
    with io.BytesIO(path) if isinstance(path, bytes) else open(path, "rb") as file:
        file.seek(8)
        while len(head := file.read(8)) == 8 and head[4:] != b"IEND":
            if head[4:] == b"eXIf":
                return True
            file.seek(int.from_bytes(head[:4], "big") + 4, os.SEEK_CUR)  # over the content and its checksum
    return False


def is_finite(value: float) -> bool:
    """True for a number that a coordinate can be."""
    return math.isfinite(value) and abs(value) <= FARTHEST
