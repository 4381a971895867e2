"""Memory planning: how a recipe's batch is divided into micro-batches so that a step fits into memory.

The effective batch and the schedule stay what they are, because they decide the figure. Memory is counted, not guessed:
a training step runs on fake tensors, which have sizes and no content, while every allocation is added up.
"""

from __future__ import annotations

import dataclasses
import os
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from resnest_seg.config import RunConfig, loss_names
from resnest_seg.errors import ConfigError
from resnest_seg.io.display import PlainTable
from resnest_seg.models.loading import segmenter_for
from resnest_seg.models.resnest import SMP
from resnest_seg.training.chunked_loss import GPU_CHUNKS
from resnest_seg.training.losses import REGION_LOSSES, SegmentationLoss
from resnest_seg.training.optim import describe_lr, freeze, hold_frozen

GIB = 2**30
"""Bytes of a GiB."""

RESERVE, MARGIN = GIB, 0.1
"""What is kept free of a device: the driver's context and workspaces, and a share of the rest for fragments."""

ENOUGH_STATISTICS = 8
"""Images from which batch norm's statistics are about as good as those of 16; below, its error rises quickly (Wu and
He, "Group Normalization", https://arxiv.org/abs/1803.08494, figure 1)."""

OPTIMIZER_STATES = {"sgd": 1, "adamw": 2}
"""Tensors of a parameter's size that an optimiser keeps for it."""


CHUNK_TENSORS = 4
"""Float32 tensors of a chunk's size that the loss holds at once."""


def gib(size: int) -> str:
    """Bytes in words: "23.9 GiB", and below a tenth of a GiB "10.2 MiB"."""
    return f"{size / GIB:.1f} GiB" if size == 0 or size >= GIB / 10 else f"{size / 2**20:.1f} MiB"


@dataclasses.dataclass(frozen=True)
class Devices:
    """What a run is to run on.

    Attributes:
        count: Processes, one a device.
        memory: Bytes of each.
        kind: "cuda" or "cpu".
    """

    count: int
    memory: int
    kind: str

    @property
    def usable(self) -> int:
        """Bytes of each that training may fill."""
        return max(int((self.memory - RESERVE) * (1 - MARGIN)), 0)

    def __str__(self) -> str:
        usable = f"{gib(self.usable)} usable" if self.usable else f"nothing usable, as {gib(RESERVE)} is kept free"
        return f"{self.count} x {self.kind} with {gib(self.memory)} ({usable})"


@dataclasses.dataclass(frozen=True)
class MemoryModel:
    """Bytes of a training step on one device: a fixed part and one for every image of a micro-batch.

    Attributes:
        fixed: Weights, gradients, the optimiser's state, and what does not grow with the batch.
        per_image: Bytes for each image.
    """

    fixed: int
    per_image: int

    def __call__(self, images: int) -> int:
        """Bytes at the peak of a step over micro-batches of `images`."""
        return self.fixed + self.per_image * images


