"""Train a segmentation model.

python tools/train_seg.py --dataset synthetic
python tools/train_seg.py --dataset ade20k --data.root /data/ade20k --train.accumulation 4
python tools/train_seg.py --dataset ade20k --budget auto
python tools/train_seg.py --config my_run.yaml --optim.lr 0.02 --output runs/my_run
python tools/train_seg.py --resume runs/my_run
"""

from __future__ import annotations

import dataclasses
import math
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser, set_parsing_settings

from resnest_seg.config import RunConfig, add_run_arguments, load_run_config
from resnest_seg.errors import EXIT_INTERRUPTED, CheckpointError, ConfigError, run_tool, unknown_name

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
DEFAULT_CONFIGS = {
    "synthetic": CONFIGS / "synthetic_fcn_resnest14_tiny.yaml",
    "camvid": CONFIGS / "camvid_deeplabv3_resnest50.yaml",
    "ade20k": CONFIGS / "ade20k_deeplabv3_resnest50.yaml",
    "cityscapes": CONFIGS / "cityscapes_deeplabv3_resnest50.yaml",
    "folder": CONFIGS / "folder_deeplabv3_resnest50.yaml",
}


def parse(argv: Sequence[str]) -> tuple[RunConfig, str, bool, str | None]:
    """Split the command line into the run's config, its folder, whether it is resumed, and its memory budget."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    helper = ArgumentParser(prog="train_seg.py", description=__doc__.strip().splitlines()[0], exit_on_error=False)
    helper.add_argument("--dataset", help=f"train with the shipped config of a data set: {', '.join(DEFAULT_CONFIGS)}")
    helper.add_argument("--config", help="train with this YAML file; every key below can be set in it")
    helper.add_argument("--budget", help="choose train.accumulation and model.checkpointing so that the batch fits: "
                        "auto takes the memory of the devices here, a number is GiB for each")  # fmt: skip
    helper.add_argument("--resume", help="continue the run in this folder, with its own config")
    add_run_arguments(helper)
    if "-h" in argv or "--help" in argv:
        helper.print_help()
        raise SystemExit(0)
    chosen, overrides = take(argv, ("--dataset", "--config", "--resume", "--budget"))
    dataset, config, resume = chosen["--dataset"], chosen["--config"], chosen["--resume"]
    if resume is not None:
        if dataset or config or chosen["--budget"] or overrides:
            raise ConfigError("--resume takes the config in the run folder: no other option goes with it.")
        if not (Path(resume) / "config.yaml").is_file():
            raise CheckpointError(f"{resume} is no run folder that can be resumed: it has no config.yaml.")
        return load_run_config(Path(resume) / "config.yaml"), resume, True, None
    path = config_path(dataset, config)
    run = load_run_config(path, overrides=overrides)
    return run, run.output or f"runs/{path.stem}", False, chosen["--budget"]


def config_path(dataset: str | None, config: str | None) -> Path:
    """The config file that --dataset or --config means, exactly one of which is given."""
    if dataset is not None and dataset not in DEFAULT_CONFIGS:
        raise unknown_name("data set", dataset, DEFAULT_CONFIGS)
    if (dataset is None) == (config is None):
        raise ConfigError("give one of --dataset NAME, --config FILE or --resume FOLDER; --help shows every key.")
    return Path(config) if config is not None else DEFAULT_CONFIGS[str(dataset)]


def within_budget(config: RunConfig, budget: str, *, num_classes: int) -> RunConfig:
    """The config with the batch divided so that it fits; prints the table, once for all processes."""
    from rich.console import Console

    from resnest_seg.budget import GIB, devices_here, plan

    devices = devices_here()
    if budget != "auto":
        devices = dataclasses.replace(devices, memory=int(positive(budget, "--budget") * GIB))
    chosen = plan(config, num_classes=num_classes, devices=devices)
    if os.environ.get("RANK", "0") == "0":
        Console().print(chosen.table())
    return chosen.config


def positive(word: str, option: str) -> float:
    """A number above 0 from the command line."""
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ConfigError(f"{option} must be a number above 0, not {word!r}.")
    return value


def take(argv: Sequence[str], names: Sequence[str]) -> tuple[dict[str, str | None], list[str]]:
    """Take `--name value` and `--name=value` out of the words; the rest are overrides of config keys."""
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
    """Train; returns the exit code."""
    config, output, resume, budget = parse(sys.argv[1:] if argv is None else argv)

    import torch

    from resnest_seg.catalog import dataset_for
    from resnest_seg.doctor import check_samples, sampling_probabilities
    from resnest_seg.finetune import load_fitting
    from resnest_seg.segmenter import segmenter_for
    from resnest_seg.training import Trainer

    train = dataset_for(config.data, "train")
    validation = dataset_for(config.data, config.eval.split)
    if config.data.check and not resume:
        for dataset in (train, validation):
            check_samples(dataset, count=config.data.check, workers=config.data.workers)
    if budget is not None:
        config = within_budget(config, budget, num_classes=len(train.label_space))
    torch.manual_seed(config.seed)
    segmenter = segmenter_for(config, train.label_space, pretrained=not resume and config.model.weights is None)
    report = None if resume or config.model.weights is None else load_fitting(segmenter, config.model.weights)
    trainer = Trainer(
        config,
        segmenter=segmenter,
        train=train,
        validation=validation,
        output=output,
        resume=resume,
        probabilities=sampling_probabilities(train, config.data),
    )
    if report is not None and trainer.engine.is_main_process:
        print(f"starting from {report}")
    try:
        finished = trainer.fit()
    except KeyboardInterrupt:
        finished = False
    if trainer.engine.is_main_process:
        folder = shlex.quote(str(output))
        if finished:
            print(f"done. Evaluate with: python tools/eval_seg.py --checkpoint {folder}")
        else:
            print(f"stopped and saved. Continue with: python tools/train_seg.py --resume {folder}", file=sys.stderr)
    if not finished:
        return EXIT_INTERRUPTED
    return 0


if __name__ == "__main__":
    raise SystemExit(run_tool(main))
