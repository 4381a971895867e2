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

from resnest_seg.config import AnyConfig, DataConfig, DistillConfig, PretrainConfig, RunConfig
from resnest_seg.config_doubts import unread_keys, without_effect
from resnest_seg.data.build import (
    DATASETS,
    check_own_layout,
    data_root,
    dataset_for,
    opened_root,
    say_layout,
    with_task,
)
from resnest_seg.data.class_lists import read_classes
from resnest_seg.data.datasets import PairedFiles, Sample, SegmentationDataset, Subset, behind_views
from resnest_seg.data.folder import named
from resnest_seg.data.synthetic import Synthetic
from resnest_seg.data.tiles import paired_files
from resnest_seg.errors import ConfigError, unknown_name
from resnest_seg.evaluation.evaluator import evaluate
from resnest_seg.io.visualize import png_bytes, write_png
from resnest_seg.labels import LabelSpace
from resnest_seg.models.checkpoint import BEST
from resnest_seg.models.loading import classifier_for, load_checkpoint, load_classifier
from resnest_seg.models.published_weights import published
from resnest_seg.models.segmenter import Segmenter
from resnest_seg.storage.remote import is_address
from resnest_seg.training.assembly import (
    Parts,
    check_parts,
    look,
    photos_for,
    trainer_for,
    within_budget,
)
from resnest_seg.training.classification import ClassFolder, ClassificationTask
from resnest_seg.training.optim import Schedule, too_short
from resnest_seg.training.run_folder import MACHINE
from resnest_seg.training.tasks import check_choices
from resnest_seg.training.trainer import Trainer

T = TypeVar("T", RunConfig, PretrainConfig)

