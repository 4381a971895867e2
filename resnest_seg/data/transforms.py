"""Training augmentation of image and labels together, decided by (seed, epoch, index) alone.

Every sample has its own random stream, independent of what a worker process drew before. So the samples do not depend
on the number of workers or processes, and a resumed run needs no replay.

The two published recipes are pure functions with the geometry and resampling of the originals; further options are
albumentations transforms.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else importing it queries the network for a newer release

import albumentations as A
import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.random import Generator
from numpy.typing import NDArray

from resnest_seg.config import DataConfig
from resnest_seg.errors import ConfigError, unknown_name
from resnest_seg.io.resize import canvas_size, long_edge_size, resized_bands
from resnest_seg.labels import IGNORE_LABEL, ignore_value

Pixels = NDArray[Any]
"""Image [H, W, C] of uint8, uint16, int16 or float32, or labels [H, W]."""

Pair = tuple[Pixels, Pixels]

MEAN_COLOR = (124, 116, 104)
"""ImageNet's mean colour, rounded; it normalises to nearly zero."""


def sample_seed(seed: int, epoch: int, index: int) -> int:
    """Hash three numbers, such as (seed, epoch, index), to a 32-bit seed."""
    return int(np.random.SeedSequence([seed, epoch, index]).generate_state(1)[0])


def resize_like_pil(image: Pixels, labels: Pixels, size: tuple[int, int]) -> Pair:
    """Resize to (H, W) as PIL does: antialiased bilinear, within a grey level or two; nearest for labels."""
    if image.shape[:2] == size:
        return image, labels
    if size[0] >= image.shape[0] and size[1] >= image.shape[1]:
        # Nothing to antialias, and OpenCV is twice as fast; its plain INTER_LINEAR is an eighth of a grey level darker.
        resized = resized_bands(image, size, interpolation=cv2.INTER_LINEAR_EXACT)
    else:
        values = image if image.dtype == np.uint8 else image.astype(np.float32)
        channels_last = torch.from_numpy(values).permute(2, 0, 1)[None]
        smaller = F.interpolate(channels_last, size=size, mode="bilinear", antialias=True)[0]
        resized = as_type(smaller.permute(1, 2, 0).contiguous().numpy(), image.dtype)
    nearest = cv2.resize(labels, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    return resized, nearest.astype(labels.dtype, copy=False)


def resize_like_opencv(image: Pixels, labels: Pixels, size: tuple[int, int]) -> Pair:
    """Resize to (H, W) as mmsegmentation does: OpenCV's bilinear; nearest for labels."""
    resized = resized_bands(image, size, interpolation=cv2.INTER_LINEAR)
    nearest = cv2.resize(labels, size[::-1], interpolation=cv2.INTER_NEAREST)
    return resized, nearest.astype(labels.dtype, copy=False)


def as_type(pixels: Pixels, kind: np.dtype[Any]) -> Pixels:
    """Pixels of a type; whole numbers are rounded, and clipped to the type's range."""
    if pixels.dtype == kind:
        return pixels
    if kind.kind == "f":
        return pixels.astype(kind)
    return pixels.round().clip(np.iinfo(kind).min, np.iinfo(kind).max).astype(kind)


def pad_to(image: Pixels, labels: Pixels, size: tuple[int, int], *, color: Sequence[float]) -> Pair:
    """Pad right and below to at least (H, W) with a colour of C values; padded labels are ignored."""
    height, width = labels.shape
    below, right = max(size[0] - height, 0), max(size[1] - width, 0)
    if not below and not right:
        return image, labels
    if is_photo(image):
        padded = cv2.copyMakeBorder(image, 0, below, 0, right, cv2.BORDER_CONSTANT, value=tuple(color))
    else:  # OpenCV knows borders of four channels at most
        padded = np.empty((height + below, width + right, image.shape[2]), image.dtype)
        padded[:] = as_type(np.asarray(color, np.float64), image.dtype)
        padded[:height, :width] = image
    ignored = cv2.copyMakeBorder(labels, 0, below, 0, right, cv2.BORDER_CONSTANT, value=(ignore_value(labels),))
    return padded.astype(image.dtype, copy=False), ignored.astype(labels.dtype, copy=False)


def is_photo(image: Pixels) -> bool:
    """True for 8-bit RGB, which colour augmentations are for."""
    return image.dtype == np.uint8 and image.shape[2] == 3


def flipped(image: Pixels, labels: Pixels) -> Pair:
    """Flip horizontally."""
    if not is_photo(image):
        return np.ascontiguousarray(image[:, ::-1]), np.ascontiguousarray(labels[:, ::-1])
    return cv2.flip(image, 1).astype(np.uint8, copy=False), cv2.flip(labels, 1).astype(labels.dtype, copy=False)


def random_crop(image: Pixels, labels: Pixels, size: tuple[int, int], random: Generator) -> Pair:
    """Crop a window of (H, W), at most the whole image, at a uniform random position."""
    top = int(random.integers(max(labels.shape[0] - size[0], 0) + 1))
    left = int(random.integers(max(labels.shape[1] - size[1], 0) + 1))
    window = (slice(top, top + size[0]), slice(left, left + size[1]))
    return image[window], labels[window]


def varied_crop(image: Pixels, labels: Pixels, size: tuple[int, int], random: Generator) -> Pair:
    """Repeat `random_crop` up to ten times while one class covers 75 % or more: mmsegmentation's `cat_max_ratio`.

    Of multi-label bits, each combination of labels counts as a class.
    """
    crop = random_crop(image, labels, size, random)
    for _ in range(10):
        counts = np.bincount(crop[1].ravel(), minlength=256)[: ignore_value(crop[1])]
        present = counts[counts > 0]
        if len(present) > 1 and present.max() / present.sum() < 0.75:
            break
        crop = random_crop(image, labels, size, random)
    return crop


def photometric_distortion(image: Pixels, random: Generator) -> Pixels:
    """Apply mmsegmentation's PhotoMetricDistortion: brightness, contrast, saturation, hue, each half of the time."""

    def scaled(pixels: Pixels, alpha: float, beta: float = 0.0) -> Pixels:
        result: Pixels = np.clip(pixels.astype(np.float32) * alpha + beta, 0, 255).astype(np.uint8)
        return result

    def contrast(pixels: Pixels) -> Pixels:
        return scaled(pixels, random.uniform(0.5, 1.5)) if random.integers(2) else pixels

    if random.integers(2):
        image = scaled(image, 1.0, random.uniform(-32, 32))
    contrast_first = random.integers(2) == 1
    if contrast_first:
        image = contrast(image)
    if random.integers(2):
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV).astype(np.uint8, copy=False)
        hsv[..., 1] = scaled(hsv[..., 1], random.uniform(0.5, 1.5))
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB).astype(np.uint8, copy=False)
    if random.integers(2):
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV).astype(np.uint8, copy=False)
        hsv[..., 0] = (hsv[..., 0].astype(int) + int(random.integers(-18, 18))) % 180
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB).astype(np.uint8, copy=False)
    return image if contrast_first else contrast(image)


