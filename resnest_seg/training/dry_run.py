"""Dry runs: all parts of a run in two steps, without leaving files."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from resnest_seg.config import AnyConfig, DataConfig, PretrainConfig, RunConfig
from resnest_seg.data.build import DATASETS, data_root, dataset_for
from resnest_seg.data.class_balance import balance
from resnest_seg.data.datasets import Sample, SegmentationDataset
from resnest_seg.data.folder import read_classes
from resnest_seg.data.synthetic import Synthetic
from resnest_seg.errors import ConfigError, unknown_name
from resnest_seg.evaluation.evaluate import evaluate
from resnest_seg.io.visualize import write_png
from resnest_seg.labels import LabelSpace
from resnest_seg.models.checkpoint import BEST
from resnest_seg.models.classifier import Classifier
from resnest_seg.models.loading import classifier_for, load_checkpoint, load_classifier, load_fitting, segmenter_for
from resnest_seg.models.published import published
from resnest_seg.models.segmenter import Segmenter
from resnest_seg.training.classification import ClassFolder, ClassificationTask
from resnest_seg.training.optim import Schedule, too_short
from resnest_seg.training.run_folder import MACHINE
from resnest_seg.training.tasks import SegmentationTask, Task
from resnest_seg.training.trainer import Trainer

T = TypeVar("T", RunConfig, PretrainConfig)

M = TypeVar("M", Segmenter, Classifier)

IMAGES = 2
"""Number of images that a dry run validates on and evaluates."""

IMAGENET_CLASSES = 1000
"""Number of ImageNet's classes, assumed if the data is missing."""


class StandIn(SegmentationDataset):
    """Synthetic street scenes with the classes of another data set, to replace it if it is missing.

    Every class of the label space occurs, at meaningless pixels.

    Args:
        space: The classes.
        split: "train" or "val".
        size: (H, W) of the pictures.
    """

    def __init__(self, space: LabelSpace, split: str, *, size: tuple[int, int]) -> None:
        self.label_space, self.split, self.scenes = space, split, Synthetic(split, size=size)

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> Sample:
        image, labels, _ = self.scenes[index]
        known = labels < len(self.scenes.label_space)
        other = (labels.astype(int) + index * len(self.scenes.label_space)) % len(self.label_space)
        labels[known] = other[known]
        return Sample(image, labels, f"stand-in {self.split} scene {index}")


class FirstOf(SegmentationDataset):
    """The first `count` samples of a data set, repeated if it has fewer."""

    def __init__(self, dataset: SegmentationDataset, count: int) -> None:
        self.dataset, self.count = dataset, count
        self.label_space, self.split = dataset.label_space, dataset.split

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self.count:
            raise IndexError(index)
        return self.dataset[index % len(self.dataset)]


def dry_run(config: RunConfig) -> str:
    """Build the run, take a step, save, resume, take another, validate, and evaluate the best checkpoint.

    Model, sizes and batch are those of the run, and so are memory and time; weights are loaded from files but not
    downloaded. The data is the run's, or street scenes with its classes if it is missing. All files are written to a
    temporary folder, which is removed.

    Returns:
        A report of a few lines.

    Raises:
        ConfigError: The config cannot be run, or there are several processes.
        ResNeStSegError: Any other error that would stop the run.
    """
    real = {split: data_or_stand_in(config, split) for split in ("train", config.eval.split)}
    stand_in = isinstance(real["train"], StandIn)
    doubts = [] if stand_in else _doubts(config, len(real["train"]))
    train = FirstOf(real["train"], 2 * config.train.batch_size)
    validation = FirstOf(real[config.eval.split], IMAGES)
    short = _shortened(config)
    alone = dataclasses.replace(short, data=dataclasses.replace(short.data, workers=0))
    task = SegmentationTask(short, train, validation, class_weights=balance(train, alone).class_weights)

    def build() -> Segmenter:
        segmenter = segmenter_for(short, train.label_space, pretrained=_is_here(short.model.encoder_weights))
        if short.model.weights is not None and published(short.model.weights) is None:
            load_fitting(segmenter, short.model.weights)
        return segmenter

    with _two_steps(short, task, build, load_checkpoint) as (segmenter, step):
        report = evaluate(segmenter, validation, protocols=(config.eval.protocol,))
    return "\n".join(
        (
            f"dry run of {segmenter.description} passed: trained, saved, resumed, validated, evaluated.",
            f"  data     {'not found, so street scenes with the classes of' if stand_in else 'read from'} "
            f"{config.data.dataset}, {len(train.label_space)} classes",
            step,
            f"  scores   of {report.images} images, protocol {config.eval.protocol}; meaningless after two steps",
            *doubts,
        )
    )


