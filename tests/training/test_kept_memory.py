"""Freed memory that a training on a CPU keeps: counted in page faults, which do not depend on the machine's load."""

import os
import platform
import subprocess
import sys

import pytest
import torch

from resnest_seg.training import cpu_speed

PROGRAM = """
import contextlib, ctypes, resource
import psutil, torch
from resnest_seg.training.cpu_speed import kept_memory

PR_SET_THP_DISABLE = 41
ctypes.CDLL(None).prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0)  # with huge pages there are 512 times fewer faults

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        tensors = [torch.ones(16 << 20) for _ in range(3)]  # 64 MiB each
        del tensors
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return psutil.Process().memory_info().rss >> 20

def in_heap():
    address = torch.empty(128 << 20).data_ptr()  # 512 MiB, more than any hole in the heap; none of it is touched
    spans = [line.split()[0].split("-") for line in open("/proc/self/maps") if line.rstrip().endswith("[heap]")]
    return any(int(low, 16) <= address < int(high, 16) for low, high in spans)

print(faults())
with contextlib.suppress(KeyError), kept_memory() as kept:
    faults()
    print(kept, faults(), resident())
    raise KeyError
print(resident(), in_heap())
"""

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="this system's memory is not glibc's")


def measured(**variables):
    own = {
        name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_", "LD_PRELOAD"))
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=own | variables, capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout.split()


@glibc
def test_memory_is_kept_within_the_context_and_given_back_after_it():
    before, kept, within, resident, rest, in_heap = measured()
    assert kept == "True"
    assert int(before) > 10_000  # pages of 4 KiB; 196,608 with glibc 2.36
    assert int(within) < int(before) / 20
    assert int(rest) < int(resident) - 100
    assert in_heap == "False"  # large tensors come from the system again


@glibc
@pytest.mark.parametrize("own", [{"MALLOC_ARENA_MAX": "2"}, {"GLIBC_TUNABLES": "glibc.malloc.arena_max=2"}])
def test_settings_of_the_user_are_left_alone(own):
    before, kept, within, *_ = measured(**own)
    assert kept == "False"
    assert int(within) > int(before) / 2


def test_systems_without_glibc_are_left_alone(monkeypatch):
    for name in [name for name in os.environ if name.startswith(("MALLOC_", "GLIBC_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(cpu_speed.ctypes, "CDLL", lambda name: pytest.fail("a library was asked for"))
    with cpu_speed.kept_memory() as kept:
        assert not kept


def test_the_device_decides(monkeypatch):
    entered = []

    def recorded():
        entered.append("kept")
        return cpu_speed.contextlib.nullcontext()

    monkeypatch.setattr(cpu_speed, "kept_memory", recorded)
    with cpu_speed.faster_training(torch.nn.Linear(1, 1), torch.device("cuda")):
        assert not entered
    with cpu_speed.faster_training(torch.nn.Linear(1, 1), torch.device("cpu")):
        assert entered == ["kept"]
