"""Rasters of many bands: what is read is what rasterio and NumPy read; statistics are NumPy's; bad files are told."""

import re
import struct
import warnings
import zlib

import cv2
import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support.rasters import NAMES, values, write_raster

from resnest_seg.errors import ConfigError, DatasetError
from resnest_seg.io.bands import BandReader, BandStatistics, Raster, as_raster, without_labels
from resnest_seg.io.georeference import warn_once
from resnest_seg.io.images import read_image
from resnest_seg.io.raster_windows import LargeBands, Window
from resnest_seg.io.visualize import picture_of

PROFILES = {
    "strips": {},
    "tiles": {"tiled": True, "blockxsize": 16, "blockysize": 16},
    "deflate": {"compress": "deflate", "predictor": 2},
    "lzw by pixel": {"compress": "lzw", "interleave": "pixel"},
    "big": {"BIGTIFF": "YES", "interleave": "band"},
}


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("kind", ["uint8", "uint16", "int16", "float32"])
@pytest.mark.parametrize("count", [1, 2, 3, 5, 12])
def test_values_are_those_of_the_file(tmp_path, profile, kind, count):
    options = {key: value for key, value in PROFILES[profile].items() if (key, kind) != ("predictor", "float32")}
    pixels = values(kind, 37, 50, count)
    path = write_raster(tmp_path / "Übung [1] 50%.tif", pixels, photometric="minisblack", **options)
    found = BandReader().read(path)
    assert found.pixels.dtype == kind
    assert np.array_equal(found.pixels, pixels)
    assert found.valid is None
    chosen = BandReader(tuple(range(count, 0, -1))).read(path)
    assert np.array_equal(chosen.pixels, pixels[..., ::-1])
    assert chosen.pixels.flags.c_contiguous


def test_bands_are_chosen_by_name(tmp_path):
    pixels = values("uint16", 8, 9, 4)
    path = write_raster(tmp_path / "a.tif", pixels, names=NAMES)
    assert np.array_equal(BandReader(("NIR", 1, "green")).read(path).pixels, pixels[..., [3, 0, 1]])
    for band, message in (("nirr", "Did you mean 'nir'? Known: red, green, blue, nir"),
                          (7, "has 4 bands, and data.bands asks for band 7: give numbers from 1 to 4")):  # fmt: skip
        with pytest.raises(DatasetError, match=re.escape(message)):
            BandReader((band,)).read(path)
    nameless = write_raster(tmp_path / "b.tif", pixels)
    with pytest.raises(
        DatasetError, match=r"4 bands without names, and data.bands asks for 'nir': give numbers, 1 to 4"
    ):
        BandReader(("nir",)).read(nameless)


def test_the_same_pixels_in_every_format(tmp_path):
    pixels = values("uint8", 20, 30, 3)
    tiff = write_raster(tmp_path / "a.tif", pixels, photometric="rgb")
    assert cv2.imwrite(str(tmp_path / "a.png"), pixels[..., ::-1])
    np.save(tmp_path / "a.npy", pixels)
    for path in (tiff, tmp_path / "a.png", tmp_path / "a.npy"):
        assert np.array_equal(BandReader((1, 2, 3)).read(path).pixels, pixels)
    assert np.array_equal(read_image(tiff), pixels)
    deep = values("uint16", 20, 30, 3)
    assert cv2.imwrite(str(tmp_path / "deep.png"), deep[..., ::-1])
    assert np.array_equal(BandReader((3, 1)).read(tmp_path / "deep.png").pixels, deep[..., [2, 0]])


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_few_bits_are_the_same_in_png_and_tiff(tmp_path, bits):
    """rasterio writes the TIFF, NumPy the rows of the PNG."""
    stored = np.arange(24 * 16).reshape(24, 16).astype(np.uint8) % 2**bits
    rows = np.packbits((stored[..., None] >> np.arange(bits)[::-1] & 1).reshape(24, -1), axis=1)
    chunks = {b"IHDR": struct.pack(">IIBBBBB", 16, 24, bits, 0, 0, 0, 0),
              b"IDAT": zlib.compress(np.insert(rows, 0, 0, axis=1).tobytes()), b"IEND": b""}  # fmt: skip
    (tmp_path / "a.png").write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
            for kind, data in chunks.items()
        )
    )
    assert np.array_equal(BandReader((1,)).read(tmp_path / "a.png").pixels[..., 0], stored)
    if bits > 1:  # GDAL takes one of 1 bit for a palette
        tiff = write_raster(tmp_path / "a.tif", stored[..., None], nbits=bits)
        assert np.array_equal(BandReader((1,)).read(tiff).pixels[..., 0], stored)


