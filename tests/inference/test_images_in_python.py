"""Images as people have them in Python: paths, addresses, PIL, arrays, tensors, batches, lists; one result for all."""

import functools
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support import small_onnx
from support.local_server import serve
from support.small_models import noise, small_segmenter

from resnest_seg.errors import ConfigError, DatasetError
from resnest_seg.inference.predictor import OnnxPredictor, Predictor, images_of
from resnest_seg.inference.torch_engine import Runner, probabilities, scores
from resnest_seg.io.images import as_pixels
from resnest_seg.labels import LabelSpace

PHOTO = noise(40, 56, 3)
GREY = PHOTO[..., 0]
CHW = np.ascontiguousarray(PHOTO.transpose(2, 0, 1))


def opaque(image, alpha=255):
    """With a fourth channel, the last of an array [H, W, 3]."""
    return np.concatenate([image, np.full_like(image[..., :1], alpha)], axis=2)


def png(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


COLORED = {
    "array": PHOTO,
    "strided array": np.asfortranarray(PHOTO),
    "read-only array": np.frombuffer(PHOTO.tobytes(), np.uint8).reshape(PHOTO.shape),
    "RGBA array": opaque(PHOTO),
    "floats": PHOTO.astype(np.float64),
    "half precision": PHOTO.astype(np.float16),
    "PIL": Image.fromarray(PHOTO),
    "PIL RGBA": Image.fromarray(opaque(PHOTO)),
    "tensor": torch.from_numpy(CHW),
    "strided tensor": torch.from_numpy(PHOTO).permute(2, 0, 1),
    "float tensor": torch.from_numpy(CHW).float(),
    "bfloat16 tensor": torch.from_numpy(CHW).bfloat16(),
    "RGBA tensor": torch.from_numpy(opaque(PHOTO)).permute(2, 0, 1),
    "tensor with a gradient": torch.from_numpy(CHW).float().requires_grad_(),
}

GREYS = {
    "array": GREY,
    "array [H, W, 1]": GREY[..., None],
    "PIL L": Image.fromarray(GREY),
    "tensor": torch.from_numpy(GREY.copy()),
    "tensor [1, H, W]": torch.from_numpy(GREY.copy())[None],
    "float tensor": torch.from_numpy(GREY.astype(np.float32)),
}


@pytest.mark.parametrize("image", COLORED.values(), ids=COLORED)
def test_every_form_of_a_photo_gives_its_pixels(image):
    pixels = as_pixels(image)
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, PHOTO)
    assert pixels.flags["C_CONTIGUOUS"]


@pytest.mark.parametrize("image", GREYS.values(), ids=GREYS)
def test_grey_is_repeated(image):
    assert np.array_equal(as_pixels(image), np.stack([GREY] * 3, axis=2))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "HSV",
                                  "LAB", "I;16", "I", "F", "La"])  # fmt: skip
def test_a_pil_image_of_any_mode_is_what_pillow_shows_or_is_refused(mode):
    if mode in ("I;16", "I", "F", "La"):  # no 8 bits of a sure meaning
        image = Image.new(mode, (4, 4), (1, 2) if mode == "La" else 77)
        with pytest.raises((ConfigError, DatasetError), match=r"the PIL image .*(mode|has 16 bits)"):
            as_pixels(image)
        return
    image = Image.fromarray(PHOTO).convert("L").convert(mode) if mode == "PA" else Image.fromarray(PHOTO).convert(mode)
    assert np.array_equal(as_pixels(image), np.asarray(image.convert("RGB")))


def test_a_turned_pil_image_is_turned_like_its_file(tmp_path):
    image = Image.fromarray(PHOTO)
    for orientation in range(1, 9):
        image.getexif()[0x0112] = orientation
        image.save(tmp_path / "turned.jpg", exif=image.getexif(), quality=95)
        with Image.open(tmp_path / "turned.jpg") as opened:
            assert np.array_equal(as_pixels(opened), as_pixels(tmp_path / "turned.jpg")), orientation


def test_fractions_stay_and_half_a_level_beyond_is_clipped():
    floats = PHOTO + np.float32(0.25)
    floats[0, 0] = (-0.4, 255.4, 0)
    pixels = as_pixels(floats)
    assert pixels.dtype == np.float32
    assert pixels[0, 0].tolist() == [0, 255, 0]
    assert np.array_equal(pixels[1:], floats[1:].clip(max=255))


