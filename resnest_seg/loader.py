"""From a data set to batches: which sample comes when, and the processes that load them ahead of time.

Which sample comes when is a pure function of the seed and the step (`training_batches`), so a resumed run continues in
the middle of an epoch without replaying anything, and any number of processes see the same effective batches.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import FrameType
from typing import Any, NamedTuple, TypeVar

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from resnest_seg.errors import DatasetError
from resnest_seg.samples import Sample, SegmentationDataset
from resnest_seg.transforms import TrainTransform, class_mix, sample_seed

T = TypeVar("T")

GRACE = 600
"""Seconds that a loader process lives on after SIGTERM: more than a training step and the saving after it."""


class Batch(NamedTuple):
    """Samples of one size, stacked.

    Attributes:
        images: RGB 0..255, uint8 [N, 3, H, W], in channels-last memory.
        labels: Train ids, uint8 [N, H, W].
        names: N names.
    """

    images: Tensor
    labels: Tensor
    names: list[str]


def training_batches(
    size: int,
    *,
    seed: int,
    batch_size: int,
    steps: range,
    parts: int = 1,
    rank: int = 0,
    processes: int = 1,
    probabilities: NDArray[np.float64] | None = None,
) -> Iterator[list[tuple[int, int]]]:
    """Which samples each micro-batch holds: lists of (epoch, index).

    All epochs' permutations form one endless row of samples; optimiser step s takes `batch_size` of them from place
    `s * batch_size` on. These are dealt in order to the `parts` micro-batches of the step and, within each, to the
    processes. So the effective batch of a step is the same however it is divided.

    Args:
        size: Samples in the data set, at least 1.
        seed: Decides the permutations.
        batch_size: Samples per optimiser step, a multiple of parts * processes.
        steps: The optimiser steps.
        parts: Micro-batches per optimiser step and process.
        rank: This process, 0..processes - 1.
        processes: Processes that share the work.
        probabilities: Draw an epoch's samples with these, with replacement, [size]; None takes each once an epoch.
    """
    assert batch_size % (parts * processes) == 0
    length = batch_size // (parts * processes)
    order, order_epoch = np.empty(0, np.int64), -1
    for step in steps:
        for part in range(parts):
            first = step * batch_size + (part * processes + rank) * length
            batch = []
            for place in range(first, first + length):
                epoch, within = divmod(place, size)
                if epoch != order_epoch:
                    random, order_epoch = np.random.default_rng([seed, epoch]), epoch
                    order = (
                        random.permutation(size)
                        if probabilities is None
                        else random.choice(size, size, p=probabilities)
                    )
                # Drawn with replacement, a photo may come twice in an epoch: its place makes each another sample.
                batch.append((epoch if probabilities is None else place, int(order[within])))
            yield batch


def build_loader(
    dataset: SegmentationDataset,
    batches: Iterable[Sequence[tuple[int, int]]],
    *,
    transform: TrainTransform | None = None,
    seed: int = 0,
    workers: int = 0,
    pin_memory: bool = False,
) -> Iterator[Batch]:
    """Load batches in the given order, in this process or ahead of time in others.

    Args:
        dataset: Where the samples come from.
        batches: The (epoch, index) of the samples of each batch; see `training_batches`.
        transform: Training augmentation, seeded by (seed, epoch, index); None takes whole images.
        seed: Decides the augmentation.
        workers: Loader processes, at most one a core; the batches do not depend on their number.
        pin_memory: Put batches into page-locked memory, for copies to a GPU.

    Raises:
        DatasetError: A sample cannot be loaded; the message names its file.
    """
    yield from run_loader(_View(dataset, transform, seed), batches, _collate, workers=workers, pin_memory=pin_memory)


def run_loader(
    view: Dataset[Any],
    batches: Iterable[Sequence[tuple[int, int]]],
    collate: Callable[[Sequence[Any]], T | DatasetError],
    *,
    workers: int,
    pin_memory: bool,
) -> Iterator[T]:
    """A `DataLoader` whose processes survive a signal to the group, and hand errors on as values.

    Args:
        view: Sample or error by (epoch, index).
        batches: The samples of each batch.
        collate: Samples and errors to a batch, or the first error.
        workers: Loader processes, at most one a core.
        pin_memory: Put batches into page-locked memory, for copies to a GPU.

    Raises:
        DatasetError: What a sample or the collation gave.
    """
    loader = DataLoader(
        view,
        batch_sampler=batches,  # type: ignore[arg-type]  # any iterable of lists will do
        collate_fn=collate,
        num_workers=loader_processes(workers),
        pin_memory=pin_memory,
        worker_init_fn=start_worker,
        generator=torch.Generator(),  # its own: a loader must not draw from the generator that decides dropout
    )
    for batch in loader:
        if isinstance(batch, DatasetError):
            raise batch
        yield batch


class _View(Dataset[Sample | DatasetError]):
    """Samples by (epoch, index).

    An error is handed on as a value, because raised in a worker it would arrive as a traceback.
    """

    def __init__(self, dataset: SegmentationDataset, transform: TrainTransform | None, seed: int) -> None:
        self.dataset, self.transform, self.seed = dataset, transform, seed

    def __getitem__(self, place: tuple[int, int]) -> Sample | DatasetError:
        epoch, index = place
        try:
            sample = self.dataset[index]
        except DatasetError as error:
            return error
        if self.transform is None:
            return sample
        image, labels = self.transform(sample.image, sample.labels, seed=sample_seed(self.seed, epoch, index))
        if self.transform.data.class_mix:
            random = np.random.default_rng([self.seed, epoch, index, 1])
            if random.random() < self.transform.data.class_mix:
                try:
                    other = self.dataset[int(random.integers(len(self.dataset)))]
                except DatasetError as error:
                    return error
                mixed = self.transform(other.image, other.labels, seed=int(random.integers(2**32)))
                image, labels = class_mix((image, labels), mixed, random)
        return Sample(image, labels, sample.name)


def _collate(samples: Sequence[Sample | DatasetError]) -> Batch | DatasetError:
    good: list[Sample] = []
    for sample in samples:
        if isinstance(sample, DatasetError):
            return sample
        good.append(sample)
    images = torch.from_numpy(np.stack([sample.image for sample in good])).permute(0, 3, 1, 2)
    labels = torch.from_numpy(np.stack([sample.labels for sample in good]))
    return Batch(images, labels, [sample.name for sample in good])


def loader_processes(workers: int) -> int:
    """How many of the wanted loader processes make sense here: at most one for each core that this process may use."""
    return min(workers, len(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else workers


def start_worker(worker: int) -> None:
    """Set a loader process up: one thread, and signals that leave stopping to the training process.

    Schedulers and `timeout` send SIGTERM to the whole process group, and the training process needs its workers to the
    end of the step. So a worker lives on for `GRACE` seconds: it ends before that when the loader or its parent does.
    """
    cv2.setNumThreads(0)  # one thread a worker: more would fight the others for the cores
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the training process's to handle
    signal.signal(signal.SIGTERM, _die_later)


def _die_later(number: int, frame: FrameType | None) -> None:
    signal.alarm(GRACE)
