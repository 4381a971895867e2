"""The table that tells the dilation variants apart."""

import pytest

from resnest_seg.config import ModelConfig
from resnest_seg.models.resnest import SPECS, stage_plans


def first_blocks(name, output_stride, dilation):
    """(stride, rate, pool, mean of the shortcut) of the first block of each stage."""
    plans = stage_plans(SPECS[name], ModelConfig(name, output_stride=output_stride, dilation=dilation))
    return [(p.stride, p.rate, p.pool, p.mean_shortcut) for p, *_ in plans]


STRIDED = [(1, 1, False, False), (2, 1, True, False)]


@pytest.mark.parametrize(
    ("dilation", "pool", "mean"), [("encoding", True, False), ("mmseg", False, False), ("timm", False, True)]
)
def test_first_blocks_of_dilated_stages(dilation, pool, mean):
    assert first_blocks("resnest50", 8, dilation) == [*STRIDED, (1, 1, pool, mean), (1, 2, pool, mean)]
    assert first_blocks("resnest50", 16, dilation) == [*STRIDED, (2, 1, True, False), (1, 1, pool, mean)]
    assert first_blocks("resnest50", 32, dilation) == [*STRIDED, (2, 1, True, False), (2, 1, True, False)]


def test_later_blocks_have_the_stages_rate_and_no_pool():
    stages = stage_plans(SPECS["resnest50"], ModelConfig("resnest50"))
    for plans, rate in zip(stages, (1, 1, 2, 4), strict=True):
        assert all((plan.stride, plan.rate, plan.pool, plan.project) == (1, rate, False, False) for plan in plans[1:])


def test_the_resnet_family_has_no_pool():
    assert not any(pool for _, _, pool, _ in first_blocks("resnet50", 8, "encoding"))
