"""Photos of every kind look as in an image viewer; masks are ids or colours."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from resnest_seg.errors import DatasetError
from resnest_seg.samples import decode_image, decode_mask, read_image


def picture(height=40, width=60):
    random = np.random.default_rng(0)
    return cv2.resize(
        random.integers(0, 256, (5, 6, 3), dtype=np.uint8), (width, height), interpolation=cv2.INTER_CUBIC
    )


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("kind", "mode"),
    [(kind, mode) for kind in ("PNG", "JPEG", "WEBP", "TIFF", "BMP") for mode in ("RGB", "L")]
    + [("JPEG", "CMYK"), ("TIFF", "CMYK"), ("PNG", "P"), ("TIFF", "P"), ("BMP", "P")],
)
def test_modes_and_formats(kind, mode):
    image = Image.fromarray(picture()).convert(mode)
    data = encoded(image, kind, **({"quality": 97} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}))
    expected = np.array(image.convert("RGB")).astype(int)
    assert np.abs(decode_image(data, "x").astype(int) - expected).mean() < (2.5 if kind == "JPEG" else 0.01)


@pytest.mark.parametrize("ending", [".png", ".tiff"])
@pytest.mark.parametrize("grey", [False, True])
def test_sixteen_bits_become_eight(ending, grey):
    deep = picture().astype(np.uint16) * 257
    data = cv2.imencode(ending, deep[..., 0] if grey else deep[..., ::-1])[1].tobytes()
    expected = np.repeat(picture()[..., :1], 3, axis=2) if grey else picture()
    assert np.array_equal(decode_image(data, "x"), expected)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_transparent_pixels_lie_on_white(kind):
    alpha = np.full((40, 60), 255, np.uint8)
    alpha[:10], alpha[10:20] = 0, 128
    image = Image.fromarray(np.dstack([picture(), alpha]))
    out = decode_image(encoded(image, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {})), "x")
    assert (out[:10] == 255).all()
    assert np.array_equal(out[20:], picture()[20:])
    assert np.abs(out[10:20].astype(int) - (picture()[10:20] * (128 / 255) + 255 * (127 / 255))).max() <= 1


def test_a_transparent_palette_colour():
    image = Image.fromarray(picture()).convert("P")
    out = decode_image(encoded(image, "PNG", transparency=int(np.array(image)[0, 0])), "x")
    assert (out[0, 0] == 255).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_photos_stand_upright(kind, orientation):
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(picture()), kind, exif=exif)
    expected = np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    out = decode_image(data, "x")
    assert out.shape == expected.shape
    assert np.abs(out.astype(int) - expected).mean() < 2


@pytest.mark.parametrize("data", [b"", b"text named .jpg", encoded(Image.fromarray(picture()), "PNG")[:200]])
def test_no_images(data, tmp_path):
    (tmp_path / "photo.jpg").write_bytes(data)
    with pytest.raises(DatasetError, match=r"cannot read .*photo.jpg"):
        read_image(tmp_path / "photo.jpg")
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


def test_a_transparent_png_that_is_cut_off():
    data = encoded(Image.fromarray(np.dstack([picture(), picture()[..., 0]])), "PNG")
    with pytest.raises(DatasetError, match="cannot read photo"):
        decode_image(data[: len(data) // 2], "photo")


def test_too_many_pixels_are_an_error_and_not_a_crash(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    data = encoded(Image.fromarray(picture()).convert("P"), "PNG")
    with pytest.raises(DatasetError, match="cannot read mask: it has too many pixels"):
        decode_mask(data, "mask")
