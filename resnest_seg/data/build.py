"""Opening data sets by name, and their default folders."""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from resnest_seg.config import CUSTOM, DataConfig
from resnest_seg.data.datasets import ADE20K, DATA_ROOT_VARIABLE, CamVid, Cityscapes, Sample, SegmentationDataset
from resnest_seg.data.folder import FolderDataset
from resnest_seg.data.synthetic import Synthetic
from resnest_seg.errors import ConfigError, DatasetError, printable, unknown_name
from resnest_seg.labels import TASKS, LabelSpace

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
    task: str = "multiclass",
    positive: str | None = None,
) -> SegmentationDataset:
    """Open a data set by name.

    Args:
        name: A key of `DATASETS`.
        root: Its folder or zip file; None for $RESNEST_SEG_DATA/<name>, or datasets/<name> if that is not set.
        split: "train", "val" or "test", if the data set has it.
        classes: The class list of "folder", if it is outside the folder, or its classes.
        allow_missing: Raise for a missing mask when its sample is read, not here; for tools that list all of them.
        task: One of `resnest_seg.labels.TASKS`. A folder has masks of that task, unless `positive` is given; of other
            data sets, every class becomes a label of a multi-label task.
        positive: Names of classes, separated by commas, that are the object of a binary task.

    Raises:
        ConfigError: Unknown name, task or class; or a binary task on a data set of several classes without `positive`.
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
    place = data_root(name, root)
    if name == "folder" and task != "multiclass" and positive is None:
        return FolderDataset(place, split, classes=classes, allow_missing=allow_missing, task=task)
    if isinstance(classes, LabelSpace) and classes.task != "multiclass":
        classes = None  # those of the view, which the data set below does not have
    return with_task(DATASETS[name](place, split, classes, allow_missing), task, positive)


class TaskView(SegmentationDataset):
    """A data set of K classes a pixel as one of another task.

    Args:
        inner: The data set.
        task: "binary" or "multilabel".
        positive: Names of the classes that are the object of a binary task.

    Attributes:
        inner: The data set.

    Raises:
        ConfigError: Unknown class, or none or all classes are the object.
    """

    def __init__(self, inner: SegmentationDataset, task: str, positive: Sequence[str] = ()) -> None:
        self.inner, self.split = inner, inner.split
        self.label_space = inner.label_space.for_task(task, positive=positive)
        chosen = set(positive)
        values = [name in chosen if task == "binary" else 1 << k for k, name in enumerate(inner.label_space.names)]
        self._table = np.full(256, self.label_space.ignore_value, np.uint8 if task == "binary" else np.uint16)
        self._table[: len(values)] = values

    def __len__(self) -> int:
        return len(self.inner)

    def identity(self) -> str:
        """Return a hash of the data set and of the new label space."""
        return hashlib.sha256(f"{super().identity()} {self.inner.identity()}".encode()).hexdigest()

    def sample_name(self, index: int) -> str:
        """The name that the sample has in the data set."""
        return self.inner.sample_name(index)

    def __getitem__(self, index: int) -> Sample:
        sample = self.inner[index]
        return sample._replace(labels=self._table[sample.labels])


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


def dataset_for(data: DataConfig, split: str, *, task: str = "multiclass") -> SegmentationDataset:
    """Open a split of the data set that a config names; see `build_dataset` for the errors.

    Raises:
        DatasetError: Its path is not UTF-8; names of files below it need not be.
    """
    for key, path in (("data.root", data.root), ("data.classes", data.classes)):
        if path is not None and printable(path) != path:
            raise DatasetError(
                f"{key} '{printable(path)}' has bytes that are not UTF-8, which the run's config.yaml cannot hold: "
                "give it a link with a plain name (ln -s) and pass that."
            )
    return build_dataset(
        data.dataset, root=data.root, split=split, classes=data.classes, task=task, positive=data.positive
    )
