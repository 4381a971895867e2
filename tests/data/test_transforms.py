"""Training augmentation: image and labels stay together, the recipe is the authors', seeds decide."""

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from resnest_seg.config import DataConfig
from resnest_seg.data.transforms import (
    MEAN_COLOR,
    TrainTransform,
    class_mix,
    encoding_recipe,
    mmseg_recipe,
    photometric_distortion,
    resize_like_pil,
    sample_seed,
    varied_crop,
)
from resnest_seg.errors import ConfigError
from resnest_seg.io.resize import canvas_size, long_edge_size
from resnest_seg.labels import IGNORE_LABEL


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
    transform = TrainTransform.from_config(DataConfig(base_size=60, crop_size=64, scale_min=1, scale_max=1, flip=1))
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


def scene(seed, height=150, width=201):
    """A smooth photo, and labels in blobs."""
    random = np.random.default_rng(seed)
    photo = cv2.resize(
        random.integers(0, 256, (8, 10, 3), dtype=np.uint8), (width, height), interpolation=cv2.INTER_CUBIC
    )
    labels = cv2.resize(random.integers(0, 6, (6, 7), dtype=np.uint8), (width, height), interpolation=cv2.INTER_NEAREST)
    return photo, labels


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("shape", [(150, 201), (201, 150), (90, 90)])
def test_the_encoding_recipe_is_the_authors_pil_code(seed, shape):
    """The original's steps in PIL, with the numbers that the recipe draws: within a grey level, labels equal."""
    data = DataConfig(base_size=160, crop_size=120)
    photo, labels = scene(seed, *shape)
    out, cut = encoding_recipe(photo, labels, data, np.random.default_rng(seed))
    random = np.random.default_rng(seed)
    flip, long = random.random() < 0.5, int(random.integers(80, 321))
    image, mask = Image.fromarray(photo), Image.fromarray(labels)
    if flip:
        image, mask = (part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for part in (image, mask))
    w, h = image.size
    ow, oh = (int(1.0 * w * long / h + 0.5), long) if h > w else (long, int(1.0 * h * long / w + 0.5))
    image, mask = image.resize((ow, oh), Image.BILINEAR), mask.resize((ow, oh), Image.NEAREST)
    border = (0, 0, max(120 - ow, 0), max(120 - oh, 0))
    image, mask = ImageOps.expand(image, border=border, fill=0), ImageOps.expand(mask, border=border, fill=IGNORE_LABEL)
    top, left = int(random.integers(image.size[1] - 120 + 1)), int(random.integers(image.size[0] - 120 + 1))
    box = (left, top, left + 120, top + 120)
    image, mask = np.array(image.crop(box)), np.array(mask.crop(box))
    difference = np.abs(out.astype(int) - image)
    assert difference.max() <= 2  # PIL rounds between its two passes
    assert difference.mean() < 0.25
    assert abs((out.astype(int) - image).mean()) < 0.02  # to no side
    assert np.array_equal(cut, mask)


@pytest.mark.parametrize("seed", range(8))
def test_the_mmseg_recipe_is_mmsegmentations_code(seed):
    """Its geometry written plainly, with the numbers that the recipe draws; colours are distorted, so labels decide."""
    data = DataConfig(recipe="mmseg", base_size=96, long_edge=400, crop_size=90, crop_width=110)
    photo, labels = scene(seed)
    out, cut = mmseg_recipe(photo, labels, data, np.random.default_rng(seed))
    assert out.shape == (90, 110, 3)
    random = np.random.default_rng(seed)
    ratio = random.uniform(0.5, 2.0)
    long, short = int(400 * ratio), int(96 * ratio)
    factor = min(long / max(labels.shape), short / min(labels.shape))
    h, w = int(labels.shape[0] * factor + 0.5), int(labels.shape[1] * factor + 0.5)
    resized = cv2.resize(labels, (w, h), interpolation=cv2.INTER_NEAREST)

    def crop():
        top, left = int(random.integers(max(h - 90, 0) + 1)), int(random.integers(max(w - 110, 0) + 1))
        return resized[top : top + 90, left : left + 110]

    part = crop()
    for _ in range(10):
        _, counts = np.unique(part, return_counts=True)
        if len(counts) > 1 and counts.max() / counts.sum() < 0.75:
            break
        part = crop()
    if random.random() < 0.5:
        part = part[:, ::-1]
    expected = np.full((90, 110), IGNORE_LABEL, np.uint8)
    expected[: part.shape[0], : part.shape[1]] = part
    assert np.array_equal(cut, expected)
    assert (out[cut == IGNORE_LABEL] == MEAN_COLOR).all()


def test_sizes_round_as_the_originals_do():
    assert long_edge_size(512, 683, 520) == (390, 520)
    assert long_edge_size(683, 512, 521) == (521, 391)
    assert canvas_size(512, 683, (2048, 512)) == (512, 683)
    assert canvas_size(300, 1500, (2048, 512)) == (410, 2048)
    assert min(long_edge_size(1, 5000, 100)) == 1


def test_pil_is_matched_for_every_scale():
    photo, labels = scene(0)
    for long in (40, 77, 150, 201, 333):
        size = long_edge_size(*labels.shape, long)
        image, mask = resize_like_pil(photo, labels, size)
        assert (
            np.abs(image.astype(int) - np.array(Image.fromarray(photo).resize(size[::-1], Image.BILINEAR))).max() <= 1
        )
        assert np.array_equal(mask, np.array(Image.fromarray(labels).resize(size[::-1], Image.NEAREST)))


