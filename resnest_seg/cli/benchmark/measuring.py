"""Fair measuring: contestants take turns; the peak memory of a call is the system's own count."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


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


def peak_during(call: Callable[[], object]) -> float:
    """Mebibytes that the resident memory of this process rose to during `call`, above its level before."""
    if CLEAR.exists():
        CLEAR.write_text("5", encoding="utf-8")  # Linux: the high-water mark starts anew at the present level
        before = _status("VmRSS")
        call()
        return _status("VmHWM") - before
    unit = 2**20 if sys.platform == "darwin" else 2**10
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    call()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit - before


def _status(name: str) -> float:
    line = next(line for line in STATUS.read_text(encoding="utf-8").splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) / 2**10
