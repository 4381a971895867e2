"""Options that verbs share, so that they mean the same in each of them, and what is said about a word that fits none.

The functions `add_*` add groups of options to a `Parser`. Importing this module imports no torch, and nothing that a
server of exported files can do without.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from resnest_seg.cli.main import complete
from resnest_seg.errors import ConfigError, DatasetError, command, program, unknown_option, usage
from resnest_seg.files import check_output_folder
from resnest_seg.inference.protocols import PROTOCOLS, protocol

if TYPE_CHECKING:
    from resnest_seg.config import DataConfig
    from resnest_seg.data.datasets import SegmentationDataset
    from resnest_seg.io.bands import BandReader
    from resnest_seg.labels import LabelSpace
    from resnest_seg.storage.sources import Source

MIB, GIB = 1 << 20, 1 << 30


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
            if strays[0].startswith("-"):
                raise unknown_option(strays[0], options)
            before = [word for word in words[: words.index(strays[0])] if word.startswith("--")]
            last = before[-1] if before else ""
            repeated = last if isinstance(actions.get(last), argparse._AppendAction) else None
            raise stray_word(strays[0], repeated=repeated)
        for action in required:
            if getattr(found, action.dest) is None:
                raise ConfigError(f"{action.option_strings[0]} is missing: {action.help}. --help lists all options.")
        return found

    def changed(self, found: argparse.Namespace) -> list[str]:
        """The options that have another value than they have when they are left out, in the order of the help."""
        return [
            action.option_strings[0]
            for action in self._actions
            if action.option_strings and getattr(found, action.dest, action.default) != action.default
        ]

    def error(self, message: str) -> NoReturn:
        """Raise argparse's message as a `ConfigError`."""
        raise ConfigError(f"{message}. --help lists all options.")


def stray_word(word: str, *, repeated: str | None = None) -> ConfigError:
    """Return the error for a word that is neither an option nor the value of one.

    Args:
        word: The word.
        repeated: The option whose second value it seems to be, of those that are given once for each value.
    """
    if repeated is not None:
        return ConfigError(f"unexpected word {word!r}: give {repeated} once for each, as in {repeated} A {repeated} B.")
    return ConfigError(f"unexpected word {word!r}: options begin with --. --help lists all.")


def add_checkpoint(
    parser: argparse._ActionsContainer,
    *,
    exported: bool,
    extra: str = "",
    required: bool = True,
    several: bool = False,
) -> None:
    """Add --checkpoint, which has the same values in every verb.

    See `add_model_option` for a checkpoint with parts of the user's own.

    Args:
        parser: A parser or a group of options.
        exported: Exported files are accepted as well.
        extra: What the verb does with it, appended to the help.
        required: The verb cannot do without.
        several: Take a list of them, one each time that the option is given, whose mean probabilities are used.
    """
    files = ", or an exported file: .onnx, .pt2, .xml" if exported else ""
    before = "the name of" if exported else "or the name of"
    text = f"a run folder (its best checkpoint), a checkpoint file, {before} a published checkpoint ({command('zoo')} "
    if several:
        extra += "; several of them (--checkpoint A --checkpoint B), or the folder of train --folds: the mean of "
        extra += "their probabilities"
    parser.add_argument("--checkpoint", required=required, action="append" if several else "store",
                        help=f"{text}lists them){files}{extra}")  # fmt: skip


DATASET_OPTIONS = {
    "root": "--data.root",
    "data_images": "--data.images",
    "data_masks": "--data.masks",
    "window": "--data.window",
    "window_overlap": "--data.window_overlap",
    "bands": "--data.bands",
    "nodata": "--data.nodata",
    "classes": "--data.classes",
    "cache": "--data.cache",
    "cache_size": "--data.cache_size",
    "positive": "--data.positive",
    "split": "--split",
}
"""Options of `add_dataset` beside --dataset, by their names in the namespace: they say how a data set is read."""


