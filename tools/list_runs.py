"""List run folders: what differs in their configs, best score, progress, speed and state.

The command is `resnest_seg.cli.review.runs`.
"""

from resnest_seg.cli.review.runs import main
from resnest_seg.errors import run_tool

if __name__ == "__main__":
    raise SystemExit(run_tool(main))