NOTHING_OWN = Parts()
"""A run all of whose parts come from its config."""

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
        channels: C of the pictures; R, G and B repeat.
    """

    def __init__(self, space: LabelSpace, split: str, *, size: tuple[int, int], channels: int = 3) -> None:
        self.label_space, self.split, self.scenes = space, split, Synthetic(split, size=size)
        self.channels = channels

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> Sample:
        image, labels, _ = self.scenes[index]
        known = labels < len(self.scenes.label_space)
        other = (labels.astype(int) + index * len(self.scenes.label_space)) % len(self.label_space)
        labels[known] = other[known]
        if self.channels != 3:
            image = image[..., np.arange(self.channels) % 3]
        return Sample(image, labels, f"stand-in {self.split} scene {index}")


def first_of(dataset: SegmentationDataset, count: int) -> Subset:
    """The first `count` samples of a data set, repeated if it has fewer."""
    return Subset(dataset, [index % len(dataset) for index in range(count)])


def dry_run(config: RunConfig, parts: Parts = NOTHING_OWN, *, budget: str | None = None) -> str:
    """Build the run, take a step, save, resume, take another, validate, and evaluate the best checkpoint.

    Model, sizes and batch are those of the run, and so are memory and time; weights are loaded from files but not
    downloaded. The data is the run's, or street scenes with its classes if it is missing. All files are written to a
    temporary folder, which is removed.

    Args:
        config: The run.
        parts: The caller's own objects.
        budget: Divide the batch so that it fits into memory, see `trainer_for`.

    Returns:
        A report of a few lines.

    Raises:
        ConfigError: The config cannot be run, or there are several processes.
        ResNeStSegError: Any other error that would stop the run.
    """
    check_choices(config, network=parts.segmenter is None)
    check_parts(config, parts, budget=budget)
    train = parts.train if parts.train is not None else data_or_stand_in(config, "train")
    validation = parts.validation if parts.validation is not None else data_or_stand_in(config, config.eval.split)
    say_layout(train)
    look(config, *(data for data in (train, validation) if not isinstance(behind_views(data), StandIn)))
    if isinstance(paired_files(train), PairedFiles):  # of all samples, which leave out more photos than the first ones
        photos_for(config, train, validation, scored=parts.scored)
    if budget is not None:
        config = within_budget(config, budget, num_classes=len(train.label_space.score_names))
    drawn = isinstance(behind_views(train), StandIn)
    doubts = _absent_teachers(config) + ([] if drawn else _doubts(config, len(train)))
    first = first_of(train, 2 * config.train.batch_size), first_of(validation, IMAGES)
    parts = dataclasses.replace(parts, train=first[0], validation=first[1])
    short = _without_downloads(_shortened(config))
    if isinstance(parts.segmenter, Segmenter):
        parts = dataclasses.replace(parts, segmenter=copy.deepcopy(parts.segmenter))

    def start(output: Path, resume: bool) -> Trainer:
        run = _with_photos(short, train, output.with_name("photos")) if drawn else short
        return trainer_for(run, parts, output=output, resume="yes" if resume else "no")

    with _two_steps(short, start) as (trainer, best, step):
        segmenter = load_checkpoint(best, into=parts.segmenter).to(trainer.engine.device)
        report = evaluate(segmenter, first[1], protocols=(config.eval.protocol,))
    found = "not found, so street scenes with the classes of" if drawn else "read from"
    return "\n".join(
        (
            f"dry run of {segmenter.description} passed: trained, saved, resumed, validated, evaluated.",
            f"  data     {found} {config.data.dataset}, {len(train.label_space)} classes",
            step,
            f"  scores   of {report.images} images, protocol {config.eval.protocol}; meaningless after two steps",
            *doubts,
            *_idle(dataclasses.replace(config, model=segmenter.config.model)),
            *([] if parts.segmenter is None else map(_warned, unread_keys(config.model, segmenter.config.model))),
        )
    )


def _with_photos(config: RunConfig, drawn: SegmentationDataset, folder: Path) -> RunConfig:
    """Return the config with unlabelled photos, if it names some that are missing as its data is: drawn scenes."""
    where = config.train.unlabelled
    if where is None or is_address(where) or Path(where).exists():
        return config
    folder.mkdir(exist_ok=True)
    for index in range(IMAGES):
        np.save(folder / f"{index}.npy", drawn[index].image)
        if config.data.bands is None:
            write_png(folder / f"{index}.png", drawn[index].image)
    return dataclasses.replace(config, train=dataclasses.replace(config.train, unlabelled=str(folder)))


def _without_downloads(config: RunConfig) -> RunConfig:
    """Leave out initial weights that are no local file, and the checks of data, which were made."""
    model = config.model
    encoder_weights = model.encoder_weights if _is_here(model.encoder_weights) else None
    weights = None if model.weights is not None and published(model.weights) is not None else model.weights
    model = dataclasses.replace(model, encoder_weights=encoder_weights, weights=weights)
    teachers = tuple(name for name in config.distill.teacher or () if not _is_published(name))
    distill = dataclasses.replace(config.distill, teacher=teachers) if teachers else DistillConfig()
    return dataclasses.replace(config, model=model, distill=distill, data=dataclasses.replace(config.data, check=0))


def _absent_teachers(config: RunConfig) -> list[str]:
    """A line about teachers that would be downloaded, if there are some."""
    names = [name for name in config.distill.teacher or () if _is_published(name)]
    return [
        f"  teacher  {', '.join(names)} left out, as a run would download it: its time and memory come on top"
    ] * bool(names)


def _is_published(name: str) -> bool:
    """True if a name is that of a published checkpoint, and no file."""
    return not Path(name).exists() and published(name) is not None


def dry_run_classifier(config: PretrainConfig) -> str:
    """Try the training of a classifier as `dry_run` does; noise images of 1000 classes replace missing data.

    Returns:
        A report of a few lines.

    Raises:
        ConfigError: The config cannot be run, or there are several processes.
        ResNeStSegError: Any other error that would stop the run.
    """
    data = config.data
    root = opened_root(data.dataset, data.root, cache=data.cache, cache_size=data.cache_size)
    there = not isinstance(root, str | Path) or Path(root).exists()
    short = _shortened(config)
    with tempfile.TemporaryDirectory(prefix="resnest_seg_dry_run_") as folder:
        if not there:
            _write_noise(Path(folder), short)
        source = root if there else folder
        all_of_it = ClassFolder(source, "train")
        doubts = _doubts(config, len(all_of_it)) if there else []
        train = _first(all_of_it, 2 * short.train.batch_size)
        task = ClassificationTask(short, train, _first(ClassFolder(source, "val"), IMAGES))

        classes = task.description.num_classes

        def start(output: Path, resume: bool) -> Trainer:
            pretrained = _is_here(short.model.encoder_weights)
            torch.manual_seed(short.seed)
            classifier = classifier_for(short, num_classes=classes, pretrained=pretrained)
            return Trainer(short, segmenter=classifier, task=task, output=output, resume=resume)

        with _two_steps(short, start) as (_, best, step):
            classifier = load_classifier(best)
    return "\n".join(
        (
            f"dry run of {classifier.description} passed: trained, saved, resumed, validated, loaded.",
            f"  data     {f'read from {named(root)}' if there else 'not found, so noise'}, {classes} classes",
            step,
            *doubts,
            *_idle(config),
        )
    )


def _idle(config: AnyConfig) -> list[str]:
    """Return a line about each key that has no effect."""
    return [_warned(text) for text in without_effect(config)]


def _warned(text: str) -> str:
    return f"  warning  {text}"


def _doubts(config: AnyConfig, size: int) -> list[str]:
    """Return a warning if the average is too slow for `size` samples; `ConfigError` for an invalid schedule."""
    schedule = Schedule.from_config(config, steps_per_epoch=max(size // config.train.batch_size, 1))
    doubt = too_short(config.train.ema, schedule.steps)
    return [] if doubt is None else [_warned(doubt)]


def _shortened(config: T) -> T:
    """Return the config of a run of two steps."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("a dry run takes one process: start it without torchrun.")
    short = dataclasses.replace(config.train, epochs=1, iterations=None, validate_every=1, log_every=1)
    short = dataclasses.replace(short, validate_every_steps=0, trackers="none")
    optim = dataclasses.replace(config.optim, warmup=0.0)  # the warm-up may be longer than two steps
    return dataclasses.replace(config, train=short, optim=optim)


