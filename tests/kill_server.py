"""Trains in forked children of a process that has imported everything, so that killing a run costs no start-up.

Reads one JSON object a line from standard input, {"words": [...], "log": file, "after": seconds or null,
"crash": number or null, "ranks": how many processes}, runs tools/train_seg.py with these words in a child, kills it by
SIGKILL `after` seconds or in the `crash`-th of its calls that change a file, and answers a line {"status": ...}: the
exit code, or minus the signal.
The parent starts no thread and computes nothing, so a child is what a fresh process is.
"""

import importlib.util
import json
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import torch._dynamo  # noqa: F401  # torch imports it when an optimiser is built: seconds that each child would spend

import resnest_seg.catalog
import resnest_seg.doctor
import resnest_seg.training  # noqa: F401
from resnest_seg.errors import run_tool

PROJECT = Path(__file__).resolve().parents[1]


def load_tool():
    spec = importlib.util.spec_from_file_location("train_seg", PROJECT / "tools" / "train_seg.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["train_seg"] = module
    spec.loader.exec_module(module)
    return module


def crash_at(number):
    """Kill this process before its `number`-th call of those that write, rename, link or remove."""
    left = [number]

    def deadly(function):
        def call(*arguments, **options):
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return call

    import resnest_seg.checkpoint

    for name in ("fsync", "link"):
        setattr(os, name, deadly(getattr(os, name)))
    for name in ("replace", "unlink"):
        setattr(Path, name, deadly(getattr(Path, name)))

    def half(tensors, path, metadata):  # killed within the write: half of the file is on the disk
        left[0] -= 1
        save_file(tensors, path, metadata)
        if left[0] < 0:
            os.truncate(path, path.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    save_file, resnest_seg.checkpoint.save_file = resnest_seg.checkpoint.save_file, half


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
        if order.get("crash") is not None:
            crash_at(order["crash"])
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
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        for rank in reversed(range(order["ranks"])):  # the last one, rank 0, is the one that is waited for first
            pid = os.fork()
            if pid == 0:
                child(order, rank, port)
        end = None if order.get("after") is None else time.monotonic() + order["after"]
        while True:
            done, status = os.waitpid(pid, os.WNOHANG if end is not None else 0)
            if done:
                break
            if time.monotonic() >= end:
                os.kill(pid, signal.SIGKILL)
                end = None
            else:
                time.sleep(0.005)
        for _ in range(order["ranks"] - 1):
            os.wait()
        print(json.dumps({"status": os.waitstatus_to_exitcode(status)}), flush=True)


if __name__ == "__main__":
    main()
