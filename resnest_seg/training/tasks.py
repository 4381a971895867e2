"""The task interface of the trainer, and the segmentation task: crops, a loss over labelled pixels, mIoU.

Validation during training runs on every process, each on its share, and a stop signal is heard between two images.
"""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from rich.progress import Progress
from torch import Tensor, device, nn

from resnest_seg.config import RunConfig
from resnest_seg.data.datasets import SegmentationDataset
from resnest_seg.data.loader import Batch, build_loader
from resnest_seg.data.transforms import TrainTransform
from resnest_seg.errors import CheckpointError
from resnest_seg.evaluation.evaluate import EvaluatedImage, check_fits, evaluate
from resnest_seg.evaluation.report import EvalReport
from resnest_seg.files import naming
from resnest_seg.inference.protocols import protocol
from resnest_seg.io.visualize import contact_sheet, write_png
from resnest_seg.labels import LabelSpace
from resnest_seg.models.checkpoint import TrainingState
from resnest_seg.models.segmenter import Segmenter
from resnest_seg.training.distributed import StopSignal, trackers
from resnest_seg.training.losses import CoarseLogits, SegmentationLoss
from resnest_seg.training.run_folder import SHEET


class LabelledBatch(Protocol):
    """Samples of one size, stacked."""

    @property
    def images(self) -> Tensor:
        """[N, C, H, W]."""

    @property
    def labels(self) -> Tensor:
        """Of pixels, [N, H, W], or of images, [N]."""

    @property
    def names(self) -> list[str]:
        """N names."""