@contextlib.contextmanager
def _two_steps(config: AnyConfig, start: Callable[[Path, bool], Trainer]) -> Iterator[tuple[Trainer, Path, str]]:
    """Train for a step, resume, train for another; returns the trainer, the best weights' file, and a step's cost.

    Args:
        config: The run of two steps.
        start: (run folder, resume) -> the trainer.
    """
    with tempfile.TemporaryDirectory(prefix="resnest_seg_dry_run_") as folder:
        output = Path(folder) / "run"
        for resume in (False, True):
            trainer = start(output, resume)
            trainer.fit(until=None if resume else 1)
            if trainer.stopped_by is not None:
                raise KeyboardInterrupt
        entries = [json.loads(line) for line in (output / MACHINE).read_text(encoding="utf-8").splitlines()]
        speed = [entry for entry in entries if entry["kind"] == "speed"][-1]
        gpu = f", {speed['cuda_peak_mib']} MiB GPU" if "cuda_peak_mib" in speed else ""
        yield (
            trainer,
            output / BEST,
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
    short.files, short.labels = [folder.files[place] for place in places], [folder.labels[place] for place in places]
    return short


def _write_noise(root: Path, config: PretrainConfig) -> None:
    """Write noise images of the size of a crop, one per class."""
    size = (config.data.crop_size, config.data.crop_width or config.data.crop_size, 3)
    noise = png_bytes(np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8))
    for split in ("train", "val"):
        for name in range(IMAGENET_CLASSES):
            class_folder = root / split / f"{name:04}"
            class_folder.mkdir(parents=True)
            (class_folder / "0.png").write_bytes(noise)


def data_or_stand_in(config: RunConfig, split: str) -> SegmentationDataset:
    """Open a split of the run's data, or its replacement if it is missing.

    Raises:
        ConfigError: Unknown data set, or an invalid class list.
    """
    data = config.data
    if data.dataset not in DATASETS:
        raise unknown_name("data set", data.dataset, DATASETS)
    root = data_root(data.dataset, data.root)
    if data.dataset == "synthetic" or is_address(root) or Path(root).exists():
        return dataset_for(data, split, task=config.model.task)
    if data.dataset not in ("folder", "shards"):
        check_own_layout(data.dataset, {"data.classes": data.classes})
    size = (data.crop_size, data.crop_width or data.crop_size)
    channels = 3 if data.bands is None else len(data.bands)
    stand_in = StandIn(_space(data), "train" if split == "train" else "val", size=size, channels=channels)
    return with_task(stand_in, config.model.task, data.positive or stand_in.label_space.names[-1])


def _space(data: DataConfig) -> LabelSpace:
    """Return the label space of missing data."""
    if data.classes is not None:
        return read_classes(data.classes)
    return LabelSpace.of("synthetic" if data.dataset in ("folder", "shards") else data.dataset)
