"""Evaluate a trained model: a table by class, mIoU and pixel accuracy, and a JSON report.

python tools/eval_seg.py --checkpoint runs/my_run
python tools/eval_seg.py --checkpoint runs/my_run --dataset camvid --data.root /data/camvid --split test
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from resnest_seg.errors import CheckpointError, ConfigError, run_tool


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; the data set and its folder default to those of the checkpoint's own run."""
    parser = argparse.ArgumentParser(prog="eval_seg.py", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--checkpoint", required=True, help="a run folder (its best checkpoint), a checkpoint file, or "
                        "the name of a published checkpoint (tools/zoo_seg.py lists them)")  # fmt: skip
    parser.add_argument("--dataset", help="synthetic, camvid, ade20k or cityscapes (default: the one trained on)")
    parser.add_argument("--data.root", dest="root", help="folder of the data set (default: as in training)")
    parser.add_argument("--split", help="train, val or test (default: the one validated on in training)")
    parser.add_argument("--protocols", default="whole", help="inference protocols, by comma (default: whole)")
    parser.add_argument("--limit", type=int, help="evaluate the first LIMIT images only")
    parser.add_argument("--workers", type=int, default=2, help="loader processes (default: 2)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ... (default: auto)")
    parser.add_argument("--output", help="the JSON report (default: eval_DATASET_SPLIT.json beside the checkpoint)")
    parser.add_argument("--overwrite", action="store_true", help="replace the report if it exists")
    return parser.parse_args(argv)


def existing_parent(path: Path) -> Path:
    """The nearest folder above `path` that exists."""
    return next(folder for folder in path.absolute().parents if folder.exists())


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate; returns the exit code."""
    options = parse(argv)
    if options.limit is not None and options.limit < 1:
        raise ConfigError(f"--limit must be at least 1, not {options.limit}.")
    if options.workers < 0:
        raise ConfigError(f"--workers must not be negative, it is {options.workers}.")

    from rich.console import Console
    from rich.progress import Progress

    from resnest_seg.datasets import build_dataset
    from resnest_seg.evaluation import evaluate
    from resnest_seg.inference import protocol
    from resnest_seg.predictor import choose_device
    from resnest_seg.zoo import load_checkpoint

    segmenter = load_checkpoint(options.checkpoint)
    data, split = segmenter.config.data, options.split or segmenter.config.eval.split
    name = options.dataset or data.dataset
    root = options.root or (data.root if name == data.dataset else None)
    dataset = build_dataset(name, root=root, split=split)
    first = f"_first{options.limit}" if options.limit else ""
    assert segmenter.load_report is not None
    source = segmenter.load_report.path
    folder = source.parent if Path(options.checkpoint).exists() else Path()  # a published one lies in a shared folder
    beside = folder / f"eval_{name}_{split}{first}.json"
    output = Path(options.output) if options.output else beside
    if output.exists() and not options.overwrite:
        raise CheckpointError(f"report {output} already exists. Choose another --output, or pass --overwrite.")
    if output.is_dir() or not os.access(existing_parent(output), os.W_OK):
        raise CheckpointError(f"cannot write the report to {output}. Choose another file with --output.")
    for protocol_name in options.protocols.split(","):
        protocol(protocol_name)
    segmenter.to(choose_device(options.device))
    print(segmenter.load_report, file=sys.stderr)
    count = min(len(dataset), options.limit or len(dataset))
    with Progress(transient=True) as progress:
        bar = progress.add_task("evaluating", total=count)
        report = evaluate(
            segmenter,
            dataset,
            protocols=options.protocols.split(","),
            indices=range(count),
            workers=options.workers,
            on_image=lambda image: progress.update(bar, advance=1, description=f"mIoU {image.mean_iou:.3f}"),
        )
    report = dataclasses.replace(report, checkpoint=str(source))
    Console().print(report.table())
    report.save(output)
    print(f"report: {output}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(run_tool(main))
