"""Reading photos as RGB pixels with OpenCV, and writing label PNGs with palettes by rows.

Photos are read as an image viewer shows them: rotated by their EXIF orientation, grey and CMYK converted to RGB, and
transparent pixels composited on white. Palette PNGs (https://www.w3.org/TR/png-3/) hold ids as pixel values, and
viewers show the class colours; OpenCV cannot write them, and Pillow and GDAL need the whole picture in memory.
This module imports NumPy and OpenCV only, so that it works without torch.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import struct
import sys
import zlib
from pathlib import Path
from typing import IO, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from resnest_seg.errors import ConfigError, DatasetError, printable

JPEG = b"\xff\xd8"
"""First bytes of a JPEG file, a format without transparency."""

PNG = b"\x89PNG\r\n\x1a\n"
"""First bytes of a PNG file; bytes 24 and 25 are its bit depth and colour type."""

JPEG_MARKER = re.compile(rb"\xff([^\0\xff])", re.DOTALL)
"""The next marker of a JPEG file; skips bytes before it, fill bytes FF and the stuffed pair FF 00."""

JPEG_ALONE = frozenset((0x01, *range(0xD0, 0xD8)))
"""Markers without a segment: TEM, and RST0 to RST7."""

JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Markers of frame headers: C0..CF without the tables (C4, CC) and the extension (C8)."""

JPEG_NO_HEADER = frozenset((0xD8, 0xD9, 0xDA))
"""Markers that end the search for a frame header: a second start, the end, and pixels (a scan)."""

TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""First bytes of TIFF files."""

BROKEN_EXIF = (OSError, SyntaxError, ValueError, TypeError, KeyError, OverflowError, struct.error)
"""Exceptions of Pillow on the tags of images, EXIF data among them, that are damaged."""

MOST_PIXELS = 1 << 28
"""Pixels of a photo or a mask that is decoded whole, at most; their RGB values take 768 MiB."""

FULL_RANGE = 1 << 14
"""Lowest maximum of a 16-bit photo; with a lower one it holds 14 bits or fewer, and would be decoded too dark."""

TURNED_TAG, NODATA_TAG, EXTRA_TAG = 274, 42113, 338
"""Tags of TIFF files: the orientation, GDAL's no-data value, as text, and what bands besides the colours mean."""

_TAG_WIDTH, _TAG_HEIGHT = 256, 257
_TAG_BITS, _TAG_COLORS, _TAG_BANDS, _TAG_FORMAT = 258, 262, 277, 339
_TAGS = (_TAG_WIDTH, _TAG_HEIGHT, _TAG_BITS, _TAG_COLORS, _TAG_BANDS, EXTRA_TAG, _TAG_FORMAT, TURNED_TAG, NODATA_TAG)
_TAG_TYPES = {1: "B", 2: "B", 3: "H", 4: "I", 16: "Q"}  # whole numbers without sign, and bytes of text
_COLORS = {0: ("grey", 1), 1: ("grey", 1), 2: ("RGB", 3), 3: ("a palette", 1), 5: ("CMYK", 4), 6: ("YCbCr", 3),
           8: ("CIELab", 3)}  # fmt: skip
_ALPHA = ((1,), (2,))  # premultiplied, or not
_EXIF = cv2.IMAGE_METADATA_EXIF
_TURNS = ((0, False), (0, True), (2, False), (2, True), (1, True), (3, False), (3, True), (1, False))
"""Quarter turns to the left, after mirroring, by EXIF orientation from 1."""

_FORMS = (1, 4)  # unsigned, or unspecified
_ODD_FORMS = {2: "signed", 3: "floating-point", 5: "complex", 6: "complex"}


