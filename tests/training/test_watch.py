"""What stops a run, and what it says about the machine."""

import itertools
import math

import pytest
import torch
from rich.console import Console
from torch import nn

from resnest_seg.errors import ResNeStSegError
from resnest_seg.training import monitor as watch

MACHINE = {"images_per_second": 41.26, "memory_mib": 2150}


def printed(*, seconds, steps, every=10):
    """The lines of a run of so many steps that take so long each: (seconds since the start, line)."""
    time = [100.0]
    lines = watch.ProgressLines(0, steps, steps_per_epoch=100, clock=lambda: time[0])
    found = []
    for step in range(1, steps + 1):
        time[0] = 100 + step * seconds
        if step % every == 0 or step == 1:
            line = lines.line(step, loss=0.53218, lr=0.0098, machine=MACHINE)
            found += [] if line is None else [(step * seconds, line)]
    return found


def test_a_log_without_a_terminal_begins_at_once_and_stays_short():
    lines = printed(seconds=2, steps=400_000)  # nine days
    times = [time for time, _ in lines]
    assert len(lines) < 750
    assert times[:4] == [2, 40, 80, 120]  # the first step; then at multiples of 10 steps, 30 s apart or more
    for before, after in itertools.pairwise(times):
        assert max(30, 0.01 * after) <= after - before <= max(30, 0.01 * after) + 20
    assert len(printed(seconds=60, steps=30)) == 4  # steps 1, 10, 20 and 30: no line more often than --train.log_every


def test_a_line_of_progress_says_how_far_how_fast_and_how_long():
    assert printed(seconds=2, steps=4000)[1][1] == (
        "step 20/4000  epoch 0.20/40  loss 0.532  lr 0.0098  41.3 images/s  2 h 13 min left  memory 2.1 GiB"
    )
    resumed = watch.ProgressLines(3990, 4000, steps_per_epoch=100, clock=iter([0.0, 30.0]).__next__)
    line = resumed.line(3995, loss=1.0, lr=0.1, machine=MACHINE | {"cuda_peak_mib": 11_500})
    assert line.endswith("30 s left  memory 2.1 GiB, GPU 11.2 GiB")  # by the five steps of this process
    for seconds, text in ((0.4, "0 s"), (59, "59 s"), (61, "1 min"), (3599, "1 h 0 min"), (90_000, "1 d 1 h")):
        assert watch.duration(seconds) == text


def test_bars_are_for_terminals(tmp_path):
    with open(tmp_path / "log", "w") as file:
        assert not watch.has_bars(Console(file=file))
    assert watch.has_bars(Console(force_terminal=True))


def test_the_norm_is_that_of_all_gradients_together():
    model = nn.Linear(2, 2)
    model.weight.grad = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    model.bias.grad = torch.tensor([12.0, 0.0])
    assert float(watch.gradient_norm([*model.parameters(), nn.Parameter(torch.ones(1))])) == pytest.approx(13)


@pytest.mark.parametrize(
    ("loss", "norm", "scaled", "says"),
    [
        (math.nan, 1.0, False, r"the loss is nan at step 7; .*Files of the batch: a.png, b.png"),
        (math.inf, 1.0, True, "the loss is inf"),
        (1.5, math.nan, False, r"the gradient of bias and 0 more parameters is not finite \(norm nan, loss 1.5\)"),
        (1.5, math.inf, True, None),
        (1.5, 2.0, False, None),
    ],
)
def test_what_is_not_finite_is_named(loss, norm, scaled, says):
    model = nn.Linear(2, 2)
    model.weight.grad, model.bias.grad = torch.ones(2, 2), torch.tensor([0.0, math.nan])

    def check():
        watch.check_finite(loss, norm, model, where="step 7", files=lambda: ["a.png", "b.png"], allow_inf=scaled)

    if says is None:
        check()
    else:
        with pytest.raises(ResNeStSegError, match=says):
            check()


def test_the_gauge_counts_images_and_waiting():
    now = [100.0]
    gauge = watch.Gauge(clock=lambda: now[0])
    with gauge.waiting():
        now[0] += 1
    now[0] += 3
    assert gauge.count(20) == pytest.approx(5)
    values = gauge.read()
    assert values["images_per_second"] == 5
    assert values["data_wait"] == 0.25
    assert values["memory_mib"] > 50
    now[0] += 1
    assert gauge.read()["images_per_second"] == 0


@pytest.mark.parametrize("saving", [0.1, 4.0])
def test_a_run_that_spends_its_time_on_checkpoints_is_told_how_not_to(saving):
    """By a simulated clock: steps of 0.1 s, a checkpoint after every 22, as ResNeSt-50's epochs of CamVid on a GPU."""
    now, advices = [0.0], []
    gauge = watch.Gauge(clock=lambda: now[0])
    for step in range(1, 1001):
        now[0] += 0.1
        gauge.count(16)
        if step % 22 == 0:
            with gauge.saving():
                now[0] += saving
        if step % 10 == 0:
            gauge.read()
            advices.append(gauge.advice())
    said = [advice for advice in advices if advice]
    if saving < 0.2 * 2.2:
        assert not said
        return
    assert len(said) == 1
    every = int(said[0].split("--train.save_every ")[1].split()[0])
    assert saving / (every * 0.1) == pytest.approx(0.05, rel=0.01)
    assert "saving checkpoints takes 6" in said[0]  # 4 of 6.2 s are 64 %
