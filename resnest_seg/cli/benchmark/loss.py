"""Forward and backward of the training loss: small logits against full-size labels, lean and plain."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import multiprocessing
import statistics
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING

from resnest_seg.cli.benchmark.measuring import interleave, peak_during, spread
from resnest_seg.errors import ConfigError, unknown_name

if TYPE_CHECKING:
    from torch import Tensor

FORMS = ("lean", "plain")
"""Ours, and F.interpolate followed by F.cross_entropy."""

SCALE = 8
"""Label pixels per logit along a side."""


@dataclasses.dataclass(frozen=True)
class Case:
    """Sizes of one comparison."""

    classes: int
    batch: int
    size: tuple[int, int]
    device: str

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Logits in channels-last memory, as heads return them, and labels of which a tenth is ignored."""
        import torch

        torch.manual_seed(0)
        coarse = tuple(side // SCALE for side in self.size)
        logits = torch.randn(self.batch, self.classes, *coarse).mul_(3).contiguous(memory_format=torch.channels_last)
        labels = torch.randint(0, self.classes, (self.batch, *self.size))
        labels[:, -self.size[0] // 10 :] = 255
        return logits.to(self.device).requires_grad_(), labels.to(self.device)


def step(form: str, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The loss and its gradient, [] and [N, K, h, w]."""
    import torch
    import torch.nn.functional as F

    from resnest_seg.training.chunked_loss import lean_cross_entropy

    if form == "lean":
        loss = lean_cross_entropy(logits, labels, align_corners=True)
    else:
        full = F.interpolate(logits, labels.shape[1:], mode="bilinear", align_corners=True)
        loss = F.cross_entropy(full, labels, ignore_index=255, reduction="sum")
        del full  # as in a function that returns the loss
    (gradient,) = torch.autograd.grad(loss, logits)
    if logits.device.type == "cuda":
        torch.cuda.synchronize()
    return loss.detach(), gradient


def peak(form: str, case: Case) -> float:
    """Mebibytes above logits and labels at the worst moment of one step; for a process of its own."""
    import torch

    small = dataclasses.replace(case, batch=1, size=(16, 16))
    step(form, *small.tensors())  # whatever the first call loads
    logits, labels = case.tensors()
    if case.device == "cpu":
        return peak_during(lambda: step(form, logits, labels))
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step(form, logits, labels)
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--classes", type=int, default=150, help="default: 150")
    parser.add_argument("--batch", type=int, default=8, help="images (default: 8)")
    parser.add_argument("--size", type=int, nargs=2, default=(480, 480), metavar=("H", "W"), help="default: 480 480")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")


def run(options: argparse.Namespace) -> list[dict[str, object]]:
    """One row a form; the same loss and gradient are checked first."""
    import torch

    if options.device not in ("cpu", "cuda"):
        raise unknown_name("--device", options.device, ("cpu", "cuda"))
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: this machine has no GPU that torch can use.")
    if min(*options.size) < 2 * SCALE or min(options.classes, options.batch) < 1:
        raise ConfigError(f"--size must be at least {2 * SCALE} {2 * SCALE}, --classes and --batch at least 1.")
    case = Case(options.classes, options.batch, tuple(options.size), options.device)
    logits, labels = case.tensors()
    (loss, gradient), (plain_loss, plain_gradient) = (step(form, logits, labels) for form in FORMS)
    assert (loss - plain_loss).abs() < 2e-6 * plain_loss, "the losses do not agree"
    assert (gradient - plain_gradient).norm() < 2e-6 * plain_gradient.norm(), "the gradients do not agree"
    peaks = []
    for form in FORMS:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh:
            peaks.append(fresh.submit(peak, form, case).result())
    times = interleave([functools.partial(step, form, logits, labels) for form in FORMS], options.rounds)
    medians = [statistics.median(taken) for taken in times]
    rows = zip(FORMS, peaks, times, medians, strict=True)
    return [
        {
            "name": form,
            "peak_mebibytes": most,
            "times_ours_in_memory": most / max(peaks[0], 1e-9),
            "seconds": median,
            "spread": spread(taken),
            "times_ours": median / medians[0],
        }
        for form, most, taken, median in rows
    ]