def read_image(path: str | Path) -> NDArray[np.uint8]:
    """Read a photo as RGB, uint8 [H, W, 3]; see `decode_image`.

    Raises:
        DatasetError: The file is missing or cannot be decoded.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise DatasetError(f"cannot read {printable(str(path))}: {error.strerror}.") from None
    except ValueError as error:  # a zero byte
        raise DatasetError(f"cannot read {printable(str(path))}: {error}.") from None
    return decode_image(data, printable(str(path)))


def decode_image(data: bytes, name: str) -> NDArray[np.uint8]:
    """Decode a photo as RGB, uint8 [H, W, 3], as an image viewer shows it.

    Transparency that OpenCV does not decode is lost: that of grey TIFF files and of bitmaps (.bmp).

    Args:
        data: The file's content: JPEG, PNG, WebP, TIFF, BMP or any other format of OpenCV.
        name: Its name in error messages.

    Raises:
        DatasetError: No image, a damaged one, one of more than `MOST_PIXELS`, or one that is not of 8 bits and cannot
            be made so without guessing.
    """
    refuse_too_large(data, name)
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
        raise DatasetError(f"cannot read {name}: {len(data)} bytes that are not an image, or a corrupt one.")
    return image.astype(np.uint8, copy=False)


def as_pixels(image: Any, *, channels: int = 3) -> NDArray[Any]:
    """Convert one image to pixels 0..255, [H, W, C]: uint8, or float32 if some are no whole numbers.

    Accepted are:

    - a file (see `decode_image`) or a PIL image, for three channels;
    - arrays, channels last: [H, W, C], or [H, W] for grey; torch tensors, channels first: [C, H, W], or [H, W]. The
      kind decides, never the sizes: an array [3, H, 3] has 3 rows, and a tensor [3, H, 3] has 3 columns. They are
      uint8, or floats that are finite and in 0..255; half a grey level beyond, from resampling, is clipped.

    For three channels, grey is repeated, and a fourth channel is opacity, which is dropped if it is 255 everywhere.
    Floats in 0..1 are left to the model, which warns of them.

    Args:
        image: The image.
        channels: C of the result.

    Raises:
        DatasetError: The file or PIL image cannot be decoded.
        ConfigError: Another type, shape, or kind of numbers; values beyond 0..255; transparent pixels.
    """
    if is_file(image) or _is_pil(image):
        if channels != 3:
            raise ConfigError(
                f"the model takes images of {channels} channels, and a file or PIL image is read as RGB: give an "
                f"array [H, W, {channels}] or a tensor [{channels}, H, W]."
            )
        return _of_pil(image) if _is_pil(image) else read_image(image)
    pixels = _as_array(image)
    if pixels is None or pixels.ndim not in (2, 3) or not (pixels.dtype == np.uint8 or pixels.dtype.kind == "f"):
        raise _no_image(image, channels)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    elif is_tensor(image):
        pixels = pixels.transpose(1, 2, 0)
    found = pixels.shape[2]
    if not pixels.size or (found != channels and (channels != 3 or found not in (1, 4))):
        raise _no_image(image, channels)
    if found == 4 and channels == 3:
        if not (pixels[..., 3] == 255).all():
            raise ConfigError(
                f"{_seen(image)} has transparent pixels (its fourth channel is below 255), and what is behind them is "
                "not known. Files and PIL images lie on white: give PIL.Image.fromarray of uint8 [H, W, 4] for that, "
                "or the first three channels alone."
            )
        pixels = pixels[..., :3]
    elif found == 1 < channels:
        pixels = pixels.repeat(3, axis=2)
    return _whole_if_exact(pixels, _seen(image))


def is_tensor(image: Any) -> bool:
    """True for a torch tensor; torch is not imported for that."""
    torch = sys.modules.get("torch")  # a tensor exists only if torch has been imported
    return torch is not None and isinstance(image, torch.Tensor)


def is_file(image: Any) -> bool:
    """True for a path."""
    return isinstance(image, str | os.PathLike)


def _is_pil(image: Any) -> bool:
    pil = sys.modules.get("PIL.Image")
    return pil is not None and isinstance(image, pil.Image)


def _as_array(image: Any) -> NDArray[Any] | None:
    if isinstance(image, np.ndarray):
        return image
    if not is_tensor(image):
        return None
    image = image.detach().cpu()
    pixels: NDArray[Any] = (image.float() if image.is_floating_point() else image).numpy()
    return pixels


def _whole_if_exact(pixels: NDArray[Any], seen: str) -> NDArray[Any]:
    """Check the range of floats, and convert whole numbers to uint8, with which every protocol computes alike."""
    if pixels.dtype != np.uint8:
        pixels = pixels.astype(np.float32)
        low, high = float(pixels.min()), float(pixels.max())  # NaN if one is
        if not -0.5 <= low <= high <= 255.5:
            fix = " Undo a normalisation: the model normalises by itself." if low < -0.5 else ""
            raise ConfigError(f"{seen} has values from {low:.4g} to {high:.4g}, and pixels must lie in 0..255.{fix}")
        pixels = pixels.clip(0, 255)
        if (pixels == pixels.round()).all():
            pixels = pixels.astype(np.uint8)
    return np.require(pixels, requirements=["C", "W"])  # torch warns of arrays that it could not write to


def _seen(image: Any) -> str:
    """Describe an argument by its type, and its dtype and shape if it has them."""
    name = f"{type(image).__module__.partition('.')[0]}.{type(image).__qualname__}".removeprefix("builtins.")
    if not hasattr(image, "shape") or not hasattr(image, "dtype"):
        return name
    return f"a {name} {str(image.dtype).removeprefix('torch.')} {list(image.shape)}"


def _no_image(image: Any, channels: int) -> ConfigError:
    """The error for what is no image; it says what would be one, and how to convert the usual near misses."""
    shape, fix = tuple(getattr(image, "shape", ())), ""
    wanted = {channels, 1, 4} if channels == 3 else {channels}
    integer = str(getattr(image, "dtype", "")).removeprefix("torch.").startswith(("int", "uint", "bool"))
    if integer and "uint8" not in str(image.dtype):
        fix = " If the values lie in 0..255, convert them to uint8."
    elif len(shape) == 3 and is_tensor(image) and shape[2] in wanted:
        fix = " Tensors have their channels first: image.permute(2, 0, 1)."
    elif len(shape) == 3 and not is_tensor(image) and shape[0] in wanted:
        fix = " Arrays have their channels last: image.transpose(1, 2, 0)."
    files = "a file, an http address, a PIL image, " if channels == 3 else ""
    return ConfigError(
        f"an image must be {files}an array [H, W, {channels}] or a tensor [{channels}, H, W] of uint8 or floats in "
        f"0..255{', grey ones [H, W]' if channels in (1, 3) else ''}; or a batch or list of such; not {_seen(image)}."
        f"{fix}"
    )


def _of_pil(image: Any) -> NDArray[np.uint8]:
    from PIL import Image, ImageOps

    name = f"the PIL image {printable(str(getattr(image, 'filename', '')))}".rstrip()
    try:
        image.load()
        with contextlib.suppress(*BROKEN_EXIF):  # the pixels are whole, and stand as those of a file do
            image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I;16"):  # Pillow would clip 16 bits at 255
            deep = np.asarray(image)
            _refuse_odd_values(deep.astype(np.uint16), name)
            image = Image.fromarray((deep >> 8).astype(np.uint8))
        if image.mode in ("I", "F"):
            raise ConfigError(
                f"{name} has mode {image.mode}, 32-bit values of unknown range: convert it to 8 bits, for example by "
                "PIL.Image.fromarray of a uint8 array."
            )
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return np.array(image.convert("RGB"))
    except (OSError, SyntaxError) as error:  # PIL decodes lazily
        raise DatasetError(f"cannot read {name}: {' '.join(str(error).split())}.") from None
    except ValueError as error:
        if isinstance(error, ConfigError | DatasetError):
            raise
        raise ConfigError(f"{name} of mode {image.mode} cannot be converted to RGB: {error}.") from None


def size_in_header(data: bytes) -> tuple[int, int] | None:
    """Read (height, width) of a JPEG, PNG or WebP image from its header, before rotation by EXIF.

    No pixel is decoded, so that an image with too many can be rejected. Returns None for other formats and invalid
    headers. It agrees with the size that `decode_image` decodes; a test compares them on 10,000 corrupt headers.
    """
    try:
        if data[:8] == PNG and data[12:16] == b"IHDR":
            width, height = struct.unpack(">II", data[16:24])
            return height, width
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return _webp_size(data)
        return _jpeg_size(data) if data[:2] == JPEG else None
    except (struct.error, IndexError):  # truncated
        return None


def refuse_too_large(data: bytes, name: str) -> None:
    """Refuse an image of more than `MOST_PIXELS` by its header, before memory and time are spent on its pixels.

    Raises:
        DatasetError: Says how large it is.
    """
    size = size_in_header(data)
    if size is None and data[:4] in TIFF:
        size = size_of_tiff(data)
    if size is not None and size[0] * size[1] > MOST_PIXELS:
        raise DatasetError(
            f"cannot read {name}: it has {size[0]} x {size[1]} pixels, and an image that is read whole may have "
            f"{MOST_PIXELS:,} at most. Cut it into tiles."
        )


def size_of_tiff(data: bytes) -> tuple[int, int] | None:
    """Read (height, width) of a TIFF file's first image from its header; None if it is damaged, as its decoder says."""
    try:
        tags = tiff_tags(data)
    except (struct.error, IndexError, OverflowError):
        return None
    return tags.get(_TAG_HEIGHT, (0,))[0], tags.get(_TAG_WIDTH, (0,))[0]


