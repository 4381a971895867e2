"""Many processes and accumulation: the same run, however its batch is divided."""

import json
import subprocess
import sys

import pytest
import torch
from accelerate.state import AcceleratorState
from conftest import PROJECT
from support import many_processes

from resnest_seg.models.checkpoint import BEST, LAST, Checkpoint
from resnest_seg.training.distributed import part_like, whole
from resnest_seg.training.run_folder import METRICS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs of one process with one micro-batch and with two, and of two processes."""
    folder, threads = tmp_path_factory.mktemp("runs"), torch.get_num_threads()
    done = subprocess.run(
        [sys.executable, "-m", "support.many_processes", folder], capture_output=True, text=True, cwd=PROJECT / "tests"
    )
    assert done.returncode == 0, done.stderr
    for parts in (1, 2):
        AcceleratorState._reset_state(reset_partial_state=True)
        many_processes.train(folder / f"accumulated{parts}", accumulation=parts)
        AcceleratorState._reset_state(reset_partial_state=True)
        many_processes.train(folder / f"taught_accumulated{parts}", accumulation=parts, taught=True, epochs=1)
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.set_num_threads(threads)
    return folder


@pytest.mark.parametrize("name", ["taught_accumulated2", "taught_ddp", "taught_fsdp"])
def test_neither_does_a_run_with_a_teacher(runs, name):
    def lines(folder):
        entries = [json.loads(line) for line in (runs / folder / METRICS).read_text(encoding="utf-8").splitlines()]
        return [entry for entry in entries if entry["kind"] == "train"]

    expected, got = (Checkpoint.load(runs / folder / LAST).weights for folder in ("taught_accumulated1", name))
    assert all(torch.allclose(got[key], value, rtol=1e-4, atol=1e-6) for key, value in expected.items())
    for ours, theirs in zip(lines(name), lines("taught_accumulated1"), strict=True):
        for key in ("loss", "labelled_loss", "kl_loss", "cwd_loss", "grad_norm"):
            assert ours[key] == pytest.approx(theirs[key], rel=1e-3)
            assert theirs[key] > 0


@pytest.mark.parametrize("name", ["accumulated2", "ddp", "fsdp"])
def test_the_run_does_not_depend_on_how_the_batch_is_divided(runs, name):
    """Six steps of 4 = 2 x 2 accumulated = 2 processes x 2, with labels that are missing unevenly: only sums differ."""
    expected, got = (Checkpoint.load(runs / folder / LAST) for folder in ("accumulated1", name))
    start = Checkpoint.load(runs / "accumulated1" / "step_00000000.safetensors")
    for ours, theirs in ((got.weights, expected.weights), (got.training.tensors, expected.training.tensors)):
        assert ours.keys() == theirs.keys()
        assert all(torch.allclose(ours[key], value, rtol=1e-4, atol=1e-6) for key, value in theirs.items())
    for part in ("encoder", "head", "aux_head"):
        keys = [key for key in start.weights if key.startswith(f"{part}.") and key.endswith(("weight", "bias"))]
        way = sum(float((expected.weights[key] - start.weights[key]).square().sum()) for key in keys)
        apart = sum(float((got.weights[key] - expected.weights[key]).square().sum()) for key in keys)
        assert apart < 1e-6 * way, part  # a thousandth of what was learnt: a mean of means is far outside


def test_split_and_resumed_is_split(runs):
    """Weights, momentum and average are gathered into the file and split again to the same bits."""
    assert (runs / "fsdp" / "metrics.jsonl").read_bytes() == (runs / "fsdp_resumed" / "metrics.jsonl").read_bytes()
    first, second = (Checkpoint.load(runs / name / LAST) for name in ("fsdp", "fsdp_resumed"))
    assert first.training.values == second.training.values
    for ours, theirs in ((first.weights, second.weights), (first.training.tensors, second.training.tensors)):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
    assert {key.partition(".")[0] for key in first.training.tensors} == {"optimizer", "average"}


def test_the_best_is_the_average(runs):
    best, last = Checkpoint.load(runs / "fsdp" / BEST), Checkpoint.load(runs / "ddp" / BEST)
    assert all(torch.allclose(value, last.weights[key], rtol=1e-4, atol=1e-6) for key, value in best.weights.items())


def test_plain_tensors_pass_as_they_are():
    value = torch.ones(2)
    assert whole({"a": value})["a"] is value
    assert part_like(value, torch.zeros(2)) is value
