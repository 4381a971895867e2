"""Distributed runs with accelerate: devices, processes, precision, stop signals; model sharding by FSDP2."""

from __future__ import annotations

import contextlib
import datetime
import os
import platform
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.utils import gather_object
from torch import Tensor, nn

from resnest_seg.config import AnyConfig
from resnest_seg.errors import ConfigError, ResNeStSegError, unknown_name
from resnest_seg.training.optim import frozen_names
from resnest_seg.training.trackers import tracker_names

PRECISIONS = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}
"""Our names of precisions -> accelerate's."""

PARALLEL = ("ddp", "fsdp")
"""Values of `train.parallel`."""


def accelerator_for(config: AnyConfig, output: Path) -> Accelerator:
    """Set up accelerate for the available devices and processes, with the config's precision.

    Raises:
        ConfigError: The precision is unknown or not supported by the device, the batch is not divisible by the
            processes, the processes do not form a group, or a tracker is unknown or not installed.
    """
    log_with = tracker_names(config.train.trackers)
    if config.train.parallel not in PARALLEL:
        raise unknown_name("train.parallel", config.train.parallel, PARALLEL)
    wanted = config.train.precision
    if wanted not in ("auto", *PRECISIONS):
        raise unknown_name("train.precision", wanted, ("auto", *PRECISIONS))
    gpu, processes = torch.cuda.is_available(), launched()
    wanted = resolved_precision(wanted)
    if wanted == "fp16" and not gpu:
        raise ConfigError("train.precision fp16 needs a GPU. Use auto, fp32 or bf16.")
    if wanted == "fp16" and config.train.parallel == "fsdp":
        raise ConfigError("train.precision fp16 does not go with train.parallel fsdp. Use bf16 or fp32, or ddp.")
    timeout = datetime.timedelta(seconds=config.train.peer_timeout)
    _join_again(timeout)
    # DDP rebuilds its buckets after a process's first step, so sums of three or more would round differently after a
    # resume. With find_unused_parameters it does not (it warns that there are none): on CPUs, which resume exactly.
    ddp = [] if gpu else [DistributedDataParallelKwargs(find_unused_parameters=True)]
    try:
        engine = Accelerator(
            cpu=processes > 1 and not gpu,  # else each process would start a separate run
            mixed_precision=PRECISIONS[wanted],
            log_with=log_with or None,
            project_dir=output,
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timeout), *ddp],
        )
    except ValueError as error:  # accelerate allows one precision per process
        raise ConfigError(f"train.precision {wanted} cannot be set up in this process: {error}") from None
    if engine.num_processes < processes:
        raise ConfigError(
            f"WORLD_SIZE says that {processes} processes train together, and this one found {engine.num_processes}: "
            "each would train alone into the same folder. Start them with torchrun."
        )
    shares = config.train.accumulation * engine.num_processes
    if config.train.batch_size % shares:
        raise ConfigError(
            f"train.batch_size ({config.train.batch_size}) must be a multiple of train.accumulation x processes "
            f"({config.train.accumulation} x {engine.num_processes})."
        )
    names = set(frozen_names(config.optim))
    frozen = "head_bn" in names and bool(names & {"bn", "encoder"})
    if config.train.batch_size // shares == 1 and not frozen and not shares_statistics(config, engine):
        raise ConfigError(
            f"train.batch_size ({config.train.batch_size}) leaves one image for each of {config.train.accumulation} "
            f"micro-batches x {engine.num_processes} processes, and batch norm needs two. Lower train.accumulation, or "
            "keep the statistics of all batch norms with optim.freeze bn,head_bn."
        )
    return engine


def launched() -> int:
    """Return the number of processes of a run, from torchrun's environment variables.

    Raises:
        ConfigError: Some of the variables are missing: each process would work alone, or wait forever.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if count > 1 and missing:
        raise ConfigError(
            f"WORLD_SIZE says that {count} processes work together, but {', '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not set, so they would not find each other. Start them with "
            "torchrun, which sets all of them; for a single process unset WORLD_SIZE."
        )
    return count


def resolved_precision(wanted: str) -> str:
    """`train.precision` with auto resolved: bf16 on a GPU that supports it, fp16 on another one, fp32 elsewhere."""
    if wanted != "auto":
        return wanted
    if not torch.cuda.is_available():
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def multiplies_bfloat16() -> bool:
    """Whether this machine's processor multiplies bfloat16 itself: by AMX, AVX-512 BF16 or Arm's BF16."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in ("amx_bf16", "avx512_bf16", "bf16"))


