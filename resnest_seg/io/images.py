"""Reading photos as RGB pixels with OpenCV, and writing label PNGs with palettes by rows.

Photos are read as an image viewer shows them: upright as their EXIF data says, grey becomes RGB, CMYK is converted,
and transparent pixels lie on white. Palette PNGs (https://www.w3.org/TR/png-3/) hold ids as pixel values, and viewers
show the class colours; OpenCV cannot write them, and Pillow and GDAL need the whole picture first.
Pillow is imported only by what needs it: a runtime of exported files has NumPy and OpenCV alone.
"""

from __future__ import annotations

import io
import re
import struct
import sys
import warnings
import zlib
from pathlib import Path
from typing import IO, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from resnest_seg.errors import ConfigError, DatasetError, printable

JPEG = b"\xff\xd8"
"""How a JPEG file begins; it cannot be transparent."""

PNG = b"\x89PNG\r\n\x1a\n"
"""How a PNG file begins; bytes 24 and 25 say how deep it is and whether it has colours."""

JPEG_MARKER = re.compile(rb"\xff([^\0\xff])", re.DOTALL)
"""The next marker of a JPEG file; what stands before it, fill bytes FF and the stuffed pair FF 00 are passed over."""

JPEG_ALONE = frozenset((0x01, *range(0xD0, 0xD8)))
"""Markers without a segment: TEM, and RST0 to RST7."""

JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Markers of frame headers: C0..CF without the tables (C4, CC) and the extension (C8)."""

JPEG_NO_HEADER = frozenset((0xD8, 0xD9, 0xDA))
"""Markers that no header holds: a second start, the end, and pixels (a scan)."""

TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""How TIFF files begin."""

FULL_RANGE = 1 << 14
"""A photo of 16 bits has a value from here on; one without holds 14 bits or fewer, and would come out too dark."""

_TAG_BITS, _TAG_COLORS, _TAG_BANDS, _TAG_EXTRA, _TAG_FORMAT = 258, 262, 277, 338, 339
_TAG_TYPES = {1: "B", 3: "H", 4: "I", 16: "Q"}  # whole numbers without sign
_COLORS = {0: ("grey", 1), 1: ("grey", 1), 2: ("RGB", 3), 3: ("a palette", 1), 5: ("CMYK", 4), 6: ("YCbCr", 3),
           8: ("CIELab", 3)}  # fmt: skip
_ALPHA = ((1,), (2,))  # multiplied into the colours, or not
_FORMS = (1, 4)  # without sign, or not said
_ODD_FORMS = {2: "with sign", 3: "floating-point", 5: "complex", 6: "complex"}


