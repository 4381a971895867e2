"""Batches of a data set: the order of samples, and the worker processes that load them ahead of time.

The order of samples is a pure function of the seed and the step (`training_batches`), so a resumed run continues in
the middle of an epoch without replay, and any number of processes see the same effective batches.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import errno
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple, TypeVar

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from resnest_seg.config import COUNT
from resnest_seg.config_types import Kind, Range, check_option
from resnest_seg.data.datasets import Sample, SegmentationDataset
from resnest_seg.data.transforms import (
    OwnTransform,
    TrainTransform,
    Transform,
    class_mix,
    sample_seed,
    sample_transform,
)
from resnest_seg.errors import DatasetError, ResNeStSegError

T = TypeVar("T")

PATIENCE = 1.0
"""Seconds that a loader process gets to exit when its batches are no longer needed; then it is killed."""


@dataclasses.dataclass(frozen=True)
class ShardOrder:
    """The order of samples in few large files, of which few are read at a time.

    Attributes:
        shards: Number of the file in which each sample lies, [N].
        window: Number of files whose samples are mixed.
    """

    shards: NDArray[np.int64]
    window: int

    def __call__(self, random: np.random.Generator) -> NDArray[np.int64]:
        """Return all samples, [N]: files are shuffled, and the samples of `window` files in a row among each other."""
        _, numbers = np.unique(self.shards, return_inverse=True)
        place = random.permutation(int(numbers.max()) + 1)  # of every file
        shuffled = random.permutation(len(self.shards))
        return shuffled[np.argsort(place[numbers[shuffled]] // self.window, kind="stable")]


class Batch(NamedTuple):
    """Samples of one size, stacked.

    Attributes:
        images: RGB 0..255, uint8 [N, 3, H, W], in channels-last memory; or bands of another number and type.
        labels: Train ids, uint8 [N, H, W]; of a multi-label task bits, int32.
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
    shard_order: ShardOrder | None = None,
) -> Iterator[list[tuple[int, int]]]:
    """Yield the samples of each micro-batch as a list of (epoch, index).

    The permutations of all epochs form one endless sequence; optimiser step s takes `batch_size` samples from index
    `s * batch_size` on. They are dealt in order to the `parts` micro-batches of the step and, within each, to the
    processes. So the effective batch of a step does not depend on how it is divided.

    Args:
        size: Samples in the data set, at least 1.
        seed: Seed of the permutations.
        batch_size: Samples per optimiser step, a multiple of parts * processes.
        steps: The optimiser steps.
        parts: Micro-batches per optimiser step and process.
        rank: This process, 0..processes - 1.
        processes: Number of processes.
        probabilities: Probabilities [size] of drawing samples with replacement; None takes each once per epoch.
        shard_order: Permutes samples within windows of shards, in place of a permutation of all; without probabilities.
    """
    assert batch_size % (parts * processes) == 0
    assert probabilities is None or shard_order is None
    length = batch_size // (parts * processes)
    order, order_epoch = np.empty(0, np.int64), -1
    for step in steps:
        for part in range(parts):
            first = step * batch_size + (part * processes + rank) * length
            batch = []
            for position in range(first, first + length):
                epoch, within = divmod(position, size)
                if epoch != order_epoch:
                    random, order_epoch = np.random.default_rng([seed, epoch]), epoch
                    if shard_order is not None:
                        order = shard_order(random)
                    elif probabilities is not None:
                        order = random.choice(size, size, p=probabilities)
                    else:
                        order = random.permutation(size)
                # With replacement, a photo may occur twice in an epoch: the position makes their augmentations differ.
                batch.append((epoch if probabilities is None else position, int(order[within])))
            yield batch


