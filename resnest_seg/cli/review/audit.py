"""Find doubtful labels: rank the images and areas of a data set by how sure a model is of another class.

python tools/audit_labels.py --checkpoint runs/my_run --folds 5
python tools/audit_labels.py --checkpoint runs/my_run --split val
python tools/audit_labels.py --checkpoint audit_folder_train --write coco labelme

A model repeats the errors of the labels that it was trained on, so it must not have seen what it judges: --folds 5
trains five models by the recipe of the run, each without a fifth of the images, and lets each judge its fifth.

The output folder holds audit.html to click through, images.jsonl and regions.jsonl (ranked), relabel.txt (the most
doubtful photos), audit.json, and with --write annotations of these photos: their labels, with those of the model in
the doubtful regions. Nothing else is written; the data set stays as it is.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from resnest_seg.cli.eval import Source, open_source
from resnest_seg.cli.parsing.options import (
    Parser,
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
from resnest_seg.cli.predict import ANNOTATIONS
from resnest_seg.config import COUNT, DataConfig, RunConfig
from resnest_seg.config_types import check_option
from resnest_seg.errors import EXIT_INTERRUPTED, EXIT_TERMINATED, ConfigError, command, printable
from resnest_seg.files import (
    atomic_write,
    check_output_folder,
    check_outside,
    claimed,
    result_places,
)
from resnest_seg.inference.ensemble import FOLDS, checkpoints_of, read_fold_record
from resnest_seg.inference.exported import is_exported
from resnest_seg.inference.own_network import own_network

if TYPE_CHECKING:
    from resnest_seg.data.datasets import SegmentationDataset
    from resnest_seg.evaluation.label_audit import AuditReport
    from resnest_seg.labels import LabelSpace
    from resnest_seg.models.checkpoint import Checkpoint

PAGE, RELABEL, AUDIT = "audit.html", "relabel.txt", "audit.json"
"""Files of an audit: to click through, the list of photos, and what was audited and found in all."""


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser("audit", description=__doc__)
    parser.add_argument("--checkpoint", "--checkpoints", nargs="+", required=True, metavar="CHECKPOINT", help="a run "
                        "folder (its best checkpoint), a checkpoint file, the name of a published checkpoint, an "
                        "exported file; or the models of all folds in order, or the folder of them")  # fmt: skip
    add_model_option(parser)
    add_dataset(parser, default="the one trained on", splits=False)
    parser.add_argument("--split", default="train", help="train, val or test (default: train; without --dataset, "
                        "of a run with data.samples those that it lists)")  # fmt: skip
    parser.add_argument("--folds", type=int, metavar="K", help="train K models by the recipe of the checkpoint, each "
                        "without one part of the training split, and let each judge that part; an interrupted training "
                        "goes on")  # fmt: skip
    parser.add_argument("--group-by", metavar="PATTERN", help="images whose names have the same match of this regular "
                        "expression stay in one fold, such as frames of a video: '^[^_]+'")  # fmt: skip
    parser.add_argument("--min-area", type=int, default=64, metavar="PIXELS", help="leave out smaller regions "
                        "(default: 64)")  # fmt: skip
    parser.add_argument("--count", type=int, default=100, metavar="N", help="images, and regions, on the page; images "
                        "in relabel.txt and in the annotations (default: 100)")  # fmt: skip
    parser.add_argument("--write", nargs="+", choices=tuple(ANNOTATIONS), default=[], metavar="FORMAT", help="write "
                        "annotations to correct, for annotation tools: coco, labelme, cvat, yolo")  # fmt: skip
    parser.add_argument("--limit", type=int, help="audit the first LIMIT images only")
    add_protocol(parser)
    add_workers(parser, default=2)
    add_memory(parser, what="memory limit of scores", default="eval.memory of the run, 1; 4 for exported files")
    add_execution(parser)
    parser.add_argument("--fuse", action="store_true", help="fold batch norms into convolutions: faster")
    parser.add_argument("--output", metavar="FOLDER", help="folder to write to (default: audit_DATASET_SPLIT, or "
                        "audit_DATASET_SPLIT-2, -3 ... if that exists)")  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier audit in --output; its folds are "
                        "used again")  # fmt: skip
    return parser.read(argv)


def check(options: argparse.Namespace) -> None:
    """Reject contradictory options, before anything is loaded.

    Raises:
        ConfigError: An option is out of range, options contradict each other, or the output exists.
    """
    check_option("--folds", options.folds, 2, COUNT)
    check_option("--min-area", options.min_area, 1, 1 << 40)
    check_option("--count", options.count, 1, COUNT)
    check_option("--limit", options.limit, 1, COUNT)
    check_option("--workers", options.workers, 0, 256)
    check_option("--batch", options.batch, 1, 65536)
    (options.protocol,) = protocol_names(options.protocol)
    options.memory = None if options.memory is None else memory_bytes(options.memory, low=1 / 1024)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("an audit is done by one process: run it without torchrun.")
    if options.folds and len(options.checkpoint) > 1:
        raise ConfigError("--folds trains the models: give one checkpoint, whose recipe is taken, or leave it out.")
    if options.folds and options.device != "auto":
        print(
            f"note: --device {options.device} is where the models judge; --folds trains them on what "
            "CUDA_VISIBLE_DEVICES shows (empty: on the CPU).",
            file=sys.stderr,
        )
    if options.folds and options.split != "train":
        raise ConfigError(
            f"--folds divides the training split, and --split is {options.split}: no model of the run was trained on "
            "that, so audit it without --folds."
        )
    if options.output is None:
        return
    output = Path(options.output)
    check_output_folder(output)
    begun = options.folds and (output / FOLDS).is_file() and not (output / AUDIT).exists()
    if output.is_dir() and any(output.iterdir()) and not options.overwrite and not begun:
        raise ConfigError(f"{output} already holds files. Choose another --output, or pass --overwrite.")


@dataclasses.dataclass(frozen=True)
class Judges:
    """The models of an audit, and how they stand to its images.

    Attributes:
        checkpoints: Their checkpoints; several are those of folds.
        group_by: How the folds were grouped.
        warnings: What whoever reads the result must know.
    """

    checkpoints: Sequence[str]
    group_by: str | None = None
    warnings: Sequence[str] = ()


def with_checkpoint(options: argparse.Namespace, checkpoint: str) -> argparse.Namespace:
    """The options of an audit by one checkpoint."""
    return argparse.Namespace(**{**vars(options), "checkpoint": [checkpoint]})


def alone(subject: Subject, options: argparse.Namespace) -> Judges:
    """A single model, with a warning if it was trained on the images that it judges, as far as its file tells."""
    from resnest_seg.data.build import data_root

    assert subject.source is not None
    (checkpoint,), trained, verb = subject.checkpoints, subject.source.data, "was"
    if options.split != "train" or subject.name != trained.dataset:
        return Judges(subject.checkpoints)
    if subject.name in ("folder", "shards"):
        one, other = (
            os.path.realpath(data_root(subject.name, root)) for root in (options.root or trained.root, trained.root)
        )
        if is_exported(checkpoint):  # which does not say where its data was
            verb = "may have been"
        elif one != other:
            return Judges(subject.checkpoints)
    return Judges(subject.checkpoints, warnings=[
        f"{checkpoint} {verb} trained on these images ({subject.name}, {options.split}): a model repeats the errors of "
        "the labels that it learnt, so many of them are missing here. Audit with models that have not seen the images: "
        "--folds 5 trains them."
    ])  # fmt: skip


def of_folds(dataset: SegmentationDataset, checkpoints: Sequence[str], options: argparse.Namespace) -> Judges:
    """Check that several checkpoints are those of the folds of a data set.

    Raises:
        ConfigError: They are of other folds, or in another order.
    """
    from resnest_seg.combining.folds import fold_record

    runs = [path if path.is_dir() else path.parent for path in map(Path, checkpoints)]
    record = runs[0].parent / FOLDS
    if not record.is_file():
        return Judges(checkpoints, options.group_by, [
            f"there is no {record} that says how the images were divided: the models are taken as those of "
            f"{len(runs)} folds in their order. If one was trained on what it judges, errors are missing here."
        ])  # fmt: skip
    before = read_fold_record(record)
    group_by: str | None = before.get("group_by") if options.group_by is None else options.group_by
    now = fold_record(dataset, len(runs), group_by=group_by)
    changed = [key for key in now if now[key] != before.get(key)]
    if changed:
        what = "the data set has other images" if changed[0] == "samples" else f"{changed[0]} is {now[changed[0]]}"
        raise ConfigError(
            f"the models are not those of this audit's folds: {what}, and by {record} it was {before.get(changed[0])}."
        )
    wrong = [run for fold, run in enumerate(runs) if (run.parent, run.name) != (record.parent, f"fold_{fold}")]
    if wrong:
        raise ConfigError(f"{wrong[0]} is not the next fold: give the folds in their order, or their folder, "
                          f"{record.parent}.")  # fmt: skip
    return Judges(checkpoints, group_by)


def recipe(options: argparse.Namespace) -> Checkpoint:
    """The checkpoint whose recipe the folds are trained by.

    Raises:
        ConfigError: It is no run's.
    """
    from resnest_seg.models.checkpoint import Checkpoint

    (path,) = options.checkpoint
    if not Path(path).exists():
        raise ConfigError(f"--folds takes the recipe of a run, and there is no run folder or checkpoint file {path}.")
    found = Checkpoint.load(path, training=False)
    if not isinstance(found.config, RunConfig):
        raise ConfigError(f"--folds takes the recipe of a segmentation run, and {path} is an image classifier.")
    return found


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is audited.

    Attributes:
        name: The data set.
        dataset: Its split.
        checkpoints: Those of the command line, with that of every fold.
        source: The first model, opened; None if folds are to be trained.
        recipe: The checkpoint by whose recipe they are trained.
    """

    name: str
    dataset: SegmentationDataset
    checkpoints: Sequence[str]
    source: Source | None
    recipe: Checkpoint | None


