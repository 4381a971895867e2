"""Write synthetic street scenes as files: to look at them, or to try predict_seg.py.

The command is `resnest_seg.cli.datasets.prepare`.
"""

from resnest_seg.cli.datasets.prepare import synthetic as main
from resnest_seg.errors import run_tool

if __name__ == "__main__":
    raise SystemExit(run_tool(main))
