"""Strong views of an image, which a model must label as it labels the image itself: other colours and blur.

Those of UniMatch (https://arxiv.org/abs/2208.09910): ColorJitter(0.5, 0.5, 0.5, 0.25) of probability 0.8, grey of 0.2,
Gaussian blur of 0.5. Other images than 8-bit RGB have no such colours, and are blurred alone.
"""

from __future__ import annotations

import functools
import os
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else importing it queries the network for a newer release
import albumentations as A

from resnest_seg.data.transforms import is_photo

JITTER, JITTERED, GREY, BLURRED = (0.5, 0.5, 0.5, 0.25), 0.8, 0.2, 0.5
"""Changes of brightness, contrast, saturation and hue, and the probabilities of jitter, grey and blur."""

SIGMA = (0.1, 2.0)
"""Range of the blur's standard deviation in pixels."""


@functools.cache
def _changes() -> A.Compose:
    """The changes of a photo as one pipeline."""
    brightness, contrast, saturation, hue = JITTER
    return A.Compose(
        [
            A.ColorJitter(
                brightness=(1 - brightness, 1 + brightness),
                contrast=(1 - contrast, 1 + contrast),
                saturation=(1 - saturation, 1 + saturation),
                hue=(-hue, hue),
                p=JITTERED,
            ),
            A.ToGray(p=GREY),
            A.GaussianBlur(blur_limit=0, sigma_limit=SIGMA, p=BLURRED),
        ]
    )


def strong_view(image: NDArray[Any], *, seed: int) -> NDArray[Any]:
    """Change the colours of an image [H, W, C] and blur it, as the seed says; its type and its pixels' places stay."""
    if is_photo(image):
        pipeline = _changes()
        pipeline.set_random_seed(seed)
        changed: NDArray[Any] = pipeline(image=image)["image"]
        return changed
    random = np.random.default_rng(seed)
    blurred, sigma = random.random() < BLURRED, random.uniform(*SIGMA)
    if not blurred:
        return image
    bands = [cv2.GaussianBlur(np.ascontiguousarray(band), (0, 0), sigma) for band in np.moveaxis(image, 2, 0)]
    return np.stack(bands, axis=2).astype(image.dtype, copy=False)
