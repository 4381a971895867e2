"""The peak of a machine: the fastest of some large convolutions and matrix products, measured here."""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

SECONDS = 1.0
"""How long each is repeated."""


@functools.lru_cache
def peak_gflops(device: str, dtype: torch.dtype) -> float:
    """GFLOP/s of the fastest of: 1x1 and 3x3 convolutions over 60 x 60 pixels, a product of two square matrices.

    The matrices have 2048 rows, on a GPU 8192, below which one is not busy.
    """
    import torch
    import torch.nn.functional as F

    def image(channels: int) -> torch.Tensor:
        values = torch.randn(2, channels, 60, 60, device=device, dtype=dtype)
        return values.contiguous(memory_format=torch.channels_last)

    def weight(out: int, channels: int, size: int) -> torch.Tensor:
        values = torch.randn(out, channels, size, size, device=device, dtype=dtype)
        return values.contiguous(memory_format=torch.channels_last)

    rows = 8192 if device.startswith("cuda") else 2048
    wide, narrow, matrix = image(2048), image(512), torch.randn(rows, rows, device=device, dtype=dtype)
    one, three = weight(512, 2048, 1), weight(512, 512, 3)
    calls: dict[Callable[[], object], float] = {
        lambda: F.conv2d(wide, one): 2.0 * 2 * 60 * 60 * 2048 * 512,
        lambda: F.conv2d(narrow, three, padding=1): 2.0 * 2 * 60 * 60 * 512 * 512 * 9,
        lambda: matrix @ matrix: 2.0 * rows**3,
    }
    with torch.inference_mode():
        return max(flops / _fastest(call, device) / 1e9 for call, flops in calls.items())


def _fastest(call: Callable[[], object], device: str) -> float:
    """Seconds of the quickest of many calls."""
    import torch

    best, end = float("inf"), time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        start = time.perf_counter()
        call()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return best
