"""Opening data sets by name, and their default folders."""

from __future__ import annotations

import dataclasses
import difflib
import os
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath

from resnest_seg.config import CUSTOM, DataConfig
from resnest_seg.data.datasets import (
    ADE20K,
    DATA_ROOT_VARIABLE,
    CamVid,
    Cityscapes,
    SegmentationDataset,
    Subset,
    TaskView,
)
from resnest_seg.data.folder import FolderDataset
from resnest_seg.data.shards import ShardDataset, is_packed
from resnest_seg.data.synthetic import Synthetic
from resnest_seg.data.tiles import WindowDataset, paired_files
from resnest_seg.errors import ConfigError, DatasetError, printable, unknown_name
from resnest_seg.io.bands import BandReader
from resnest_seg.io.georeference import warn_once
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
    "shards": lambda root, split, lenient: ShardDataset(root, split),
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
        root: Its folder, zip file, address or storage; None looks where `data_root` does. Packed shards are recognised
            under any name.
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
            task on a data set of several classes without `positive`; `positive` for another task.
        DatasetError: The data set is missing or incomplete, or the split is unknown.
    """
    _check_names(name, task, positive)
    where = opened_root(name, None if name == "synthetic" else root, cache=cache, cache_size=cache_size)
    given: dict[str, object] = {"data.images": images, "data.masks": masks, "data.window": window}
    if stored_as(name, where) == "shards":
        given |= {"data.classes": classes}
        return _packed(name, where, split, task, positive, {key: value for key, value in given.items() if value})
    if name == "folder":
        own = task if positive is None else "multiclass"  # the task of the masks
        if own == "multiclass" and isinstance(classes, LabelSpace) and classes.task != own:
            classes = None  # those of the view, which the files below do not have
        files = FolderDataset(
            where, split, images=images, masks=masks, classes=classes, allow_missing=allow_missing, task=own
        )
        dataset = files if window is None else WindowDataset(files, window, overlap=window_overlap)
        return dataset if own == task else with_task(dataset, task, positive)
    check_own_layout(name, given | {"data.classes": classes})
    return with_task(DATASETS[name](where, split, allow_missing), task, positive)


def check_own_layout(name: str, given: Mapping[str, object]) -> None:
    """Refuse what says how a folder is read, for a data set that has files and classes of its own.

    Args:
        name: The data set.
        given: Key -> value, None where it is not set.

    Raises:
        ConfigError: Names the first one that is set.
    """
    for key, value in given.items():
        if value is not None and not isinstance(value, LabelSpace):  # which is that of a checkpoint
            own = "classes" if key == "data.classes" else "layout"
            raise ConfigError(f"{key} is for --dataset folder: {name} has its own {own}. Leave out '{value}'.")


def _check_names(name: str, task: str, positive: str | None) -> None:
    if name == CUSTOM:
        raise ConfigError(
            "the data set is one of its author's own (custom), which no name opens: choose another, such as --dataset "
            "folder --data.root FOLDER, or pass it in Python: fit(..., train=, validation=), evaluate(model, dataset)."
        )
    if name not in DATASETS:
        raise unknown_name("data set", name, DATASETS)
    if task not in TASKS:
        raise unknown_name("task", task, TASKS)
    if positive is not None and task != "binary":  # it would be ignored, and masks of bits read as ids
        raise ConfigError(
            f"data.positive names the object of a binary task, and model.task is {task}: leave '{positive}' out, or "
            "pass --model.task binary."
        )


def stored_as(name: str, root: str | Path | Source) -> str:
    """Return the name by which the data at a root is read: "shards" of packed shards, else `name`."""
    return "shards" if name == "shards" or (name != "synthetic" and is_packed(root)) else name


def _packed(
    name: str, root: str | Path | Source, split: str, task: str, positive: str | None, given: dict[str, object]
) -> SegmentationDataset:
    """Open packed shards; their classes and files are fixed.

    Args:
        name: The data set that was asked for: "shards", "folder" for any, or one that the shards must hold.
        root: See `build_dataset`, like the next three.
        split: The split.
        task: The task.
        positive: The object of a binary task.
        given: Keys and values that are for files in a folder.
    """
    dataset = ShardDataset(root, split)
    space, shown = dataset.label_space, dataset.source.shown
    for key, value in given.items():
        if key != "data.classes" or not isinstance(value, LabelSpace):  # those of a checkpoint
            raise ConfigError(
                f"{key} is for files in a folder, and {shown} holds packed shards with files and classes of their own: "
                f"leave out '{value}', or pack the data set with it."
            )
    if name not in ("shards", "folder", space.name):
        raise ConfigError(f"{shown} holds packed shards of {space.name}, not of {name}: pass --dataset shards.")
    if space.task == "multiclass":
        return with_task(dataset, task, positive)
    if task != space.task or positive is not None:
        hint = "leave out data.positive" if task == space.task else f"pass --model.task {space.task}"
        raise ConfigError(f"{shown} holds packed masks of model.task {space.task}, not of {task}: {hint}.")
    return dataset


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
    data: DataConfig,
    split: str,
    *,
    task: str = "multiclass",
    root: str | Path | Source | None = None,
    begun: bool = False,
) -> SegmentationDataset:
    """Open a split of the data set that a config names; see `build_dataset` for the errors.

    The training split has the samples that `data.samples` names, if it is set, see `named_samples`.

    Args:
        data: The config.
        split: The split.
        task: The task of the model.
        root: Its storage, if it is open already (`opened_root`), so that it is listed once for several splits.
        begun: It is the config of a run that has begun, which earlier versions let do so with `data.classes` beside a
            data set that has its own: a warning says that they have no effect.

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
        ("data.samples", data.samples),
    ):
        if path is not None and printable(path) != path:
            raise DatasetError(
                f"{key} '{printable(path)}' has bytes that are not UTF-8, which the run's config.yaml cannot hold: "
                "give it a link with a plain name (ln -s) and pass that."
            )
    if begun and data.classes is not None and data.dataset not in ("folder", "shards"):
        warn_once(f"data.classes '{data.classes}' has no effect: {data.dataset} has its own classes.")
        data = dataclasses.replace(data, classes=None)
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
    return dataset if data.samples is None or split != "train" else named_samples(dataset, data.samples)