@dataclasses.dataclass(frozen=True)
class Division:
    """How the batches of a run are divided, and which part of them is this process's.

    Attributes:
        seed: Seed of the order of samples.
        batch_size: Samples per optimiser step, a multiple of parts * processes.
        steps: The optimiser steps.
        parts: Micro-batches per optimiser step and process.
        rank: This process, 0..processes - 1.
        processes: Number of processes.
    """

    seed: int
    batch_size: int
    steps: range
    parts: int = 1
    rank: int = 0
    processes: int = 1

    def batches(
        self,
        size: int,
        *,
        seed: int | None = None,
        ratio: int = 1,
        probabilities: NDArray[np.float64] | None = None,
        shard_order: ShardOrder | None = None,
    ) -> Iterator[list[tuple[int, int]]]:
        """Yield this process's samples, (epoch, index), of every micro-batch, see `training_batches`.

        Args:
            size: Samples in the data set.
            seed: In place of the run's, for a second data set.
            ratio: Samples for each of the batch's.
            probabilities: See `training_batches`.
            shard_order: Likewise.
        """
        return training_batches(
            size,
            seed=self.seed if seed is None else seed,
            batch_size=self.batch_size * ratio,
            steps=self.steps,
            parts=self.parts,
            rank=self.rank,
            processes=self.processes,
            probabilities=probabilities,
            shard_order=shard_order,
        )


@dataclasses.dataclass
class Loader:
    """Batches of a data set; every pass is one epoch. `build_loader` makes it and describes its options.

    Attributes:
        epoch: Epoch of the next pass, which a pass increments when it begins; set it to repeat an epoch.
    """

    dataset: SegmentationDataset
    batch_size: int
    transform: Transform | None
    shuffle: bool
    drop_last: bool
    seed: int
    epoch: int
    workers: int
    pin_memory: bool

    def __len__(self) -> int:
        """Batches of an epoch."""
        return len(self.dataset) // self.batch_size if self.drop_last else -(-len(self.dataset) // self.batch_size)

    def __iter__(self) -> Generator[Batch, None, None]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        size = len(self.dataset)
        order = np.random.default_rng([self.seed, epoch]).permutation(size) if self.shuffle else np.arange(size)
        keys = [(epoch, int(index)) for index in order]
        batches = [keys[first : first + self.batch_size] for first in range(0, size, self.batch_size)]
        return load_batches(
            self.dataset,
            batches[: len(self)],
            transform=self.transform,
            seed=self.seed,
            workers=self.workers,
            pin_memory=self.pin_memory,
        )


def build_loader(
    dataset: SegmentationDataset,
    *,
    batch_size: int = 1,
    transform: Transform | None = None,
    shuffle: bool = False,
    drop_last: bool = False,
    seed: int = 0,
    epoch: int = 0,
    workers: int = 0,
    pin_memory: bool = False,
) -> Loader:
    """Make a loader for a loop of your own: `for batch in loader: model(batch.images)` is one epoch.

    A pass takes every sample once. The next pass is the next epoch, with another order and other augmentation; both
    depend on (seed, epoch, index) alone, not on `workers`. `load_batches` is the form that training uses, for an exact
    order of samples.

    Args:
        dataset: The samples.
        batch_size: Samples per batch, 1 or more; the last batch of an epoch may be smaller.
        transform: Augmentation to one size, see `resnest_seg.data.transforms.Transform`: an albumentations pipeline
            without Normalize and ToTensorV2, because models take pixels 0..255; a function; or
            `TrainTransform.from_config(DataConfig(crop_size=512))`. None takes whole images, of one size in a batch.
        shuffle: Take the samples in a random order.
        drop_last: Leave out a last batch that is smaller.
        seed: Decides the order and the augmentation, 0 or more.
        epoch: Epoch of the first pass.
        workers: Loader processes, 0..256, at most one a core.
        pin_memory: Put batches into page-locked memory, for copies to a GPU.

    Returns:
        An iterable of `Batch` with a length, to be iterated as often as you like. Its passes raise `DatasetError` if a
        sample cannot be loaded, or if samples of a batch have different sizes.

    Raises:
        ConfigError: An option has another type or is out of range.
    """
    for name, value, low, high in (("batch_size", batch_size, 1, 65536), ("seed", seed, 0, 2**63),
                                   ("epoch", epoch, 0, COUNT), ("workers", workers, 0, 256)):  # fmt: skip
        Kind(int, False, Range(low, high)).check(name, value)
    if transform is not None:
        sample_transform(transform)
    return Loader(dataset, batch_size, transform, shuffle, drop_last, seed, epoch, workers, pin_memory)


