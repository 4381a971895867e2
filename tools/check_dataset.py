"""Check a data set before training: photos, masks, ids, classes, duplicates between splits.

The command is `resnest_seg.cli.datasets.check`.
"""

from resnest_seg.cli.datasets.check import main
from resnest_seg.errors import run_tool

if __name__ == "__main__":
    raise SystemExit(run_tool(main))
