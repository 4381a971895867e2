"""Train a segmentation model.

python tools/train_seg.py --dataset synthetic
python tools/train_seg.py --dataset ade20k --data.root /data/ade20k --train.accumulation 4
python tools/train_seg.py --dataset folder --data.root mine --data.images "raw/*.jpg" --data.masks "truth/*_L.png"
python tools/train_seg.py --dataset ade20k --budget auto
python tools/train_seg.py --config my_run.yaml --optim.lr 0.02 --output runs/my_run
python tools/train_seg.py --resume runs/my_run
python tools/train_seg.py --dataset camvid --seed 0,1,2      # one run per seed, one after the other, and their mean
python tools/train_seg.py --dataset ade20k --output runs/my_run --resume auto     # for schedulers: start or resume
torchrun --nproc-per-node 8 --max-restarts 3 tools/train_seg.py --dataset ade20k --output runs/my_run

Exit codes: 0 for complete training; 2 for invalid input, a full disk, or a run folder in use by another process; 130
after Ctrl-C and 143 after SIGTERM, with a checkpoint saved.
"""

from __future__ import annotations

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
from resnest_seg.config import AnyConfig, C, RunConfig, load_run_config
from resnest_seg.config_reading import flatten, kinds_of
from resnest_seg.errors import EXIT_INTERRUPTED, EXIT_TERMINATED, CheckpointError, ConfigError, command, unknown_name
from resnest_seg.files import claimed, find_config, next_free, numbered, shipped_configs
from resnest_seg.inference.own_network import own_network

if TYPE_CHECKING:
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
    """

    config: C
    output: str
    resume: str = "no"
    allow: tuple[str, ...] = ()
    dry: bool = False
    budget: str | None = None
    network: str | None = None
    series: Path | None = None

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
        "devices, a number is GiB for each",
    ),
    Own("--model", "FILE.py:FUNCTION", MODEL_HELP),
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
    dataset, config, resume, changes, dry, budget, network = (chosen[option.name] for option in OWN)
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
        return Order(run, resume, "yes", allow, network=network)
    path = config_path(dataset, config)
    run = load_run_config(path, overrides=[*(["--data.dataset=shards"] if dataset == "shards" else []), *overrides])
    order = ordered(
        run, path, run.model.head, begun(resume), allow=allow, dry=dry is not None, budget=budget, network=network
    )
    if budget not in (None, "auto"):
        number(budget, "--budget", 0.01, 65536)
    return order


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
    """
    resume = "auto" if may_have_begun else "no"
    if run.output is not None:
        return Order(run, run.output, resume, allow, dry, budget, network)
    series = Path("runs") / (run_name(run, path, head) if network is None else own_name(run, network))
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
    parts = own_parts(orders[0].network)
    if orders[0].dry:
        from resnest_seg.training.dry_run import dry_run

        print(dry_run(orders[0].config, parts, budget=orders[0].budget))
        if seeds:
            print(f"{len(seeds)} such runs would follow each other, of the seeds {', '.join(map(str, seeds))}.")
        return 0
    if seeds:
        return train_seeds(orders)
    order = orders[0]
    with order.placed() as placed:
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
    from resnest_seg.reports.run_table import SEED, read_run
    from resnest_seg.training.run_folder import RunFolder

    for order in orders:
        if order.resume == "no":  # before the first of them has trained for hours
            RunFolder(order.output).check_new()
    seeds = ",".join(str(order.config.seed) for order in orders)
    base = SEED.sub("", str(orders[0].output))
    for order in orders:
        done = is_done(order)
        print(f"seed {order.config.seed} of {seeds}: {order.output}{' is finished' if done else ''}")
        if done:
            continue
        again = f"{command('train')} --resume {shlex.quote(base)} --seed {seeds}"
        code = train(order, own_parts(order.network), again=again)
        if code:
            return code
        gc.collect()  # the model of this seed, before the next one's takes memory
    show_runs([read_run(order.output) for order in orders])
    return 0


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