def load_batches(
    dataset: SegmentationDataset,
    batches: Iterable[Sequence[tuple[int, int]]],
    *,
    transform: Transform | None = None,
    seed: int = 0,
    workers: int = 0,
    pin_memory: bool = False,
) -> Generator[Batch, None, None]:
    """Load batches in an exact order, in this process or ahead of time in worker processes; see also `build_loader`.

    The workers exit when the generator is exhausted or closed, or raises; `contextlib.closing` closes it.

    Args:
        dataset: The samples.
        batches: The (epoch, index) of the samples of each batch; see `training_batches`.
        transform: Augmentation, seeded by (seed, epoch, index), see `build_loader`; None takes whole images.
        seed: Decides the augmentation.
        workers: Loader processes, 0..256, at most one a core; the batches do not depend on their number.
        pin_memory: Put batches into page-locked memory, for copies to a GPU.

    Raises:
        ConfigError: `workers` is out of range.
        ConfigError: The transform gives something else than an image and labels.
        DatasetError: A sample cannot be loaded (the message names its file), or the samples of a batch have different
            sizes.
        ResNeStSegError: A loader process could not be started, or died.
    """
    sampled = None if transform is None else sample_transform(transform)
    yield from run_loader(
        AugmentedSamples(dataset, sampled, seed), batches, stack_samples, workers=workers, pin_memory=pin_memory
    )


def run_loader(
    view: Dataset[Any],
    batches: Iterable[Sequence[Any]],
    collate: Callable[[Sequence[Any]], T | ResNeStSegError],
    *,
    workers: int,
    pin_memory: bool = False,
) -> Generator[T, None, None]:
    """Run a `DataLoader` whose processes survive signals to the group, exit with the main one and return errors.

    Args:
        view: Maps an element of a batch's list to a sample or an error.
        batches: Lists of the keys of `view`, one list per batch.
        collate: Maps samples and errors to a batch, or to the first error.
        workers: Loader processes, 0..256, at most one a core.
        pin_memory: Put batches into page-locked memory, for copies to a GPU.

    Raises:
        ConfigError: `workers` is out of range.
        ResNeStSegError: A sample or the collation returned it, such as a `DatasetError`; or a loader process could not
            be started, or died.
    """
    check_option("workers", workers, 0, 256)
    loader = DataLoader(
        view,
        batch_sampler=batches,  # type: ignore[arg-type]  # any iterable of lists will do
        collate_fn=_Shared(collate),
        num_workers=loader_processes(workers),
        pin_memory=pin_memory,
        worker_init_fn=_start_worker,
        generator=torch.Generator(),  # a loader must not draw from the global generator, which decides dropout
    )
    with _running(loader) as loaded:
        for batch in loaded:
            if isinstance(batch, ResNeStSegError):
                raise batch
            yield batch


class _Shared:
    """A collation that moves the tensors of a batch to shared memory.

    torch does it later, in a thread where an error is printed and the batch lost: training would wait forever.
    """

    def __init__(self, collate: Callable[[Sequence[Any]], T | ResNeStSegError]) -> None:
        self.collate = collate

    def __call__(self, samples: Sequence[Any]) -> Any:
        batch = self.collate(samples)
        worker = get_worker_info()
        if worker is None or not isinstance(batch, tuple):
            return batch
        try:
            for value in batch:
                if isinstance(value, Tensor):
                    value.share_memory_()
        except RuntimeError as error:
            return ResNeStSegError(f"{_full(worker.num_workers)} ({error})")
        return batch


@contextlib.contextmanager
def _running(loader: DataLoader[Any]) -> Iterator[Iterator[Any]]:
    """Yield the batches of a loader whose processes end with this context or with this process, for any reason.

    torch ends them when nothing refers to its iterator any more. But the traceback of an exception does refer to it,
    and at the exit of the interpreter multiprocessing waits without limit for processes that ignore SIGTERM.
    """
    iterator = _started(loader)
    if not isinstance(iterator, _MultiProcessingDataLoaderIter):
        yield iterator
        return
    owner, processes = os.getpid(), iterator._workers

    def kill() -> None:
        if os.getpid() == owner:  # a forked child inherits this callback
            _kill(processes)

    atexit.register(kill)
    try:
        yield _loaded(iterator, processes)
    finally:
        if os.getpid() == owner:
            _end(iterator)
        atexit.unregister(kill)


