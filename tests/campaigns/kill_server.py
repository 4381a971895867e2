"""Trains in forked children of a process that has imported everything, so that killing a run costs no start-up.

Reads one JSON object a line from standard input, {"words": [...], "log": file, "ranks": how many processes, "blows":
[[instant, signal name], ...], "by": what instants are}, runs tools/train_seg.py with these words in a child, and
answers a line {"status": ...}: the exit code, or minus the signal.
Instants are counted from the blow before, or the start: in seconds ("time", and the signal goes to the process; or
"group", and it goes to its loader processes as well), in calls that change a file ("operation"), or in validations
("validation", and the signal comes a moment after the beginning of one).
The parent starts no thread and computes nothing, so a child is what a fresh process is.
"""

import importlib.util
import json
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path

import torch._dynamo  # noqa: F401  # torch imports it when an optimiser is built: seconds that each child would spend
from free_port import free_port

import resnest_seg.data.build
import resnest_seg.data.checks
import resnest_seg.training.trainer  # noqa: F401
from resnest_seg.errors import run_tool

PROJECT = Path(__file__).resolve().parents[2]


def load_tool():
    spec = importlib.util.spec_from_file_location("train_seg", PROJECT / "tools" / "train_seg.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["train_seg"] = module
    spec.loader.exec_module(module)
    return module


class Blows:
    """Signals to this process, each after a number of events from the one before."""

    def __init__(self, blows):
        self.left = [(count, signal.Signals[name]) for count, name in blows]

    def due(self):
        """Count an event; the signal that it brings, or None."""
        if not self.left:
            return None
        count, number = self.left[0]
        if count > 0:
            self.left[0] = (count - 1, number)
            return None
        del self.left[0]
        return number


def strike_operations(blows):
    """Send signals before calls of those that write, rename, link or remove."""
    import resnest_seg.models.checkpoint

    def struck(function):
        def call(*arguments, **options):
            if (number := blows.due()) is not None:
                os.kill(os.getpid(), number)
            return function(*arguments, **options)

        return call

    for name in ("fsync", "link"):
        setattr(os, name, struck(getattr(os, name)))
    for name in ("replace", "unlink"):
        setattr(Path, name, struck(getattr(Path, name)))

    def half(tensors, path, metadata):
        number = blows.due()
        save_file(tensors, path, metadata)
        if number == signal.SIGKILL:  # killed within the write: half of the file is on the disk
            os.truncate(path, path.stat().st_size // 2)
        if number is not None:
            os.kill(os.getpid(), number)

    save_file, resnest_seg.models.checkpoint.save_file = resnest_seg.models.checkpoint.save_file, half


def strike_validations(blows):
    """Send signals within validations."""
    from resnest_seg.training.tasks import SegmentationTask

    def validate(*arguments, **options):
        number = blows.due()
        if number is not None:
            signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), number))
            signal.setitimer(signal.ITIMER_REAL, random.uniform(0.001, 0.06))
        return original(*arguments, **options)

    original, SegmentationTask.validate = SegmentationTask.validate, validate


def child(order, rank, port):
    """What the forked process does; never returns."""
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    if order["ranks"] > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(order["ranks"])}
        os.environ |= {"LOCAL_WORLD_SIZE": str(order["ranks"]), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        os.environ |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    import torch

    torch.set_num_threads(1)
    status = 70
    try:
        if order["by"] == "operation":
            strike_operations(Blows(order["blows"]))
        elif order["by"] == "validation":
            strike_validations(Blows(order["blows"]))
        module = load_tool()
        status = run_tool(lambda: module.main(order["words"]))
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def main():
    assert threading.active_count() == 1
    for line in sys.stdin:
        order = json.loads(line)
        port = free_port()
        for rank in reversed(range(order["ranks"])):  # the last one, rank 0, is the one that is waited for first
            pid = os.fork()
            if pid == 0:
                child(order, rank, port)
            os.setpgid(pid, pid)  # a group of its own, for the signals of a scheduler
        blows = list(order["blows"]) if order["by"] in ("time", "group") else []
        end = time.monotonic() + blows[0][0] if blows else None
        while True:
            done, status = os.waitpid(pid, os.WNOHANG if end is not None else 0)
            if done:
                break
            if time.monotonic() >= end:
                send = os.killpg if order["by"] == "group" else os.kill
                send(pid, signal.Signals[blows.pop(0)[1]])
                end = time.monotonic() + blows[0][0] if blows else None
            else:
                time.sleep(0.005)
        for _ in range(order["ranks"] - 1):
            os.wait()
        print(json.dumps({"status": os.waitstatus_to_exitcode(status)}), flush=True)


if __name__ == "__main__":
    main()
