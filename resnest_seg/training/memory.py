"""Memory planning: division of a recipe's batch into micro-batches such that a training step fits into memory.

The effective batch and the schedule are kept, because they determine the score. Memory is counted, not estimated: a
training step runs on fake tensors, which have sizes and no content, while every allocation is added up.
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
from resnest_seg.models.mask2former import SetLoss
from resnest_seg.models.resnest import SMP
from resnest_seg.models.segmenter import Segmenter
from resnest_seg.teachers.consistency import Consistency
from resnest_seg.teachers.unlabelled import VIEWS, MixedBatch
from resnest_seg.training.chunked_loss import GPU_CHUNKS
from resnest_seg.training.losses import FULL_SIZE_LOSSES, SegmentationLoss
from resnest_seg.training.optim import describe_lr, freeze, hold_frozen
from resnest_seg.training.tasks import consistency_loss

GIB = 2**30
"""Bytes of a GiB."""

RESERVE, MARGIN = GIB, 0.1
"""Memory reserved on a device: the driver's context and workspaces, and a share of the rest for fragmentation."""

ENOUGH_STATISTICS = 8
"""Images per batch norm at which the error is close to that with 16; below, it rises quickly (Wu and He, "Group
Normalization", https://arxiv.org/abs/1803.08494, figure 1)."""

OPTIMIZER_STATES = {"sgd": 1, "adamw": 2}
"""Number of state tensors of an optimiser per parameter."""


CHUNK_TENSORS = 4
"""Number of float32 tensors of a chunk's size in the loss."""

PRESENT = 20
"""Classes of a crop that are counted for a head that predicts masks: few crops have more."""


def gib(size: int) -> str:
    """Format bytes: "23.9 GiB", or "10.2 MiB" below a tenth of a GiB."""
    return f"{size / GIB:.1f} GiB" if size == 0 or size >= GIB / 10 else f"{size / 2**20:.1f} MiB"


@dataclasses.dataclass(frozen=True)
class Devices:
    """The devices of a run.

    Attributes:
        count: Number of processes, one per device.
        memory: Bytes of each device.
        kind: "cuda" or "cpu".
    """

    count: int
    memory: int
    kind: str

    @property
    def usable(self) -> int:
        """Bytes of each device that training may use."""
        return max(int((self.memory - RESERVE) * (1 - MARGIN)), 0)

    def __str__(self) -> str:
        usable = f"{gib(self.usable)} usable" if self.usable else f"nothing usable, as {gib(RESERVE)} is kept free"
        return f"{self.count} x {self.kind} with {gib(self.memory)} ({usable})"


@dataclasses.dataclass(frozen=True)
class MemoryModel:
    """Linear model of a training step's memory on one device.

    Attributes:
        fixed: Bytes of weights, gradients, optimiser state and everything else that does not grow with the batch.
        per_image: Bytes per image of a micro-batch.
    """

    fixed: int
    per_image: int

    def __call__(self, images: int) -> int:
        """Return the peak bytes of a step with micro-batches of `images`."""
        return self.fixed + self.per_image * images


@dataclasses.dataclass(frozen=True)
class Option:
    """One way to divide the effective batch.

    Attributes:
        micro_batch: Images per device and micro-batch.
        accumulation: Micro-batches per optimiser step.
        checkpointing: Use activation checkpointing, which recomputes blocks to save memory.
        memory: Peak bytes on each device.
        statistics: Number of images in batch norm's statistics.
        problem: Why the option cannot be used; empty if it can.
    """

    micro_batch: int
    accumulation: int
    checkpointing: bool
    memory: int
    statistics: int
    problem: str = ""


