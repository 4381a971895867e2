"""From pixels to labels: ours beside the plain form, segmentation-models-pytorch and torchvision."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import multiprocessing
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING, Any

from resnest_seg.cli.benchmark.eval import settle
from resnest_seg.cli.benchmark.limits import peak_gflops
from resnest_seg.cli.benchmark.measuring import interleave, peak_during, spread
from resnest_seg.cli.benchmark.options import add_network, check_network, require
from resnest_seg.errors import ConfigError, unknown_name

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from resnest_seg.models.segmenter import Segmenter

    Labeller = Callable[[], list[Any]]

TIMM_NAMES = {"resnest14": "resnest14d", "resnest26": "resnest26d", "resnest50": "resnest50d"}
TIMM_NAMES |= {"resnest101": "resnest101e", "resnest200": "resnest200e", "resnest269": "resnest269e"}
"""Our encoders that timm has as well -> timm's names."""

CLASSES = 150
PEERS = ("plain", "smp", "torchvision", "encoders")
"""Names of the peers, see `contestants`; the last compares our encoder alone with timm's."""


@dataclasses.dataclass(frozen=True)
class Contestant:
    """One way from photos to labels.

    Attributes:
        model: The network whose parameters and operations are counted.
        label: Labels the photos.
        same: The network is ours, with the weights of ours: the labels must be the same.
    """

    model: nn.Module
    label: Labeller
    same: bool = True


def scenes(size: Sequence[int], number: int) -> list[NDArray[np.uint8]]:
    """Drawn street scenes, RGB [H, W, 3]; where there are fewer, the first ones again."""
    from resnest_seg.data.synthetic import Synthetic

    drawn = Synthetic("train", size=(size[0], size[1]))
    different = [drawn[index].image for index in range(min(number, len(drawn)))]
    return [different[index % len(drawn)] for index in range(number)]


def photos(options: argparse.Namespace) -> list[NDArray[np.uint8]]:
    """As many of the scenes as a batch has."""
    return scenes(options.size, options.batch)


def ours(options: argparse.Namespace) -> Segmenter:
    """The network, always with the same weights and norms like those of a trained one."""
    import torch

    from resnest_seg.models.loading import build_segmenter

    torch.manual_seed(0)
    dilation = "timm" if "smp" in options.peers or "encoders" in options.peers else "encoding"
    model = build_segmenter(options.encoder, head=options.head, dilation=dilation, num_classes=CLASSES).eval()
    settle(model)
    return model


def predicting(options: argparse.Namespace, *, fuse: bool, compiled: bool = False) -> Contestant:
    """Ours, as a user calls it: a `Predictor`."""
    from resnest_seg.inference.predictor import Predictor
    from resnest_seg.labels import LabelSpace

    model = ours(options)
    model.label_space = LabelSpace.of("ade20k")
    counted = ours(options)  # with its norms, as the peers have theirs
    predictor = Predictor(
        model,
        device=options.device,
        fuse=fuse,
        compiled=compiled,
        precision=options.precision,
        batch=options.batch,
    )
    images = photos(options)
    return Contestant(counted, lambda: [found.labels for found in predictor(list(images))])


def labelling(
    model: nn.Module, logits: Callable[[nn.Module, object], object], options: argparse.Namespace, *, same: bool
) -> Contestant:
    """A network as its own documentation calls it: normalise, run, argmax; NCHW memory."""
    import contextlib

    import numpy as np
    import torch

    model = model.to(options.device).eval()
    images = photos(options)
    mean, std = (torch.tensor(v, device=options.device).view(3, 1, 1) for v in ((124, 116, 104), (58.4, 57.1, 57.4)))

    @torch.inference_mode()
    def label() -> list[NDArray[np.uint8]]:
        pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous().to(options.device).float()
        half = torch.autocast(options.device, torch.bfloat16) if options.precision == "bf16" else None
        with half or contextlib.nullcontext():
            found: torch.Tensor = logits(model, pixels if same else (pixels - mean) / std)  # type: ignore[assignment]
        return list(found.argmax(dim=1).to(torch.uint8).cpu().numpy())

    return Contestant(model, label, same)


