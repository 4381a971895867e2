"""Evaluate a trained model: a table by class, mIoU and pixel accuracy, and a JSON report.

python tools/eval_seg.py --checkpoint runs/my_run
python tools/eval_seg.py --checkpoint runs/my_run --dataset camvid --data.root /data/camvid --split test
python tools/eval_seg.py --checkpoint X --dataset ade20k --protocols whole,encoding,mmseg --boundaries --calibration
python tools/eval_seg.py --checkpoint model.onnx --data.root /data/camvid
torchrun --nproc-per-node 4 tools/eval_seg.py --checkpoint X --protocols encoding
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

from resnest_seg.config_checks import COUNT, check_option
from resnest_seg.errors import CheckpointError, ConfigError, run_tool
from resnest_seg.exported import is_exported

if TYPE_CHECKING:
    from accelerate import PartialState
    from torch import Tensor

    from resnest_seg.evaluation import EvaluatedImage
    from resnest_seg.model import Model
    from resnest_seg.report import EvalReport
    from resnest_seg.samples import SegmentationDataset


@dataclasses.dataclass(frozen=True)
class Source:
    """What is evaluated, and what it says about its data.

    Attributes:
        model: Ready to run.
        path: Its file.
        summary: What was loaded, for people.
        dataset: The data set that it was trained on.
        root: That one's folder in training.
        classes: That one's list of classes in training.
        split: What it was validated on.
        memory: Bytes that scores may take.
        precision: That of the report.
    """

    model: Model
    path: Path
    summary: str
    dataset: str
    root: str | None
    classes: str | None
    split: str
    memory: int
    precision: str


def open_source(options: argparse.Namespace) -> Source:
    """Open the checkpoint or exported file."""
    from resnest_seg.model import file_model, model_of
    from resnest_seg.running import choose_device
    from resnest_seg.zoo import load_checkpoint

    how = {"precision": options.precision, "compiled": options.compile, "batch": options.batch}
    if is_exported(options.checkpoint):
        model = file_model(options.checkpoint, device=options.device, **how)
        info = model.file.info
        return Source(model, model.file.path, f"{model.file.path}: {model.description}", info.setting.dataset, None,
                      None, "val", model.memory, info.precision)  # fmt: skip
    segmenter = load_checkpoint(options.checkpoint)
    assert segmenter.load_report is not None
    shared = int(os.environ.get("WORLD_SIZE", "1")) > 1 and options.device == "auto"
    segmenter.to(process_state(options).device if shared else choose_device(options.device))
    if options.fuse:
        segmenter.fuse()
    data, evaluation = segmenter.config.data, segmenter.config.eval
    return Source(model_of(segmenter, **how), segmenter.load_report.path, str(segmenter.load_report), data.dataset,
                  data.root, data.classes, evaluation.split, evaluation.memory << 20, options.precision)  # fmt: skip


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; the data set and its folder default to those of the checkpoint's own run."""
    parser = argparse.ArgumentParser(prog="eval_seg.py", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--checkpoint", required=True, help="a run folder (its best checkpoint), a checkpoint file, "
                        "the name of a published checkpoint (tools/zoo_seg.py lists them), or an exported file: .onnx, "
                        ".pt2, .xml")  # fmt: skip
    parser.add_argument(
        "--dataset", help="synthetic, camvid, ade20k, cityscapes or folder (default: the one trained on)"
    )
    parser.add_argument("--data.root", dest="root", help="folder of the data set (default: as in training)")
    parser.add_argument("--split", help="train, val or test (default: the one validated on in training)")
    parser.add_argument("--protocols", default="whole", help="whole, slide, encoding, mmseg, mmseg0 or paddle, several "
                        "by comma (default: whole)")  # fmt: skip
    parser.add_argument("--boundaries", action="store_true", help="boundary IoU and F-score as well")
    parser.add_argument("--boundary-width", type=float, default=0.02, help="of the region of boundary IoU, as a share "
                        "of an image's diagonal (default: 0.02)")  # fmt: skip
    parser.add_argument("--boundary-tolerance", type=float, default=0.0075, help="distance at which contours match for "
                        "the boundary F-score, likewise (default: 0.0075)")  # fmt: skip
    parser.add_argument("--calibration", action="store_true", help="expected calibration error and reliability as well")
    parser.add_argument("--compare", metavar="JSON", help="show what changed by class from another report to this one")
    parser.add_argument("--limit", type=int, help="evaluate the first LIMIT images only")
    parser.add_argument("--save-predictions", metavar="DIR", help="write the predictions of the first protocol as PNGs")
    parser.add_argument("--ids", choices=("raw", "train"), default="raw", help="values in these (default: raw)")
    parser.add_argument("--workers", type=int, default=2, help="loader processes (default: 2)")
    parser.add_argument("--eval.memory", dest="memory", type=int, metavar="MIB", help="MiB that scores may take "
                        "(default: eval.memory of the run, 1024; 4096 for exported files)")  # fmt: skip
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ... (default: auto)")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32", help="default: fp32")
    parser.add_argument("--fuse", action="store_true", help="fold batch norms into convolutions: faster")
    parser.add_argument("--compile", action="store_true", help="torch.compile: slow at first, then faster")
    parser.add_argument("--batch", type=int, help="images or windows a call of the model (default: what fits)")
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


