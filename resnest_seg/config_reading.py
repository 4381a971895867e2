"""Configs from nested dictionaries, YAML files and command-line words, and back; their keys are fields of dataclasses.

`resnest_seg.config` has the dataclasses.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import yaml

from resnest_seg.config_types import Kind, shown
from resnest_seg.errors import ConfigError, unknown_name, unknown_option
from resnest_seg.files import find_config
from resnest_seg.yaml_files import load_yaml


def check_values(flat: Mapping[str, Any], kinds: Mapping[str, Kind]) -> None:
    """Check the values of a config: their types, their ranges, and their consistency.

    Args:
        flat: Every dotted key of a run's config -> its value, as `flatten` returns them.
        kinds: The same keys -> their types and ranges.

    Raises:
        ConfigError: A value is invalid; the message names the key, the value and the valid values.
    """
    for key, value in flat.items():
        kinds[key].check(key, value)
    if flat["model.output_stride"] not in (8, 16, 32):
        raise ConfigError(f"model.output_stride must be 8, 16 or 32, not {flat['model.output_stride']}.")
    epochs, iterations = flat["train.epochs"], flat["train.iterations"]
    if (epochs is None) == (iterations is None):
        raise ConfigError(
            f"exactly one of train.epochs ({epochs}) and train.iterations ({iterations}) must be given, and the other "
            "null."
        )
    lr, min_lr = flat["optim.lr"], flat["optim.min_lr"]
    if min_lr > lr:
        raise ConfigError(f"optim.min_lr ({min_lr}) is above optim.lr ({lr}).")


class NestedConfig:
    """The way of a config, a dataclass of groups of keys, from nested dictionaries and back."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build a config from nested dictionaries such as `{"model": {"encoder": "resnest101"}, "seed": 1}`.

        Args:
            values: Any keys, as in a YAML file; `{"model.encoder": "resnest101"}` works too. The others keep their
                defaults.

        Raises:
            ConfigError: A key does not exist (the message suggests the nearest) or is given twice, or a value is
                invalid.
        """
        if not isinstance(values, Mapping):
            raise ConfigError(f"a config is built from nested dictionaries, not from {shown(values)}.")
        return _built(_flat(values, "config", cls), cls)

    def to_dict(self) -> dict[str, Any]:
        """All keys as nested dictionaries of plain values; `from_dict` of them is an equal config."""
        return dataclasses.asdict(self)  # type: ignore[call-overload, no-any-return]  # every subclass is a dataclass

    def __post_init__(self) -> None:
        for name, hint in _hints_of(type(self)).items():
            value = getattr(self, name)
            if dataclasses.is_dataclass(hint) and not isinstance(value, typing.cast(type, hint)):
                kind, own = getattr(hint, "__name__", ""), type(self).__name__
                raise ConfigError(
                    f"{name} must be a {kind}, not {shown(value)}. {own}.from_dict takes nested dictionaries."
                )
        check_values(flatten(self), kinds_of(type(self)))


T = TypeVar("T")
C = TypeVar("C", bound=NestedConfig)


_HINTS: dict[type, dict[str, Any]] = {}
"""Annotations of the classes that were asked for: every config asks, and typing evaluates them each time."""


def _hints_of(owner: type) -> Mapping[str, Any]:
    if owner not in _HINTS:
        _HINTS[owner] = typing.get_type_hints(owner)
    return _HINTS[owner]


def kinds_of(owner: type, prefix: str = "") -> dict[str, Kind]:
    """Map every dotted key of a kind of config to its type and range."""
    hints = _hints_of(owner)
    kinds: dict[str, Kind] = {}
    for field in dataclasses.fields(owner):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            kinds |= kinds_of(typing.cast(type, hint), f"{prefix}{field.name}.")
        else:
            types = [kind for kind in typing.get_args(hint) or (hint,) if kind is not type(None)]
            listed = typing.get_origin(types[0]) is tuple
            one = typing.get_args(types[0])[0] if listed else types[0]
            kinds[prefix + field.name] = Kind(one, types[0] is not hint, field.metadata.get("range"), listed)
    return kinds


def flatten(config: NestedConfig) -> dict[str, Any]:
    """Convert a config to one dictionary: dotted key -> value."""
    return dict(_dotted(config.to_dict()))


def _dotted(tree: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of a mapping of mappings."""
    for group, values in tree.items():
        if isinstance(values, Mapping):
            yield from ((f"{group}.{name}", value) for name, value in values.items())
        else:
            yield group, values


def to_yaml(config: NestedConfig) -> str:
    """Serialise the resolved config to YAML with every key; `load_run_config` reads it back to an equal config."""
    return yaml.safe_dump(config.to_dict(), sort_keys=False)


