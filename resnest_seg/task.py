"""What `resnest_seg.training` asks of the thing that is trained: samples, a loss, a score."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from accelerate import Accelerator
from numpy.typing import NDArray
from rich.progress import Progress
from torch import Tensor, device, nn

from resnest_seg.checkpoint import TrainingState
from resnest_seg.config import RunConfig
from resnest_seg.engine import StopSignal
from resnest_seg.labels import LabelSpace
from resnest_seg.segmenter import Segmenter


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