def run(source: Source, dataset: SegmentationDataset, options: argparse.Namespace) -> EvalReport:
    """Evaluate this process's share with a progress bar, and write the predictions that are asked for."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from resnest_seg.datasets import PairedFiles
    from resnest_seg.evaluation import Measures, evaluate
    from resnest_seg.submission import Submission
    from resnest_seg.visualize import write_labels

    state = process_state(options)
    count = min(len(dataset), options.limit or len(dataset))
    mine = range(state.process_index, count, state.num_processes)
    folder = Path(options.save_predictions) if options.save_predictions else None
    with contextlib.ExitStack() as opened:
        submission = None
        if options.submission:
            photos = [image for image, _ in dataset.pairs] if isinstance(dataset, PairedFiles) else []
            submission = opened.enter_context(Submission(options.submission, dataset.label_space, photos))
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        progress = opened.enter_context(Progress(*columns, transient=True, disable=not state.is_main_process))
        bar = progress.add_task("evaluating", total=len(mine))

        def on_image(image: EvaluatedImage) -> None:
            progress.update(bar, advance=1, description=f"mIoU {100 * image.mean_iou:.2f}")
            if submission is not None:
                height, width = image.image.shape[:2]
                submission.add(image.name, image.predictions, size=(height, width))
            if folder is not None:
                path = folder / Path(image.name).with_suffix(".png")
                write_labels(path, image.predictions, dataset.label_space, ids=options.ids)

        report = evaluate(
            source.model,
            dataset,
            protocols=options.protocols.split(","),
            indices=mine,
            workers=options.workers,
            on_image=on_image,
            reduce=all_reduce if state.num_processes > 1 else None,
            require_labels=submission is None and folder is None,
            measures=Measures(
                boundaries=options.boundaries,
                boundary_width=options.boundary_width,
                boundary_tolerance=options.boundary_tolerance,
                calibration=options.calibration,
            ),
            memory=source.memory if options.memory is None else options.memory << 20,
        )
    if submission is not None:
        print(f"submission: {options.submission}, {count} predictions, validated", file=sys.stderr)
    if folder is not None and state.is_main_process:
        print(f"predictions: {count} PNGs of {options.ids} ids in {folder}", file=sys.stderr)
    return report


def process_state(options: argparse.Namespace) -> PartialState:
    """Which of torchrun's processes this is, and the device that is its own; the first call joins the others."""
    from accelerate import PartialState

    # exported files give their scores in the computer's own memory, which NCCL cannot sum up
    return PartialState(cpu=options.device == "cpu" or is_exported(options.checkpoint))


def all_reduce(counts: Tensor) -> Tensor:
    """The sum over all processes, exact for integers."""
    from torch import distributed

    total = counts.clone()
    distributed.all_reduce(total)
    return total


def show(report: EvalReport, other: EvalReport | None) -> None:
    """Print the tables."""
    from rich.console import Console

    console = Console()
    console.print(report.table())
    if len(report.scores) > 1 and report.boundaries:  # asked for, and by class in these tables only
        for name in report.scores:
            console.print(report.table(name))
    console.print(report.summary())
    console.print(report.confusion_table())
    if other is not None:
        console.print(report.comparison(other))
        for caveat in report.caveats(other):
            print(f"careful: {caveat}", file=sys.stderr)


def check(options: argparse.Namespace) -> None:
    """Refuse options that make no sense, before anything is loaded.

    Raises:
        ConfigError: Says which.
    """
    check_option("--limit", options.limit, 1, COUNT)
    check_option("--eval.memory", options.memory, 1, 1 << 24)
    check_option("--batch", options.batch, 1, 65536)
    check_option("--workers", options.workers, 0, 256)
    check_option("--boundary-width", options.boundary_width, 0, 1, above=True)
    check_option("--boundary-tolerance", options.boundary_tolerance, 0, 0.05)
    if options.submission and options.limit is not None:
        raise ConfigError("a submission needs every photo of the split: leave --limit out.")
    if options.submission and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("a submission is written by one process: run it without torchrun.")
    first = os.environ.get("RANK", "0") == "0"  # when the others look, it may have begun
    if options.save_predictions and not options.overwrite and first and Path(options.save_predictions).exists():
        raise ConfigError(f"{options.save_predictions} exists. Choose another folder, or pass --overwrite.")


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate; returns the exit code."""
    options = parse(argv)
    check(options)

    from resnest_seg.catalog import DATASETS, build_dataset
    from resnest_seg.report import EvalReport

    other = EvalReport.load(options.compare) if options.compare else None
    source = open_source(options)
    split = options.split or source.split
    name = options.dataset or source.dataset
    if options.dataset is None and name not in DATASETS:
        raise ConfigError(
            f"the checkpoint is for data set {name!r}, for which there is no loader here. Name the data to evaluate on "
            "with --dataset; folder takes your own photos and masks."
        )
    trained = name == source.dataset
    root, classes = options.root or (source.root if trained else None), source.classes if trained else None
    dataset = build_dataset(name, root=root, split=split, classes=classes)
    output = report_path(options, source.path, name, split)
    for protocol_name in options.protocols.split(","):
        source.model.protocol(protocol_name)
    print(source.summary, file=sys.stderr)
    report = run(source, dataset, options)
    if int(os.environ.get("RANK", "0")):
        return 0
    if not any(sum(scores.class_share) for scores in report.scores.values()):
        print(f"the {split} split of {name} has no labels: nothing to measure", file=sys.stderr)
        return 0
    report = dataclasses.replace(report, checkpoint=str(source.path), precision=source.precision)
    show(report, other)
    report.save(output)
    print(f"report: {output}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(run_tool(main))
