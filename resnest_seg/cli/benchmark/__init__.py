"""Measure this package beside what else one would pick, in one run on this machine.

python tools/benchmark_seg.py infer
python tools/benchmark_seg.py infer --encoder resnest50 --size 512 512 --rounds 9 --json infer.json
python tools/benchmark_seg.py data --data.root /data/ade20k
python tools/benchmark_seg.py loss --classes 19 --batch 4 --size 512 1024
python tools/benchmark_seg.py train --encoder resnest50 --size 240 240 --batch 2
python tools/benchmark_seg.py models --checkpoint runs/large runs/small --size 360 480

infer    from pixels to labels: ours plain, fused and compiled, beside the authors' form of the same network, DeepLabV3
         of segmentation-models-pytorch on timm's encoder, torchvision's; and the encoder alone beside timm's. Equal
         labels are checked first; operations a second stand beside what this machine can do at most.
eval     the authors' multi-scale protocol on one image, beside their loop written plainly: one window at a time, a flip
         as a second call, NCHW, no folding. Equal labels are checked first.
data     training samples of the ADE20K recipe (decode, random long edge, pad, crop 480, flip, to tensor), on one core,
         beside the same recipe written with PIL as PyTorch-Encoding does. Equal samples are checked first.
export   one network in torch (eager, fused, compiled), onnxruntime (32 and 8 bits) and OpenVINO: pixels to labels; the
         equal labels are checked first. The 8-bit file is only timed: accuracy takes training.
loss     forward and backward of the cross-entropy of small logits: peak memory, each form in a fresh process, and time,
         beside F.interpolate and F.cross_entropy. Equal values and gradients are checked first.
models   accuracy of checkpoints against milliseconds, in every runtime that is installed, and which of them are worth
         having: no other is as accurate and as fast. Accuracy is that of their newest evaluation, or of --dataset.
metrics  counting the pairs of labels and predictions of an image, beside NumPy's histograms. Equal counts are checked
         first.
scale    how cost grows with pixels, images a batch, images of an evaluation, processes of a training, photos of a job
         (plain and by Ray), files of a listing, samples of a shard index, pairs of a loader: the exponent. All takes
         some ten minutes; --series photos listing index shards files is what docs/scale.md needs.
train    whole training steps: forward, loss, backward, SGD; beside a plain step as PyTorch-Encoding's, of the same
         network. Equal losses are checked first.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from resnest_seg.cli.benchmark import data, eval, export, infer, loss, metrics, models, scale, train
from resnest_seg.cli.main import complete
from resnest_seg.errors import ConfigError, program, usage
from resnest_seg.files import atomic_write, check_output_file

COMMANDS = {
    "infer": (infer, "from pixels to labels, beside other toolkits"),
    "eval": (eval, "the authors' multi-scale protocol on one image, beside their loop"),
    "data": (data, "training samples of the ADE20K recipe on one core, beside PIL"),
    "export": (export, "one network through every runtime that is installed"),
    "loss": (loss, "the training loss forward and backward, beside the plain form: memory and time"),
    "models": (models, "accuracy of checkpoints against milliseconds, in every runtime that is installed"),
    "metrics": (metrics, "counting pairs of labels and predictions, beside NumPy's histograms"),
    "scale": (scale, "how cost grows with work"),
    "train": (train, "whole training steps, beside a plain step of the same network"),
}
"""Name -> the file that measures it, and its line of help."""


HEADINGS = {
    "parameters_m": "M params",
    "gflops": "GFLOP",
    "gflops_per_second": "GFLOP/s",
    "share_of_peak": "of peak",
    "gmacs": "GMAC/image",
    "milliseconds": "ms/image",
    "mean_iou": "mIoU",
    "pareto_front": "front",
    "peak_mebibytes": "MiB",
    "times_ours": "x ours",
    "times_ours_in_memory": "x ours MiB",
    "images_per_second": "images/s",
}
"""Names of figures in the JSON file -> short ones for the table, which has to fit a terminal."""


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog=program("benchmark"), description=usage(__doc__), allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (module, text) in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        module.add_arguments(command)
        command.add_argument("--rounds", type=int, default=9, help="timed calls of each, A B A B (default: 9)")
        command.add_argument("--json", help="write the figures to this file as well")
    complete(parser)
    return parser.parse_args(argv)


def cell(value: object) -> str:
    """A figure in the table: numbers to three digits, truth as a star, what is not known as a dash."""
    if isinstance(value, bool):
        return "*" if value else ""
    if isinstance(value, int | float):
        return f"{value:.3g}" if value < 1000 else f"{value:.0f}"
    return "-" if value is None else str(value)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; returns the exit code."""
    options = parse(argv)
    if options.rounds < 2:
        raise ConfigError(f"--rounds must be at least 2, not {options.rounds}.")

    if options.json:
        check_output_file(options.json, what="file", overwrite=True, option="--json")

    import torch

    from resnest_seg.io.display import PlainTable, console

    rows = COMMANDS[options.command][0].run(options)
    given = {key: getattr(options, key, None) for key in ("encoder", "head", "size", "batch", "device", "precision")}
    subject = ", ".join(f"{key} {value}" for key, value in given.items() if value is not None)
    table = PlainTable(
        title=f"{options.command}{': ' if subject else ''}{subject}\ntorch {torch.__version__}, "
        f"{torch.get_num_threads()} threads, medians of {options.rounds} interleaved rounds"
    )
    keys = [key for key in rows[0] if any(row[key] not in (None, "") for row in rows)]
    for key in keys:
        heading = HEADINGS.get(key, key.replace("_", " "))
        words = key in ("name", "runtime", "evaluation")
        table.column(heading, right=not words, no_wrap=not words)
    for row in rows:
        table.row(*(cell(row[key]) for key in keys))
    console(width=max(console().width, 110)).print(table)  # or the names would be cut
    if options.json:
        report = {"options": vars(options), "torch": torch.__version__, "threads": torch.get_num_threads()}
        text = json.dumps(report | {"measurements": rows}, indent=2, allow_nan=False)  # NaN is not JSON: None is null
        with atomic_write(options.json) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
    return 0
