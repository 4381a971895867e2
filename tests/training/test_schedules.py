"""The rate of every step, against torch's own schedulers and the formulas of the originals."""

import dataclasses

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, PolynomialLR, SequentialLR

from resnest_seg.config import OptimConfig, RunConfig, TrainConfig
from resnest_seg.errors import ConfigError
from resnest_seg.training.optim import WARMUP_START, Schedule, batch_factor, describe_lr

STEPS, WARMUP, LR = 50, 7, 0.3


def rates(build, steps):
    """What one of torch's schedulers sets, step by step, the state after the last one included."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=LR)
    scheduler, seen = build(optimizer), []
    for _ in range(steps + 1):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


CURVES = {
    ("poly", 0.0): lambda optimizer, steps: PolynomialLR(optimizer, total_iters=steps, power=0.9),
    ("cosine", 0.0): lambda optimizer, steps: CosineAnnealingLR(optimizer, T_max=steps),
    ("cosine", 0.01): lambda optimizer, steps: CosineAnnealingLR(optimizer, T_max=steps, eta_min=0.01),
}


@pytest.mark.parametrize(("curve", "floor"), CURVES)
@pytest.mark.parametrize("warmup", [0, WARMUP])
def test_it_is_torchs_schedule(curve, floor, warmup):
    def build(optimizer):
        main = CURVES[curve, floor](optimizer, STEPS - warmup)
        if not warmup:
            return main
        warm = LinearLR(optimizer, start_factor=WARMUP_START, total_iters=warmup)
        return SequentialLR(optimizer, [warm, main], milestones=[warmup])

    schedule = Schedule(STEPS, LR, curve, 0.9, min_lr=floor, warmup_steps=warmup)
    expected = rates(build, STEPS)
    assert [schedule(step) for step in range(STEPS + 1)] == pytest.approx(expected, abs=1e-9)


def test_poly_with_a_floor_is_mmsegmentations():
    schedule = Schedule(160_000, 0.01, min_lr=1e-4)
    for step in (0, 1, 4321, 80_000, 159_999, 160_000):
        assert schedule(step) == pytest.approx((0.01 - 1e-4) * (1 - step / 160_000) ** 0.9 + 1e-4)
    assert schedule(200_000) == 1e-4


def test_length_and_warm_up_in_epochs_or_iterations():
    optim = OptimConfig(warmup=2.5)
    by_epochs = RunConfig(optim=optim, train=TrainConfig(epochs=6))
    by_steps = RunConfig(optim=optim, train=TrainConfig(epochs=None, iterations=33))
    first, second = (Schedule.from_config(config, steps_per_epoch=4) for config in (by_epochs, by_steps))
    assert (first.steps, first.warmup_steps) == (24, 10)
    assert (second.steps, second.warmup_steps) == (33, 2)
    assert first(0) == pytest.approx(0.01 * WARMUP_START)
    assert first(10) == 0.01


@pytest.mark.parametrize(("batch", "reference", "factor"), [(16, 16, 1), (2, 16, 0.125), (64, 16, 4), (2, None, 1)])
def test_rates_follow_the_batch(batch, reference, factor):
    """A single GPU that trains 2 images a step with the rate of 16 diverges or ends far below the published figure."""
    optim = OptimConfig(lr=0.01, min_lr=1e-4, reference_batch=reference)
    config = RunConfig(optim=optim, train=TrainConfig(batch_size=batch))
    schedule = Schedule.from_config(config, steps_per_epoch=10)
    assert batch_factor(config) == factor
    assert (schedule(0), schedule(10**9)) == (pytest.approx(0.01 * factor), pytest.approx(1e-4 * factor))
    assert describe_lr(config).startswith(f"lr {0.01 * factor:g}")
    assert ("is for 16 images a step, and this run has" in describe_lr(config)) == (factor != 1)


@pytest.mark.parametrize(
    ("optim", "says"),
    [
        ({"schedule": "cosinus"}, "unknown optim.schedule 'cosinus'. Did you mean 'cosine'?"),
        ({"warmup": 3}, "lower it"),
    ],
)
def test_mistakes(optim, says):
    config = RunConfig(optim=dataclasses.replace(OptimConfig(), **optim), train=TrainConfig(epochs=3))
    with pytest.raises(ConfigError, match=says):
        Schedule.from_config(config, steps_per_epoch=10)
