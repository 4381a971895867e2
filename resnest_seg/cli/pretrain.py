"""Train an image classifier on a folder of images, to pre-train the encoder of a segmenter.

python tools/pretrain_cls.py --config configs/imagenet_classifier_resnest50.yaml --data.root /data/imagenet
python tools/pretrain_cls.py --config configs/imagenet_classifier_resnest50.yaml --output runs/cls
python tools/pretrain_cls.py --resume runs/cls
python tools/pretrain_cls.py --config configs/imagenet_classifier_resnest50.yaml --train.batch_size 16 --dry-run
python tools/train_seg.py --dataset ade20k --model.encoder_weights runs/cls/best.safetensors

The folder holds train/<class>/* and val/<class>/*. Exit codes are those of training.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from resnest_seg.cli.parsing.keys import ENCODER_CHECKPOINT, SHORT, KeyHelp, Own, run_options, take
from resnest_seg.cli.train import Order, begun, check_same_folder, ended, ordered
from resnest_seg.config import PretrainConfig
from resnest_seg.config_reading import load_config
from resnest_seg.errors import CheckpointError, ConfigError, command
from resnest_seg.files import check_outside, find_config

if TYPE_CHECKING:
    from resnest_seg.training.trainer import Trainer


OWN = (
    Own("--config", "FILE", "train with this YAML file; every key can be set in it"),
    *run_options("--config"),
)
"""The options besides the config's keys."""

USUAL = (
    "data.root",
    "model.encoder",
    "model.encoder_weights",
    "train.epochs",
    "train.batch_size",
    "optim.lr",
    "data.crop_size",
    "data.workers",
    "train.precision",
    "classify.augment",
    "seed",
    "output",
)
"""The keys that people use."""

HELP = KeyHelp(
    verb="pretrain",
    arguments="(--config FILE | --resume FOLDER) [--KEY VALUE ...]",
    description=__doc__,
    own=OWN,
    usual=USUAL,
    kind=PretrainConfig,
    short=SHORT | ENCODER_CHECKPOINT,
)


def parse(argv: Sequence[str]) -> Order[PretrainConfig]:
    """Read the command line, and the environment that torchrun's elastic agent sets."""
    HELP.show_if_asked(argv)
    chosen, overrides = take(argv, OWN, kind=PretrainConfig, short=SHORT | ENCODER_CHECKPOINT)
    config, resume, changes, dry = (chosen[option.name] for option in OWN)
    allow = tuple(key.strip() for key in (changes or "").split(",") if key.strip())
    if resume is not None and resume != "auto":
        if config or dry:
            raise ConfigError("--resume FOLDER takes the config in the run folder: neither --config nor --dry-run.")
        if not (Path(resume) / "config.yaml").is_file():
            raise CheckpointError(f"{resume} is not a run folder that can be resumed: it has no config.yaml.")
        run = load_config(Path(resume) / "config.yaml", PretrainConfig, overrides=overrides)
        check_same_folder(resume, run.output, overrides)
        return Order(run, resume, "yes", allow)
    if config is None:
        raise ConfigError("give one of --config FILE or --resume FOLDER; --help shows the options.")
    run = load_config(config, PretrainConfig, overrides=overrides)
    return ordered(run, find_config(config), "classifier", begun(resume), allow=allow, dry=dry is not None)


def trainer_for(order: Order[PretrainConfig]) -> Trainer:
    """Build and check all parts of a run."""
    import torch

    from resnest_seg.data.build import opened_root
    from resnest_seg.models.loading import classifier_for
    from resnest_seg.training.classification import ClassFolder, ClassificationTask
    from resnest_seg.training.run_folder import RunFolder
    from resnest_seg.training.tasks import check_choices
    from resnest_seg.training.trainer import Trainer

    config = order.config
    check_choices(config)
    resume = order.resume == "yes" or (order.resume == "auto" and bool(RunFolder(order.output).states()))
    data = config.data
    root = opened_root(data.dataset, data.root, cache=data.cache, cache_size=data.cache_size)
    if isinstance(root, str | Path):
        check_outside(order.output, [Path(root) / "train", Path(root) / "val"])
    task = ClassificationTask(config, ClassFolder(root, "train"), ClassFolder(root, "val"))
    torch.manual_seed(config.seed)
    return Trainer(
        config,
        segmenter=classifier_for(config, num_classes=task.description.num_classes, pretrained=not resume),
        task=task,
        output=order.output,
        resume=resume,
        adopt=order.resume == "auto",
        allow_changes=order.allow,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Train the classifier; returns the exit code."""
    order = parse(sys.argv[1:] if argv is None else argv)
    if order.dry:
        from resnest_seg.training.rehearsal import dry_run_classifier
        from resnest_seg.training.tasks import check_choices

        check_choices(order.config)
        print(dry_run_classifier(order.config))
        return 0
    with order.placed() as placed:
        folder, trainer = shlex.quote(str(placed.output)), trainer_for(placed)
        for doubt in trainer.doubts if trainer.engine.is_main_process else ():
            print(f"warning: {doubt}", file=sys.stderr)
        return ended(
            trainer,
            trainer.fit,
            done=f"Segment with it: {command('train')} ... --model.encoder_weights {folder}/best.safetensors",
            again=f"{command('pretrain')} --resume {folder}",
        )
