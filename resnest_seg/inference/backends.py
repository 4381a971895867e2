"""Backends: a torch model or an exported file, ready to give the scores of images by a protocol."""

from __future__ import annotations

import contextlib
import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resnest_seg.errors import ConfigError, unknown_name
from resnest_seg.inference.exported import (
    EXPORTED_MEMORY,
    ExportedModel,
    check_protocol,
    is_exported,
    labels_of,
    logits_fn_of,
    open_exported,
)
from resnest_seg.inference.numpy_engine import Network, score_blocks
from resnest_seg.inference.protocols import Protocol, Setting, protocol
from resnest_seg.inference.protocols import protocol as named_protocol
from resnest_seg.inference.torch_engine import MEMORY, Runner, View, preload, score_rows, views_of
from resnest_seg.labels import LabelSpace
from resnest_seg.models.loading import load_checkpoint
from resnest_seg.models.segmenter import PixelRange, Segmenter

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Names of precisions -> torch's types."""


def runner_for(
    segmenter: Segmenter, *, precision: str = "fp32", compiled: bool = False, batch: int | None = None
) -> Runner:
    """Run a model where it is, in eval mode.

    Args:
        segmenter: The model; it is put into eval mode.
        precision: "fp32", or "bf16" or "fp16" by autocast; scores are merged in float32 all the same.
        compiled: Use `torch.compile`, which takes a minute for every new size of images and then is faster.
        batch: Images a call; None chooses.

    Raises:
        ConfigError: Unknown precision, or fp16 without a GPU.
    """
    if precision not in PRECISIONS:
        raise unknown_name("precision", precision, PRECISIONS)
    device = segmenter.pixel_mean.device
    if precision == "fp16" and device.type == "cpu":
        raise ConfigError("precision fp16 needs a GPU. Use fp32 or bf16.")
    known = segmenter.pixel_range
    model: Any = torch.compile(segmenter.eval()) if compiled else segmenter.eval()

    def logits_fn(images: Tensor) -> Tensor:
        half = PRECISIONS[precision]
        lowered = half != torch.float32
        with torch.autocast(device.type, half) if lowered else contextlib.nullcontext(), known.trusted():
            logits: Tensor = model(images, coarse=True).logits
        return logits

    return Runner(
        logits_fn,
        stride=segmenter.output_stride,
        align_corners=segmenter.align_corners,
        batch=batch,
        device=device,
        pixel_range=known,
    )


def setting_of(segmenter: Segmenter) -> Setting:
    """The sizes that a model was trained with, which the named protocols depend on."""
    data = segmenter.config.data
    return Setting(
        dataset=data.dataset,
        recipe=data.recipe,
        base_size=data.base_size,
        crop=(data.crop_size, data.crop_width or data.crop_size),
        long_edge=data.long_edge,
    )


def protocol_of(segmenter: Segmenter, name: str | Protocol) -> Protocol:
    """A protocol as it is, or by its name with the sizes of the model.

    Raises:
        ConfigError: Unknown name.
    """
    return name if isinstance(name, Protocol) else protocol(name, setting=setting_of(segmenter))