def add_dataset(parser: argparse._ActionsContainer, *, default: str, splits: bool = True) -> None:
    """Add --dataset, --data.root, its fellows and --split: the labelled images that a verb reads.

    Args:
        parser: A parser or a group of options.
        default: What is read without --dataset, in words.
        splits: Add --split, for verbs that read a single split.
    """
    parser.add_argument("--dataset", help="synthetic, camvid, ade20k, cityscapes, folder, or shards "
                        f"(packed) (default: {default})")  # fmt: skip
    parser.add_argument("--data.root", dest="root", help="folder, zip file or address (s3://...) of the data set "
                        "(default: as in training)")  # fmt: skip
    for key, what in (("images", "photos"), ("masks", "masks")):
        text = f'for folder: the {what} below the root, a folder or a pattern such as "{what}/{{split}}/**/*.png"'
        parser.add_argument(
            f"--data.{key}",
            dest=f"data_{key}",
            metavar="PATTERN",
            help=f"{text} (default: as in training, or recognised)",
        )
    parser.add_argument("--data.window", dest="window", type=_window, metavar="PIXELS", help="for folder: TIFF "
                        "files by windows of this side, null for whole images (default: as in training)")  # fmt: skip
    parser.add_argument("--data.window_overlap", dest="window_overlap", type=int, metavar="PIXELS", help="context "
                        "around a window (default: as in training, else an eighth)")  # fmt: skip
    parser.add_argument("--data.bands", dest="bands", metavar="BANDS", help="bands of raster files, numbers or names "
                        "with commas, such as 4,3,2,8 (default: as in training, else photos)")  # fmt: skip
    parser.add_argument("--data.nodata", dest="nodata", type=float, help="with bands: the value of pixels without data")
    text = "for folder: the class list, CSV or YAML (default: as in training, else classes.csv in the folder, else the "
    parser.add_argument("--data.classes", dest="classes", metavar="FILE", help=f"{text}checkpoint's classes)")
    parser.add_argument("--data.cache", dest="cache", metavar="FOLDER", help="folder for copies of what is read from "
                        "an address, or null (default: as in training, else none)")  # fmt: skip
    parser.add_argument("--data.cache_size", dest="cache_size", metavar="GIB", help="limit of the copies in GiB, "
                        "such as 20, or 512MiB (default: as in training, else 20)")  # fmt: skip
    parser.add_argument("--data.positive", dest="positive", metavar="CLASSES", help="of a binary task: the classes "
                        "that are the object, separated by commas (default: as in training)")  # fmt: skip
    if splits:
        parser.add_argument("--split", help="train, val or test (default: the one validated on in training)")


def _window(word: str) -> int:
    """The side of a window; 0 for null."""
    return 0 if word == "null" else int(word)


def windows_in(options: argparse.Namespace, trained: DataConfig | None) -> tuple[int | None, int | None]:
    """Window and overlap of the options of `add_dataset`; what they leave out is as in training.

    Raises:
        ConfigError: One is out of range.
    """
    from resnest_seg.config import RunConfig
    from resnest_seg.config_reading import kinds_of

    window = (None if trained is None else trained.window) if options.window is None else options.window or None
    overlap = options.window_overlap
    if overlap is None and trained is not None and window == trained.window:
        overlap = trained.window_overlap
    for key, value in (("data.window", window), ("data.window_overlap", overlap)):
        kinds_of(RunConfig)[key].check(f"--{key}", value)
    return window, overlap


def cache_in(options: argparse.Namespace, trained: DataConfig) -> tuple[str | None, float]:
    """Folder and size in GiB of the cache of the options of `add_dataset`; what they leave out is as in training.

    Raises:
        ConfigError: The size is none, or out of range.
    """
    size = trained.cache_size
    if options.cache_size is not None:
        size = memory_bytes(options.cache_size, option="--data.cache_size", high=1 << 20) / GIB
    if options.cache == "null":
        return None, size
    if options.cache is None and trained.cache is not None:
        try:
            check_output_folder(trained.cache)
        except ConfigError:  # the run was trained on another machine
            return None, size
    return trained.cache if options.cache is None else options.cache, size


def place_in(options: argparse.Namespace, trained: DataConfig, *, name: str) -> str | Path | Source:
    """Where the data set `name` of the options of `add_dataset` is; an address is listed, see `opened_root`."""
    from resnest_seg.data.build import opened_root

    cache, size = cache_in(options, trained)
    root = options.root or (trained.root if name == trained.dataset else None)
    return opened_root(name, None if name == "synthetic" else root, cache=cache, cache_size=size)


