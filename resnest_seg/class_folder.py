"""Images in folders named after their classes, and the samples that a classifier is trained and validated on."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from resnest_seg.datasets import IMAGE_SUFFIXES
from resnest_seg.errors import DatasetError, printable
from resnest_seg.loader import run_loader
from resnest_seg.photos import read_image
from resnest_seg.pretraining import PretrainConfig
from resnest_seg.transforms import sample_seed


class ClassFolder:
    """`root/split/<class>/*` (also deeper): images, whose folder says what they show, in the order of their paths.

    Args:
        root: The folder that holds the splits.
        split: "train" or "val".

    Attributes:
        names: The classes, sorted; the place of a name is its label.
        paths: The images.
        labels: What they show.

    Raises:
        DatasetError: No such folder, or a class without images.
    """

    def __init__(self, root: str | Path, split: str) -> None:
        folder, self.split = Path(root) / split, split
        classes = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
        if len(classes) < 2:
            raise DatasetError(
                f"{folder} must be a folder with one folder of images for each of at least two classes, and it has "
                f"{len(classes)}. Set data.root to the folder that holds train and val."
            )
        self.names = tuple(printable(path.name) for path in classes)
        self.paths: list[Path] = []
        self.labels: list[int] = []
        for label, place in enumerate(classes):
            found = sorted(path for path in place.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
            if not found:
                raise DatasetError(f"{place} holds no image ({', '.join(IMAGE_SUFFIXES)}).")
            self.paths += found
            self.labels += [label] * len(found)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], int]:
        """An image, RGB [H, W, 3], and its label.

        Raises:
            DatasetError: It cannot be read; names the file.
        """
        return read_image(self.paths[index]), self.labels[index]

    def identity(self) -> str:
        """What tells whether these are the same images in the same order: a hash of their places and classes."""
        places = "\n".join(f"{path.parent.name}/{path.name}" for path in self.paths)
        listed = f"{self.split}\n{self.names}\n{places}".encode("utf-8", "surrogateescape")
        return hashlib.sha256(listed).hexdigest()


class ClassBatch(NamedTuple):
    """Samples of one size, stacked.

    Attributes:
        images: RGB 0..255, uint8 [N, 3, H, W].
        labels: int64 [N].
        names: The files.
    """

    images: Tensor
    labels: Tensor
    names: list[str]


def train_transform(config: PretrainConfig) -> v2.Transform:
    """A random part of the image at any size and nearly any shape, flipped or not, with changed colours and geometry.

    uint8 [3, H, W] -> uint8 [3, crop, crop].
    """
    own, crop = config.classify, config.data.crop_size
    steps: list[v2.Transform] = [
        v2.RandomResizedCrop((crop, config.data.crop_width or crop), scale=(own.area_min, 1.0), antialias=True),
        v2.RandomHorizontalFlip(config.data.flip),
    ]
    policies = {"auto": v2.AutoAugment, "rand": v2.RandAugment}
    if own.augment in policies:
        steps.append(policies[own.augment](interpolation=v2.InterpolationMode.BILINEAR))
    return v2.Compose(steps)


def eval_transform(config: PretrainConfig) -> v2.Transform:
    """The middle of the resized image: uint8 [3, H, W] -> uint8 [3, crop, crop]."""
    crop = config.data.crop_size
    resize = v2.Resize(round(crop / config.classify.eval_share), antialias=True)
    return v2.Compose([resize, v2.CenterCrop((crop, config.data.crop_width or crop))])


def class_batches(
    dataset: ClassFolder,
    batches: Iterable[Sequence[tuple[int, int]]],
    *,
    transform: v2.Transform,
    seed: int = 0,
    workers: int = 0,
    pin_memory: bool = False,
) -> Generator[ClassBatch, None, None]:
    """Load batches in the given order.

    Args:
        dataset: Where the images come from.
        batches: The (epoch, index) of the samples of each batch; see `resnest_seg.loader.training_batches`.
        transform: Makes all images of a batch equally large; seeded by (seed, epoch, index).
        seed: Decides the augmentation.
        workers: Loader processes; the batches do not depend on their number.
        pin_memory: Put batches into page-locked memory, for copies to a GPU.

    Raises:
        DatasetError: An image cannot be read; names the file.
        ResNeStSegError: A loader process could not be started, or died.
    """
    yield from run_loader(_View(dataset, transform, seed), batches, _collate, workers=workers, pin_memory=pin_memory)


class _View(Dataset["tuple[Tensor, int, str] | DatasetError"]):
    """Samples by (epoch, index). An error is handed on as a value: raised in a worker it would be a traceback."""

    def __init__(self, dataset: ClassFolder, transform: v2.Transform, seed: int) -> None:
        self.dataset, self.transform, self.seed = dataset, transform, seed

    def __getitem__(self, place: tuple[int, int]) -> tuple[Tensor, int, str] | DatasetError:
        epoch, index = place
        try:
            image, label = self.dataset[index]
        except DatasetError as error:
            return error
        with torch.random.fork_rng(devices=[]):  # torchvision draws from torch's global generator
            torch.manual_seed(sample_seed(self.seed, epoch, index))
            pixels: Tensor = self.transform(torch.from_numpy(image).permute(2, 0, 1))
        return pixels, label, printable(str(self.dataset.paths[index]))


def _collate(samples: Sequence[tuple[Tensor, int, str] | DatasetError]) -> ClassBatch | DatasetError:
    good: list[tuple[Tensor, int, str]] = []
    for sample in samples:
        if isinstance(sample, DatasetError):
            return sample
        good.append(sample)
    images, labels, names = zip(*good, strict=True)
    return ClassBatch(torch.stack(images), torch.tensor(labels), list(names))
