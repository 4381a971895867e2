"""One whole training step: forward, loss, backward, SGD."""

from __future__ import annotations

import argparse
import contextlib
import statistics
from collections.abc import Callable
from typing import TYPE_CHECKING

from benchmarks.infer import TIMM_NAMES
from benchmarks.timing import interleave, spread

from resnest_seg.errors import ConfigError, unknown_name

if TYPE_CHECKING:
    from torch import Tensor, nn

    from resnest_seg.segmenter import Segmenter

    Step = Callable[[], Tensor]

CLASSES, AUX_WEIGHT = 150, 0.2
PRECISIONS = ("fp32", "bf16")


def stepper(model: nn.Module, compute: Callable[[], Tensor], options: argparse.Namespace) -> Step:
    """A function that takes one step of SGD and returns the loss before it."""
    import torch

    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)

    def step() -> Tensor:
        half = torch.autocast(options.device, torch.bfloat16) if options.precision == "bf16" else None
        with half or contextlib.nullcontext():
            loss = compute()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if options.device == "cuda":
            torch.cuda.synchronize()
        return loss.detach()

    return step


def ours(model: nn.Module, images: Tensor, labels: Tensor, options: argparse.Namespace) -> Step:
    """Channels-last memory, logits at feature size, the lean loss."""
    import torch

    from resnest_seg.losses import SegmentationLoss

    loss = SegmentationLoss(AUX_WEIGHT, align_corners=True)
    forward = torch.compile(model) if options.compile else model

    def compute() -> Tensor:
        output = forward(images, coarse=True)
        value: Tensor = loss(output.logits, output.aux_logits, labels, pixels=loss.weight_of(labels))
        return value

    return stepper(model, compute, options)


def plain(model: Segmenter, images: Tensor, labels: Tensor, options: argparse.Namespace) -> Step:
    """As PyTorch-Encoding trains: its network and memory, logits and aux logits of full size, two cross-entropies."""
    import torch
    import torch.nn.functional as F
    from benchmarks.plain import PlainSegmenter

    form = PlainSegmenter(model)
    forward = torch.compile(form) if options.compile else form

    def compute() -> Tensor:
        logits, aux_logits = forward(images)
        main = F.cross_entropy(logits, labels, ignore_index=255)
        return main + AUX_WEIGHT * F.cross_entropy(aux_logits, labels, ignore_index=255)

    return stepper(form, compute, options)


def smp_step(images: Tensor, labels: Tensor, options: argparse.Namespace) -> Step:
    """DeepLabV3 of segmentation-models-pytorch on timm's encoder; it has no auxiliary head, so it does less."""
    import segmentation_models_pytorch as smp
    import torch.nn.functional as F

    encoder = f"tu-{TIMM_NAMES[options.encoder]}"
    model = smp.DeepLabV3(encoder, encoder_weights=None, classes=CLASSES, encoder_output_stride=8).to(options.device)
    pixels = (images - 116) / 58
    return stepper(model, lambda: F.cross_entropy(model(pixels), labels, ignore_index=255), options)


def still(model: Segmenter) -> Segmenter:
    """Without dropout, whose random numbers depend on the memory format."""
    from torch import nn as layers

    for part in model.modules():
        if isinstance(part, layers.Dropout | layers.Dropout2d):
            part.p = 0.0
    return model


def contestants(options: argparse.Namespace) -> dict[str, Step]:
    """The steps; ours and the plain one start from the same weights."""
    import segmentation_models_pytorch as smp
    import torch

    from resnest_seg.segmenter import build_segmenter

    torch.manual_seed(0)
    images = torch.randint(0, 256, (options.batch, 3, *options.size)).float().to(options.device)
    labels = torch.randint(0, CLASSES, (options.batch, *options.size))
    labels[:, -options.size[0] // 10 :] = 255
    labels = labels.to(options.device)
    models = [still(build_segmenter(options.encoder, num_classes=CLASSES)).to(options.device) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    steps = {
        f"{options.encoder} DeepLabV3, ours": ours(models[0], images, labels, options),
        f"{options.encoder} DeepLabV3, plain": plain(models[1], images, labels, options),
    }
    if options.device == "cuda" and options.encoder in TIMM_NAMES:
        steps[f"{options.encoder} DeepLabV3, SMP {smp.__version__}"] = smp_step(images, labels, options)
    return steps


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--encoder", default="resnest50", help="default: resnest50")
    parser.add_argument("--size", type=int, nargs=2, default=(240, 240), metavar=("H", "W"), help="default: 240 240")
    parser.add_argument("--batch", type=int, default=2, help="images (default: 2)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--precision", default="fp32", help="fp32 or bf16, by autocast (default: fp32)")
    parser.add_argument("--compile", action="store_true", help="run both through torch.compile")


def run(options: argparse.Namespace) -> list[dict[str, object]]:
    """One row a step, ours first; equal losses of the first two steps are checked before."""
    import torch

    if options.device not in ("cpu", "cuda"):
        raise unknown_name("--device", options.device, ("cpu", "cuda"))
    if options.precision not in PRECISIONS:
        raise unknown_name("--precision", options.precision, PRECISIONS)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: this machine has no GPU that torch can use.")
    if min(options.size) < 32 or options.batch < 2:
        raise ConfigError("--size must be at least 32 32, and --batch at least 2, which batch norm needs.")
    steps = contestants(options)
    tolerance = 5e-4 if options.precision == "fp32" else 2e-2  # rounding grows from step to step
    first = list(steps.values())[:2]
    for _ in range(2):  # the second tells whether the gradients agree, too
        mine, theirs = (float(step()) for step in first)
        assert abs(mine - theirs) < tolerance * abs(theirs), f"the losses do not agree: {mine} and {theirs}"
    peaks = [_peak(step) if options.device == "cuda" else None for step in steps.values()]
    times = interleave(list(steps.values()), options.rounds)
    medians = [statistics.median(taken) for taken in times]
    rows = []
    for name, most, taken, median in zip(steps, peaks, times, medians, strict=True):
        row: dict[str, object] = {"name": name, "seconds": median, "spread": spread(taken)}
        row |= {"images_per_second": options.batch / median, "times_ours": median / medians[0]}
        rows.append(row if most is None else row | {"peak_mebibytes": most})
    return rows


def _peak(step: Step) -> float:
    """The most memory of a step on the GPU, weights and momenta of all contestants taken off, in mebibytes."""
    import torch

    step()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    return float(torch.cuda.max_memory_allocated() - before) / 2**20
