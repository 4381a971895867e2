"""Options that verbs share, so that they mean the same in each of them, and what is said about a word that fits none.

`Parser` and the functions `add_*` are for the verbs with options of their own. `take` and `KeyHelp` are for the verbs
that also take every key of a config (train, pretrain, budget). Importing this module imports no torch, and nothing that
a server of exported files can do without: the config is imported where its keys are read.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import itertools
import sys
import textwrap
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from resnest_seg.cli.main import complete, completing
from resnest_seg.errors import ConfigError, command, program, unknown_option, usage
from resnest_seg.inference.protocols import PROTOCOLS, protocol

if TYPE_CHECKING:
    from resnest_seg.config import AnyConfig, DataConfig
    from resnest_seg.data.datasets import SegmentationDataset
    from resnest_seg.labels import LabelSpace

MIB, GIB = 1 << 20, 1 << 30

SHORT = {
    "--epochs": "train.epochs",
    "--lr": "optim.lr",
    "--batch-size": "train.batch_size",
    "--workers": "data.workers",
    "--seed": "seed",
}
"""Short forms of config keys in train, pretrain and budget; --seed is the key itself."""

CHECKPOINT = {"--checkpoint": "model.weights"}
"""What --checkpoint is short for where a segmentation model is trained."""

ENCODER_CHECKPOINT = {"--checkpoint": "model.encoder_weights"}
"""What it is short for where a classifier is trained."""

WIDTH = 100
"""Columns of the help of config keys."""


class Parser(argparse.ArgumentParser):
    """A parser of a verb's options, whose mistakes are `ConfigError`s that name the word and the nearest options.

    Args:
        verb: The verb, whose program is named as it was called.
        description: Text above the options, shown verbatim but for the commands of scripts in it.
    """

    def __init__(self, verb: str, *, description: str) -> None:
        super().__init__(
            prog=program(verb),
            description=usage(description),
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def read(self, argv: Sequence[str] | None) -> argparse.Namespace:
        """Parse the command line; None for that of the process.

        Raises:
            ConfigError: An option is unknown, has no value or a wrong one, or is missing; or a word belongs to none.
        """
        complete(self)
        words = list(sys.argv[1:] if argv is None else argv)
        actions = self._option_string_actions
        options = [
            option for option in actions if option.startswith("--") and actions[option].help != argparse.SUPPRESS
        ]
        if {"-h", "--help"} & set(words):
            return self.parse_args(words)  # which shows the help and exits
        for word in words[: words.index("--")] if "--" in words else words:  # before what is missing by a misspelling
            name = word.partition("=")[0]
            if word.startswith("--") and len(word) > 2 and " " not in name and name not in actions:
                raise unknown_option(name, options)
        required = [action for action in self._actions if action.required and action.option_strings]
        for action in required:
            action.required = False  # else it is reported before stray words
        try:
            found, strays = self.parse_known_args(words)
        finally:
            for action in required:
                action.required = True
        if strays:
            raise unknown_option(strays[0], options) if strays[0].startswith("-") else stray_word(strays[0])
        for action in required:
            if getattr(found, action.dest) is None:
                raise ConfigError(f"{action.option_strings[0]} is missing: {action.help}. --help lists all options.")
        return found

    def error(self, message: str) -> NoReturn:
        """Raise argparse's message as a `ConfigError`."""
        raise ConfigError(f"{message}. --help lists all options.")


def stray_word(word: str) -> ConfigError:
    """Return the error for a word that is neither an option nor the value of one."""
    return ConfigError(f"unexpected word {word!r}: options begin with --. --help lists all.")


def add_checkpoint(
    parser: argparse._ActionsContainer, *, exported: bool, extra: str = "", required: bool = True
) -> None:
    """Add --checkpoint, which has the same values in every verb.

    `--model FILE.py:FUNCTION`, a network of the user's own that takes the weights of the checkpoint, belongs here: no
    verb may use --model for anything else.

    Args:
        parser: A parser or a group of options.
        exported: Exported files are accepted as well.
        extra: What the verb does with it, appended to the help.
        required: The verb cannot do without.
    """
    files = ", or an exported file: .onnx, .pt2, .xml" if exported else ""
    before = "the name of" if exported else "or the name of"
    text = f"a run folder (its best checkpoint), a checkpoint file, {before} a published checkpoint ({command('zoo')} "
    parser.add_argument("--checkpoint", required=required, help=f"{text}lists them){files}{extra}")