def _started(loader: DataLoader[Any]) -> Iterator[Any]:
    """Start a loader's processes and return its iterator.

    Signals are deferred until the processes have set up their handlers. torch's handler of SIGCHLD is removed: it
    raises the death of a process wherever the main thread is, even within an optimiser step or while a checkpoint is
    saved. `_loaded` raises it between two batches.
    """
    signals = hasattr(signal, "pthread_sigmask") and threading.current_thread() is threading.main_thread()
    present = multiprocessing.active_children()
    before = signal.getsignal(signal.SIGCHLD) if signals else None
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM}) if signals else set()
    try:
        return iter(loader)
    except OSError as error:
        _kill([child for child in multiprocessing.active_children() if child not in present])
        raise ResNeStSegError(
            f"cannot start {loader.num_workers} loader processes: {error.strerror or error}. Use fewer (data.workers "
            "of a run, --workers of the tools; 0 loads in the main process), or make room (ulimit -u, ulimit -n, df "
            "/dev/shm)."
        ) from None
    finally:
        if before is not None:
            signal.signal(signal.SIGCHLD, before)
        if signals:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _loaded(iterator: Iterator[Any], processes: Sequence[BaseProcess]) -> Iterator[Any]:
    """Yield batches; raise `ResNeStSegError` if a process has died."""
    while True:
        if any(process.exitcode for process in processes):
            raise _death(processes)
        try:
            batch = next(iterator)
        except StopIteration:
            return
        except (RuntimeError, OSError, EOFError) as error:
            if os.strerror(errno.EMFILE) in str(error):  # torch's error where a batch came with no room for its file
                raise ResNeStSegError(
                    f"loader processes cannot hand their batches over: {os.strerror(errno.EMFILE)}. Allow more of them "
                    f"(ulimit -n), or {_less(len(processes))}"
                ) from None
            # torch's error about a death, or that of reading from a dying process's socket. The system closes sockets
            # and sentinels some time before it reports the death, on a busy machine more than a second.
            deadline = time.monotonic() + 3 * PATIENCE
            while all(process.is_alive() for process in processes) and time.monotonic() < deadline:
                time.sleep(0.01)
            if all(process.is_alive() for process in processes):
                raise
            raise _death(processes) from None
        yield batch


def _death(processes: Sequence[BaseProcess]) -> ResNeStSegError:
    """Return the error for the first dead process."""
    dead = next(process for process in processes if not process.is_alive())
    code = dead.exitcode or 0
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    if code == -signal.SIGBUS:
        why = _full(len(processes))
    elif code in (-signal.SIGSEGV, -signal.SIGABRT, -signal.SIGILL):
        why = "A library crashed, usually on a corrupt photo: data.workers=0 and python -X faulthandler show where."
    else:
        why = f"Usually memory ran out (dmesg reports the OOM killer): {_less(len(processes))}"
    return ResNeStSegError(
        f"a loader process (pid {dead.pid}) {how}. {why} Saved checkpoints are valid: a run continues with --resume."
    )


def _full(count: int) -> str:
    return f"Shared memory is full (df /dev/shm): make it larger (docker run --shm-size=8g), or {_less(count)}"


def _less(count: int) -> str:
    """Say how to reduce the memory of `count` loader processes."""
    return (
        f"use fewer loader processes (data.workers of a run, --workers of the tools; here {count}), smaller photos, a "
        "smaller data.crop_size, or a higher train.accumulation."
    )


def _end(iterator: _MultiProcessingDataLoaderIter) -> None:
    """Shut a loader's processes down as torch does, letting them finish their samples, with a time limit."""
    if not any(process.is_alive() for process in iterator._workers):
        return
    impatient = threading.Timer(PATIENCE, _kill, [iterator._workers])
    impatient.start()
    try:
        iterator._shutdown_workers()  # also closes pipes and threads
    finally:
        impatient.cancel()
        # Of two threads that wait for a process, one is told that it is gone before the other has noted its exit code.
        impatient.join()
        _kill(iterator._workers)


