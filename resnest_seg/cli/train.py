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
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Generic

from jsonargparse import ArgumentParser, set_parsing_settings

from resnest_seg.cli.main import complete
from resnest_seg.config import C, RunConfig, add_run_arguments, check_option, load_run_config
from resnest_seg.errors import (
    EXIT_INTERRUPTED,
    EXIT_TERMINATED,
    CheckpointError,
    ConfigError,
    command,
    program,
    unknown_name,
)
from resnest_seg.files import check_outside, find_config

if TYPE_CHECKING:
    from resnest_seg.data.datasets import SegmentationDataset
    from resnest_seg.training.trainer import Trainer

DEFAULT_CONFIGS = {
    "synthetic": "synthetic_fcn_resnest14_tiny",
    "camvid": "camvid_deeplabv3_resnest50",
    "ade20k": "ade20k_deeplabv3_resnest50",
    "cityscapes": "cityscapes_deeplabv3_resnest50",
    "folder": "folder_deeplabv3_resnest50",
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
    """

    config: C
    output: str
    resume: str = "no"
    allow: tuple[str, ...] = ()
    dry: bool = False
    budget: str | None = None


def parse(argv: Sequence[str]) -> Order[RunConfig]:
    """Read the command line, and the environment that torchrun's elastic agent sets."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    helper = ArgumentParser(prog=program("train"), description=__doc__.strip().splitlines()[0], exit_on_error=False)
    helper.add_argument("--dataset", help=f"train with the shipped config of a data set: {', '.join(DEFAULT_CONFIGS)}")
    helper.add_argument(
        "--config",
        help="train with this YAML file, in which every key below can be set, or with the shipped config of this name",
    )
    helper.add_argument("--budget", help="choose train.accumulation and model.checkpointing so that the batch fits: "
                        "auto takes the memory of the devices here, a number is GiB for each")  # fmt: skip
    helper.add_argument(
        "--resume",
        help="resume the run in this folder, with its config; or auto, with --dataset or --config: resume the run in "
        "its output folder if there is a checkpoint, else start it",
    )
    helper.add_argument("--allow-changes", help="keys that a resumed run may change, separated by commas")
    helper.add_argument("--dry-run", action="store_true", help="try the run in two steps, without leaving files")
    add_run_arguments(helper)
    complete(helper)
    if "-h" in argv or "--help" in argv:
        helper.print_help()
        raise SystemExit(0)
    dry = "--dry-run" in argv
    names = ("--dataset", "--config", "--resume", "--allow-changes", "--budget")
    chosen, overrides = take([word for word in argv if word != "--dry-run"], names)
    dataset, config, resume, changes, budget = (chosen[name] for name in names)
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
        return Order(load_run_config(Path(resume) / "config.yaml", overrides=overrides), resume, "yes", allow)
    path = config_path(dataset, config)
    run = load_run_config(path, overrides=overrides)
    return Order(run, run.output or f"runs/{path.stem}", "auto" if begun(resume) else "no", allow, dry, budget)


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


def within_budget(config: RunConfig, budget: str, *, num_classes: int) -> RunConfig:
    """Return the config with the batch divided to fit into memory; the main process prints the table."""
    from resnest_seg.io.display import console
    from resnest_seg.training.memory import GIB, devices_here, plan

    devices = devices_here()
    if budget != "auto":
        devices = dataclasses.replace(devices, memory=int(number(budget, "--budget", 0.01, 65536) * GIB))
    chosen = plan(config, num_classes=num_classes, devices=devices)
    if os.environ.get("RANK", "0") == "0":
        console().print(chosen.table())
    return chosen.config


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


def dry(order: Order[RunConfig]) -> str:
    """Do a dry run; returns its report."""
    from resnest_seg.training.dry_run import data_or_stand_in, dry_run

    config = order.config
    splits = [data_or_stand_in(config, split) for split in ("train", config.eval.split)]
    look(config, *splits)
    if order.budget is not None:
        config = within_budget(config, order.budget, num_classes=len(splits[0].label_space))
    return dry_run(config)


def look(config: RunConfig, *splits: SegmentationDataset) -> None:
    """Reject data with which training would go wrong, and warn of suspicious data."""
    from resnest_seg.data.checks import check_classes, check_samples

    warnings: list[str] = []
    for dataset in splits:
        # Also with data.check 0: it reads few masks if the class list is right, and the run is useless otherwise.
        warnings += check_classes(dataset, workers=config.data.workers)
        if config.data.check:
            warnings += check_samples(dataset, count=config.data.check, workers=config.data.workers)
    if os.environ.get("RANK", "0") == "0":
        for warning in warnings:
            print(f"warning: {warning}", file=sys.stderr)


def trainer_for(order: Order[RunConfig]) -> Trainer:
    """Build and check all parts of a run: data, model with its initial weights, checkpoint, folder."""
    import torch

    from resnest_seg.data.build import dataset_for
    from resnest_seg.data.class_balance import balance
    from resnest_seg.data.datasets import PairedFiles
    from resnest_seg.models.loading import load_fitting, segmenter_for
    from resnest_seg.training.memory import divided
    from resnest_seg.training.run_folder import RunFolder
    from resnest_seg.training.tasks import SegmentationTask
    from resnest_seg.training.trainer import Trainer

    config = order.config
    resume = order.resume == "yes" or (order.resume == "auto" and bool(RunFolder(order.output).states()))
    train = dataset_for(config.data, "train")
    validation = dataset_for(config.data, config.eval.split)
    if isinstance(train, PairedFiles):
        check_outside(order.output, train.folders)
    if not resume:
        look(config, train, validation)
    if order.budget is not None and resume:  # batch norm depends on the division, which therefore stays, on any machine
        begun = load_run_config(Path(order.output) / "config.yaml")
        config = divided(config, begun.train.accumulation, checkpointing=begun.model.checkpointing)
    elif order.budget is not None:
        config = within_budget(config, order.budget, num_classes=len(train.label_space))
    torch.manual_seed(config.seed)
    segmenter = segmenter_for(config, train.label_space, pretrained=not resume and config.model.weights is None)
    report = None if resume or config.model.weights is None else load_fitting(segmenter, config.model.weights)
    balanced = balance(train, config)
    task = SegmentationTask(
        config,
        train,
        validation,
        probabilities=balanced.probabilities,
        class_weights=balanced.class_weights,
    )
    trainer = Trainer(
        config,
        segmenter=segmenter,
        task=task,
        output=order.output,
        resume=resume,
        adopt=order.resume == "auto",
        allow_changes=order.allow,
    )
    if report is not None and trainer.engine.is_main_process:
        print(f"starting from {report}")
    return trainer


def main(argv: Sequence[str] | None = None) -> int:
    """Train the segmenter; returns the exit code."""
    order = parse(sys.argv[1:] if argv is None else argv)
    if order.dry:
        print(dry(order))
        return 0
    folder = shlex.quote(str(order.output))
    return fit(
        trainer_for(order),
        done=f"Evaluate with: {command('eval')} --checkpoint {folder}",
        again=f"{command('train')} --resume {folder}",
    )


def fit(trainer: Trainer, *, done: str, again: str) -> int:
    """Train; returns the exit code.

    Args:
        trainer: The run.
        done: The message at its end.
        again: The command that resumes it.
    """
    if trainer.engine.is_main_process:
        for doubt in trainer.doubts:
            print(f"warning: {doubt}", file=sys.stderr)
    try:
        finished, saved = trainer.fit(), True
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
