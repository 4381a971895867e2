"""Evaluate a trained model: a table by class, mIoU and pixel accuracy, a JSON report, and the scores of every image.

python tools/eval_seg.py --checkpoint runs/my_run
python tools/eval_seg.py --checkpoint runs/my_run --dataset camvid --data.root /data/camvid --split test
python tools/eval_seg.py --checkpoint X --dataset ade20k --protocols whole,encoding,mmseg --boundaries --calibration
python tools/eval_seg.py --checkpoint model.onnx --data.root /data/camvid
python tools/eval_seg.py --checkpoint runs/first --checkpoint runs/second      # the mean of both
python tools/eval_seg.py --compare runs/old/eval_camvid_val.json runs/new/eval_camvid_val.json
torchrun --nproc-per-node 4 tools/eval_seg.py --checkpoint X --protocols encoding
python tools/eval_seg.py --checkpoint X --engine ray
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

from resnest_seg.cli.parsing.options import (
    MIB,
    Parser,
    add_checkpoint,
    add_dataset,
    add_execution,
    add_memory,
    add_model_option,
    add_protocol,
    add_workers,
    memory_bytes,
    open_dataset,
    protocol_names,
)
from resnest_seg.config import COUNT, DataConfig
from resnest_seg.config_types import check_option
from resnest_seg.errors import ConfigError, DatasetError, command
from resnest_seg.files import (
    check_not_inputs,
    check_output_file,
    check_output_folder,
    check_outside,
    next_free,
    result_places,
)
from resnest_seg.inference.backends import content_hash
from resnest_seg.inference.ensemble import checkpoints_of
from resnest_seg.inference.exported import is_exported
from resnest_seg.inference.own_network import own_network

if TYPE_CHECKING:
    from accelerate import PartialState
    from torch import Tensor

    from resnest_seg.data.datasets import SegmentationDataset
    from resnest_seg.evaluation.evaluator import EvaluatedImage, Measures
    from resnest_seg.evaluation.report import EvalReport
    from resnest_seg.inference.backends import Backend


JSON = ".json"
"""Suffix of a report."""


@dataclasses.dataclass(frozen=True)
class Source:
    """The model to evaluate, with its metadata on data.

    Attributes:
        backend: The model, ready to run.
        paths: Its file, or those of an ensemble's members.
        summary: A description of the loaded model.
        data: The data of its training, as far as the file tells.
        split: The split of its validation.
        memory: Memory limit of scores in bytes.
        precision: Precision, for the report.
    """

    backend: Backend
    paths: tuple[Path, ...]
    summary: str
    data: DataConfig
    split: str
    memory: int
    precision: str

    @property
    def named(self) -> str:
        """What reports say was evaluated; the members of an ensemble with their hashes."""
        if len(self.paths) == 1:
            return str(self.paths[0])
        return " + ".join(f"{path} (sha256 {content_hash(str(path))})" for path in self.paths)


def open_source(options: argparse.Namespace, *, elsewhere: bool = False) -> Source:
    """Open the checkpoint or exported file, or several as an ensemble, with the first one's metadata on data.

    Args:
        options: The command line, of the verb eval or of one that takes a model by the same options.
        elsewhere: Other processes calculate: this one only describes the model, and leaves the GPU to them.
    """
    from resnest_seg.inference.ensemble import EnsembleBackend

    sources = [_open_one(options, checkpoint, elsewhere=elsewhere) for checkpoint in options.checkpoint]
    first = sources[0]
    if len(sources) == 1:
        return first
    backend = EnsembleBackend([source.backend for source in sources], options.checkpoint)
    return dataclasses.replace(
        first,
        backend=backend,
        paths=tuple(path for source in sources for path in source.paths),
        summary="\n".join([*(source.summary for source in sources), backend.description]),
        memory=max(source.memory for source in sources),
    )


def _open_one(options: argparse.Namespace, checkpoint: str, *, elsewhere: bool) -> Source:
    """Open one checkpoint or exported file."""
    from resnest_seg.inference.backends import FileBackend, RunOptions
    from resnest_seg.models.loading import load_checkpoint

    how = RunOptions(options.device, options.precision, options.compile, options.batch, options.fuse)
    if elsewhere:
        how = RunOptions("cpu", fuse=options.fuse)
    if is_exported(checkpoint):
        if options.model is not None:
            raise ConfigError(f"{checkpoint} is an exported file, which holds its network: leave out --model.")
        file = FileBackend(checkpoint, how)
        info, path = file.file.info, file.file.path
        data = DataConfig(info.setting.dataset, bands=info.bands or None, nodata=info.nodata, pixel_mean=info.mean)
        return Source(file, (path,), f"{path}: {file.description}", data, "val", file.memory, info.precision)
    from resnest_seg.inference.torch_backend import TorchBackend

    segmenter = load_checkpoint(checkpoint, into=own_network(options.model))
    assert segmenter.load_report is not None
    data, evaluation = segmenter.config.data, segmenter.config.eval
    return Source(TorchBackend(segmenter, how), (segmenter.load_report.path,), str(segmenter.load_report), data,
                  evaluation.split, evaluation.memory * MIB, options.precision)  # fmt: skip


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line; the data set and its folder default to those of the checkpoint's run."""
    parser = Parser("eval", description=__doc__.splitlines()[0])
    add_checkpoint(parser, exported=True, required=False, several=True)
    add_model_option(parser)
    add_dataset(parser, default="the one trained on")
    add_protocol(parser, several=True)
    parser.add_argument("--boundaries", action="store_true", help="compute boundary IoU and F-score as well")
    parser.add_argument("--boundary-width", type=float, help="with --boundaries: width of boundary IoU's region, as a "
                        "share of an image's diagonal (default: 0.02)")  # fmt: skip
    parser.add_argument("--boundary-tolerance", type=float, help="with --boundaries: tolerance of the boundary "
                        "F-score, as a share of an image's diagonal (default: 0.0075)")  # fmt: skip
    parser.add_argument("--calibration", action="store_true", help="compute calibration error and reliability as well")
    parser.add_argument("--compare", metavar="JSON", nargs="+", help="show the changes by class from another report to "
                        "this one, and the interval of the difference of mIoU; of two reports, from the first to the "
                        "second, without an evaluation")  # fmt: skip
    parser.add_argument("--limit", type=int, help="evaluate the first LIMIT images only")
    parser.add_argument("--save-predictions", metavar="DIR", help="write the predictions of the first protocol "
                        "as PNGs, named as the photos are below the data set's root")  # fmt: skip
    parser.add_argument("--ids", choices=("raw", "train"), default="raw", help="ids in these PNGs (default: raw)")
    add_workers(parser, default=2)
    add_memory(parser, what="memory limit of scores", default="eval.memory of the run, 1; 4 for exported files")
    parser.add_argument(
        "--eval.memory", dest="mebibytes", type=int, metavar="MIB", help="the same in MiB, as in configs"
    )
    add_execution(parser)
    parser.add_argument("--engine", choices=("plain", "ray"), default="plain", help="ray: processes on a Ray cluster "
                        "(RAY_ADDRESS, or of 'ray start'), or on this machine's cores (default: plain)")  # fmt: skip
    parser.add_argument("--cpus-per-actor", type=int, metavar="N", help="with --engine ray: cores of each process "
                        "(default: 1)")  # fmt: skip
    parser.add_argument("--fuse", action="store_true", help="fold batch norms into convolutions: faster")
    parser.add_argument("--output", metavar="JSON", help="the report (default: eval_DATASET_SPLIT.json beside the "
                        "checkpoint, in the current folder for a published one; or eval_DATASET_SPLIT-2.json, -3 ... "
                        "if that exists); the scores of every image are beside it, in NAME.images.jsonl")  # fmt: skip
    parser.add_argument("--no-images", dest="images", action="store_false", help="do not write the scores of every "
                        "image")  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace existing report, submission and predictions")
    parser.add_argument("--submission", metavar="ZIP", help="write the predictions of the first protocol in the format "
                        "of Cityscapes' or ADE20K's server; the split may be without labels")  # fmt: skip
    options = parser.read(argv)
    options.changed = parser.changed(options)
    return options