def encoding_recipe(image: Pixels, labels: Pixels, data: DataConfig, random: Generator) -> Pair:
    """Apply PyTorch-Encoding's recipe: flip, uniform long edge, black padding right and below, crop."""
    low, high = int(data.base_size * data.scale_min), int(data.base_size * data.scale_max)
    if random.random() < data.flip:  # first, so that the padding stays right and below
        image, labels = flipped(image, labels)
    long = int(random.integers(max(low, 1), max(high, low, 1) + 1))
    size = long_edge_size(labels.shape[0], labels.shape[1], long)
    crop = (data.crop_size, data.crop_width or data.crop_size)
    image, labels = pad_to(*resize_like_pil(image, labels, size), crop, color=padding_of(image, data))
    return random_crop(image, labels, crop, random)


def padding_of(image: Pixels, data: DataConfig) -> Sequence[float]:
    """The colour of padding: black of photos; of other bands their mean, because 0 may be far from all data."""
    if data.bands is None or data.pixel_mean is None:
        return [0.0] * image.shape[2]
    return data.pixel_mean


def mmseg_recipe(image: Pixels, labels: Pixels, data: DataConfig, random: Generator) -> Pair:
    """Apply mmsegmentation's recipe: canvas times a uniform ratio, varied crop, flip, photometric distortion, pad."""
    ratio = random.uniform(data.scale_min, data.scale_max)
    canvas = (max(int(data.long_edge * ratio), 1), max(int(data.base_size * ratio), 1))
    crop = (data.crop_size, data.crop_width or data.crop_size)
    image, labels = resize_like_opencv(image, labels, canvas_size(labels.shape[0], labels.shape[1], canvas))
    image, labels = varied_crop(image, labels, crop, random)
    if random.random() < data.flip:
        image, labels = flipped(image, labels)
    return pad_to(photometric_distortion(image, random), labels, crop, color=MEAN_COLOR)


RECIPES: dict[str, Callable[[Pixels, Pixels, DataConfig, Generator], Pair]] = {
    "encoding": encoding_recipe,
    "mmseg": mmseg_recipe,
}


