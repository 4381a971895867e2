"""Train a segmentation model.

python tools/train_seg.py --dataset synthetic
python tools/train_seg.py --dataset ade20k --data.root /data/ade20k --train.accumulation 4
python tools/train_seg.py --dataset folder --data.root mine --data.images "raw/*.jpg" --data.masks "truth/*_L.png"
python tools/train_seg.py --dataset ade20k --budget auto
python tools/train_seg.py --config my_run.yaml --optim.lr 0.02 --output runs/my_run
python tools/train_seg.py --resume runs/my_run
python tools/train_seg.py --dataset camvid --seed 0,1,2      # one run per seed, one after the other, and their mean
python tools/train_seg.py --dataset camvid --folds 5         # cross-validation: each fifth by a model of the others
python tools/train_seg.py --dataset ade20k --output runs/my_run --resume auto     # for schedulers: start or resume
torchrun --nproc-per-node 8 --max-restarts 3 tools/train_seg.py --dataset ade20k --output runs/my_run

Exit codes: 0 for complete training; 2 for invalid input, a full disk, or a run folder in use by another process; 130
after Ctrl-C and 143 after SIGTERM, with a checkpoint saved.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gc
import itertools
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Self

from resnest_seg.cli.parsing.keys import CHECKPOINT, SHORT, KeyHelp, Own, run_options, take
from resnest_seg.cli.parsing.options import MODEL_HELP, number
from resnest_seg.config import COUNT, AnyConfig, C, RunConfig, load_run_config
from resnest_seg.config_doubts import OF_ANY_NETWORK
from resnest_seg.config_reading import flatten, kinds_of
from resnest_seg.config_types import check_option
from resnest_seg.errors import EXIT_INTERRUPTED, EXIT_TERMINATED, CheckpointError, ConfigError, command, unknown_name
from resnest_seg.files import check_output_folder, claimed, find_config, next_free, numbered, shipped_configs
from resnest_seg.inference.own_network import own_network

if TYPE_CHECKING:
    from resnest_seg.evaluation.evaluator import EvaluatedImage
    from resnest_seg.training.assembly import Parts
    from resnest_seg.training.trainer import Trainer

DEFAULT_CONFIGS = {
    "synthetic": "synthetic_fcn_resnest14_tiny",
    "camvid": "camvid_deeplabv3_resnest50",
    "ade20k": "ade20k_deeplabv3_resnest50",
    "cityscapes": "cityscapes_deeplabv3_resnest50",
    "folder": "folder_deeplabv3_resnest50",
    "shards": "folder_deeplabv3_resnest50",
}
"""Data set -> the shipped config that --dataset trains with."""


@dataclasses.dataclass(frozen=True)
class Folds:
    """A cross-validation instead of one run.

    Attributes:
        count: How many parts the training split is divided into.
        group_by: A regular expression; what matches alike stays in one part.
        predictions: Folder of the predictions of all samples, each by the model that has not seen it; None writes none.
    """

    count: int
    group_by: str | None = None
    predictions: str | None = None


@dataclasses.dataclass(frozen=True)
class Order(Generic[C]):
    """The parsed command line.

    Attributes:
        config: The config of the run.
        output: The run folder.
        resume: "no", "yes", or "auto": if there is a checkpoint in the folder.
        allow: Config keys that a resumed run may change.
        dry: Do a dry run only.
        budget: Memory for which the batch is divided: "auto", GiB per device, or None for the config's division.
        network: FILE.py:FUNCTION that builds the user's own network, or None.
        series: For a new run without an output: the first of the folders that it may take, runs/NAME.
        folds: Train a run for each fold, and score each on its held-out part.
    """

    config: C
    output: str
    resume: str = "no"
    allow: tuple[str, ...] = ()
    dry: bool = False
    budget: str | None = None
    network: str | None = None
    series: Path | None = None
    folds: Folds | None = None

    @contextlib.contextmanager
    def placed(self) -> Iterator[Self]:
        """Within this, the run folder that was chosen by default is made, so that no other start chooses it.

        Several processes make none: they have chosen alike, which `Trainer` checks.
        """
        with contextlib.ExitStack() as held:
            placed = self
            if self.series is not None and int(os.environ.get("WORLD_SIZE", "1")) == 1:
                placed = dataclasses.replace(self, output=str(held.enter_context(claimed(self.series))))
            if self.series not in (None, Path(placed.output)) and os.environ.get("RANK", "0") == "0":
                print(f"{self.series} exists: this run goes to {placed.output}", file=sys.stderr)
            yield placed


OWN = (
    Own("--dataset", "NAME", f"train with the shipped config of a data set: {', '.join(DEFAULT_CONFIGS)}"),
    Own(
        "--config",
        "FILE",
        "train with this YAML file, in which every key can be set, or the shipped config of this name",
    ),
    *run_options("--dataset or --config"),
    Own(
        "--budget",
        "GIB",
        "choose train.accumulation and model.checkpointing so that the batch fits: auto takes the memory of the "
        "devices, a number is GiB for each; not with --model",
    ),
    Own("--model", "FILE.py:FUNCTION", MODEL_HELP),
    Own(
        "--folds",
        "K",
        "cross-validation: divide the training split into K parts, train a run without each, into OUTPUT/fold_0 ..., "
        "and score it on its part; OUTPUT is runs/NAME_folds without --output",
    ),
    Own(
        "--group-by",
        "PATTERN",
        "with --folds: samples whose names have the same match of this regular expression stay in one part, such as "
        "the frames of a video: '^[^_]+'",
    ),
    Own(
        "--save-predictions",
        "DIR",
        "with --folds: write the labels of every training sample, as PNG, by the model that has not seen it",
    ),
)
"""The options besides the config's keys."""

