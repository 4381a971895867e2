"""From a checkpoint to labels."""

import numpy as np
import pytest
import torch
from PIL import Image

from resnest_seg.checkpoint import Checkpoint
from resnest_seg.config import ModelConfig, RunConfig
from resnest_seg.errors import CheckpointError, ConfigError, DatasetError
from resnest_seg.predictor import Predictor
from resnest_seg.segmenter import build_segmenter


@pytest.fixture(scope="module")
def predictor(tmp_path_factory, tiny_space):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("run") / "best.safetensors"
    config = RunConfig(model=ModelConfig(encoder="resnest14_tiny"))
    Checkpoint(config, tiny_space, build_segmenter("resnest14_tiny", num_classes=3).state_dict()).save(path)
    return Predictor.from_checkpoint(path.parent, device="cpu")


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


def test_bad_input(predictor, tiny_space, tmp_path):
    with pytest.raises(ConfigError, match=r"uint8 \[H, W, 3\], not float64 \[3, 4\]"):
        predictor(np.zeros((3, 4)))
    with pytest.raises(DatasetError, match="cannot read"):
        predictor(tmp_path / "missing.jpg")
    with pytest.raises(ConfigError, match=r"not uint8 \[0, 5, 3\]"):
        predictor(np.zeros((0, 5, 3), np.uint8))
    with pytest.raises(ConfigError, match="device 'meta' cannot be used"):
        Predictor(predictor.segmenter, device="meta")
    with pytest.raises(ConfigError, match="device 'gpu' cannot be used"):
        Predictor(predictor.segmenter, device="gpu")
    with pytest.raises(ConfigError, match="unknown protocol"):
        Predictor(predictor.segmenter, device="cpu", protocol="holy")
    with pytest.raises(CheckpointError, match="no label space"):
        Predictor(build_segmenter("resnest14_tiny", num_classes=3), device="cpu")
