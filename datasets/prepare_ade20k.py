"""Download ADE20K (SceneParse150, 923 MB), check it, and unpack it; safe to run again, also after an interruption.

python datasets/prepare_ade20k.py
python datasets/prepare_ade20k.py --root /data/ade20k --keep-zip

Terms: research and education, non-commercial; see http://groups.csail.mit.edu/vision/datasets/ADE20K/terms/.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from resnest_seg.data.preparation import missing, require_complete, unpack
from resnest_seg.errors import run_tool
from resnest_seg.io.download import Digest, download

URL = "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip"
DIGEST = Digest("sha1", "219e1696abb36c8ba3a3afe7fb2f4b4606a897c7")
EXPECTED = {
    "ADEChallengeData2016/images/training/*.jpg": 20210,
    "ADEChallengeData2016/images/validation/*.jpg": 2000,
    "ADEChallengeData2016/annotations/training/*.png": 20210,
    "ADEChallengeData2016/annotations/validation/*.png": 2000,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--root", default="datasets/ade20k", help="folder of the data set (default: datasets/ade20k)")
    parser.add_argument("--keep-zip", action="store_true", help="do not delete the zip file after it was unpacked")
    options = parser.parse_args(argv)
    root = Path(options.root)
    if not missing(root, EXPECTED):
        print(f"ADE20K is complete in {root}")
        return 0
    archive = download(URL, root / "ADEChallengeData2016.zip", digest=DIGEST)
    count = unpack(archive, root)
    require_complete(root, EXPECTED)
    if not options.keep_zip:
        archive.unlink()
    print(f"{count} files unpacked: ADE20K is complete in {root}. Train: python tools/train_seg.py --dataset ade20k")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_tool(main))