@dataclasses.dataclass(frozen=True)
class Option:
    """One way to divide the effective batch.

    Attributes:
        micro_batch: Images per device and micro-batch.
        accumulation: Micro-batches per optimiser step.
        checkpointing: Whether blocks are computed twice to save memory.
        memory: Bytes at the peak, on each device.
        statistics: Images that batch norm's statistics are taken over.
        problem: Why it cannot be used; empty if it can.
    """

    micro_batch: int
    accumulation: int
    checkpointing: bool
    memory: int
    statistics: int
    problem: str = ""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What was considered and what was chosen.

    Attributes:
        config: The run with the chosen division.
        chosen: The option it has.
        options: All of them.
        devices: What they were judged by.
    """

    config: RunConfig
    chosen: Option
    options: tuple[Option, ...]
    devices: Devices

    def table(self) -> PlainTable:
        """All options with their memory and, in words, why one was chosen."""
        train, data = self.config.train, self.config.data
        length = f"{train.epochs} epochs" if train.iterations is None else f"{train.iterations} iterations"
        table = PlainTable(
            title=f"{self.config.model.encoder} {self.config.model.head}, crop {data.crop_size} x "
            f"{data.crop_width or data.crop_size}, {self.devices}",
            caption=f"The recipe holds: {train.batch_size} images a step (micro-batch x accumulate x devices), "
            f"{length}, {describe_lr(self.config)}. Batch norm needs two images; below {ENOUGH_STATISTICS} are few.",
        )
        for name in ("micro-batch", "accumulate", "checkpoint", "GiB", "norm sees", ""):
            table.column(name, right=bool(name))
        for option in self.options:
            cells = (option.micro_batch, option.accumulation, "yes" if option.checkpointing else "no")
            row = [str(cell) for cell in cells] + [f"{option.memory / GIB:.2f}", str(option.statistics)]
            verdict = f"chosen: {_reason(option)}" if option == self.chosen else option.problem
            table.row(*row, verdict, style="bold" if option == self.chosen else "dim" if option.problem else "")
        return table

    @property
    def words(self) -> list[str]:
        """The overrides that give this division to tools/train_seg.py."""
        model, train = self.config.model, self.config.train
        return [
            f"--train.accumulation={train.accumulation}",
            f"--model.checkpointing={str(model.checkpointing).lower()}",
        ]


def plan(config: RunConfig, *, num_classes: int, devices: Devices) -> Plan:
    """Divide a run's effective batch over devices, so that it fits and the recipe holds.

    Taken is the largest micro-batch that fits; checkpointing only where, without it, batch norm would see fewer than
    `ENOUGH_STATISTICS` images.

    Args:
        config: The run; its accumulation and checkpointing are ignored.
        num_classes: K.
        devices: Their number and memory.

    Raises:
        ConfigError: The devices cannot share the batch, or nothing fits: says how much is missing and what would help.
    """
    half = config.train.precision in ("bf16", "fp16") or (config.train.precision == "auto" and devices.kind == "cuda")
    models = {
        checkpointing: measure(
            divided(config, 1, checkpointing=checkpointing), num_classes=num_classes, half=half, processes=devices.count
        )
        for checkpointing in ((False, True) if _can_checkpoint(config) else (False,))
    }
    shared = config.train.sync_bn and devices.count > 1 and devices.kind == "cuda"
    options = divide(config.train.batch_size, devices, models, shared_statistics=shared)
    chosen = choose(options)
    if chosen is None:
        possible = [option for option in options if option.statistics > 1]
        if not possible:
            raise ConfigError(
                f"train.batch_size ({config.train.batch_size}) is too small: batch norm needs two images."
            )
        least = min(possible, key=lambda option: option.memory)
        raise ConfigError(
            f"{config.model.encoder} {config.model.head} does not fit into {devices}: the smallest step takes "
            f"{gib(least.memory)} on each, and {gib(RESERVE)} and {MARGIN:.0%} of the rest are kept free. Lower "
            f"data.crop_size ({config.data.crop_size}), raise model.output_stride ({config.model.output_stride}), or "
            "take a smaller encoder; each of them is another recipe."
        )
    resolved = divided(config, chosen.accumulation, checkpointing=chosen.checkpointing)
    return Plan(resolved, chosen, tuple(options), devices)


def divide(
    batch: int, devices: Devices, models: Mapping[bool, Callable[[int], int]], *, shared_statistics: bool
) -> list[Option]:
    """All ways to divide `batch` images, the largest micro-batches first.

    Args:
        batch: Images per optimiser step.
        devices: What they are divided over.
        models: checkpointing -> (images of a micro-batch -> bytes).
        shared_statistics: Batch norm sees the images of all devices.

    Raises:
        ConfigError: The devices cannot share the batch equally.
    """
    if batch % devices.count:
        below = batch // devices.count * devices.count
        nearest = " or ".join(str(size) for size in (below, below + devices.count) if size)
        raise ConfigError(
            f"train.batch_size ({batch}) cannot be shared equally by {devices.count} devices. Use other devices, or a "
            f"batch of {nearest}; the learning rate follows it."
        )
    share, options = batch // devices.count, []
    for micro_batch in (size for size in range(share, 0, -1) if share % size == 0):
        for checkpointing, memory in models.items():
            statistics = micro_batch * (devices.count if shared_statistics else 1)
            need = memory(micro_batch)
            problem = "" if need <= devices.usable else f"{gib(need - devices.usable)} too much"
            if statistics < 2:
                problem = "batch norm needs two images"
            options.append(Option(micro_batch, share // micro_batch, checkpointing, need, statistics, problem))
    return options


def choose(options: Sequence[Option]) -> Option | None:
    """The option to take, None if none can be used; see `plan` for the rule."""
    usable = [option for option in options if not option.problem]
    return max(
        usable,
        key=lambda option: (
            min(option.statistics, ENOUGH_STATISTICS),
            not option.checkpointing,
            option.micro_batch,
        ),
        default=None,
    )


def measure(config: RunConfig, *, num_classes: int, half: bool, processes: int = 1) -> MemoryModel:
    """Count the memory of a run's training step, from steps of two and four images on fake tensors.

    Nothing is computed and no memory is used. The workspaces of convolutions are not counted; what the loss holds of
    full-size logits at a time is counted as on a GPU. FSDP is counted as if every process held the whole model.

    Args:
        config: The run.
        num_classes: K.
        half: Autocast to half precision.
        processes: With more than one, gradients have a second copy in the buckets that are sent.

    Raises:
        ConfigError: A loss on full-size logits, whose memory depends on what the labels hold.
    """
    full_size = [name for name in loss_names(config.train.loss) if name in REGION_LOSSES]
    if full_size:
        raise ConfigError(
            f"the memory of train.loss {full_size[0]} cannot be counted beforehand. Set train.accumulation and "
            "model.checkpointing yourself, and try them with --dry-run."
        )
    two, four = (_step(config, num_classes, images, half) for images in (2, 4))

    per_image = (four.peak - two.peak) // 2
    copies = OPTIMIZER_STATES.get(config.optim.optimizer, 2) + 1 + (processes > 1)  # of which one is the gradients
    averaged, judged = config.train.ema > 0, config.train.ema > 0 or (config.train.parallel == "fsdp" and processes > 1)
    fixed = two.peak - 2 * per_image + (1 + averaged + judged) * two.weights + copies * two.trained
    return MemoryModel(fixed, per_image + CHUNK_TENSORS * 4 * num_classes * _pixels(config) // GPU_CHUNKS)


def devices_here() -> Devices:
    """The devices of this process group: CUDA's smallest where there is one, else this machine's memory, shared."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if torch.cuda.is_available():
        found = range(torch.cuda.device_count())
        return Devices(count, min(torch.cuda.get_device_properties(index).total_memory for index in found), "cuda")
    local = int(os.environ.get("LOCAL_WORLD_SIZE", count))
    return Devices(count, machine_memory() // local, "cpu")


def machine_memory(limit_file: str = "/sys/fs/cgroup/memory.max") -> int:
    """Bytes of memory that this machine, or the container that this is, has."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        with open(limit_file, encoding="ascii") as file:
            return min(memory, int(file.read()))
    except (OSError, ValueError):  # no such file, or "max"
        return memory


class LiveBytes(TorchDispatchMode):
    """Within this context, how many bytes of new tensors are alive, and the most that ever were.

    Attributes:
        live: Bytes now.
        peak: The most so far.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live, self.peak, self._known = 0, 0, set[int]()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._add(value.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


@dataclasses.dataclass(frozen=True)
class _Step:
    """Bytes of the weights and buffers, of those that are trained, and of what a step adds at its peak."""

    weights: int
    trained: int
    peak: int


def _step(config: RunConfig, num_classes: int, images: int, half: bool) -> _Step:
    height, width = config.data.crop_size, config.data.crop_width or config.data.crop_size
    with FakeTensorMode(allow_non_fake_inputs=True):
        segmenter = segmenter_for(config, None, num_classes=num_classes, pretrained=False)
        freeze(segmenter, config.optim)
        segmenter.train()
        hold_frozen(segmenter, config.optim)
        loss = SegmentationLoss(config.train.aux_weight, align_corners=segmenter.align_corners)
        with LiveBytes() as bytes_:
            pixels = torch.empty(images, config.model.in_channels, height, width, dtype=torch.uint8)
            labels = torch.empty(images, height, width, dtype=torch.int64)
            # The CPU's list of half-precision operations is close enough to the GPU's.
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
                output = segmenter(pixels, coarse=True)
                total = loss(output.logits, output.aux_logits, labels, pixels=torch.empty((), dtype=torch.int64))
            del output
            total.backward()
        weights = sum(value.nbytes for value in segmenter.state_dict().values())
        trained = sum(value.nbytes for value in segmenter.parameters() if value.requires_grad)
    return _Step(weights, trained, bytes_.peak)


def _pixels(config: RunConfig) -> int:
    return config.data.crop_size * (config.data.crop_width or config.data.crop_size)


def divided(config: RunConfig, accumulation: int, *, checkpointing: bool) -> RunConfig:
    """The config with the batch divided in another way; what it computes but for batch norm stays the same."""
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, checkpointing=checkpointing),
        train=dataclasses.replace(config.train, accumulation=accumulation),
    )


def _can_checkpoint(config: RunConfig) -> bool:
    return not config.model.encoder.startswith(SMP)


def _reason(option: Option) -> str:
    if option.accumulation == 1 and not option.checkpointing:
        return "all at once"
    if option.checkpointing:
        return "batch norm sees enough" if option.statistics >= ENOUGH_STATISTICS else "the most that fits"
    few = option.statistics < ENOUGH_STATISTICS
    return "the most that fits" if few else "the most without checkpointing"
