"""Averages of weights: states of one run, or checkpoints of runs that began alike, as one model of the same cost.

Batch norms count what passes through the weights before them: after averaging, their statistics are those of no model,
and are counted anew on the training split.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn

from resnest_seg.config import RunConfig
from resnest_seg.data.datasets import SegmentationDataset
from resnest_seg.data.loader import load_batches, training_batches
from resnest_seg.data.transforms import TrainTransform
from resnest_seg.errors import CheckpointError, ConfigError
from resnest_seg.evaluation.evaluator import check_fits, read_like
from resnest_seg.files import sha256
from resnest_seg.models.checkpoint import Checkpoint, find_checkpoint
from resnest_seg.models.segmenter import Segmenter
from resnest_seg.reports.run_table import METRICS, SCORES, finite, json_lines, saved_values
from resnest_seg.training.optim import hold_frozen
from resnest_seg.training.run_folder import RunFolder

NO_MATTER = ("weights", "encoder_weights", "checkpointing")
"""Keys of `model` in which checkpoints may differ: they say where weights began and how they were trained."""

THRESHOLDS = "thresholds"
"""Key of the thresholds of binary and multi-label models."""


def newest_states(run: str | Path, count: int) -> list[Path]:
    """The newest states of a run folder, newest first.

    Raises:
        CheckpointError: The folder keeps fewer, or none.
    """
    states = RunFolder(run).states()
    if not states:
        raise CheckpointError(
            f"{run} holds no state of a run (last.safetensors): it is no run folder, or that of folds."
        )
    if len(states) < count:
        raise CheckpointError(
            f"{run} holds {len(states)} states, and {count} are asked for: a run keeps the newest train.keep, 2 unless "
            f"told otherwise. Train with --train.keep {count}, or average {len(states)} (--last {len(states)})."
        )
    return states[:count]


def best_states(run: str | Path, count: int) -> list[Path]:
    """The states of a run folder whose weights scored best in validations, the best first, of equal ones the newest.

    Only states that the run keeps count, and of these only those that were saved when the run was validated. Where a
    run validates its weights and their average, the score is that of the weights, which a state holds.

    Raises:
        CheckpointError: The folder keeps fewer such states.
    """
    newest_states(run, 1)  # says what is no run folder
    states = RunFolder(run).states()
    scores: dict[int, float] = {}
    for line in json_lines(Path(run) / METRICS):
        found = [finite(line.get(prefix + name)) for name in SCORES for prefix in ("weights/", "")]
        known = [score for score in found if score is not None]
        step = line.get("step")
        if line.get("kind") == "validation" and known and isinstance(step, int):
            scores[step] = known[0]
    score_of = {path: scores.get(saved_values(path).get("step", -1)) for path in states}
    scored = {path: score for path, score in score_of.items() if score is not None}
    if len(scored) < count:
        raise CheckpointError(
            f"{run} holds {len(scored)} validated states among its {len(states)}, and {count} are asked for. Train "
            f"with --train.keep {count} or more, and validate as often as states are saved (train.save_every, "
            "train.validate_every_steps); or average the newest (--last)."
        )
    return sorted(scored, key=lambda path: scored[path], reverse=True)[:count]


def average_checkpoints(paths: Sequence[str | Path]) -> Checkpoint:
    """Average the weights of checkpoints, summed in float64; one is in memory at a time.

    Whole numbers, such as counters, are those of the first. Statistics of batch norms are averaged, too; see
    `recompute_batch_norms`. Thresholds of binary and multi-label models are averaged, to thousandths, in which
    evaluations count.

    Args:
        paths: Checkpoint files of this package, or run folders (their best); the first one's config is the result's.

    Returns:
        A checkpoint without training state, whose `origin` names the members with their hashes and steps.

    Raises:
        CheckpointError: One cannot be read, is another network's, has other classes, or normalises otherwise.
        ConfigError: There is none.
    """
    if not paths:
        raise ConfigError("there is no checkpoint to average.")
    files = [find_checkpoint(path) for path in paths]
    first = Checkpoint.load(files[0], training=False)
    sums = {key: value.double() for key, value in first.weights.items() if value.is_floating_point()}
    for file in files[1:]:
        other = Checkpoint.load(file, training=False)
        _check_same(first, other, (files[0], file))
        for key, value in sums.items():
            value += other.weights[key].double()
    weights = {
        key: (sums[key] / len(files)).to(value.dtype) if key in sums else value for key, value in first.weights.items()
    }
    if THRESHOLDS in sums:
        weights[THRESHOLDS] = (sums[THRESHOLDS] / len(files)).round(decimals=3).to(first.weights[THRESHOLDS].dtype)
    members = [{"file": str(file), "sha256": sha256(file)} for file in files]
    return dataclasses.replace(first, weights=weights, training=None, origin={"average_of": members})


def _check_same(first: Checkpoint, other: Checkpoint, files: tuple[Path, Path]) -> None:
    """Refuse a checkpoint whose weights mean something else than the first one's."""

    def refuse(what: str) -> None:
        raise CheckpointError(f"{files[1]} cannot be averaged with {files[0]}: {what}.")

    if type(first.config) is not type(other.config):
        refuse("one is an image classifier, the other is not")
    ours, theirs = (dataclasses.asdict(each.network) for each in (first, other))
    differing = [key for key in ours if key not in NO_MATTER and ours[key] != theirs[key]]
    if differing:
        key = differing[0]
        refuse(f"its network is another one, model.{key} is {theirs[key]!r} and not {ours[key]!r}")
    if isinstance(first.config, RunConfig) and isinstance(other.config, RunConfig):
        images = [(data.bands, data.nodata) for data in (first.config.data, other.config.data)]
        if images[0] != images[1]:
            refuse(f"its images are others, data.bands and data.nodata are {images[1]} and not {images[0]}")
    names = [() if each.label_space is None else each.label_space.names for each in (first, other)]
    if names[0] != names[1]:
        place = next((place for place, pair in enumerate(zip(*names, strict=False)) if pair[0] != pair[1]), None)
        refuse(f"it has {len(names[1])} classes and not {len(names[0])}" if place is None else
               f"class {place} is {names[1][place]!r} and not {names[0][place]!r}")  # fmt: skip
    strangers = sorted(first.weights.keys() ^ other.weights.keys())
    if strangers:
        refuse(f"only one of them has {strangers[0]}")
    for key, value in first.weights.items():
        if value.shape != other.weights[key].shape:
            refuse(f"{key} has the shape {list(other.weights[key].shape)} and not {list(value.shape)}")
        if key in ("pixel_mean", "pixel_std") and not torch.equal(value, other.weights[key]):
            refuse(f"it normalises pixels otherwise ({key})")