def mmseg_geometry(image: Pixels, labels: Pixels, data: DataConfig, random: Generator) -> Pair:
    """Apply mmsegmentation's recipe without its colours, and without its look at the classes of a crop."""
    ratio = random.uniform(data.scale_min, data.scale_max)
    canvas = (max(int(data.long_edge * ratio), 1), max(int(data.base_size * ratio), 1))
    crop = (data.crop_size, data.crop_width or data.crop_size)
    image, labels = resize_like_opencv(image, labels, canvas_size(labels.shape[0], labels.shape[1], canvas))
    image, labels = random_crop(image, labels, crop, random)
    if random.random() < data.flip:
        image, labels = flipped(image, labels)
    return pad_to(image, labels, crop, color=MEAN_COLOR)


GEOMETRIES: dict[str, Callable[[Pixels, Pixels, DataConfig, Generator], Pair]] = {
    "encoding": encoding_recipe,
    "mmseg": mmseg_geometry,
}
"""The recipes without colours, for images without labels."""


@dataclasses.dataclass(frozen=True)
class TrainTransform:
    """The augmentation of training samples: a published recipe and further options.

    Attributes:
        data: The sizes, the recipe's name and the options.
        extras: The further options as one albumentations pipeline; None without any.
        band_extras: The same for images in 0..1, filled with 0.5.
    """

    data: DataConfig
    extras: A.Compose | None
    band_extras: A.Compose | None = None

    def check(self, image: Pixels) -> None:
        """Refuse augmentations that change the colours of 8-bit RGB, for other images [H, W, C].

        Raises:
            ConfigError: Names the key.
        """
        if is_photo(image):
            return
        what = f"the images are {image.dtype} of {image.shape[2]} bands"
        if self.data.recipe == "mmseg":
            raise ConfigError(
                "data.recipe mmseg changes colours (its photometric distortion), which is for 8-bit RGB, and "
                f"{what}: set data.recipe to encoding."
            )
        if self.data.color_jitter:
            raise ConfigError(
                f"data.color_jitter is for 8-bit RGB, and {what}: set it to 0. Flips, scales, crops, data.rotate, "
                "data.blur, data.coarse_dropout and data.class_mix work for all images."
            )

    @classmethod
    def from_config(cls, data: DataConfig, *, ignore: int = IGNORE_LABEL) -> TrainTransform:
        """Build the transform of a config.

        Args:
            data: The recipe and the options.
            ignore: Value of ignored pixels, `LabelSpace.ignore_value`.

        Raises:
            ConfigError: Unknown recipe.
        """
        if data.recipe not in RECIPES:
            raise unknown_name("data.recipe", data.recipe, RECIPES)
        return cls(data, _further(data, MEAN_COLOR, ignore), _further(data, 0.5, ignore))

    @property
    def class_mix(self) -> float:
        """Probability of ClassMix after it."""
        return self.data.class_mix

    def weak(self, image: Pixels, labels: Pixels, *, seed: int) -> Pair:
        """Scale, crop, pad and flip an image without labels, as the recipe does, and change no colour.

        Args:
            image: [H, W, C].
            labels: [H, W], ignored where there is no data.
            seed: Decides it.

        Returns:
            Both as [crop, crop]; the labels of the padding are ignored.
        """
        image, labels = GEOMETRIES[self.data.recipe](image, labels, self.data, np.random.default_rng(seed))
        return np.ascontiguousarray(image), np.ascontiguousarray(labels)

    def __call__(self, image: Pixels, labels: Pixels, *, seed: int) -> Pair:
        """Augment one sample: image [H, W, 3] and labels [H, W] -> [crop, crop, 3] and [crop, crop]."""
        image, labels = RECIPES[self.data.recipe](image, labels, self.data, np.random.default_rng(seed))
        image, labels = np.ascontiguousarray(image), np.ascontiguousarray(labels)
        if self.extras is None:
            return image, labels
        if self.data.bands is not None or not is_photo(image):
            return self._extras_of_bands(image, labels, seed)
        self.extras.set_random_seed(seed)
        sample = self.extras(image=image, mask=labels)
        return sample["image"], sample["mask"]

    def _extras_of_bands(self, image: Pixels, labels: Pixels, seed: int) -> Pair:
        """The further options on any bands: four at a time, which OpenCV can turn, each with the same random numbers.

        albumentations takes floats for values in 0..1, so that each band is scaled to that, its padding to 0.5.
        """
        assert self.band_extras is not None
        middle = np.asarray(padding_of(image, self.data), np.float32)
        values = image.astype(np.float32) - middle
        span = np.maximum(2 * np.abs(values).max(axis=(0, 1)), np.float32(1e-30))
        values = values / span + np.float32(0.5)
        parts, mask = [], labels
        count = image.shape[2]
        for first in range(0, count, 4):
            start = min(first, max(count - 4, 0))  # OpenCV places pixels of fewer channels a 32nd of a pixel apart
            self.band_extras.set_random_seed(seed)
            sample = self.band_extras(image=np.ascontiguousarray(values[..., start : first + 4]), mask=labels)
            mask = sample["mask"]
            parts.append(sample["image"].reshape(*mask.shape, -1)[..., first - start :])
        return as_type((np.concatenate(parts, axis=2) - np.float32(0.5)) * span + middle, image.dtype), mask


