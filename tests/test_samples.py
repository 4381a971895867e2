"""Masks of every kind are ids or colours."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from resnest_seg.errors import DatasetError
from resnest_seg.samples import decode_mask, image_size


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
    with pytest.raises(DatasetError, match="mask is no mask: it has mode CMYK"):
        decode_mask(encoded(Image.fromarray(picture()).convert("CMYK"), "TIFF"), "mask")


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
