"""Training for images as a whole, whose encoder a segmenter then starts from: augmented crops, top-1 accuracy.

A classifier is a `Segmenter` with head "classifier"; its checkpoint is one like any other.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from rich.progress import Progress
from torch import Tensor
from torchvision.transforms import v2

from resnest_seg.checkpoint import TrainingState
from resnest_seg.class_folder import ClassBatch, ClassFolder, class_batches, eval_transform, train_transform
from resnest_seg.config import RunConfig
from resnest_seg.engine import StopSignal
from resnest_seg.errors import CheckpointError, ConfigError, DatasetError
from resnest_seg.labels import LabelSpace
from resnest_seg.pretraining import ClassifyConfig, PretrainConfig
from resnest_seg.run_folder import CLASSES
from resnest_seg.segmenter import Segmenter


class ClassificationTask:
    """A `resnest_seg.task.Task`.

    Args:
        config: The run.
        train: The training split.
        validation: The validation split, of the same classes.

    Raises:
        DatasetError: The splits have other classes.
    """

    score = "top1"
    probabilities = None
    label_space: LabelSpace | None = None

    def __init__(self, config: PretrainConfig, train: ClassFolder, validation: ClassFolder) -> None:
        if train.names != validation.names:
            differing = sorted(set(train.names) ^ set(validation.names))
            raise DatasetError(f"the splits have other classes: {', '.join(differing[:5])} is in one of them only.")
        self.run, self.train, self.validation = config, train, validation
        self.size, self.num_classes, self.config = len(train), len(train.names), config.run
        self.files: Mapping[str, str] = {CLASSES: "".join(f"{name}\n" for name in train.names)}
        self.mix = batch_mix(config, self.num_classes)

    def identity(self) -> str:
        """Of the training images."""
        return self.train.identity()

    def values(self) -> dict[str, Any]:
        """The group of the config that a checkpoint does not carry."""
        return {"classify": dataclasses.asdict(self.run.classify)}

    def whole_config(self, config: RunConfig, state: TrainingState) -> PretrainConfig:
        """With that group.

        Raises:
            CheckpointError: The state is not a classifier's.
        """
        if "classify" not in state.values:
            raise CheckpointError("this is no state of a classifier's training: it cannot be resumed.")
        groups = {field.name: getattr(config, field.name) for field in dataclasses.fields(RunConfig)}
        return PretrainConfig(**groups, classify=ClassifyConfig(**state.values["classify"]))

    def begin(self, segmenter: Segmenter, device: torch.device) -> None:
        """Set the dropout.

        Raises:
            ConfigError: The model has another number of classes.
        """
        if segmenter.num_classes != self.num_classes:
            raise ConfigError(f"the model has {segmenter.num_classes} classes, and the data {self.num_classes}.")
        segmenter.head.dropout.p = self.run.classify.dropout  # type: ignore[union-attr]

    def model(self, segmenter: Segmenter) -> torch.nn.Module:
        """Gives class scores."""
        return _Scores(segmenter)

    def batches(
        self, order: Iterable[Sequence[tuple[int, int]]], *, pin_memory: bool
    ) -> Generator[ClassBatch, None, None]:
        """Augmented crops."""
        return class_batches(
            self.train,
            order,
            transform=train_transform(self.run),
            seed=self.run.seed,
            workers=self.run.data.workers,
            pin_memory=pin_memory,
        )

    def weight_of(self, labels: Tensor) -> Tensor:
        """Images."""
        return torch.tensor(len(labels), device=labels.device)

    def inputs(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mixed, if the config says so: labels [N] become shares of classes [N, K]."""
        mixed: tuple[Tensor, Tensor] = (images, labels) if self.mix is None else self.mix(images.float(), labels)
        return mixed

    def loss(self, output: Tensor, labels: Tensor, *, total: Tensor) -> Tensor:
        """Cross-entropy with smoothed labels."""
        smoothing = self.run.classify.label_smoothing
        return F.cross_entropy(output.float(), labels, label_smoothing=smoothing, reduction="sum") / total

    def validate(
        self, segmenter: Segmenter, engine: Accelerator, *, stop: StopSignal, progress: Progress
    ) -> Mapping[str, float] | None:
        """Top-1 and top-5 accuracy, 0..1, each process its share."""
        train, workers = self.run.train, self.run.data.workers
        mine = range(engine.process_index, len(self.validation), engine.num_processes)
        size = max(train.batch_size // (train.accumulation * engine.num_processes), 1)
        order = [[(0, index) for index in mine[first : first + size]] for first in range(0, len(mine), size)]
        batches = class_batches(self.validation, order, transform=eval_transform(self.run), workers=workers)
        bar = progress.add_task("validating", total=len(order), shown="")

        def until_stopped() -> Iterator[ClassBatch]:
            for batch in batches:
                if stop.number is not None:
                    return
                progress.update(bar, advance=1)
                yield batch

        with contextlib.closing(batches):
            counts = [*accuracy(segmenter, until_stopped(), device=engine.device), len(mine)]
        progress.remove_task(bar)
        if stop.anywhere(engine) is not None:
            return None
        top1, top5, images = engine.reduce(torch.tensor(counts, device=engine.device), reduction="sum").tolist()
        return {"top1": top1 / images, "top5": top5 / images}

    def show(self, scores: Mapping[str, float]) -> str:
        """In percent."""
        return f"val top-1 {100 * scores['top1']:.2f}  top-5 {100 * scores['top5']:.2f}"

    def draw(self, engine: Accelerator, *, folder: Path, epoch: int, step: int) -> None:
        """Nothing."""


class _Scores(torch.nn.Module):
    """A `Segmenter` with head "classifier" as images [N, 3, H, W] -> class scores [N, K]."""

    def __init__(self, segmenter: Segmenter) -> None:
        super().__init__()
        self.segmenter = segmenter

    def forward(self, images: Tensor) -> Tensor:
        # An encoder that pads images gives full-size logits, equal everywhere.
        scores: Tensor = self.segmenter(images, coarse=True).logits[:, :, 0, 0]
        return scores


def batch_mix(config: PretrainConfig, num_classes: int) -> v2.Transform | None:
    """MixUp, CutMix, either one by chance, or None: (images, labels [N]) -> (images, shares of classes [N, K])."""
    own, mixes = config.classify, []
    if own.mixup:
        mixes.append(v2.MixUp(alpha=own.mixup, num_classes=num_classes))
    if own.cutmix:
        mixes.append(v2.CutMix(alpha=own.cutmix, num_classes=num_classes))
    return v2.RandomChoice(mixes) if len(mixes) > 1 else mixes[0] if mixes else None


def accuracy(segmenter: Segmenter, batches: Iterator[ClassBatch], *, device: torch.device) -> tuple[int, int]:
    """How many images of the batches have their class among the first one and the first five; in eval mode."""
    segmenter.eval()
    model, first, among = _Scores(segmenter), 0, 0
    with torch.inference_mode():
        for batch in batches:
            scores = model(batch.images.to(device))
            right = scores.topk(min(5, scores.shape[1])).indices.cpu() == batch.labels[:, None]  # [N, 5]
            first, among = first + int(right[:, 0].sum()), among + int(right.sum())
    return first, among
