"""Training augmentation of image and labels together, decided by (seed, epoch, index) alone.

Every sample's random stream starts from its own number, not from what a worker process drew before. So the samples do
not depend on the number of workers or processes, and a resumed run needs no replay.
"""

from __future__ import annotations

import dataclasses
import os

import cv2
import numpy as np
from numpy.typing import NDArray

from resnest_seg.config import DataConfig
from resnest_seg.labels import IGNORE_LABEL

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # or importing it asks the network for a newer release
import albumentations as A


def sample_seed(seed: int, epoch: int, index: int) -> int:
    """The seed of one sample's augmentation (or of whatever three numbers identify), 32 bits, well mixed."""
    return int(np.random.SeedSequence([seed, epoch, index]).generate_state(1)[0])


@dataclasses.dataclass(frozen=True)
class TrainTransform:
    """The authors' training recipe (PyTorch-Encoding, ADE20K).

    The long edge becomes a uniform random integer between `scale_min` and `scale_max` times `base_size`; what is
    smaller than the crop is padded right and below with black pixels, whose labels are ignored; then a random crop and
    a horizontal flip. Shrinking averages areas, as PIL's bilinear filter does there; labels take the nearest pixel.
    """

    pipeline: A.Compose

    @classmethod
    def from_config(cls, data: DataConfig) -> TrainTransform:
        """Build the recipe for the sizes of a config."""
        long_edges = range(round(data.base_size * data.scale_min), round(data.base_size * data.scale_max) + 1)
        return cls(
            A.Compose(
                [
                    A.LongestMaxSize(
                        max_size=list(long_edges),
                        interpolation=cv2.INTER_LINEAR,
                        # INTER_NEAREST would shift labels by up to half a pixel against the image.
                        mask_interpolation=cv2.INTER_NEAREST_EXACT,
                        area_for_downscale="image",
                    ),
                    A.PadIfNeeded(
                        min_height=data.crop_size,
                        min_width=data.crop_size,
                        position="top_left",
                        border_mode=cv2.BORDER_CONSTANT,
                        fill=0,
                        fill_mask=IGNORE_LABEL,
                    ),
                    A.RandomCrop(height=data.crop_size, width=data.crop_size),
                    A.HorizontalFlip(p=data.flip),
                ]
            )
        )

    def __call__(
        self, image: NDArray[np.uint8], labels: NDArray[np.uint8], *, seed: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Cut one training sample: [H, W, 3] and [H, W] -> [crop, crop, 3] and [crop, crop]."""
        self.pipeline.set_random_seed(seed)
        sample = self.pipeline(image=image, mask=labels)
        return sample["image"], sample["mask"]
