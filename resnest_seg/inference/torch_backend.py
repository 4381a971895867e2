"""The backend of a `Segmenter`, carried out by `torch_engine`."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resnest_seg.errors import ConfigError
from resnest_seg.inference.backends import Backend, Block, Decision, Image, RunOptions
from resnest_seg.inference.exported import choose_device
from resnest_seg.inference.protocols import Protocol, Setting
from resnest_seg.inference.torch_engine import MEMORY, Runner, View, preload, score_rows, views_of
from resnest_seg.io.bands import BandReader
from resnest_seg.io.large_images import LargeImage
from resnest_seg.io.raster_windows import LargeBands
from resnest_seg.models.mask2former import packed
from resnest_seg.models.segmenter import Segmenter


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


class TorchBackend(Backend):
    """A model in torch, which is put into eval mode, moved to the device, and fused if the options say so.

    Args:
        segmenter: The model.
        options: How it is run.

    Attributes:
        run: The network as it is called.

    Raises:
        ConfigError: No such device, or fp16 without a GPU.
    """

    def __init__(self, segmenter: Segmenter, options: RunOptions) -> None:
        device = choose_device(options.device)
        if options.precision == "fp16" and device.type == "cpu":
            raise ConfigError("precision fp16 needs a GPU. Use fp32 or bf16.")
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        if segmenter.pixel_mean.device != device:
            segmenter.to(device)
        segmenter.eval()
        if options.fuse:
            segmenter.fuse()
        config = segmenter.config.model
        self.description, self.label_space = segmenter.description, segmenter.label_space
        self.head, self.channels, self.setting = config.head, config.in_channels, setting_of(segmenter)
        self.device, self.memory = str(device), MEMORY
        self.decision = Decision(segmenter.task, segmenter.decision_thresholds)
        self.mean, self.bands = _mean(segmenter), reader_of(segmenter)
        self.run = Runner(
            _logits_fn(segmenter, options, device),
            stride=1 if segmenter.predicts_masks else segmenter.output_stride,  # that of masks is padded by the model
            align_corners=segmenter.align_corners,
            batch=options.batch,
            device=device,
            pixel_range=segmenter.pixel_range,
            padding=None if self.bands is None else torch.tensor(self.mean, device=device),
            mask_classes=segmenter.num_classes if segmenter.predicts_masks else None,
            mask_divisor=segmenter.size_divisor,
        )

    def blocks(self, image: Image, protocol: Protocol, *, memory: int | None = None) -> Iterator[Block]:
        """See `Backend`; blocks are slabs of whole rows, from the top down."""
        return self._slabs(self._tensor(image), protocol, memory, None)

    def batch_blocks(
        self, images: Iterable[Image], protocol: Protocol, *, memory: int | None = None
    ) -> Iterator[Iterator[Block]]:
        """See `Backend`; those that share calls are as many as fill one call of the network at every scale."""
        group: list[tuple[Any, list[View]]] = []
        calls = 0.0
        for image in images:
            tensor = self._tensor(image)
            views = views_of(self.run, tensor, protocol)
            more = sum(view.calls for view in views)
            if group and calls + more > len(protocol.scales):
                yield from self._together(group, protocol, memory)
                calls = 0.0
            group.append((tensor, views))
            calls += more
        yield from self._together(group, protocol, memory)

    def _together(
        self, group: list[tuple[Any, list[View]]], protocol: Protocol, memory: int | None
    ) -> Iterator[Iterator[Block]]:
        """The blocks of images that share calls; the list is emptied, so that finished images are freed."""
        if len(group) > 1:
            with torch.inference_mode():
                preload([view for _, views in group for view in views])
        while group:
            yield self._slabs(group[0][0], protocol, memory, group.pop(0)[1])

    @torch.inference_mode()
    def _slabs(self, image: Any, protocol: Protocol, memory: int | None, views: list[View] | None) -> Iterator[Block]:
        allowed = self.memory if memory is None else memory
        for first, scores in score_rows(self.run, image, protocol, memory=allowed, views=views):
            rows = slice(first, first + scores.shape[1])
            yield Block(rows, slice(0, scores.shape[2]), scores, decision=self.decision)

    def _tensor(self, image: Image) -> Any:
        """An array as a tensor [3, H, W] on the device; a large image as what gives tensors of its windows."""
        if not isinstance(image, np.ndarray):
            return _Windows(image)
        return _planes(image).to(self.device, non_blocking=True)


class _Windows:
    """Tensors [C, h, w] of an image that is read by windows."""

    def __init__(self, image: LargeImage | LargeBands) -> None:
        self.image, self.shape = image, (image.shape[2], *image.shape[:2])

    def __getitem__(self, window: tuple[slice, slice, slice]) -> Tensor:
        return _planes(self.image[window[1:]])


def _planes(image: NDArray[Any]) -> Tensor:
    """An array [H, W, C] as a tensor [C, H, W], uint8 or float32: torch does little with uint16."""
    if image.dtype != np.uint8:
        image = image.astype(np.float32, copy=False)
    return torch.from_numpy(image).permute(2, 0, 1)


def _logits_fn(segmenter: Segmenter, options: RunOptions, device: torch.device) -> Any:
    """The model as a function from images [N, 3, H, W] to coarse logits [N, K, h, w], or to packed masks."""
    lowered = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[options.precision]
    function: Any = segmenter.masks if segmenter.predicts_masks else functools.partial(segmenter, coarse=True)
    model: Any = torch.compile(function) if options.compile else function

    def logits_fn(images: Tensor) -> Tensor:
        autocast = contextlib.nullcontext() if lowered is None else torch.autocast(device.type, lowered)
        with autocast, segmenter.pixel_range.trusted():
            found = model(images)
        logits: Tensor = packed(found[-1]) if segmenter.predicts_masks else found.logits
        return logits

    return logits_fn


def reader_of(segmenter: Segmenter) -> BandReader | None:
    """How a model's files are read; None of one that takes photos (8-bit RGB)."""
    data = segmenter.config.data
    return None if data.bands is None else BandReader(data.bands, data.nodata, _mean(segmenter))


def _mean(segmenter: Segmenter) -> tuple[float, ...]:
    """The mean of each channel in training, [C]."""
    return tuple(segmenter.config.data.pixel_mean or segmenter.pixel_mean.flatten().tolist())
