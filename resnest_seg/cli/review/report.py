"""Write a report of a run, or of several side by side: one HTML file with curves, scores and images.

python tools/report_seg.py runs/my_run
python tools/report_seg.py runs/first runs/second runs/third --output comparison.html

The file loads nothing from elsewhere. Scores are those of the newest evaluation that all runs have by the same
protocol: of the best validation, or of the verb eval. A run in progress, or one that was killed, gives a report of what
is there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from resnest_seg.cli.parsing.options import Parser, add_model_option
from resnest_seg.config_types import check_option
from resnest_seg.files import check_not_inputs, check_output_file, next_free
from resnest_seg.inference.own_network import own_network

SUFFIX = ".html"
"""Suffix of a report."""


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser("report", description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run folder; of several, the first is what the others "
                        "are compared with")  # fmt: skip
    parser.add_argument("--output", metavar="HTML", help="the report (default: report.html in the run folder, of "
                        "several runs in the current folder; or report-2.html, -3 ... if that exists)")  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace the report if it exists")
    parser.add_argument("--images", type=int, default=16, help="worst, best and random images, so many of each, which "
                        "the best checkpoint predicts again (default: 16)")  # fmt: skip
    parser.add_argument("--no-images", action="store_true", help="show no images")
    parser.add_argument("--data.root", dest="root", help="folder, zip file or address of the data set (default: as in "
                        "training)")  # fmt: skip
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ... (default: auto)")
    add_model_option(parser)
    return parser.read(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the report; returns the exit code."""
    options = parse(argv)
    check_option("--images", options.images, 0, 1000)
    output = Path(options.output or (Path(options.runs[0]) if len(options.runs) == 1 else Path()) / f"report{SUFFIX}")
    if options.output is None and not options.overwrite:
        output = next_free(output, suffix=SUFFIX)

    from resnest_seg.reports.run_files import read_files
    from resnest_seg.reports.run_report import Pictures, write_report

    for run in options.runs:
        read_files(run)  # before a folder is blamed that is none
        check_not_inputs([output], [path for path in Path(run).iterdir() if path.suffix != SUFFIX and path.is_file()])
    check_output_file(output, what="report", overwrite=options.overwrite)
    images = Pictures(
        count=0 if options.no_images else options.images,
        root=options.root,
        into=own_network(options.model),
        device=options.device,
    )
    write_report(options.runs, output, images=images, say=lambda text: print(f"note: {text}", file=sys.stderr))
    print(f"report: {output}")
    return 0
