"""Measure this package beside what else one would pick, in one run on this machine.

python tools/benchmark_seg.py infer
python tools/benchmark_seg.py infer --encoder resnest50 --size 512 512 --rounds 9 --json infer.json

infer    forward passes of one image: the encoder beside the same network of timm, with equal outputs checked first,
         and the whole model beside DeepLabV3 of segmentation-models-pytorch on timm's encoder.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from resnest_seg.errors import ConfigError, run_tool, unknown_name

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


def interleave(calls: Sequence[Callable[[], object]], rounds: int) -> list[list[float]]:
    """Time every call once a round, A B A B, so that a busy machine is unfair to none; after one warm-up each."""
    times: list[list[float]] = [[] for _ in calls]
    for current in range(rounds + 1):
        for place, call in enumerate(calls):
            start = time.perf_counter()
            call()
            if current:
                times[place].append(time.perf_counter() - start)
    return times


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
        low, median, high = statistics.quantiles(taken, n=4)
        used = (p.numel() for key, p in models[name].named_parameters() if not key.startswith("aux_head."))
        rows.append(Measurement(name, sum(used) / 1e6, flops, median, (high - low) / 2 / median))
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


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="benchmark_seg.py", description=__doc__.splitlines()[0], allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    infer = commands.add_parser("infer", help="forward passes of one image, output stride 8, float32, eager, CPU")
    infer.add_argument("--encoder", default="resnest50", help=f"one of {', '.join(TIMM_NAMES)} (default: resnest50)")
    infer.add_argument("--size", type=int, nargs=2, default=(512, 512), metavar=("H", "W"), help="default: 512 512")
    infer.add_argument("--rounds", type=int, default=9, help="timed calls of each, A B A B (default: 9)")
    infer.add_argument("--json", help="write the figures to this file as well")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; returns the exit code."""
    options = parse(argv)
    if options.rounds < 2 or min(options.size) < 32:
        raise ConfigError("--rounds must be at least 2, and --size at least 32 32.")

    import torch
    from rich.console import Console
    from rich.table import Table

    models, images = contestants(options.encoder, tuple(options.size))
    rows = measure(models, images, options.rounds)
    height, width = options.size
    table = Table(
        title=f"1 x 3 x {height} x {width}, output stride 8, float32, eager, CPU; torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads, median of {options.rounds} interleaved calls"
    )
    for heading in ("network", "M par.", "GFLOPs", "seconds", "spread", "times ours"):
        table.add_column(heading, justify="left" if heading == "network" else "right")
    for place, row in enumerate(rows):
        ratio = row.seconds / rows[place - place % 2].seconds
        cells = (f"{row.parameters:.2f}", f"{row.gflops:.1f}", f"{row.seconds:.3f}", f"{100 * row.spread:.0f} %")
        table.add_row(row.name, *cells, f"{ratio:.2f}")
    Console().print(table)
    if options.json:
        report = {"size": list(options.size), "torch": torch.__version__, "threads": torch.get_num_threads()}
        report["measurements"] = [dataclasses.asdict(row) for row in rows]
        Path(options.json).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_tool(main))