def contestants(options: argparse.Namespace) -> dict[str, Callable[[], Contestant]]:
    """Name -> what builds the contestant; the first is the one that the others are compared with."""
    found: dict[str, Callable[[], Contestant]] = {}
    found["ours, fused"] = lambda: predicting(options, fuse=True)
    found["ours, not fused"] = lambda: predicting(options, fuse=False)
    if options.compile:
        found["ours, fused, compiled"] = lambda: predicting(options, fuse=True, compiled=True)
    if "plain" in options.peers:
        found["plain form"] = lambda: labelling(
            plain(options), lambda model, images: model(images)[0], options, same=True
        )
    if "smp" in options.peers and options.head == "deeplabv3" and options.encoder in TIMM_NAMES:
        found["SMP and timm"] = lambda: labelling(
            smp(options), lambda model, images: model(images), options, same=False
        )
    if "torchvision" in options.peers:
        found["torchvision resnet50"] = lambda: labelling(
            torchvision(), lambda model, images: model(images)["out"], options, same=False
        )
    return found


def plain(options: argparse.Namespace) -> nn.Module:
    """Our weights in the authors' form."""
    from resnest_seg.cli.benchmark.plain import PlainSegmenter

    return PlainSegmenter(ours(options))


def smp(options: argparse.Namespace) -> nn.Module:
    """DeepLabV3 of segmentation-models-pytorch on timm's encoder, at output stride 8."""
    import segmentation_models_pytorch

    model: nn.Module = segmentation_models_pytorch.DeepLabV3(
        f"tu-{TIMM_NAMES[options.encoder]}", encoder_weights=None, classes=CLASSES, encoder_output_stride=8
    )
    settle(model)
    return model


def torchvision() -> nn.Module:
    """torchvision's DeepLabV3, on another and smaller encoder."""
    from torchvision.models.segmentation import deeplabv3_resnet50

    model: nn.Module = deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=CLASSES, aux_loss=False)
    settle(model)
    return model


def peak(name: str, options: argparse.Namespace) -> float:
    """Mebibytes of main memory above the loaded model at the worst moment of the first call, in a fresh process."""
    return peak_during(contestants(options)[name]().label)


