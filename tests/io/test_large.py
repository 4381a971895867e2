"""Windows of a file are windows of the decoded picture."""

import sys
import warnings
import zlib

import numpy as np
import pytest
import rasterio
from PIL import Image

from resnest_seg.errors import ConfigError, DatasetError
from resnest_seg.io import large_images as large
from resnest_seg.io.images import read_image
from resnest_seg.io.large_images import LargeImage, preview

HEIGHT, WIDTH = 70, 90


def smooth(height=HEIGHT, width=WIDTH, channels=3):
    """Smooth colours, so that codecs of any kind keep them."""
    rows, columns, channel = np.ogrid[:height, :width, :channels]
    wave = np.sin(rows / 9 + channel) + np.cos(columns / 11 - 2 * channel)
    return (127.5 + 60 * wave).astype(np.uint8)


def tiff(path, picture, **options):
    """Written by GDAL: channels last, or grey."""
    planes = picture[None] if picture.ndim == 2 else picture.transpose(2, 0, 1)
    size = {"count": len(planes), "height": planes.shape[1], "width": planes.shape[2], "dtype": planes.dtype}
    with (
        warnings.catch_warnings(action="ignore"),
        rasterio.open(path, "w", driver="GTiff", **size, **options) as target,
    ):
        target.write(planes)


def pillow(mode, **options):
    return lambda path: Image.fromarray(smooth()).convert(mode).save(path, **options)


def sixteen(path):
    Image.fromarray(smooth()[..., 0].astype(np.uint16) * 257).save(path)


def see_through(path, mode="RGBA"):
    image = Image.fromarray(smooth()).convert(mode)
    opacity = smooth(channels=1)[..., 0]
    if path.suffix == ".tif":
        opacity[:, 40:] = 255  # what is half transparent nearly everywhere is refused
    image.putalpha(Image.fromarray(opacity))
    image.save(path)


def multiplied():
    """Colours that are multiplied by their opacity, and it."""
    opacity = smooth(channels=1)
    opacity[:, 40:] = 255
    return np.dstack([smooth() * (opacity / 255), opacity]).round().astype(np.uint8)


def transparent_color(path):
    picture = smooth() // 8 * 8
    Image.fromarray(picture).save(path, transparency=tuple(picture[3, 4].tolist()))


def transparent_grey(path):
    picture = smooth()[..., 0] // 8 * 8
    Image.fromarray(picture).save(path, transparency=int(picture[3, 4]))


def palette(path):
    image = Image.fromarray(smooth()).quantize(16)
    image.save(path, **({"transparency": 5} if path.suffix == ".png" else {}))


