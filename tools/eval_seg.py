"""Evaluate a trained model: a table by class, mIoU and pixel accuracy, and a JSON report.

The command is `resnest_seg.cli.eval`.
"""

from resnest_seg.cli.eval import main
from resnest_seg.errors import run_tool

if __name__ == "__main__":
    raise SystemExit(run_tool(main))