def report_path(options: argparse.Namespace, source: Source, name: str, split: str) -> Path:
    """Choose and check the path of the report, before any computation.

    Without --output it lies beside the checkpoint, or in the folder of the folds; in the current folder of a published
    one, which is in a shared folder, and of several.

    Raises:
        ConfigError: The file that --output names exists, or a file cannot be written.
    """
    if options.output:
        output = Path(options.output)
    else:
        folder = Path(options.given[0])
        if len(options.given) > 1 or not folder.exists():
            folder = Path()
        elif len(source.paths) == 1:
            folder = source.paths[0].parent
        first = f"_first{options.limit}" if options.limit else ""
        output = folder / f"eval_{name}_{split}{first}{JSON}"
        output = output if options.overwrite else next_free(output, suffix=JSON)
    check_output_file(output, what="report", overwrite=options.overwrite)
    from resnest_seg.evaluation.image_scores import images_beside

    check_output_file(images_beside(output), what="scores by image", overwrite=options.overwrite)
    return output


class Results:
    """Writer of the requested predictions, image by image.

    A full disk ends the writing but not the evaluation, which may have taken hours.

    Args:
        dataset: The data set.
        indices: The samples, in the order of the predictions.
        options: The command line.

    Attributes:
        problem: The error that ended the writing, or None.

    Raises:
        ConfigError: Photos or masks would be overwritten, or predictions would lie among them.
        DatasetError: A photo cannot be submitted.
    """

    def __init__(self, dataset: SegmentationDataset, indices: Sequence[int], options: argparse.Namespace) -> None:
        from resnest_seg.data.datasets import PairedFiles
        from resnest_seg.data.tiles import paired_files, scored_part
        from resnest_seg.evaluation.submission import Submission

        self.space, self.ids = dataset.label_space, options.ids
        self.names = iter([(dataset.sample_name(index), scored_part(dataset, index)) for index in indices])
        self.problem: OSError | None = None
        self.paths: dict[str, Path] = {}
        if options.save_predictions:
            files = paired_files(dataset)
            if isinstance(files, PairedFiles):
                check_outside(options.save_predictions, files.folders, option="--save-predictions")
            names = [dataset.sample_name(index) for index in range(len(dataset))]  # equal on every process
            places = result_places(dict(zip(names, names, strict=True)), endings=(".png",))
            self.paths = {name: Path(options.save_predictions, f"{place}.png") for name, place in places.items()}
            check_not_inputs(list(self.paths.values()), files_of(dataset), option="--save-predictions")
        self.submission: Submission | None = None
        if options.submission:
            count = len(dataset) if isinstance(dataset, PairedFiles) else 0
            photos = [dataset.sample_name(index) for index in range(count)]
            self.submission = Submission(options.submission, self.space, photos, overwrite=options.overwrite)

    def add(self, image: EvaluatedImage) -> None:
        """Write the requested outputs of the next image."""
        from resnest_seg.io.visualize import write_labels

        name, part = next(self.names)
        if self.problem is not None:
            return
        try:
            if self.submission is not None:
                height, width = image.image.shape[:2]
                self.submission.add(name, image.predictions, size=(height, width))
            if self.paths:
                write_labels(self.paths[name], image.predictions[part], self.space, ids=self.ids)
        except OSError as error:
            self.problem = error