@pytest.mark.parametrize("kind", ["uint16", "int16", "float32"])
def test_the_files_own_nodata_value(tmp_path, kind):
    """The oracle is rasterio's masked read; a pixel is ignored where no band has data."""
    pixels = values(kind, 24, 24, 4)
    pixels[:4], pixels[10:12, :, 1] = -9 if kind != "uint16" else 7, -9 if kind != "uint16" else 7
    path = write_raster(tmp_path / "a.tif", pixels, nodata=float(pixels[0, 0, 0]))
    found = BandReader(fill=(100.2, 200.7, 300.0, 400.0)).read(path)
    with rasterio.open(path) as file:
        truth = ~file.read(masked=True).mask.transpose(1, 2, 0)
    assert np.array_equal(found.valid, truth)
    assert np.array_equal(found.pixels[truth], pixels[truth])
    fill = np.array([100, 201, 300, 400]) if kind != "float32" else np.array([100.2, 200.7, 300, 400], np.float32)
    assert (found.pixels[0, 0] == fill).all()
    labels = without_labels(np.ones((24, 24), np.uint8), found.valid)
    assert (labels[:4] == 255).all()
    assert (labels[10:12] == 1).all()


def test_masks_alpha_bands_and_given_values(tmp_path):
    pixels, mask = values("uint16", 16, 16, 3), np.full((16, 16), True)
    mask[3:6] = False
    inside = write_raster(tmp_path / "mask.tif", pixels, mask=mask)
    assert np.array_equal(BandReader((1, 2)).read(inside).valid[..., 0], mask)
    alpha = np.concatenate([pixels, np.where(mask, 65535, 0)[..., None].astype(np.uint16)], axis=2)
    path = write_raster(tmp_path / "alpha.tif", alpha, photometric="rgb", alpha="yes")
    assert np.array_equal(BandReader((1, 2, 3)).read(path).valid[..., 2], mask)
    assert BandReader((1, 2, 3, 4)).read(path).valid is None  # a band that is asked for is no opacity
    given = BandReader(nodata=float(pixels[0, 0, 0])).read(write_raster(tmp_path / "none.tif", pixels)).valid
    assert np.array_equal(given, pixels != pixels[0, 0, 0])


def test_previews_have_the_mask_of_their_windows(tmp_path):
    """Water has no near infrared, and GDAL takes a fourth band of 8 bits for opacity: as a chosen band it is data."""
    pixels = values("uint8", 32, 32, 4) | np.uint8(1)
    pixels[:16, :, 3] = 0
    path = write_raster(tmp_path / "a.tif", pixels)
    for bands, missing in (((1, 2, 3, 4), False), ((1, 2, 3), True)):
        with LargeBands(path, BandReader(bands)) as image:
            preview, window = image.preview(longest=32), image.read(Window(0, 0, 32, 32))
        assert np.array_equal(preview.pixels, window.pixels)
        assert (preview.valid is not None) == (window.valid is not None) == missing
        assert not missing or np.array_equal(preview.valid, window.valid)


def test_nan_is_no_data_and_infinity_an_error(tmp_path):
    pixels = values("float32", 16, 16, 3)
    pixels[2, 3] = np.nan
    path = write_raster(tmp_path / "a.tif", pixels)
    found = BandReader(fill=(1.0, 2.0, 3.0)).read(path)
    assert found.undeclared
    assert not found.valid[2, 3].any()
    assert found.pixels[2, 3].tolist() == [1, 2, 3]
    declared = write_raster(tmp_path / "b.tif", pixels, nodata=float("nan"))
    assert not BandReader().read(declared).undeclared
    pixels[5, 6, 1] = np.inf
    with pytest.raises(DatasetError, match=r"c\.tif holds infinity in band 8: 1 of its values"):
        BandReader((1, 8, 2)).checked(pixels, "c.tif")
    lowest = np.float32(np.finfo(np.float32).min)  # GDAL's usual value for floats
    pixels[5, 6, 1] = lowest
    assert not BandReader().read(write_raster(tmp_path / "d.tif", pixels, nodata=float(lowest))).valid[5, 6, 1]


def test_other_types_are_read_as_float32_if_that_is_exact(tmp_path):
    for kind in ("float64", "int32", "uint32"):
        pixels = np.arange(300).reshape(10, 10, 3).astype(kind)
        found = BandReader().read(write_raster(tmp_path / f"{kind}.tif", pixels))
        assert found.pixels.dtype == np.float32
        assert np.array_equal(found.pixels, pixels)
    pixels = np.full((4, 4, 1), 2**24 + 1, np.uint32)
    with pytest.raises(
        DatasetError, match=r"uint32 from 16777217 to 16777217, which float32 cannot hold.*gdal_translate"
    ):
        BandReader().read(write_raster(tmp_path / "large.tif", pixels))