def load_config(path: str | Path, kind: type[C], *, overrides: Sequence[str] = ()) -> C:
    """Read a YAML file of any kind of run and apply dotted overrides.

    Args:
        path: The YAML file, or the name of a shipped config; missing keys keep the dataclasses' defaults.
        kind: `RunConfig` or `PretrainConfig`.
        overrides: Command-line arguments such as `["--optim.lr", "0.02"]` or `["--optim.lr=0.02"]`.

    Raises:
        ConfigError: The file is missing or not a YAML mapping; a key does not exist (the message suggests the nearest);
            a value is invalid.
    """
    path, kinds = find_config(path), kinds_of(kind)
    flat = _flat(_read_yaml(path), f"{path}", kind)
    for key, value in flat.items():
        if kinds[key].type is float:  # YAML 1.1 takes 1e-4 for text
            flat[key] = _number(value, kinds[key])
    return _built(flat | _agreeing(_overridden(overrides, kinds), "the command line"), kind)


def _number(value: Any, kind: Kind) -> Any:
    """A number of YAML, or a list of some, that may have been taken for text."""
    if isinstance(value, list) and kind.listed:
        one = dataclasses.replace(kind, listed=False)
        return [_number(item, one) for item in value]
    return kind.read(value) if isinstance(value, str) else value


def _agreeing(flat: dict[str, Any], where: str) -> dict[str, Any]:
    """Complete the keys and values of one source, and refuse those that contradict each other.

    Epochs and iterations both give the length of a run: who gives one of them replaces the other of a source before.
    """
    bands, channels = flat.get("data.bands"), flat.get("model.in_channels")
    if isinstance(bands, list | tuple) and isinstance(channels, int) and len(bands) != channels:
        raise ConfigError(
            f"model.in_channels is {channels} in {where}, and data.bands names {len(bands)} bands: leave "
            "model.in_channels out, it follows."
        )
    for given, other in (("train.epochs", "train.iterations"), ("train.iterations", "train.epochs")):
        if flat.get(given) is not None and other not in flat:
            return {**flat, other: None}
    return flat


def _overridden(words: Sequence[str], kinds: Mapping[str, Kind]) -> dict[str, Any]:
    """Parse `--key value` and `--key=value` to key -> value of the key's type, as far as it can be read as such."""
    values, rest = dict[str, Any](), iter(words)
    for word in rest:
        key, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--"):
            raise ConfigError(f"{word!r} is not an option: write --KEY VALUE, such as --optim.lr 0.02.")
        if key not in kinds:
            raise unknown_option(f"--{key}", [f"--{known}" for known in kinds], listing="--help-all")
        if not equals and ((value := next(rest, "--")).startswith("--")):
            raise ConfigError(f"--{key} needs a value: {kinds[key]}.")
        values[key] = kinds[key].read(value)
    return values


def _built(flat: dict[str, Any], kind: type[T]) -> T:
    """Build a config of the given values and the defaults of all other keys; whole numbers of float keys are floats."""
    kinds, tree = kinds_of(kind), dict[str, Any]()
    for key, value in (flatten(typing.cast(NestedConfig, kind())) | flat).items():
        if kinds[key].listed and kinds[key].type is str and isinstance(value, str):
            value = (value,)  # a list of one name
        kinds[key].check(key, value)
        group, _, name = key.rpartition(".")
        exact = _exact(value, kinds[key])
        (tree.setdefault(group, {}) if group else tree)[name] = exact
    hints = _hints_of(kind)
    return kind(**{key: hints[key](**value) if isinstance(value, dict) else value for key, value in tree.items()})


def _exact(value: Any, kind: Kind) -> Any:
    """Whole numbers of float keys as floats, lists as tuples."""
    if value is None:
        return None
    if kind.listed:
        return tuple(_exact(item, dataclasses.replace(kind, listed=False)) for item in value)
    return float(value) if kind.type is float else value


def _read_yaml(path: Path) -> Mapping[str, Any]:
    try:
        tree = load_yaml(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(tree, Mapping):
        raise ConfigError(f"{path} must hold a mapping with the keys model, data, optim, train, eval.")
    return tree


def _flat(tree: Mapping[str, Any], where: str, kind: type) -> dict[str, Any]:
    """Flatten nested mappings, whose keys may be dotted, to dotted key -> value, and reject unknown keys.

    Args:
        tree: The mappings.
        where: Their name in messages.
        kind: The config that they are for.

    Raises:
        ConfigError: The message names the key and the nearest valid key.
    """
    kinds, flat = kinds_of(kind), dict[str, Any]()
    keys = list(kinds)
    groups = {key.partition(".")[0] for key in keys if "." in key}
    for name, value in tree.items():
        if isinstance(value, Mapping) and not value and name not in groups:  # it has no key that would be unknown
            raise unknown_name(f"key in {where}:", str(name), keys)
    for name, value in _dotted(tree):
        if name in groups:
            raise ConfigError(f"{name} in {where} must be a mapping of its keys, not {shown(value)}.")
        if name not in keys:
            raise unknown_name(f"key in {where}:", str(name), keys)
        if isinstance(value, Mapping) or (isinstance(value, list) and not kinds[name].listed):
            raise ConfigError(f"{name} in {where} must be one value, not {shown(value)}.")
        if name in flat:
            raise ConfigError(f"{where} gives {name} twice, nested and dotted: delete one of the two.")
        flat[name] = value
    return _agreeing(flat, where)