def files_of(dataset: SegmentationDataset) -> list[str | Path]:
    """List the files that a data set is read from."""
    from resnest_seg.data.datasets import PairedFiles
    from resnest_seg.data.tiles import paired_files
    from resnest_seg.storage.sources import ZipSource
    from resnest_seg.storage.tar_shards import TarShards

    dataset = paired_files(dataset)
    if not isinstance(dataset, PairedFiles):
        return []
    if isinstance(dataset.source, ZipSource | TarShards):
        return list(dataset.source.paths)
    return [dataset.source.locate(name) for pair in dataset.pairs for name in pair if name is not None]


def run(
    source: Source,
    dataset: SegmentationDataset,
    measures: Measures,
    options: argparse.Namespace,
    *,
    images: Path | None,
) -> tuple[EvalReport, OSError | DatasetError | None]:
    """Evaluate this process's share with a progress bar; write predictions, and scores by image into `images`.

    Returns:
        The report, which is complete in any case; and the error in writing predictions or submission, or None.
    """
    from resnest_seg.evaluation.evaluator import evaluate
    from resnest_seg.evaluation.image_scores import ImageScoresWriter
    from resnest_seg.io.display import progress_bars

    state = process_state(options)
    count = min(len(dataset), options.limit or len(dataset))
    mine = range(state.process_index, count, state.num_processes)
    results = Results(dataset, mine, options)
    report: EvalReport | None = None
    try:
        with contextlib.ExitStack() as opened:
            if results.submission is not None:
                opened.enter_context(results.submission)
            writer = None if images is None else ImageScoresWriter(images, keep_going=True)
            if writer is not None:
                opened.enter_context(writer)
            progress = opened.enter_context(progress_bars(disable=not state.is_main_process))
            bar = progress.add_task("evaluating", total=len(mine))

            def on_image(image: EvaluatedImage) -> None:
                progress.update(bar, advance=1, description=f"mIoU {100 * image.mean_iou:.2f}")
                results.add(image)

            report = evaluate(
                source.backend,
                dataset,
                protocols=options.protocols,
                indices=mine,
                workers=options.workers,
                on_image=on_image,
                reduce=all_reduce if state.num_processes > 1 else None,
                require_labels=not (options.submission or options.save_predictions),
                measures=measures,
                memory=source.memory if options.memory is None else options.memory,
                images=writer,
                checkpoint=source.named,
            )
            if results.problem is not None:
                raise results.problem
    except (OSError, DatasetError) as error:
        if report is None:
            raise
        return report, error
    if state.is_main_process:
        say_written(options, count)
    return report, None


