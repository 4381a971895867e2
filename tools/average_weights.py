"""Average the weights of checkpoints: the newest states of a run, or runs of one network.

The command is `resnest_seg.cli.average`.
"""

from resnest_seg.cli.average import main
from resnest_seg.errors import run_tool

if __name__ == "__main__":
    raise SystemExit(run_tool(main))
