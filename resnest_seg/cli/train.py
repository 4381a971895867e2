"""Train a segmentation model.

python tools/train_seg.py --dataset synthetic
python tools/train_seg.py --dataset ade20k --data.root /data/ade20k --train.accumulation 4
python tools/train_seg.py --dataset ade20k --budget auto
python tools/train_seg.py --config my_run.yaml --optim.lr 0.02 --output runs/my_run
python tools/train_seg.py --resume runs/my_run
python tools/train_seg.py --dataset ade20k --output runs/my_run --resume auto     # for schedulers: start or resume
torchrun --nproc-per-node 8 --max-restarts 3 tools/train_seg.py --dataset ade20k --output runs/my_run

Exit codes: 0 for complete training; 2 for invalid input, a full disk, or a run folder in use by another process; 130
after Ctrl-C and 143 after SIGTERM, with a checkpoint saved.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Generic

from jsonargparse import ArgumentParser, set_parsing_settings

from resnest_seg.cli.model_file import add_model_option, own_network
from resnest_seg.config import C, RunConfig, add_run_arguments, check_option, load_run_config
from resnest_seg.errors import EXIT_INTERRUPTED, EXIT_TERMINATED, CheckpointError, ConfigError, unknown_name

if TYPE_CHECKING:
    from resnest_seg.training.assembly import Parts
    from resnest_seg.training.trainer import Trainer

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
DEFAULT_CONFIGS = {
    "synthetic": CONFIGS / "synthetic_fcn_resnest14_tiny.yaml",
    "camvid": CONFIGS / "camvid_deeplabv3_resnest50.yaml",
    "ade20k": CONFIGS / "ade20k_deeplabv3_resnest50.yaml",
    "cityscapes": CONFIGS / "cityscapes_deeplabv3_resnest50.yaml",
    "folder": CONFIGS / "folder_deeplabv3_resnest50.yaml",
}


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
    """

    config: C
    output: str
    resume: str = "no"
    allow: tuple[str, ...] = ()
    dry: bool = False
    budget: str | None = None
    network: str | None = None


def parse(argv: Sequence[str]) -> Order[RunConfig]:
    """Read the command line, and the environment that torchrun's elastic agent sets."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    helper = ArgumentParser(prog="train_seg.py", description=__doc__.strip().splitlines()[0], exit_on_error=False)
    helper.add_argument("--dataset", help=f"train with the shipped config of a data set: {', '.join(DEFAULT_CONFIGS)}")
    helper.add_argument("--config", help="train with this YAML file; every key below can be set in it")
    helper.add_argument("--budget", help="choose train.accumulation and model.checkpointing so that the batch fits: "
                        "auto takes the memory of the devices here, a number is GiB for each")  # fmt: skip
    helper.add_argument(
        "--resume",
        help="resume the run in this folder, with its config; or auto, with --dataset or --config: resume the run in "
        "its output folder if there is a checkpoint, else start it",
    )
    helper.add_argument("--allow-changes", help="keys that a resumed run may change, separated by commas")
    helper.add_argument("--dry-run", action="store_true", help="try the run in two steps, without leaving files")
    add_model_option(helper)
    add_run_arguments(helper)
    if "-h" in argv or "--help" in argv:
        helper.print_help()
        raise SystemExit(0)
    dry = "--dry-run" in argv
    names = ("--dataset", "--config", "--resume", "--allow-changes", "--budget", "--model")
    chosen, overrides = take([word for word in argv if word != "--dry-run"], names)
    dataset, config, resume, changes, budget, network = (chosen[name] for name in names)
    if budget not in (None, "auto"):
        number(budget, "--budget", 0.01, 65536)
    allow = tuple(key.strip() for key in (changes or "").split(",") if key.strip())
    if resume is not None and resume != "auto":
        if dataset or config:
            raise ConfigError("--resume FOLDER takes the config in the run folder: neither --dataset nor --config.")
        if dry:
            raise ConfigError("--dry-run tries a run out from its start: it does not go with --resume FOLDER.")
        if budget:
            raise ConfigError("--budget does not go with --resume FOLDER: the batch was divided when the run began.")
        if not (Path(resume) / "config.yaml").is_file():
            raise CheckpointError(f"{resume} is not a run folder that can be resumed: it has no config.yaml.")
        return Order(
            load_run_config(Path(resume) / "config.yaml", overrides=overrides), resume, "yes", allow, network=network
        )
    path = config_path(dataset, config)
    run = load_run_config(path, overrides=overrides)
    return Order(run, run.output or f"runs/{path.stem}", "auto" if begun(resume) else "no", allow, dry, budget, network)


def begun(resume: str | None) -> bool:
    """True if the run may have started before: with --resume auto, or after a restart by torchrun's agent."""
    return resume == "auto" or int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def config_path(dataset: str | None, config: str | None) -> Path:
    """Return the config file of --dataset or --config, exactly one of which is given."""
    if dataset is not None and dataset not in DEFAULT_CONFIGS:
        raise unknown_name("data set", dataset, DEFAULT_CONFIGS)
    if (dataset is None) == (config is None):
        raise ConfigError("give one of --dataset NAME, --config FILE or --resume FOLDER; --help shows every key.")
    return Path(config) if config is not None else DEFAULT_CONFIGS[str(dataset)]


def number(word: str, option: str, low: float, high: float) -> float:
    """Parse a number of the command line.

    Raises:
        ConfigError: The value is not a number, or is out of range.
    """
    try:
        value = float(word)
    except ValueError:
        raise ConfigError(f"{option} must be a number from {low} to {high}, not {word!r}.") from None
    check_option(option, value, low, high)
    return value


def take(argv: Sequence[str], names: Sequence[str]) -> tuple[dict[str, str | None], list[str]]:
    """Extract `--name value` and `--name=value` from the arguments; the rest are overrides of config keys."""
    taken: dict[str, str | None] = dict.fromkeys(names)
    rest, words = [], iter(argv)
    for word in words:
        name, equals, value = word.partition("=")
        if name not in names:
            rest.append(word)
        elif not equals and (value := next(words, "")) == "":
            raise ConfigError(f"{name} needs a value.")
        else:
            taken[name] = value
    return taken, rest


def main(argv: Sequence[str] | None = None) -> int:
    """Train the segmenter; returns the exit code."""
    order = parse(sys.argv[1:] if argv is None else argv)
    parts = own_parts(order.network)
    if order.dry:
        from resnest_seg.training.dry_run import dry_run

        print(dry_run(order.config, parts, budget=order.budget))
        return 0

    from resnest_seg.training.assembly import run, trainer_for

    trainer = trainer_for(
        order.config,
        parts,
        output=order.output,
        resume=order.resume,
        allow_changes=order.allow,
        budget=order.budget,
    )
    folder, network = shlex.quote(str(order.output)), f" --model {shlex.quote(order.network)}" if order.network else ""
    return ended(
        trainer,
        lambda: run(trainer).finished,
        done=f"Evaluate with: python tools/eval_seg.py --checkpoint {folder}{network}",
        again=f"python tools/train_seg.py --resume {folder}{network}",
    )


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
