"""Segment photos, videos and camera streams: label PNGs, overlays with a legend, scores, polygons.

The command is `resnest_seg.cli.predict`.
"""

from resnest_seg.cli.predict import main
from resnest_seg.errors import run_tool

if __name__ == "__main__":
    raise SystemExit(run_tool(main))
