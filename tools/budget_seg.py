"""Plan how a recipe fits into the memory of given devices: prints a table and the training command.

The command is `resnest_seg.cli.budget`.
"""

from resnest_seg.cli.budget import main
from resnest_seg.errors import run_tool

if __name__ == "__main__":
    raise SystemExit(run_tool(main))