USUAL = (
    "data.root",
    "model.encoder",
    "model.head",
    "model.weights",
    "train.epochs",
    "train.batch_size",
    "optim.lr",
    "data.crop_size",
    "data.workers",
    "train.precision",
    "seed",
    "output",
)
"""The keys that people use."""

HELP = KeyHelp(
    verb="train",
    arguments="(--dataset NAME | --config FILE | --resume FOLDER) [--KEY VALUE ...]",
    description=__doc__,
    own=OWN,
    usual=USUAL,
    short=SHORT | CHECKPOINT,
)


def parse(argv: Sequence[str]) -> Order[RunConfig]:
    """Read the command line, and the environment that torchrun's elastic agent sets."""
    HELP.show_if_asked(argv)
    chosen, overrides = take(argv, OWN, short=SHORT | CHECKPOINT)
    dataset, config, resume, changes, dry, budget, network, *_ = (chosen[option.name] for option in OWN)
    allow = tuple(key.strip() for key in (changes or "").split(",") if key.strip())
    if resume is not None and resume != "auto":
        if dataset or config:
            raise ConfigError("--resume FOLDER takes the config in the run folder: neither --dataset nor --config.")
        if dry:
            raise ConfigError("--dry-run tries a run out from its start: it does not go with --resume FOLDER.")
        if budget:
            raise ConfigError("--budget does not go with --resume FOLDER: the batch was divided when the run began.")
        if not (Path(resume) / "config.yaml").is_file():
            seeds = sorted(path.name for path in _with_seeds(Path(resume)))
            hint = f" For {seeds[0]} and its fellows, give their --seed 0,1,2 as well." if seeds else ""
            raise CheckpointError(f"{resume} is not a run folder that can be resumed: it has no config.yaml.{hint}")
        run = load_run_config(Path(resume) / "config.yaml", overrides=overrides)
        check_same_folder(resume, run.output, overrides)
        return Order(run, resume, "yes", allow, network=network, folds=folds_in(chosen, Path(resume)))
    path = config_path(dataset, config)
    run = load_run_config(path, overrides=[*(["--data.dataset=shards"] if dataset == "shards" else []), *overrides])
    folds = folds_in(chosen)
    order = ordered(
        run, path, run.model.head, begun(resume), allow=allow, dry=dry is not None, budget=budget, network=network,
        suffix="" if folds is None else "_folds",
    )  # fmt: skip
    if network is not None and (order.resume == "no" or not (Path(order.output) / "config.yaml").is_file()):
        check_network_keys(overrides)
    order = dataclasses.replace(order, folds=folds)
    if budget not in (None, "auto"):
        number(budget, "--budget", 0.01, 65536)
    return order


def check_network_keys(overrides: Sequence[str]) -> None:
    """Refuse keys of the network beside --model, whose function alone decides them.

    Raises:
        ConfigError: Names them.
    """
    keys = [word.partition("=")[0] for word in overrides if word.startswith("--model.")]
    unread = [key for key in dict.fromkeys(keys) if key.removeprefix("--model.") not in OF_ANY_NETWORK]
    if unread:
        raise ConfigError(
            f"{' and '.join(unread)} would have no effect, because the function of --model builds the network: leave "
            f"{'it' if len(unread) == 1 else 'them'} out, and change the function. Weights "
            "of the whole network are --model.weights."
        )


