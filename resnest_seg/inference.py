"""Named inference protocols: pure functions from a `logits_fn` and an image to the image's logits.

A `logits_fn` maps images [N, 3, H, W] (RGB, 0..255) to logits [N, K, H, W]. Nothing here knows a model class or a data
set, so the same functions serve validation, evaluation, a user's photo and an exported model.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from resnest_seg.errors import unknown_name

LogitsFn = Callable[[Tensor], Tensor]


def whole(logits_fn: LogitsFn, image: Tensor, *, stride: int = 8) -> Tensor:
    """One pass over the whole image at its own size.

    The image is padded right and below with black to multiples of `stride`, as in training, and the logits are cropped
    back, so that features lie at the same pixels whatever the size.

    Args:
        logits_fn: Images [N, 3, H, W] -> logits [N, K, H, W].
        image: [3, H, W], RGB 0..255.
        stride: Sizes become multiples of this many pixels, the network's output stride.

    Returns:
        Logits [K, H, W].
    """
    height, width = image.shape[1:]
    padded = F.pad(image, (0, -width % stride, 0, -height % stride))
    return logits_fn(padded[None])[0, :, :height, :width]


PROTOCOLS: dict[str, Callable[..., Tensor]] = {"whole": whole}


def protocol(name: str) -> Callable[..., Tensor]:
    """Look up a protocol by name.

    Raises:
        ConfigError: Unknown name.
    """
    if name not in PROTOCOLS:
        raise unknown_name("protocol", name, PROTOCOLS)
    return PROTOCOLS[name]
