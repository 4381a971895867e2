"""A training run from its config, with the caller's own objects in place of any part: what all tools train with.

config -> data sets -> checks -> model with its initial weights -> loss, transform, optimiser -> trainer -> result
"""

from __future__ import annotations

import dataclasses
import os
import shlex
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from resnest_seg.config import CUSTOM, DataConfig, RunConfig, TrainConfig, config_from_dict, load_run_config
from resnest_seg.config_doubts import unread_keys
from resnest_seg.data.build import DATASETS, bands_of, dataset_for, opened_root, say_layout
from resnest_seg.data.checks import check_classes, check_samples
from resnest_seg.data.class_balance import balance, pixel_statistics
from resnest_seg.data.datasets import (
    PairDataset,
    PairedFiles,
    SegmentationDataset,
    behind_views,
)
from resnest_seg.data.synthetic import Synthetic
from resnest_seg.data.tiles import paired_files
from resnest_seg.data.transforms import TrainTransform, Transform, is_photo
from resnest_seg.errors import ConfigError, DatasetError, command, printable
from resnest_seg.files import check_outside
from resnest_seg.io.display import console
from resnest_seg.models.checkpoint import BEST, CONFIG
from resnest_seg.models.heads import freeze_unread
from resnest_seg.models.loading import Network, built_network, load_checkpoint, load_fitting, segmenter_for
from resnest_seg.models.mask2former import MASK2FORMER
from resnest_seg.models.segmenter import PIXEL_MEAN, PIXEL_STD, Segmenter
from resnest_seg.reports.run_files import REPORT
from resnest_seg.reports.run_report import Pictures, write_report
from resnest_seg.storage.remote import is_address
from resnest_seg.storage.sources import Source
from resnest_seg.teachers.unlabelled import UnlabelledPhotos, find_photos
from resnest_seg.training.losses import Loss
from resnest_seg.training.memory import GIB, devices_here, divided, plan
from resnest_seg.training.monitor import Callback
from resnest_seg.training.optim import OwnOptimizer
from resnest_seg.training.run_folder import RunFolder
from resnest_seg.training.tasks import SegmentationTask, check_choices
from resnest_seg.training.trainer import Trainer


@dataclasses.dataclass(frozen=True)
class FitResult:
    """The end of a run.

    Attributes:
        output: The run folder.
        finished: All steps are done, or patience ran out; else a signal, a callback or `until` ended the run, and
            `fit(..., resume="yes")` goes on.
        stopped_by: The signal that ended it, or None.
        step: Optimiser steps done.
        best_score: Mean IoU of the best validation, 0..1; -1 before the first.
        scores: Name -> value of that validation; empty if it was before a resume.
        segmenter: The trained model in eval mode: with the best weights, if there was a validation, else the last ones.
    """

    output: Path
    finished: bool
    stopped_by: int | None
    step: int
    best_score: float
    scores: Mapping[str, float]
    segmenter: Segmenter

    @property
    def best(self) -> Path:
        """The checkpoint file of the best weights."""
        return self.output / BEST


@dataclasses.dataclass(frozen=True)
class Parts:
    """The caller's own objects in a run; None takes what the config names.

    Attributes:
        train: The training split.
        validation: The split that is validated on; None takes `config.eval.split`, or with a `train` of one's own the
            same data set.
        segmenter: The model, or a function that builds it for K classes; its weights are those it has.
        loss: Full-size logits and labels -> the mean over labelled pixels, see `resnest_seg.training.losses.Loss`.
        transform: An albumentations transform, or a function of (image, labels, random generator), see
            `resnest_seg.data.transforms.Transform`.
        optimizer: An optimiser, or a function from parameter groups to one.
        callbacks: Objects that hear of steps and validations.
        scored: The part of the training split that a fold is scored on, of which the run must not see the photos.
        series_begun: Other folds or seeds have begun: keys that no run may begin with are no error, as they have these.
    """

    train: SegmentationDataset | None = None
    validation: SegmentationDataset | None = None
    segmenter: Network | None = None
    loss: Loss | None = None
    transform: Transform | None = None
    optimizer: OwnOptimizer | None = None
    callbacks: Sequence[Callback] = ()
    scored: SegmentationDataset | None = None
    series_begun: bool = False