def add_dataset(parser: argparse._ActionsContainer, *, default: str, splits: bool = True) -> None:
    """Add --dataset, --data.root, --data.classes and --split: the labelled images that a verb reads.

    Args:
        parser: A parser or a group of options.
        default: What is read without --dataset, in words.
        splits: Add --split, for verbs that read a single split.
    """
    parser.add_argument("--dataset", help=f"synthetic, camvid, ade20k, cityscapes or folder (default: {default})")
    parser.add_argument("--data.root", dest="root", help="folder or zip file of the data set (default: as in training)")
    text = "for folder: the class list, CSV or YAML (default: as in training, else classes.csv in the folder, else the "
    parser.add_argument("--data.classes", dest="classes", metavar="FILE", help=f"{text}checkpoint's classes)")
    if splits:
        parser.add_argument("--split", help="train, val or test (default: the one validated on in training)")


def add_protocol(parser: argparse._ActionsContainer, *, several: bool = False) -> None:
    """Add --protocol, also spelled --protocols; `several` accepts names separated by commas."""
    more = ", several separated by commas" if several else ", see the README"
    parser.add_argument("--protocol", "--protocols", dest="protocol", metavar="NAMES" if several else "NAME",
                        default="whole", help=f"{', '.join(PROTOCOLS)}{more} (default: whole)")  # fmt: skip


def protocol_names(words: str, *, several: bool = False) -> list[str]:
    """Return the protocols that --protocol names, before anything is loaded.

    Raises:
        ConfigError: A name is unknown, or there are several where one makes sense.
    """
    names = [name.strip() for name in words.split(",")]
    for name in names:
        protocol(name)
    if len(names) > 1 and not several:
        raise ConfigError(f"--protocol takes one protocol here, not {len(names)} ({words}).")
    return names


def add_memory(parser: argparse._ActionsContainer, *, what: str, default: str) -> None:
    """Add --memory in GiB; `what` is limited, in words. `memory_bytes` parses it."""
    parser.add_argument(
        "--memory", metavar="GIB", help=f"{what} in GiB, such as 4 or 0.5, or 512MiB (default: {default})"
    )


def add_workers(parser: argparse._ActionsContainer, *, default: int) -> None:
    """Add --workers: processes that load data, in every verb."""
    parser.add_argument("--workers", type=int, default=default, help="loader processes; 0 loads in the main process "
                        f"(default: {default})")  # fmt: skip


def add_execution(parser: argparse._ActionsContainer) -> None:
    """Add --device, --precision, --compile and --batch: how a model is run."""
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ... (default: auto)")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32", help="default: fp32")
    parser.add_argument("--compile", action="store_true", help="torch.compile: slow at first, then faster")
    parser.add_argument("--batch", type=int, help="images, windows or tiles per call of the model (default: what fits)")


def number(word: str, option: str, low: float, high: float) -> float:
    """Parse a number of the command line.

    Raises:
        ConfigError: The value is not a number, or is out of range.
    """
    try:
        value = float(word)
    except ValueError:
        raise ConfigError(f"{option} must be a number from {low} to {high}, not {word!r}.") from None
    if not low <= value <= high:  # true for NaN
        raise ConfigError(f"{option} must be from {low} to {high}, not {value}.")
    return value


def memory_bytes(word: str, *, option: str = "--memory", low: float = 0.001, high: float = 65536) -> int:
    """Parse a size of memory: a number of GiB, or one with the unit behind it, GiB or MiB.

    Args:
        word: The value: "4", "0.5", "4GiB", "512MiB".
        option: Its option.
        low: Lower bound in GiB.
        high: Upper bound in GiB.

    Returns:
        Bytes.

    Raises:
        ConfigError: The value is not a size, or is out of range.
    """
    if word.endswith("MiB"):
        return int(number(word.removesuffix("MiB"), f"{option} in MiB", low * 1024, high * 1024) * MIB)
    return int(number(word.removesuffix("GiB"), option, low, high) * GIB)


def open_dataset(
    options: argparse.Namespace,
    trained: DataConfig,
    label_space: LabelSpace | None,
    *,
    name: str,
    split: str,
    allow_missing: bool = False,
) -> SegmentationDataset:
    """Open a split of the data set that the options of `add_dataset` name.

    What they leave out is that of the checkpoint's training, if that had the same data set. The classes of a folder
    without a class list are the checkpoint's: what its masks alone show may be fewer.

    Args:
        options: The command line.
        trained: The data of the checkpoint's training.
        label_space: The classes of the checkpoint, where they are known.
        name: The data set.
        split: Its split.
        allow_missing: See `build_dataset`.

    Raises:
        ConfigError: --data.classes is given for a data set whose classes are fixed.
        DatasetError: The data set is missing or incomplete.
    """
    from resnest_seg.data.build import build_dataset, data_root
    from resnest_seg.data.folder import lists_classes

    if options.classes is not None and name != "folder":
        raise ConfigError(f"--data.classes is for --dataset folder; the classes of {name} are fixed.")
    same = name == trained.dataset
    root = options.root or (trained.root if same else None)
    classes: str | LabelSpace | None = options.classes
    if name == "folder" and classes is None:
        classes = trained.classes if same and trained.classes and Path(trained.classes).is_file() else None
        if classes is None and label_space is not None and not lists_classes(data_root(name, root)):
            classes = label_space
    return build_dataset(name, root=root, split=split, classes=classes, allow_missing=allow_missing)


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
        Own("--allow-changes", "KEYS", "keys that a resumed run may change, separated by commas"),
        Own("--dry-run", "", "try the run in two steps, without leaving files"),
    )


