"""The peak memory of a call on a CPU, by the system's own count; for a fresh process, because pages come back late."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable
from pathlib import Path

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


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
