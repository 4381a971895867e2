"""Find doubtful labels: ranked images and regions, and a page to click through.

The command is `resnest_seg.cli.review.audit`.
"""

from resnest_seg.cli.review.audit import main
from resnest_seg.errors import run_tool

if __name__ == "__main__":
    raise SystemExit(run_tool(main))