def _webp_size(data: bytes) -> tuple[int, int] | None:
    """Read the first chunk, of three kinds: https://developers.google.com/speed/webp/docs/riff_container."""
    kind, first = data[12:16], data[20:30]
    if kind == b"VP8X":  # 24 bits each, minus one
        return int.from_bytes(first[7:10], "little") + 1, int.from_bytes(first[4:7], "little") + 1
    if kind == b"VP8L":  # 14 bits each, minus one
        bits = int.from_bytes(first[1:5], "little")
        return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
    width, height = struct.unpack("<HH", first[6:10])
    return (height & 0x3FFF, width & 0x3FFF) if kind == b"VP8 " else None


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Read the first frame header; markers are parsed as libjpeg, the decoder, parses them."""
    offset = len(JPEG)
    while (match := JPEG_MARKER.search(data, offset)) is not None:
        kind, offset = data[match.start(1)], match.end()
        if kind in JPEG_FRAMES:
            height, width = struct.unpack(">HH", data[offset + 3 : offset + 7])
            return height, width
        if kind in JPEG_NO_HEADER:
            return None
        if kind not in JPEG_ALONE:  # its length includes its own two bytes
            offset += max(struct.unpack(">H", data[offset : offset + 2])[0], 2)
    return None


def refuse_low_values(peak: int, name: str) -> None:
    """Reject a 16-bit photo whose maximum shows that fewer bits are used; an all-black one passes.

    Raises:
        DatasetError: The maximum is too low; the message says how to convert the photo.
    """
    if 0 < peak < FULL_RANGE:
        top = (1 << max(peak.bit_length(), 8)) - 1
        raise DatasetError(
            f"{name} has 16 bits, and its values end at {peak} of 65535: it would be too dark, and the file does not "
            "state its range of values. Take the values as they are (--data.bands 1,2,3), or convert all photos to 8 "
            f"bits alike: gdal_translate -ot Byte -scale 0 {top} 0 255 IN OUT"
        )


def refuse_odd_opacity(partly: int, pixels: int, name: str) -> None:
    """Reject a TIFF photo most of whose pixels are partly transparent: its fourth band is not opacity.

    GDAL tags a fourth 8-bit band as opacity unless it is told what it is.

    Raises:
        DatasetError: Most pixels are partly transparent; the message says how to convert the photo.
    """
    if 2 * partly > pixels:
        raise DatasetError(
            f"{name} has a fourth band that is tagged as opacity, and {100 * partly // pixels} % of its pixels would "
            "be half transparent: is it near infrared? Only three bands can be used; save the colours alone: "
            "gdal_translate -b 1 -b 2 -b 3 IN OUT"
        )


def _is_deep(data: bytes, name: str) -> bool:
    """True if the pixels may have more than 8 bits, so that their values have to be checked.

    Raises:
        DatasetError: The tags of a TIFF file say that it is not a photo.
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
        raise DatasetError(f"cannot read {name}: a corrupt TIFF file.") from None
    bits, forms, extra = tags.get(_TAG_BITS, (1,)), tags.get(_TAG_FORMAT, (1,)), tags.get(EXTRA_TAG, ())
    bands = tags.get(_TAG_BANDS, (1,))[0]
    if set(forms) - set(_FORMS) or len(set(bits)) > 1 or (bits[0] > 8 and bits[0] != 16):
        kind = _ODD_FORMS.get(forms[0], "unsigned" if forms[0] in _FORMS else "of an unknown kind")
        raise DatasetError(
            f"{name} is not a photo: its values have {'/'.join(map(str, sorted(set(bits))))} bits, {kind}; 8 "
            "or 16 bits, unsigned, can be read. To use the values as they are, name the bands: --data.bands 1,2,3. Or "
            "convert all photos to 8 bits alike: gdal_translate -ot Byte -scale LOWEST HIGHEST 0 255 IN OUT"
        )
    colors = tags.get(_TAG_COLORS, (2 if bands > 2 else 1,))[0]
    called, meant = _COLORS.get(colors, (f"an unknown colour space {colors}", 0))
    if bands != meant and not (meant and bands == meant + 1 and extra[:1] in _ALPHA):
        raise DatasetError(
            f"{name} is not a photo: it has {bands} bands, tagged as {called} without opacity. Only photos can be "
            "read as they are; to use the bands of all files, train with their numbers: --data.bands 1,2,3. Or save "
            "red, green and blue: gdal_translate -co PHOTOMETRIC=RGB -b 1 -b 2 -b 3 IN OUT"
        )
    return bits[0] > 8


