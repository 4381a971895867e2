"""Train an image classifier on a folder of images, to pre-train the encoder of a segmenter.

python tools/pretrain_cls.py --config configs/imagenet_classifier_resnest50.yaml --data.root /data/imagenet
python tools/pretrain_cls.py --config configs/imagenet_classifier_resnest50.yaml --output runs/cls
python tools/pretrain_cls.py --resume runs/cls
python tools/pretrain_cls.py --config configs/imagenet_classifier_resnest50.yaml --train.batch_size 16 --dry-run
python tools/train_seg.py --dataset ade20k --model.encoder_weights runs/cls/best.safetensors

The folder holds train/<class>/* and val/<class>/*. Exit codes are those of train_seg.py.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, set_parsing_settings

from resnest_seg.cli.main import complete, completing
from resnest_seg.cli.train import Order, begun, fit, take
from resnest_seg.config import PretrainConfig, add_run_arguments, load_config
from resnest_seg.errors import CheckpointError, ConfigError, command, program
from resnest_seg.files import check_outside

if TYPE_CHECKING:
    from resnest_seg.training.trainer import Trainer


def parse(argv: Sequence[str]) -> Order[PretrainConfig]:
    """Read the command line, and the environment that torchrun's elastic agent sets."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    if "-h" in argv or "--help" in argv or completing():
        helper = ArgumentParser(prog=program("pretrain"), description=__doc__.strip().splitlines()[0])
        helper.add_argument(
            "--config",
            help="train with this YAML file, in which every key below can be set, or "
            "with the shipped config of this name",
        )
        helper.add_argument(
            "--resume",
            help="resume the run in this folder, with its config; or auto, with --config: resume the run in its output "
            "folder if there is a checkpoint, else start it",
        )
        helper.add_argument("--allow-changes", help="keys that a resumed run may change, separated by commas")
        helper.add_argument("--dry-run", action="store_true", help="try the run in two steps, without leaving files")
        add_run_arguments(helper, PretrainConfig)
        complete(helper)
        helper.print_help()
        raise SystemExit(0)
    dry = "--dry-run" in argv
    chosen, overrides = take(
        [word for word in argv if word != "--dry-run"], ("--config", "--resume", "--allow-changes")
    )
    config, resume = chosen["--config"], chosen["--resume"]
    allow = tuple(key.strip() for key in (chosen["--allow-changes"] or "").split(",") if key.strip())
    if resume is not None and resume != "auto":
        if config or dry:
            raise ConfigError("--resume FOLDER takes the config in the run folder: neither --config nor --dry-run.")
        if not (Path(resume) / "config.yaml").is_file():
            raise CheckpointError(f"{resume} is not a run folder that can be resumed: it has no config.yaml.")
        run = load_config(Path(resume) / "config.yaml", PretrainConfig, overrides=overrides)
        return Order(run, resume, "yes", allow)
    if config is None:
        raise ConfigError("give one of --config FILE or --resume FOLDER; --help shows every key.")
    run = load_config(config, PretrainConfig, overrides=overrides)
    return Order(run, run.output or f"runs/{Path(config).stem}", "auto" if begun(resume) else "no", allow, dry)


def trainer_for(order: Order[PretrainConfig]) -> Trainer:
    """Build and check all parts of a run."""
    import torch

    from resnest_seg.data.build import data_root
    from resnest_seg.models.loading import classifier_for
    from resnest_seg.training.classification import ClassFolder, ClassificationTask
    from resnest_seg.training.run_folder import RunFolder
    from resnest_seg.training.trainer import Trainer

    config = order.config
    resume = order.resume == "yes" or (order.resume == "auto" and bool(RunFolder(order.output).states()))
    root = data_root(config.data.dataset, config.data.root)
    check_outside(order.output, [root / "train", root / "val"])
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
        from resnest_seg.training.dry_run import dry_run_classifier

        print(dry_run_classifier(order.config))
        return 0
    folder = shlex.quote(str(order.output))
    return fit(
        trainer_for(order),
        done=f"Segment with it: {command('train')} ... --model.encoder_weights {folder}/best.safetensors",
        again=f"{command('pretrain')} --resume {folder}",
    )
