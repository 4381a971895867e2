"""List the published checkpoints with their published scores, and those that are on this machine.

The command is `resnest_seg.cli.zoo`.
"""

from resnest_seg.cli.zoo import main
from resnest_seg.errors import run_tool

if __name__ == "__main__":
    raise SystemExit(run_tool(main))