def describe_precision(engine: Accelerator, wanted: str) -> str:
    """Return a run's precision, and the faster one if it runs on a CPU.

    Args:
        engine: The run's.
        wanted: `train.precision`.
    """
    found = precision_of(engine)
    if engine.device.type != "cpu" or (found == "bf16") == multiplies_bfloat16():
        return found
    if found == "bf16":
        return "bf16 (which this processor does not multiply: --train.precision fp32 is faster)"
    if wanted == "auto":
        return f"{found} (this processor multiplies bfloat16: --train.precision bf16 is faster)"
    return found


def precision_of(engine: Accelerator) -> str:
    """Return our name of accelerate's precision, which resolves `train.precision` auto."""
    return next(name for name, theirs in PRECISIONS.items() if theirs == engine.mixed_precision)


def check_agreement(config: AnyConfig, output: Path) -> None:
    """Check that all processes divide the batch alike, without which samples would be lost or repeated silently.

    And that they write into one folder, whose name each has chosen for itself if the command line has none.

    Raises:
        ConfigError: They differ.
    """
    divisions = gather_object([config.train.accumulation])
    if len(set(divisions)) > 1:
        raise ConfigError(
            f"the processes divide the batch differently (accumulation {', '.join(map(str, divisions))}): --budget "
            "auto found other memory on some of the machines. Give --budget the GiB of the smallest on each of them."
        )
    folders = sorted(set(gather_object([str(output)])))
    if len(folders) > 1:
        raise ConfigError(
            f"the processes chose different run folders ({', '.join(folders)}): another run began at the same moment, "
            "or the machines do not see the same files. Start again, with one folder for all of them: --output "
            f"{folders[-1]}"
        )


@contextlib.contextmanager
def lost_peers_named(processes: int, *, go_on: str) -> Iterator[None]:
    """Context that turns the many errors of a process group which lost a member into a message that says so.

    Args:
        processes: Processes of the run.
        go_on: How to go on, a sentence.

    Raises:
        ResNeStSegError: Another process died, is out of reach, or did not answer within the group's timeout.
    """
    try:
        yield
    except RuntimeError as error:
        said = " ".join(str(error).split())
        if processes == 1 or not (isinstance(error, torch.distributed.DistError) or _OF_A_GROUP.search(said)):
            raise
        said = re.sub(r"^\[\S*gloo\S*\] ", "", said)
        rank = os.environ.get("RANK", "0")
        raise ResNeStSegError(
            f"process {rank} of {processes}, on {platform.node()}, lost another one, which died, is out of reach, or "
            f"did not answer in time ({said[:200]}). What happened to that one is in its own output. {go_on}"
        ) from None


_OF_A_GROUP = re.compile(r"gloo/|NCCL|ProcessGroup|Connection (closed|reset) by peer")
"""What plain RuntimeErrors of torch's process groups say."""


def _join_again(timeout: datetime.timedelta) -> None:
    """Give the processes a new rendezvous prefix after a restart by torchrun's agent.

    The agent's store still has the addresses of the dead processes, to which new ones would connect
    (github.com/pytorch/pytorch/issues/135712). Agents of several machines count restarts differently: they must make a
    new store each time, which TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 requests.
    """
    env = os.environ
    restarts = int(env.get("TORCHELASTIC_RESTART_COUNT", "0"))
    if env.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or env.get("TORCH_DISABLE_SHARE_RDZV_TCP_STORE") == "1":
        return
    if int(env.get("GROUP_WORLD_SIZE", "1")) > 1:
        if int(env.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0 and env.get("RANK") == "0":
            print(
                "warning: torchrun cannot restart workers on several machines unless "
                "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 is exported on each before it starts.",
                file=sys.stderr,
            )
        return
    if restarts and not torch.distributed.is_initialized():
        from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]  # torch's own stubs lack them

        on_gpu = torch.cuda.is_available() and env.get("ACCELERATE_USE_CPU", "false").lower() not in ("true", "1")
        if on_gpu:
            torch.cuda.set_device(int(env["LOCAL_RANK"]))
        store = TCPStore(env["MASTER_ADDR"], int(env["MASTER_PORT"]), is_master=False)
        torch.distributed.init_process_group(
            "nccl" if on_gpu else "gloo",
            store=PrefixStore(f"restart_{restarts}", store),
            rank=int(env["RANK"]),
            world_size=int(env["WORLD_SIZE"]),
            timeout=timeout,
        )


