"""Training monitors: callbacks, non-finite values, throughput, memory, lines of progress."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import psutil
import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

from resnest_seg.config import LoopConfig
from resnest_seg.errors import ResNeStSegError
from resnest_seg.evaluation.report import EvalReport
from resnest_seg.io import display


@dataclasses.dataclass(frozen=True)
class StepReport:
    """One optimiser step.

    Attributes:
        step: Steps done, from 1.
        steps: Steps of the whole run.
        epoch: Passes over the training split so far.
        loss: The loss before the step, over the effective batch.
        grad_norm: Euclidean norm of its gradient.
        lr: The learning rate of the encoder.
    """

    step: int
    steps: int
    epoch: float
    loss: float
    grad_norm: float
    lr: float


@dataclasses.dataclass(frozen=True)
class ValidationReport:
    """One validation.

    Attributes:
        step: Steps done.
        epoch: Passes over the training split so far.
        scores: Name -> value, 0..1, of the better of the weights and their average.
        best: True if no validation before was better.
        report: The whole report of a segmentation model, by class and by image.
        output: The run folder.
    """

    step: int
    epoch: float
    scores: Mapping[str, float]
    best: bool
    report: EvalReport | None
    output: Path


class Callback:
    """Base class of what a run tells to the user's own code; both methods do nothing by default.

    They are called in the main process. A callback with `state_dict()` and `load_state_dict(state)` is saved with the
    run, as plain JSON values, and goes on with them when the run is resumed.
    """

    def on_step(self, report: StepReport) -> bool | None:
        """Hear of a step; True saves the run and ends it."""

    def on_validation(self, report: ValidationReport) -> bool | None:
        """Hear of a validation, when its weights are written if they are the best; True saves the run and ends it."""


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Compute the Euclidean norm of all gradients, a scalar; over all processes if they are sharded."""
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm


def check_finite(
    loss: float, norm: float, model: nn.Module, *, where: str, files: Callable[[], Iterable[str]], allow_inf: bool
) -> None:
    """Stop a run with a non-finite loss or gradient before the weights are updated.

    Args:
        loss: Loss of the step.
        norm: Norm of its gradient.
        model: The model, whose parameters with non-finite gradients are named.
        where: The step, epoch and learning rate, in words.
        files: Returns the names of the samples of the step; called only for the error.
        allow_inf: Accept a non-finite gradient: fp16's scaler skips the step and lowers its scale.

    Raises:
        ResNeStSegError: The loss or the gradient is not finite; the message names the step and the files.
    """
    if math.isfinite(loss) and (math.isfinite(norm) or allow_inf):
        return
    what = f"the loss is {loss}"
    if math.isfinite(loss):
        bad = [name for name, p in model.named_parameters() if p.grad is not None and not _is_finite(p.grad)]
        first = f" of {bad[0]} and {len(bad) - 1} more parameters" if bad else ""
        what = f"the gradient{first} is not finite (norm {norm}, loss {loss:.4g})"
    raise ResNeStSegError(
        f"{what} at {where}; the weights were not updated, and the last saved state is valid. Files of the batch: "
        f"{', '.join(files())}. Lower optim.lr, or check these files."
    )


def _is_finite(gradient: Tensor) -> bool:
    local = gradient.to_local() if hasattr(gradient, "to_local") else gradient
    return bool(torch.isfinite(local).all())