class Task(Protocol):
    """What a model is trained for. One for pixels is in `segmentation`, one for whole images in `classification`."""

    @property
    def size(self) -> int:
        """Samples of the training split."""

    @property
    def probabilities(self) -> NDArray[np.float64] | None:
        """Draw the samples of an epoch with these, [size]; None takes each once."""

    @property
    def config(self) -> RunConfig:
        """What a checkpoint carries."""

    @property
    def label_space(self) -> LabelSpace | None:
        """The classes, or None where they have no colours and raw ids."""

    @property
    def num_classes(self) -> int:
        """K."""

    @property
    def score(self) -> str:
        """Which of the numbers of a validation decides what is best."""

    @property
    def files(self) -> Mapping[str, str]:
        """Name -> text of files that the run folder has besides."""

    def identity(self) -> str:
        """What tells whether the training split is still the same."""

    def values(self) -> dict[str, Any]:
        """What a state must hold of this task's own, as plain values."""

    def whole_config(self, config: RunConfig, state: TrainingState) -> RunConfig:
        """The config of the run that saved `config` and `state`, of the type that this task's runs have."""

    def begin(self, segmenter: Segmenter, device: device) -> None:
        """Check that the model fits the data, set it up, and bring the loss to the device."""

    def model(self, segmenter: Segmenter) -> nn.Module:
        """Images -> what `loss` takes, around the segmenter: the engine patches half precision into this."""

    def batches(
        self, order: Iterable[Sequence[tuple[int, int]]], *, pin_memory: bool
    ) -> Generator[LabelledBatch, None, None]:
        """The samples (epoch, index) of each micro-batch, loaded and augmented; to be closed."""

    def weight_of(self, labels: Tensor) -> Tensor:
        """What a micro-batch adds to the number that the loss of the effective batch is divided by."""

    def inputs(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Images and labels as the model and the loss get them, on the device."""

    def loss(self, output: Any, labels: Tensor, *, total: Tensor) -> Tensor:
        """The loss of a micro-batch, a sum divided by `total`."""

    def validate(
        self, segmenter: Segmenter, engine: Accelerator, *, stop: StopSignal, progress: Progress
    ) -> Mapping[str, float] | None:
        """The scores, over all processes; None if one was told to stop."""

    def show(self, scores: Mapping[str, float]) -> str:
        """Scores in words, with the split they are of."""

    def draw(self, engine: Accelerator, *, folder: Path, epoch: int, step: int) -> None:
        """Draw what the last validation saw, on the main process."""


class SegmentationTask:
    """A `resnest_seg.training.tasks.Task`.

    Args:
        config: The run.
        train: The training split.
        validation: The split that `config.eval` names.
        probabilities: Draw the samples of an epoch with these, [len(train)]; None takes each once.
        class_weights: Of each class in the loss, [K], as `train.class_weights` names them.

    Raises:
        ConfigError: Unknown protocol or recipe.
    """

    score = "mean_iou"
    files: Mapping[str, str] = {}

    def __init__(
        self,
        config: RunConfig,
        train: SegmentationDataset,
        validation: SegmentationDataset,
        *,
        probabilities: NDArray[np.float64] | None = None,
        class_weights: Tensor | None = None,
    ) -> None:
        self.config, self.train, self.validation = config, train, validation
        self.probabilities, self.class_weights = probabilities, class_weights
        protocol(config.eval.protocol)
        self.transform = TrainTransform.from_config(config.data)
        self.size, self.num_classes = len(train), len(train.label_space)
        self.label_space: LabelSpace | None = validation.label_space
        self._seen: tuple[EvalReport, list[EvaluatedImage]] | None = None

    def identity(self) -> str:
        """Of the training split's names and classes."""
        return self.train.identity()

    def values(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def whole_config(self, config: RunConfig, state: TrainingState) -> RunConfig:
        """The same."""
        if "best_mean_iou" not in state.values:
            raise CheckpointError("this is no state of a segmenter's training: it cannot be resumed.")
        return config

    def begin(self, segmenter: Segmenter, device: torch.device) -> None:
        """Check both splits against the model, and build the loss.

        Raises:
            ConfigError: The classes or channels are others; class weights are missing.
        """
        for dataset in (self.train, self.validation):
            check_fits(segmenter, dataset)
        self.criterion = SegmentationLoss.from_config(
            self.config.train, align_corners=segmenter.align_corners, class_weights=self.class_weights
        ).to(device)

    def model(self, segmenter: Segmenter) -> torch.nn.Module:
        """Gives coarse logits."""
        return CoarseLogits(segmenter)

    def batches(self, order: Iterable[Sequence[tuple[int, int]]], *, pin_memory: bool) -> Generator[Batch, None, None]:
        """Augmented by the config's recipe."""
        return build_loader(
            self.train,
            order,
            transform=self.transform,
            seed=self.config.seed,
            workers=self.config.data.workers,
            pin_memory=pin_memory,
        )

    def weight_of(self, labels: Tensor) -> Tensor:
        """Labelled pixels, or the sum of their classes' weights."""
        return self.criterion.weight_of(labels)

    def inputs(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The same."""
        return images, labels

    def loss(self, output: Any, labels: Tensor, *, total: Tensor) -> Tensor:
        """Of the main and the auxiliary logits."""
        value: Tensor = self.criterion(output.logits, output.aux_logits, labels, pixels=total)
        return value

    def validate(
        self, segmenter: Segmenter, engine: Accelerator, *, stop: StopSignal, progress: Progress
    ) -> Mapping[str, float] | None:
        """mIoU by the protocol's rule for absent classes, and pixel accuracy."""
        self._seen = Validator(self.config, self.validation, engine).run(segmenter, stop=stop, progress=progress)
        if self._seen is None:
            return None
        report = self._seen[0]
        accuracy = report.scores[self.config.eval.protocol].pixel_accuracy
        return {"mean_iou": report.mean_iou(self.config.eval.protocol), "pixel_accuracy": accuracy}

    def show(self, scores: Mapping[str, float]) -> str:
        """In percent."""
        return (
            f"{self.validation.split} mIoU {100 * scores['mean_iou']:.2f}  "
            f"pixel accuracy {100 * scores['pixel_accuracy']:.2f}"
        )

    def draw(self, engine: Accelerator, *, folder: Path, epoch: int, step: int) -> None:
        """The contact sheet, if a validation was done."""
        if self._seen is not None:
            report, sheet = self._seen
            Validator(self.config, self.validation, engine).draw(sheet, report, folder=folder, epoch=epoch, step=step)


class _StoppedError(Exception):
    """Some process was told to stop."""


class Validator:
    """Evaluates a model on the split that `config.eval` names.

    Args:
        config: The run.
        dataset: The split.
        engine: The processes that share it.
    """

    def __init__(self, config: RunConfig, dataset: SegmentationDataset, engine: Accelerator) -> None:
        self.config, self.dataset, self.engine = config, dataset, engine

    def run(
        self, segmenter: Segmenter, *, stop: StopSignal, progress: Progress
    ) -> tuple[EvalReport, list[EvaluatedImage]] | None:
        """The scores, and this process's images for the contact sheet; None if a process was told to stop.

        Args:
            segmenter: The whole model, with the same weights on every process.
            stop: What is asked after every image.
            progress: Shows how far it is.
        """
        count = min(len(self.dataset), self.config.eval.limit or len(self.dataset))
        mine = range(self.engine.process_index, count, self.engine.num_processes)
        bar = progress.add_task("validating", total=len(mine), shown="")
        # Spread over the split, because neighbours are often frames of one video.
        apart = max(len(mine) // max(self.config.eval.sheet, 1), 1)
        sheet: list[EvaluatedImage] = []
        places, agreed = itertools.count(), False

        def on_image(image: EvaluatedImage) -> None:
            progress.update(bar, advance=1, shown=f"mIoU {image.mean_iou:.3f}")
            if next(places) % apart == 0 and len(sheet) < self.config.eval.sheet:
                sheet.append(image)
            if stop.number is not None:
                raise _StoppedError

        def reduce(counts: Tensor) -> Tensor:
            nonlocal agreed
            if not agreed:  # once, before the first sum: a process that stopped early asks then, too
                agreed = True
                if stop.anywhere(self.engine) is not None:
                    raise _StoppedError
            total: Tensor = self.engine.reduce(counts, reduction="sum")
            return total

        try:
            report = evaluate(
                segmenter,
                self.dataset,
                protocols=(self.config.eval.protocol,),
                indices=mine,
                workers=min(self.config.data.workers, len(mine)),
                on_image=on_image,
                reduce=reduce,
                memory=self.config.eval.memory << 20,
            )
        except _StoppedError:
            if not agreed:
                stop.anywhere(self.engine)
            return None
        finally:
            progress.remove_task(bar)
        return report, sheet

    def draw(self, sheet: list[EvaluatedImage], report: EvalReport, *, folder: Path, epoch: int, step: int) -> None:
        """Write the main process's images as a contact sheet into the run folder, and hand it to the trackers."""
        if not sheet or not self.engine.is_main_process:
            return
        rows = [(image.image, image.labels, image.predictions) for image in sheet]
        mean_iou = report.mean_iou(self.config.eval.protocol)
        title = f"{report.dataset} {report.split}, epoch {epoch}, mIoU {100 * mean_iou:.2f}"
        page = contact_sheet(rows, self.dataset.label_space, title=title)
        write_png(folder / SHEET, page)
        for name in trackers(self.config.train.trackers):  # whose errors name no file
            extra = {"dataformats": "NHWC"} if name == "tensorboard" else {}
            with naming(folder / name):
                self.engine.get_tracker(name).log_images({"validation": page[None]}, step=step, **extra)


def share_buffers(model: torch.nn.Module, engine: Accelerator) -> None:
    """Give every process the main one's buffers: batch norm's statistics differ where they are not synchronised."""
    if engine.num_processes > 1:
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, src=0)