WRONG = {
    "transparent array": (opaque(PHOTO, 254), r"a numpy.ndarray uint8 \[40, 56, 4\] has transparent pixels"),
    "transparent tensor": (
        torch.zeros(4, 8, 9, dtype=torch.uint8),
        r"a torch.Tensor uint8 \[4, 8, 9\] has transp",
    ),
    "two channels": (PHOTO[..., :2], r"not a numpy.ndarray uint8 \[40, 56, 2\]"),
    "five channels": (torch.zeros(5, 8, 9), r"not a torch.Tensor float32 \[5, 8, 9\]"),
    "array of channels first": (CHW, r"\[3, 40, 56\]. Arrays have their channels last: image.transpose\(1, 2, 0\)"),
    "tensor of channels last": (
        torch.from_numpy(PHOTO),
        r"\[40, 56, 3\]. Tensors have their channels first: image.p",
    ),
    "empty": (PHOTO[:0], r"\[0, 56, 3\]"),
    "one dimension": (GREY[0], r"\[56\]"),
    "a number": (np.float32(3), r"numpy.float32"),
    "int64": (PHOTO.astype(np.int64), r"int64 \[40, 56, 3\]. If the values lie in 0..255, convert them to uint8"),
    "uint16 tensor": (torch.zeros(3, 4, 4, dtype=torch.uint16), r"uint16 \[3, 4, 4\]. If the values lie"),
    "bool": (GREY > 9, r"bool \[40, 56\]. If the values"),
    "complex": (PHOTO.astype(complex), r"complex128"),
    "NaN": (np.full((4, 4, 3), np.nan), r"has values from nan to nan, and pixels must lie in 0..255"),
    "infinite": (np.full((4, 4, 3), np.inf), r"has values from inf to inf"),
    "16 bits in floats": (PHOTO * 257.0, r"and pixels must lie in 0..255"),
    "normalised": (torch.randn(3, 16, 16), r"Undo a normalisation: the model normalises by itself"),
    "None": (None, r"a batch or list of such; not NoneType"),
    "dictionary": ({"a.jpg": 1}, r"not dict"),
    "set": ({"a.jpg"}, r"not set"),
    "bytes": (png(PHOTO), r"not bytes"),
    "object": (object(), r"not object"),
    "numbers": ([[1, 2], [3, 4]], r"image 0 of the list: image 0 of the list: an image must be .*; not int"),
    "None in a list": ([PHOTO, None], r"image 1 of the list: an image must be .*; not NoneType"),
    "batch of channels first": (CHW[None], r"image 0 of the batch \[1, 3, 40, 56\]: .*channels last"),
    "five dimensions": (CHW[None, None], r"\[1, 1, 3, 40, 56\]"),
    "ftp": ("ftp://localhost/a.jpg", r"only http and https addresses"),
}


@pytest.mark.parametrize(("image", "says"), WRONG.values(), ids=WRONG)
def test_what_is_no_image_is_told_what_would_be(image, says):
    with pytest.raises(ConfigError, match=says):
        images_of(image)


def test_the_kind_decides_where_both_orders_fit():
    cube = noise(3, 5, 3)
    assert as_pixels(cube).shape == (3, 5, 3)
    assert as_pixels(torch.from_numpy(cube)).shape == (5, 3, 3)
    assert np.array_equal(as_pixels(torch.from_numpy(cube)), cube.transpose(1, 2, 0))


def test_a_batch_and_any_iterable_are_lists(tmp_path):
    (tmp_path / "a.png").write_bytes(png(PHOTO))
    batch = np.stack([PHOTO, PHOTO[::-1]])
    for several in (batch, torch.from_numpy(batch).permute(0, 3, 1, 2), list(batch), tuple(batch), iter(batch)):
        found, many, _ = images_of(several)
        assert many
        assert all(np.array_equal(image.pixels, other) for image, other in zip(found, batch, strict=True))
    mixed = [tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(PHOTO), torch.from_numpy(CHW)[None], PHOTO]
    for several in (mixed, (image for image in mixed), tmp_path.glob("*.png"), np.array([str(tmp_path / "a.png")])):
        found, many, files = images_of(several)
        assert many
        assert len(found) in (1, 5)
        assert [file and str(file) for file in files] == ([str(tmp_path / "a.png")] * 2 + [None] * 3)[: len(found)]
        assert all(np.array_equal(image.pixels, PHOTO) for image in found)
    assert images_of([]) == images_of(PHOTO[None][:0]) == ([], True, [])
    assert not images_of(PHOTO)[1]
    with pytest.raises(DatasetError, match=r"cannot read .*gone.png"):
        images_of([PHOTO, tmp_path / "gone.png"])


def test_an_address_is_fetched():
    with serve({"/photo.png": png(PHOTO), "/text.png": b"text"}) as site:
        assert np.array_equal(images_of(f"{site.url}/photo.png")[0][0].pixels, PHOTO)
        assert np.array_equal(images_of([PHOTO, f"{site.url}/photo.png"])[0][1].pixels, PHOTO)
        with pytest.raises(DatasetError, match=r"cannot fetch http.*gone.png: HTTP 404"):
            images_of(f"{site.url}/gone.png")
        with pytest.raises(DatasetError, match=r"cannot read http.*text.png"):
            images_of(f"{site.url}/text.png")


# With a model


@functools.cache
def predictor(channels=3):
    torch.manual_seed(0)
    return Predictor(small_segmenter(LabelSpace.numbered(3), channels=channels), device="cpu")