class Gauge:
    """Meter of throughput, shares of time spent waiting for data and saving, and memory since the last `read`.

    Args:
        clock: Returns seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._all = {"seconds": 0.0, "saving": 0.0, "saves": 0, "steps": 0}  # of the parts that were read
        self._advised = False
        self.restart()

    def restart(self) -> None:
        """Reset the counts, after a break such as a validation."""
        self._since, self._waited, self._saving = self._clock(), 0.0, 0.0
        self._images = self._steps = self._saves = 0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Context whose time counts as waiting for data."""
        begin = self._clock()
        yield
        self._waited += self._clock() - begin

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """Context whose time counts as saving a checkpoint."""
        begin = self._clock()
        yield
        self._saving += self._clock() - begin
        self._saves += 1

    def advice(self) -> str | None:
        """Return, once, how to save less often, if it took a fifth of the time or more, of a minute or more."""
        seconds, saving, saves, steps = self._all.values()
        if self._advised or saves < 3 or seconds < 60 or saving < seconds / 5:
            return None
        self._advised = True
        a_step = (seconds - saving) / steps
        enough = math.ceil(20 * saving / saves / a_step)
        return (
            f"saving checkpoints takes {100 * saving / seconds:.0f} % of the time. --train.save_every {enough} would "
            f"make it 5 %, and a kill would lose up to {enough * a_step:.0f} s."
        )

    def count(self, images: int) -> float:
        """Add processed images; returns images per second so far."""
        self._images += images
        self._steps += 1
        return self._images / max(self._clock() - self._since, 1e-9)

    def read(self) -> dict[str, float]:
        """Return images per second, shares of time waiting for data and saving (0..1), memory in MiB; resets."""
        taken = max(self._clock() - self._since, 1e-9)
        for name, value in zip(self._all, (taken, self._saving, self._saves, self._steps), strict=True):
            self._all[name] += value
        values = {
            "images_per_second": round(self._images / taken, 3),
            "data_wait": round(self._waited / taken, 4),
            "save_wait": round(self._saving / taken, 4),
            "memory_mib": round(psutil.Process().memory_info().rss / 2**20),
        }
        if torch.cuda.is_available():
            values["cuda_peak_mib"] = round(torch.cuda.max_memory_allocated() / 2**20)
        self.restart()
        return values


def progress_bars(console: Console) -> Progress:
    """Make progress bars that show the field `shown` of their task and are erased at the end; on a terminal only."""
    return display.progress_bars(shown=True, on=console, disable=not has_bars(console))


def has_bars(console: Console) -> bool:
    """True for a terminal or a notebook, where progress bars can be drawn; false for a file or a pipe."""
    return console.is_terminal or console.is_jupyter


SECONDS, SHARE = 30.0, 0.01
"""Least time between two lines of progress, and least share of the time so far: a run of ten days has 700 lines."""


class ProgressLines:
    """Lines of progress for an output that is no terminal, such as the log of a scheduler.

    The first is due at once, the next when `SECONDS`, and `SHARE` of the time since the start, have passed.

    Args:
        first: The step that this process begins with.
        steps: The last step.
        steps_per_epoch: Steps of an epoch.
        clock: Returns seconds.
    """

    def __init__(
        self, first: int, steps: int, *, steps_per_epoch: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._first, self._steps, self._steps_per_epoch, self._clock = first, steps, steps_per_epoch, clock
        self._began, self._told = clock(), -math.inf

    def line(self, step: int, *, loss: float, lr: float, machine: Mapping[str, float]) -> str | None:
        """Return the line of a step, or None if it is not due.

        Args:
            step: Steps done, more than `first`.
            loss: Loss of the step.
            lr: Its learning rate.
            machine: What `Gauge.read` returns.
        """
        now = self._clock()
        taken = now - self._began
        if now - self._told < max(SECONDS, SHARE * taken):
            return None
        self._told = now
        left = (self._steps - step) * taken / (step - self._first)
        memory = f"memory {machine['memory_mib'] / 1024:.1f} GiB"
        if "cuda_peak_mib" in machine:
            memory += f", GPU {machine['cuda_peak_mib'] / 1024:.1f} GiB"
        return (
            f"step {step}/{self._steps}  epoch {step / self._steps_per_epoch:.2f}/"
            f"{self._steps / self._steps_per_epoch:g}  loss {loss:.3f}  lr {lr:.2g}  "
            f"{machine['images_per_second']:.1f} images/s  {duration(left)} left  {memory}"
        )


def duration(seconds: float) -> str:
    """Format a time by its two largest units: 45 s, 12 min, 3 h 5 min, 2 d 7 h."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // (24 * 60)} d {minutes // 60 % 24} h"


@contextlib.contextmanager
def enough_memory(train: LoopConfig, processes: int, *, where: str) -> Iterator[None]:
    """Context that turns a GPU's out-of-memory error into a message that says what to do.

    Args:
        train: The division of the batch.
        processes: Number of processes that share it.
        where: The step, in words.

    Raises:
        ResNeStSegError: A device ran out of memory.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        images = train.batch_size // (train.accumulation * processes)
        raise ResNeStSegError(
            f"the GPU ran out of memory at {where}, with {images} images a micro-batch (train.batch_size "
            f"{train.batch_size}, train.accumulation {train.accumulation}, {processes} processes). Start again with "
            "--budget auto, which divides the same batch so that it fits; or with a higher train.accumulation, or "
            f"model.checkpointing true. ({error})"
        ) from None
