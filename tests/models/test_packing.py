"""Packed convolutions against torch's own, on both of their ways."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from resnest_seg.models.fuse import PackedConv2d, packable

CONVOLUTIONS = [
    {"kernel_size": 1},
    {"kernel_size": 1, "stride": 2, "bias": False},
    {"kernel_size": 3, "padding": 4, "dilation": 4, "groups": 2},
    {"kernel_size": 3, "padding": 1, "groups": 16},
    {"kernel_size": (1, 5), "padding": (0, 2), "stride": (2, 1)},
]
"""Options of `nn.Conv2d`, 16 channels to 32."""


def pair(**options):
    """A convolution, and a packed one with the same parameters."""
    conv = nn.Conv2d(16, 32, **options).requires_grad_(False)
    return conv, PackedConv2d(copy.deepcopy(conv))


def packs(monkeypatch):
    """A list that grows by one for every call that took the packed way."""
    calls, packed = [], PackedConv2d._packed
    monkeypatch.setattr(PackedConv2d, "_packed", lambda self, x: calls.append(1) or packed(self, x))
    return calls


@torch.inference_mode()
@pytest.mark.parametrize("options", CONVOLUTIONS, ids=str)
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format], ids=str)
@pytest.mark.parametrize("relu", [False, True])
def test_both_ways_are_the_plain_operations(options, memory_format, relu, monkeypatch):
    calls = packs(monkeypatch)
    conv, packed = pair(**options)
    packed.relu = relu
    for size in ((12, 17), (30, 9), (1, 1), (40, 40)):  # one pack serves all sizes
        x = torch.randn(2, 16, *size).to(memory_format=memory_format)
        expected = conv(x)
        add = torch.randn_like(expected)
        for want, arguments in ((expected, (x,)), (expected + add, (x, add))):
            want = F.relu(want) if relu else want
            before = len(calls)
            with monkeypatch.context() as patch:
                patch.setattr(PackedConv2d, "_packs", lambda self, x: False)
                plain = packed(x, *(value.clone() for value in arguments[1:]))
            assert torch.allclose(plain, want, atol=1e-5)
            assert torch.allclose(packed(*arguments), want, atol=1e-5)
            assert len(calls) == before + 1


def test_a_changed_weight_is_packed_again():
    conv, packed = pair(kernel_size=3)
    x = torch.randn(1, 16, 9, 9)
    with torch.no_grad():
        before = packed(x)
        packed.weight.mul_(2)
        packed.bias.mul_(2)
        assert torch.allclose(packed(x), 2 * before, atol=1e-5)
        packed.load_state_dict(conv.state_dict())
        assert torch.allclose(packed(x), before, atol=1e-5)
        assert torch.allclose(packed.double()(x.double()), before.double(), atol=1e-5)


def test_packed_weights_are_neither_copied_nor_saved():
    _, packed = pair(kernel_size=3)
    x = torch.randn(1, 16, 9, 9)
    with torch.no_grad():
        expected = packed(x)
    assert packed._pack is not None
    twin = copy.deepcopy(packed)
    assert twin._pack is None
    assert set(packed.state_dict()) == {"weight", "bias"}
    with torch.no_grad():
        assert torch.equal(twin(x), expected)


def test_gradients_autocast_and_exports_take_the_plain_way(monkeypatch):
    calls = packs(monkeypatch)
    conv, packed = pair(kernel_size=3)
    x = torch.randn(1, 16, 9, 9, requires_grad=True)
    gradient, expected = (torch.autograd.grad(module(x).square().sum(), x)[0] for module in (packed, conv))
    assert torch.allclose(gradient, expected, atol=1e-4)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert packed(x).dtype == torch.bfloat16
    program = torch.export.export(packed, (x.detach(),))
    assert not any("mkldnn" in str(node.target) for node in program.graph.nodes)
    assert calls == []


def test_what_can_be_packed():
    class Own(nn.Conv2d):
        """A convolution that may do something else."""

    assert packable(nn.Conv2d(3, 4, 3))
    assert not packable(nn.Conv2d(3, 4, 3, padding="same"))
    assert not packable(nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"))
    assert not packable(Own(3, 4, 3))
    assert not packable(nn.ConvTranspose2d(3, 4, 3))
