"""Opening data sets by name, and their default folders."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from resnest_seg.config import CUSTOM, DataConfig
from resnest_seg.data.datasets import ADE20K, DATA_ROOT_VARIABLE, CamVid, Cityscapes, SegmentationDataset
from resnest_seg.data.folder import FolderDataset
from resnest_seg.data.synthetic import Synthetic
from resnest_seg.errors import ConfigError, DatasetError, printable, unknown_name
from resnest_seg.io.bands import BandReader
from resnest_seg.labels import LabelSpace

DATASETS: dict[str, Callable[[Path, str, str | LabelSpace | None, bool], SegmentationDataset]] = {
    # (root, split, class list or classes, allow missing masks)
    "synthetic": lambda root, split, classes, lenient: Synthetic(split),
    "camvid": lambda root, split, classes, lenient: CamVid(root, split, allow_missing=lenient),
    "ade20k": lambda root, split, classes, lenient: ADE20K(root, split, allow_missing=lenient),
    "cityscapes": lambda root, split, classes, lenient: Cityscapes(root, split, allow_missing=lenient),
    "folder": lambda root, split, classes, lenient: FolderDataset(root, split, classes=classes, allow_missing=lenient),
}


def data_root(name: str, root: str | Path | None = None) -> Path:
    """Return the folder of a data set: `root`, else $RESNEST_SEG_DATA/<name>, else datasets/<name>."""
    return Path(root) if root is not None else Path(os.environ.get(DATA_ROOT_VARIABLE, "datasets")) / name


def build_dataset(
    name: str,
    *,
    root: str | Path | None = None,
    split: str = "train",
    classes: str | LabelSpace | None = None,
    allow_missing: bool = False,
) -> SegmentationDataset:
    """Open a data set by name.

    Args:
        name: A key of `DATASETS`.
        root: Its folder or zip file; None for $RESNEST_SEG_DATA/<name>, or datasets/<name> if that is not set.
        split: "train", "val" or "test", if the data set has it.
        classes: The class list of "folder", if it is outside the folder, or its classes.
        allow_missing: Raise for a missing mask when its sample is read, not here; for tools that list all of them.

    Raises:
        ConfigError: Unknown name.
        DatasetError: The data set is missing or incomplete, or the split is unknown.
    """
    if name == CUSTOM:
        raise ConfigError(
            "the data set is one of its author's own (custom), which no name opens: choose another, such as --dataset "
            "folder --data.root FOLDER, or pass it in Python: fit(..., train=, validation=), evaluate(model, dataset)."
        )
    if name not in DATASETS:
        raise unknown_name("data set", name, DATASETS)
    return DATASETS[name](data_root(name, root), split, classes, allow_missing)


def dataset_for(data: DataConfig, split: str) -> SegmentationDataset:
    """Open a split of the data set that a config names; see `build_dataset` for the errors.

    Raises:
        ConfigError: Bands of a data set whose images are drawn, not read.
        DatasetError: Its path is not UTF-8; names of files below it need not be.
    """
    for key, path in (("data.root", data.root), ("data.classes", data.classes)):
        if path is not None and printable(path) != path:
            raise DatasetError(
                f"{key} '{printable(path)}' has bytes that are not UTF-8, which the run's config.yaml cannot hold: "
                "give it a link with a plain name (ln -s) and pass that."
            )
    dataset = build_dataset(data.dataset, root=data.root, split=split, classes=data.classes)
    dataset.read_as(bands_of(data))
    return dataset


def bands_of(data: DataConfig) -> BandReader | None:
    """How a config's images are read, if they are no photos."""
    return None if data.bands is None else BandReader(data.bands, data.nodata, data.pixel_mean)
