"""Folds: a training split divided into parts, and one run for each that is trained on the others."""

from __future__ import annotations

import dataclasses
import gc
import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from resnest_seg.config import RunConfig, load_run_config
from resnest_seg.config_reading import to_yaml
from resnest_seg.data.datasets import SegmentationDataset, Subset, assign_folds
from resnest_seg.data.transforms import Transform
from resnest_seg.errors import CheckpointError, ConfigError
from resnest_seg.files import atomic_write
from resnest_seg.inference.ensemble import FOLDS, read_fold_record
from resnest_seg.models.checkpoint import CONFIG
from resnest_seg.models.segmenter import Segmenter
from resnest_seg.training.assembly import FitResult, Parts, as_config, run, splits, trainer_for, with_dataset_name
from resnest_seg.training.losses import Loss
from resnest_seg.training.monitor import Callback
from resnest_seg.training.optim import OwnOptimizer
from resnest_seg.training.run_folder import RunFolder, config_changes


def fit_folds(
    config: RunConfig | Mapping[str, Any] | str | Path,
    folds: int,
    *,
    group_by: str | None = None,
    train: SegmentationDataset | None = None,
    validation: SegmentationDataset | None = None,
    segmenter: Callable[[int], Segmenter] | None = None,
    loss: Loss | None = None,
    transform: Transform | None = None,
    optimizer: OwnOptimizer | None = None,
    callbacks: Sequence[Callback] = (),
    output: str | Path | None = None,
    resume: str = "no",
) -> tuple[FitResult, ...]:
    """Train one model for each part of the training split, on the other parts: predictions for the part are held out.

    The run of part i is in output/fold_i, and output/folds.json says how the split was divided, see `assign_folds`;
    output/config.yaml is the config of them all. Every run is validated on the validation split, which is no part;
    `resnest_seg.combining.cross_validation.cross_validate` scores each on its own part.

    Args:
        config: See `fit`, as for `train`, `validation`, `loss`, `transform` and `callbacks`.
        folds: Number of parts, 2 or more.
        group_by: See `assign_folds`.
        train: The split that is divided.
        validation: The same for every run.
        segmenter: A function that builds the model for K classes.
        loss: As above.
        transform: As above.
        optimizer: None, or a function from parameter groups to an optimiser.
        callbacks: Of all runs, one after the other.
        output: The folder; None is that of `fit` with _folds behind its name.
        resume: "no" begins in a new folder, "yes" goes on, "auto" goes on if there is one and begins otherwise.

    Returns:
        What came of each run, with its model on the CPU; where a signal or a callback ended one, those after it are
        missing.

    Raises:
        ConfigError: As by `fit`; too many or too few folds; a model or an optimiser that would be used twice.
        DatasetError, CheckpointError, ResNeStSegError: As by `fit`; the folder holds other folds.
    """
    _check_made_anew(segmenter=segmenter, optimizer=optimizer)
    parts = Parts(train, validation, segmenter, loss, transform, optimizer, callbacks)
    return train_folds(as_config(config, train=train), folds, parts, group_by=group_by, output=output, resume=resume)


def train_folds(
    config: RunConfig,
    folds: int,
    parts: Parts,
    *,
    group_by: str | None = None,
    output: str | Path | None = None,
    resume: str = "no",
    allow_changes: Collection[str] = (),
) -> tuple[FitResult, ...]:
    """Train the runs of all folds; see `fit_folds`, also for the errors, and `trainer_for` for `allow_changes`."""
    config = with_dataset_name(config, parts.train)
    name = f"{config.data.dataset}_{config.model.head}_{config.model.encoder}"
    folder = Path(output or f"{config.output or f'runs/{name}'}_folds")
    parts = dataclasses.replace(parts, series_begun=resume != "no" and (folder / CONFIG).is_file())
    whole, held_out = splits(config, parts, begun=parts.series_begun)
    fold_of = assign_folds(whole, folds, group_by=group_by)
    record = fold_record(whole, folds, group_by=group_by)
    _check_folder(folder, record, resume=resume)
    if (folder / CONFIG).is_file():
        config_changes(load_run_config(folder / CONFIG), config, allowed=allow_changes, file=folder / CONFIG)
    results: list[FitResult] = []
    for fold in range(folds):
        if os.environ.get("RANK", "0") == "0":
            print(f"fold {fold} of {folds}: {int((fold_of != fold).sum())} of {len(whole)} samples are trained on")
        others, own = (Subset(whole, np.flatnonzero(chosen).tolist()) for chosen in (fold_of != fold, fold_of == fold))
        part = dataclasses.replace(parts, train=others, validation=held_out, scored=own)
        place, begun = folder / f"fold_{fold}", "no" if resume == "no" else "auto"
        trainer = trainer_for(
            config,
            part,
            output=place,
            resume=begun,
            allow_changes=allow_changes if RunFolder(place).states() else (),
        )
        if not fold:  # no earlier, so that a start which is refused leaves nothing behind
            _write(folder / FOLDS, json.dumps(record, indent=1) + "\n")
            _write(folder / CONFIG, to_yaml(config))  # without what a run finds out, such as statistics of its part
        results.append(run(trainer))
        results[-1].segmenter.cpu()
        del trainer  # with its optimiser and averages, before the next one's take memory
        gc.collect()
        if not results[-1].finished:
            break
    return tuple(results)


def fold_record(dataset: SegmentationDataset, folds: int, *, group_by: str | None) -> dict[str, Any]:
    """Return what identifies the folds of a data set, for a file."""
    return {"format": "resnest_seg folds", "samples": dataset.identity(), "folds": folds, "group_by": group_by}


def _check_made_anew(*, segmenter: object, optimizer: object) -> None:
    """Refuse a model or an optimiser that several runs would train, one after the other."""
    for key, part in (("segmenter", segmenter), ("optimizer", optimizer)):
        if isinstance(part, torch.nn.Module | torch.optim.Optimizer):
            raise ConfigError(f"{key} must be a function that makes a new one: every fold trains its own.")


def _check_folder(folder: Path, record: Mapping[str, Any], *, resume: str) -> None:
    """Refuse a folder that holds other folds, or something else, or nothing that could go on."""
    path = folder / FOLDS
    if path.is_file() and resume != "no":
        before = read_fold_record(path)
        changed = [key for key in record if before.get(key) != record[key]]
        if changed:
            raise CheckpointError(
                f"{path} is of other folds: {changed[0]} was {before.get(changed[0])}, and is {record[changed[0]]}. "
                "Choose another output, or go on with what it was."
            )
        return
    if resume == "yes":
        raise CheckpointError(f"folds cannot go on in {folder}: there is no {path}. Choose another output, or "
                              "resume='auto'.")  # fmt: skip
    if path.is_file():
        raise CheckpointError(f"folds cannot begin in {folder}: it exists. Choose another output, or go on with them "
                              "by resume='auto' (--resume auto).")  # fmt: skip
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"folds cannot begin in {folder}: it exists, and holds no folds. Choose another output.")


def _write(path: Path, text: str) -> None:
    """Write a text atomically, by the main process."""
    if os.environ.get("RANK", "0") == "0":
        with atomic_write(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
