"""A `Segmenter` behind the `logits_fn` of `resnest_seg.views`: its device, its precision, compiled if asked for."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor

from resnest_seg.errors import ConfigError, unknown_name
from resnest_seg.protocols import Protocol, Setting, protocol
from resnest_seg.segmenter import Segmenter
from resnest_seg.views import Runner

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
