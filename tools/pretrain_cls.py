"""Train an image classifier on a folder of images, for an encoder that a segmenter then starts from.

python tools/pretrain_cls.py --config configs/imagenet_classifier_resnest50.yaml --data.root /data/imagenet
python tools/pretrain_cls.py --config configs/imagenet_classifier_resnest50.yaml --output runs/cls
python tools/pretrain_cls.py --resume runs/cls
python tools/train_seg.py --dataset ade20k --model.encoder_weights runs/cls/best.safetensors

The folder holds train/<class>/* and val/<class>/*.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser, set_parsing_settings
from train_seg import take

from resnest_seg.config import add_run_arguments, load_config
from resnest_seg.errors import EXIT_INTERRUPTED, CheckpointError, ConfigError, run_tool
from resnest_seg.pretraining import PretrainConfig


def parse(argv: Sequence[str]) -> tuple[PretrainConfig, str, bool]:
    """Split the command line into the run's config, its folder, and whether it is resumed."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    if "-h" in argv or "--help" in argv:
        helper = ArgumentParser(prog="pretrain_cls.py", description=__doc__.strip().splitlines()[0])
        helper.add_argument("--config", help="train with this YAML file; every key below can be set in it")
        helper.add_argument("--resume", help="continue the run in this folder, with its own config")
        add_run_arguments(helper, PretrainConfig)
        helper.print_help()
        raise SystemExit(0)
    chosen, overrides = take(argv, ("--config", "--resume"))
    config, resume = chosen["--config"], chosen["--resume"]
    if resume is not None:
        if config or overrides:
            raise ConfigError("--resume takes the config in the run folder: no other option goes with it.")
        if not (Path(resume) / "config.yaml").is_file():
            raise CheckpointError(f"{resume} is no run folder that can be resumed: it has no config.yaml.")
        return load_config(Path(resume) / "config.yaml", PretrainConfig), resume, True
    if config is None:
        raise ConfigError("give one of --config FILE or --resume FOLDER; --help shows every key.")
    run = load_config(config, PretrainConfig, overrides=overrides)
    return run, run.output or f"runs/{Path(config).stem}", False


def main(argv: Sequence[str] | None = None) -> int:
    """Train; returns the exit code."""
    config, output, resume = parse(sys.argv[1:] if argv is None else argv)

    import torch

    from resnest_seg.catalog import data_root
    from resnest_seg.class_folder import ClassFolder
    from resnest_seg.classification import ClassifierTrainer
    from resnest_seg.segmenter import segmenter_for

    root = data_root(config.data.dataset, config.data.root)
    train, validation = ClassFolder(root, "train"), ClassFolder(root, "val")
    torch.manual_seed(config.seed)
    segmenter = segmenter_for(config.run, None, num_classes=len(train.names), pretrained=not resume)
    trainer = ClassifierTrainer(
        config, segmenter=segmenter, train=train, validation=validation, output=output, resume=resume
    )
    try:
        finished = trainer.fit()
    except KeyboardInterrupt:
        finished = False
    if trainer.engine.is_main_process:
        folder = shlex.quote(str(output))
        if finished:
            print(f"done. Segment with it: tools/train_seg.py ... --model.encoder_weights {folder}/best.safetensors")
        else:
            print(f"stopped and saved. Continue with: tools/pretrain_cls.py --resume {folder}", file=sys.stderr)
    return 0 if finished else EXIT_INTERRUPTED


if __name__ == "__main__":
    raise SystemExit(run_tool(main))