def recompute_batch_norms(
    segmenter: Segmenter,
    dataset: SegmentationDataset,
    *,
    images: int | None = None,
    workers: int = 0,
) -> int:
    """Count the statistics of all batch norms anew on augmented training samples, in place.

    By the rule of `torch.optim.swa_utils.update_bn`: cumulative means over batches of the size of the run's
    micro-batches. Deterministic: samples, order and augmentation are those of a first epoch of the run's seed. What the
    run froze (`optim.freeze`) stays as it is. After an error, such as a sample that cannot be read, all is as before.

    Args:
        segmenter: The model, on the device to compute on; `config` says how its samples are augmented.
        dataset: The training split.
        images: Count so many samples at most; None takes each once. A last batch that is not full is left out.
        workers: Loader processes.

    Returns:
        The number of samples counted; 0 of a network without batch norms.

    Raises:
        ConfigError: Fewer than two samples, of which there are no statistics.
        CheckpointError: The model has other classes than the data set.
    """
    read_like(segmenter, dataset, chosen=False)
    check_fits(segmenter, dataset)
    if not any(isinstance(each, _BatchNorm) for each in segmenter.modules()):
        return 0
    config = segmenter.config
    count = min(len(dataset), images or len(dataset))
    batch = min(config.train.batch_size // config.train.accumulation, count)
    if count < 2 or batch < 2:
        raise ConfigError(f"statistics of batch norms need batches of two images or more, not {batch} of {count}.")
    order = training_batches(len(dataset), seed=config.seed, batch_size=batch, steps=range(count // batch))
    batches = load_batches(
        dataset,
        order,
        transform=TrainTransform.from_config(config.data, ignore=dataset.label_space.ignore_value),
        seed=config.seed,
        workers=workers,
    )
    devices = [segmenter.pixel_mean.device] if segmenter.pixel_mean.is_cuda else []
    frozen = _frozen_statistics(segmenter)

    def images_of_batches() -> Iterator[Tensor]:
        hold_frozen(segmenter, config.optim)  # before, all were reset and put into training mode
        segmenter.load_state_dict(frozen, strict=False)
        for each in batches:
            yield each.images

    with contextlib.closing(batches), torch.random.fork_rng(devices), _as_before_on_errors(segmenter):
        torch.manual_seed(config.seed)  # of dropout
        update_bn(images_of_batches(), segmenter, device=segmenter.pixel_mean.device)
    return count // batch * batch


@contextlib.contextmanager
def _as_before_on_errors(segmenter: Segmenter) -> Iterator[None]:
    """Within this, an error or Ctrl-C leaves batch norms and mode as they were, and not half counted."""
    training, norms = segmenter.training, [each for each in segmenter.modules() if isinstance(each, _BatchNorm)]
    before = [(each, each.momentum, {key: value.clone() for key, value in each.named_buffers()}) for each in norms]
    try:
        yield
    except BaseException:
        for norm, momentum, buffers in before:
            norm.momentum = momentum
            norm.load_state_dict(buffers, strict=False)
        segmenter.train(training)
        raise


def _frozen_statistics(segmenter: Segmenter) -> dict[str, Tensor]:
    """The statistics of the batch norms that the run froze, by their keys."""
    training = segmenter.training
    segmenter.train()
    hold_frozen(segmenter, segmenter.config.optim)
    norms = {name: module for name, module in segmenter.named_modules() if isinstance(module, _BatchNorm)}
    found = {
        f"{name}.{key}": value.clone()
        for name, module in norms.items()
        if not module.training
        for key, value in module.named_buffers()
    }
    segmenter.train(training)
    return found


def with_record(average: Checkpoint, weights: Mapping[str, Tensor], *, recomputed: int) -> Checkpoint:
    """An average with the weights of its model after `recompute_batch_norms`, which says of how many images."""
    stored = {key: value.detach().cpu().clone() for key, value in weights.items()}
    return dataclasses.replace(average, weights=stored, origin={**average.origin, "batch_norms_of_images": recomputed})
