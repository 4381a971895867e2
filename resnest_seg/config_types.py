"""Types and ranges of the keys of a config, and the messages of values that do not fit them."""

from __future__ import annotations

import dataclasses
import math
import reprlib
from collections.abc import Collection
from typing import Any, TypeVar

from resnest_seg.errors import ConfigError

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Range:
    """The range of a key's numbers.

    Attributes:
        low: Lower bound.
        high: Upper bound.
        above: Exclude `low`.
        below: Exclude `high`.
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
        if self.high == math.inf:
            return f"{'above' if self.above else 'at least'} {self.low}"
        low = f"above {self.low} and" if self.above else f"from {self.low} to"
        return f"{low}{' below' if self.below else ' at most' if self.above else ''} {self.high}"


def within(default: T, low: float, high: float, *, above: bool = False, below: bool = False) -> T:
    """Declare a numeric field of a config with its default and its range, which `check_values` enforces.

    Args:
        default: The default.
        low: Lower bound.
        high: Upper bound, far above sensible values; it only catches typing errors.
        above: Exclude `low`.
        below: Exclude `high`.
    """
    field: T = dataclasses.field(default=default, metadata={"range": Range(low, high, above, below)})
    return field


def shown(value: object) -> str:
    """Format a value for a message, truncated; by YAML aliases a list may contain itself, or billions of others."""
    if isinstance(value, Collection) and not isinstance(value, str | bytes):
        return f"a {type(value).__name__}"
    return reprlib.repr(value)


def check_option(name: str, value: float | None, low: float, high: float, *, above: bool = False) -> None:
    """Check that an option of the command line or of a call is in its range; None means not given.

    Raises:
        ConfigError: The value is out of range or NaN; the message names the option, the range and the value.
    """
    allowed = Range(low, high, above)
    if value is not None and value not in allowed:
        raise ConfigError(f"{name} must be {allowed}, not {value}.")


@dataclasses.dataclass(frozen=True)
class Kind:
    """The type and range of a key.

    Attributes:
        type: str, bool, int, float, or int | str.
        null: The key may be null.
        range: Range of its numbers, if any.
        listed: The value is a tuple of at least one such value: a list in YAML, values with commas as an option.
    """

    type: Any
    null: bool
    range: Range | None
    listed: bool = False

    def check(self, key: str, value: object) -> None:
        """Check a value.

        Raises:
            ConfigError: The value has another type, is out of range, or is empty text; the message names the key.
        """
        if value is None and self.null:
            return
        if self.listed:
            if not isinstance(value, list | tuple) or not value:
                raise ConfigError(f"{key} must be {self}, not {shown(value) if value else 'an empty list'}.")
            for item in value:
                dataclasses.replace(self, null=False, listed=False).check(f"every value of {key}", item)
            return
        wanted = int | float if self.type is float else self.type
        if not isinstance(value, wanted) or (isinstance(value, bool) and self.type is not bool):
            raise ConfigError(f"{key} must be {TYPES[self.type]}, not {shown(value)}.")
        if self.range is not None and value not in self.range:
            raise ConfigError(f"{key} must be {self}, not {value}.")
        if isinstance(value, str) and (not value.strip() or "\0" in value):
            what = "holds a zero byte." if value.strip() else "is empty: is a shell variable not set?"
            raise ConfigError(f"{key} {what} {'Leave it out, or give null.' if self.null else 'Leave it out.'}")

    def read(self, word: str) -> Any:
        """Convert a word of the command line to this type; the word itself if that is impossible, for `check`."""
        if self.null and word in ("null", "None"):
            return None
        if self.listed:
            one = dataclasses.replace(self, null=False, listed=False)
            word = word.strip()
            whole = word[1:-1] if word.startswith("[") and word.endswith("]") else word
            return tuple(one.read(part.strip()) for part in whole.split(","))
        if self.type == int | str:
            return int(word) if word.isascii() and word.isdecimal() else word.strip("'\"")
        if self.type is bool:
            return {"true": True, "false": False}.get(word.lower(), word)
        try:
            return self.type(word)
        except ValueError:
            return word

    def __str__(self) -> str:
        one = f"{TYPES[self.type]}{f' {self.range}' if self.range else ''}"
        return f"{f'a list, each value {one}' if self.listed else one}{' or null' if self.null else ''}"


TYPES: dict[Any, str] = {
    int | str: "a whole number or text",
    str: "text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
}
"""Types of keys in the words of messages."""
