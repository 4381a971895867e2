"""Check a data set before training: photos, masks, ids, classes, duplicates between splits.

python tools/check_dataset.py --dataset ade20k
python tools/check_dataset.py --dataset folder --data.root /data/mine --workers 8 --output report.json

python tools/check_dataset.py --dataset folder --data.root /data/mine --write-classes

Exit code 1 if training would go wrong; the problems are listed with their files.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from resnest_seg.cli.parsing.options import (
    Parser,
    add_checkpoint,
    add_dataset,
    add_workers,
    bands_in,
    open_dataset,
    place_in,
    windows_in,
)
from resnest_seg.config import COUNT, DataConfig
from resnest_seg.config_types import check_option
from resnest_seg.errors import ConfigError, DatasetError, command
from resnest_seg.files import atomic_write, check_output_file
from resnest_seg.labels import TASKS

if TYPE_CHECKING:
    from resnest_seg.data.datasets import SegmentationDataset
    from resnest_seg.labels import LabelSpace

SPLITS, DEFAULT_TASK = ("train", "val", "test"), "multiclass"

OF_A_CHECK = ("--checkpoint", "--splits", "--limit", "--output", "--data.classes", "--data.positive")
"""Options that say what is checked: --write-classes checks nothing."""

NOT_LISTED = (
    "--data.window",
    "--data.window_overlap",
    "--data.bands",
    "--data.nodata",
    "--data.cache",
    "--data.cache_size",
)
"""Options about how the files of a check are read, which is not how a class list is drafted."""

T = TypeVar("T")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser("check", description=__doc__.splitlines()[0])
    add_dataset(parser, default="with --checkpoint, the one trained on", splits=False)
    parser.add_argument("--model.task", dest="task", choices=TASKS, help="task of the masks "
                        "(default: with --checkpoint its own, else multiclass)")  # fmt: skip
    extra = ": check the data set that it was trained on, or another one with its classes"
    add_checkpoint(parser, exported=False, required=False, extra=extra)
    parser.add_argument(
        "--splits", help="splits separated by commas; the others are compared with the first (default: all)"
    )
    parser.add_argument("--limit", type=int, help="check LIMIT samples of each split, evenly spread")
    add_workers(parser, default=4)
    parser.add_argument("--output", metavar="JSON", help="write a report to this file (default: write nothing)")
    parser.add_argument(
        "--write-classes",
        metavar="CSV",
        nargs="?",
        const="",
        help="instead of checking, write the ids or colours of the masks to this class list, to be edited (without a "
        "name: classes.csv in the folder)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the report or class list if it exists")
    options = parser.read(argv)
    options.changed = parser.changed(options)
    return options


def open_splits(options: argparse.Namespace) -> tuple[list[SegmentationDataset], list[str]]:
    """Open the requested splits (default: train, val and, if it exists, test); returns splits and problems."""
    from resnest_seg.data.build import build_dataset, say_layout

    trained: DataConfig | None = None
    space: LabelSpace | None = None
    if options.checkpoint is not None:
        from resnest_seg.models.loading import load_checkpoint

        segmenter = load_checkpoint(options.checkpoint)
        trained, space, task = segmenter.config.data, segmenter.label_space, segmenter.config.model.task
        if options.task not in (None, task):
            raise ConfigError(
                f"the task of checkpoint {options.checkpoint} is {task}, not {options.task}: leave out --model.task, "
                "or --checkpoint, and name the data set."
            )
    name = options.dataset or (trained.dataset if trained is not None else "")
    place = place_in(options, DataConfig(), name=name) if trained is None else None  # listed once for all splits
    options.window_overlap = 0  # context would count as ignored
    splits = options.splits.split(",") if options.splits else list(SPLITS)
    found, problems = [], []
    for split in splits:
        try:
            if trained is not None:
                found.append(open_dataset(options, trained, space, name=name, split=split, allow_missing=True))
            else:
                window, overlap = windows_in(options, None)
                found.append(
                    build_dataset(
                        name,
                        root=place,
                        split=split,
                        images=options.data_images,
                        masks=options.data_masks,
                        classes=options.classes,
                        window=window,
                        window_overlap=overlap,
                        allow_missing=True,
                        task=options.task or DEFAULT_TASK,
                        positive=options.positive,
                    )
                )
                found[-1].read_as(bands_in(options, DataConfig()))
        except DatasetError as error:
            if not found:
                raise
            if options.splits or split != "test":  # not every data set has a test split
                problems.append(f"the {split} split cannot be opened: {error}")
    say_layout(found[0])
    return found, problems


def write_classes(options: argparse.Namespace) -> None:
    """Write a class list of what the masks of a folder hold, and say what to do next.

    Raises:
        ConfigError: The data set is no folder, an option belongs to a check, or the file exists or cannot be written.
        DatasetError: Photos and masks do not pair, or a mask cannot be read.
    """
    from resnest_seg.data.build import data_root
    from resnest_seg.data.class_lists import draft_classes
    from resnest_seg.data.folder import find_pairs, read_masks
    from resnest_seg.io.display import progress_bars
    from resnest_seg.storage.opening import open_source
    from resnest_seg.storage.sources import FolderSource

    if options.dataset != "folder":
        name = "without --dataset there is no folder" if options.dataset is None else f"{options.dataset} has its own"
        raise ConfigError(f"--write-classes is for --dataset folder: {name}.")
    strays = [option for option in options.changed if option in NOT_LISTED]
    if strays:
        raise ConfigError(f"--write-classes reads all masks of the folder, as files: leave {', '.join(strays)} out.")
    if options.write_classes and not options.write_classes.lower().endswith(".csv"):  # nor a mask, with --overwrite
        raise ConfigError(f"--write-classes writes a CSV file: '{options.write_classes}' must end with .csv.")
    strays = [option for option in options.changed if option in OF_A_CHECK]
    if strays:
        raise ConfigError(
            f"--write-classes lists the ids of all masks and checks nothing: leave {', '.join(strays)} out, or give "
            f"{'it' if len(strays) == 1 else 'them'} to the check afterwards."
        )
    task = options.task or DEFAULT_TASK
    root = data_root("folder", options.root)
    source = open_source(root, zips=())
    found = find_pairs(source, root, images=options.data_images, masks=options.data_masks)
    within = isinstance(source, FolderSource) and not options.write_classes
    path = Path(root) / found.layout.base / "classes.csv" if within else Path(options.write_classes or "classes.csv")
    check_output_file(path, what="class list", overwrite=options.overwrite, option="--write-classes")
    with progress_bars() as progress:
        bar = progress.add_task("reading masks", total=found.pairs)
        masks = read_masks(source, found, task=task)
        draft = draft_classes(progress_of(masks, lambda: progress.advance(bar)), task=task)
    with atomic_write(path) as temporary:
        temporary.write_text(draft, encoding="utf-8")
    words = ["--dataset", "folder", "--data.root", str(root)]
    words += ["--data.images", options.data_images, "--data.masks", options.data_masks] if options.data_images else []
    words += [] if within else ["--data.classes", str(path)]
    words += [] if task == DEFAULT_TASK else ["--model.task", task]
    lines = draft.count("\n") - 1
    print(f"{path}: {lines} {'entry' if lines == 1 else 'entries'} of {found.pairs} masks. Edit their names "
          f"in it, then:\n    {command('check')} {shlex.join(words)}")  # fmt: skip


def progress_of(items: Iterable[T], advance: Callable[[], None]) -> Iterator[T]:
    """Pass items on, and call a function after each."""
    for item in items:
        yield item
        advance()


def main(argv: Sequence[str] | None = None) -> int:
    """Check the data set; returns the exit code."""
    options = parse(argv)
    check_option("--limit", options.limit, 1, COUNT)
    check_option("--workers", options.workers, 0, 256)

    if options.dataset is None and options.checkpoint is None:
        names = "synthetic, camvid, ade20k, cityscapes, folder or shards"
        raise ConfigError(f"--dataset is missing: {names}; or --checkpoint RUN.")
    if options.write_classes is not None:
        write_classes(options)
        return 0
    if options.output is not None:
        check_output_file(options.output, what="report", overwrite=options.overwrite)

    from resnest_seg.data.checks import diagnose, spread
    from resnest_seg.io.display import console, progress_bars

    splits, problems = open_splits(options)
    total = sum(len(spread(len(dataset), options.limit)) for dataset in splits)
    with progress_bars() as progress:
        bar = progress.add_task("checking", total=total)
        diagnosis = diagnose(
            splits, limit=options.limit, workers=options.workers, on_sample=lambda fact: progress.advance(bar)
        )
    if options.output is not None:
        diagnosis.save(options.output)
    terminal = console(soft_wrap=True)
    terminal.print(diagnosis.table())
    for split, (smallest, median, largest) in ((s, sizes) for s, sizes in diagnosis.sizes.items() if sizes):
        sizes = ", ".join(f"{width} x {height}" for height, width in (smallest, median, largest))
        terminal.print(f"{split}: sizes (smallest, median, largest) {sizes}")
    terminal.print(f"suggested crop: {diagnosis.suggested_crop}")
    if diagnosis.pixel_mean:
        terminal.print(f"data.pixel_mean: {list(diagnosis.pixel_mean)}")
        terminal.print(f"data.pixel_std: {list(diagnosis.pixel_std)}")
    for finding in diagnosis.findings:
        terminal.print(f"{finding.severity}: {finding.kind}: {finding.message}")
        if finding.severity == "error" and len(finding.files) > 1:
            for file in finding.files[:20]:
                terminal.print(f"  {file}")
            if len(finding.files) > 20:
                where = f"in {options.output}" if options.output else "which --output report.json lists"
                terminal.print(f"  and {len(finding.files) - 20} more, {where}")
    for problem in problems:
        terminal.print(f"error: {problem}")
    count = len(diagnosis.errors) + len(problems)
    verdict = f"{count} errors: training would go wrong" if count else "ready for training"
    terminal.print(f"{verdict}.{f' Report: {options.output}' if options.output else ''}")
    return 1 if count else 0