def subject_of(options: argparse.Namespace) -> Subject:
    """Open the checkpoint and the data set."""
    if options.folds:
        found = recipe(options)
        assert isinstance(found.config, RunConfig)
        data, source = found.config.data, None
        dataset = opened(options, data, found.label_space, options.split)
        return Subject(options.dataset or data.dataset, dataset, options.checkpoint, None, found)
    checkpoints = checkpoints_of(options.checkpoint)
    if options.group_by is not None and len(checkpoints) == 1:
        raise ConfigError(
            "--group-by says which images stay in one fold, and one model has no folds: give --folds K as well, or the "
            "models of all folds, or leave it out."
        )
    source = open_source(with_checkpoint(options, checkpoints[0]))
    dataset = opened(options, source.data, source.backend.label_space, options.split)
    return Subject(options.dataset or source.data.dataset, dataset, checkpoints, source, None)


@contextlib.contextmanager
def placed(subject: Subject, options: argparse.Namespace) -> Iterator[Path]:
    """Choose and check the output folder, which is made if it has no name.

    Raises:
        ConfigError: It lies within the data set, or the samples are no photos that an annotation tool opens.
    """
    from resnest_seg.data.datasets import PairedFiles, behind_views
    from resnest_seg.data.tiles import WindowDataset, paired_files

    if options.write and isinstance(behind_views(subject.dataset), WindowDataset):
        raise ConfigError("--write is for whole photos, and these are windows of rasters, which no annotation tool "
                          "opens. Leave it out.")  # fmt: skip
    series = Path(options.output or f"audit_{subject.name}_{options.split}")
    files = paired_files(subject.dataset)
    if isinstance(files, PairedFiles):
        check_outside(series, files.folders)
    check_output_folder(series)
    if options.output is None and not options.overwrite:
        with claimed(series) as folder:
            yield folder
        return
    new = not series.exists()
    series.mkdir(parents=True, exist_ok=True)
    try:
        yield series
    finally:
        if new:
            with contextlib.suppress(OSError):  # it is in use, as it should be
                series.rmdir()