def run_on_ray(
    source: Source, dataset: SegmentationDataset, measures: Measures, options: argparse.Namespace, output: Path
) -> tuple[EvalReport, OSError | DatasetError | None, list[Path]]:
    """Evaluate by actors of Ray, with a progress bar.

    Returns:
        The report; the error in writing predictions, or None; and the files of scores by image.
    """
    from resnest_seg.bulk.ray_evaluation import Evaluation, evaluate_on_ray
    from resnest_seg.evaluation.evaluator import Counting
    from resnest_seg.inference.backends import RunOptions
    from resnest_seg.io.display import progress_bars

    memory = source.memory if options.memory is None else options.memory
    count = min(len(dataset), options.limit or len(dataset))
    counting = Counting(source.backend, dataset, protocols=options.protocols, measures=measures, memory=memory)
    evaluation = Evaluation(
        checkpoint=tuple(options.checkpoint) if len(options.checkpoint) > 1 else options.checkpoint[0],
        model=options.model,
        run=RunOptions(options.device, options.precision, options.compile, options.batch, options.fuse),
        protocols=tuple(options.protocols),
        measures=measures,
        memory=memory,
        by_image=options.images,
        workers=options.workers,
        predictions=Results(dataset, (), options).paths,
        ids=options.ids,
        named=source.named,
    )
    with progress_bars() as progress:
        bar = progress.add_task("evaluating", total=count)
        parts, problem = evaluate_on_ray(
            evaluation,
            counting,
            count=count,
            cpus=options.cpus_per_actor,
            part=lambda number: image_part(output, number),
            on_share=lambda images: progress.update(bar, advance=images),
        )
    if not options.save_predictions:
        counting.check_labelled()
    elif problem is None:
        say_written(options, count)
    return counting.report(checkpoint=source.named), problem, parts