def take(
    argv: Sequence[str],
    own: Sequence[Own],
    *,
    kind: type[AnyConfig] | None = None,
    short: Mapping[str, str] = SHORT,
) -> tuple[dict[str, str | None], list[str]]:
    """Separate a verb's own options from overrides of config keys, which may be given by their short forms.

    Args:
        argv: The command line.
        own: The verb's options; each takes `--name value` and `--name=value`.
        kind: The config, whose keys are options as well; None is that of a segmentation model.
        short: Option -> the key that it is short for.

    Returns:
        Own option -> its value, "yes" for a flag, None if it is not given; and the overrides, with whole keys.

    Raises:
        ConfigError: An option is unknown, lacks its value, or is given in two forms with different values; or a word
            belongs to none.
    """
    from resnest_seg.config import RunConfig, config_keys

    flags = {option.name for option in own if not option.value}
    taken: dict[str, str | None] = dict.fromkeys(option.name for option in own)
    keys = [f"--{key}" for key in config_keys(kind or RunConfig)]
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
        kind: The config; None is that of a segmentation model.
        short: Option -> the key that it is short for.
    """

    verb: str
    arguments: str
    description: str
    own: Sequence[Own]
    usual: Sequence[str]
    kind: type[AnyConfig] | None = None
    short: Mapping[str, str] = dataclasses.field(default_factory=lambda: SHORT)

    def show_if_asked(self, argv: Iterable[str]) -> None:
        """Print the help and exit if the command line asks for it."""
        if completing():
            from resnest_seg.config import RunConfig, config_keys

            parser, kind = argparse.ArgumentParser(), self.kind or RunConfig
            for name in [option.name for option in self.own] + [f"--{key}" for key in config_keys(kind)]:
                if name not in parser._option_string_actions:
                    parser.add_argument(name)
            complete(parser)
        words = set(argv)
        if words & {"-h", "--help", "--help-all"}:
            print(self.text(everything="--help-all" in words))
            raise SystemExit(0)

    def text(self, *, everything: bool = False) -> str:
        """Return the help: the usual keys and the verb's options, or these and all keys in their groups."""
        from resnest_seg.config import RunConfig

        kind = self.kind or RunConfig
        entries = _entries(kind, self.short)
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
        for group, title in _groups(kind).items():
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


def _groups(kind: type[AnyConfig]) -> dict[str, str]:
    """Return the groups of a config's keys and their titles; "" has the keys without a group."""
    hints = typing.get_type_hints(kind)
    groups = {
        field.name: f"{field.name}.*: {inspect.cleandoc(hints[field.name].__doc__ or '').rstrip('.')}"
        for field in dataclasses.fields(kind)
        if dataclasses.is_dataclass(hints[field.name])
    }
    return groups | {"": "the run"}


def _entries(kind: type[AnyConfig], short: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Return the help of every key: key -> (option with its short form, text with type and default)."""
    from resnest_seg.config import config_keys, kinds_of

    hints = typing.get_type_hints(kind)
    docs, defaults = _docs(kind), dataclasses.asdict(kind())
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(hints[field.name]):
            docs |= {f"{field.name}.{key}": text for key, text in _docs(hints[field.name]).items()}
            defaults |= {f"{field.name}.{key}": value for key, value in defaults.pop(field.name).items()}
    forms = {key: form for form, key in short.items() if form != f"--{key}"}
    kinds = kinds_of(kind)
    entries = {}
    for key in config_keys(kind):
        value = defaults[key]
        default = "null" if value is None else str(value).lower() if isinstance(value, bool) else value
        option = f"{forms[key]}, --{key}" if key in forms else f"--{key}"
        entries[key] = f"{option} VALUE", f"{docs[key]} ({kinds[key]}; default: {default})"
    return entries


def _docs(owner: type) -> dict[str, str]:
    """Return the docstrings of a dataclass's fields, those of the classes it extends as well."""
    found: dict[str, str] = {}
    for base in reversed(owner.__mro__[:-1]):
        (body,) = (node.body for node in ast.parse(inspect.getsource(base)).body if isinstance(node, ast.ClassDef))
        for field, text in itertools.pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
                found[field.target.id] = ast.literal_eval(text.value)
    return found
