"""A look at float images that warns of the wrong range, 0..1 instead of 0..255 or the units of the training data."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


class PixelRange:
    """Looks at the images that a model is given until it knows their range, and warns if that is 0..1.

    The sign is a float image whose maximum is at most 1 and that has a value which is no whole number. The second half
    is there for photos that are black, or nearly so: their pixels are 0 and 1. They say nothing, and the next images
    are looked at. One maximum above 1 settles it.

    Only float tensors are looked at, and only while nothing is settled, because reading a value makes a GPU wait. What
    is traced, exported, captured into a CUDA graph or made of fake tensors has no values, and is left alone.

    Args:
        means: Of the bands that the model takes in the units of its training data; None is RGB 0..255. Where all are
            within -10..10, values in 0..1 are plausible.
    """

    def __init__(self, means: Sequence[float] | None = None) -> None:
        self._means = means
        self._settled = means is not None and max(map(abs, means)) <= 10

    def check(self, images: Tensor) -> None:
        """Warn with a `UserWarning`, once, if images of any shape are in 0..1."""
        if torch.compiler.is_compiling() or self._settled or not _has_values(images):
            return
        low, high = (float(bound) for bound in images.detach().aminmax())
        if high <= 1 and bool((images == images.round()).all()):
            return
        self._settled = True
        if high <= 1:
            takes = (
                "RGB 0..255: it normalises them itself. Multiply images in 0..1 by 255, and undo a normalisation; or "
            )
            takes += "pass uint8."
            if self._means is not None:
                takes = (
                    f"bands with means from {min(self._means):.4g} to {max(self._means):.4g}: pass the values of the "
                )
                takes += "files as they are, because it normalises them itself."
            warnings.warn(
                f"the images are floats from {low:.4g} to {high:.4g}, and this model takes {takes}",
                UserWarning,
                stacklevel=3,
            )

    @contextlib.contextmanager
    def trusted(self) -> Iterator[None]:
        """Within this context nothing is looked at: what comes was made of images that have been.

        A nearly black photo that has been resized has a maximum of 1 and values between, too.
        """
        before, self._settled = self._settled, True
        try:
            yield
        finally:
            self._settled = before


def _has_values(images: Tensor) -> bool:
    """True for a float tensor with values that can be read now."""
    return (
        not torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        and type(images) is Tensor  # no fake tensor, nor another subclass
        and images.is_floating_point()
        and images.numel() > 0
        and images.device.type != "meta"
        and not (images.is_cuda and torch.cuda.is_current_stream_capturing())
    )