def say_written(options: argparse.Namespace, count: int) -> None:
    """Say where so many predictions are."""
    if options.submission:
        print(f"submission: {options.submission}, {count} predictions, validated", file=sys.stderr)
    if options.save_predictions:
        print(f"predictions: {count} PNGs of {options.ids} ids in {options.save_predictions}", file=sys.stderr)


def process_state(options: argparse.Namespace) -> PartialState:
    """Return this process's rank under torchrun; the first call joins the process group.

    Raises:
        ConfigError: There should be several processes, and they cannot find each other.
    """
    import torch
    from accelerate import PartialState

    from resnest_seg.training.distributed import launched

    # exported files return their scores in host memory, which NCCL cannot sum
    in_host_memory = options.device == "cpu" or any(map(is_exported, options.checkpoint))
    # without a GPU, accelerate has each process evaluate everything by itself, unless it is told that CPUs are meant
    return PartialState(cpu=in_host_memory or (launched() > 1 and not torch.cuda.is_available()))


def processes() -> int:
    """Return how many processes torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def all_reduce(counts: Tensor) -> Tensor:
    """Sum over all processes, exact for integers."""
    from torch import distributed

    from resnest_seg.training.distributed import lost_peers_named

    total = counts.clone()
    with lost_peers_named(distributed.get_world_size(), go_on="Give the same command again."):
        distributed.all_reduce(total)
    return total


def show(report: EvalReport, other: EvalReport | None) -> None:
    """Print the tables."""
    from resnest_seg.io.display import console

    terminal = console()
    terminal.print(report.table())
    for name in report.labels:
        terminal.print(report.label_table(name))
    if len(report.scores) > 1 and report.boundaries:  # the scores by class are in these tables only
        for name in report.scores:
            terminal.print(report.table(name))
    terminal.print(report.summary())
    if report.confusions:
        terminal.print(report.confusion_table())
    if other is not None:
        show_changes(report, other)


def show_changes(report: EvalReport, other: EvalReport) -> None:
    """Print the changes by class from another report."""
    from resnest_seg.io.display import console

    console().print(report.comparison(other))
    for caveat in report.caveats(other):
        print(f"careful: {caveat}", file=sys.stderr)


def show_intervals(report: EvalReport, paths: tuple[Path, Path], other: EvalReport) -> None:
    """Print the difference of mIoU by every common protocol with its interval.

    Args:
        report: The new report.
        paths: The old report's file and the new one's, beside which the scores by image are.
        other: The old report.

    Raises:
        DatasetError: There are no scores by image, or they are of other images.
    """
    from resnest_seg.evaluation.comparison import compare_images
    from resnest_seg.evaluation.image_scores import images_beside

    images = tuple(images_beside(path) for path in paths)
    for path, beside in zip(images, paths, strict=True):
        if not path.exists():
            raise DatasetError(
                f"the difference has no interval, because {path} is missing, the scores by image beside {beside}: "
                "evaluate that model again, without --no-images."
            )
    for name in report.scores:
        if name in other.scores:
            absent = report.methods[name].absent if name in report.methods else "skipped"
            print(compare_images(*images, protocol=name, absent=absent))


def compare(before: str, now: str) -> int:
    """Show the changes from one report to another; returns the exit code."""
    from resnest_seg.evaluation.image_scores import images_beside
    from resnest_seg.evaluation.report import EvalReport

    other, report = EvalReport.load(before), EvalReport.load(now)
    show_changes(report, other)
    complete = all(images_beside(path).exists() for path in (before, now))  # not those of an earlier version
    (show_intervals if complete else careful_intervals)(report, (Path(before), Path(now)), other)
    return 0


def check(options: argparse.Namespace) -> None:
    """Reject contradictory options, before anything is loaded.

    Raises:
        ConfigError: Options contradict each other, or an output exists.
    """
    options.compare = options.compare or []
    if len(options.compare) > 2:
        raise ConfigError(f"--compare takes one report or two, not {len(options.compare)}.")
    others = [option for option in options.changed if option != "--compare"]
    if len(options.compare) == 2 and others:
        raise ConfigError(
            f"--compare of two reports evaluates nothing: leave {', '.join(others)} out, or name one report, with "
            "which a --checkpoint is compared."
        )
    if len(options.compare) < 2 and options.checkpoint is None:
        raise ConfigError(
            f"--checkpoint is missing: what to evaluate, such as a run folder ({command('zoo')} lists published ones). "
            "--help lists all options."
        )
    options.given = options.checkpoint
    options.checkpoint = None if options.given is None else checkpoints_of(options.given)
    check_option("--limit", options.limit, 1, COUNT)
    check_option("--eval.memory", options.mebibytes, 1, 1 << 24)
    if options.mebibytes is not None and options.memory is not None:
        raise ConfigError("--memory (GiB) and --eval.memory (MiB) are two forms of one option: give one of them.")
    options.memory = None if options.memory is None else memory_bytes(options.memory, low=1 / 1024)
    options.memory = options.memory if options.mebibytes is None else options.mebibytes * MIB
    options.protocols = protocol_names(options.protocol, several=True)
    check_option("--batch", options.batch, 1, 65536)
    check_option("--workers", options.workers, 0, 256)
    check_option("--cpus-per-actor", options.cpus_per_actor, 1, 4096)
    if options.cpus_per_actor is not None and options.engine != "ray":
        raise ConfigError("--cpus-per-actor is for --engine ray: give that as well.")
    _check_boundaries(options)
    if options.ids != "raw" and not options.save_predictions:
        raise ConfigError(f"--ids {options.ids} is about the PNGs of --save-predictions DIR: give that as well.")
    if options.submission and options.limit is not None:
        raise ConfigError("a submission needs every photo of the split: omit --limit.")
    if options.submission and processes() > 1:
        raise ConfigError("a submission is written by one process: run it without torchrun.")
    if options.device.startswith("cuda:") and processes() > 1 and not any(map(is_exported, options.checkpoint or ())):
        raise ConfigError(
            f"--device {options.device} is one GPU, and torchrun started {processes()} processes, each of which needs "
            "its own to add up the counts: give --device cuda, by which each takes one, or leave it out."
        )
    if options.engine == "ray" and (options.submission or processes() > 1):
        other = "--submission is written by one process" if options.submission else "torchrun starts processes itself"
        raise ConfigError(f"{other}, and --engine ray has others: leave --engine out.")
    first = os.environ.get("RANK", "0") == "0"  # when the other processes check, the first may have started writing
    if options.save_predictions and not options.overwrite and first and Path(options.save_predictions).exists():
        raise ConfigError(f"{options.save_predictions} exists. Choose another folder, or pass --overwrite.")
    if options.save_predictions:
        check_output_folder(options.save_predictions, option="--save-predictions")
    if options.submission:
        check_output_file(options.submission, what="submission", overwrite=options.overwrite, option="--submission")
    if options.output:
        check_output_file(options.output, what="report", overwrite=options.overwrite)
        if options.submission and os.path.realpath(options.output) == os.path.realpath(options.submission):
            raise ConfigError(f"--output and --submission are the same file, {options.output}.")


def _check_boundaries(options: argparse.Namespace) -> None:
    """Check the widths of boundaries, and put the defaults where there are none."""
    check_option("--boundary-width", options.boundary_width, 0, 1, above=True)
    check_option("--boundary-tolerance", options.boundary_tolerance, 0, 0.05)
    for option, value in (
        ("--boundary-width", options.boundary_width),
        ("--boundary-tolerance", options.boundary_tolerance),
    ):
        if value is not None and not options.boundaries:
            raise ConfigError(f"{option} is about the scores of boundaries: give --boundaries as well.")
    if options.boundary_width is None:
        options.boundary_width = 0.02
    if options.boundary_tolerance is None:
        options.boundary_tolerance = 0.0075


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate the model; returns the exit code."""
    options = parse(argv)
    check(options)
    if len(options.compare) == 2:
        return compare(*options.compare)

    from resnest_seg.data.build import DATASETS, say_layout
    from resnest_seg.evaluation.evaluator import Measures
    from resnest_seg.evaluation.image_scores import images_beside
    from resnest_seg.evaluation.report import EvalReport
    from resnest_seg.training.distributed import settle

    measures = Measures(
        boundaries=options.boundaries,
        boundary_width=options.boundary_width,
        boundary_tolerance=options.boundary_tolerance,
        calibration=options.calibration,
    )
    other = EvalReport.load(options.compare[0]) if options.compare else None
    source = open_source(options, elsewhere=options.engine == "ray")
    split = options.split or source.split
    name = options.dataset or source.data.dataset
    if options.dataset is None and name not in DATASETS:
        raise ConfigError(
            f"the checkpoint is for data set {name!r}, for which there is no loader here. Name the data to evaluate on "
            "with --dataset; folder takes your own photos and masks."
        )
    dataset = open_dataset(options, source.data, source.backend.label_space, name=name, split=split)
    say_layout(dataset)
    output = report_path(options, source, name, split)
    written = [output, images_beside(output), *([Path(options.submission)] if options.submission else [])]
    check_not_inputs(written, [*source.paths, *files_of(dataset)])
    protocols = [source.backend.protocol(word).name for word in options.protocols]
    if other is not None:
        other.check_comparable(dataset.label_space.name, dataset.label_space.score_names, protocols)
    print(source.summary, file=sys.stderr)
    state = process_state(options)
    parts = image_parts(output, state.num_processes) if options.images else []
    if options.engine == "ray":
        report, problem, parts = run_on_ray(source, dataset, measures, options, output)
    else:
        report, problem = run(
            source, dataset, measures, options, images=parts[state.process_index] if options.images else None
        )
    state.wait_for_everyone()  # each has written its part
    if state.is_main_process:
        report = dataclasses.replace(report, precision=source.precision)
        try:
            finish(report, other, output, parts if problem is None else [])
        finally:
            for part in parts:
                part.unlink(missing_ok=True)
        if other is not None and problem is None:
            careful_intervals(report, (Path(options.compare[0]), output), other)
    state.wait_for_everyone()  # when one process fails, torchrun ends the others
    settle(state.num_processes)
    if problem is not None:
        raise problem
    return 0


