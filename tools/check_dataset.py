"""Check a data set before training: every photo and mask, ids, classes, duplicates between splits.

python tools/check_dataset.py --dataset ade20k
python tools/check_dataset.py --dataset folder --data.root /data/mine --workers 8

Exit code 1, with the list of offenders, if training would go wrong.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from resnest_seg.errors import ConfigError, DatasetError, run_tool

if TYPE_CHECKING:
    from resnest_seg.samples import SegmentationDataset

SPLITS = ("train", "val", "test")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="check_dataset.py", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--dataset", required=True, help="synthetic, camvid, ade20k, cityscapes or folder")
    parser.add_argument("--data.root", dest="root", help="folder or zip file (default: as in training)")
    parser.add_argument("--data.classes", dest="classes", help="for folder: the list of classes (CSV or YAML)")
    parser.add_argument(
        "--splits", help="by comma, the first is what others are compared with (default: all there are)"
    )
    parser.add_argument("--limit", type=int, help="look at LIMIT samples of each split, spread over it")
    parser.add_argument("--workers", type=int, default=4, help="processes, at most one a core (default: 4)")
    parser.add_argument("--output", help="the JSON report (default: check_DATASET.json in this folder)")
    return parser.parse_args(argv)


def open_splits(options: argparse.Namespace) -> list[SegmentationDataset]:
    """The splits that were asked for; without --splits, train and what else is there."""
    from resnest_seg.catalog import build_dataset

    def opened(split: str) -> SegmentationDataset:
        return build_dataset(
            options.dataset, root=options.root, split=split, classes=options.classes, allow_missing=True
        )

    if options.splits:
        return [opened(split) for split in options.splits.split(",")]
    found = [opened("train")]
    for split in SPLITS[1:]:
        try:
            found.append(opened(split))
        except DatasetError:  # not every data set has every split
            continue
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Check; returns the exit code."""
    options = parse(argv)
    if options.limit is not None and options.limit < 1:
        raise ConfigError(f"--limit must be at least 1, not {options.limit}.")
    if options.workers < 0:
        raise ConfigError(f"--workers must not be negative, it is {options.workers}.")

    from rich.console import Console
    from rich.progress import Progress

    from resnest_seg.doctor import diagnose, spread

    splits = open_splits(options)
    total = sum(len(spread(len(dataset), options.limit)) for dataset in splits)
    with Progress(transient=True) as progress:
        bar = progress.add_task("checking", total=total)
        diagnosis = diagnose(
            splits, limit=options.limit, workers=options.workers, on_sample=lambda fact: progress.advance(bar)
        )
    console = Console(soft_wrap=True)
    console.print(diagnosis.table())
    for split, (smallest, median, largest) in ((s, sizes) for s, sizes in diagnosis.sizes.items() if sizes):
        sizes = ", ".join(f"{width} x {height}" for height, width in (smallest, median, largest))
        console.print(f"{split}: sizes (smallest, median, largest) {sizes}")
    console.print(f"suggested crop: {diagnosis.suggested_crop}")
    for finding in diagnosis.findings:
        console.print(f"{finding.severity}: {finding.kind}: {finding.message}", markup=False, highlight=False)
        if finding.severity == "error" and len(finding.files) > 1:
            for file in finding.files[:20]:
                console.print(f"  {file}", markup=False, highlight=False)
            if len(finding.files) > 20:
                console.print(f"  and {len(finding.files) - 20} more, in the report", markup=False)
    output = options.output or f"check_{options.dataset}.json"
    diagnosis.save(output)
    verdict = f"{len(diagnosis.errors)} errors: training would go wrong" if diagnosis.errors else "ready for training"
    console.print(f"{verdict}. Report: {output}", markup=False, highlight=False)
    return 1 if diagnosis.errors else 0


if __name__ == "__main__":
    raise SystemExit(run_tool(main))