def fit(
    config: RunConfig | Mapping[str, Any] | str | Path,
    *,
    train: SegmentationDataset | None = None,
    validation: SegmentationDataset | None = None,
    segmenter: Network | None = None,
    loss: Loss | None = None,
    transform: Transform | None = None,
    optimizer: OwnOptimizer | None = None,
    callbacks: Sequence[Callback] = (),
    output: str | Path | None = None,
    resume: str = "no",
    until: int | None = None,
) -> FitResult:
    """Train a segmentation model into a run folder; everything that is not given comes from the config.

    A run that was killed goes on exactly, if the caller's own objects are the same again: samples by their index,
    functions without memory. What has a `state_dict()` and a `load_state_dict()`, of tensors and plain values, may keep
    some: it is saved with the run.

    Args:
        config: The run: a config, nested dictionaries such as `{"train": {"epochs": 5}}`, or a YAML file.
        train: See `Parts`, as for the next six.
        validation: As above.
        segmenter: As above.
        loss: As above.
        transform: As above.
        optimizer: As above.
        callbacks: As above.
        output: The run folder; None is `config.output`, or runs/<data set>_<head>_<encoder>.
        resume: "no" begins in a new folder, "yes" goes on, "auto" goes on if there is a state and begins otherwise.
        until: Stop after this step as if a signal had come; None trains to the end.

    Returns:
        What came of it.

    Raises:
        ConfigError: A value, or parts that do not fit together.
        DatasetError: Data with which training would go wrong.
        CheckpointError: The folder exists already, cannot be resumed, or is another live run's; weights do not fit.
        ResNeStSegError: The loss is not finite, or a loader process died.
    """
    config = as_config(config, train=train)
    parts = Parts(train, validation, segmenter, loss, transform, optimizer, callbacks)
    trainer = trainer_for(config, parts, output=output, resume=resume)
    return run(trainer, until=until)


def run(trainer: Trainer, *, until: int | None = None) -> FitResult:
    """Train to the end of a run, or until a signal, a callback or a step; see `fit` for the errors."""
    if trainer.engine.is_main_process:
        for doubt in trainer.doubts:
            print(f"warning: {doubt}", file=sys.stderr)
    finished = trainer.fit(until=until)
    best, model = trainer.output / BEST, trainer.judged
    assert isinstance(model, Segmenter)
    if best.is_file():
        load_checkpoint(best, into=model)
    if finished or trainer.ended:
        _report(trainer, model)
    return FitResult(
        trainer.output, finished, trainer.stopped_by, trainer.step, trainer.best_score, trainer.scores, model.eval()
    )


MOST_IMAGES = 4
"""Worst, best and random images, so many of each at most, in the report at the end of a run: more by `report`."""


def _report(trainer: Trainer, model: Segmenter) -> None:
    """Write the report of a run that is over. What goes wrong with it is a warning: the run itself is complete."""
    task, config = trainer.task, trainer.config
    assert isinstance(task, SegmentationTask)
    assert isinstance(config, RunConfig)
    if not trainer.engine.is_main_process:
        return
    images = Pictures(count=min(config.eval.sheet, MOST_IMAGES), segmenter=model, dataset=task.validation)
    path = trainer.output / REPORT
    try:
        write_report([trainer.output], path, images=images, say=lambda text: None)
        trainer.console.print(f"report: {path}", soft_wrap=True)
    except (Exception, KeyboardInterrupt) as error:
        why = str(error) or type(error).__name__
        print(f"warning: {path} was not written: {why}. Write it with: {command('report')} "
              f"{shlex.quote(str(trainer.output))}", file=sys.stderr)  # fmt: skip


