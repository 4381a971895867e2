"""Training of image classifiers, whose encoder a segmenter then starts from: augmented crops, top-1 accuracy.

Images lie in folders that are named after their classes.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from numpy.typing import NDArray
from rich.progress import Progress
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision.transforms import v2

from resnest_seg.config import PretrainConfig
from resnest_seg.data.loader import Division, run_loader
from resnest_seg.data.transforms import sample_seed
from resnest_seg.errors import ConfigError, DatasetError, printable
from resnest_seg.io.images import IMAGE_SUFFIXES, decode_image
from resnest_seg.models.segmenter import Classifier, PixelModel
from resnest_seg.storage.opening import open_source
from resnest_seg.storage.sources import FolderSource, Source
from resnest_seg.training.distributed import StopSignal
from resnest_seg.training.run_folder import CLASSES
from resnest_seg.training.tasks import Moment, StepLoss, TaskDescription, Validation


class ClassFolder:
    """`root/split/<class>/*` (also deeper): images, whose folder says what they show, in the order of their paths.

    Args:
        root: The folder, zip file or address that holds the splits, or a storage that is open.
        split: "train" or "val".

    Attributes:
        names: The classes, sorted; the place of a name is its label.
        source: The storage of the images.
        files: The images, by their names in it.
        labels: What they show.

    Raises:
        DatasetError: No such folder, or a class without images.
    """

    def __init__(self, root: str | Path | Source, split: str) -> None:
        self.source, self.split = open_source(root, zips=()), split
        files = sorted(PurePosixPath(name) for name in self.source.names(split))
        classes = sorted({path.parts[1] for path in files if len(path.parts) > 2} | _folders(self.source, split))
        if len(classes) < 2:
            raise DatasetError(
                f"{self.source.locate(split)} must be a folder with one folder of images for each of at least two "
                f"classes, and it has {len(classes)}. Set data.root to the folder that holds train and val."
            )
        self.names = tuple(map(printable, classes))
        images = [path for path in files if len(path.parts) > 2 and path.suffix.lower() in IMAGE_SUFFIXES]
        label_of = {name: label for label, name in enumerate(classes)}
        self.files, self.labels = list(map(str, images)), [label_of[path.parts[1]] for path in images]
        empty = set(range(len(classes))) - set(self.labels)
        if empty:
            place = self.source.locate(f"{split}/{classes[min(empty)]}")
            raise DatasetError(f"{place} holds no image ({', '.join(IMAGE_SUFFIXES)}).")

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], int]:
        """An image, RGB [H, W, 3], and its label.

        Raises:
            DatasetError: It cannot be read; names the file.
        """
        name = self.files[index]
        return decode_image(self.source.read(name), self.source.locate(name)), self.labels[index]

    def identity(self) -> str:
        """Hash of the images' paths and classes, in their order; it identifies the split."""
        places = "\n".join("/".join(PurePosixPath(name).parts[-2:]) for name in self.files)
        listed = f"{self.split}\n{self.names}\n{places}".encode("utf-8", "surrogateescape")
        return hashlib.sha256(listed).hexdigest()


def _folders(source: Source, split: str) -> set[str]:
    """The folders below a split's, also empty ones, where the storage has such."""
    folder = source.root / split if isinstance(source, FolderSource) else None
    return (
        {path.name for path in folder.iterdir() if path.is_dir()} if folder is not None and folder.is_dir() else set()
    )


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
        batches: The (epoch, index) of the samples of each batch; see `resnest_seg.data.loader.training_batches`.
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
        return pixels, label, self.dataset.source.locate(self.dataset.files[index])


def _collate(samples: Sequence[tuple[Tensor, int, str] | DatasetError]) -> ClassBatch | DatasetError:
    good: list[tuple[Tensor, int, str]] = []
    for sample in samples:
        if isinstance(sample, DatasetError):
            return sample
        good.append(sample)
    images, labels, names = zip(*good, strict=True)
    return ClassBatch(torch.stack(images), torch.tensor(labels), list(names))


