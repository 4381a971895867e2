"""Fair timing: contestants take turns, so that a busy machine is unfair to none."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence


def interleave(calls: Sequence[Callable[[], object]], rounds: int) -> list[list[float]]:
    """Time every call once a round, A B A B, so that a busy machine is unfair to none; after one warm-up each."""
    times: list[list[float]] = [[] for _ in calls]
    for current in range(rounds + 1):
        for place, call in enumerate(calls):
            start = time.perf_counter()
            call()
            if current:
                times[place].append(time.perf_counter() - start)
    return times


def spread(times: Sequence[float]) -> float:
    """Half the distance between the quartiles, as a share of the median."""
    low, median, high = statistics.quantiles(times, n=4)
    return (high - low) / 2 / median
