"""Schedule and parameter groups."""

import pytest
import torch

from resnest_seg.config import OptimConfig
from resnest_seg.optim import build_optimizer, poly_lr, set_lr
from resnest_seg.segmenter import build_segmenter


def test_poly_is_torchs_polynomial_schedule():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.3)
    scheduler = torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=50, power=0.9)
    for step in range(51):
        assert poly_lr(step, steps=50, lr=0.3, power=0.9) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9)
        optimizer.step()
        scheduler.step()


def test_heads_learn_faster_and_nothing_is_left_out():
    segmenter = build_segmenter("resnest14_tiny", num_classes=3)
    optimizer = build_optimizer(segmenter, OptimConfig(head_lr_factor=10.0, weight_decay=0.5))
    set_lr(optimizer, 0.02)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in segmenter.named_parameters():
        assert rates[id(parameter)] == pytest.approx(0.02 if name.startswith("encoder.") else 0.2)
    assert len(rates) == len(list(segmenter.parameters()))
    assert all(group["weight_decay"] == 0.5 and group["momentum"] == 0.9 for group in optimizer.param_groups)