def tiff_tags(data: bytes | mmap.mmap) -> dict[int, tuple[int, ...]]:
    """Read the integer tags of a TIFF file's first image: tag -> at most 64 values.

    Raises:
        struct.error, IndexError: The file is truncated.
    """
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    (offset,) = struct.unpack_from(f"{order}Q", data, 8) if big else struct.unpack_from(f"{order}I", data, 4)
    (entries,) = struct.unpack_from(f"{order}{'Q' if big else 'H'}", data, offset)
    offset += 8 if big else 2
    form, size = (f"{order}HHQ", 20) if big else (f"{order}HHI", 12)
    tags: dict[int, tuple[int, ...]] = {}
    for entry in range(offset, offset + size * min(entries, 1 << 16), size):
        tag, kind, count = struct.unpack_from(form, data, entry)
        if kind not in _TAG_TYPES or not count:
            continue
        values = f"{order}{min(count, 64)}{_TAG_TYPES[kind]}"
        inline, where = (8, entry + 12) if big else (4, entry + 8)
        if count * struct.calcsize(f"{order}{_TAG_TYPES[kind]}") > inline:
            (where,) = struct.unpack_from(f"{order}{'Q' if big else 'I'}", data, where)
        if tag in _TAGS:
            tags.setdefault(tag, struct.unpack_from(values, data, where))
    return tags


