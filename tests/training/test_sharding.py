"""Many processes and accumulation: the same run, however its batch is divided."""

import json
import subprocess
import sys

import pytest
import torch
from accelerate.state import AcceleratorState
from conftest import PROJECT
from support import fake_data, many_processes
from test_semi_training import Colours, same_bits

from resnest_seg.models.checkpoint import BEST, LAST, Checkpoint
from resnest_seg.training.distributed import part_like, whole
from resnest_seg.training.run_folder import METRICS

pytestmark = [pytest.mark.slow, pytest.mark.long]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs of one process with one micro-batch and with two, and of two processes."""
    folder, threads = tmp_path_factory.mktemp("runs"), torch.get_num_threads()
    for index in range(5):
        fake_data.write(folder / "more photos [ü]" / f"{index}.png", Colours()[10 + index].image)
    done = subprocess.run(
        [sys.executable, "-m", "support.many_processes", folder, folder / "more photos [ü]"],
        capture_output=True, text=True, cwd=PROJECT / "tests",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for parts in (1, 2):
        AcceleratorState._reset_state(reset_partial_state=True)
        many_processes.train(folder / f"accumulated{parts}", accumulation=parts)
        AcceleratorState._reset_state(reset_partial_state=True)
        many_processes.train(folder / f"taught_accumulated{parts}", accumulation=parts, taught=True, epochs=1)
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.set_num_threads(threads)
    return folder


def metrics(folder):
    return [json.loads(line) for line in (folder / METRICS).read_text(encoding="utf-8").splitlines()]


def lines(folder):
    return [line for line in metrics(folder) if line["kind"] == "train"]


def apart(got, expected, start, part=""):
    """How far two runs' weights are from each other, and how far they came: squared."""
    keys = [key for key in start if key.startswith(part) and key.endswith(("weight", "bias"))]
    return (
        sum(float((ours[key] - theirs[key]).square().sum()) for key in keys)
        for ours, theirs in ((got, expected), (expected, start))
    )


def near(ours, theirs):
    """True if two tensors differ by rounding: as vectors, since single numbers of either may be next to nothing."""
    ours, theirs = ours.double(), theirs.double()
    return float((ours - theirs).norm()) <= 1e-4 * float(theirs.norm()) + 1e-6 * theirs.numel() ** 0.5


@pytest.mark.parametrize("name", ["taught_accumulated2", "taught_ddp", "taught_fsdp"])
def test_neither_does_a_run_with_a_teacher(runs, name):
    expected, got = (Checkpoint.load(runs / folder / LAST).weights for folder in ("taught_accumulated1", name))
    assert all(near(got[key], value) for key, value in expected.items())
    for ours, theirs in zip(lines(runs / name), lines(runs / "taught_accumulated1"), strict=True):
        for key in ("loss", "labelled_loss", "kl_loss", "cwd_loss", "grad_norm"):
            assert ours[key] == pytest.approx(theirs[key], rel=1e-3)
            assert theirs[key] > 0


@pytest.mark.parametrize("name", ["accumulated2", "ddp", "fsdp"])
def test_the_run_does_not_depend_on_how_the_batch_is_divided(runs, name):
    """Steps of 4 = 2 x 2 accumulated = 2 processes x 2, with labels that are missing unevenly: only sums differ."""
    expected, got = (Checkpoint.load(runs / folder / LAST) for folder in ("accumulated1", name))
    start = Checkpoint.load(runs / "accumulated1" / "step_00000000.safetensors")
    for ours, theirs in ((got.weights, expected.weights), (got.training.tensors, expected.training.tensors)):
        assert ours.keys() == theirs.keys()
        assert all(near(ours[key], value) for key, value in theirs.items())
    for part in ("encoder", "head", "aux_head"):
        between, way = apart(got.weights, expected.weights, start.weights, f"{part}.")
        assert between < 1e-6 * way, part  # a thousandth of what was learnt: a mean of means is far outside


def test_split_and_resumed_is_split(runs):
    """Weights, momentum and average are gathered into the file and split again to the same bits."""
    assert (runs / "fsdp" / "metrics.jsonl").read_bytes() == (runs / "fsdp_resumed" / "metrics.jsonl").read_bytes()
    same_bits(runs / "fsdp", runs / "fsdp_resumed")
    tensors = Checkpoint.load(runs / "fsdp" / LAST).training.tensors
    assert {key.partition(".")[0] for key in tensors} == {"optimizer", "average"}


def test_the_best_is_the_average(runs):
    best, last = Checkpoint.load(runs / "fsdp" / BEST), Checkpoint.load(runs / "ddp" / BEST)
    assert all(near(value, last.weights[key]) for key, value in best.weights.items())


@pytest.mark.parametrize("name", ["masks_ddp", "masks_fsdp"])
def test_two_processes_are_one(runs, name):
    """A head that predicts masks, images with one to three classes: each process divides by the masks of both."""
    one, two = (lines(runs / each) for each in ("masks_one", name))
    assert len(one) == 2
    for ours, theirs in zip(two, one, strict=True):
        for key in ("loss", "grad_norm"):
            assert ours[key] == pytest.approx(theirs[key], rel=2e-5), key


def test_many_processes_are_one(runs):
    """With unlabelled photos, FSDP gives the run of one process; DDP, each process with its own statistics, resumes."""
    expected, got = (Checkpoint.load(runs / name / LAST).weights for name in ("semi_one", "semi_fsdp"))
    between, way = apart(got, expected, Checkpoint.load(runs / "semi_one" / "step_00000000.safetensors").weights)
    assert between < 1e-6 * way
    for ours, theirs in zip(lines(runs / "semi_fsdp"), lines(runs / "semi_one"), strict=True):
        assert {**ours, "kind": 0} == pytest.approx({**theirs, "kind": 0}, rel=1e-3)
    assert any(line["unlabelled_loss"] > 0 for line in lines(runs / "semi_fsdp"))
    same_bits(runs / "semi_ema", runs / "semi_ema_resumed")
    assert lines(runs / "semi_ema") == lines(runs / "semi_ema_resumed")


def test_a_validation_after_a_resume_in_two_processes_is_that_of_the_run_that_was_not_killed(runs):
    """Killed between a state and its validation: the processes' own statistics of batch norm are gone."""
    ours, theirs = metrics(runs / "classifier_resumed"), metrics(runs / "classifier")
    assert [line["step"] for line in theirs if line["kind"] == "validation"] == [6, 12]
    assert ours == theirs


def test_plain_tensors_pass_as_they_are():
    value = torch.ones(2)
    assert whole({"a": value})["a"] is value
    assert part_like(value, torch.zeros(2)) is value
