"""Serve an exported model by HTTP: photos in, labels out. Needs no torch; pip install 'resnest-seg[serve]'.

The command is `resnest_seg.cli.serve`.
"""

from resnest_seg.cli.serve import main
from resnest_seg.errors import run_tool

if __name__ == "__main__":
    raise SystemExit(run_tool(main))