def opened(options: argparse.Namespace, data: DataConfig, space: LabelSpace | None, split: str) -> SegmentationDataset:
    """Open a split of the data set that is audited; of the training split, what the run lists in `data.samples`.

    Raises:
        ConfigError: The checkpoint's data set has no loader here.
        DatasetError: The list cannot be read, or is not of this data.
    """
    from resnest_seg.data.build import DATASETS

    name = options.dataset or data.dataset
    if options.dataset is None and name not in DATASETS:
        raise ConfigError(
            f"the checkpoint is for data set {name!r}, for which there is no loader here. Name the data to audit with "
            "--dataset; folder takes your own photos and masks. In Python: resnest_seg.audit(model, dataset)."
        )
    return open_dataset(options, data, space, name=name, split=split)


def train_folds(checkpoint: Checkpoint, dataset: SegmentationDataset, options: argparse.Namespace, output: Path) -> int:
    """Train the models of all folds, or the rest of them, by the recipe of a checkpoint.

    Returns:
        0, or the exit code if the training was stopped.
    """
    from resnest_seg.combining import folds
    from resnest_seg.training.assembly import Parts

    config = checkpoint.config
    assert isinstance(config, RunConfig)
    data = dataclasses.replace(
        config.data,
        dataset=options.dataset or config.data.dataset,
        root=options.root or config.data.root,
        samples=config.data.samples if options.dataset is None else None,  # those of `dataset`, for the next audit
    )
    validation = opened(options, config.data, checkpoint.label_space, config.eval.split)
    try:
        results = folds.train_folds(
            dataclasses.replace(config, data=data),
            options.folds,
            Parts(dataset, validation, own_network(options.model)),
            group_by=options.group_by,
            output=output,
            resume="auto",
        )
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    if all(result.finished for result in results):
        return 0
    return EXIT_TERMINATED if results[-1].stopped_by == signal.SIGTERM else EXIT_INTERRUPTED


