"""What a run runs on: devices, processes and precision through accelerate, and the signals that end it."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from types import FrameType

import torch
from accelerate import Accelerator

from resnest_seg.config import RunConfig
from resnest_seg.errors import ConfigError, unknown_name

PRECISIONS = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}
"""Our names of precisions -> accelerate's."""


def accelerator_for(config: RunConfig, output: Path) -> Accelerator:
    """The engine for the devices and processes at hand, with the config's precision.

    Raises:
        ConfigError: Unknown precision, one that the device lacks, or a batch that the processes cannot share.
    """
    wanted = config.train.precision
    if wanted not in ("auto", *PRECISIONS):
        raise unknown_name("train.precision", wanted, ("auto", *PRECISIONS))
    gpu = torch.cuda.is_available()
    if wanted == "auto":
        wanted = "fp32" if not gpu else "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if wanted == "fp16" and not gpu:
        raise ConfigError("train.precision fp16 needs a GPU. Use auto, fp32 or bf16.")
    try:
        engine = Accelerator(mixed_precision=PRECISIONS[wanted], log_with="tensorboard", project_dir=output)
    except ValueError as error:  # accelerate keeps one precision a process
        raise ConfigError(f"train.precision {wanted} cannot be set up in this process: {error}") from None
    shares = config.train.accumulation * engine.num_processes
    if config.train.batch_size % shares:
        raise ConfigError(
            f"train.batch_size ({config.train.batch_size}) must be a multiple of train.accumulation x processes "
            f"({config.train.accumulation} x {engine.num_processes})."
        )
    if config.train.batch_size // shares == 1 and not shares_statistics(config, engine):
        raise ConfigError(
            f"train.batch_size ({config.train.batch_size}) leaves one image for each of {config.train.accumulation} "
            f"micro-batches x {engine.num_processes} processes, and batch norm needs two. Lower train.accumulation."
        )
    return engine


def shares_statistics(config: RunConfig, engine: Accelerator) -> bool:
    """Whether batch norm sees the images of all processes; torch has this for GPUs only."""
    return config.train.sync_bn and engine.num_processes > 1 and bool(engine.device.type == "cuda")


class StopSignal:
    """Within this context, the first Ctrl-C or SIGTERM only sets `requested`; a second Ctrl-C raises as usual."""

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> StopSignal:
        self._before = {number: signal.signal(number, self._request) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        print("\nstopping after this step (press Ctrl-C again to stop at once) ...", file=sys.stderr)