def settle(processes: int) -> None:
    """Let the process group's thread finish after the last collective operation, if there are several processes.

    Gloo's thread frees the tensors of that operation, for which it needs Python's lock. A caller that drops the group
    at once would wait for the thread and hold that lock; an interpreter that ends at once aborts the process (SIGABRT
    in one of ten ends of a short evaluation, torch 2.11).
    """
    if processes > 1:
        time.sleep(0.5)


def shares_statistics(config: AnyConfig, engine: Accelerator) -> bool:
    """True if batch norm's statistics are synchronised over processes; torch supports this on GPUs only."""
    return config.train.sync_bn and engine.num_processes > 1 and bool(engine.device.type == "cuda")


def splits_model(config: AnyConfig, engine: Accelerator) -> bool:
    """True if each process holds a shard of the model (FSDP2)."""
    return config.train.parallel == "fsdp" and engine.num_processes > 1


class StopSignal:
    """Context in which the first Ctrl-C or SIGTERM only sets `number`; a second Ctrl-C raises as usual.

    Python delivers signals to the main thread alone: in another one, the context changes no handler and hears nothing.
    The death of torchrun's agent, which started this process, counts as SIGTERM: nobody else would end it, and it would
    go on beside the process that a new agent starts in its place.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._agent = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None

    def __enter__(self) -> StopSignal:
        heard = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
        self._before = {number: signal.signal(number, self._request) for number in heard}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        signal.signal(signal.SIGINT, signal.default_int_handler)
        print("\nstopping after this step (press Ctrl-C again to stop at once) ...", file=sys.stderr)

    def anywhere(self, engine: Accelerator) -> int | None:
        """Return the signal that any process received, SIGTERM first; collective, so that all stop at the same step."""
        if self._agent not in (None, os.getppid()):
            self._agent = None
            self._request(signal.SIGTERM, None)
        if engine.num_processes == 1:
            return self.number
        got = [self.number == number for number in (signal.SIGTERM, signal.SIGINT)]
        counts = engine.reduce(torch.tensor(got, dtype=torch.int64, device=engine.device), reduction="sum").tolist()
        return signal.SIGTERM if counts[0] else signal.SIGINT if counts[1] else None


UNIT = 1_000_000
"""Minimum parameters of a child module that is sharded, and so gathered, as a separate unit."""


def shard(model: nn.Module, *, processes: int, device: str) -> None:
    """Shard a model's parameters over all processes, in place; buffers are replicated.

    Children of at least `UNIT` parameters, at any depth, are gathered one at a time for the forward and backward pass.

    Args:
        model: The model, on its device, with the same values on every process.
        processes: Number of processes.
        device: "cuda" or "cpu".
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(device, (processes,))
    model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # FSDP2 takes no other
    for module in reversed(list(model.modules())[1:]):  # children before parents
        size = sum(p.numel() for p in module.parameters() if not hasattr(p, "full_tensor"))
        called = type(module).forward is not nn.Module.forward  # else its parent uses its parts, and nothing gathers it
        if size >= UNIT and called:
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    if hasattr(model, "masks"):  # which training calls in place of the model itself, if its head predicts masks
        register_fsdp_forward_method(model, "masks")


def whole(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gather sharded tensors; collective: all processes must call it."""
    return {key: value.full_tensor() if hasattr(value, "full_tensor") else value for key, value in tensors.items()}


def part_like(value: Tensor, parameter: Tensor) -> Tensor:
    """Return this process's shard of a tensor, as `parameter` is sharded; the tensor itself if it is not."""
    if not hasattr(parameter, "full_tensor") or value.shape != parameter.shape:
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(parameter, DTensor)
    return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)


@contextlib.contextmanager
def gradients_stay(model: nn.Module) -> Iterator[None]:
    """Context in which the backward pass of a sharded model accumulates gradients without synchronisation."""
    from torch.distributed.fsdp import FSDPModule

    assert isinstance(model, FSDPModule)
    model.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        model.set_requires_gradient_sync(True)