def _further(data: DataConfig, fill: tuple[int, ...] | float, ignore: int) -> A.Compose | None:
    """The further options of a config as one pipeline; None without any."""
    chosen: list[A.BasicTransform] = []
    if data.rotate:
        chosen.append(
            A.Rotate(
                limit=data.rotate,
                mask_interpolation=cv2.INTER_NEAREST,
                fill=fill,
                fill_mask=ignore,
                p=1.0,
            )
        )
    if data.color_jitter:
        strength = data.color_jitter
        limits = (max(1 - strength, 0), 1 + strength)
        chosen.append(
            A.ColorJitter(brightness=limits, contrast=limits, saturation=limits, hue=(-strength / 4, strength / 4), p=1)
        )
    if data.blur:
        chosen.append(A.GaussianBlur(sigma_limit=(0.1, 1.0), p=data.blur))
    if data.coarse_dropout:
        chosen.append(A.CoarseDropout(num_holes_range=(1, 4), fill=fill, fill_mask=ignore,
                                      p=data.coarse_dropout))  # fmt: skip
    return A.Compose(chosen) if chosen else None


Transform = Callable[..., Any]
"""An augmentation of the user's own: an albumentations transform, or a function of image [H, W, 3], labels [H, W] and a
random generator that returns both."""


@dataclasses.dataclass(frozen=True)
class OwnTransform:
    """An augmentation of the user's own in the place of `TrainTransform`, seeded like it.

    Attributes:
        transform: See `Transform`; all samples must come out at one size, or they cannot be stacked.
        class_mix: Probability of ClassMix after it, 0..1.
    """

    transform: Transform
    class_mix: float = 0.0

    def weak(self, image: Pixels, labels: Pixels, *, seed: int) -> Pair:
        """Augment an image without labels: as any other."""
        return self(image, labels, seed=seed)

    def __call__(self, image: Pixels, labels: Pixels, *, seed: int) -> Pair:
        """Augment one sample: image [H, W, C], of its own type, and labels [H, W] -> both at another size.

        Labels keep their type, uint8, or uint16 of multi-label bits.

        Raises:
            ConfigError: It gives something else: another type, a tensor, or image and labels of different sizes.
        """
        kinds = {"image": image.dtype, "labels": labels.dtype}
        if isinstance(self.transform, A.BasicTransform | A.BaseCompose):
            self.transform.set_random_seed(seed)
            sample = self.transform(image=image, mask=labels)
            image, labels = sample["image"], sample["mask"]
        else:
            image, labels = self.transform(image, labels, np.random.default_rng(seed))
        for name, value, dimensions in (("image", image, 3), ("labels", labels, 2)):
            if not isinstance(value, np.ndarray) or value.dtype != kinds[name] or value.ndim != dimensions:
                kind = f"{getattr(value, 'dtype', '')} {list(np.shape(value))}".strip()
                raise ConfigError(
                    f"transform must give {kinds[name]} {name} [H, W{', C' * (dimensions == 3)}] as an array, not a "
                    f"{type(value).__name__} {kind}: leave out ToTensor and Normalize, which the model does itself."
                )
        if image.shape[:2] != labels.shape:
            raise ConfigError(f"transform gave an image of {image.shape[:2]} and labels of {labels.shape} pixels.")
        return np.ascontiguousarray(image), np.ascontiguousarray(labels)


def sample_transform(transform: Transform, *, class_mix: float = 0.0) -> TrainTransform | OwnTransform:
    """A transform of any kind as one that is seeded by sample; a `TrainTransform` is its own.

    Raises:
        ConfigError: It is no function.
    """
    if isinstance(transform, TrainTransform | OwnTransform):
        return transform
    if not callable(transform):
        kind = type(transform).__name__
        raise ConfigError(f"transform must be an albumentations pipeline, or a function of image, labels and a random "
                          f"generator, not {kind}.")  # fmt: skip
    return OwnTransform(transform, class_mix)


def class_mix(sample: Pair, other: Pair, random: Generator) -> Pair:
    """Paste the pixels of half of another sample's classes onto a sample of the same size.

    ClassMix, Olsson et al., https://arxiv.org/abs/2007.07936; ignored pixels are not pasted.
    """
    (image, labels), (other_image, other_labels) = sample, other
    present = np.flatnonzero(np.bincount(other_labels.ravel(), minlength=256)[:IGNORE_LABEL])
    if not len(present):
        return sample
    chosen = random.choice(present, size=(len(present) + 1) // 2, replace=False)
    pasted = np.isin(other_labels, chosen)
    return np.where(pasted[..., None], other_image, image), np.where(pasted, other_labels, labels)
