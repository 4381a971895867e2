"""What stops a run, and what it says about the machine."""

import math

import pytest
import torch
from torch import nn

from resnest_seg.errors import ResNeStSegError
from resnest_seg.training import monitor as watch


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


def test_the_gauge_counts_images_and_waiting(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(watch.time, "perf_counter", lambda: now[0])
    gauge = watch.Gauge()
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
