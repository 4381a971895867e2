"""Pack a data set into tar shards: few large files, from which training reads as from single files.

python tools/pack_dataset.py --dataset folder --data.root mine --output shards
python tools/pack_dataset.py --dataset ade20k --split train val --shard-size 1GB --output shards
python tools/pack_dataset.py --config my_run.yaml --output shards

Photos keep their bytes, masks become PNG files of train ids. Tar and WebDataset read the shards, too. After Ctrl-C, or
a kill, the same command goes on. Then: python tools/train_seg.py --dataset shards --data.root shards
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from resnest_seg.cli.parsing.options import Parser, add_dataset, add_workers, bands_in, cache_in
from resnest_seg.config import DataConfig, load_run_config
from resnest_seg.config_types import check_option
from resnest_seg.errors import ConfigError, DatasetError, command, printable
from resnest_seg.files import check_outside, find_config
from resnest_seg.labels import TASKS

if TYPE_CHECKING:
    from resnest_seg.data.datasets import SegmentationDataset

SPLITS = ("train", "val", "test")

UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
"""Unit of --shard-size -> bytes."""


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser("pack", description=__doc__)
    add_dataset(parser, default="that of --config", splits=False)
    parser.add_argument("--config", metavar="FILE", help="pack the data set of a run's config: a file, or the name of "
                        "a shipped one")  # fmt: skip
    parser.add_argument("--model.task", dest="task", choices=TASKS, help="for folder: task of the masks (default: as "
                        "in --config, else multiclass)")  # fmt: skip
    parser.add_argument("--split", nargs="+", default=[], metavar="SPLIT", help="pack these splits only: train val "
                        "test (default: all that there are)")  # fmt: skip
    parser.add_argument("--output", required=True, metavar="FOLDER", help="folder of the shards, new or empty")
    parser.add_argument("--shard-size", default="256MB", metavar="SIZE", help="size of a tar file, at most, such as "
                        "64MB or 1GB (default: 256MB)")  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace the shards that are in the folder")
    add_workers(parser, default=4)
    return parser.read(argv)


def shard_bytes(word: str) -> int:
    """Parse --shard-size.

    Raises:
        ConfigError: It is no size, or is out of range.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(\w+)", word)
    if match is None or match[2] not in UNITS:
        raise ConfigError(
            f"--shard-size must be a number with a unit, {', '.join(UNITS)}, such as 256MB, not {word!r}."
        )
    size = int(float(match[1]) * UNITS[match[2]])
    if not 10**4 <= size <= 10**12:
        raise ConfigError(f"--shard-size must be from 10KB to 1000GB, not {word}.")
    return size


def open_splits(options: argparse.Namespace) -> list[SegmentationDataset]:
    """Open the splits that are packed, with the classes that their masks have.

    Raises:
        ConfigError: Options that choose among what shards hold.
        DatasetError: A split cannot be opened; without --split, a test split may be missing.
    """
    from resnest_seg.data.build import build_dataset, opened_root, say_layout

    config = None if options.config is None else load_run_config(find_config(options.config))
    data = DataConfig() if config is None else config.data
    name = options.dataset or data.dataset
    same = config is not None and name == data.dataset
    if options.positive is not None:
        raise ConfigError("--data.positive chooses among the classes of shards, which keep all: give it to train.")
    if options.window or (options.window is None and same and data.window):
        raise ConfigError(
            "windows of rasters cannot be packed: training takes them at random places. Pack whole images with "
            "--data.window null, cut into tiles where they are too large."
        )
    task = options.task or ("multiclass" if config is None or data.positive else config.model.task)
    patterns = (options.data_images, options.data_masks)
    if same and patterns == (None, None):
        patterns = data.images, data.masks
    cache, cache_size = cache_in(options, data)
    root = opened_root(name, options.root or (data.root if same else None), cache=cache, cache_size=cache_size)
    found: list[SegmentationDataset] = []
    for split in options.split or SPLITS:
        try:
            dataset = build_dataset(
                name,
                root=root,
                split=split,
                images=patterns[0],
                masks=patterns[1],
                classes=options.classes or (data.classes if same else None),
                task=task if name in ("folder", "shards") else "multiclass",
            )
        except DatasetError as error:
            if options.split or not found:
                raise
            if split != "test":  # which not every data set has
                others = " ".join(each.split for each in found)
                raise DatasetError(f"{error} To pack without the {split} split: --split {others}") from None
            print(f"the test split is left out: {error}", file=sys.stderr)
            continue
        # shards hold all bands as they are: nothing is filled, and other bands than those of training may be named
        dataset.read_as(bands_in(options, dataclasses.replace(data, pixel_mean=None) if same else DataConfig()))
        found.append(dataset)
    say_layout(found[0])
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Pack a data set; returns the exit code."""
    options = parse(argv)
    check_option("--workers", options.workers, 0, 256)
    size = shard_bytes(options.shard_size)
    if (options.dataset is None) == (options.config is None) and options.dataset is None:
        raise ConfigError("--dataset is missing: folder, ade20k, cityscapes, camvid or synthetic; or --config FILE.")
    if len(set(options.split)) < len(options.split):
        raise ConfigError(f"--split names a split twice: {' '.join(options.split)}.")

    from resnest_seg.data.datasets import PairedFiles
    from resnest_seg.data.shards import pack_shards
    from resnest_seg.io.display import progress_bars
    from resnest_seg.storage.remote import is_address

    if is_address(options.output):
        raise ConfigError(f"--output {printable(options.output)} must be a folder: pack, and then copy it there.")
    splits = open_splits(options)
    for dataset in splits:
        if isinstance(dataset, PairedFiles):
            check_outside(options.output, dataset.folders)
    try:
        with progress_bars() as progress:
            bar = progress.add_task("packing", total=sum(map(len, splits)))
            index = pack_shards(
                splits,
                options.output,
                shard_size=size,
                workers=options.workers,
                overwrite=options.overwrite,
                on_sample=lambda count: progress.advance(bar, count),
            )
    except KeyboardInterrupt:
        again = "the same command, without --overwrite," if options.overwrite else "the same command"
        print(f"{again} goes on where it was stopped", file=sys.stderr)
        raise
    counts = ", ".join(f"{split.samples} {name}" for name, split in index.splits.items())
    total = sum(shard.size for shard in index.shards)
    shards = "1 shard" if len(index.shards) == 1 else f"{len(index.shards)} shards"
    print(f"packed {counts}: {shards}, {total / 1e6:.1f} MB, in {printable(options.output)}")
    words = ["--dataset", "shards", "--data.root", options.output]
    words += [] if index.label_space.task == "multiclass" else ["--model.task", index.label_space.task]
    reader = splits[0].bands
    if reader is not None and reader.bands is not None:
        words += ["--data.bands", ",".join(map(str, reader.bands))]
        words += [] if reader.nodata is None else ["--data.nodata", f"{reader.nodata:g}"]
    if "train" in index.splits:
        print(f"Next: {command('train')} {shlex.join(words)}")
    return 0
