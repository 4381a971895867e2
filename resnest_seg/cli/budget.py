"""Plan how a recipe fits into the memory of given devices: prints a table and the training command.

python tools/budget_seg.py --dataset ade20k --devices 1 --memory 24
python tools/budget_seg.py --config configs/ade20k_deeplabv3_resnest200.yaml --devices 4 --memory 80
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from jsonargparse import ArgumentParser

from resnest_seg.cli.main import complete, completing
from resnest_seg.cli.train import DEFAULT_CONFIGS, config_path, number, take
from resnest_seg.config import add_run_arguments, load_run_config
from resnest_seg.errors import ConfigError, command, program, usage
from resnest_seg.labels import LabelSpace

HELP = f"""{usage(__doc__).strip()}

  --dataset NAME   the shipped config of a data set: {", ".join(DEFAULT_CONFIGS)}
  --config FILE    a config file, or the name of a shipped config
  --devices N      number of processes, one per device (default: 1)
  --memory GIB     memory of each device (default: that of this machine's devices)
  --device KIND    cuda or cpu (default: cuda with --memory, else this machine's)
  --classes K      number of classes (default: those of the data set; 21 for folder)
  --KEY VALUE      any key of the config, as in {program("train")}, whose --help lists them"""

OWN = ("--dataset", "--config", "--devices", "--memory", "--device", "--classes")


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; returns the exit code."""
    words = sys.argv[1:] if argv is None else argv
    if "-h" in words or "--help" in words:
        print(HELP)
        return 0
    if completing():
        parser = ArgumentParser()
        for name in OWN:
            parser.add_argument(name)
        add_run_arguments(parser)
        complete(parser)
    chosen, overrides = take(words, OWN)
    path = config_path(chosen["--dataset"], chosen["--config"])
    config = load_run_config(path, overrides=overrides)
    count = int(number(chosen["--devices"] or "1", "--devices", 1, 65536))
    kind = chosen["--device"]
    if kind not in (None, "cuda", "cpu"):
        raise ConfigError(f"--device must be cuda or cpu, not {kind!r}.")

    from resnest_seg.io.display import console
    from resnest_seg.training.memory import GIB, Devices, devices_here, plan

    here = devices_here()
    memory = (
        here.memory if chosen["--memory"] is None else int(number(chosen["--memory"], "--memory", 0.01, 65536) * GIB)
    )
    devices = Devices(count, memory, kind or (here.kind if chosen["--memory"] is None else "cuda"))
    if chosen["--classes"] is not None:
        classes = int(number(chosen["--classes"], "--classes", 1, 255))
    else:
        classes = 21 if config.data.dataset == "folder" else len(LabelSpace.of(config.data.dataset))
    planned = plan(config, num_classes=classes, devices=devices)
    console().print(planned.table())
    launcher = "python" if devices.count == 1 else f"accelerate launch --num_processes {devices.count}"
    where = f"--dataset {chosen['--dataset']}" if chosen["--dataset"] else f"--config {chosen['--config']}"
    print(" ".join([command("train", launcher=launcher), where, *planned.words, *overrides]))
    return 0
