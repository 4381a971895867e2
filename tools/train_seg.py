"""Train a segmentation model.

The command is `resnest_seg.cli.train`.
"""

from resnest_seg.cli.train import main
from resnest_seg.errors import run_tool

if __name__ == "__main__":
    raise SystemExit(run_tool(main))
