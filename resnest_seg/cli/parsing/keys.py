"""Every key of a config as an option: for the verbs that train, and plan a training (train, pretrain, budget).

Importing this module imports no torch.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import functools
import inspect
import itertools
import sys
import textwrap
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from resnest_seg.cli.main import complete, completing
from resnest_seg.cli.parsing.options import stray_word
from resnest_seg.config import AnyConfig, RunConfig, config_keys
from resnest_seg.config_reading import kinds_of
from resnest_seg.errors import ConfigError, program, unknown_option, usage

SHORT = {
    "--epochs": "train.epochs",
    "--lr": "optim.lr",
    "--batch-size": "train.batch_size",
    "--workers": "data.workers",
    "--seed": "seed",
}
"""Short forms of config keys in train, pretrain and budget; --seed is the key itself."""

CHECKPOINT = {"--checkpoint": "model.weights"}
"""Key for which --checkpoint is short where a segmentation model is trained."""

ENCODER_CHECKPOINT = {"--checkpoint": "model.encoder_weights"}
"""Key for which --checkpoint is short where a classifier is trained."""

WIDTH = 100
"""Columns of the help of config keys."""


class Own(NamedTuple):
    """An option of a verb that takes every key of a config, besides these keys.

    Attributes:
        name: The option.
        value: Its value in the help; "" for a flag.
        help: What it does.
    """

    name: str
    value: str
    help: str


def run_options(begin: str) -> tuple[Own, Own, Own]:
    """Return --resume, --allow-changes and --dry-run of a verb that trains; `begin` names what begins a run."""
    return (
        Own(
            "--resume",
            "FOLDER",
            f"resume the run in this folder, with its config; or auto, with {begin}: resume the run in its output "
            "folder if there is a checkpoint, else start it. Without --output, auto means the newest of the folders "
            "runs/NAME, runs/NAME-2 ..., the one with the highest number",
        ),
        Own("--allow-changes", "KEYS", "with --resume: keys that a resumed run may change, separated by commas"),
        Own("--dry-run", "", "try the run in two steps, without leaving files"),
    )


def take(
    argv: Sequence[str], own: Sequence[Own], *, kind: type[AnyConfig] = RunConfig, short: Mapping[str, str] = SHORT
) -> tuple[dict[str, str | None], list[str]]:
    """Separate a verb's own options from overrides of config keys, which may be given by their short forms.

    Args:
        argv: The command line.
        own: The verb's options; each takes `--name value` and `--name=value`.
        kind: The config, whose keys are options as well.
        short: Option -> the key that it is short for.

    Returns:
        Own option -> its value, "yes" for a flag, None if it is not given; and the overrides, with whole keys.

    Raises:
        ConfigError: An option is unknown, lacks its value, or is given in two forms with different values; or a word
            belongs to none.
    """
    flags = {option.name for option in own if not option.value}
    taken: dict[str, str | None] = dict.fromkeys(option.name for option in own)
    keys = [f"--{key}" for key in config_keys(kind)]
    known = [*taken, *short, *(key for key in keys if key not in short)]
    given: dict[str, tuple[str, str]] = {}
    overrides: list[str] = []
    words = iter(argv)
    for word in words:
        name, equals, value = word.partition("=")
        if not word.startswith("-"):
            raise stray_word(word)
        if name not in known:
            raise unknown_option(name, known, listing="--help-all")
        if name in flags:
            if equals:
                raise ConfigError(f"{name} takes no value, and {value!r} is one: give {name} alone, or leave it out.")
            taken[name] = "yes"
            continue
        following = value if equals else next(words, None)
        if following is None or (not equals and following.partition("=")[0] in known):
            raise ConfigError(f"{name} needs a value.")
        if name in taken and not following:
            raise ConfigError(f"{name} needs a value.")
        if name in taken:
            taken[name] = following
            continue
        key = short.get(name, name.removeprefix("--"))
        form, before = given.setdefault(key, (name, following))
        if form != name and not _same(before, following):
            raise ConfigError(f"{form} {before} and {name} {following} are two forms of one option: give one of them.")
        overrides += [f"--{key}={following}"] if equals else [f"--{key}", following]
    return taken, overrides


def _same(one: str, other: str) -> bool:
    try:
        return one == other or float(one) == float(other)
    except ValueError:
        return False


@dataclasses.dataclass(frozen=True)
class KeyHelp:
    """The help of a verb that takes every key of a config: `--help` shows the usual ones, `--help-all` all of them.

    Attributes:
        verb: The verb, whose program is named as it was called.
        arguments: How it is called, behind the program.
        description: Text above the options.
        own: The verb's options.
        usual: The keys that people use.
        kind: The config.
        short: Option -> the key that it is short for.
    """

    verb: str
    arguments: str
    description: str
    own: Sequence[Own]
    usual: Sequence[str]
    kind: type[AnyConfig] = RunConfig
    short: Mapping[str, str] = dataclasses.field(default_factory=lambda: SHORT)

    def show_if_asked(self, argv: Iterable[str]) -> None:
        """Print the help and exit if the command line asks for it."""
        if completing():
            parser = argparse.ArgumentParser()
            for name in [option.name for option in self.own] + [f"--{key}" for key in config_keys(self.kind)]:
                if name not in parser._option_string_actions:
                    parser.add_argument(name)
            complete(parser)
        words = set(argv)
        if words & {"-h", "--help", "--help-all"}:
            print(self.text(everything="--help-all" in words))
            raise SystemExit(0)

    def text(self, *, everything: bool = False) -> str:
        """Return the help: the usual keys and the verb's options, or these and all keys in their groups."""
        entries = _entries(self.kind, self.short)
        own = [(f"{option.name} {option.value}".strip(), option.help) for option in self.own]
        own += [
            ("-h, --help", "show the options that people use"),
            ("--help-all", f"show all {len(entries)} keys of the config"),
        ]
        head = f"usage: {program(self.verb)} {self.arguments}\n\n{usage(self.description).strip()}\n"
        if not everything:
            usual = [entries[key] for key in self.usual]
            foot = "\nEvery key of the config is an option: --help-all shows them. Config files override the defaults."
            return "\n".join([head, _section("keys that people use", usual), _section("options", own)]) + foot
        sections = [_section("options", own)]
        for group, title in groups(self.kind).items():
            keys = [key for key in entries if (key.partition(".")[0] if "." in key else "") == group]
            sections.append(_section(title, [entries[key] for key in keys]))
        return "\n".join([head, *sections]).rstrip()