def trainer_for(
    config: RunConfig | Mapping[str, Any] | str | Path,
    parts: Parts,
    *,
    output: str | Path | None = None,
    resume: str = "no",
    allow_changes: Collection[str] = (),
    budget: str | None = None,
) -> Trainer:
    """Build and check all parts of a run: data, model with its initial weights, checkpoint, folder.

    Args:
        config: See `fit`, also for the errors.
        parts: The caller's own objects.
        output: See `fit`.
        resume: See `fit`.
        allow_changes: Config keys that a resumed run may change.
        budget: Divide the batch so that it fits into memory: "auto", or GiB per device.
    """
    config = as_config(config)
    check_choices(config, network=parts.segmenter is None)
    config = with_dataset_name(config, parts.train)
    folder = Path(output or config.output or f"runs/{config.data.dataset}_{config.model.head}_{config.model.encoder}")
    if resume not in ("no", "yes", "auto"):
        raise ConfigError(f"resume must be 'no', 'yes' or 'auto', not {resume!r}.")
    resumed = resume == "yes" or (resume == "auto" and bool(RunFolder(folder).states()))
    train, validation = splits(config, parts, begun=resumed or parts.series_begun)
    asked, files = config.model, paired_files(train)
    if isinstance(files, PairedFiles):
        check_outside(folder, files.folders)
    if not resumed:
        check_parts(config, parts, budget=budget)
        RunFolder(folder).check_new(adopt=resume == "auto")  # before samples are read, which can take minutes
        look(config, train, validation)
    recipe = None if parts.transform is not None else TrainTransform.from_config(config.data)
    config = with_bands(config, train, validation, recipe=recipe, begun=folder if resumed else None)
    if budget is not None:
        config = _within(config, budget, train, begun=folder if resumed else None)
    torch.manual_seed(config.seed)
    model, config, report = initial_model(config, parts.segmenter, train, resumed=resumed)
    if not resumed and not parts.series_begun and parts.loss is None and model.predicts_masks:
        _check_mask_loss(config)
    trainer = Trainer(
        config,
        segmenter=model,
        task=task_for(config, parts, train, validation),
        output=folder,
        resume=resumed,
        adopt=resume == "auto",
        allow_changes=allow_changes,
        optimizer=parts.optimizer,
        callbacks=parts.callbacks,
        kept={"loss": parts.loss, "transform": parts.transform},
    )
    if report and trainer.engine.is_main_process:
        print(f"starting from {report}")
    trainer.doubts += [] if resumed else unread_keys(asked, config.model)
    return trainer


def _within(config: RunConfig, budget: str, train: SegmentationDataset, *, begun: Path | None) -> RunConfig:
    """Divide the batch by a budget; of a run that has begun in a folder, as it was."""
    if begun is None:
        return within_budget(config, budget, num_classes=len(train.label_space.score_names))
    before = load_run_config(begun / CONFIG)  # batch norm depends on the division, which stays, on any machine
    return divided(config, before.train.accumulation, checkpointing=before.model.checkpointing)


def check_parts(config: RunConfig, parts: Parts, *, budget: str | None) -> None:
    """Refuse what a run's own parts, or its head, would pass over in silence, before it begins.

    Raises:
        ConfigError: A memory budget for a network of the user's own; a loss of pixels for a head that predicts masks.
    """
    if budget is not None and parts.segmenter is not None:
        raise ConfigError(
            f"--budget {budget} counts the memory of the network that the config names, and yours is another: give "
            "--train.accumulation yourself, and try it with --dry-run, which measures a step."
        )
    own = parts.segmenter is not None or parts.loss is not None
    if config.model.head == MASK2FORMER and not own and not parts.series_begun:
        _check_mask_loss(config)


def _check_mask_loss(config: RunConfig) -> None:
    """Refuse options of the losses of pixels for a head that predicts masks, which has a loss of its own."""
    for key in ("loss", "class_weights", "label_smoothing"):
        value = getattr(config.train, key)
        if value != getattr(TrainConfig, key):
            raise ConfigError(
                f"train.{key} {value} is for losses of pixels, and head {config.model.head} predicts masks, which have "
                f"a loss of their own (train.mask_points): leave train.{key} out, or choose another model.head."
            )


def as_config(
    config: RunConfig | Mapping[str, Any] | str | Path, *, train: SegmentationDataset | None = None
) -> RunConfig:
    """A config, nested dictionaries or a YAML file as a `RunConfig`.

    Args:
        config: Which of them.
        train: The training split, if it is the user's own.

    Raises:
        ConfigError: It is anything else, or chooses among the samples of a data set that is not opened.
    """
    if isinstance(config, str | Path):
        return load_run_config(config)
    built = config_from_dict(config) if isinstance(config, Mapping) else config
    if not isinstance(built, RunConfig):
        kind = type(built).__name__
        raise ConfigError(f"config must be a RunConfig, nested dictionaries or a YAML file, not a {kind}.")
    if train is not None and built.data.samples is not None:
        raise ConfigError(
            f"data.samples chooses among the samples of data.dataset, and the training split is your own: leave out "
            f"'{built.data.samples}', and give train=resnest_seg.data.Subset(train, indices)."
        )
    return built


