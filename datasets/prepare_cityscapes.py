"""Unpack and check Cityscapes from the two zip files that you downloaded; safe to run again.

python datasets/prepare_cityscapes.py ~/Downloads

Log in at https://www.cityscapes-dataset.com and download leftImg8bit_trainvaltest.zip (11 GB) and
gtFine_trainvaltest.zip (241 MB). Terms: research, non-commercial, not to be handed on.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from resnest_seg.data.preparation import missing, require_complete, unpack
from resnest_seg.errors import DatasetError, run_tool

ZIPS = {"leftImg8bit_trainvaltest.zip": "leftImg8bit/", "gtFine_trainvaltest.zip": "gtFine/"}
EXPECTED = {
    "leftImg8bit/train/*/*_leftImg8bit.png": 2975,
    "leftImg8bit/val/*/*_leftImg8bit.png": 500,
    "leftImg8bit/test/*/*_leftImg8bit.png": 1525,
    "gtFine/train/*/*_gtFine_labelIds.png": 2975,
    "gtFine/val/*/*_gtFine_labelIds.png": 500,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("zips", help="folder with the two zip files")
    parser.add_argument("--root", default="datasets/cityscapes", help="default: datasets/cityscapes")
    options = parser.parse_args(argv)
    root, folder = Path(options.root), Path(options.zips)
    if not missing(root, EXPECTED):
        print(f"Cityscapes is complete in {root}")
        return 0
    absent = [name for name in ZIPS if not (folder / name).is_file()]
    if absent:
        raise DatasetError(
            f"{folder} lacks {' and '.join(absent)}. Log in at https://www.cityscapes-dataset.com and download what is "
            "missing."
        )
    count = sum(unpack(folder / name, root, wanted=[prefix]) for name, prefix in ZIPS.items())
    require_complete(root, EXPECTED)
    print(f"{count} files unpacked: Cityscapes is complete in {root}. Your zip files are as they were.")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_tool(main))