def read_image(path: str | Path) -> NDArray[np.uint8]:
    """Read a photo as RGB, uint8 [H, W, 3]; see `decode_image`.

    Raises:
        DatasetError: The file is missing, or is no image that can be decoded.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise DatasetError(f"cannot read {printable(str(path))}: {error.strerror}.") from None
    return decode_image(data, printable(str(path)))


def decode_image(data: bytes, name: str) -> NDArray[np.uint8]:
    """Decode a photo as RGB, uint8 [H, W, 3], as an image viewer shows it.

    Not seen is transparency that OpenCV does not see: of grey TIFF files and of bitmaps (.bmp).

    Args:
        data: The file's content: JPEG, PNG, WebP, TIFF, BMP or whatever else OpenCV reads.
        name: What errors call it.

    Raises:
        DatasetError: No image, a damaged one, or one that is not of 8 bits and cannot be made so without guessing.
    """
    try:
        deep = _is_deep(data, name)
        image = _decoded(data, cv2.IMREAD_COLOR_RGB)
        if image is not None and deep:
            _refuse_odd_values(_decoded(data, cv2.IMREAD_UNCHANGED), name)
        if image is not None and _may_be_transparent(data):
            image = _on_white(data, image, name)
    except (cv2.error, MemoryError):
        raise DatasetError(f"cannot read {name}: it has too many pixels, or takes too much memory.") from None
    if image is None:
        raise DatasetError(f"cannot read {name}: {len(data)} bytes that are no image, or a damaged one.")
    return image.astype(np.uint8, copy=False)


def as_pixels(image: Any) -> NDArray[np.uint8]:
    """A photo as RGB, uint8 [H, W, 3]: a file's name, such an array, or a PIL image.

    Raises:
        DatasetError: A file cannot be read.
        ConfigError: An array of another shape or type, or something else.
    """
    if isinstance(image, str | Path):
        return read_image(image)
    pil = sys.modules.get("PIL.Image")  # who has one has imported it
    if pil is not None and isinstance(image, pil.Image):
        image = _of_pil(image)
    if not isinstance(image, np.ndarray):
        raise ConfigError(f"an image must be a file, an RGB array or a PIL image, not {type(image).__name__}.")
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        fix = " Of floats in 0..1, make (255 * image).round().astype(numpy.uint8)." if image.dtype.kind == "f" else ""
        raise ConfigError(f"an image array must be RGB, uint8 [H, W, 3], not {image.dtype} {list(image.shape)}.{fix}")
    return np.ascontiguousarray(image)


def _of_pil(image: Any) -> NDArray[np.uint8]:
    from PIL import Image, ImageOps

    name = f"the PIL image {printable(str(getattr(image, 'filename', '')))}".rstrip()
    try:
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I;16"):  # Pillow would cut 16 bits off at 255
            deep = np.asarray(image)
            _refuse_odd_values(deep.astype(np.uint16), name)
            image = Image.fromarray((deep >> 8).astype(np.uint8))
        if image.mode in ("I", "F"):
            raise ConfigError(
                f"{name} has mode {image.mode}, values of 32 bits whose range is not known: make 8 bits of them, as "
                "PIL.Image.fromarray of an array of uint8."
            )
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return np.array(image.convert("RGB"))
    except (OSError, SyntaxError) as error:  # it is read only now
        raise DatasetError(f"cannot read {name}: {' '.join(str(error).split())}.") from None
    except ValueError as error:
        if isinstance(error, ConfigError | DatasetError):
            raise
        raise ConfigError(f"{name} of mode {image.mode} cannot be made RGB: {error}.") from None


def size_in_header(data: bytes) -> tuple[int, int] | None:
    """Height and width of a JPEG, PNG or WebP image as its first bytes say, before it is turned upright.

    No pixel is decoded, so that what has too many can be refused. None: another kind, or no such header. Whatever
    `decode_image` decodes has this size; a test compares them on ten thousand damaged headers.
    """
    try:
        if data[:8] == PNG and data[12:16] == b"IHDR":
            width, height = struct.unpack(">II", data[16:24])
            return height, width
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return _webp_size(data)
        return _jpeg_size(data) if data[:2] == JPEG else None
    except (struct.error, IndexError):  # it ends too early
        return None


def _webp_size(data: bytes) -> tuple[int, int] | None:
    """https://developers.google.com/speed/webp/docs/riff_container: three kinds of first chunks."""
    kind, first = data[12:16], data[20:30]
    if kind == b"VP8X":  # 24 bits each, one less
        return int.from_bytes(first[7:10], "little") + 1, int.from_bytes(first[4:7], "little") + 1
    if kind == b"VP8L":  # 14 bits each, one less
        bits = int.from_bytes(first[1:5], "little")
        return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
    width, height = struct.unpack("<HH", first[6:10])
    return (height & 0x3FFF, width & 0x3FFF) if kind == b"VP8 " else None


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """The first frame header; markers are found as libjpeg finds them, which decodes."""
    place = len(JPEG)
    while (found := JPEG_MARKER.search(data, place)) is not None:
        kind, place = data[found.start(1)], found.end()
        if kind in JPEG_FRAMES:
            height, width = struct.unpack(">HH", data[place + 3 : place + 7])
            return height, width
        if kind in JPEG_NO_HEADER:
            return None
        if kind not in JPEG_ALONE:  # its length counts itself
            place += max(struct.unpack(">H", data[place : place + 2])[0], 2)
    return None


def refuse_low_values(peak: int, name: str) -> None:
    """Refuse a photo of 16 bits whose greatest value says that fewer are used; of an all-black one nothing is known.

    Raises:
        DatasetError: Says how to convert it.
    """
    if 0 < peak < FULL_RANGE:
        top = (1 << max(peak.bit_length(), 8)) - 1
        raise DatasetError(
            f"{name} has 16 bits, and its values end at {peak} of 65535: it would come out dark, and how bright it is "
            "meant is not written in it. Make 8 bits of all photos alike: "
            f"gdal_translate -ot Byte -scale 0 {top} 0 255 IN OUT"
        )


def refuse_odd_opacity(partly: int, pixels: int, name: str) -> None:
    """Refuse a TIFF photo of which most pixels are half transparent: a fourth band that was marked as opacity.

    GDAL marks a fourth band of 8 bits so unless it is told what it is.

    Raises:
        DatasetError: Says how to convert it.
    """
    if 2 * partly > pixels:
        raise DatasetError(
            f"{name} has a fourth band that is marked as opacity, and {100 * partly // pixels} % of its pixels would "
            "be half transparent: is it near infrared? Only three bands can be used; save the colours alone: "
            "gdal_translate -b 1 -b 2 -b 3 IN OUT"
        )


def _is_deep(data: bytes, name: str) -> bool:
    """Whether the pixels may have more than 8 bits, so that their values have to be looked at.

    Raises:
        DatasetError: A TIFF file whose own tags say that it is no photo.
    """
    if data[:8] == PNG:
        return data[24:25] == b"\x10"
    if data[:4] in TIFF:
        return _is_deep_tiff(data, name)
    return data[:2] not in (JPEG, b"BM") and not (data[:4] == b"RIFF" and data[8:12] == b"WEBP")