def splits(config: RunConfig, parts: Parts, *, begun: bool = False) -> tuple[SegmentationDataset, SegmentationDataset]:
    """The training split and the one that is validated on, whose bands are read as the config says.

    Args:
        config: The run.
        parts: The caller's own objects.
        begun: See `dataset_for`.

    Raises:
        ConfigError: One of them is no `SegmentationDataset`, or only the training split is one's own.
        DatasetError: It has no sample, or its samples were chosen before its bands, see `Subset.read_as`.
    """
    for name, dataset in (("train", parts.train), ("validation", parts.validation)):
        if dataset is not None and not isinstance(dataset, SegmentationDataset):
            raise ConfigError(
                f"{name} must be a SegmentationDataset, not a {type(dataset).__name__}: PairDataset makes one of pairs "
                "(image, mask)."
            )
    if parts.train is not None and parts.validation is None:
        raise ConfigError(
            "a training split of your own needs a validation split: give validation=, if only for a look."
        )
    task, data = config.model.task, config.data
    root = None  # listed once
    if parts.validation is None and data.root is not None and is_address(data.root):
        root = opened_root(data.dataset, data.root, cache=data.cache, cache_size=data.cache_size)
    train, validation = (
        own if own is not None else dataset_for(data, split, task=task, root=root, begun=begun)
        for own, split in ((parts.train, "train"), (parts.validation, config.eval.split))
    )
    say_layout(*([train] if parts.train is None else []))
    for own in filter(None, (parts.train, parts.validation)):
        before = behind_views(own).bands
        if data.bands is not None or (before is not None and before.of_model):  # which may be another run's
            own.read_as(bands_of(data, of_model=True))  # first of all: it decides which windows have data
    if train.label_space.names != validation.label_space.names:
        raise ConfigError(
            f"train has the classes {', '.join(train.label_space.names[:4])} ..., and validation "
            f"{', '.join(validation.label_space.names[:4])} ...: they must be the same, in one order."
        )
    for dataset in (train, validation):
        if dataset.label_space.task != task:
            raise ConfigError(
                f"model.task is {task}, and the {dataset.split} data is {dataset.label_space.task}, as its label_space "
                f"says. {_TASK_OF_CLASSES}"
            )
    if not len(train) or not len(validation):
        raise DatasetError(f"the {'validation' if len(train) else 'training'} split has no sample.")
    return train, validation


_TASK_OF_CLASSES = (
    "A data set takes its task from its classes: PairDataset(pairs, space) with space = "
    "LabelSpace.numbered(2, names=[...]).for_task('binary', positive=[NAME]), or .for_task('multilabel')."
)


def with_bands(
    config: RunConfig,
    train: SegmentationDataset,
    validation: SegmentationDataset,
    *,
    recipe: TrainTransform | None,
    begun: Path | None,
) -> RunConfig:
    """The config with the bands of its images and their statistics, where these are no photos (8-bit RGB).

    The statistics are those of the training split, unless they are given, or those of a run that has begun. Both
    splits then fill what has no data with the means.

    Args:
        config: The run.
        train: The training split.
        validation: The other one.
        recipe: The augmentation, if it is not the user's own.
        begun: The folder of a run that is resumed.

    Raises:
        ConfigError: The images have other channels than `data.bands` names; an augmentation is for 8-bit RGB only.
        DatasetError: Files differ in bands, or a band has no data.
    """
    data = config.data
    if begun is not None and data.pixel_mean is None:
        before = load_run_config(begun / CONFIG).data
        if data.bands in (None, before.bands):
            data = dataclasses.replace(
                data, bands=before.bands, pixel_mean=before.pixel_mean, pixel_std=before.pixel_std
            )
    photos = isinstance(train, PairedFiles | Synthetic) and data.bands is None
    image = np.empty((0, 0, 3), np.uint8) if photos else train.raster(0).pixels
    if data.bands is None and is_photo(image):
        return config
    if data.bands is None:  # of arrays, all
        data = dataclasses.replace(data, bands=tuple(range(1, image.shape[2] + 1)))
    assert data.bands is not None
    if image.shape[2] != len(data.bands):
        raise ConfigError(f"the images have {image.shape[2]} channels, and data.bands names {len(data.bands)}.")
    if recipe is not None:
        recipe.check(image)
    if data.pixel_mean is None:
        data = _with_statistics(data, train, photo=is_photo(image))
    config = dataclasses.replace(config, data=data)
    for dataset in (train, validation):
        dataset.read_as(bands_of(data, of_model=True))
    return config


