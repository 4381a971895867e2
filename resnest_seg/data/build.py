"""Data sets by name, and the folders where they are expected."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from resnest_seg.config import DataConfig
from resnest_seg.data.datasets import ADE20K, DATA_ROOT_VARIABLE, CamVid, Cityscapes, SegmentationDataset
from resnest_seg.data.folder import FolderDataset
from resnest_seg.data.synthetic import Synthetic
from resnest_seg.errors import DatasetError, printable, unknown_name

DATASETS: dict[str, Callable[[Path, str, str | None, bool], SegmentationDataset]] = {
    # (root, split, list of classes, leave missing masks to the reader)
    "synthetic": lambda root, split, classes, lenient: Synthetic(split),
    "camvid": lambda root, split, classes, lenient: CamVid(root, split, allow_missing=lenient),
    "ade20k": lambda root, split, classes, lenient: ADE20K(root, split, allow_missing=lenient),
    "cityscapes": lambda root, split, classes, lenient: Cityscapes(root, split, allow_missing=lenient),
    "folder": lambda root, split, classes, lenient: FolderDataset(root, split, classes=classes, allow_missing=lenient),
}


def data_root(name: str, root: str | Path | None = None) -> Path:
    """Where a data set is looked for: `root`, else $RESNEST_SEG_DATA/<name>, else datasets/<name>."""
    return Path(root) if root is not None else Path(os.environ.get(DATA_ROOT_VARIABLE, "datasets")) / name


def build_dataset(
    name: str,
    *,
    root: str | Path | None = None,
    split: str = "train",
    classes: str | None = None,
    allow_missing: bool = False,
) -> SegmentationDataset:
    """Open a data set by name.

    Args:
        name: A key of `DATASETS`.
        root: Its folder or zip file; None looks in $RESNEST_SEG_DATA/<name>, then takes datasets/<name>.
        split: "train", "val" or "test", as the data set has them.
        classes: For "folder": the list of classes, where it lies elsewhere.
        allow_missing: Leave missing masks to the reader of the samples, for a tool that lists them all.

    Raises:
        ConfigError: Unknown name.
        DatasetError: The data set is not there or incomplete; unknown split.
    """
    if name not in DATASETS:
        raise unknown_name("data set", name, DATASETS)
    return DATASETS[name](data_root(name, root), split, classes, allow_missing)


def dataset_for(data: DataConfig, split: str) -> SegmentationDataset:
    """Open a split of the data set that a config names; see `build_dataset` for the errors.

    Raises:
        DatasetError: Its path has bytes that are not UTF-8; files below it may have such names.
    """
    for key, path in (("data.root", data.root), ("data.classes", data.classes)):
        if path is not None and printable(path) != path:
            raise DatasetError(
                f"{key} '{printable(path)}' has bytes that are not UTF-8, which the run's config.yaml cannot hold: "
                "give it a link with a plain name (ln -s) and pass that."
            )
    return build_dataset(data.dataset, root=data.root, split=split, classes=data.classes)
