"""How a recipe fits into the memory of devices, which need not be here: a table, and the words that train so.

The command is `resnest_seg.cli.budget`.
"""

from resnest_seg.cli.budget import main
from resnest_seg.errors import run_tool

if __name__ == "__main__":
    raise SystemExit(run_tool(main))