def named_samples(dataset: SegmentationDataset, path: str | Path) -> Subset:
    """Return the samples of a data set that a text file names, in the order of the data set.

    A line is a sample's name as `sample_name` gives it, or that without folder and suffix if no other sample's name
    ends so. Empty lines and those that begin with # say nothing.

    Raises:
        DatasetError: The file cannot be read or names no sample; a name is unknown, fits several samples, or stands
            for one that was named before. The message says file and line.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig", errors="surrogateescape").splitlines()
    except OSError as error:
        raise DatasetError(f"data.samples {path} cannot be read: {error.strerror or error}.") from None
    names = [dataset.sample_name(index) for index in range(len(dataset))]
    places: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        for known in {name, PurePosixPath(name).stem}:
            places.setdefault(known, []).append(index)
    lines_of: dict[int, int] = {}
    for number, line in enumerate(lines, 1):
        name = line.strip()
        if not name or name.startswith("#"):
            continue
        where, found = f"data.samples {path}, line {number}", places.get(name, [])
        if not found:
            nearest = difflib.get_close_matches(name, places, n=1)
            hint = f" Did you mean {printable(nearest[0])}?" if nearest else f" One is called {printable(names[0])}."
            raise DatasetError(f"{where}: the {dataset.split} split has no sample {printable(name)}.{hint}")
        exact = [index for index in found if names[index] == name]
        if len(found) > 1 and len(exact) != 1:
            both = " and ".join(printable(names[index]) for index in found[:2])
            raise DatasetError(f"{where}: {printable(name)} may be {both}: give the whole name.")
        (index,) = exact or found
        if index in lines_of:
            raise DatasetError(f"{where}: {printable(names[index])} is in line {lines_of[index]} already.")
        lines_of[index] = number
    if not lines_of:
        raise DatasetError(f"data.samples {path} names no sample: one a line, such as {printable(names[0])}")
    return Subset(dataset, sorted(lines_of))


def bands_of(data: DataConfig, *, of_model: bool = False) -> BandReader | None:
    """How a config's images are read, if they are no photos; `of_model` for a user's own data set, see `BandReader`."""
    return None if data.bands is None else BandReader(data.bands, data.nodata, data.pixel_mean, of_model)


def say_layout(*datasets: SegmentationDataset) -> None:
    """Say in one line on standard error which layout was recognised, unless it is images and masks."""
    found = [files for files in map(paired_files, datasets) if isinstance(files, FolderDataset)]
    layouts = {files.layout for files in found if not files.usual}
    if layouts and os.environ.get("RANK", "0") == "0":
        print(f"layout: {min(layouts)}", file=sys.stderr)
