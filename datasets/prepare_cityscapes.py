"""Unpack and check Cityscapes from the two zip files that you downloaded; safe to run again.

The command is `resnest_seg.cli.datasets.prepare`.
"""

from resnest_seg.cli.datasets.prepare import cityscapes as main
from resnest_seg.errors import run_tool

if __name__ == "__main__":
    raise SystemExit(run_tool(main))
