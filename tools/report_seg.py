"""Write a report of a run, or of several side by side: one HTML file.

The command is `resnest_seg.cli.review.report`.
"""

from resnest_seg.cli.review.report import main
from resnest_seg.errors import run_tool

if __name__ == "__main__":
    raise SystemExit(run_tool(main))
