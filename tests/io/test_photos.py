"""Photos of every kind look as in an image viewer, which Pillow is here: it opens, turns and blends them."""

import contextlib
import io
import os
import pickle
import subprocess
import sys
import warnings
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps
from support import hostile_photos

from resnest_seg.errors import ConfigError, DatasetError
from resnest_seg.io import images
from resnest_seg.io.images import as_pixels, decode_image, read_image, size_in_header, tiff_tags
from resnest_seg.io.masks import decode_mask, orientation


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
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(picture()), kind, exif=exif)
    expected = np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    out = decode_image(data, "x")
    assert out.shape == expected.shape
    assert np.abs(out.astype(int) - expected).mean() < 2


BIG_ENTRY = b"MM\0+\0\x08\0\0" + bytes([0xFF] * 40)


@pytest.mark.parametrize("block", [b"II*\0", b"II", b"no TIFF", BIG_ENTRY, b"II+\0\x08\0\0\0" + bytes([0xFF] * 8)])
@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "PNG"])
def test_photos_with_damaged_exif_data_are_not_turned(kind, block):
    """Their pixels are whole, and are what OpenCV decodes."""
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(Image.fromarray(picture()), kind, exif=b"Exif\0\0" + block, **options)
    assert orientation(data) == 1
    with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data)) as opened:
        off = as_pixels(opened).astype(int) - decode_image(data, "x")
    assert np.abs(off).mean() < (1 if kind == "JPEG" else 0.01)