def _with_statistics(data: DataConfig, train: SegmentationDataset, *, photo: bool) -> DataConfig:
    """The statistics of the training split; three bands of 8 bits keep ImageNet's, to which encoders are used."""
    if photo:
        return dataclasses.replace(data, pixel_mean=PIXEL_MEAN, pixel_std=PIXEL_STD)
    main = os.environ.get("RANK", "0") == "0"
    if main:
        print(f"reading {len(train)} images once, for the mean and deviation of their bands", flush=True)
    found = pixel_statistics(train, workers=data.workers)
    if main:
        for warning in found.warnings:
            print(f"warning: {warning}", file=sys.stderr)
        bands = zip(data.bands or (), found.mean, found.std, strict=True)
        shown = ", ".join(f"{band}: {mean:.5g} +- {std:.5g}" for band, mean, std in bands)
        print(f"bands ({found.kind}, mean and deviation of the training split): {shown}")
    return dataclasses.replace(data, pixel_mean=found.mean, pixel_std=found.std)


def dataset_name(dataset: SegmentationDataset, configured: str) -> str:
    """The name of a data set for the config: one of `DATASETS`, or custom for one of the user's own."""
    dataset = behind_views(dataset)
    kind = type(dataset)
    if isinstance(dataset, PairDataset) or not kind.__module__.startswith("resnest_seg."):
        return CUSTOM
    name = kind.__name__.lower().removesuffix("dataset")
    return name if name in DATASETS else configured  # such as a part of another data set


def with_dataset_name(config: RunConfig, train: SegmentationDataset | None) -> RunConfig:
    """The config of a run with the name of its training split, if that is the user's own."""
    if train is None:
        return config
    data = dataclasses.replace(config.data, dataset=dataset_name(train, config.data.dataset))
    return dataclasses.replace(config, data=data)


def initial_model(
    config: RunConfig, own: Network | None, train: SegmentationDataset, *, resumed: bool
) -> tuple[Segmenter, RunConfig, str]:
    """The model in training mode, the config that says what it is, and what its weights were loaded from, in words.

    Raises:
        ConfigError: A model of the user's own gives something else than logits of the data's classes.
    """
    weights = None if resumed else config.model.weights
    if own is None:
        segmenter = segmenter_for(config, train.label_space, pretrained=not resumed and weights is None)
        return segmenter, config, _encoder_report(config) if weights is None else str(load_fitting(segmenter, weights))
    logits = len(train.label_space.score_names)
    segmenter = built_network(own, logits).train()
    _check_logits(segmenter, logits)
    heads = [head for head in (segmenter.head, segmenter.aux_head) if head is not None]
    freeze_unread(segmenter.encoder, heads, in_channels=segmenter.config.model.in_channels)
    channels = segmenter.config.model.in_channels
    if channels != config.model.in_channels:
        raise ConfigError(
            f"the network takes images of {channels} channels, and those of the data have {config.model.in_channels} "
            f"(data.bands): build it for as many (build_encoder(..., in_channels={config.model.in_channels}))."
        )
    model = dataclasses.replace(segmenter.config.model, weights=config.model.weights, task=config.model.task)
    config = dataclasses.replace(config, model=model)
    segmenter.take_task(config.model.task)
    segmenter.take_statistics(config.data)
    segmenter.config, segmenter.label_space = config, train.label_space
    return segmenter, config, "" if weights is None else str(load_fitting(segmenter, weights))


def _encoder_report(config: RunConfig) -> str:
    """Describe how an encoder's RGB weights were adapted to the bands of the images; empty for RGB images."""
    weights, channels = config.model.encoder_weights, config.model.in_channels
    if weights is None or channels == 3:
        return ""
    return f"encoder weights {weights}, whose first convolution, if it is for RGB, is adapted to {channels} bands"