def check_same_folder(resume: str, output: str | None, overrides: Sequence[str]) -> None:
    """Refuse another --output beside --resume FOLDER, which would not be written to."""
    given = any(word.partition("=")[0] == "--output" for word in overrides)
    if given and Path(output or "").absolute() != Path(resume).absolute():
        raise ConfigError(
            f"--resume {resume} goes on in that folder, and --output {output} is another one: leave it out, or copy "
            f"the folder and resume the copy. A new run from its weights: --model.weights {resume} instead of --resume."
        )


def folds_in(chosen: Mapping[str, str | None], folder: Path | None = None) -> Folds | None:
    """The cross-validation that a command line asks for, or that a folder which is gone on with is.

    Raises:
        ConfigError: No number of folds, options of folds without --folds, or other folds than the folder's; torchrun.
    """
    from resnest_seg.inference.ensemble import FOLDS, read_fold_record

    word, group_by, predictions = (chosen[name] for name in ("--folds", "--group-by", "--save-predictions"))
    if word is not None and not word.isdecimal():
        raise ConfigError(f"--folds must be a number of parts, such as 5, not {word!r}.")
    count = None if word is None else int(word)
    check_option("--folds", count, 2, COUNT)
    if folder is not None and (folder / FOLDS).is_file():
        record = read_fold_record(folder / FOLDS)
        for option, given, known in (("--folds", count, record["folds"]), ("--group-by", group_by, record["group_by"])):
            if given not in (None, known):
                raise ConfigError(f"{option} is {given}, and the folds in {folder} were begun with {known}: leave it "
                                  "out, or choose another --output.")  # fmt: skip
        count, group_by = record["folds"], record["group_by"]
    elif folder is not None and word is not None:
        raise ConfigError(f"--folds: {folder} is one run, not the folder of folds.")
    if count is None:
        for option, given in (("--group-by", group_by), ("--save-predictions", predictions)):
            if given is not None:
                raise ConfigError(f"{option} is for a cross-validation: give --folds as well.")
        return None
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("folds are trained one after the other by one process: run this without torchrun.")
    if chosen["--budget"] is not None and chosen["--dry-run"] is None:
        raise ConfigError("--budget does not go with --folds, all of which need one division of the batch: see which "
                          "by --budget and --dry-run, and give that as --train.accumulation.")  # fmt: skip
    return Folds(count, group_by, predictions)


def ordered(
    run: C,
    path: Path,
    head: str,
    may_have_begun: bool,
    *,
    allow: tuple[str, ...],
    dry: bool,
    budget: str | None = None,
    network: str | None = None,
    suffix: str = "",
) -> Order[C]:
    """Return the order of a run that is not resumed by the name of its folder: choose the run folder.

    Without an output it is the next free one of runs/NAME, runs/NAME-2 ...; of a run that may have begun before, the
    last of them.

    Args:
        run: The config.
        path: Its file.
        head: The word for what is on the encoder, in the name of the run.
        may_have_begun: Resume it if there is a checkpoint.
        allow: Config keys that a resumed run may change.
        dry: Do a dry run only.
        budget: See `Order`.
        network: See `Order`.
        suffix: Behind NAME.

    Raises:
        ConfigError: A run that begins shall change keys.
    """
    if allow and not may_have_begun:
        raise ConfigError(
            f"--allow-changes {','.join(allow)} is about a run that is resumed, and this one begins: leave it out, or "
            "resume the run with --resume FOLDER, or --resume auto where it may not have begun."
        )
    resume = "auto" if may_have_begun else "no"
    if run.output is not None:
        return Order(run, run.output, resume, allow, dry, budget, network)
    series = Path("runs") / f"{run_name(run, path, head) if network is None else own_name(run, network)}{suffix}"
    if may_have_begun:
        return Order(run, str(list(numbered(series).values() or [series])[-1]), resume, allow, dry, budget, network)
    return Order(run, str(next_free(series)), resume, allow, dry, budget, network, series)


