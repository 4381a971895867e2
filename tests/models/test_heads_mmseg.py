"""mmsegmentation's heads that have no golden numbers, against their definition written with plain functions.

FCN, DeepLabV3 and the auxiliary head are compared with numbers from the original in test_conversion.py.
"""

import pytest
import torch
import torch.nn.functional as F
from support.reference import fill

from resnest_seg.models.heads import MMSegDeepLabV3PlusHead, MMSegPSPHead


def conv(state, name, x, **options):
    """Convolution, batch norm with running statistics, ReLU, from the weights' names."""
    x = F.conv2d(x, state[f"{name}.conv.weight"], **options)
    statistics = (state[f"{name}.bn.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
    return F.relu(F.batch_norm(x, *statistics))


def separable(state, name, x, rate):
    x = conv(state, f"{name}.depthwise_conv", x, padding=rate, dilation=rate, groups=x.shape[1])
    return conv(state, f"{name}.pointwise_conv", x)


def upsample(x, size):
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def classes(state, x):
    return F.conv2d(x, state["conv_seg.weight"], state["conv_seg.bias"])


@pytest.fixture
def features():
    generator = torch.Generator().manual_seed(0)
    sizes = {32: (18, 26), 64: (9, 13), 128: (9, 13), 96: (9, 13)}
    return [torch.randn(2, channels, *size, generator=generator) for channels, size in sizes.items()]


@torch.inference_mode()
def test_pspnet(features):
    head = fill(MMSegPSPHead(96, 5))
    state, c4 = head.state_dict(), features[-1]
    views = [c4]
    for place, parts in enumerate((1, 2, 3, 6)):
        pooled = F.adaptive_avg_pool2d(c4, parts)
        views.append(upsample(conv(state, f"psp_modules.{place}.1", pooled), c4.shape[2:]))
    expected = classes(state, conv(state, "bottleneck", torch.cat(views, 1), padding=1))
    assert torch.allclose(head(features), expected, atol=1e-4)


@torch.inference_mode()
def test_deeplabv3plus(features):
    head = fill(MMSegDeepLabV3PlusHead(96, 5, low_channels=32, rates=(2, 4, 6)))
    state, (c1, *_, c4) = head.state_dict(), features
    views = [conv(state, "image_pool.1", c4.mean(dim=(2, 3), keepdim=True)).expand(-1, -1, *c4.shape[2:])]
    views.append(conv(state, "aspp_modules.0", c4))
    views += [separable(state, f"aspp_modules.{place}", c4, rate) for place, rate in ((1, 2), (2, 4), (3, 6))]
    pyramid = upsample(conv(state, "bottleneck", torch.cat(views, 1), padding=1), c1.shape[2:])
    x = torch.cat([pyramid, conv(state, "c1_bottleneck", c1)], dim=1)
    for place in (0, 1):
        x = separable(state, f"sep_bottleneck.{place}", x, 1)
    assert torch.allclose(head(features), classes(state, x), atol=1e-4)


def test_dropout_acts_on_whole_channels_in_training():
    head = MMSegPSPHead(8, 3).train()
    dropped = head.dropout(torch.ones(4, 512, 3, 3))
    share = (dropped == 0).float().mean()
    assert abs(share - 0.1) < 0.05
    assert torch.equal((dropped == 0).any(dim=(2, 3)), (dropped == 0).all(dim=(2, 3)))
