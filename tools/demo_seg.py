"""Try a model on a page in the browser. pip install 'resnest-seg[export,serve]'.

The command is `resnest_seg.cli.demo`.
"""

from resnest_seg.cli.demo import main
from resnest_seg.errors import run_tool

if __name__ == "__main__":
    raise SystemExit(run_tool(main))