def test_a_crop_of_one_class_is_drawn_again():
    """Labels of which one corner is varied: the rule finds it far more often than chance."""
    labels = np.zeros((200, 200), np.uint8)
    labels[100:, 100:] = np.random.default_rng(0).integers(0, 5, (100, 100))
    image = np.zeros((200, 200, 3), np.uint8)

    def share(cut):
        return np.bincount(cut.ravel()).max() / cut.size

    crops = [varied_crop(image, labels, (60, 60), np.random.default_rng(seed))[1] for seed in range(100)]
    assert sum(share(cut) < 0.75 for cut in crops) > 85
    ignored = np.full((80, 80), IGNORE_LABEL, np.uint8)  # nothing to choose from: no endless loop
    assert (varied_crop(image[:80, :80], ignored, (60, 60), np.random.default_rng(0))[1] == IGNORE_LABEL).all()


def test_photometric_distortion_changes_colours_within_its_limits():
    grey = np.full((20, 20, 3), 100, np.uint8)
    outs = np.array(
        [photometric_distortion(grey, np.random.default_rng(seed))[0, 0].astype(int) for seed in range(300)]
    )
    assert (outs == 100).all(axis=1).mean() > 0.1  # everything is left alone in about a quarter of the cases
    assert outs.min() >= int((100 - 32) * 0.5) - 2
    assert outs.max() <= int((100 + 32) * 1.5) + 2
    assert (outs.max(axis=1) - outs.min(axis=1)).max() <= 2  # grey has no hue and no saturation
    colour = np.full((4, 4, 3), (200, 60, 60), np.uint8)
    turned = [photometric_distortion(colour, np.random.default_rng(seed))[0, 0].astype(int) for seed in range(100)]
    assert len({tuple(pixel) for pixel in turned}) > 50


@pytest.mark.parametrize("recipe", ["encoding", "mmseg"])
def test_options_keep_image_and_labels_aligned(recipe):
    """A rotated, dropped-out sample: where a label counts, the image shows its colour."""
    photo, _ = scene(1)
    labels = np.repeat(np.repeat(np.arange(6, dtype=np.uint8).reshape(2, 3), 75, axis=0), 67, axis=1)
    coloured = np.stack([labels * 40] * 3, axis=-1)
    data = DataConfig(
        recipe=recipe, base_size=200, crop_size=120, rotate=30, coarse_dropout=1.0, scale_min=1, scale_max=1
    )
    transform = TrainTransform.from_config(data)
    for seed in range(10):
        out, cut = transform(coloured, labels, seed=seed)
        assert out.shape == (120, 120, 3)
        assert (cut == IGNORE_LABEL).any()
        inside = cv2.erode((cut != IGNORE_LABEL).astype(np.uint8), np.ones((5, 5))) > 0
        flat = inside & (cv2.erode(cut, np.ones((9, 9))) == cv2.dilate(cut, np.ones((9, 9))))
        flat[:3] = flat[-3:] = flat[:, :3] = flat[:, -3:] = False  # what was turned in from outside is mixed there
        assert flat.sum() > 1000
        if recipe == "encoding":
            assert np.abs(out[..., 0][flat].astype(int) - cut[flat].astype(int) * 40).max() <= 2
        again = transform(coloured, labels, seed=seed)
        assert np.array_equal(out, again[0])
        assert np.array_equal(cut, again[1])
    for option in ({"color_jitter": 0.5}, {"blur": 1.0}):
        extra = TrainTransform.from_config(DataConfig(base_size=200, crop_size=120, **option))
        plain = TrainTransform.from_config(DataConfig(base_size=200, crop_size=120))
        assert not np.array_equal(extra(photo, labels, seed=3)[0], plain(photo, labels, seed=3)[0])
        assert np.array_equal(extra(photo, labels, seed=3)[1], plain(photo, labels, seed=3)[1])


def test_an_unknown_recipe_is_named():
    with pytest.raises(ConfigError, match=r"unknown data.recipe 'mmsegm'. Did you mean 'mmseg'"):
        TrainTransform.from_config(DataConfig(recipe="mmsegm"))


def test_class_mix_pastes_half_of_the_classes():
    image, labels = np.zeros((8, 8, 3), np.uint8), np.full((8, 8), 9, np.uint8)
    other_labels = np.repeat(np.array([0, 1, 2, IGNORE_LABEL], np.uint8), 16).reshape(8, 8)
    other = np.full((8, 8, 3), 200, np.uint8)
    seen = set()
    for seed in range(30):
        mixed, cut = class_mix((image, labels), (other, other_labels), np.random.default_rng(seed))
        pasted = sorted(set(np.unique(cut)) - {9})
        assert len(pasted) == 2  # half of three, rounded up; never the ignored
        assert IGNORE_LABEL not in pasted
        assert np.array_equal(mixed[..., 0] == 200, np.isin(other_labels, pasted))
        assert (cut[mixed[..., 0] == 0] == 9).all()
        seen |= {tuple(pasted)}
    assert len(seen) == 3
    nothing = np.full((8, 8), IGNORE_LABEL, np.uint8)
    assert np.array_equal(class_mix((image, labels), (other, nothing), np.random.default_rng(0))[1], labels)