def _refuse_odd_values(plain: NDArray[Any] | None, name: str) -> None:
    """Reject stored pixels, [H, W] or [H, W, C], that neither have 8 bits nor use the range of 16."""
    if plain is None or plain.dtype == np.uint8:
        return
    if plain.dtype != np.uint16:
        raise DatasetError(f"{name} is not a photo: its pixels are {plain.dtype}; 8 or 16 bits, unsigned, can be read.")
    colors = plain[..., :3] if plain.ndim == 3 else plain
    refuse_low_values(int(colors.max()), name)


def _decoded(data: bytes, flags: int) -> NDArray[Any] | None:
    """Decode an image, None if that is impossible; OpenCV would print a warning for each tag of a map."""
    if data[:4] not in TIFF:
        return cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None
    logging = cv2.utils.logging
    level = logging.setLogLevel(logging.LOG_LEVEL_ERROR)
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    finally:
        logging.setLogLevel(level)


def _may_be_transparent(data: bytes) -> bool:
    if data[:8] == PNG:
        return data[25] in (4, 6) or b"tRNS" in data[: data.find(b"IDAT")]
    return data[:2] not in (JPEG, b"BM")


def _on_white(data: bytes, upright: NDArray[Any], name: str) -> NDArray[Any]:
    """Composite the image that was decoded as `upright` on white."""
    plain = _decoded(data, cv2.IMREAD_UNCHANGED)
    opacity = None if plain is None else _opacity(plain, data)
    if opacity is None:
        return upright
    if data[:4] in TIFF:
        refuse_odd_opacity(int(((opacity > 0) & (opacity < 255)).sum()), opacity.size, name)
    color = _decoded(data, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    assert color is not None, "it was decoded before"
    clear = 255 - opacity.astype(np.uint16)[..., None]
    # libtiff premultiplies the colours that it makes 8-bit, where the file did not.
    rest = color if data[:4] in TIFF else (color * (255 - clear) + 127) // 255
    over = np.minimum(rest + clear, 255)
    # OpenCV rotates the colours without saying how; the opacity has to be rotated alike. Colours that look alike in
    # several turns, such as those of a black logo, do not tell: then the tag does.
    turns = [way for way in _TURNS if np.array_equal(_turned(color, *way), upright)] or [_TURNS[0]]
    tagged = _TURNS[_orientation(data) - 1] if len(turns) > 1 else turns[0]
    turn, mirror = tagged if tagged in turns else turns[0]
    return np.ascontiguousarray(_turned(over, turn, mirror)).astype(np.uint8)


def _orientation(data: bytes) -> int:
    """Read the EXIF orientation that OpenCV turns an image by, 1..8; 1 if there is none, and of TIFF files."""
    if data[:4] in TIFF:  # they are decoded upright
        return 1
    _, kinds, blocks = cv2.imdecodeWithMetadata(np.frombuffer(data, np.uint8), cv2.IMREAD_REDUCED_GRAYSCALE_8)
    block = next((block.tobytes() for kind, block in zip(kinds, blocks, strict=True) if kind == _EXIF), b"")
    try:
        tag = tiff_tags(block).get(TURNED_TAG, (1,))[0] if block[:4] in TIFF else 1
    except (struct.error, IndexError, OverflowError):
        return 1
    return tag if 1 <= tag <= 8 else 1


def _opacity(plain: NDArray[Any], data: bytes) -> NDArray[np.uint8] | None:
    """Return the opacity of stored pixels, uint8 [H, W]; None if none is transparent."""
    if plain.ndim == 3 and plain.shape[2] == 4:
        opacity = plain[..., 3]
        return (opacity >> 8).astype(np.uint8) if opacity.dtype == np.uint16 else opacity.astype(np.uint8)
    offset = data.find(b"tRNS", 0, data.find(b"IDAT"))
    if data[:8] == PNG and data[25] == 0 and offset > 0:  # one grey level is transparent, which OpenCV ignores
        depth = data[24]
        key = int.from_bytes(data[offset + 4 : offset + 6], "big")
        grey = plain if plain.ndim == 2 else plain[..., 0]
        return np.where(grey == (key if depth >= 8 else key * 255 // (2**depth - 1)), 0, 255).astype(np.uint8)
    return None


def _turned(image: NDArray[Any], turn: int, mirror: bool) -> NDArray[Any]:
    return np.rot90(image[:, ::-1] if mirror else image, turn)


IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp")
"""Suffixes of image files, in lower case."""


class PalettePng:
    """Writer of an 8-bit palette PNG by rows; a context manager, on whose exit the file is complete.

    Args:
        file: A binary file open for writing; it is not closed.
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
        """Add rows, uint8 [r, W], as differences from the row above (filter 2): nearly all zero for labels."""
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