def _is_deep_tiff(data: bytes, name: str) -> bool:
    try:
        tags = tiff_tags(data)
    except (struct.error, IndexError, OverflowError):
        raise DatasetError(f"cannot read {name}: a damaged TIFF file.") from None
    bits, forms, extra = tags.get(_TAG_BITS, (1,)), tags.get(_TAG_FORMAT, (1,)), tags.get(_TAG_EXTRA, ())
    bands = tags.get(_TAG_BANDS, (1,))[0]
    if set(forms) - set(_FORMS) or len(set(bits)) > 1 or (bits[0] > 8 and bits[0] != 16):
        kind = _ODD_FORMS.get(forms[0], "without sign" if forms[0] in _FORMS else "of an unknown kind")
        raise DatasetError(
            f"{name} is no photo: its values have {'/'.join(map(str, sorted(set(bits))))} bits, {kind}; 8 "
            "or 16 bits without sign can be read. Make 8 bits of all photos alike: "
            "gdal_translate -ot Byte -scale LOWEST HIGHEST 0 255 IN OUT"
        )
    colors = tags.get(_TAG_COLORS, (2 if bands > 2 else 1,))[0]
    called, meant = _COLORS.get(colors, (f"colours of the unknown kind {colors}", 0))
    if bands != meant and not (meant and bands == meant + 1 and extra[:1] in _ALPHA):
        raise DatasetError(
            f"{name} is no photo: it has {bands} bands, and the file calls them {called} without opacity. Only photos "
            "can be read; save their red, green and blue: gdal_translate -co PHOTOMETRIC=RGB -b 1 -b 2 -b 3 IN OUT"
        )
    return bits[0] > 8


def tiff_tags(data: bytes) -> dict[int, tuple[int, ...]]:
    """The tags of a TIFF file's first image that hold whole numbers, at most 64 of each.

    Raises:
        struct.error, IndexError: It ends too early.
    """
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    (place,) = struct.unpack_from(f"{order}Q", data, 8) if big else struct.unpack_from(f"{order}I", data, 4)
    (entries,) = struct.unpack_from(f"{order}{'Q' if big else 'H'}", data, place)
    place += 8 if big else 2
    form, size = (f"{order}HHQ", 20) if big else (f"{order}HHI", 12)
    tags: dict[int, tuple[int, ...]] = {}
    for entry in range(place, place + size * min(entries, 1 << 16), size):
        tag, kind, count = struct.unpack_from(form, data, entry)
        if kind not in _TAG_TYPES or not count:
            continue
        values = f"{order}{min(count, 64)}{_TAG_TYPES[kind]}"
        inline, where = (8, entry + 12) if big else (4, entry + 8)
        if count * struct.calcsize(f"{order}{_TAG_TYPES[kind]}") > inline:
            (where,) = struct.unpack_from(f"{order}{'Q' if big else 'I'}", data, where)
        if tag in (_TAG_BITS, _TAG_COLORS, _TAG_BANDS, _TAG_EXTRA, _TAG_FORMAT):
            tags.setdefault(tag, struct.unpack_from(values, data, where))
    return tags


def _refuse_odd_values(plain: NDArray[Any] | None, name: str) -> None:
    """Refuse pixels as they are stored, [H, W] or [H, W, C], that are not of 8 bits, and do not fill 16."""
    if plain is None or plain.dtype == np.uint8:
        return
    if plain.dtype != np.uint16:
        raise DatasetError(
            f"{name} is no photo: its pixels are {plain.dtype}, where 8 or 16 bits without sign are read."
        )
    colors = plain[..., :3] if plain.ndim == 3 else plain
    refuse_low_values(int(colors.max()), name)


def _decoded(data: bytes, flags: int) -> NDArray[Any] | None:
    return cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None


def _may_be_transparent(data: bytes) -> bool:
    if data[:8] == PNG:
        return data[25] in (4, 6) or b"tRNS" in data[: data.find(b"IDAT")]
    return data[:2] not in (JPEG, b"BM")


