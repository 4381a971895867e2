"""Reading photos of every kind as pixels. OpenCV does it, and nothing else is imported, so that light runtimes can.

What an image viewer shows is what is read: photos stand upright as their EXIF data says, grey becomes RGB, CMYK is
converted, 16 bits become 8, and transparent pixels lie on white.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from resnest_seg.errors import ConfigError, DatasetError, printable

JPEG = b"\xff\xd8"
"""How a JPEG file begins; it cannot be transparent."""

PNG = b"\x89PNG\r\n\x1a\n"
"""How a PNG file begins; bytes 24 and 25 say how deep it is and whether it has colours."""

TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""How TIFF files begin."""


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
        DatasetError: No image, or a damaged one.
    """
    try:
        image = _decoded(data, cv2.IMREAD_COLOR_RGB)
        if image is not None and _may_be_transparent(data):
            image = _on_white(data, image)
    except (cv2.error, MemoryError):
        raise DatasetError(f"cannot read {name}: it has too many pixels.") from None
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
        raise ConfigError(f"an image array must be RGB, uint8 [H, W, 3], not {image.dtype} {list(image.shape)}.")
    return np.ascontiguousarray(image)


def _of_pil(image: Any) -> NDArray[np.uint8]:
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):  # Pillow would cut 16 bits off at 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return np.array(image.convert("RGB"))


def size_in_header(data: bytes) -> tuple[int, int] | None:
    """Height and width of a JPEG, PNG or WebP image as its first bytes say, before it is turned upright.

    No pixel is decoded, so that what has too many can be refused. None: another kind, or no such header.
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
    """The first frame header, a marker of C0..CF that is neither a table (C4, CC) nor an extension (C8)."""
    place = 2
    while data[place] == 0xFF:
        kind = data[place + 1]
        if kind == 0xFF:  # filled up
            place += 1
        elif 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack(">HH", data[place + 5 : place + 9])
            return height, width
        else:
            place += 2 + struct.unpack(">H", data[place + 2 : place + 4])[0]
    return None


def _decoded(data: bytes, flags: int) -> NDArray[Any] | None:
    return cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None


def _may_be_transparent(data: bytes) -> bool:
    if data[:8] == PNG:
        return data[25] in (4, 6) or b"tRNS" in data[: data.find(b"IDAT")]
    return data[:2] not in (JPEG, b"BM")


def _on_white(data: bytes, upright: NDArray[Any]) -> NDArray[Any]:
    """The image that was decoded as `upright`, over white where it is transparent."""
    plain = _decoded(data, cv2.IMREAD_UNCHANGED)
    opacity = None if plain is None else _opacity(plain, data)
    if opacity is None:
        return upright
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