def run_name(run: AnyConfig, path: Path, head: str) -> str:
    """Return the name of a run without an output: that of the config file, or of what a shipped config became.

    Args:
        run: The resolved config, with the options of the command line.
        path: Its file.
        head: The word for what is on the encoder.

    Returns:
        <dataset>_<head>_<encoder>, in family mmseg with its name behind, as shipped configs are called; for a file of
        the user's own its name without the suffix.
    """
    if path.resolve() not in shipped_configs().values():
        return path.stem
    family = "_mmseg" if isinstance(run, RunConfig) and run.model.family == "mmseg" else ""
    return re.sub(r"[^\w.-]", "-", f"{run.data.dataset}_{head}_{run.model.encoder}{family}")


def own_name(run: AnyConfig, network: str) -> str:
    """Return the name of a run without an output whose network is one's own: <dataset>_<file of --model>."""
    return f"{run.data.dataset}_{Path(network).stem}"


def begun(resume: str | None) -> bool:
    """True if the run may have started before: with --resume auto, or after a restart by torchrun's agent."""
    return resume == "auto" or int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def config_path(dataset: str | None, config: str | None) -> Path:
    """Return the config file of --dataset or --config, exactly one of which is given."""
    if dataset is not None and dataset not in DEFAULT_CONFIGS:
        raise unknown_name("data set", dataset, DEFAULT_CONFIGS)
    if (dataset is None) == (config is None):
        raise ConfigError("give one of --dataset NAME, --config FILE or --resume FOLDER; --help shows every key.")
    return find_config(config if config is not None else DEFAULT_CONFIGS[str(dataset)])


def seeds_in(argv: Sequence[str]) -> list[int]:
    """Return the seeds of `--seed 0,1,2`; none where there is one seed or no such option.

    Raises:
        ConfigError: One is no whole number, or is given twice.
    """
    words = dict(itertools.pairwise(argv)) | dict(word.split("=", 1) for word in argv if word.startswith("--seed="))
    text = words.get("--seed", "")
    if "," not in text:
        return []
    kind, seeds = kinds_of(RunConfig)["seed"], list[int]()
    for word in filter(None, (part.strip() for part in text.split(","))):
        seed = kind.read(word)
        kind.check("every value of --seed", seed)
        if seed in seeds:
            raise ConfigError(f"--seed {text} names {seed} twice: one run per seed.")
        seeds.append(seed)
    return seeds


def parse_seeds(argv: Sequence[str], seeds: Sequence[int]) -> list[Order[RunConfig]]:
    """Read a command line with several seeds: each order is that of its seed alone, into FOLDER_seed<number>.

    FOLDER is --output, or the name that a run of one seed would have, or with `--resume FOLDER` that one: there, a seed
    whose folder is missing begins, with the config of the others.
    """
    HELP.show_if_asked(argv)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            "several seeds are trained one after the other by one process. With torchrun, start one seed at a time: "
            f"--seed {seeds[0]} --output NAME_seed{seeds[0]}, then --seed {seeds[1]} --output NAME_seed{seeds[1]} ..."
        )
    chosen, _ = take(argv, OWN, short=SHORT | CHECKPOINT)
    resume = chosen["--resume"]
    if resume in (None, "auto"):
        orders = [parse([*argv, f"--seed={seed}"]) for seed in seeds]
        base = Path(orders[0].output) if orders[0].config.output is not None else _series(orders[0], chosen, seeds)
        return [_placed(order, base) for order in orders]
    base = Path(str(resume))
    started = [folder for seed in seeds if ((folder := _seed_folder(base, seed)) / "config.yaml").is_file()]
    if not started:
        raise CheckpointError(
            f"{_seed_folder(base, seeds[0])} is not a run folder that can be resumed: it has no config.yaml. --resume "
            f"FOLDER with several seeds means the folders FOLDER_seed{seeds[0]}, FOLDER_seed{seeds[1]} ..."
        )
    orders = []
    for seed in seeds:
        folder = _seed_folder(base, seed)
        source = folder if folder in started else started[0]
        order = parse([*argv, f"--resume={source}", f"--seed={seed}"])
        how = "yes" if folder in started else "auto"
        orders.append(_placed(dataclasses.replace(order, resume=how), base))
    return orders