def test_labels_and_scores_are_those_of_the_model_whatever_the_form(tmp_path):
    path = tmp_path / "photo.png"
    path.write_bytes(png(PHOTO))
    with torch.inference_mode():
        logits = small_segmenter()(torch.from_numpy(CHW)[None]).logits[0]
    expected = logits.argmax(dim=0).numpy()
    assert len(np.unique(expected)) > 1
    forms = [path, str(path), *COLORED.values()]
    for prediction in [*map(predictor(), forms), *predictor()(forms), *predictor()(np.stack([PHOTO] * 2))]:
        assert np.array_equal(prediction.labels, expected)
        assert np.array_equal(prediction.image, PHOTO)
    scores = predictor()(torch.from_numpy(CHW)).scores()
    assert np.allclose(scores, logits.softmax(dim=0), atol=1e-6)


def test_fractions_reach_the_model():
    """Grey levels of a dark photo, of which a rounded one keeps three."""
    floats = torch.rand(3, 40, 56, generator=torch.Generator().manual_seed(0)) * 2
    with torch.inference_mode():
        expected = small_segmenter()(floats[None]).logits[0].softmax(dim=0)
        rounded = small_segmenter()(floats.round()[None]).logits[0].softmax(dim=0)
    prediction = predictor()(floats)
    assert np.allclose(prediction.scores(), expected, atol=1e-5)
    assert not np.allclose(prediction.scores(), rounded, atol=1e-5)
    assert np.array_equal(prediction.image, floats.round().byte().permute(1, 2, 0).numpy())


@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize("image", [np.random.default_rng(0).random((32, 40, 3)), torch.rand(3, 32, 40)])
def test_floats_in_0_1_are_warned_of_once(image, fuse):
    fresh = Predictor(small_segmenter(LabelSpace.numbered(3)), device="cpu", fuse=fuse)
    with pytest.warns(UserWarning, match=r"this model takes RGB 0\.\.255"):
        fresh(image)
    fresh(image)  # a second warning would be an error


@pytest.mark.parametrize("channels", [1, 2, 4, 5])
def test_models_of_other_channels_take_arrays_and_tensors_of_as_many(channels):
    bands = noise(32, 48, channels)
    tensor = torch.from_numpy(bands).permute(2, 0, 1)
    with torch.inference_mode():
        logits = small_segmenter(channels=channels)(tensor[None]).logits[0]
    shown = bands[..., :3] if channels > 2 else bands[..., :1].repeat(3, axis=2)
    grey = [bands[..., 0], tensor[0]] if channels == 1 else []
    for image in (bands, tensor, tensor.float(), *grey):
        prediction = predictor(channels)(image)
        assert np.array_equal(prediction.labels, logits.argmax(dim=0).numpy())
        assert np.array_equal(prediction.image, shown)
    assert np.allclose(prediction.scores(), logits.softmax(dim=0), atol=1e-6)
    assert len(predictor(channels)(np.stack([bands, bands]))) == 2
    for image in (PHOTO, "photo.jpg", Path("photo.jpg"), "http://localhost/photo.jpg", Image.fromarray(PHOTO)):
        with pytest.raises(ConfigError, match=rf"\[H, W, {channels}\] or a tensor \[{channels}, H, W\]"):
            predictor(channels)(image)


@pytest.mark.parametrize("pixels", ["uint8", "float32"])
def test_an_exported_file_takes_the_same(pixels, tmp_path):
    exported = OnnxPredictor(small_onnx.write(tmp_path / "model.onnx", pixels=pixels), threads=1)
    expected = exported(PHOTO)
    for image in COLORED.values():
        assert np.array_equal(exported(image).labels, expected.labels)
    assert len(exported(torch.from_numpy(CHW).repeat(2, 1, 1, 1))) == 2
    fractions = PHOTO.clip(0, 254) + np.float32(0.25)
    if pixels == "float32":
        assert exported(fractions).labels.shape == (40, 56)
    else:
        with pytest.raises(ConfigError, match=r"takes uint8 pixels 0\.\.255, not float32"):
            exported(fractions)


@pytest.mark.parametrize("name", ["whole", "slide", "mmseg"])
def test_an_exported_file_for_four_channels_takes_four(name, tmp_path):
    weights = np.random.default_rng(0).standard_normal((3, 4, 3, 3)).astype(np.float32)
    path = small_onnx.write(tmp_path / "four.onnx", weights=weights, mean=(0.0,) * 4, std=(1.0,) * 4)
    exported, bands = OnnxPredictor(path, protocol=name, threads=1), noise(64, 80, 4)
    image = torch.from_numpy(bands).permute(2, 0, 1)
    run = Runner(lambda images: torch.nn.functional.conv2d(images.float(), torch.from_numpy(weights), padding=1))
    expected = probabilities(scores(run, image, exported.protocol), exported.protocol.merge).numpy()
    assert np.allclose(exported(bands).scores(), expected, atol=1e-4)
    assert np.allclose(exported(image.float()).scores(), expected, atol=1e-4)
