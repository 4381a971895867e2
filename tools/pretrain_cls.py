"""Train an image classifier on a folder of images, to pre-train the encoder of a segmenter.

The command is `resnest_seg.cli.pretrain`.
"""

from resnest_seg.cli.pretrain import main
from resnest_seg.errors import run_tool

if __name__ == "__main__":
    raise SystemExit(run_tool(main))