def _series(order: Order[RunConfig], chosen: Mapping[str, str | None], seeds: Sequence[int]) -> Path:
    """Return the first of runs/NAME, runs/NAME-2 ... of which no seed has a folder; of resumed runs the last begun."""
    name = own_name(order.config, order.network) if order.network else run_name(
        order.config, config_path(chosen["--dataset"], chosen["--config"]), order.config.model.head
    )  # fmt: skip
    base = Path("runs") / name
    found = [numbered(_seed_folder(base, seed), suffix=f"_seed{seed}") for seed in seeds]
    last = max((max(numbers, default=0) for numbers in found), default=0)
    number = last or 1 if order.resume == "auto" else last + 1
    return base if number == 1 else base.with_name(f"{base.name}-{number}")


def _with_seeds(base: Path) -> list[Path]:
    """Return the run folders that are called like another one with a seed behind."""
    from resnest_seg.reports.run_table import SEED

    try:
        return [path for path in base.parent.iterdir() if path.name != base.name == SEED.sub("", path.name)]
    except OSError:
        return []


def _seed_folder(base: Path, seed: int) -> Path:
    return base.with_name(f"{base.name}_seed{seed}")


def _placed(order: Order[RunConfig], base: Path) -> Order[RunConfig]:
    """Return the order of one seed with its folder."""
    folder = str(_seed_folder(base, order.config.seed))
    output = None if order.config.output is None else folder
    return dataclasses.replace(
        order, config=dataclasses.replace(order.config, output=output), output=folder, series=None
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Train the segmenter, or one per seed; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    seeds = seeds_in(words)
    orders = parse_seeds(words, seeds) if seeds else [parse(words)]
    parts, folds = own_parts(orders[0].network), orders[0].folds
    if seeds and folds is not None:
        raise ConfigError("--folds with several seeds would be many runs: start one cross-validation per --seed.")
    if orders[0].dry:
        from resnest_seg.training.rehearsal import dry_run

        print(dry_run(orders[0].config, parts, budget=orders[0].budget))
        if seeds:
            print(f"{len(seeds)} such runs would follow each other, of the seeds {', '.join(map(str, seeds))}.")
        if folds is not None:
            print(f"{folds.count} such runs would follow each other, each without one part of the training split.")
        return 0
    if seeds:
        return train_seeds(orders)
    order = orders[0]
    with order.placed() as placed:
        if placed.folds is not None:
            return train_folds(placed, placed.folds, parts)
        return train(placed, parts, again=f"{command('train')} --resume {shlex.quote(str(placed.output))}")


def train(order: Order[RunConfig], parts: Parts, *, again: str) -> int:
    """Carry out one order, whose folder is chosen; returns the exit code.

    Args:
        order: What to train.
        parts: The network of --model, if there is one.
        again: The command that resumes it, without --model.
    """
    from resnest_seg.training.assembly import run, trainer_for

    trainer = trainer_for(
        order.config,
        parts,
        output=order.output,
        resume=order.resume,
        allow_changes=order.allow,
        budget=order.budget,
    )
    network = f" --model {shlex.quote(order.network)}" if order.network else ""
    return ended(
        trainer,
        lambda: run(trainer).finished,
        done=f"Evaluate with: {command('eval')} --checkpoint {shlex.quote(str(order.output))}{network}",
        again=f"{again}{network}",
    )


def train_seeds(orders: Sequence[Order[RunConfig]]) -> int:
    """Train the runs of several seeds one after the other, but those that are finished, and print their table.

    The first one that is stopped or fails ends all; they are resumed together.

    Returns:
        The exit code.
    """
    from resnest_seg.cli.review.runs import show_runs
    from resnest_seg.reports.run_table import CONFIG, SEED, read_run
    from resnest_seg.training.run_folder import RunFolder

    for order in orders:
        if order.resume == "no":  # before the first of them has trained for hours
            RunFolder(order.output).check_new()
    seeds = ",".join(str(order.config.seed) for order in orders)
    base = SEED.sub("", str(orders[0].output))
    begun = any((Path(order.output) / CONFIG).is_file() for order in orders if order.resume != "no")
    for order in orders:
        done = is_done(order)
        print(f"seed {order.config.seed} of {seeds}: {order.output}{' is finished' if done else ''}")
        if done:
            continue
        again = f"{command('train')} --resume {shlex.quote(base)} --seed {seeds}"
        parts = dataclasses.replace(own_parts(order.network), series_begun=begun)
        code = train(order, parts, again=again)
        if code:
            return code
        gc.collect()  # the model of this seed, before the next one's takes memory
    show_runs([read_run(order.output) for order in orders])
    return 0


def train_folds(order: Order[RunConfig], folds: Folds, parts: Parts) -> int:
    """Train the runs of all folds, or the rest of them, and score each on its held-out part; returns the exit code."""
    from resnest_seg.combining import folds as folded

    if folds.predictions is not None:
        check_output_folder(folds.predictions, option="--save-predictions")
        if order.resume == "no" and Path(folds.predictions).exists():
            raise ConfigError(f"--save-predictions {folds.predictions} exists. Choose another folder.")
    words = ["--resume", order.output]
    words += [] if order.network is None else ["--model", order.network]
    words += [] if folds.predictions is None else ["--save-predictions", folds.predictions]
    again = f"{command('train')} {shlex.join(words)}"
    try:
        results = folded.train_folds(
            order.config,
            folds.count,
            parts,
            group_by=folds.group_by,
            output=order.output,
            resume=order.resume,
            allow_changes=order.allow,
        )
        if results[-1].finished:
            score_folds(order, folds, parts)
            return 0
    except KeyboardInterrupt:
        print(f"stopped at once; what is saved is valid. Continue with: {again}", file=sys.stderr)
        return EXIT_INTERRUPTED
    print(f"stopped and saved. Continue with: {again}", file=sys.stderr)
    return EXIT_TERMINATED if results[-1].stopped_by == signal.SIGTERM else EXIT_INTERRUPTED


def score_folds(order: Order[RunConfig], folds: Folds, parts: Parts) -> None:
    """Score every fold on its held-out part, print and write the result, and the predictions that are asked for."""
    from resnest_seg.cli.eval import Results
    from resnest_seg.combining.cross_validation import CROSS_VALIDATION, cross_validate, folded_dataset, held_out
    from resnest_seg.io.display import console, progress_bars

    dataset = folded_dataset(order.output)
    indices = [index for part in held_out(order.output, dataset) for index in part]
    wanted = argparse.Namespace(save_predictions=folds.predictions, submission=None, ids="raw")
    results = Results(dataset, indices, wanted)
    with progress_bars() as progress:
        bar = progress.add_task("scoring held-out parts", total=len(indices))

        def on_image(image: EvaluatedImage) -> None:
            progress.update(bar, advance=1)
            results.add(image)

        found = cross_validate(order.output, train=dataset, into=parts.segmenter, on_image=on_image)
    console().print(found.table())
    print(f"done. cross-validation: {Path(order.output) / CROSS_VALIDATION}")
    if results.problem is not None:
        raise results.problem
    if folds.predictions is not None:
        print(f"predictions: {len(indices)} PNGs of raw ids in {folds.predictions}, each by the model that has not "
              "seen it")  # fmt: skip
    folder = shlex.quote(order.output)
    print(f"All folds as one model: {command('predict')} --checkpoint {folder} PHOTO ...")


def is_done(order: Order[RunConfig]) -> bool:
    """True if the run of an order that may have begun is finished, by the same config."""
    from resnest_seg.reports.run_table import read_run
    from resnest_seg.training.run_folder import MAY_CHANGE

    path = Path(order.output) / "config.yaml"
    if order.resume == "no" or not path.is_file() or read_run(order.output).state != "finished":
        return False
    saved, now = flatten(load_run_config(path)), flatten(order.config)
    return all(saved[key] == now[key] for key in now if key not in MAY_CHANGE)


def own_parts(network: str | None) -> Parts:
    """The user's own network in a run, as --model names it."""
    from resnest_seg.training.assembly import Parts

    return Parts(segmenter=own_network(network))


def ended(trainer: Trainer, fit: Callable[[], bool], *, done: str, again: str) -> int:
    """Train, and say how it ended; returns the exit code.

    Args:
        trainer: The run.
        fit: Trains; True if the run is complete.
        done: The message at its end.
        again: The command that resumes it.
    """
    try:
        finished, saved = fit(), True
    except KeyboardInterrupt:
        finished, saved = False, False
    if trainer.engine.is_main_process:
        if finished:
            print(f"done. {done}")
        elif saved:
            print(f"stopped and saved. Continue with: {again}", file=sys.stderr)
        else:
            print(f"stopped at once; the last checkpoint is valid. Continue with: {again}", file=sys.stderr)
    if finished:
        return 0
    return EXIT_TERMINATED if trainer.stopped_by == signal.SIGTERM else EXIT_INTERRUPTED
