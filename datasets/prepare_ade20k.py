"""Download ADE20K (SceneParse150, 923 MB), check it, and unpack it; safe to run again.

The command is `resnest_seg.cli.datasets.prepare`.
"""

from resnest_seg.cli.datasets.prepare import ade20k as main
from resnest_seg.errors import run_tool

if __name__ == "__main__":
    raise SystemExit(run_tool(main))
