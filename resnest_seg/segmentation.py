"""Training for segmentation: augmented crops, a loss over labelled pixels, mIoU on whole images."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from rich.progress import Progress
from torch import Tensor

from resnest_seg.checkpoint import TrainingState
from resnest_seg.config import RunConfig
from resnest_seg.engine import StopSignal
from resnest_seg.errors import CheckpointError
from resnest_seg.evaluation import EvaluatedImage, check_fits
from resnest_seg.labels import LabelSpace
from resnest_seg.loader import Batch, build_loader
from resnest_seg.losses import CoarseLogits, SegmentationLoss
from resnest_seg.protocols import protocol
from resnest_seg.report import EvalReport
from resnest_seg.samples import SegmentationDataset
from resnest_seg.segmenter import Segmenter
from resnest_seg.transforms import TrainTransform
from resnest_seg.validation import Validator


class SegmentationTask:
    """A `resnest_seg.task.Task`.

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