def hostile_files(folder):
    pixels = values("uint16", 64, 64, 4)
    good = write_raster(folder / "good.tif", pixels, compress="deflate").read_bytes()
    (folder / "cut.tif").write_bytes(good[: len(good) // 2])
    (folder / "empty.tif").write_bytes(b"")
    (folder / "words.tif").write_bytes(b"II*\0 these are words")
    (folder / "noise.tif").write_bytes(good[:400] + bytes(len(good) - 400))
    write_raster(folder / "complex.tif", np.ones((8, 8, 1), np.complex64))
    write_raster(folder / "palette.tif", np.ones((8, 8, 1), np.uint8), photometric="palette")
    Image.fromarray(np.ones((8, 8), np.uint8)).quantize(4).save(folder / "palette.png")
    np.save(folder / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.save(folder / "flat.npy", np.zeros(5))
    np.save(folder / "none.npy", np.zeros((0, 5, 3), np.uint16))
    np.save(folder / "text.npy", np.array([["a"]]))
    np.save(folder / "first.npy", np.zeros((4, 100, 120), np.uint16))
    (folder / "cut.npy").write_bytes(b"\x93NUMPY\x01\x00")
    shapes = {"unclosed": "(3, 4, 5X, ", "huge": f"({10**20}, 3)", "truth": "(True, 3)", "nested": "(" * 400,
              "zeros": "(03, 4)"}  # fmt: skip
    for name, shape in shapes.items():
        header = f"{{'descr': '<u2', 'fortran_order': False, 'shape': {shape}}}\n".encode()
        (folder / f"{name}.npy").write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
    (folder / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(30))
    (folder / "link.tif").symlink_to(folder / "nowhere.tif")
    return {
        "cut.tif": "cannot read .*cut.tif", "empty.tif": "cannot read .*empty.tif", "words.tif": "damaged TIFF",
        "noise.tif": "cannot read .*noise.tif", "complex.tif": "complex numbers .*amplitude",
        "palette.tif": "palette picture.*-expand rgb", "palette.png": "palette picture.*-expand rgb",
        "objects.npy": "cannot read .*objects.npy",
        "flat.npy": r"shape \[5\], not \[H, W, C\]", "none.npy": "has no pixels", "text.npy": "<U1 values",
        "first.npy": "bands first", "cut.npy": "cannot read", "cut.png": "cannot read", "link.tif": "No such file",
        "": "Is a directory", **{f"{name}.npy": rf"cannot read .*{name}\.npy" for name in shapes},
    }  # fmt: skip


def test_bad_files_are_told(tmp_path):
    for name, message in hostile_files(tmp_path).items():
        with pytest.raises(DatasetError, match=message):
            BandReader().read(tmp_path / name)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=5),
    st.integers(1, 5),
    st.sampled_from(["uint8", "uint16", "int16", "float32"]),
    st.integers(0, 2**32 - 1),
    st.booleans(),
)
def test_statistics_are_those_of_numpy_over_everything(heights, bands, kind, seed, missing):
    random = np.random.default_rng(seed)
    total = BandStatistics(*(np.zeros(bands) for _ in range(3)))
    every, known = [], []
    for height in heights:
        pixels = values(kind, height, 7, bands, seed=int(random.integers(2**31)))
        if kind == "float32":
            pixels += np.float32(1e5)  # far from 0, where a sum of squares would cancel
        valid = random.random(pixels.shape) < 0.6 if missing else None
        total = total.merged(BandStatistics.of(Raster(pixels, valid)))
        every.append(pixels.reshape(-1, bands).astype(np.float64))
        known.append(np.ones((len(every[-1]), bands), bool) if valid is None else valid.reshape(-1, bands))
    everything, there = np.concatenate(every), np.concatenate(known)
    for band in range(bands):
        truth = everything[there[:, band], band]
        assert total.count[band] == len(truth)
        if len(truth):
            assert np.isclose(total.mean[band], truth.mean(), rtol=1e-13, atol=1e-9)
            assert np.isclose(total.deviation[band], truth.std(), rtol=1e-11, atol=1e-9)


def test_images_of_python_are_checked():
    reader, mean = BandReader((4, 3, 2, 8)), (1000.0, 900.0, 800.0, 1500.0)
    pixels = values("uint16", 6, 7, 4)
    assert as_raster(pixels, reader, mean).pixels.dtype == np.uint16
    for wrong in (pixels[..., :3], pixels.transpose(2, 0, 1), pixels[..., 0], "text", 3, pixels[:0]):
        with pytest.raises(ConfigError if not isinstance(wrong, str) else DatasetError) as error:
            as_raster(wrong, reader, mean)
        if isinstance(wrong, np.ndarray):
            assert "4 bands (4, 3, 2, 8): a file, an array [H, W, 4] or a tensor [4, H, W]" in str(error.value)
            assert f"{list(wrong.shape)}" in str(error.value)
    with pytest.raises(ConfigError, match=r"8-bit values, and the bands of the model have means up to 1500"):
        as_raster(pixels.astype(np.uint8), reader, mean)


def test_files_scaled_to_8_bits_are_refused_like_arrays(tmp_path):
    mean, deep = (1500.0, 90.0), values("uint16", 8, 9, 2)
    reader = BandReader((1, 2), None, mean)
    path, array = write_raster(tmp_path / "a.tif", deep.astype(np.uint8)), tmp_path / "b.npy"
    np.save(array, deep.astype(np.uint8))
    with LargeBands(path, reader) as image:
        ways = (lambda: as_raster(path, reader, mean), lambda: reader.decode(array.read_bytes(), "body"),
                lambda: image[0:4, 0:4], lambda: image.preview(longest=4))  # fmt: skip
        for way in ways:
            with pytest.raises(DatasetError, match=r"holds 8-bit values, and .* means up to 1500 .*gdal_translate -ot"):
                way()
    with pytest.raises(ConfigError, match="holds 8-bit values"):
        as_raster(deep.astype(np.uint8), reader, mean)
    kept = write_raster(tmp_path / "c.tif", deep.astype(np.uint8))
    for known in (BandReader((1, 2)), BandReader((1, 2), None, (255.0, 90.0))):  # statistics, and bands of 8 bits
        assert known.read(kept).pixels.dtype == np.uint8
    assert np.array_equal(reader.read(write_raster(tmp_path / "d.tif", deep.astype(np.float32))).pixels, deep)


def test_a_picture_stretches_three_bands():
    pixels = np.linspace(500, 900, 10_000).reshape(100, 100, 1).repeat(5, axis=2).astype(np.uint16)
    pixels[..., 4] = 7
    picture = picture_of(pixels, channels=(0, 4, 2))
    assert (picture[0, 0, 0], picture[-1, -1, 0]) == (0, 255)
    assert abs(int(picture[50, 0, 0]) - 128) <= 2
    assert len(np.unique(picture[..., 1])) == 1
    wild = pixels.astype(np.float32)
    wild[0, 0], wild[5, 5] = np.nan, 1e30  # neither decides the stretch
    assert np.abs(picture_of(wild)[1:, 1:, 0].astype(int) - picture[1:, 1:, 0]).max(initial=0, where=~np.isnan(
        wild[1:, 1:, 0]) & (wild[1:, 1:, 0] < 1e4)) <= 1  # fmt: skip
    photo = values("uint8", 5, 5, 3)
    assert picture_of(photo) is photo


@pytest.mark.parametrize(
    ("mean", "dtype", "low", "told"),
    [
        ((110.0, 96.0), "uint16", 4000, True),
        ((0.2, 0.1), "int16", 4000, True),
        ((110.0, 96.0), "uint16", 300, False),  # bright, and perhaps of these units
        ((110.0, 96.0), "uint8", 0, False),
        ((1500.0, 96.0), "uint16", 9000, False),  # snow
        ((0.2, 0.1), "float32", 4000, False),  # of which nobody knows the units
    ],
)
def test_files_of_16_bits_for_bands_of_8_are_told(tmp_path, mean, dtype, low, told):
    pixels = (values("uint8", 8, 9, 2).astype(np.float64) + low).astype(dtype)
    pixels[:3] = 65535 if dtype == "uint16" else 0  # no data, which says nothing of the units
    path = write_raster(tmp_path / "a.tif", pixels)
    nodata = float(pixels[0, 0, 0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert BandReader((1, 2), nodata).read(path).valid is not None  # before there are statistics
    for read in (lambda reader: reader.read(path), lambda reader: as_raster(pixels, reader, mean)):
        warn_once.cache_clear()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(2):
                read(BandReader((1, 2), nodata, mean))
        shown = [str(warning.message) for warning in caught]
        assert [("hold 16-bit values" in text, f"means up to {mean[0]:g}" in text) for text in shown] == (
            [(True, True)] if told else []
        )
