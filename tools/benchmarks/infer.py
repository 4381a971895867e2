"""Forward passes of one image beside other toolkits."""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from typing import TYPE_CHECKING

from benchmarks.timing import interleave, spread

from resnest_seg.errors import ConfigError, unknown_name

if TYPE_CHECKING:
    from torch import Tensor, nn

TIMM_NAMES = {"resnest14": "resnest14d", "resnest26": "resnest26d", "resnest50": "resnest50d"}
TIMM_NAMES |= {"resnest101": "resnest101e", "resnest200": "resnest200e", "resnest269": "resnest269e"}
"""Our encoders that timm has as well -> timm's names."""


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One contestant of a benchmark.

    Attributes:
        name: What was measured.
        parameters: In millions, without an auxiliary head.
        gflops: Of one forward pass; a multiplication and an addition count as two.
        seconds: Median time of one call.
        spread: Half the distance between the quartiles, as a share of the median.
    """

    name: str
    parameters: float
    gflops: float
    seconds: float
    spread: float


def measure(models: dict[str, nn.Module], images: Tensor, rounds: int) -> list[Measurement]:
    """Count and time one forward pass of each model in eval mode."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    gflops = []
    with torch.inference_mode():
        for model in models.values():
            with FlopCounterMode(display=False) as counter:
                model(images)
            gflops.append(counter.get_total_flops() / 1e9)
        calls = [lambda model=model: model(images) for model in models.values()]
        times = interleave(calls, rounds)
    rows = []
    for name, flops, taken in zip(models, gflops, times, strict=True):
        used = (p.numel() for key, p in models[name].named_parameters() if not key.startswith("aux_head."))
        rows.append(Measurement(name, sum(used) / 1e6, flops, statistics.median(taken), spread(taken)))
    return rows


def contestants(encoder: str, size: tuple[int, int]) -> tuple[dict[str, nn.Module], Tensor]:
    """The models, and images for them; ours and timm's encoder have the same weights, and the same outputs.

    Raises:
        ConfigError: timm has no such encoder.
        AssertionError: The outputs differ, so that comparing times would mean nothing.
    """
    import segmentation_models_pytorch as smp
    import timm
    import torch
    from torch.nn.utils import convert_conv2d_weight_memory_format

    from resnest_seg.resnest import build_encoder
    from resnest_seg.segmenter import build_segmenter

    if encoder not in TIMM_NAMES:
        raise unknown_name("encoder of timm", encoder, TIMM_NAMES)
    name = TIMM_NAMES[encoder]
    torch.manual_seed(0)
    theirs = timm.create_model(name, features_only=True, output_stride=8, out_indices=(1, 2, 3, 4)).eval()
    ours = build_encoder(encoder, output_stride=8, dilation="timm").eval()
    convert_conv2d_weight_memory_format(ours, torch.channels_last)  # as a Segmenter does
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(1, 3, *size).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        for a, b in zip(ours(images), theirs(images), strict=True):
            assert (a - b).abs().max() < 1e-3 * b.abs().max(), "our encoder and timm's do not agree"
    whole = build_segmenter(encoder, dilation="timm", num_classes=150).eval()
    peer = smp.DeepLabV3(f"tu-{name}", encoder_weights=None, classes=150, encoder_output_stride=8).eval()
    return {
        f"{encoder} encoder, ours": ours,
        f"{encoder} encoder, timm {timm.__version__} ({name})": theirs,
        f"{encoder} DeepLabV3, ours": whole,
        f"{encoder} DeepLabV3, SMP {smp.__version__} (tu-{name})": peer,
    }, images


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--encoder", default="resnest50", help=f"one of {', '.join(TIMM_NAMES)} (default: resnest50)")
    parser.add_argument("--size", type=int, nargs=2, default=(512, 512), metavar=("H", "W"), help="default: 512 512")


def run(options: argparse.Namespace) -> list[dict[str, object]]:
    """One row a contestant, ours first in each pair."""
    if min(options.size) < 32:
        raise ConfigError("--size must be at least 32 32.")
    models, images = contestants(options.encoder, tuple(options.size))
    rows = measure(models, images, options.rounds)
    return [
        dataclasses.asdict(row) | {"times_ours": row.seconds / rows[place - place % 2].seconds}
        for place, row in enumerate(rows)
    ]
