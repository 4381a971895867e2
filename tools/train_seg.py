"""Train a segmentation model.

python tools/train_seg.py --dataset synthetic
python tools/train_seg.py --dataset ade20k --data.root /data/ade20k --train.accumulation 4
python tools/train_seg.py --config my_run.yaml --optim.lr 0.02 --output runs/my_run
python tools/train_seg.py --resume runs/my_run
python tools/train_seg.py --dataset ade20k --output runs/my_run --resume auto     # for schedulers: begin or continue
torchrun --nproc-per-node 8 --max-restarts 3 tools/train_seg.py --dataset ade20k --output runs/my_run

Exit codes: 0 done, 2 a mistake in the input, 130 stopped by Ctrl-C, 143 by SIGTERM; after both the state is saved.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser, set_parsing_settings

from resnest_seg.config import RunConfig, add_run_arguments, load_run_config
from resnest_seg.errors import (
    EXIT_INTERRUPTED,
    EXIT_TERMINATED,
    CheckpointError,
    ConfigError,
    run_tool,
    unknown_name,
)

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
DEFAULT_CONFIGS = {
    "synthetic": CONFIGS / "synthetic_fcn_resnest14_tiny.yaml",
    "camvid": CONFIGS / "camvid_deeplabv3_resnest50.yaml",
    "ade20k": CONFIGS / "ade20k_deeplabv3_resnest50.yaml",
    "cityscapes": CONFIGS / "cityscapes_deeplabv3_resnest50.yaml",
    "folder": CONFIGS / "folder_deeplabv3_resnest50.yaml",
}


@dataclasses.dataclass(frozen=True)
class Order:
    """What the command line asks for.

    Attributes:
        config: The run.
        output: Its folder.
        resume: "no", "yes", or "auto": if the folder holds a state.
        allow: Config keys that a resumed run may change.
        dry: Only try the run out.
    """

    config: RunConfig
    output: str
    resume: str = "no"
    allow: tuple[str, ...] = ()
    dry: bool = False


def parse(argv: Sequence[str]) -> Order:
    """Read the command line, and the environment that torchrun's elastic agent sets."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    helper = ArgumentParser(prog="train_seg.py", description=__doc__.strip().splitlines()[0], exit_on_error=False)
    helper.add_argument("--dataset", help=f"train with the shipped config of a data set: {', '.join(DEFAULT_CONFIGS)}")
    helper.add_argument("--config", help="train with this YAML file; every key below can be set in it")
    helper.add_argument(
        "--resume",
        help="continue the run in this folder, with its own config; or auto, with --dataset or --config: continue the "
        "run in its output folder if it has saved a state, else begin it",
    )
    helper.add_argument("--allow-changes", help="keys that a resumed run may change, with commas between them")
    helper.add_argument("--dry-run", action="store_true", help="try it all out in two steps, and leave nothing behind")
    add_run_arguments(helper)
    if "-h" in argv or "--help" in argv:
        helper.print_help()
        raise SystemExit(0)
    dry = "--dry-run" in argv
    names = ("--dataset", "--config", "--resume", "--allow-changes")
    chosen, overrides = _take([word for word in argv if word != "--dry-run"], names)
    dataset, config, resume, changes = (chosen[name] for name in names)
    allow = tuple(key.strip() for key in (changes or "").split(",") if key.strip())
    if resume is not None and resume != "auto":
        if dataset or config:
            raise ConfigError("--resume FOLDER takes the config in the run folder: neither --dataset nor --config.")
        if dry:
            raise ConfigError("--dry-run tries a run out from its start: it does not go with --resume FOLDER.")
        if not (Path(resume) / "config.yaml").is_file():
            raise CheckpointError(f"{resume} is no run folder that can be resumed: it has no config.yaml.")
        return Order(load_run_config(Path(resume) / "config.yaml", overrides=overrides), resume, "yes", allow)
    if dataset is not None and dataset not in DEFAULT_CONFIGS:
        raise unknown_name("data set", dataset, DEFAULT_CONFIGS)
    if (dataset is None) == (config is None):
        raise ConfigError("give one of --dataset NAME, --config FILE or --resume FOLDER; --help shows every key.")
    path = Path(config) if config is not None else DEFAULT_CONFIGS[str(dataset)]
    run = load_run_config(path, overrides=overrides)
    # The elastic agent starts the same command again when a worker died.
    again = resume == "auto" or int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    return Order(run, run.output or f"runs/{path.stem}", "auto" if again else "no", allow, dry)


def _take(argv: Sequence[str], names: Sequence[str]) -> tuple[dict[str, str | None], list[str]]:
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
    order = parse(sys.argv[1:] if argv is None else argv)
    if order.dry:
        from resnest_seg.dry_run import dry_run

        print(dry_run(order.config))
        return 0

    import torch

    from resnest_seg.catalog import dataset_for
    from resnest_seg.doctor import check_samples, sampling_probabilities
    from resnest_seg.run_folder import RunFolder
    from resnest_seg.segmenter import segmenter_for
    from resnest_seg.training import Trainer

    config = order.config
    resume = order.resume == "yes" or (order.resume == "auto" and bool(RunFolder(order.output).states()))
    train = dataset_for(config.data, "train")
    validation = dataset_for(config.data, config.eval.split)
    if config.data.check and not resume:
        for dataset in (train, validation):
            check_samples(dataset, count=config.data.check, workers=config.data.workers)
    torch.manual_seed(config.seed)
    trainer = Trainer(
        config,
        segmenter=segmenter_for(config, train.label_space, pretrained=not resume),
        train=train,
        validation=validation,
        output=order.output,
        resume=resume,
        adopt=order.resume == "auto",
        allow_changes=order.allow,
        probabilities=sampling_probabilities(train, config.data),
    )
    try:
        finished = trainer.fit()
    except KeyboardInterrupt:
        finished = False
    if trainer.engine.is_main_process:
        folder = shlex.quote(str(order.output))
        if finished:
            print(f"done. Evaluate with: python tools/eval_seg.py --checkpoint {folder}")
        else:
            print(f"stopped and saved. Continue with: python tools/train_seg.py --resume {folder}", file=sys.stderr)
    if finished:
        return 0
    return EXIT_TERMINATED if trainer.stopped_by == signal.SIGTERM else EXIT_INTERRUPTED


if __name__ == "__main__":
    raise SystemExit(run_tool(main))