class ClassificationTask:
    """A `resnest_seg.training.tasks.Task`.

    Args:
        config: The run.
        train: The training split.
        validation: The validation split, of the same classes.

    Raises:
        DatasetError: The splits have other classes.
    """

    def __init__(self, config: PretrainConfig, train: ClassFolder, validation: ClassFolder) -> None:
        if train.names != validation.names:
            differing = sorted(set(train.names) ^ set(validation.names))
            raise DatasetError(f"the splits have other classes: {', '.join(differing[:5])} is in one of them only.")
        self.config, self.train, self.validation = config, train, validation
        self.description = TaskDescription(
            size=len(train),
            identity=train.identity(),
            num_classes=len(train.names),
            score="top1",
            files={CLASSES: "".join(f"{name}\n" for name in train.names)},
        )
        self.mix = batch_mix(config, len(train.names))

    def begin(self, model: PixelModel, device: torch.device) -> nn.Module:
        """Check the number of classes; the module gives class scores.

        Raises:
            ConfigError: The model has another number of classes.
        """
        assert isinstance(model, Classifier)
        self.device = device
        count = self.description.num_classes
        if model.num_classes != count:
            raise ConfigError(f"the model has {model.num_classes} classes, and the data {count}.")
        return nn.Sequential(model)

    def batches(self, division: Division, *, pin_memory: bool) -> Generator[ClassBatch, None, None]:
        """Augmented crops."""
        return class_batches(
            self.train,
            division.batches(len(self.train)),
            transform=train_transform(self.config),
            seed=self.config.seed,
            workers=self.config.data.workers,
            pin_memory=pin_memory,
        )

    def weight_of(self, batch: ClassBatch) -> dict[str, Tensor]:
        """The number of images."""
        return {"images": torch.tensor(len(batch.labels), device=self.device)}

    def loss(self, model: nn.Module, batch: ClassBatch, *, total: Mapping[str, Tensor], moment: Moment) -> StepLoss:
        """Cross-entropy with smoothed labels, which become shares of classes [N, K] if the config mixes images."""
        images, labels = (each.to(self.device, non_blocking=True) for each in (batch.images, batch.labels))
        if self.mix is not None:
            images, labels = self.mix(images.float(), labels)
        scores, smoothing = model(images).float(), self.config.classify.label_smoothing
        summed = F.cross_entropy(scores, labels, label_smoothing=smoothing, reduction="sum")
        return StepLoss(summed / total["images"])

    def figures(self, sums: Mapping[str, float]) -> dict[str, float]:
        """None but the loss."""
        return {}

    def validate(
        self,
        model: PixelModel,
        engine: Accelerator,
        *,
        stop: StopSignal,
        progress: Progress,
        images: Path | None = None,
    ) -> Validation | None:
        """Top-1 and top-5 accuracy, 0..1, each process its share; writes no scores by image."""
        train, workers = self.config.train, self.config.data.workers
        mine = range(engine.process_index, len(self.validation), engine.num_processes)
        size = max(train.batch_size // (train.accumulation * engine.num_processes), 1)
        order = [[(0, index) for index in mine[first : first + size]] for first in range(0, len(mine), size)]
        batches = class_batches(self.validation, order, transform=eval_transform(self.config), workers=workers)
        bar = progress.add_task("validating", total=len(order), shown="")

        def until_stopped() -> Iterator[ClassBatch]:
            for batch in batches:
                if stop.number is not None:
                    return
                progress.update(bar, advance=1)
                yield batch

        with contextlib.closing(batches):
            counts = [*accuracy(model, until_stopped(), device=engine.device), len(mine)]
        progress.remove_task(bar)
        if stop.anywhere(engine) is not None:
            return None
        top1, top5, images = engine.reduce(torch.tensor(counts, device=engine.device), reduction="sum").tolist()
        scores = {"top1": top1 / images, "top5": top5 / images}
        return Validation(scores, f"val top-1 {100 * scores['top1']:.2f}  top-5 {100 * scores['top5']:.2f}")


def batch_mix(config: PretrainConfig, num_classes: int) -> v2.Transform | None:
    """MixUp, CutMix, either one by chance, or None: (images, labels [N]) -> (images, shares of classes [N, K])."""
    own, mixes = config.classify, []
    if own.mixup:
        mixes.append(v2.MixUp(alpha=own.mixup, num_classes=num_classes))
    if own.cutmix:
        mixes.append(v2.CutMix(alpha=own.cutmix, num_classes=num_classes))
    return v2.RandomChoice(mixes) if len(mixes) > 1 else mixes[0] if mixes else None


def accuracy(model: nn.Module, batches: Iterator[ClassBatch], *, device: torch.device) -> tuple[int, int]:
    """How many images of the batches have their class among the first one and the first five; in eval mode."""
    model.eval()
    first = among = 0
    with torch.inference_mode():
        for batch in batches:
            scores = model(batch.images.to(device))
            right = scores.topk(min(5, scores.shape[1])).indices.cpu() == batch.labels[:, None]  # [N, 5]
            first, among = first + int(right[:, 0].sum()), among + int(right.sum())
    return first, among
