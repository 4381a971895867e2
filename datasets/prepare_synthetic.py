"""Write synthetic street scenes as files: to look at them, or to try predict_seg.py.

    python datasets/prepare_synthetic.py --split test --count 8 --output datasets/synthetic

Training does not need this: it draws the scenes itself.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

from resnest_seg.errors import ConfigError, run_tool
from resnest_seg.files import check_output_folder

FOLDERS = ("images", "masks")
"""What is written below the output folder."""


def main(argv: Sequence[str] | None = None) -> int:
    """Write images/*.png and masks/*.png (raw ids as a palette); returns the exit code."""
    parser = argparse.ArgumentParser(prog="prepare_synthetic.py", description=__doc__.splitlines()[0])
    parser.add_argument("--split", default="train", help="train, val or test (default: train)")
    parser.add_argument("--count", type=int, default=8, help="scenes to write (default: 8)")
    parser.add_argument("--output", default="datasets/synthetic", help="folder (default: datasets/synthetic)")
    options = parser.parse_args(argv)

    from resnest_seg.data.build import build_dataset
    from resnest_seg.io.visualize import write_labels, write_png

    dataset = build_dataset("synthetic", split=options.split)
    if not 1 <= options.count <= len(dataset):
        raise ConfigError(f"--count must lie in 1..{len(dataset)} for split {options.split}, not {options.count}.")
    output = Path(options.output)
    check_output_folder(output)
    existing = [folder for folder in FOLDERS if (output / folder).exists()]
    if existing:
        raise ConfigError(f"{output / existing[0]} already exists. Choose another --output.")
    unfinished = output / ".unfinished"  # so that a full disk leaves no half of a data set, which the next run refuses
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        for index in range(options.count):
            sample, name = dataset[index], f"{options.split}_{index:04d}.png"
            write_png(unfinished / "images" / name, sample.image)
            write_labels(unfinished / "masks" / name, sample.labels, dataset.label_space, ids="raw")
        for folder in FOLDERS:
            (unfinished / folder).rename(output / folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    print(f"{options.count} scenes written to {options.output}")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_tool(main))
