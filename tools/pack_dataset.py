"""Pack a data set into tar shards, from which training reads as from single files.

The command is `resnest_seg.cli.datasets.pack`.
"""

from resnest_seg.cli.datasets.pack import main
from resnest_seg.errors import run_tool

if __name__ == "__main__":
    raise SystemExit(run_tool(main))
