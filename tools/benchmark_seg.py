"""Measure this package beside what else one would pick, in one run on this machine.

The command is `resnest_seg.cli.benchmark`.
"""

from resnest_seg.cli.benchmark import main
from resnest_seg.errors import run_tool

if __name__ == "__main__":
    raise SystemExit(run_tool(main))
