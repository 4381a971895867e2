"""List run folders: what differs in their configs, best score, progress, speed and state; means over seeds.

python tools/list_runs.py
python tools/list_runs.py runs/camvid --sort lr
python tools/list_runs.py --json

Runs that differ in nothing but their seeds, as train --seed 0,1,2 makes them, are summed up below the table.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from resnest_seg.cli.parsing.options import Parser
from resnest_seg.errors import printable

if TYPE_CHECKING:
    from resnest_seg.reports.run_table import Run

RUNS = "runs"
"""The folder that is searched by default."""


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser("runs", description=__doc__)
    parser.add_argument("folder", nargs="?", default=RUNS, metavar="FOLDER",
                        help=f"folder with run folders in it and below (default: {RUNS})")  # fmt: skip
    parser.add_argument("--sort", default="score", metavar="KEY", help="name, score, step, epochs, speed, state or a "
                        "config key, such as optim.lr or lr; numbers from the highest (default: score)")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON, with all config keys in which runs differ")
    return parser.read(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """List the runs; returns the exit code."""
    options = parse(argv)

    from resnest_seg.reports.run_table import find_runs, runs_as_json, sort_runs

    runs, problems = find_runs(options.folder)
    if runs:
        runs = sort_runs(runs, options.sort)
    if options.json:
        print(runs_as_json(runs, problems))
        return 0
    if runs:
        show_runs(runs, first=options.sort)
    else:
        print(f"no run folder in {printable(options.folder)} or below.", file=sys.stderr)
    for problem in problems:
        print(f"note: left out: {printable(problem)}", file=sys.stderr)
    return 0


def show_runs(runs: Sequence[Run], *, first: str | None = None) -> None:
    """Print the table of runs and, where some differ in their seeds alone, that of their means.

    Args:
        runs: The runs, in the order of the table.
        first: A config key that is shown in any case.
    """
    from resnest_seg.io.display import console
    from resnest_seg.reports.run_table import MOST_KEYS, runs_table, seed_groups, seed_table

    terminal = console()
    most = MOST_KEYS
    if terminal.is_terminal:
        most = min(max((terminal.width - 60) // 10, 1), most)
    else:  # a file or a pipe has lines of any length
        terminal = console(width=10_000)
    terminal.print(runs_table(runs, first=first, most=most))
    if groups := seed_groups(runs):
        terminal.print()
        terminal.print(seed_table(groups))
