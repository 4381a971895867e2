"""Rectified convolutions against their definition: a convolution of ones."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from resnest_seg.models.resnest import RectifiedConv2d, padded_conv


@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (5, 9), (12, 7)])
@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": 3, "padding": 1, "stride": 2},
        {"kernel_size": 3, "padding": 4, "dilation": 4, "groups": 2},
        {"kernel_size": 7, "padding": 3, "stride": 2},
        {"kernel_size": 3, "padding": 2},
    ],
)
def test_the_correction_is_a_convolution_of_ones(average, size, options):
    torch.manual_seed(0)
    conv = RectifiedConv2d(4, 6, average=average, **options)
    x = torch.randn(2, 4, *size)
    geometry = {key: value for key, value in options.items() if key in ("padding", "stride", "dilation")}
    kernel = options["kernel_size"]
    inside = F.conv2d(torch.ones(1, 1, *size), torch.ones(1, 1, kernel, kernel), **geometry)
    plain = F.conv2d(x, conv.weight, groups=options.get("groups", 1), **geometry)
    expected = plain / inside if average else plain * kernel**2 / inside
    # where no tap lies inside, the convolution is 0 and so is 0 / 0 by convention
    assert torch.allclose(conv(x), expected.nan_to_num(0), atol=1e-5)


def test_a_constant_image_stays_constant_up_to_the_border():
    conv = padded_conv(1, 1, rectify="rectify")
    torch.nn.init.constant_(conv.weight, 0.5)
    assert torch.allclose(conv(torch.full((1, 1, 6, 8), 2.0)), torch.full((1, 1, 6, 8), 9.0))


def test_half_precision_stays_half():
    conv = padded_conv(2, 3, rectify="rectify_avg").bfloat16()
    assert conv(torch.randn(1, 2, 5, 5, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_parameters_are_those_of_a_plain_convolution():
    plain, rectified = padded_conv(3, 8, rectify="none"), padded_conv(3, 8, rectify="rectify")
    assert type(plain) is nn.Conv2d
    rectified.load_state_dict(plain.state_dict())


def test_autocast_is_not_undone():
    conv = padded_conv(2, 3, rectify="rectify")
    with torch.autocast("cpu", torch.bfloat16):
        assert conv(torch.randn(1, 2, 5, 5)).dtype == torch.bfloat16