def _kill(processes: Iterable[BaseProcess]) -> None:
    """Kill processes."""
    for process in processes:
        process.kill()
    for process in processes:
        process.join()


class AugmentedSamples(Dataset[Sample | ResNeStSegError]):
    """Samples by (epoch, index), for `run_loader`.

    An error is returned as a value, because raised in a worker it would arrive as a traceback.
    """

    def __init__(
        self, dataset: SegmentationDataset, transform: TrainTransform | OwnTransform | None, seed: int
    ) -> None:
        self.dataset, self.transform, self.seed = dataset, transform, seed

    def __getitem__(self, key: tuple[int, int]) -> Sample | ResNeStSegError:
        epoch, index = key
        try:
            if self.transform is None:
                return self.dataset[index]
            return self._augmented(epoch, index, self.transform)
        except ResNeStSegError as error:
            return error

    def _augmented(self, epoch: int, index: int, transform: TrainTransform | OwnTransform) -> Sample:
        seed = sample_seed(self.seed, epoch, index)
        sample = self.dataset.draw(index, seed=seed)
        image, labels = transform(sample.image, sample.labels, seed=seed)
        if transform.class_mix:
            random = np.random.default_rng([self.seed, epoch, index, 1])
            if random.random() < transform.class_mix:
                chosen, seed = int(random.integers(len(self.dataset))), int(random.integers(2**32))
                other = self.dataset.draw(chosen, seed=seed)
                mixed = transform(other.image, other.labels, seed=seed)
                image, labels = class_mix((image, labels), mixed, random)
        return Sample(image, labels, sample.name)


def stack_samples(samples: Sequence[Sample | ResNeStSegError]) -> Batch | ResNeStSegError:
    """Stack samples of one size and type; returns the first error, or that which says how they differ."""
    good: list[Sample] = []
    for sample in samples:
        if isinstance(sample, ResNeStSegError):
            return sample
        good.append(sample)
    first = good[0]
    kinds = [(sample.image.shape[2], sample.image.dtype.name) for sample in good]
    if kinds.count(kinds[0]) < len(kinds):
        odd = next(index for index, kind in enumerate(kinds) if kind != kinds[0])
        held = ["{} bands of {}".format(*kinds[index]) for index in (0, odd)]
        return DatasetError(
            f"samples of one batch have different bands: {first.name} holds {held[0]}, and {good[odd].name} {held[1]}."
        )
    for sample in good:
        if sample.labels.shape != first.labels.shape:
            sizes = ["{} x {}".format(*each.labels.shape) for each in (first, sample)]
            return DatasetError(
                f"samples of one batch have different sizes: {first.name} is {sizes[0]}, and {sample.name} {sizes[1]}. "
                "Give a transform that crops, such as TrainTransform.from_config(DataConfig(crop_size=512)), or "
                "batch_size=1."
            )
    images = stack_images([sample.image for sample in good])
    stacked = np.stack([sample.labels for sample in good])
    labels = torch.from_numpy(stacked if stacked.dtype == np.uint8 else stacked.astype(np.int32))  # torch has no uint16
    return Batch(images, labels, [sample.name for sample in good])


def stack_images(images: Sequence[NDArray[Any]]) -> Tensor:
    """Stack images [H, W, C] to a tensor [N, C, H, W] in channels-last memory."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


def loader_processes(workers: int) -> int:
    """Cap the number of loader processes at the number of cores that this process may use."""
    return min(workers, len(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else workers


def _start_worker(worker: int) -> None:
    """Set up a loader process: one thread, and SIGINT and SIGTERM ignored.

    Schedulers and `timeout` send SIGTERM to the whole process group, and a terminal Ctrl-C, while training needs its
    loader processes to the end of the step. They end when the main process closes the loader or dies: at once, because
    they have inherited its open files, such as the lock on the run folder.
    """
    cv2.setNumThreads(0)  # one thread per worker: more would oversubscribe the cores
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
