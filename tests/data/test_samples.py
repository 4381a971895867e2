"""Masks of every kind are ids or colours."""

import io
import struct
import warnings
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from resnest_seg.errors import DatasetError
from resnest_seg.io.masks import decode_mask, image_size


def picture(height=40, width=60):
    random = np.random.default_rng(0)
    return cv2.resize(
        random.integers(0, 256, (5, 6, 3), dtype=np.uint8), (width, height), interpolation=cv2.INTER_CUBIC
    )


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("data", [b"", b"text named .png", encoded(Image.fromarray(picture()), "PNG")[:200]])
def test_no_masks(data):
    with pytest.raises(DatasetError, match="cannot read mask"):
        decode_mask(data, "mask")


IDS = np.random.default_rng(0).integers(0, 256, (7, 9), dtype=np.uint8)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP"])
def test_masks_of_ids(kind):
    assert np.array_equal(decode_mask(encoded(Image.fromarray(IDS), kind), "x"), IDS)
    palette = Image.fromarray(IDS).convert("P")
    palette.putpalette(np.random.default_rng(1).integers(0, 256, 768, dtype=np.uint8).tobytes())
    assert np.array_equal(decode_mask(encoded(palette, kind), "x"), IDS)


def test_other_masks():
    assert np.array_equal(decode_mask(encoded(Image.fromarray(IDS > 99), "PNG"), "x"), (IDS > 99).astype(np.uint8))
    assert np.array_equal(decode_mask(encoded(Image.fromarray(IDS.astype(np.uint16)), "PNG"), "x"), IDS)
    assert np.array_equal(decode_mask(encoded(Image.fromarray(picture()), "PNG"), "x"), picture())
    with pytest.raises(DatasetError, match="mask holds ids up to 300"):
        decode_mask(encoded(Image.fromarray(np.full((3, 3), 300, np.uint16)), "PNG"), "mask")
    with pytest.raises(DatasetError, match="mask is not a mask: it has mode CMYK"):
        decode_mask(encoded(Image.fromarray(picture()).convert("CMYK"), "TIFF"), "mask")


def shallow(depth, values, form="PNG", **options):
    """A greyscale file of few bits: PNG by its specification, or TIFF as GDAL writes it."""
    if form == "TIFF":
        rasterio = pytest.importorskip("rasterio")
        with warnings.catch_warnings(), rasterio.MemoryFile() as memory:
            warnings.simplefilter("ignore")  # that a mask is not where on earth
            height, width = values.shape
            bits = {} if depth >= 8 else {"nbits": depth}
            with memory.open(
                driver="GTiff", height=height, width=width, count=1, dtype=values.dtype.name, **bits, **options
            ) as file:
                file.write(values[None])
            return bytes(memory.getbuffer())

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    bits = np.unpackbits(values[..., None], axis=2)[..., 8 - depth :].reshape(len(values), -1)
    rows = b"".join(b"\0" + np.packbits(row).tobytes() for row in bits)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], depth, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
@pytest.mark.parametrize(
    ("form", "options"),
    [("PNG", {}), ("TIFF", {}), ("TIFF", {"photometric": "MINISWHITE"}), ("TIFF", {"compress": "lzw"})],
)
def test_ids_of_few_bits_are_those_that_are_stored(depth, form, options):
    ids = np.random.default_rng(0).integers(0, 2**depth, (7, 9), dtype=np.uint8)
    data = shallow(depth, ids, form, **options)
    assert np.array_equal(decode_mask(data, "x"), ids)
    if form == "TIFF":
        rasterio = pytest.importorskip("rasterio")
        with warnings.catch_warnings(action="ignore"), rasterio.MemoryFile(data).open() as file:
            assert np.array_equal(file.read(1), ids)  # what a reader of maps sees


def test_ids_below_zero_are_refused():
    for kind in (np.int8, np.int16):
        with pytest.raises(DatasetError, match="mask holds ids"):
            decode_mask(shallow(8, np.full((4, 4), -1, kind), "TIFF"), "mask")


@pytest.mark.parametrize("ending", [".png", ".tif"])
def test_colours_of_16_bits_are_refused(ending):
    """Pillow gives their upper 8 bits, which of colours up to 255 are black."""
    with pytest.raises(DatasetError, match="mask is not a mask: its colours have 16 bits a channel"):
        decode_mask(cv2.imencode(ending, picture().astype(np.uint16))[1].tobytes(), "mask")


def test_masks_of_other_kinds_of_values_are_told_what_they_are():
    """A map of probabilities, and a print of four inks: neither has colours of 16 bits."""
    probabilities = encoded(Image.fromarray(np.full((4, 5), 0.5, np.float32)), "TIFF")
    with pytest.raises(DatasetError, match=r"mask is not a mask: it holds floating-point values.* -ot Byte"):
        decode_mask(probabilities, "mask")
    with pytest.raises(DatasetError, match="mask is not a mask: it has mode CMYK"):
        decode_mask(encoded(Image.new("CMYK", (4, 5)), "TIFF"), "mask")


def animation(**options):
    frames = [Image.fromarray(picture()), Image.fromarray(255 - picture())]
    return encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], **options)


@pytest.mark.parametrize(
    "data",
    [
        lambda: encoded(Image.fromarray(picture()), "JPEG"),
        lambda: encoded(Image.fromarray(picture()), "WEBP"),
        lambda: encoded(Image.fromarray(picture()), "WEBP", exif=Image.Exif().tobytes(), icc_profile=b"some"),
        lambda: encoded(Image.fromarray(np.dstack([picture(), picture()[..., 0]])), "WEBP"),
        lambda: animation(lossless=False),
        lambda: encoded(Image.fromarray(picture()), "TIFF", compression="jpeg"),
        lambda: encoded(Image.fromarray(IDS), "TIFF", compression="jpeg"),
    ],
)
def test_lossy_masks_are_refused(data):
    with pytest.raises(DatasetError, match="mask is not a mask: lossy compression"):
        decode_mask(data(), "mask")


def test_lossless_webp_is_read_in_every_container():
    for options in ({}, {"icc_profile": b"some"}):
        data = encoded(Image.fromarray(picture()), "WEBP", lossless=True, exact=True, **options)
        assert (b"VP8X" in data) == bool(options)
        assert np.array_equal(decode_mask(data, "x"), picture())
    assert decode_mask(animation(lossless=True), "x").shape == picture().shape


def test_too_many_pixels_are_an_error_and_not_a_crash(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    data = encoded(Image.fromarray(picture()).convert("P"), "PNG")
    with pytest.raises(DatasetError, match="cannot read mask: it has too many pixels"):
        decode_mask(data, "mask")


@pytest.mark.parametrize("ending", ["png", "tif", "bmp"])
def test_the_size_of_an_image_that_pillow_refuses_to_open(tmp_path, ending):
    """A PNG of 30,000 x 20,000 pixels is a bomb to Pillow; its header is true all the same."""
    path = tmp_path / f"bomb.{ending}"
    Image.new("1", (30_000, 20_000)).save(path)
    with pytest.raises(Image.DecompressionBombError):
        Image.open(path)
    assert image_size(path) == (20_000, 30_000)