def _section(title: str, entries: Sequence[tuple[str, str]]) -> str:
    """Return a titled list of options, as argparse formats it."""
    lines = [f"{title}:"]
    for option, text in entries:
        lines.append(f"  {option}")
        lines += textwrap.wrap(" ".join(text.split()), WIDTH, initial_indent=" " * 8, subsequent_indent=" " * 8)
    return "\n".join([*lines, ""])


class KeyText(NamedTuple):
    """What is said of a config key.

    Attributes:
        text: What it does.
        values: Its type and range, in words.
        default: Its default, as YAML writes it.
    """

    text: str
    values: str
    default: str


def groups(kind: type[AnyConfig]) -> dict[str, str]:
    """Return the groups of a config's keys and their titles; "" has the keys without a group."""
    hints = typing.get_type_hints(kind)
    found = {
        field.name: f"{field.name}.*: {inspect.cleandoc(hints[field.name].__doc__ or '').rstrip('.')}"
        for field in dataclasses.fields(kind)
        if dataclasses.is_dataclass(hints[field.name])
    }
    return found | {"": "the run"}


def key_texts(kind: type[AnyConfig]) -> dict[str, KeyText]:
    """Return what is said of every key of a config, in the order of the dataclasses."""
    hints = typing.get_type_hints(kind)
    docs, defaults = _docs(kind), dataclasses.asdict(kind())
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(hints[field.name]):
            docs |= {f"{field.name}.{key}": text for key, text in _docs(hints[field.name]).items()}
            defaults |= {f"{field.name}.{key}": value for key, value in defaults.pop(field.name).items()}
    kinds = kinds_of(kind)
    texts = {}
    for key in config_keys(kind):
        value = defaults[key]
        default = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
        texts[key] = KeyText(" ".join(docs[key].split()), str(kinds[key]), default)
    return texts


def _entries(kind: type[AnyConfig], short: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Return the help of every key: key -> (option with its short form, text with type and default)."""
    forms = {key: form for form, key in short.items() if form != f"--{key}"}
    entries = {}
    for key, said in key_texts(kind).items():
        option = f"{forms[key]}, --{key}" if key in forms else f"--{key}"
        entries[key] = f"{option} VALUE", f"{said.text} ({said.values}; default: {said.default})"
    return entries


def _docs(owner: type) -> dict[str, str]:
    """Return the docstrings of a dataclass's fields, those of the classes it extends as well."""
    found: dict[str, str] = {}
    for base in reversed(owner.__mro__[:-1]):
        for field, text in itertools.pairwise(_class_bodies(base.__module__)[base.__name__]):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
                found[field.target.id] = ast.literal_eval(text.value)
    return found


@functools.cache
def _class_bodies(module: str) -> dict[str, list[ast.stmt]]:
    """The statements of each class of a module, which is parsed once: `inspect.getsource` does it for every class."""
    tree = ast.parse(inspect.getsource(sys.modules[module]))
    return {node.name: node.body for node in tree.body if isinstance(node, ast.ClassDef)}