def image_parts(report: Path, processes: int) -> list[Path]:
    """Name the files in which the processes collect their scores by image, beside the report."""
    return [image_part(report, rank) for rank in range(processes)]


def image_part(report: Path, number: int) -> Path:
    """Name one of these files."""
    return report.with_name(f".{report.name}.images.{number}")


def finish(report: EvalReport, other: EvalReport | None, output: Path, parts: Sequence[Path]) -> None:
    """Save the report, and the scores by image from their parts, and show the report, even if the disk is full."""
    from resnest_seg.evaluation.image_scores import images_beside, merge_image_scores

    if not report.labelled:
        print(f"the {report.split} split of {report.dataset} has no labels: nothing to measure", file=sys.stderr)
        return
    try:
        report.save(output)
        print(f"report: {output}", file=sys.stderr)
        images_beside(output).unlink(missing_ok=True)  # scores of the replaced report may be another model's
        if parts:
            merge_image_scores(parts, images_beside(output))
            print(f"scores by image: {images_beside(output)}", file=sys.stderr)
    finally:
        show(report, other)


def careful_intervals(report: EvalReport, paths: tuple[Path, Path], other: EvalReport) -> None:
    """Print the intervals, or why there are none: an evaluation is good without."""
    try:
        if paths[0].resolve() == paths[1].resolve():
            raise DatasetError("the difference has no interval, because this evaluation replaced the other's scores.")
        show_intervals(report, paths, other)
    except DatasetError as error:
        print(f"careful: {error}", file=sys.stderr)