def add_protocol(parser: argparse._ActionsContainer, *, several: bool = False) -> None:
    """Add --protocol, also spelled --protocols; `several` accepts names separated by commas."""
    more = ", several separated by commas" if several else ", see protocols.html of the site"
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

    What they leave out is that of the checkpoint's training, if that had the same data set; its training split has the
    samples that `data.samples` named, unless --dataset is given. The classes of a folder without a class list are the
    checkpoint's: what its masks alone show may be fewer.

    Args:
        options: The command line.
        trained: The data of the checkpoint's training.
        label_space: The classes of the checkpoint, where they are known.
        name: The data set.
        split: Its split.
        allow_missing: See `build_dataset`, also for the errors; --data.classes are for a folder only.
    """
    from resnest_seg.data.build import build_dataset, stored_as
    from resnest_seg.data.folder import lists_classes
    from resnest_seg.storage.remote import is_address

    if options.classes is not None and name != "folder":
        raise ConfigError(f"--data.classes is for --dataset folder; the classes of {name} are fixed.")
    task = _task_of(label_space, options.positive)
    same = name == trained.dataset
    place = place_in(options, trained, name=name)
    alike = trained if same and stored_as(name, place) == name else None  # of packed files, nothing needs to be said
    images, masks = options.data_images, options.data_masks
    if alike is not None and images is None and masks is None:
        images, masks = alike.images, alike.masks
    classes: str | LabelSpace | None = options.classes
    if stored_as(name, place) == "folder" and classes is None:
        given = "" if alike is None else alike.classes or ""
        classes = given if is_address(given) or Path(given).is_file() else None
        known = classes is not None or label_space is None
        if not known and not lists_classes(place, images=images, masks=masks):
            classes = label_space
    window, overlap = windows_in(options, alike)
    dataset = build_dataset(
        name,
        root=place,
        split=split,
        images=images,
        masks=masks,
        classes=classes,
        window=window,
        window_overlap=overlap,
        allow_missing=allow_missing,
        task=task,
        positive=options.positive or (trained.positive if same else None),
    )
    dataset.read_as(bands_in(options, trained))
    listed = options.dataset is None and split == "train" and trained.samples is not None
    return _samples_of_run(dataset, trained) if listed else dataset


def _task_of(label_space: LabelSpace | None, positive: str | None) -> str:
    """Return the task of a checkpoint's classes; only a binary one has an object that --data.positive names."""
    task = "multiclass" if label_space is None else label_space.task
    if positive is not None and task != "binary":
        raise ConfigError(
            f"--data.positive names the object of a binary task, and the checkpoint's task is {task}: leave "
            "--data.positive out, or name a binary checkpoint."
        )
    return task


def _samples_of_run(dataset: SegmentationDataset, trained: DataConfig) -> SegmentationDataset:
    """Return what a run with `data.samples` was trained on: the samples of its training split that the list names.

    A line on standard error says so; `--dataset` asks for all samples.

    Raises:
        DatasetError: The list is not there, or does not fit the data set.
    """
    from resnest_seg.data.build import named_samples

    assert trained.samples is not None
    try:
        chosen = named_samples(dataset, trained.samples)
    except DatasetError as error:
        raise DatasetError(
            f"the run was trained on the samples of a list: {str(error).rstrip('.')}. To take all samples of the "
            f"split, name the data set: --dataset {trained.dataset}."
        ) from None
    if os.environ.get("RANK", "0") == "0":
        print(
            f"train split: the {len(chosen)} samples that the run's data.samples names, {trained.samples}",
            file=sys.stderr,
        )
    return chosen


def bands_in(options: argparse.Namespace, trained: DataConfig) -> BandReader | None:
    """How the options of `add_dataset` have bands read; what they leave out is as in training.

    Raises:
        ConfigError: They name other than as many bands as the model takes; a no-data value without bands.
    """
    from resnest_seg.config import RunConfig
    from resnest_seg.config_reading import kinds_of
    from resnest_seg.io.bands import BandReader

    bands, nodata = trained.bands, trained.nodata if options.nodata is None else options.nodata
    if options.bands is not None:
        bands = kinds_of(RunConfig)["data.bands"].read(options.bands)
        RunConfig.from_dict({"data": {"bands": bands}})  # which says what is wrong with them
    if bands is None and nodata is not None:
        raise ConfigError("--data.nodata belongs to --data.bands: name the bands as well, such as --data.bands 1,2,3.")
    mean = trained.pixel_mean
    if bands is not None and mean is not None and len(bands) != len(mean):
        names = "red, green, blue" if trained.bands is None else ", ".join(map(str, trained.bands))
        raise ConfigError(
            f"model.in_channels is {len(mean)}, and --data.bands names {len(bands)} bands: name {len(mean)}, in the "
            f"order of those of training ({names})."
        )
    return None if bands is None else BandReader(bands, nodata, mean)


MODEL_HELP = "a network of your own: FUNCTION(num_classes) of a Python file, which is run, returns a Segmenter"


def add_model_option(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add `--model`."""
    parser.add_argument("--model", metavar="FILE.py:FUNCTION", help=MODEL_HELP)