@dataclasses.dataclass(frozen=True)
class Plan:
    """The options for dividing a batch, and the chosen one.

    Attributes:
        config: The run with the chosen division.
        chosen: The chosen option.
        options: All options.
        devices: The devices.
    """

    config: RunConfig
    chosen: Option
    options: tuple[Option, ...]
    devices: Devices

    def table(self) -> PlainTable:
        """Make a table of all options with their memory and the reason for the choice."""
        train, data = self.config.train, self.config.data
        teachers = ", ".join(self.config.distill.teacher or ())
        uncounted = (
            f" Not counted: what {teachers} (distill.teacher) takes, which --dry-run measures." if teachers else ""
        )
        length = f"{train.epochs} epochs" if train.iterations is None else f"{train.iterations} iterations"
        table = PlainTable(
            title=f"{self.config.model.encoder} {self.config.model.head}, crop {data.crop_size} x "
            f"{data.crop_width or data.crop_size}, {self.devices}",
            caption=f"The recipe holds: {train.batch_size} images a step (micro-batch x accumulate x devices), "
            f"{length}, {describe_lr(self.config)}. Batch norm needs two images; below {ENOUGH_STATISTICS} are few."
            f"{uncounted}",
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
        """Return the overrides of the config that select this division."""
        model, train = self.config.model, self.config.train
        return [
            f"--train.accumulation={train.accumulation}",
            f"--model.checkpointing={str(model.checkpointing).lower()}",
        ]


def plan(config: RunConfig, *, num_classes: int, devices: Devices) -> Plan:
    """Divide a run's effective batch over devices, so that it fits and the recipe is unchanged.

    The largest micro-batch that fits is chosen; checkpointing only if, without it, batch norm would see fewer than
    `ENOUGH_STATISTICS` images.

    Args:
        config: The run; its accumulation and checkpointing are ignored.
        num_classes: K.
        devices: Their number and memory.

    Raises:
        ConfigError: The batch is not divisible by the devices, or nothing fits; the message says what would help.
    """
    shared = config.train.sync_bn and devices.count > 1 and devices.kind == "cuda"
    if share_of(config.train.batch_size, devices) * (devices.count if shared else 1) < 2:
        raise ConfigError(f"train.batch_size ({config.train.batch_size}) is too small: batch norm needs two images.")
    half = config.train.precision in ("bf16", "fp16") or (config.train.precision == "auto" and devices.kind == "cuda")
    models = {
        checkpointing: measure(
            divided(config, 1, checkpointing=checkpointing), num_classes=num_classes, half=half, processes=devices.count
        )
        for checkpointing in ((False, True) if _can_checkpoint(config) else (False,))
    }
    options = divide(config.train.batch_size, devices, models, shared_statistics=shared)
    chosen = choose(options)
    if chosen is None:
        least = min((option for option in options if option.statistics > 1), key=lambda option: option.memory)
        stride = config.model.output_stride
        coarser = f", raise model.output_stride ({stride})," if stride < 32 else ""
        raise ConfigError(
            f"{config.model.encoder} {config.model.head} does not fit into {devices}: the smallest step takes "
            f"{gib(least.memory)} on each, and {gib(RESERVE)} and {MARGIN:.0%} of the rest are reserved. Lower "
            f"data.crop_size ({config.data.crop_size}){coarser} or choose a smaller encoder; each of these changes the "
            "recipe."
        )
    resolved = divided(config, chosen.accumulation, checkpointing=chosen.checkpointing)
    return Plan(resolved, chosen, tuple(options), devices)


def share_of(batch: int, devices: Devices) -> int:
    """Return how many of `batch` images are each device's.

    Raises:
        ConfigError: The batch is not divisible by the devices.
    """
    if batch % devices.count:
        below = batch // devices.count * devices.count
        nearest = " or ".join(str(size) for size in (below, below + devices.count) if size)
        raise ConfigError(
            f"train.batch_size ({batch}) cannot be shared equally by {devices.count} devices. Use other devices, or a "
            f"batch of {nearest}; the learning rate follows it."
        )
    return batch // devices.count


def divide(
    batch: int, devices: Devices, models: Mapping[bool, Callable[[int], int]], *, shared_statistics: bool
) -> list[Option]:
    """List all ways to divide `batch` images, the largest micro-batches first.

    Args:
        batch: Images per optimiser step.
        devices: The devices.
        models: checkpointing -> (images of a micro-batch -> bytes).
        shared_statistics: True if batch norm sees the images of all devices.

    Raises:
        ConfigError: The batch is not divisible by the devices.
    """
    share, options = share_of(batch, devices), []
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
    """Choose an option by the rule of `plan`; None if none can be used."""
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

    Fake tensors compute nothing and use no memory. The workspaces of convolutions are not counted; the chunks of
    full-size logits in the loss are counted as on a GPU. FSDP is counted as if every process held the whole model.

    Args:
        config: The run.
        num_classes: K.
        half: Autocast to half precision.
        processes: Number of processes; with more than one, gradients have a second copy in DDP's buckets.

    Raises:
        ConfigError: The loss needs full-size logits, and its memory depends on the content of the labels.
    """
    full_size = [name for name in loss_names(config.train.loss) if name in FULL_SIZE_LOSSES]
    if full_size:
        raise ConfigError(
            f"the memory of train.loss {full_size[0]} cannot be counted in advance. Set train.accumulation and "
            "model.checkpointing yourself, and try them with --dry-run."
        )
    two, four = (_step(config, num_classes, images, half) for images in (2, 4))

    per_image = (four.peak - two.peak) // 2
    copies = OPTIMIZER_STATES.get(config.optim.optimizer, 2) + 1 + (processes > 1)  # one of them for the gradients
    averaged, judged = config.train.ema > 0, config.train.ema > 0 or (config.train.parallel == "fsdp" and processes > 1)
    fixed = two.peak - 2 * per_image + (1 + averaged + judged) * two.weights + copies * two.trained
    return MemoryModel(fixed, per_image + CHUNK_TENSORS * 4 * num_classes * _pixels(config) // GPU_CHUNKS)


def devices_here() -> Devices:
    """Return the devices of this process group: the smallest GPU's memory, or this machine's divided by processes."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if torch.cuda.is_available():
        indices = range(torch.cuda.device_count())
        return Devices(count, min(torch.cuda.get_device_properties(index).total_memory for index in indices), "cuda")
    local = int(os.environ.get("LOCAL_WORLD_SIZE", count))
    return Devices(count, machine_memory() // local, "cpu")


def machine_memory(limit_file: str = "/sys/fs/cgroup/memory.max") -> int:
    """Return the bytes of memory of this machine or container."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        with open(limit_file, encoding="ascii") as file:
            return min(memory, int(file.read()))
    except (OSError, ValueError):  # no such file, or "max"
        return memory


class LiveBytes(TorchDispatchMode):
    """Context that counts the bytes of live tensors created within it.

    Attributes:
        live: Current bytes.
        peak: Maximum so far.
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
    """Bytes of weights and buffers, of trained weights, and of a step's peak beyond them."""

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
        step = _forward(config, segmenter, images, (height, width))
        with LiveBytes() as bytes_:
            # The CPU's list of half-precision operations is close enough to the GPU's.
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
                total = step()
            total.backward()
        weights = sum(value.nbytes for value in segmenter.state_dict().values())
        trained = sum(value.nbytes for value in segmenter.parameters() if value.requires_grad)
    return _Step(weights, trained, bytes_.peak)


def _forward(config: RunConfig, segmenter: Segmenter, images: int, size: tuple[int, int]) -> Callable[[], Tensor]:
    """A function that makes the batch of a step and computes its loss."""
    if segmenter.predicts_masks:
        return lambda: _mask_step(config, segmenter, images, size)
    loss = SegmentationLoss(config.train.aux_weight, align_corners=segmenter.align_corners)
    semi = None if config.train.unlabelled is None else Consistency(segmenter, config.semi)

    def pixels(count: int) -> Tensor:
        return torch.empty(count, config.model.in_channels, *size, dtype=torch.uint8)

    def step() -> Tensor:
        labels = torch.empty(images, *size, dtype=torch.int64)
        if semi is None:
            output = segmenter(pixels(images), coarse=True)
            value: Tensor = loss(output.logits, output.aux_logits, labels, pixels=torch.empty((), dtype=torch.int64))
            return value
        count, own = images * config.semi.ratio, consistency_loss(config, segmenter, steps_per_epoch=1)
        views = count * VIEWS[config.semi.method]
        valid, boxes = torch.ones(count, *size, dtype=torch.bool), torch.zeros(views, 4, dtype=torch.int64)
        batch = MixedBatch(pixels(images), labels, [], pixels(count), valid, pixels(views), boxes, pixels(count), valid)
        found = semi(batch.images, batch.weak, batch.strong, batch.partner, None)
        supervised: Tensor = loss(found.logits, found.aux_logits, labels, pixels=torch.empty((), dtype=torch.int64))
        unlabelled, _ = own(found, batch, total=own.weight_of(batch, valid.device), reported=True)
        return supervised + unlabelled

    return step


class _AnyAssignment(SetLoss):
    """The loss of masks with a given number of classes in every image, and queries assigned without SciPy."""

    def __init__(self, num_classes: int, *, present: int, points: int) -> None:
        super().__init__(num_classes, num_points=points)
        self.present = torch.arange(present)

    def _present(self, labels: Tensor) -> Tensor:
        return self.present

    def _assigned(
        self, classes: Tensor, masks: Tensor, present: Tensor, truth: Tensor, draw: Callable[[Sequence[int]], Tensor]
    ) -> tuple[Tensor, Tensor]:
        return self.present, self.present


def _mask_step(config: RunConfig, segmenter: Segmenter, images: int, size: tuple[int, int]) -> Tensor:
    """The loss of a head that predicts masks, which is not that of its logits."""
    predictions = segmenter.masks(torch.empty(images, config.model.in_channels, *size, dtype=torch.uint8))
    present = min(segmenter.num_classes, PRESENT, predictions[0].masks.shape[1])
    loss = _AnyAssignment(segmenter.num_classes, present=present, points=config.train.mask_points)
    labels = torch.empty(images, *size, dtype=torch.int64)
    value: Tensor = loss(predictions, labels, total=torch.ones(2), draw=lambda _, shape: torch.empty(*shape))
    return value


def _pixels(config: RunConfig) -> int:
    return config.data.crop_size * (config.data.crop_width or config.data.crop_size)


def divided(config: RunConfig, accumulation: int, *, checkpointing: bool) -> RunConfig:
    """Return the config with another division of the batch; only batch norm's statistics depend on it."""
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
