"""Export a model to ONNX, torch (.pt2) or OpenVINO, and verify that the file's predictions equal the model's.

The command is `resnest_seg.cli.export`.
"""

from resnest_seg.cli.export import main
from resnest_seg.errors import run_tool

if __name__ == "__main__":
    raise SystemExit(run_tool(main))
