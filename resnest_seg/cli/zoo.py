"""List the published checkpoints with their published scores, and those that are on this machine.

python tools/zoo_seg.py
python tools/zoo_seg.py --dataset ade20k
python tools/zoo_seg.py --fetch deeplab_resnest50_ade
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from resnest_seg.cli.parsing.options import Parser
from resnest_seg.errors import unknown_name

if TYPE_CHECKING:
    from resnest_seg.models.published_weights import PublishedCheckpoint

FIGURES = ("mIoU % with one scale (SS), several and flip (MS); acc. of pixels", "accuracy %")

DATASETS = ("ade20k", "cityscapes", "pascal_context", "imagenet")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser("zoo", description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", help=f"only checkpoints for one of {', '.join(DATASETS)}")
    parser.add_argument("--checkpoint", metavar="NAME", help="only this checkpoint")
    parser.add_argument("--fetch", metavar="NAME", help="download this checkpoint, verify it and print its path")
    parser.add_argument("--json", action="store_true", help="print all metadata: URL, hash, path, scores")
    return parser.read(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """List or fetch; returns the exit code."""
    options = parse(argv)
    if options.dataset is not None and options.dataset not in DATASETS:
        raise unknown_name("data set", options.dataset, DATASETS)

    from resnest_seg.models.published_weights import PUBLISHED, published, published_names, weights_folder

    if options.fetch is not None:
        entry = published(options.fetch)
        if entry is None:
            raise unknown_name("published checkpoint", options.fetch, published_names())
        print(entry.fetch())
        return 0
    chosen = [name for name in DATASETS if options.dataset in (None, name)]
    entries = [entry for name in chosen for entry in PUBLISHED if entry.dataset == name]
    if options.checkpoint is not None:
        wanted = published(options.checkpoint)
        if wanted not in entries:
            raise unknown_name("published checkpoint", options.checkpoint, published_names())
        entries, chosen = [wanted], [wanted.dataset]
    if options.json:
        print(json.dumps([describe(entry) for entry in entries], indent=2))
        return 0
    for name in chosen:
        print_table(name, [entry for entry in entries if entry.dataset == name])
    print(f"Files are kept in {weights_folder()}. load_checkpoint and encoder_weights take these names, and the whole")
    print("names, with date and hash, that --json shows.")
    return 0


def describe(entry: PublishedCheckpoint) -> dict[str, object]:
    """Convert the metadata of a checkpoint to plain values."""
    here = entry.local_path
    return dataclasses.asdict(entry) | {
        "alias": entry.alias,
        "url": entry.url,
        "digest": str(entry.digest) if entry.digest else None,
        "path": str(entry.path),
        "cached": here is not None,
    }


def print_table(dataset: str, entries: Sequence[PublishedCheckpoint]) -> None:
    """Print one line per checkpoint, within 80 columns."""
    from resnest_seg.io.display import PlainTable, console

    def figure(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f}"

    table = PlainTable(title=f"{dataset}: {FIGURES[dataset == 'imagenet']}", compact=True)
    table.column("name", no_wrap=True)
    for heading in ("top-1",) if dataset == "imagenet" else ("SS", "MS", "acc."):
        table.column(heading, right=True)
    for heading in ("M par.", "MB", "here"):
        table.column(heading, right=True)
    for entry in entries:
        figures = [entry.single_scale, entry.multi_scale, entry.pixel_accuracy]
        here = entry.local_path
        size = here.stat().st_size / 1e6 if here is not None else 4 * entry.millions  # float32
        cells = [figure(value) for value in (figures[:1] if dataset == "imagenet" else figures)]
        table.row(entry.alias, *cells, f"{entry.millions:.1f}", f"{size:.0f}", "yes" if here else "-")
    terminal = console()
    terminal.print(table)
    terminal.print()
