"""Which values of a run's config make sense; those that are names of things are checked where they are looked up."""

from __future__ import annotations

import dataclasses
import reprlib
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from resnest_seg.errors import ConfigError, unknown_name

LOSSES = ("cross_entropy", "ohem", "dice", "focal", "lovasz", "tversky")
"""Names that `train.loss` takes."""

CLASS_WEIGHTS = ("none", "median_frequency", "effective_number")
"""Names that `train.class_weights` takes."""

COUNT = 10**9
"""Largest value of keys that count epochs, steps or samples: more than any run has."""

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Range:
    """The numbers that a key takes.

    Attributes:
        low: The least.
        high: The greatest.
        above: `low` itself is excluded.
        below: `high` itself is excluded.
    """

    low: float
    high: float
    above: bool = False
    below: bool = False

    def __contains__(self, value: float) -> bool:
        return (self.low < value if self.above else self.low <= value) and (
            value < self.high if self.below else value <= self.high
        )  # false for NaN

    def __str__(self) -> str:
        low = f"above {self.low} and" if self.above else f"from {self.low} to"
        return f"{low}{' below' if self.below else ' at most' if self.above else ''} {self.high}"


def within(default: T, low: float, high: float, *, above: bool = False, below: bool = False) -> T:
    """A field of a config with its default and the range of its numbers, which `check_values` holds.

    Args:
        default: Value where nothing is given; its type, or the field's, says whether the number is a whole one.
        low: The least value.
        high: The greatest value: far above what makes sense, so that a typing error costs no machine.
        above: `low` itself is excluded.
        below: `high` itself is excluded.
    """
    field: T = dataclasses.field(default=default, metadata={"range": Range(low, high, above, below)})
    return field


def shown(value: object) -> str:
    """A value in a message: short, whatever it is; by aliases, a list may hold itself, or billions of others."""
    if isinstance(value, Collection) and not isinstance(value, str | bytes):
        return f"a {type(value).__name__}"
    return reprlib.repr(value)


def check_option(name: str, value: float | None, low: float, high: float, *, above: bool = False) -> None:
    """Refuse a number of the command line, or of a call, outside its range; None was not given.

    Raises:
        ConfigError: Names the option, the range and the value, which may be NaN.
    """
    allowed = Range(low, high, above)
    if value is not None and value not in allowed:
        raise ConfigError(f"{name} must be {allowed}, not {value}.")


@dataclasses.dataclass(frozen=True)
class Kind:
    """What the values of a key are.

    Attributes:
        type: str, bool, int or float.
        null: The key may be null.
        range: Of its numbers, where it has one.
    """

    type: type
    null: bool
    range: Range | None

    def check(self, key: str, value: object) -> None:
        """Refuse a value of another type, outside the range, or of text that names nothing.

        Raises:
            ConfigError: Names the key, the value, and what it may be.
        """
        if value is None and self.null:
            return
        number = isinstance(value, int | float) and not isinstance(value, bool)
        fits = number and (self.type is float or isinstance(value, int)) if self.type in (int, float) else False
        if not (fits or (self.type in (str, bool) and isinstance(value, self.type))):
            raise ConfigError(f"{key} must be {self}, not {shown(value)}.")
        if self.range is not None and value not in self.range:  # type: ignore[operator]  # it is a number
            raise ConfigError(f"{key} must be {self}, not {value}.")
        if isinstance(value, str) and (not value.strip() or "\0" in value):
            what = "holds a zero byte." if value.strip() else "is empty: is a shell variable not set?"
            raise ConfigError(f"{key} {what} {'Leave it out, or give null.' if self.null else 'Leave it out.'}")

    def __str__(self) -> str:
        kind = {str: "text", bool: "true or false", int: "a whole number", float: "a number"}[self.type]
        return f"{kind}{f' {self.range}' if self.range else ''}{' or null' if self.null else ''}"


def check_values(flat: Mapping[str, Any], kinds: Mapping[str, Kind]) -> None:
    """Refuse values of a wrong type, outside the range that stands beside their key, or that contradict each other.

    Args:
        flat: Every dotted key of a run's config -> its value, as `resnest_seg.config.flatten` gives them.
        kinds: The same keys -> what their values are.

    Raises:
        ConfigError: Names the key, the value, and what it may be.
    """
    for key, value in flat.items():
        kinds[key].check(key, value)
    if flat["model.output_stride"] not in (8, 16, 32):
        raise ConfigError(f"model.output_stride must be 8, 16 or 32, not {flat['model.output_stride']}.")
    low, high = flat["data.scale_min"], flat["data.scale_max"]
    if high < low:
        raise ConfigError(f"data.scale_max ({high}) is below data.scale_min ({low}).")
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
    lr, min_lr = flat["optim.lr"], flat["optim.min_lr"]
    if min_lr > lr:
        raise ConfigError(f"optim.min_lr ({min_lr}) is above optim.lr ({lr}).")


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
