"""Plan how a recipe fits into the memory of given devices: prints a table and the training command.

python tools/budget_seg.py --dataset ade20k --devices 1 --memory 24
python tools/budget_seg.py --config configs/ade20k_deeplabv3_resnest200.yaml --devices 4 --memory 80
python tools/budget_seg.py --checkpoint runs/my_run --memory 11
"""

from __future__ import annotations

import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from resnest_seg.cli.parsing.keys import KeyHelp, Own, take
from resnest_seg.cli.parsing.options import memory_bytes, number
from resnest_seg.cli.train import DEFAULT_CONFIGS, USUAL, config_path
from resnest_seg.config import RunConfig, load_run_config
from resnest_seg.config_reading import to_yaml
from resnest_seg.errors import ConfigError, command
from resnest_seg.labels import LabelSpace

OWN = (
    Own("--dataset", "NAME", f"the shipped config of a data set: {', '.join(DEFAULT_CONFIGS)}"),
    Own("--config", "FILE", "a config file"),
    Own(
        "--checkpoint",
        "RUN",
        "the config of a trained model: a run folder, a checkpoint file, or the name of a published checkpoint",
    ),
    Own("--devices", "N", "number of processes, one per device (default: 1)"),
    Own("--memory", "GIB", "memory of each device in GiB, or as 512MiB (default: that of this machine's devices)"),
    Own("--device", "KIND", "cuda or cpu (default: cuda with --memory, else this machine's)"),
    Own("--classes", "K", "number of classes (default: those of the data set; 21 for folder)"),
)
"""The options besides the config's keys."""

HELP = KeyHelp(
    verb="budget",
    arguments="(--dataset NAME | --config FILE | --checkpoint RUN) [--KEY VALUE ...]",
    description=__doc__,
    own=OWN,
    usual=USUAL,
)


def config_of(checkpoint: str, overrides: Sequence[str]) -> tuple[RunConfig, tuple[str, str]]:
    """Return the config of a trained model, with overrides, and the words that train by it.

    Raises:
        CheckpointError: It cannot be read.
    """
    path = Path(checkpoint) / "config.yaml"
    if path.is_file():
        return load_run_config(path, overrides=overrides), ("--config", str(path))
    from resnest_seg.models.loading import load_checkpoint

    with tempfile.TemporaryDirectory(prefix="resnest_seg_budget_") as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(to_yaml(load_checkpoint(checkpoint).config), encoding="utf-8")
        return load_run_config(path, overrides=overrides), ("--config", "FILE")


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; returns the exit code."""
    words = sys.argv[1:] if argv is None else argv
    HELP.show_if_asked(words)
    chosen, overrides = take(words, OWN)
    if chosen["--checkpoint"] is not None:
        if chosen["--dataset"] or chosen["--config"]:
            raise ConfigError("--checkpoint has a config of its own: give it without --dataset and --config.")
        config, where = config_of(chosen["--checkpoint"], overrides)
    else:
        path = config_path(chosen["--dataset"], chosen["--config"])
        config = load_run_config(path, overrides=overrides)
        option = "--dataset" if chosen["--dataset"] else "--config"
        where = (option, str(chosen[option]))
    count = int(number(chosen["--devices"] or "1", "--devices", 1, 65536))
    kind = chosen["--device"]
    if kind not in (None, "cuda", "cpu"):
        raise ConfigError(f"--device must be cuda or cpu, not {kind!r}.")
    given = None if chosen["--memory"] is None else memory_bytes(chosen["--memory"], low=0.01)
    if chosen["--classes"] is not None:
        classes = int(number(chosen["--classes"], "--classes", 1, 255))
    else:
        classes = 21 if config.data.dataset in ("folder", "shards") else len(LabelSpace.of(config.data.dataset))

    from resnest_seg.io.display import console
    from resnest_seg.training.memory import Devices, devices_here, plan
    from resnest_seg.training.tasks import check_choices

    check_choices(config)
    here = devices_here()
    devices = Devices(count, here.memory if given is None else given, kind or (here.kind if given is None else "cuda"))
    planned = plan(config, num_classes=classes, devices=devices)
    console().print(planned.table())
    launcher = "python" if devices.count == 1 else f"accelerate launch --num_processes {devices.count}"
    print(f"{command('train', launcher=launcher)} {shlex.join([*where, *planned.words, *overrides])}")
    return 0
