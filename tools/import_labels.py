"""Import labels of annotation tools as photos and masks.

The command is `resnest_seg.cli.datasets.import_labels`.
"""

from resnest_seg.cli.datasets.import_labels import main
from resnest_seg.errors import run_tool

if __name__ == "__main__":
    raise SystemExit(run_tool(main))