FILES = {
    "rgb.png": pillow("RGB"), "rgb.jpg": pillow("RGB", subsampling=0), "rgb.tif": pillow("RGB"),
    "progressive.jpg": pillow("RGB", progressive=True, subsampling=0), "lzw.tif": pillow("RGB", compression="tiff_lzw"),
    "grey.png": pillow("L"), "grey.jpg": pillow("L"), "grey.tif": pillow("L"), "cmyk.tif": pillow("CMYK"),
    "bits.png": pillow("1"), "bits.tif": pillow("1", compression="group4"),
    "palette.png": palette, "palette.tif": palette, "grey16.png": sixteen, "grey16.tif": sixteen,
    "alpha.png": see_through, "alpha.tif": see_through, "grey_alpha.png": lambda path: see_through(path, "LA"),
    "key.png": transparent_color, "grey_key.png": transparent_grey,
    "tiled.tif": lambda path: tiff(path, smooth(), tiled=True, blockxsize=16, blockysize=32, photometric="RGB",
                                   interleave="pixel", compress="deflate"),
    "white16.tif": lambda path: tiff(path, smooth()[..., 0].astype(np.uint16) * 257, photometric="MINISWHITE"),
    "premultiplied_alpha.tif": lambda path: tiff(path, multiplied(), photometric="RGB", alpha="PREMULTIPLIED"),
    "premultiplied_alpha16.tif": lambda path: tiff(path, multiplied().astype(np.uint16) * 257, photometric="RGB",
                                                   alpha="PREMULTIPLIED"),
    "planes16.tif": lambda path: tiff(path, smooth().astype(np.uint16) * 257, photometric="RGB", interleave="band"),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_windows_are_those_of_the_decoded_picture(name, tmp_path, monkeypatch):
    FILES[name](tmp_path / name)
    expected = read_image(tmp_path / name)
    monkeypatch.setattr(large, "_READ", 900)  # several reads a band, as in large files
    before = sorted(tmp_path.iterdir())
    with LargeImage(tmp_path / name) as image:
        assert image.shape == (HEIGHT, WIDTH, 3)
        # in order, overlapping, going up, inside the band, nothing, everything
        for top, left, height, width in [
            *((0, 0, 20, 30), (0, 60, 20, 30), (12, 7, 20, 30), (50, 0, 20, 90)),
            *((5, 5, 3, 3), (6, 80, 1, 10), (9, 9, 0, 4), (0, 0, 70, 90), (69, 89, 1, 1)),
        ]:
            window = image.read(top, left, height, width)
            assert window.dtype == np.uint8
            off = np.abs(window.astype(int) - expected[top : top + height, left : left + width])
            # Pillow blends a little differently, and decoders of JPEG round in ways of their own
            assert off.size == 0 or off.max() <= (3 if "jpg" in name else 1 if "alpha" in name else 0)
        assert np.array_equal(image[10:20, 30:], image.read(10, 30, 10, 60))
        kept = image[10:20, :]
        assert np.array_equal(kept, image[10:20, :])
        image.read(40, 0, 30, 90)
        assert np.array_equal(kept, image[10:20, :])  # what was given out does not change with the band
    assert sorted(tmp_path.iterdir()) == before


def test_cmyk_photos(tmp_path):
    pillow("CMYK", quality=95)(tmp_path / "a.jpg")
    with LargeImage(tmp_path / "a.jpg") as image:
        off = image[:, :].astype(int) - read_image(tmp_path / "a.jpg")
    assert np.abs(off).mean() < 2


def test_more_bits_and_another_order_than_a_photo_has(tmp_path):
    tiff(tmp_path / "twelve.tif", smooth()[..., 0].astype(np.uint16) * 16, nbits=12)
    tiff(tmp_path / "white.tif", 4095 - smooth()[..., 0].astype(np.uint16) * 16, nbits=12, photometric="MINISWHITE")
    tiff(tmp_path / "inverted.tif", smooth()[..., 0], photometric="MINISWHITE")
    tiff(tmp_path / "order.tif", smooth()[..., ::-1])
    with warnings.catch_warnings(action="ignore"), rasterio.open(tmp_path / "order.tif", "r+") as file:
        file.colorinterp = [rasterio.enums.ColorInterp[name] for name in ("blue", "green", "red")]
    grey = smooth()[..., :1].repeat(3, axis=2)
    for name, expected in (("twelve", grey), ("white", grey), ("inverted", 255 - grey), ("order", smooth())):
        with LargeImage(tmp_path / f"{name}.tif") as image:
            assert np.array_equal(image[:, :], expected), name


def read_down(path):
    with LargeImage(path) as image:
        for top in range(0, HEIGHT, 10):
            image.read(top, 0, 10, WIDTH)


FOUR = np.dstack([smooth(), np.full((HEIGHT, WIDTH), 20, np.uint8)])


@pytest.mark.parametrize(
    ("picture", "options", "says"),
    [
        (np.dstack([smooth(), smooth()]), {"photometric": "MINISBLACK"}, "its bands are gray, undefined"),
        (FOUR, {"photometric": "RGB"}, "its bands are red, green, blue, undefined"),
        (FOUR, {}, "fourth band that is tagged as opacity, and 100 %"),
        (smooth().astype(np.uint16) * 16, {"photometric": "RGB"}, "its values end at"),
        (smooth()[..., 0].astype(np.int16), {}, "its pixels are int16"),
        (smooth()[..., 0].astype(np.uint16) * 257, {"photometric": "PALETTE"}, "its palette has 16 bits.*-expand rgb"),
    ],
)
def test_what_is_no_photo_is_refused_as_it_is_in_memory(picture, options, says, tmp_path, monkeypatch):
    tiff(tmp_path / "a.tif", picture, **options)
    monkeypatch.setattr(large, "_READ", 900)
    with pytest.raises(DatasetError, match=rf"a.tif .*{says}"):
        read_down(tmp_path / "a.tif")
    with pytest.raises(DatasetError):
        preview(tmp_path / "a.tif")
    with pytest.raises(DatasetError):
        read_image(tmp_path / "a.tif")


class Counting:
    """A source that counts the rows that are read from it."""

    def __init__(self, source):
        self.source, self.rows = source, []

    def read(self, window):
        self.rows += range(*window[0])
        return self.source.read(window=window)


def test_rows_are_decoded_once_where_windows_go_down(tmp_path):
    FILES["rgb.png"](tmp_path / "a.png")
    with LargeImage(tmp_path / "a.png") as image:
        image._source = counting = Counting(image._source)
        for top in (0, 20, 40):
            for left in (0, 30, 60):
                image.read(top, left, 30, 30)
    assert counting.rows == list(range(70))


def test_turned_photos_are_refused(tmp_path):
    for suffix in (".jpg", ".png", ".tif"):
        for turned in range(9):
            path = tmp_path / f"a{turned}{suffix}"
            exif = Image.Exif()
            exif[0x0112] = turned
            options = {"tiffinfo": {0x0112: turned}} if suffix == ".tif" else {"exif": exif}
            Image.fromarray(smooth()).save(path, **options)
            if turned < 2:
                with LargeImage(path) as image:
                    assert image.shape == (HEIGHT, WIDTH, 3)
            else:
                with pytest.raises(DatasetError, match=rf"its EXIF orientation is {turned}, not 1\. .* -auto-orient"):
                    LargeImage(path)


@pytest.mark.parametrize("name", ["a.tif", "a.png", "a.jpg"])
def test_no_images(name, tmp_path, capfd):
    path = tmp_path / name
    with pytest.raises(DatasetError, match=rf"cannot read .*{name}: No such file"):
        LargeImage(path)
    for content in (b"", b"no image", b"<VRTDataset rasterXSize='1' rasterYSize='1'></VRTDataset>"):
        path.write_bytes(content)
        with pytest.raises(DatasetError, match=rf"cannot read .*{name}: no JPEG, PNG or TIFF image, or a damaged one"):
            LargeImage(path)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", ["rgb.png", "rgb.jpg", "progressive.jpg", "tiled.tif", "lzw.tif"])
def test_files_that_end_too_early(name, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(large, "_READ", 900)
    FILES[name](tmp_path / name)
    data = (tmp_path / name).read_bytes()
    for share in (0.1, 0.5, 0.9):
        (tmp_path / name).write_bytes(data[: int(len(data) * share)])
        with pytest.raises(DatasetError, match=rf"cannot read .*{name}"):
            preview(tmp_path / name)
    assert capfd.readouterr().err == ""


def test_other_kinds_of_pixels(tmp_path):
    tiff(tmp_path / "heights.tif", smooth()[..., 0].astype(np.float32))
    with pytest.raises(DatasetError, match=r"heights.tif is no photo: its pixels are float32, not 8 or 16 bits"):
        LargeImage(tmp_path / "heights.tif")


def test_files_that_cannot_be_read_in_bands(tmp_path, monkeypatch):
    monkeypatch.setattr(large, "LIMIT", 4000)
    FILES["tiled.tif"](tmp_path / "tiled.tif")
    with pytest.raises(DatasetError, match=r"its parts are 32 rows tall. Save it as a tiled TIFF: rio convert tiled"):
        LargeImage(tmp_path / "tiled.tif")
    FILES["rgb.png"](tmp_path / "a.png")
    LargeImage(tmp_path / "a.png").close()
    data = bytearray((tmp_path / "a.png").read_bytes())
    data[28] = 1  # says that it is interlaced; its pixels are not looked at
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(DatasetError, match="its parts are 70 rows tall"):
        LargeImage(tmp_path / "a.png")


@pytest.mark.parametrize("size", [(200, 600), (1000, 170), (600, 4), (30, 20)])
def test_previews_are_averages(size, tmp_path):
    picture = smooth(*size)
    Image.fromarray(picture).save(tmp_path / "a.png")
    small = preview(tmp_path / "a.png", longest=50)
    scale = min(50 / max(size), 1)
    assert small.shape == (*(max(round(side * scale), 1) for side in size), 3)
    expected = np.array(Image.fromarray(picture).resize(small.shape[1::-1], Image.Resampling.BOX))
    assert np.abs(small.astype(int) - expected).max() <= (0 if size == (30, 20) else 6)
    assert np.abs(small.astype(int) - expected).mean() < 1


def test_without_rasterio(tmp_path, monkeypatch):
    FILES["rgb.png"](tmp_path / "a.png")
    monkeypatch.setitem(sys.modules, "rasterio", None)
    with pytest.raises(ConfigError, match=r"large images need rasterio: pip install 'resnest-seg\[large\]'"):
        LargeImage(tmp_path / "a.png")
