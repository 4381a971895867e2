"""Measure this package beside what else one would pick, in one run on this machine.

python tools/benchmark_seg.py infer
python tools/benchmark_seg.py infer --encoder resnest50 --size 512 512 --rounds 9 --json infer.json
python tools/benchmark_seg.py data --data.root /data/ade20k

infer    forward passes of one image: the encoder beside the same network of timm, with equal outputs checked first,
         and the whole model beside DeepLabV3 of segmentation-models-pytorch on timm's encoder.
eval     the authors' multi-scale protocol on one image, beside their loop written plainly: one window at a time, a flip
         as a second call, NCHW, no folding. Equal labels are checked first.
data     training samples of the ADE20K recipe (decode, random long edge, pad, crop 480, flip, to tensor), on one core,
         beside the same recipe written with PIL as PyTorch-Encoding does. Equal samples are checked first.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks import data, eval, infer

from resnest_seg.errors import ConfigError, run_tool

COMMANDS = {
    "infer": (infer, "forward passes of one image, output stride 8, float32, eager, CPU"),
    "eval": (eval, "the authors' multi-scale protocol on one image, beside their loop"),
    "data": (data, "training samples of the ADE20K recipe on one core, beside PIL"),
}
"""Name -> the file that measures it, and its line of help."""


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="benchmark_seg.py", description=__doc__.splitlines()[0], allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (module, text) in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        module.add_arguments(command)
        command.add_argument("--rounds", type=int, default=9, help="timed calls of each, A B A B (default: 9)")
        command.add_argument("--json", help="write the figures to this file as well")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; returns the exit code."""
    options = parse(argv)
    if options.rounds < 2:
        raise ConfigError(f"--rounds must be at least 2, not {options.rounds}.")

    import torch
    from rich.console import Console
    from rich.table import Table

    rows = COMMANDS[options.command][0].run(options)
    table = Table(
        title=f"{options.command}: torch {torch.__version__}, {torch.get_num_threads()} threads, medians of "
        f"{options.rounds} interleaved rounds"
    )
    for heading in rows[0]:
        table.add_column(heading.replace("_", " "), justify="left" if heading == "name" else "right")
    for row in rows:
        table.add_row(*(value if isinstance(value, str) else f"{value:.4g}" for value in row.values()))
    Console().print(table)
    if options.json:
        report = {"options": vars(options), "torch": torch.__version__, "threads": torch.get_num_threads()}
        Path(options.json).write_text(json.dumps(report | {"measurements": rows}, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_tool(main))
