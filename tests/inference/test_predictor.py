"""From a checkpoint to labels."""

import gc

import numpy as np
import pytest
import torch
from PIL import Image

from resnest_seg.config import ModelConfig, RunConfig
from resnest_seg.errors import CheckpointError, ConfigError, DatasetError
from resnest_seg.inference.predictor import Predictor
from resnest_seg.inference.torch_engine import View
from resnest_seg.io.images import read_image
from resnest_seg.io.masks import decode_mask
from resnest_seg.models.checkpoint import Checkpoint
from resnest_seg.models.loading import build_segmenter, load_checkpoint

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory, tiny_space):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("run") / "best.safetensors"
    config = RunConfig(model=ModelConfig(encoder="resnest14_tiny"))
    Checkpoint(config, tiny_space, build_segmenter("resnest14_tiny", num_classes=3).state_dict()).save(path)
    return path.parent


@pytest.fixture(scope="module")
def predictor(run_folder):
    return Predictor.from_checkpoint(run_folder, device="cpu")


@pytest.fixture(scope="module")
def segmenter(run_folder):
    return load_checkpoint(run_folder)


@pytest.fixture
def photo():
    return np.random.default_rng(0).integers(0, 256, (37, 51, 3), dtype=np.uint8)


def test_a_file_an_array_and_a_pil_image_are_the_same(predictor, photo, tmp_path):
    Image.fromarray(photo).save(tmp_path / "photo.png")
    predictions = [predictor(image) for image in (photo, Image.fromarray(photo), tmp_path / "photo.png",
                                                  str(tmp_path / "photo.png"))]  # fmt: skip
    for prediction in predictions:
        assert prediction.labels.shape == (37, 51)
        assert prediction.labels.dtype == np.uint8
        assert np.array_equal(prediction.labels, predictions[0].labels)
        assert np.array_equal(prediction.image, photo)


def test_turned_and_16_bit_pil_images_are_read_like_their_files(predictor, photo, tmp_path):
    turned = Image.fromarray(photo)
    turned.getexif()[0x0112] = 6  # to be turned by 90 degrees
    turned.save(tmp_path / "turned.png", exif=turned.getexif())
    Image.fromarray(photo[..., 0].astype(np.uint16) * 257).save(tmp_path / "deep.png")
    for name in ("turned.png", "deep.png"):
        with Image.open(tmp_path / name) as picture:
            assert np.array_equal(predictor(picture).image, predictor(tmp_path / name).image), name


def test_scores_are_probabilities_whose_best_is_the_label(predictor, photo):
    prediction = predictor(photo)
    scores = prediction.scores()
    assert scores.shape == (3, 37, 51)
    assert np.allclose(scores.sum(axis=0), 1, atol=1e-5)
    assert np.array_equal(scores.argmax(axis=0), prediction.labels)


def test_labels_are_saved_as_the_data_sets_ids(predictor, photo, tmp_path, tiny_space):
    prediction = predictor(photo)
    prediction.save(tmp_path / "raw.png")
    prediction.save(tmp_path / "train.png", ids="train")
    assert np.array_equal(np.array(Image.open(tmp_path / "raw.png")), tiny_space.decode(prediction.labels))
    assert np.array_equal(np.array(Image.open(tmp_path / "train.png")), prediction.labels)


def test_the_overlay_holds_photo_and_legend(predictor, photo):
    prediction = predictor(photo)
    assert np.array_equal(prediction.overlay(0.0, legend=False), photo)
    assert prediction.overlay().shape[0] > 37


def test_bad_input(predictor, segmenter, tmp_path):
    with pytest.raises(ConfigError, match=r"or a batch or list of such; not a numpy.ndarray int64 \[3, 4\]"):
        predictor(np.zeros((3, 4), int))
    with pytest.raises(DatasetError, match="cannot read"):
        predictor(tmp_path / "missing.jpg")
    with pytest.raises(ConfigError, match=r"not a numpy.ndarray uint8 \[0, 5, 3\]"):
        predictor(np.zeros((0, 5, 3), np.uint8))
    with pytest.raises(ConfigError, match="device 'meta' cannot be used"):
        Predictor(segmenter, device="meta")
    with pytest.raises(ConfigError, match="device 'gpu' cannot be used"):
        Predictor(segmenter, device="gpu")
    with pytest.raises(ConfigError, match="unknown protocol"):
        Predictor(segmenter, device="cpu", protocol="holy")
    with pytest.raises(CheckpointError, match="no label space"):
        Predictor(build_segmenter("resnest14_tiny", num_classes=3), device="cpu")


def test_a_list_gives_what_its_photos_give_one_by_one_in_fewer_calls(segmenter, photo):
    photos = [photo, photo[:, ::-1].copy(), photo[:20], photo[::-1].copy()]
    calls = []

    def strongest_channel(images):
        calls.append(len(images))
        return images.float()

    own = Predictor(segmenter, device="cpu")
    own.backend.run.logits_fn = strongest_channel
    together = own(photos)
    assert sorted(calls) == [1, 3]
    for one, prediction in zip(photos, together, strict=True):
        assert np.array_equal(prediction.labels, one.argmax(axis=2))
        assert np.array_equal(prediction.image, one)
    assert own([]) == []


@pytest.fixture
def only_new_objects():
    """`gc.get_objects()` leaves out the million objects that are there already."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.parametrize("name", ["whole", "paddle"])
def test_a_long_list_holds_no_more_logits_than_a_short_one(segmenter, photo, name, only_new_objects):
    """Counted while the network runs: views that wait for logits or hold them, and the bytes that they hold."""
    own = Predictor(segmenter, device="cpu", protocol=name)
    own.backend.run.batch = 4
    held = []

    def strongest_channel(images):
        views = [view for view in gc.get_objects() if type(view) is View]  # isinstance() wakes lazy objects of torch
        held.append((len(views), sum(logits.nbytes for view in views for logits in view._logits.values())))
        return images.float()

    own.backend.run.logits_fn = strongest_channel
    most = {}
    for count in (8, 24):
        held.clear()
        photos = [np.roll(photo, shift, axis=1) for shift in range(count)]
        found = own(photos)
        most[count] = [max(values) for values in zip(*held, strict=True)]
        assert len(held) < count * len(own.protocol.scales)  # calls are still shared
        assert all(np.array_equal(one.image, each) for one, each in zip(found, photos, strict=True))
    assert most[24] == most[8]


def test_the_small_overlay_of_a_large_image_shows_every_second_pixel(segmenter, tmp_path):
    pixels = np.random.default_rng(1).integers(0, 256, (30, 2100, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    tiled = Predictor(segmenter, device="cpu", tile=64, overlap=16, memory=6 * 7 * 4 * 3 * 2100)  # seven rows
    tiled.backend.run.logits_fn = lambda images: images.float()  # three classes: the strongest channel
    tiled.segment_file(
        tmp_path / "wide.png", tmp_path / "labels.png", ids="train", overlay_path=tmp_path / "small.png", alpha=1.0
    )
    labels = decode_mask((tmp_path / "labels.png").read_bytes(), "labels")
    assert (labels == pixels.argmax(axis=2)).mean() > 0.99  # two channels may be alike but for the blending's rounding
    shown = read_image(tmp_path / "small.png")[:15, :1050]
    assert np.array_equal(shown, segmenter.label_space.palette[labels[::2, ::2]])


@pytest.mark.parametrize("memory", [0, -1])
def test_memory_that_makes_no_sense(memory, segmenter):
    with pytest.raises(ConfigError, match=f"memory must be at least 1, not {memory}"):
        Predictor(segmenter, memory=memory)
