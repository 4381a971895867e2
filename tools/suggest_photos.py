"""Suggest which unlabelled photos to label next.

The command is `resnest_seg.cli.review.suggest`.
"""

from resnest_seg.cli.review.suggest import main
from resnest_seg.errors import run_tool

if __name__ == "__main__":
    raise SystemExit(run_tool(main))
