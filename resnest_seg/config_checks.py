"""Which values of a run's config make sense; those that are names of things are checked where they are looked up."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from resnest_seg.errors import ConfigError, unknown_name

LOSSES = ("cross_entropy", "ohem", "dice", "focal", "lovasz", "tversky")
"""Names that `train.loss` takes."""

CLASS_WEIGHTS = ("none", "median_frequency", "effective_number")
"""Names that `train.class_weights` takes."""

POSITIVE = (
    *(f"data.{name}" for name in ("base_size", "long_edge", "crop_size", "scale_min")),
    *(f"optim.{name}" for name in ("lr", "head_lr_factor", "power")),
    *(f"train.{name}" for name in ("batch_size", "accumulation", "validate_every", "keep", "log_every")),
    "model.in_channels",
    "eval.memory",
)
"""Keys whose numbers are above 0."""

NOT_NEGATIVE = (
    *(f"data.{name}" for name in ("workers", "check", "rotate", "color_jitter")),
    *(f"optim.{name}" for name in ("weight_decay", "min_lr", "warmup")),
    *(f"train.{name}" for name in ("ohem_min_kept", "aux_weight", "validate_every_steps", "patience", "save_every")),
    "eval.sheet",
    "seed",
)
"""Keys whose numbers are 0 or above."""

SHARES = (
    *(f"data.{name}" for name in ("flip", "blur", "coarse_dropout", "class_mix")),
    *("train.ohem_threshold", "model.drop_block", "model.drop_path"),
)
"""Keys whose numbers lie in 0..1."""

BELOW_ONE = ("train.label_smoothing", "optim.momentum")
"""Keys whose numbers are 0 or above and below 1, where nothing would be learnt, or nothing ever forgotten."""

POSITIVE_OR_NULL = ("data.crop_width", "eval.limit", "train.epochs", "train.iterations", "optim.reference_batch")
"""Keys of counts that may be null."""


def check_values(flat: Mapping[str, Any]) -> None:
    """Refuse values that have the right type and make no sense.

    Args:
        flat: Every dotted key of a run's config -> its value, as `resnest_seg.config.flatten` gives them.

    Raises:
        ConfigError: Names the key, the value, and what it may be.
    """
    for key, value in flat.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{key} must be a finite number, not {value}.")
    for key in POSITIVE:
        if not flat[key] > 0:
            raise ConfigError(f"{key} must be greater than 0, not {flat[key]}.")
    for key in NOT_NEGATIVE:
        if not flat[key] >= 0:
            raise ConfigError(f"{key} must not be negative, it is {flat[key]}.")
    for key in SHARES:
        if not 0 <= flat[key] <= 1:
            raise ConfigError(f"{key} must lie in 0..1, not {flat[key]}.")
    for key in BELOW_ONE:
        if not 0 <= flat[key] < 1:
            raise ConfigError(f"{key} must lie in 0..1 and below 1, not {flat[key]}.")
    for key in POSITIVE_OR_NULL:
        if flat[key] is not None and flat[key] < 1:
            raise ConfigError(f"{key} must be at least 1 or null, not {flat[key]}.")
    if flat["seed"] >= 2**63:
        raise ConfigError(f"seed must be below 2 ** 63, not {flat['seed']}.")
    if flat["model.output_stride"] not in (8, 16, 32):
        raise ConfigError(f"model.output_stride must be 8, 16 or 32, not {flat['model.output_stride']}.")
    low, high, rare = flat["data.scale_min"], flat["data.scale_max"], flat["data.rare_class"]
    if high < low:
        raise ConfigError(f"data.scale_max ({high}) is below data.scale_min ({low}).")
    if rare is not None and not rare > 0:
        raise ConfigError(f"data.rare_class must be greater than 0 or null, not {rare}.")
    _check_course(flat)
    _check_loss(flat)


def _check_course(flat: Mapping[str, Any]) -> None:
    """How long and how fast a run trains."""
    epochs, iterations = flat["train.epochs"], flat["train.iterations"]
    if (epochs is None) == (iterations is None):
        raise ConfigError(
            f"exactly one of train.epochs ({epochs}) and train.iterations ({iterations}) must be given, and the other "
            "null."
        )
    decay, lr, min_lr, ema = flat["optim.layer_decay"], flat["optim.lr"], flat["optim.min_lr"], flat["train.ema"]
    if not 0 < decay <= 1:
        raise ConfigError(f"optim.layer_decay must be above 0 and at most 1, not {decay}.")
    if min_lr > lr:
        raise ConfigError(f"optim.min_lr ({min_lr}) is above optim.lr ({lr}).")
    if not 0 <= ema < 1:
        raise ConfigError(f"train.ema must be at least 0 and below 1, not {ema}.")


def _check_loss(flat: Mapping[str, Any]) -> None:
    names, weights = loss_names(flat["train.loss"]), flat["train.class_weights"]
    if weights not in CLASS_WEIGHTS:
        raise unknown_name("train.class_weights", weights, CLASS_WEIGHTS)
    if not {"cross_entropy", "ohem"} & set(names):
        for key, given in (("class_weights", weights != "none"), ("label_smoothing", flat["train.label_smoothing"])):
            if given:
                raise ConfigError(
                    f"train.{key} belongs to cross_entropy and ohem, and train.loss is {flat['train.loss']}."
                )


def loss_names(text: str) -> tuple[str, ...]:
    """The losses that `train.loss` names, "cross_entropy+dice" -> ("cross_entropy", "dice").

    Raises:
        ConfigError: An unknown name (the nearest is named), or one that comes twice.
    """
    names = tuple(name.strip() for name in text.split("+"))
    for name in names:
        if name not in LOSSES:
            raise unknown_name("loss in train.loss:", name, LOSSES)
        if names.count(name) > 1:
            raise ConfigError(f"train.loss names {name} twice: {text!r}.")
    return names