def run(
    dataset: SegmentationDataset, judges: Judges, first: Source, options: argparse.Namespace, output: Path
) -> AuditReport:
    """Audit with a progress bar."""
    from resnest_seg.data.datasets import assign_folds
    from resnest_seg.evaluation.label_audit import audit
    from resnest_seg.inference.backends import Backend
    from resnest_seg.io.display import progress_bars

    several = len(judges.checkpoints) > 1

    def models() -> Iterator[Backend]:
        yield first.backend
        for checkpoint in judges.checkpoints[1:]:
            yield open_source(with_checkpoint(options, checkpoint)).backend

    with progress_bars() as progress:
        bars = {step: progress.add_task(step, total=None, visible=False) for step in ("predicting", "comparing")}

        def on_step(step: str, done: int, total: int) -> None:
            progress.update(bars[step], completed=done, total=total, visible=True)

        return audit(
            models() if several else first.backend,
            dataset,
            fold_of=assign_folds(dataset, len(judges.checkpoints), group_by=judges.group_by) if several else None,
            protocol=options.protocol,
            indices=range(min(len(dataset), options.limit or len(dataset))),
            workers=options.workers,
            memory=first.memory if options.memory is None else options.memory,
            min_area=options.min_area,
            on_step=on_step,
            folder=output,
        )


def photos_of(dataset: SegmentationDataset) -> list[Path | None]:
    """The photo file of every sample; None where it has no file of its own on this machine."""
    from resnest_seg.data.datasets import DatasetView, PairedFiles
    from resnest_seg.storage.sources import FolderSource

    places = list(range(len(dataset)))
    while isinstance(dataset, DatasetView):  # of another task, or of some samples
        places, dataset = [dataset.inner_index(place) for place in places], dataset.inner
    if not isinstance(dataset, PairedFiles) or not isinstance(dataset.source, FolderSource):
        return [None] * len(places)
    return [dataset.source.root / dataset.pairs[place][0] for place in places]


def write(
    report: AuditReport, dataset: SegmentationDataset, judges: Judges, options: argparse.Namespace, output: Path
) -> None:
    """Write all files of an audit."""
    from resnest_seg.annotations.writers import AnnotationWriter
    from resnest_seg.reports.audit_page import write_audit_page

    photos = photos_of(dataset)
    about = {"checkpoints": judges.checkpoints, "group_by": judges.group_by, "warnings": judges.warnings}
    report.save(output, about=about)

    def mark(index: int) -> str:
        return dataset.sample_name(index) if photos[index] is None else str(photos[index])

    flagged = report.flagged(options.count)
    with atomic_write(output / RELABEL) as temporary:
        names = [mark(image.index).replace("\n", "\\n") for image in flagged]
        temporary.write_text("".join(f"{name}\n" for name in names), encoding="utf-8", errors="surrogateescape")
    write_audit_page(
        output / PAGE, report, dataset, count=options.count, mark=lambda index: printable(mark(index)),
        warnings=judges.warnings,
    )  # fmt: skip
    if not options.write:
        return
    names = [image.name for image in flagged]
    places = result_places(dict(zip(names, names, strict=True)), endings=(".json", ".txt"))
    with AnnotationWriter(output, options.write, report.space) as writer:
        for image in flagged:
            labels = report.maps(image.index).suggested
            writer.add(image.name, labels, photo=photos[image.index], place=places[image.name].as_posix())


def show(report: AuditReport, options: argparse.Namespace, output: Path) -> None:
    """Print the summary of an audit, and where its files are."""
    from resnest_seg.io.display import console

    console().print(report.table())
    flagged = len(report.flagged(options.count))
    print(f"audit: {output / PAGE} shows the {flagged} most doubtful images, {output / RELABEL} lists them")
    for form in options.write:
        print(f"annotations: {output / ANNOTATIONS[form]}")


def main(argv: Sequence[str] | None = None) -> int:
    """Audit a data set; returns the exit code."""
    options = parse(argv)
    check(options)
    subject = subject_of(options)

    from resnest_seg.data.build import say_layout

    say_layout(subject.dataset)
    with placed(subject, options) as output:
        if subject.recipe is not None:
            code = train_folds(subject.recipe, subject.dataset, options, output)
            if code:
                words = [*(sys.argv[1:] if argv is None else argv)]
                words += [] if options.output else ["--output", str(output)]
                print(f"stopped. Continue with: {command('audit')} {shlex.join(words)}", file=sys.stderr)
                return code
            judges = Judges([str(output / f"fold_{fold}") for fold in range(options.folds)], options.group_by)
        elif len(subject.checkpoints) > 1:
            judges = of_folds(subject.dataset, subject.checkpoints, options)
        else:
            judges = alone(subject, options)
        for warning in judges.warnings:
            print(f"warning: {warning}", file=sys.stderr)
        source = subject.source or open_source(with_checkpoint(options, judges.checkpoints[0]))
        report = run(subject.dataset, judges, source, options, output)
        write(report, subject.dataset, judges, options, output)
        show(report, options, output)
    return 0