def gpu_peak(label: Labeller) -> float:
    """Mebibytes of GPU memory above the loaded models at the worst moment of a call after the first."""
    import torch

    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    label()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def count(model: nn.Module, options: argparse.Namespace, *, channels: int = 3) -> tuple[float, float]:
    """Parameters in millions without an auxiliary head, and GFLOPs of one call; a multiply-add counts as two."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    device = next(model.parameters()).device
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(options.batch, channels, *options.size, device=device))
    used = (p.numel() for key, p in model.named_parameters() if "aux_head." not in key)
    return sum(used) / 1e6, counter.get_total_flops() / 1e9


def encoders(options: argparse.Namespace) -> dict[str, Contestant]:
    """Our encoder and timm's with the same weights, in NCHW and channels-last memory as either is used.

    Raises:
        AssertionError: The outputs differ, so that comparing times would mean nothing.
    """
    import contextlib

    import timm
    import torch
    from torch.nn.utils import convert_conv2d_weight_memory_format

    from resnest_seg.config import ModelConfig
    from resnest_seg.models.resnest import ResNeSt

    name = TIMM_NAMES[options.encoder]
    theirs = timm.create_model(name, features_only=True, output_stride=8, out_indices=(1, 2, 3, 4)).eval()
    settle(theirs)
    mine = ResNeSt(ModelConfig(options.encoder, output_stride=8, dilation="timm")).eval()
    mine.load_state_dict(theirs.state_dict())
    convert_conv2d_weight_memory_format(mine, torch.channels_last)  # as a Segmenter does
    models = {"encoder alone, ours": mine, "encoder alone, timm": theirs}
    images = torch.randn(options.batch, 3, *options.size).to(options.device)
    laid = images.contiguous(memory_format=torch.channels_last)
    found = {}

    @torch.inference_mode()
    def features(model: nn.Module, pixels: torch.Tensor) -> list[torch.Tensor]:
        half = torch.autocast(options.device, torch.bfloat16) if options.precision == "bf16" else None
        with half or contextlib.nullcontext():
            maps = list(model(pixels))
        if options.device == "cuda":  # or the next contestant's time would hold this one's
            torch.cuda.synchronize()
        return maps

    for (title, model), pixels in zip(models.items(), (laid, images), strict=True):
        found[title] = Contestant(model.to(options.device), functools.partial(features, model, pixels))
    rounding = {"fp32": 1e-3 if options.device == "cpu" else 1e-2, "bf16": 5e-2}  # a GPU takes TF32 for fp32
    tolerance = rounding[options.precision]
    for a, b in zip(*(contestant.label() for contestant in found.values()), strict=True):
        assert (a - b).abs().max() < tolerance * b.abs().max(), "our encoder and timm's do not agree"
    return found


def require_peers(options: argparse.Namespace) -> None:
    """Refuse peers that are not installed; see `require`."""
    packages = {"smp": ("segmentation_models_pytorch", "timm"), "encoders": ("timm",), "torchvision": ("torchvision",)}
    for peer in options.peers:
        require(packages.get(peer, ()), instead=f"pip install resnest-seg, or leave {peer} out of --peers")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    add_network(parser, size=(480, 480), batch=1, peers=PEERS)
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True, help="peaks, in own processes")


def check(options: argparse.Namespace) -> None:
    """Refuse what cannot be measured.

    Raises:
        ConfigError: Says which.
    """
    check_network(options)
    if max(side % 8 for side in options.size):
        raise ConfigError(f"--size must be multiples of 8, not {options.size[0]} {options.size[1]}.")
    if {"smp", "encoders"} & set(options.peers) and options.encoder not in TIMM_NAMES:
        raise unknown_name("encoder of timm", options.encoder, TIMM_NAMES)
    require_peers(options)


def run(options: argparse.Namespace) -> list[dict[str, object]]:
    """One row a contestant, ours first; networks with our weights must give our labels."""
    import torch

    check(options)
    dtype = torch.float32 if options.precision == "fp32" else torch.bfloat16
    built = {name: build() for name, build in contestants(options).items()}
    first = next(iter(built.values())).label()
    for name, contestant in built.items():
        pairs = zip(contestant.label(), first, strict=True)
        equal = statistics.mean(float((mine == theirs).mean()) for mine, theirs in pairs)
        bound = 0.999 if options.precision == "fp32" else 0.97
        assert equal > bound or not contestant.same, f"{name}: only {equal:.4%} of the labels agree"
    peaks: dict[str, object] = dict.fromkeys(built, "-")
    for name in built if options.memory else ():
        if options.device == "cuda":  # whose allocator counts exactly
            peaks[name] = gpu_peak(built[name].label)
            continue
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh:
            peaks[name] = fresh.submit(peak, name, options).result()
    if "encoders" in options.peers:
        built |= encoders(options)
    kernels = peak_gflops(options.device, dtype)
    times = interleave([contestant.label for contestant in built.values()], options.rounds)
    medians = [statistics.median(taken) for taken in times]
    counts = [count(contestant.model, options) for contestant in built.values()]
    # a network can beat the kernels that were tried: then the fastest network is the limit
    limit = max(kernels, *(gflops / median for (_, gflops), median in zip(counts, medians, strict=True)))
    rows: list[dict[str, object]] = []
    for name, (parameters, gflops), taken, median in zip(built, counts, times, medians, strict=True):
        reference = medians[len(peaks)] if name not in peaks else medians[0]
        rows.append(
            {
                "name": name,
                "parameters_m": parameters,
                "gflops": gflops,
                "seconds": median,
                "spread": spread(taken),
                "gflops_per_second": gflops / median,
                "share_of_peak": gflops / median / limit,
                "peak_mebibytes": peaks.get(name, "-"),
                "times_ours": median / reference,
            }
        )
    return rows
