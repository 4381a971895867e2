"""An augmentation of your own: an albumentations transform, or a function of image, labels and a random generator.

python examples/own_augmentation.py runs/own_augmentation
"""

import sys

import albumentations as A
import numpy as np
from numpy.typing import NDArray

import resnest_seg

PIPELINE = A.Compose(
    [
        A.RandomResizedCrop(size=(96, 96), scale=(0.3, 1.0)),
        A.HorizontalFlip(p=0.5),
        A.RandomBrightnessContrast(p=0.5),
        A.GaussNoise(p=0.3),
    ]
)
"""No Normalize and no ToTensor: images stay uint8 0..255, and the model normalises them."""


def night(
    image: NDArray[np.uint8], labels: NDArray[np.uint8], random: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A crop of one size, darkened by chance; it draws from `random` alone, so that runs resume exactly."""
    top, left = (int(random.integers(side - 95)) for side in labels.shape)
    crop = (slice(top, top + 96), slice(left, left + 96))
    return (image[crop] * random.uniform(0.3, 1.0)).astype(np.uint8), labels[crop]


def main(output: str) -> None:
    """Train on drawn street scenes with both, one after the other."""
    config = {
        "model": {"encoder": "resnest14_tiny", "head": "fcn"},
        "data": {"dataset": "synthetic", "check": 0},
        "train": {"epochs": None, "iterations": 8, "batch_size": 4},
        "eval": {"limit": 4},
    }
    for name, transform in (("pipeline", PIPELINE), ("night", night)):
        result = resnest_seg.fit(config, transform=transform, output=f"{output}_{name}")
        print(f"{name}: mIoU {100 * result.best_score:.1f} after {result.step} steps")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "runs/own_augmentation")
