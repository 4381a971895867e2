"""Other processes, as tests see them."""

import contextlib
import time

import psutil


def still_running(processes, seconds=60):
    """Those that are alive after so long; a zombie is gone, which process 1 of a container may keep for ever."""
    end = time.monotonic() + seconds
    while (left := [process for process in processes if _runs(process)]) and time.monotonic() < end:
        time.sleep(0.02)
    return left


def _runs(process):
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def await_stop(process, seconds=120):
    """Wait until a `subprocess.Popen` has stopped itself (SIGSTOP)."""
    end = time.monotonic() + seconds
    while psutil.Process(process.pid).status() != psutil.STATUS_STOPPED:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "it did not stop"
        time.sleep(0.02)