def test_a_transparent_png_that_is_cut_off():
    data = encoded(Image.fromarray(np.dstack([picture(), picture()[..., 0]])), "PNG")
    with pytest.raises(DatasetError, match="cannot read photo"):
        decode_image(data[: len(data) // 2], "photo")


def over_white(data):
    """As Pillow shows a picture."""
    with Image.open(io.BytesIO(data)) as opened:
        upright = ImageOps.exif_transpose(opened).convert("RGBA")
    return np.array(Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright).convert("RGB"))


TRANSPARENT = np.dstack([picture(), np.random.default_rng(1).integers(0, 256, (40, 60), dtype=np.uint8)])
BLACK = TRANSPARENT * np.uint8([0, 0, 0, 1])  # a logo: its colours look alike however they are turned


@pytest.mark.parametrize("turned", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
@pytest.mark.parametrize("pixels", [TRANSPARENT, BLACK, BLACK[:, :40]], ids=["colours", "black", "black square"])
def test_transparency_is_turned_with_its_picture(kind, turned, pixels):
    exif = Image.Exif()
    exif[0x0112] = turned
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    data = encoded(Image.fromarray(pixels), kind, exif=exif, **options)
    assert np.abs(decode_image(data, "x").astype(int) - over_white(data)).max() <= 1


@pytest.mark.parametrize("mode", ["L", "1", "RGB", "LA", "P"])
def test_every_kind_of_transparent_png(mode):
    image = Image.fromarray(picture()).convert(mode)
    first = image.getpixel((0, 0))
    data = encoded(image, "PNG", **({} if mode == "LA" else {"transparency": first}))
    expected = over_white(data)
    assert (expected == 255).any() or mode == "LA"
    assert np.abs(decode_image(data, "x").astype(int) - expected).max() <= 1


def test_sixteen_bits_of_opacity():
    deep = cv2.cvtColor(TRANSPARENT, cv2.COLOR_RGBA2BGRA).astype(np.uint16) * 257
    data = cv2.imencode(".png", deep)[1].tobytes()
    shallow = encoded(Image.fromarray(TRANSPARENT), "PNG")
    assert np.array_equal(decode_image(data, "x"), decode_image(shallow, "x"))


@pytest.mark.parametrize("data", [b"", b"text named .jpg", encoded(Image.fromarray(picture()), "PNG")[:200],
                                  encoded(Image.fromarray(picture()), "JPEG")[:-300]])  # fmt: skip
def test_no_images(data, tmp_path):
    (tmp_path / "photo.jpg").write_bytes(data)
    with pytest.raises(DatasetError, match=r"cannot read .*photo.jpg"):
        read_image(tmp_path / "photo.jpg")
    with pytest.raises(DatasetError, match=r"cannot read .*gone.jpg: No such file"):
        read_image(tmp_path / "gone.jpg")


def test_what_is_taken_for_a_photo(tmp_path):
    image = Image.fromarray(picture())
    image.save(tmp_path / "a.png")
    for photo in (picture(), image, tmp_path / "a.png", str(tmp_path / "a.png"), picture()[:, ::-1][:, ::-1]):
        assert np.array_equal(as_pixels(photo), picture())
    assert np.array_equal(as_pixels(image.convert("L"))[..., 2], np.array(image.convert("L")))
    with pytest.raises(ConfigError, match=r"a file, an http address, a PIL image, .*; not NoneType"):
        as_pixels(None)


@pytest.mark.parametrize("size", [(1, 1), (40, 60), (255, 257), (17, 3000)])
@pytest.mark.parametrize(
    ("kind", "options"),
    [("PNG", {}), ("JPEG", {}), ("JPEG", {"progressive": True, "exif": b"Exif\0\0" + b"\xff\xc0" * 99}), ("WEBP", {}),
     ("WEBP", {"lossless": True}), ("WEBP", {"exif": b"Exif\0\0II*\0"})],
)  # fmt: skip
def test_sizes_are_read_from_the_first_bytes(kind, options, size):
    data = encoded(Image.fromarray(picture(*size)), kind, **options)
    assert size_in_header(data) == size
    assert size_in_header(data[:12]) is None


def photos_of_every_kind():
    """Small JPEG, PNG and WebP files, plain, animated, transparent, with a thumbnail, with restart markers."""
    plain, grey = Image.fromarray(picture(13, 21)), Image.fromarray(picture(13, 21)[..., 0])
    clear = Image.fromarray(np.dstack([picture(13, 21), picture(13, 21)[..., 0]]))
    exif = b"Exif\0\0" + encoded(plain.resize((4, 3)), "JPEG")
    more = {"save_all": True, "append_images": [plain.rotate(90), plain.rotate(180)]}
    jpegs = [
        encoded(plain, "JPEG", **o) for o in ({}, {"progressive": True}, {"exif": exif}, {"restart_marker_blocks": 1})
    ]
    jpegs += [encoded(image, "JPEG") for image in (grey, plain.convert("CMYK"))]
    pngs = [encoded(image, "PNG") for image in (plain, grey, clear, plain.convert("P"))] + [
        encoded(plain, "PNG", **more)
    ]
    webps = [encoded(i, "WEBP", lossless=exact) for i in (plain, clear) for exact in (False, True)]
    return jpegs + pngs + webps + [encoded(plain, "WEBP", **o) for o in ({"exif": exif}, more)]


WORDS = [bytes.fromhex(word) for word in """
ff 00 ff01 ff02 ffd0 ffd7 ffd8 ffd9 ffda0008 ffffff ff00 ffe10002 ffe10000 fffe0001 ffdc00040005 fff00002 ffc40002
ffdd00040001 ffc80002 ffc000110800080008030122000211010311 ffc20011080008000803012200021101031101 49484452 56503858
5650384c 56503820 414e4d46 0000000d""".split()]  # fmt: skip  # noqa: SIM905
"""What is put into headers: markers of JPEG, alone and with the begin of a segment; names of chunks."""


def damaged(random, data):
    """A copy with one to three changes near its begin; a PNG header gets its checksum again, or nothing reads it."""
    data = bytearray(data)
    begin = min(len(data), int(random.choice([32, 64, 700])))
    for _ in range(random.integers(1, 4)):
        place, word = int(random.integers(2, begin)), WORDS[random.integers(len(WORDS))]
        match random.integers(6):
            case 0:
                data[place % len(data)] = random.integers(256)
            case 1:
                data[place:place] = word
            case 2:
                data[place : place + len(word)] = word
            case 3:
                del data[place : place + int(random.integers(1, 6))]
            case 4:
                start = int(random.integers(2, begin))
                data[place:place] = data[start : start + int(random.integers(1, 40))]
            case 5:  # before a marker, or in the header of PNG and WebP
                marker = data.find(b"\xff", place) if data[:2] == b"\xff\xd8" else -1
                data[marker : marker + (marker < 0)] = word if marker >= 0 else data[-1:]
                if marker < 0 and len(data) > 30:
                    data[int(random.integers(16, 30))] = random.integers(40)
    if data[12:16] == b"IHDR":
        data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


def test_the_size_in_a_header_is_that_which_is_decoded(tmp_path):
    """OpenCV, which decodes, is asked for the sizes of ten thousand damaged photos; its limits keep that quick."""
    photos, random = photos_of_every_kind(), np.random.default_rng(0)
    files = [*photos, *(damaged(random, photos[random.integers(len(photos))]) for _ in range(10_000))]
    (tmp_path / "photos").write_bytes(pickle.dumps(files))
    code = (
        "import pickle, resource, cv2, numpy\n"
        "resource.setrlimit(resource.RLIMIT_DATA, (1 << 29, resource.getrlimit(resource.RLIMIT_DATA)[1]))\n"
        "def size(data):\n"
        "    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION\n"
        "    try: image = cv2.imdecode(numpy.frombuffer(data, 'u1'), flags)\n"
        "    except (cv2.error, MemoryError) as error: image = None; large = 'MAX_IMAGE_PIXELS' in str(error)\n"
        "    else: large = False\n"
        "    if large: return 'too large'\n"
        "    return None if image is None else image.shape[:2]\n"
        "files = pickle.load(open('photos', 'rb'))\n"
        "pickle.dump([size(data) for data in files], open('sizes', 'wb'))"
    )
    limits = {"OPENCV_IO_MAX_IMAGE_PIXELS": "4000", "OPENCV_LOG_LEVEL": "OFF"}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=os.environ | limits, capture_output=True)
    sizes = pickle.loads((tmp_path / "sizes").read_bytes())
    for data, size in zip(files, sizes, strict=True):
        found = size_in_header(data)
        if size == "too large":
            assert found is None or found[0] * found[1] > 4000, data[:99]
        elif size is not None:
            assert found == size, data[:99]
    decoded = [size for size in sizes if isinstance(size, tuple)]
    assert len(decoded) > 2000
    assert len(set(decoded)) > 20
    assert sizes.count("too large") > 100
    assert sizes[: len(photos)] == [(13, 21)] * len(photos)


def test_a_jpeg_that_hides_its_size():
    data = hostile_photos.hidden_size(300, 400)
    assert decode_image(data, "x").shape == (300, 400, 3)
    assert size_in_header(data) == (300, 400)


def test_a_frame_after_what_no_header_holds_is_no_size():
    """The end, a second start, or a scan: the decoder gives up there."""
    photo = encoded(Image.fromarray(picture()), "JPEG")
    for marker in (b"\xff\xd8", b"\xff\xd9", b"\xff\xda\0\x02"):
        assert cv2.imdecode(np.frombuffer(photo[:2] + marker + photo[2:], np.uint8), cv2.IMREAD_COLOR) is None
        assert size_in_header(photo[:2] + marker + photo[2:]) is None


def test_headers_that_take_long_to_read():
    """Sixteen megabytes of fill bytes, of stuffed pairs, of garbage; what is quadratic would take hours."""
    for filling in (b"\xff", b"\xff\0", b"a"):
        assert size_in_header(b"\xff\xd8" + filling * ((16 << 20) // len(filling))) is None


def test_sizes_of_what_is_no_photo():
    for data in (b"", b"\xff\xd8", b"\xff\xd8text", b"RIFF1234WEBPnone" + bytes(20), b"text of some length" * 9):
        assert size_in_header(data) is None


def test_reading_photos_imports_opencv_alone(tmp_path):
    Image.fromarray(TRANSPARENT).save(tmp_path / "a.png")
    code = (
        "import sys; from resnest_seg.io.images import as_pixels; as_pixels('a.png');"
        "print([name for name in ('torch', 'PIL', 'yaml', 'rich') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.strip() == "[]"


def tiff(bands, dtype=np.uint8, **options):
    """A TIFF file as GDAL writes it, which is an independent writer; `bands` [C, H, W]."""
    rasterio = pytest.importorskip("rasterio")
    bands = np.asarray(bands).astype(dtype)
    with warnings.catch_warnings(), rasterio.MemoryFile() as memory:
        warnings.simplefilter("ignore")  # that a photo is not where on earth
        count, height, width = bands.shape
        with memory.open(
            driver="GTiff", height=height, width=width, count=count, dtype=bands.dtype.name, **options
        ) as file:
            file.write(bands)
        return bytes(memory.getbuffer())


BANDS = picture().transpose(2, 0, 1)
NEAR_INFRARED = np.concatenate([BANDS, np.full((1, 40, 60), 20, np.uint8)])


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (lambda: tiff(NEAR_INFRARED), "fourth band that is tagged as opacity, and 100 %"),
        (lambda: tiff(NEAR_INFRARED, photometric="RGB"), "4 bands, tagged as RGB without opacity"),
        (lambda: tiff(NEAR_INFRARED, photometric="RGB", BIGTIFF="YES", endianness="big"), "4 bands, tagged"),
        (lambda: tiff(NEAR_INFRARED, photometric="RGB", interleave="band"), "4 bands, tagged as RGB"),
        (lambda: tiff(NEAR_INFRARED, photometric="MINISBLACK"), "4 bands, tagged as grey"),
        (lambda: tiff(NEAR_INFRARED[2:]), "2 bands, tagged as grey"),
        (lambda: tiff(np.repeat(BANDS, 3, axis=0)), "9 bands, tagged as"),
        (lambda: tiff(BANDS[:1], np.int16), "its values have 16 bits, signed"),
        (lambda: tiff(BANDS[:1], np.int8), "its values have 8 bits, signed"),
        (lambda: tiff(BANDS[:1] / 255, np.float32), "its values have 32 bits, floating-point"),
        (lambda: tiff(BANDS, np.uint32, photometric="RGB"), "its values have 32 bits, unsigned"),
        (lambda: tiff(BANDS[:1] * np.uint16(16), np.uint16, nbits=12), "its values have 12 bits, unsigned"),
        (lambda: tiff(BANDS[:1] * np.uint16(16), np.uint16), "its values end at 4[0-9]{3} of 65535"),
        (lambda: tiff(BANDS * np.uint16(4), np.uint16, photometric="RGB"), "-scale 0 1023 0 255"),
        (lambda: encoded(Image.fromarray(picture()[..., 0] * np.uint16(16)), "PNG"), "-scale 0 4095 0 255"),
        (lambda: cv2.imencode(".png", picture() * np.uint16(16))[1].tobytes(), "its values end at 4[0-9]{3} of"),
        (lambda: cv2.imencode(".ppm", picture() * np.uint16(16))[1].tobytes(), "its values end at 4[0-9]{3} of"),
        (lambda: cv2.imencode(".pfm", picture()[..., 0] / np.float32(255))[1].tobytes(), "pixels are float32"),
        (lambda: cv2.imencode(".hdr", picture() / np.float32(255))[1].tobytes(), "its pixels are float32"),
    ],
)  # fmt: skip
def test_what_is_no_photo_of_8_bits_is_refused(data, says):
    with pytest.raises(DatasetError, match=f"^the photo .*{says}"):
        decode_image(data(), "the photo")


@pytest.mark.parametrize(
    "options", [{}, {"BIGTIFF": "YES"}, {"endianness": "big"}, {"interleave": "band"}, {"compress": "LZW"}]
)
def test_photos_in_tiff_files_are_read(options):
    assert np.array_equal(decode_image(tiff(BANDS, **options), "x"), picture())
    opaque = np.concatenate([BANDS, np.full((1, 40, 60), 255, np.uint8)])
    opaque[3, :20] = 0
    out = decode_image(tiff(opaque, alpha="YES", photometric="RGB", **options), "x")
    assert np.array_equal(out[20:], picture()[20:])
    assert (out[:20] == 255).all()


@pytest.mark.parametrize("alpha", ["NON-PREMULTIPLIED", "PREMULTIPLIED"])
@pytest.mark.parametrize(("kind", "scale"), [(np.uint8, 1), (np.uint16, 257)])
def test_half_transparent_pixels_in_tiff_files(alpha, kind, scale):
    """As in the same PNG, which holds no premultiplied colours."""
    plain = TRANSPARENT.astype(np.uint16)
    plain[20:, :, 3], plain[:4, :, 3] = 255, 0
    stored = plain.copy()
    if alpha == "PREMULTIPLIED":
        stored[..., :3] = (plain[..., :3] * plain[..., 3:] + 127) // 255
    data = tiff(stored.transpose(2, 0, 1) * scale, kind, photometric="RGB", alpha=alpha)
    off = decode_image(data, "x").astype(int) - over_white(encoded(Image.fromarray(plain.astype(np.uint8)), "PNG"))
    assert np.abs(off).max() <= 1


def test_an_all_black_photo_of_16_bits_is_black():
    assert not decode_image(encoded(Image.fromarray(np.zeros((4, 5), np.uint16)), "PNG"), "x").any()


def test_tags_are_those_that_pillow_reads():
    for data in (tiff(BANDS), tiff(NEAR_INFRARED, endianness="big"), encoded(Image.fromarray(picture()), "TIFF"),
                 encoded(Image.fromarray(picture()).convert("CMYK"), "TIFF", compression="tiff_lzw")):  # fmt: skip
        with Image.open(io.BytesIO(data)) as opened:
            theirs = {tag: opened.tag_v2.get(tag) for tag in (258, 262, 277, 338, 339)}
        ours = tiff_tags(data)
        for tag, values in theirs.items():
            assert ours.get(tag) == (values if isinstance(values, tuple | None) else (values,)), tag


def test_damaged_tiff_files_are_an_error_and_not_a_crash():
    data = tiff(NEAR_INFRARED, photometric="RGB")
    random = np.random.default_rng(0)
    for place in [*range(4, 200), len(data) - 1]:
        for changed in (data[:place], data[:place] + random.bytes(8) + data[place + 8 :]):
            with contextlib.suppress(DatasetError):
                assert decode_image(changed, "x").shape[2] == 3


@pytest.mark.parametrize("mode", ["LA", "RGBA", "RGBa", "P", "L", "RGB"])
def test_transparent_pil_images_lie_on_white(mode):
    """As the file that they would be saved to, for which Pillow itself blends."""
    image = Image.fromarray(TRANSPARENT)
    if mode in ("P", "L", "RGB"):
        image = image.convert(mode)
        image.info["transparency"] = image.getpixel((3, 3))
    else:
        image = image.convert(mode)
    shown = image.convert("RGBA")
    expected = Image.alpha_composite(Image.new("RGBA", shown.size, "white"), shown).convert("RGB")
    assert np.array_equal(as_pixels(image), np.array(expected))
    assert not np.array_equal(as_pixels(image), np.array(image.convert("L").convert("RGB")))


def test_pil_images_that_are_no_photos_are_refused(tmp_path):
    deep = picture()[..., 0].astype(np.uint16)
    assert np.array_equal(as_pixels(Image.fromarray(deep * 257))[..., 0], picture()[..., 0])
    with pytest.raises(DatasetError, match=r"the PIL image has 16 bits, and its values end at"):
        as_pixels(Image.fromarray(deep * 16))
    for mode in ("I", "F"):
        with pytest.raises(ConfigError, match=f"the PIL image has mode {mode}, 32-bit values"):
            as_pixels(Image.fromarray(picture()[..., 0]).convert(mode))
    with pytest.raises(ConfigError, match="the PIL image of mode La cannot be converted to RGB"):
        as_pixels(Image.new("La", (4, 4)))
    (tmp_path / "cut.jpg").write_bytes(encoded(Image.fromarray(picture()), "JPEG")[:900])
    with (
        Image.open(tmp_path / "cut.jpg") as image,
        pytest.raises(DatasetError, match=r"cannot read the PIL image .*cut"),
    ):
        as_pixels(image)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_too_many_pixels_are_refused_by_the_header(kind, monkeypatch):
    """Before anything is decoded, of photos and masks alike; one that has just as many as are allowed is decoded."""
    data = encoded(Image.fromarray(picture()), kind, **({"lossless": True} if kind == "WEBP" else {}))
    monkeypatch.setattr(images, "MOST_PIXELS", 40 * 60)
    assert decode_image(data, "x").shape == (40, 60, 3)
    monkeypatch.setattr(images, "MOST_PIXELS", 40 * 60 - 1)
    monkeypatch.setattr(cv2, "imdecode", None)  # calling it would be a TypeError
    monkeypatch.setattr(Image.Image, "load", None)
    with pytest.raises(DatasetError, match=r"cannot read x: it has 40 x 60 pixels, and .* 2,399 at most"):
        decode_image(data, "x")
    if kind != "JPEG":
        with pytest.raises(DatasetError, match=r"cannot read x: it has 40 x 60 pixels"):
            decode_mask(data, "x")


def test_a_path_that_no_file_can_have():
    with pytest.raises(DatasetError, match=r"cannot read a\\x00b: embedded null byte"):
        read_image("a\0b")
