"""Evaluate a trained model: a table by class, mIoU and pixel accuracy, and a JSON report.

python tools/eval_seg.py --checkpoint runs/my_run
python tools/eval_seg.py --checkpoint runs/my_run --dataset camvid --data.root /data/camvid --split test
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from resnest_seg.errors import CheckpointError, ConfigError, run_tool

if TYPE_CHECKING:
    from resnest_seg.evaluation import EvalReport, EvaluatedImage
    from resnest_seg.samples import SegmentationDataset
    from resnest_seg.segmenter import Segmenter


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; the data set and its folder default to those of the checkpoint's own run."""
    parser = argparse.ArgumentParser(prog="eval_seg.py", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--checkpoint", required=True, help="a run folder (its best checkpoint), a checkpoint file, or "
                        "the name of a published checkpoint (tools/zoo_seg.py lists them)")  # fmt: skip
    parser.add_argument(
        "--dataset", help="synthetic, camvid, ade20k, cityscapes or folder (default: the one trained on)"
    )
    parser.add_argument("--data.root", dest="root", help="folder of the data set (default: as in training)")
    parser.add_argument("--split", help="train, val or test (default: the one validated on in training)")
    parser.add_argument("--protocols", default="whole", help="inference protocols, by comma (default: whole)")
    parser.add_argument("--limit", type=int, help="evaluate the first LIMIT images only")
    parser.add_argument("--workers", type=int, default=2, help="loader processes (default: 2)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ... (default: auto)")
    parser.add_argument("--output", help="the JSON report (default: eval_DATASET_SPLIT.json beside the checkpoint)")
    parser.add_argument("--overwrite", action="store_true", help="replace the report if it exists")
    parser.add_argument("--submission", metavar="ZIP", help="write the predictions of the first protocol as the server "
                        "of Cityscapes or ADE20K wants them; the split may be without labels")  # fmt: skip
    return parser.parse_args(argv)


def existing_parent(path: Path) -> Path:
    """The nearest folder above `path` that exists."""
    return next(folder for folder in path.absolute().parents if folder.exists())


def report_path(options: argparse.Namespace, source: Path, name: str, split: str) -> Path:
    """Where the report goes, before anything is computed for it.

    Raises:
        CheckpointError: It exists already, or cannot be written.
    """
    folder = source.parent if Path(options.checkpoint).exists() else Path()  # a published one lies in a shared folder
    first = f"_first{options.limit}" if options.limit else ""
    output = Path(options.output) if options.output else folder / f"eval_{name}_{split}{first}.json"
    if output.exists() and not options.overwrite:
        raise CheckpointError(f"report {output} already exists. Choose another --output, or pass --overwrite.")
    if output.is_dir() or not os.access(existing_parent(output), os.W_OK):
        raise CheckpointError(f"cannot write the report to {output}. Choose another file with --output.")
    return output


def run(segmenter: Segmenter, dataset: SegmentationDataset, options: argparse.Namespace) -> EvalReport:
    """Evaluate with a progress bar, and write the submission if one is asked for."""
    from rich.progress import Progress

    from resnest_seg.datasets import PairedFiles
    from resnest_seg.evaluation import evaluate
    from resnest_seg.submission import Submission

    count = min(len(dataset), options.limit or len(dataset))
    with contextlib.ExitStack() as opened:
        submission = None
        if options.submission:
            photos = [image for image, _ in dataset.pairs] if isinstance(dataset, PairedFiles) else []
            submission = opened.enter_context(Submission(options.submission, dataset.label_space, photos))
        progress = opened.enter_context(Progress(transient=True))
        bar = progress.add_task("evaluating", total=count)

        def on_image(image: EvaluatedImage) -> None:
            progress.update(bar, advance=1, description=f"mIoU {image.mean_iou:.3f}")
            if submission is not None:
                height, width = image.image.shape[:2]
                submission.add(image.name, image.predictions, size=(height, width))

        report = evaluate(
            segmenter,
            dataset,
            protocols=options.protocols.split(","),
            indices=range(count),
            workers=options.workers,
            on_image=on_image,
            require_labels=submission is None,
        )
    if submission is not None:
        print(f"submission: {options.submission}, {count} predictions, validated", file=sys.stderr)
    return report


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate; returns the exit code."""
    options = parse(argv)
    if options.limit is not None and options.limit < 1:
        raise ConfigError(f"--limit must be at least 1, not {options.limit}.")
    if options.submission and options.limit is not None:
        raise ConfigError("a submission needs every photo of the split: leave --limit out.")
    if options.workers < 0:
        raise ConfigError(f"--workers must not be negative, it is {options.workers}.")

    from rich.console import Console

    from resnest_seg.catalog import DATASETS, build_dataset
    from resnest_seg.inference import protocol
    from resnest_seg.predictor import choose_device
    from resnest_seg.zoo import load_checkpoint

    segmenter = load_checkpoint(options.checkpoint)
    assert segmenter.load_report is not None
    data, split = segmenter.config.data, options.split or segmenter.config.eval.split
    name = options.dataset or data.dataset
    if options.dataset is None and name not in DATASETS:
        raise ConfigError(
            f"the checkpoint is for data set {name!r}, for which there is no loader here. Name the data to evaluate on "
            "with --dataset; folder takes your own photos and masks."
        )
    trained = name == data.dataset
    root, classes = options.root or (data.root if trained else None), data.classes if trained else None
    dataset = build_dataset(name, root=root, split=split, classes=classes)
    output = report_path(options, segmenter.load_report.path, name, split)
    for protocol_name in options.protocols.split(","):
        protocol(protocol_name)
    segmenter.to(choose_device(options.device))
    print(segmenter.load_report, file=sys.stderr)
    report = run(segmenter, dataset, options)
    if not any(sum(scores.class_share) for scores in report.scores.values()):
        print(f"the {split} split of {name} has no labels: nothing to measure", file=sys.stderr)
        return 0
    report = dataclasses.replace(report, checkpoint=str(segmenter.load_report.path))
    Console().print(report.table())
    report.save(output)
    print(f"report: {output}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(run_tool(main))