def _on_white(data: bytes, upright: NDArray[Any], name: str) -> NDArray[Any]:
    """The image that was decoded as `upright`, over white where it is transparent."""
    plain = _decoded(data, cv2.IMREAD_UNCHANGED)
    opacity = None if plain is None else _opacity(plain, data)
    if opacity is None:
        return upright
    if data[:4] in TIFF:
        refuse_odd_opacity(int(((opacity > 0) & (opacity < 255)).sum()), opacity.size, name)
    color = _decoded(data, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    assert color is not None, "it was decoded before"
    clear = 255 - opacity.astype(np.uint16)[..., None]
    if data[:4] in TIFF and plain is not None and plain.dtype == np.uint8:  # whose colours libtiff multiplies
        over = np.minimum(color + clear, 255)
    else:
        over = (color * (255 - clear) + 255 * clear + 127) // 255
    # OpenCV turns colours upright and does not say how; opacity has to be turned alike.
    turns = [(turn, mirror) for mirror in (False, True) for turn in range(4)]
    turn, mirror = next((way for way in turns if np.array_equal(_turned(color, *way), upright)), (0, False))
    return np.ascontiguousarray(_turned(over, turn, mirror)).astype(np.uint8)


def _opacity(plain: NDArray[Any], data: bytes) -> NDArray[np.uint8] | None:
    """Opacity of the pixels, uint8 [H, W], of an image as it is stored; None if none is transparent."""
    if plain.ndim == 3 and plain.shape[2] == 4:
        opacity = plain[..., 3]
        return (opacity >> 8).astype(np.uint8) if opacity.dtype == np.uint16 else opacity.astype(np.uint8)
    place = data.find(b"tRNS", 0, data.find(b"IDAT"))
    if data[:8] == PNG and data[25] == 0 and place > 0:  # one grey is transparent, which OpenCV does not look at
        depth = data[24]
        key = int.from_bytes(data[place + 4 : place + 6], "big")
        grey = plain if plain.ndim == 2 else plain[..., 0]
        return np.where(grey == (key if depth >= 8 else key * 255 // (2**depth - 1)), 0, 255).astype(np.uint8)
    return None


def _turned(image: NDArray[Any], turn: int, mirror: bool) -> NDArray[Any]:
    return np.rot90(image[:, ::-1] if mirror else image, turn)


_ORIENTATION = 274


def image_size(path: str | Path) -> tuple[int, int]:
    """Height and width of an image file by its header, (0, 0) where that says none: reading it then says why."""
    from PIL import Image

    try:
        with warnings.catch_warnings(), open(path, "rb") as file:
            warnings.simplefilter("ignore")  # that it is large is what is asked
            try:
                with Image.open(file) as picture:
                    return picture.height, picture.width
            except Image.DecompressionBombError:  # raised of a header that was read
                return _size_of_bomb(file)
    except (OSError, SyntaxError, ValueError):
        return 0, 0


def _size_of_bomb(file: IO[bytes]) -> tuple[int, int]:
    """What `Image.open` would tell, if it did not refuse to."""
    from PIL import Image

    file.seek(0)
    prefix = file.read(16)
    for name in Image.ID:
        make, accepts = Image.OPEN[name]
        if accepts is not None and accepts(prefix) is True:
            file.seek(0)
            with make(file, "") as picture:
                return picture.height, picture.width
    return 0, 0


def orientation(data: bytes) -> int:
    """The orientation tag of a photo, 1..8, by which viewers turn it upright; 1 where it has none that can be read."""
    if data[:8] == PNG and b"eXIf" not in data:  # which Pillow would decode to look behind the pixels
        return 1
    from PIL import Image

    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(data)) as picture:
            warnings.simplefilter("ignore")
            turned = picture.getexif().get(_ORIENTATION, 1)
    except (OSError, SyntaxError, ValueError, MemoryError, Image.DecompressionBombError):
        return 1
    return turned if turned in range(2, 9) else 1


IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp")
"""Endings of image files, in lower case."""


class PalettePng:
    """Writes an 8-bit palette PNG into a file; a context manager, at whose end the file is complete.

    Args:
        file: Open for writing bytes; it is not closed.
        height: H.
        width: W.
        palette: Colours by value, uint8 [256, 3].
    """

    def __init__(self, file: IO[bytes], height: int, width: int, palette: NDArray[np.uint8]) -> None:
        self._file = file
        self._above = np.zeros((1, width), np.uint8)
        self._packer = zlib.compressobj()
        self._file.write(b"\x89PNG\r\n\x1a\n")
        self._chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0))
        self._chunk(b"PLTE", palette.tobytes())

    def _chunk(self, kind: bytes, data: bytes) -> None:
        self._file.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))

    def write(self, rows: NDArray[np.uint8]) -> None:
        """Add rows, uint8 [r, W], as differences from the row above (filter 2), which in labels are nearly all zero."""
        if not len(rows):
            return
        filtered = np.full((len(rows), 1 + rows.shape[1]), 2, np.uint8)
        np.subtract(rows, np.concatenate([self._above, rows[:-1]]), out=filtered[:, 1:])
        self._above = rows[-1:].copy()
        if packed := self._packer.compress(filtered.tobytes()):
            self._chunk(b"IDAT", packed)

    def __enter__(self) -> PalettePng:
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        if kind is None:
            self._chunk(b"IDAT", self._packer.flush())
            self._chunk(b"IEND", b"")
