"""One whole training step: forward, loss, backward, SGD."""

from __future__ import annotations

import argparse
import contextlib
import copy
import statistics
from collections.abc import Callable
from typing import TYPE_CHECKING

from resnest_seg.cli.benchmark.infer import TIMM_NAMES, require_peers
from resnest_seg.cli.benchmark.measuring import interleave, spread
from resnest_seg.cli.benchmark.options import add_network, check_network

if TYPE_CHECKING:
    from torch import Tensor, nn

    from resnest_seg.models.segmenter import Segmenter

    Step = Callable[[], Tensor]

CLASSES, AUX_WEIGHT = 150, 0.2
PEERS = ("plain", "plain-fp32", "smp")


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
    """Channels-last memory, logits at feature size, the lean loss; gradients of weights as the trainer has them."""
    import torch

    from resnest_seg.training.cpu_speed import faster_weight_gradients
    from resnest_seg.training.losses import SegmentationLoss

    loss = SegmentationLoss(AUX_WEIGHT, align_corners=True)
    forward = torch.compile(model) if options.compile else model

    def compute() -> Tensor:
        output = forward(images, coarse=True)
        value: Tensor = loss(output.logits, output.aux_logits, labels, pixels=loss.weight_of(labels))
        return value

    step = stepper(model, compute, options)

    def in_context() -> Tensor:
        with faster_weight_gradients(model):
            return step()

    return in_context


def plain(model: Segmenter, images: Tensor, labels: Tensor, options: argparse.Namespace) -> Step:
    """A training step of PyTorch-Encoding: its network, full-size logits and aux logits, two cross-entropies."""
    import torch
    import torch.nn.functional as F

    from resnest_seg.cli.benchmark.plain import PlainSegmenter

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
    import torch
    import torch.nn.functional as F

    encoder = f"tu-{TIMM_NAMES[options.encoder]}"
    model = smp.DeepLabV3(encoder, encoder_weights=None, classes=CLASSES, encoder_output_stride=8).to(options.device)
    forward = torch.compile(model) if options.compile else model
    pixels = (images - 116) / 58
    return stepper(model, lambda: F.cross_entropy(forward(pixels), labels, ignore_index=255), options)


def still(model: Segmenter) -> Segmenter:
    """Without dropout, whose random numbers depend on the memory format."""
    from torch import nn as layers

    for part in model.modules():
        if isinstance(part, layers.Dropout | layers.Dropout2d):
            part.p = 0.0
    return model


def contestants(options: argparse.Namespace) -> dict[str, Step]:
    """The steps; ours and the plain one start from the same weights. SMP's needs an encoder that timm has."""
    import torch

    from resnest_seg.models.loading import build_segmenter

    torch.manual_seed(0)
    images = torch.randint(0, 256, (options.batch, 3, *options.size)).float().to(options.device)
    labels = torch.randint(0, CLASSES, (options.batch, *options.size))
    labels[:, -options.size[0] // 10 :] = 255
    labels = labels.to(options.device)
    model = still(build_segmenter(options.encoder, head=options.head, num_classes=CLASSES)).to(options.device)
    steps = {"ours": ours(copy.deepcopy(model), images, labels, options)}
    if "plain" in options.peers:
        steps["plain"] = plain(model, images, labels, options)
    if "plain-fp32" in options.peers and options.precision != "fp32":
        full = argparse.Namespace(**{**vars(options), "precision": "fp32", "compile": False})
        steps["plain, fp32, not compiled"] = plain(model, images, labels, full)
    if "smp" in options.peers and options.head == "deeplabv3" and options.encoder in TIMM_NAMES:
        steps["SMP and timm"] = smp_step(images, labels, options)
    return steps


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    add_network(parser, size=(240, 240), batch=2, peers=PEERS)


def run(options: argparse.Namespace) -> list[dict[str, object]]:
    """One row a step, ours first; equal losses of ours and the plain form in two steps are checked before."""

    check_network(options, batch=2)  # which batch norm needs
    require_peers(options)
    steps = contestants(options)
    tolerance = 5e-4 if options.precision == "fp32" else 2e-2  # rounding grows from step to step
    for _ in range(2 if "plain" in steps else 0):  # the second tells whether the gradients agree, too
        mine, theirs = float(steps["ours"]()), float(steps["plain"]())
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
