"""Opening data sets by name, and their default folders."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from resnest_seg.config import CUSTOM, DataConfig
from resnest_seg.data.datasets import ADE20K, DATA_ROOT_VARIABLE, CamVid, Cityscapes, SegmentationDataset, TaskView
from resnest_seg.data.folder import FolderDataset
from resnest_seg.data.synthetic import Synthetic
from resnest_seg.data.tiles import WindowDataset, paired_files
from resnest_seg.errors import ConfigError, DatasetError, printable, unknown_name
from resnest_seg.io.bands import BandReader
from resnest_seg.labels import TASKS, LabelSpace
from resnest_seg.storage.remote import RemoteSource, is_address
from resnest_seg.storage.sources import Source

DATASETS: dict[str, Callable[[str | Path | Source, str, bool], SegmentationDataset]] = {
    # (root, split, allow missing masks); folder has more options, see `build_dataset`
    "synthetic": lambda root, split, lenient: Synthetic(split),
    "camvid": lambda root, split, lenient: CamVid(root, split, allow_missing=lenient),
    "ade20k": lambda root, split, lenient: ADE20K(root, split, allow_missing=lenient),
    "cityscapes": lambda root, split, lenient: Cityscapes(root, split, allow_missing=lenient),
    "folder": lambda root, split, lenient: FolderDataset(root, split, allow_missing=lenient),
}


def data_root(name: str, root: str | Path | None = None) -> str | Path:
    """Return the folder of a data set: `root`, else $RESNEST_SEG_DATA/<name>, else datasets/<name>; or its address."""
    if root is not None and is_address(root):
        return root
    return Path(root) if root is not None else Path(os.environ.get(DATA_ROOT_VARIABLE, "datasets")) / name


def opened_root(
    name: str, root: str | Path | Source | None, *, cache: str | Path | None = None, cache_size: float = 20.0
) -> str | Path | Source:
    """Return the folder of a data set, see `data_root`, or its storage, listed now, if it is at an address.

    Args:
        name: The data set.
        root: Its folder, zip file, address or storage, or None.
        cache: Folder for copies of what is read from an address; None keeps none.
        cache_size: Limit of all copies in GiB.

    Raises:
        ConfigError: The cache cannot be written to.
        DatasetError: The address cannot be listed.
    """
    where = root if isinstance(root, Source) else data_root(name, root)
    if isinstance(where, Source) or not is_address(where):
        return where
    copies = None
    if cache is not None:
        from resnest_seg.storage.cache import Cache  # here, because Windows has no such locks

        copies = Cache(cache, gib=cache_size)
    return RemoteSource(str(where), cache=copies)


def build_dataset(
    name: str,
    *,
    root: str | Path | Source | None = None,
    split: str = "train",
    images: str | None = None,
    masks: str | None = None,
    classes: str | LabelSpace | None = None,
    window: int | None = None,
    window_overlap: int | None = None,
    allow_missing: bool = False,
    task: str = "multiclass",
    positive: str | None = None,
    cache: str | Path | None = None,
    cache_size: float = 20.0,
) -> SegmentationDataset:
    """Open a data set by name.

    Args:
        name: A key of `DATASETS`.
        root: Its folder, zip file, address or storage; None looks where `data_root` does.
        split: "train", "val" or "test", if the data set has it.
        images: For "folder": pattern of the photos, see `FolderDataset`, as for `masks`.
        classes: The class list of "folder", if it is outside the folder, or its classes.
        window: For "folder": read windows of this side, see `WindowDataset`; None reads whole images.
        window_overlap: Context around a window; None is an eighth.
        allow_missing: Raise for a missing mask when its sample is read, not here; for tools that list all of them.
        task: One of `resnest_seg.labels.TASKS`. A folder has masks of that task, unless `positive` is given; of other
            data sets, every class becomes a label of a multi-label task.
        positive: Names of classes, separated by commas, that are the object of a binary task.
        cache: Folder for copies of what is read from an address, of at most `cache_size` GiB; None keeps none.

    Raises:
        ConfigError: Unknown name, task or class; patterns or windows for a data set with a layout of its own; a binary
            task on a data set of several classes without `positive`.
        DatasetError: The data set is missing or incomplete, or the split is unknown.
    """
    if name == CUSTOM:
        raise ConfigError(
            "the data set is one of its author's own (custom), which no name opens: choose another, such as --dataset "
            "folder --data.root FOLDER, or pass it in Python: fit(..., train=, validation=), evaluate(model, dataset)."
        )
    if name not in DATASETS:
        raise unknown_name("data set", name, DATASETS)
    if task not in TASKS:
        raise unknown_name("task", task, TASKS)
    where = opened_root(name, None if name == "synthetic" else root, cache=cache, cache_size=cache_size)
    if name == "folder":
        own = task if positive is None else "multiclass"  # the task of the masks
        if own == "multiclass" and isinstance(classes, LabelSpace) and classes.task != own:
            classes = None  # those of the view, which the files below do not have
        files = FolderDataset(
            where, split, images=images, masks=masks, classes=classes, allow_missing=allow_missing, task=own
        )
        dataset = files if window is None else WindowDataset(files, window, overlap=window_overlap)
        return dataset if own == task else with_task(dataset, task, positive)
    for key, given in (("data.images", images), ("data.masks", masks), ("data.window", window)):
        if given is not None:
            raise ConfigError(f"{key} is for --dataset folder: {name} has its own layout. Leave out '{given}'.")
    return with_task(DATASETS[name](where, split, allow_missing), task, positive)


def with_task(dataset: SegmentationDataset, task: str, positive: str | None = None) -> SegmentationDataset:
    """Return a data set as one of a task, see `build_dataset`."""
    if task == "multiclass":
        return dataset
    if task == "multilabel":
        return TaskView(dataset, task)
    names = dataset.label_space.names
    if positive is None and len(names) != 2:
        raise ConfigError(
            f"model.task binary: which of the {len(names)} classes of {dataset.label_space.name} are the object? Name "
            f"them: --data.positive {shlex.quote(names[-1])}. The classes: {', '.join(names[:12])}"
            f"{', ...' if len(names) > 12 else ''}."
        )
    chosen = names[1:] if positive is None else tuple(name.strip() for name in positive.split(","))
    return TaskView(dataset, task, chosen)


def dataset_for(
    data: DataConfig, split: str, *, task: str = "multiclass", root: str | Path | Source | None = None
) -> SegmentationDataset:
    """Open a split of the data set that a config names; see `build_dataset` for the errors.

    Args:
        data: The config.
        split: The split.
        task: The task of the model.
        root: Its storage, if it is open already (`opened_root`), so that it is listed once for several splits.

    Raises:
        ConfigError: Bands of a data set whose images are drawn, not read.
        DatasetError: Its path is not UTF-8; names of files below it need not be.
    """
    for key, path in (
        ("data.root", data.root),
        ("data.images", data.images),
        ("data.masks", data.masks),
        ("data.classes", data.classes),
        ("data.cache", data.cache),
    ):
        if path is not None and printable(path) != path:
            raise DatasetError(
                f"{key} '{printable(path)}' has bytes that are not UTF-8, which the run's config.yaml cannot hold: "
                "give it a link with a plain name (ln -s) and pass that."
            )
    dataset = build_dataset(
        data.dataset,
        root=data.root if root is None else root,
        split=split,
        images=data.images,
        masks=data.masks,
        classes=data.classes,
        window=data.window,
        window_overlap=data.window_overlap,
        task=task,
        positive=data.positive,
        cache=data.cache,
        cache_size=data.cache_size,
    )
    dataset.read_as(bands_of(data))
    return dataset


def bands_of(data: DataConfig) -> BandReader | None:
    """How a config's images are read, if they are no photos."""
    return None if data.bands is None else BandReader(data.bands, data.nodata, data.pixel_mean)


def say_layout(*datasets: SegmentationDataset) -> None:
    """Say in one line on standard error which layout was recognised, unless it is images and masks."""
    found = [files for files in map(paired_files, datasets) if isinstance(files, FolderDataset)]
    layouts = {files.layout for files in found if not files.usual}
    if layouts and os.environ.get("RANK", "0") == "0":
        print(f"layout: {min(layouts)}", file=sys.stderr)
