"""Training augmentation: image and labels stay together, the recipe is the authors', seeds decide."""

import numpy as np
import pytest

from resnest_seg.config import DataConfig
from resnest_seg.labels import IGNORE_LABEL
from resnest_seg.transforms import TrainTransform, sample_seed


def coded(height, width):
    """An image whose red channel is a smooth ramp across, and labels that are the same ramp in steps."""
    ramp = np.linspace(0, 249, width).astype(np.uint8)
    image = np.repeat(np.repeat(ramp[None, :, None], height, axis=0), 3, axis=2)
    return np.ascontiguousarray(image), np.ascontiguousarray(image[..., 0])


@pytest.mark.parametrize("seed", range(30))
def test_image_and_labels_stay_aligned(seed):
    """Labels are the image's own values: after any augmentation they may differ by one pixel's step of the ramp."""
    image, labels = coded(120, 160)
    transform = TrainTransform.from_config(DataConfig(base_size=160, crop_size=96))
    out, cut = transform(image, labels, seed=seed)
    assert out.shape == (96, 96, 3)
    assert cut.shape == (96, 96)
    real = cut != IGNORE_LABEL
    step = 250 / 160 * 2  # pixels of the ramp at half scale
    assert np.abs(out[..., 0][real].astype(int) - cut[real]).max() <= step
    assert (out[~real] == 0).all()


def test_alignment_is_centred_when_scaling_up():
    """Nearest labels must not be shifted by half a pixel against the bilinear image."""
    image, labels = np.zeros((40, 40, 3), np.uint8), np.zeros((40, 40), np.uint8)
    image[:, 20:], labels[:, 20:] = 200, 1
    transform = TrainTransform.from_config(DataConfig(base_size=40, crop_size=120, scale_min=3, scale_max=3, flip=0))
    out, cut = transform(image, labels, seed=0)
    assert np.array_equal(out[..., 0] > 100, cut == 1)


def test_padding_is_right_and_below_black_and_ignored():
    image, labels = np.full((30, 60, 3), 200, np.uint8), np.ones((30, 60), np.uint8)
    transform = TrainTransform.from_config(DataConfig(base_size=60, crop_size=64, scale_min=1, scale_max=1, flip=0))
    out, cut = transform(image, labels, seed=0)
    assert (cut[:30, :60] == 1).all()
    assert (out[:30, :60] == 200).all()
    assert (cut[30:] == IGNORE_LABEL).all()
    assert (cut[:, 60:] == IGNORE_LABEL).all()
    assert (out[30:] == 0).all()


def test_the_long_edge_is_uniform_between_the_scales():
    """Padding shows how long the long edge became; its distribution is the recipe's."""
    image, labels = np.zeros((20, 100, 3), np.uint8), np.zeros((20, 100), np.uint8)
    transform = TrainTransform.from_config(DataConfig(base_size=100, crop_size=200, scale_min=0.5, scale_max=2.0))
    lengths = []
    for seed in range(600):
        _, cut = transform(image, labels, seed=seed)
        lengths.append(int((cut != IGNORE_LABEL).any(axis=0).sum()))
    assert min(lengths) >= 50
    assert max(lengths) <= 200
    quarters = np.histogram(lengths, bins=4, range=(50, 200))[0] / 600
    assert np.abs(quarters - 0.25).max() < 0.06


def test_flips_happen_half_of_the_time():
    image, labels = coded(32, 32)
    transform = TrainTransform.from_config(DataConfig(base_size=32, crop_size=32, scale_min=1, scale_max=1))
    flipped = sum(bool(transform(image, labels, seed=seed)[1][0, 0] > 100) for seed in range(400))
    assert 160 < flipped < 240


def test_the_seed_decides():
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (80, 90, 3), dtype=np.uint8)
    labels = random.integers(0, 5, (80, 90), dtype=np.uint8)
    transform, other = (TrainTransform.from_config(DataConfig(base_size=90, crop_size=48)) for _ in range(2))
    transform(image, labels, seed=9)  # what came before does not matter
    for seed in (1, 2, 3):
        first, second = transform(image, labels, seed=seed), other(image, labels, seed=seed)
        assert np.array_equal(first[0], second[0])
        assert np.array_equal(first[1], second[1])
    assert not np.array_equal(transform(image, labels, seed=1)[0], transform(image, labels, seed=2)[0])


def test_sample_seeds_differ():
    seeds = {sample_seed(s, e, i) for s in range(4) for e in range(10) for i in range(50)}
    assert len(seeds) == 4 * 10 * 50