def choose_device(name: str) -> torch.device:
    """The torch device of a name; "auto" is a GPU if there is one.

    Raises:
        ConfigError: No such device, here or anywhere.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}") from None
    return device


class Block(NamedTuple):
    """The scores of a rectangle of an image.

    Attributes:
        rows: Of the image.
        columns: Of the image.
        scores: [K, r, c], on the model's device; see `resnest_seg.inference.torch_engine.score_rows`.
    """

    rows: slice
    columns: slice
    scores: Tensor


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model(ABC):
    """A model that is ready to run.

    Attributes:
        description: The network in one line.
        label_space: The classes, where they are known.
        head: Name of its head.
        channels: Of images.
        setting: The sizes that it was trained with, for the named protocols.
        device: Where images are wanted, and scores are.
        memory: Bytes that scores may take where the caller does not say.
    """

    description: str
    label_space: LabelSpace | None
    head: str
    channels: int
    setting: Setting
    device: torch.device
    memory: int

    def protocol(self, name: str | Protocol) -> Protocol:
        """A protocol as it is, or by its name with the sizes of the model.

        Raises:
            ConfigError: Unknown name, or a protocol that the model cannot follow.
        """
        found = name if isinstance(name, Protocol) else named_protocol(name, setting=self.setting)
        self.check(found)
        return found

    @property
    def scored(self) -> bool:
        """Whether it gives scores that mean anything, beside labels."""
        return True

    @abstractmethod
    def check(self, protocol: Protocol) -> None:
        """Raise a `ConfigError` if the model cannot follow a protocol."""

    @abstractmethod
    def blocks(self, image: Any, protocol: Protocol, *, memory: int | None = None) -> Iterator[Block]:
        """The scores of an image, a block at a time; together the blocks cover it.

        Blocks that begin in the same row have the same rows.

        Args:
            image: [3, H, W], RGB 0..255; also what only has `shape` and slices of tensors, if it need not be resized.
            protocol: How it is shown to the model, and how its answers are merged.
            memory: Bytes that scores may take; None is the model's own default.
        """

    def batch_blocks(
        self, images: Iterable[Any], protocol: Protocol, *, memory: int | None = None
    ) -> Iterator[Iterator[Block]]:
        """The blocks of one image after the other; neighbours of one size may share calls of the network.

        Memory does not grow with the number of images, if each one's blocks are consumed before the next is asked for.
        """
        for image in images:
            yield self.blocks(image, protocol, memory=memory)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TorchModel(Model):
    """A network in torch.

    Attributes:
        run: How it is called.
    """

    run: Runner

    def check(self, protocol: Protocol) -> None:
        """See `Model`; it can follow all."""

    def blocks(self, image: Any, protocol: Protocol, *, memory: int | None = None) -> Iterator[Block]:
        """See `Model`; blocks are slabs of whole rows, from the top down."""
        return self._slabs(image, protocol, memory, None)

    def batch_blocks(
        self, images: Iterable[Any], protocol: Protocol, *, memory: int | None = None
    ) -> Iterator[Iterator[Block]]:
        """See `Model`; those that share calls are as many as fill one call of the network at every scale."""
        group: list[tuple[Any, list[View]]] = []
        calls = 0.0
        for image in images:
            views = views_of(self.run, image, protocol)
            more = sum(view.calls for view in views)
            if group and calls + more > len(protocol.scales):
                yield from self._together(group, protocol, memory)
                calls = 0.0
            group.append((image, views))
            calls += more
        yield from self._together(group, protocol, memory)

    def _together(
        self, group: list[tuple[Any, list[View]]], protocol: Protocol, memory: int | None
    ) -> Iterator[Iterator[Block]]:
        """The blocks of images that share calls; the list is emptied, so that what is done is forgotten."""
        if len(group) > 1:
            preload([view for _, views in group for view in views])
        while group:
            yield self._slabs(group[0][0], protocol, memory, group.pop(0)[1])

    def _slabs(self, image: Any, protocol: Protocol, memory: int | None, views: list[View] | None) -> Iterator[Block]:
        allowed = self.memory if memory is None else memory
        for first, scores in score_rows(self.run, image, protocol, memory=allowed, views=views):
            yield Block(slice(first, first + scores.shape[1]), slice(0, scores.shape[2]), scores)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileModel(Model):
    """An exported file in its own runtime, which takes arrays, not tensors.

    Attributes:
        file: The opened file.
        batch: Windows a call; None chooses.
        pixel_range: What looks at float images, until their range is known.
    """

    file: ExportedModel
    batch: int | None = None
    pixel_range: PixelRange = dataclasses.field(default_factory=PixelRange)

    @property
    def scored(self) -> bool:
        """See `Model`."""
        return self.file.info.output != "labels"

    def check(self, protocol: Protocol) -> None:
        """See `Model`."""
        check_protocol(self.file, protocol)

    def blocks(self, image: Any, protocol: Protocol, *, memory: int | None = None) -> Iterator[Block]:
        """See `Model`; of a file that gives labels, the scores are 1 for the label and 0 for all others."""
        info = self.file.info
        if isinstance(image, Tensor):
            self.pixel_range.check(image)
        if not self.scored:
            labels = torch.from_numpy(labels_of(self.file, image.cpu().numpy()))
            classes = torch.arange(len(info.label_space), dtype=torch.uint8)[:, None, None]
            height, width = labels.shape
            for first in range(0, height, step := max((1 << 24) // (width * len(classes)), 1)):
                rows = slice(first, min(first + step, height))
                yield Block(rows, slice(0, width), (labels[rows] == classes).float())
            return
        network = Network(
            logits_fn_of(self.file),
            len(info.label_space),
            stride=info.output_stride,
            align_corners=info.align_corners,
            batch=self.batch,
        )
        pixels: Any = image.cpu().numpy() if isinstance(image, Tensor) else _Bands(image)
        allowed = self.memory if memory is None else memory
        for rows, columns, scores in score_blocks(network, pixels, protocol, memory=allowed):
            yield Block(rows, columns, torch.from_numpy(scores))


class _Bands:
    """Arrays of an image that is read by windows from the top down; two rows of windows are kept, for the last two."""

    def __init__(self, image: Any) -> None:
        self.image, self.shape = image, image.shape
        self.held: dict[tuple[int, int], NDArray[np.uint8]] = {}

    def __getitem__(self, window: tuple[slice, slice, slice]) -> NDArray[np.uint8]:
        _, rows, columns = window
        key = (rows.start, rows.stop)
        if key not in self.held:
            if len(self.held) == 2:
                del self.held[next(iter(self.held))]
            self.held[key] = self.image[:, rows, :].numpy()
        return self.held[key][:, :, columns]


def model_of(
    segmenter: Segmenter, *, precision: str = "fp32", compiled: bool = False, batch: int | None = None
) -> TorchModel:
    """A `Segmenter` where it is, in eval mode; see `runner_for` for the options and errors."""
    config = segmenter.config.model
    return TorchModel(
        description=segmenter.description,
        label_space=segmenter.label_space,
        head=config.head,
        channels=config.in_channels,
        setting=setting_of(segmenter),
        device=segmenter.pixel_mean.device,
        memory=MEMORY,
        run=runner_for(segmenter, precision=precision, compiled=compiled, batch=batch),
    )


def file_model(
    path: str | Path,
    *,
    device: str = "auto",
    precision: str = "fp32",
    compiled: bool = False,
    batch: int | None = None,
) -> FileModel:
    """An exported file in its runtime.

    Args:
        path: The file.
        device: See `resnest_seg.inference.exported.open_exported`.
        precision: "fp32", which is no choice here: that of the file counts.
        compiled: False.
        batch: Windows a call; None chooses.

    Raises:
        CheckpointError: The file cannot be opened.
        ConfigError: No such device; or a precision, or compiling, which are decided when a model is exported.
    """
    if precision != "fp32" or compiled:
        raise ConfigError(
            f"{path} is an exported model and runs as it was exported: leave "
            f"{'--compile (compiled)' if compiled else f'--precision {precision}'} out."
        )
    if batch is not None and batch < 1:
        raise ConfigError(f"a batch must have at least 1 image, not {batch}.")
    file = open_exported(path, device=device)
    info = file.info
    return FileModel(
        description=f"{info.description}, exported in {info.precision}, by {file.runtime}",
        label_space=info.label_space,
        head=info.head,
        channels=info.channels,
        setting=info.setting,
        device=torch.device("cpu"),
        memory=EXPORTED_MEMORY,
        file=file,
        batch=batch,
    )


def open_model(
    path: str | Path,
    *,
    device: str = "auto",
    precision: str = "fp32",
    compiled: bool = False,
    batch: int | None = None,
    fuse: bool = True,
) -> Model:
    """A checkpoint, a run folder, the name of a published checkpoint, or an exported file, ready to run.

    Args:
        path: What is opened.
        device: "auto" (a GPU if there is one), or a torch device such as "cpu" or "cuda:1".
        precision: See `resnest_seg.inference.backends.runner_for`; only for checkpoints.
        compiled: Likewise.
        batch: Images a call of the model; None chooses.
        fuse: Fold batch norms into convolutions, as exported files have them anyway.

    Raises:
        CheckpointError: It cannot be loaded.
        ConfigError: No such device, or an option that it cannot follow.
    """
    if is_exported(path):
        return file_model(path, device=device, precision=precision, compiled=compiled, batch=batch)
    segmenter = load_checkpoint(path).to(choose_device(device))
    if fuse:
        segmenter.fuse()
    return model_of(segmenter, precision=precision, compiled=compiled, batch=batch)