def _check_logits(segmenter: Segmenter, classes: int) -> None:
    """Try a small image, because errors from the midst of training are hard to read."""
    channels, device = segmenter.config.model.in_channels, segmenter.pixel_mean.device
    training = segmenter.training
    with torch.no_grad():
        logits = segmenter.eval()(torch.zeros(1, channels, 64, 64, device=device), coarse=True).logits
    segmenter.train(training)
    if logits.dim() != 4 or logits.shape[1] != classes or segmenter.num_classes != classes:
        raise ConfigError(
            f"the data has {classes} classes, and the model gives logits of shape {list(logits.shape)} for "
            f"num_classes={segmenter.num_classes}: it must give [N, {classes}, h, w]."
        )


def task_for(
    config: RunConfig, parts: Parts, train: SegmentationDataset, validation: SegmentationDataset
) -> SegmentationTask:
    """The task of a run: samples, loss and score."""
    if parts.loss is not None:
        _check_unweighted(config.train)
    balanced = balance(train, config)
    return SegmentationTask(
        config,
        train,
        validation,
        probabilities=balanced.probabilities,
        class_weights=balanced.class_weights,
        pos_weight=balanced.pos_weight,
        loss=parts.loss,
        transform=parts.transform,
        photos=photos_for(config, train, validation, scored=parts.scored),
    )


def photos_for(
    config: RunConfig,
    train: SegmentationDataset,
    validation: SegmentationDataset,
    *,
    scored: SegmentationDataset | None = None,
) -> UnlabelledPhotos | None:
    """The unlabelled photos of a run; the main process says how many there are.

    Raises:
        DatasetError: There are none, or one cannot be read.
    """
    data, where = config.data, config.train.unlabelled
    if where is None:
        return None
    if printable(where) != where:
        raise DatasetError(
            f"train.unlabelled '{printable(where)}' has bytes that are not UTF-8, which the run's config.yaml cannot "
            "hold: give it a link with a plain name (ln -s) and pass that."
        )
    source = opened_root(data.dataset, where, cache=data.cache, cache_size=data.cache_size)
    photos = find_photos(
        source if isinstance(source, Source) else where,
        train=train,
        validation=validation,
        scored=scored,
        bands=bands_of(data),
    )
    photos.check(data.check)
    if os.environ.get("RANK", "0") == "0":
        without = [f"{photos.labelled} that the training split has with labels"] * bool(photos.labelled)
        without += [f"{photos.scored} that this fold is scored on"] * bool(photos.scored)
        left_out = f", without {' and '.join(without)}" if without else ""
        print(f"unlabelled: {len(photos)} photos{left_out}", file=sys.stderr)
        if photos.held_out:
            print(f"warning: {photos.held_out} of the unlabelled photos are samples of the {validation.split} split: "
                  "scores of photos that a model was trained on, even without their labels, say less about others.",
                  file=sys.stderr)  # fmt: skip
    return photos


def _check_unweighted(train: TrainConfig) -> None:
    """Refuse options of the named losses, which a loss of the user's own does not have."""
    for key, given in (
        ("class_weights", train.class_weights != "none"),
        ("pos_weight", train.pos_weight != 1),
        ("label_smoothing", train.label_smoothing != 0),
    ):
        if given:
            raise ConfigError(
                f"train.{key} belongs to the losses that train.loss names, and the loss is your own: leave it out, and "
                "let your loss do it."
            )


def look(config: RunConfig, *datasets: SegmentationDataset) -> None:
    """Reject data with which training would go wrong, and warn of suspicious data."""
    warnings: list[str] = []
    for dataset in datasets:
        # Also with data.check 0: it reads few masks if the class list is right, and the run is useless otherwise.
        warnings += check_classes(dataset, workers=config.data.workers)
        if config.data.check:
            warnings += check_samples(dataset, count=config.data.check, workers=config.data.workers)
    if os.environ.get("RANK", "0") == "0":
        for warning in warnings:
            print(f"warning: {warning}", file=sys.stderr)


def within_budget(config: RunConfig, budget: str, *, num_classes: int) -> RunConfig:
    """Return the config with the batch divided to fit into memory; the main process prints the table."""
    devices = devices_here()
    if budget != "auto":
        devices = dataclasses.replace(devices, memory=int(float(budget) * GIB))
    chosen = plan(config, num_classes=num_classes, devices=devices)
    if os.environ.get("RANK", "0") == "0":
        console().print(chosen.table())
    return chosen.config