def dry_run_classifier(config: PretrainConfig) -> str:
    """Try the training of a classifier as `dry_run` does; noise images of 1000 classes replace missing data.

    Returns:
        A report of a few lines.

    Raises:
        ConfigError: The config cannot be run, or there are several processes.
        ResNeStSegError: Any other error that would stop the run.
    """
    root = data_root(config.data.dataset, config.data.root)
    short = _shortened(config)
    with tempfile.TemporaryDirectory(prefix="resnest_seg_dry_run_") as folder:
        if not root.exists():
            _write_noise(Path(folder), short)
        source = root if root.exists() else folder
        all_of_it = ClassFolder(source, "train")
        doubts = _doubts(config, len(all_of_it)) if root.exists() else []
        train = _first(all_of_it, 2 * short.train.batch_size)
        task = ClassificationTask(short, train, _first(ClassFolder(source, "val"), IMAGES))

        classes = task.description.num_classes

        def build() -> Classifier:
            return classifier_for(short, num_classes=classes, pretrained=_is_here(short.model.encoder_weights))

        with _two_steps(short, task, build, load_classifier) as (classifier, step):
            pass
    return "\n".join(
        (
            f"dry run of {classifier.description} passed: trained, saved, resumed, validated, loaded.",
            f"  data     {f'read from {root}' if root.exists() else 'not found, so noise'}, {classes} classes",
            step,
            *doubts,
        )
    )


def _doubts(config: AnyConfig, size: int) -> list[str]:
    """Return the warnings of the run at its full length with `size` samples; `ConfigError` for an invalid schedule."""
    schedule = Schedule.from_config(config, steps_per_epoch=max(size // config.train.batch_size, 1))
    doubt = too_short(config.train.ema, schedule.steps)
    return [] if doubt is None else [f"  warning  {doubt}"]


def _shortened(config: T) -> T:
    """Return the config of a run of two steps."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("a dry run takes one process: start it without torchrun.")
    short = dataclasses.replace(config.train, epochs=1, iterations=None, validate_every=1, log_every=1)
    short = dataclasses.replace(short, validate_every_steps=0, trackers="none")
    optim = dataclasses.replace(config.optim, warmup=0.0)  # the warm-up may be longer than two steps
    return dataclasses.replace(config, train=short, optim=optim)


@contextlib.contextmanager
def _two_steps(
    config: AnyConfig, task: Task, build: Callable[[], M], load: Callable[[Path], M]
) -> Iterator[tuple[M, str]]:
    """Train for a step, resume, train for another; returns the best model, loaded from its file, and a step's cost."""
    with tempfile.TemporaryDirectory(prefix="resnest_seg_dry_run_") as folder:
        output = Path(folder) / "run"
        for resume in (False, True):
            torch.manual_seed(config.seed)
            trainer = Trainer(config, segmenter=build(), task=task, output=output, resume=resume)
            trainer.fit(until=None if resume else 1)
            if trainer.stopped_by is not None:
                raise KeyboardInterrupt
        entries = [json.loads(line) for line in (output / MACHINE).read_text(encoding="utf-8").splitlines()]
        speed = [entry for entry in entries if entry["kind"] == "speed"][-1]
        gpu = f", {speed['cuda_peak_mib']} MiB GPU" if "cuda_peak_mib" in speed else ""
        yield (
            load(output / BEST).to(trainer.engine.device),
            f"  step     {config.train.batch_size / speed['images_per_second']:.2f} s for {config.train.batch_size} "
            f"images, memory {speed['memory_mib']} MiB{gpu}",
        )


def _is_here(weights: str | None) -> bool:
    """True if the weights are a local file, so that no download is needed."""
    return weights is not None and Path(weights).is_file()


def _first(folder: ClassFolder, count: int) -> ClassFolder:
    """Return the first `count` images, repeated if there are fewer; the classes are unchanged."""
    short = copy.copy(folder)
    places = [index % len(folder) for index in range(count)]
    short.paths, short.labels = [folder.paths[place] for place in places], [folder.labels[place] for place in places]
    return short


def _write_noise(root: Path, config: PretrainConfig) -> None:
    """Write noise images of the size of a crop, one per class."""
    size = (config.data.crop_size, config.data.crop_width or config.data.crop_size, 3)
    noise = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    for split in ("train", "val"):
        for name in range(IMAGENET_CLASSES):
            class_folder = root / split / f"{name:04}"
            class_folder.mkdir(parents=True)
            write_png(class_folder / "0.png", noise)


def data_or_stand_in(config: RunConfig, split: str) -> SegmentationDataset:
    """Open a split of the run's data, or its replacement if it is missing.

    Raises:
        ConfigError: Unknown data set, or an invalid class list.
    """
    data = config.data
    if data.dataset not in DATASETS:
        raise unknown_name("data set", data.dataset, DATASETS)
    if data.dataset == "synthetic" or data_root(data.dataset, data.root).exists():
        return dataset_for(data, split)
    size = (data.crop_size, data.crop_width or data.crop_size)
    return StandIn(_space(data), "train" if split == "train" else "val", size=size)


def _space(data: DataConfig) -> LabelSpace:
    """Return the label space of missing data."""
    if data.classes is not None:
        return read_classes(data.classes)
    return LabelSpace.of("synthetic" if data.dataset == "folder" else data.dataset)
