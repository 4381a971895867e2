"""Convolutions for training against torch's own, in float64."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from resnest_seg.training import cpu_speed as convolution
from resnest_seg.training.cpu_speed import ProductConv2d, faster_weight_gradients, products_are_faster

GEOMETRIES = [
    {"kernel_size": 1},
    {"kernel_size": 1, "bias": False},
    {"kernel_size": 3, "padding": 1, "bias": False},
    {"kernel_size": 3, "padding": 4, "dilation": 4, "groups": 2},
    {"kernel_size": 3, "padding": 36, "dilation": 36},
    {"kernel_size": 3, "padding": 9, "dilation": 9, "bias": False},
    {"kernel_size": 3, "padding": 15, "dilation": 15},
    {"kernel_size": 3, "padding": (2, 4), "dilation": (2, 3)},
    {"kernel_size": 3},
    {"kernel_size": (1, 5), "padding": (3, 4), "dilation": (1, 2)},
    {"kernel_size": 2, "padding": 1},
]
"""Options of a convolution of 128 channels to 192."""


@pytest.fixture
def taken(monkeypatch):
    """A list that grows by one for every gradient computed here."""
    calls, own = [], convolution.weight_gradient

    def counted(*arguments, **options):
        calls.append(1)
        return own(*arguments, **options)

    monkeypatch.setattr(convolution, "weight_gradient", counted)
    return calls


def pair(**options):
    """A convolution of ours, and torch's with the same weights in float64."""
    torch.manual_seed(0)
    ours = ProductConv2d(128, 192, **options).to(memory_format=torch.channels_last)
    plain = nn.Conv2d(128, 192, **options)
    plain.load_state_dict(ours.state_dict())
    return ours, plain.double()


def gradients(conv, x, *, weigh=torch.cos):
    """Of the input and all parameters, of a sum over the output that weighs pixels differently."""
    x = x.clone().requires_grad_()
    out = conv(x)
    (out * weigh(torch.arange(out.numel(), dtype=out.dtype)).view_as(out)).sum().backward()
    return [out.detach(), x.grad, *(parameter.grad for parameter in conv.parameters())]


@pytest.mark.parametrize("options", GEOMETRIES, ids=str)
@pytest.mark.parametrize("size", [(2, 13, 11), (1, 1, 1), (1, 9, 40)])
def test_gradients_are_torchs(options, size, taken):
    if options == {"kernel_size": 3} and size[1] == 1:
        return  # no output
    ours, plain = pair(**options)
    x = torch.randn(size[0], 128, *size[1:]).to(memory_format=torch.channels_last)
    for found, expected in zip(gradients(ours, x), gradients(plain, x.double()), strict=True):
        assert found.shape == expected.shape
        assert (found - expected).abs().max() <= 2e-5 * expected.abs().max()
    assert len(taken) == 1
    assert ours.weight.grad.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("case", "options"),
    [
        ("stride", {"stride": 2}),
        ("few channels", {"groups": 4}),
        ("padding mode", {"padding": 1, "padding_mode": "reflect"}),
        ("padding by name", {"padding": "same"}),
        ("contiguous memory", {}),
        ("double", {}),
        ("autocast", {}),
        ("frozen", {}),
        ("one image without a batch", {}),
    ],
)
def test_the_rest_is_left_to_torch(case, options, taken):
    ours, plain = pair(kernel_size=3, **options)
    x = torch.randn(2, 128, 9, 9).to(memory_format=torch.channels_last)
    x = {"contiguous memory": x.contiguous(), "one image without a batch": x[0]}.get(case, x)
    if case == "double":
        ours, x = ours.double(), x.double()
    ours.weight.requires_grad_(case != "frozen")
    with torch.autocast("cpu", torch.bfloat16, enabled=case == "autocast"):
        ours(x.requires_grad_()).float().square().sum().backward()
    expected = x.detach().double().requires_grad_()
    plain(expected).square().sum().backward()
    assert not taken
    assert (x.grad - expected.grad).abs().max() < (0.05 if case == "autocast" else 1e-4) * expected.grad.abs().max()
    assert (ours.weight.grad is None) == (case == "frozen")


def test_inputs_that_need_no_gradient_get_none(taken):
    ours, plain = pair(kernel_size=3, padding=1)
    x = torch.randn(1, 128, 6, 7).to(memory_format=torch.channels_last)
    ours(x).square().sum().backward()
    plain(x.double()).square().sum().backward()
    assert x.grad is None
    assert len(taken) == 1
    assert torch.allclose(ours.weight.grad.double(), plain.weight.grad, rtol=1e-4, atol=1e-3)
    assert torch.allclose(ours.bias.grad.double(), plain.bias.grad, rtol=1e-4, atol=1e-3)


def test_second_derivatives_and_recomputation(taken):
    ours, plain = pair(kernel_size=3, padding=2, dilation=2)
    x = torch.randn(1, 128, 6, 7).to(memory_format=torch.channels_last)
    seconds = []
    for conv, values in ((ours, x.clone()), (plain, x.double())):
        first = torch.autograd.grad(conv(values.requires_grad_()).cos().sum(), conv.weight, create_graph=True)[0]
        assert not taken  # it has to be differentiable itself
        seconds.append(torch.autograd.grad(first.square().sum(), values)[0])
        taken.clear()
    assert (seconds[0] - seconds[1]).abs().max() < 1e-4 * seconds[1].abs().max()
    checkpoint(ours, x.requires_grad_(), use_reentrant=False).cos().sum().backward()
    plain(x.detach().double()).cos().sum().backward()
    assert (ours.weight.grad - plain.weight.grad).abs().max() < 1e-4 * plain.weight.grad.abs().max()
    assert len(taken) == 1


def test_copies_exports_and_compiled_graphs_are_those_of_torch(taken):
    ours, _ = pair(kernel_size=3)
    assert type(copy.deepcopy(ours)) is ProductConv2d
    x = torch.randn(1, 128, 6, 7).to(memory_format=torch.channels_last)
    program = torch.export.export(ours, (x,))
    assert [node.target for node in program.graph.nodes if node.op == "call_function"] == [
        torch.ops.aten.conv2d.default
    ]
    torch.compile(ours, backend="aot_eager", fullgraph=True)(x).sum().backward()
    assert not taken
    assert ours.weight.grad is not None


def test_a_model_takes_part_within_the_context_alone(taken):
    model = nn.Sequential(nn.Conv2d(64, 64, 3, bias=False), nn.Sequential(nn.Conv2d(64, 64, 1)), OtherConv2d(64, 64, 1))
    model.to(memory_format=torch.channels_last)
    names, values = list(model.state_dict()), [parameter.data_ptr() for parameter in model.parameters()]
    x = torch.randn(1, 64, 6, 7).to(memory_format=torch.channels_last)
    model(x).square().sum().backward()
    expected = [parameter.grad for parameter in model.parameters()]
    model.zero_grad()
    with faster_weight_gradients(model, enabled=True) as count:
        assert count == 2
        model(x).square().sum().backward()
    assert len(taken) == 2
    assert [type(module) for module in model.modules() if isinstance(module, nn.Conv2d)] == [
        nn.Conv2d, nn.Conv2d, OtherConv2d
    ]  # fmt: skip
    assert list(model.state_dict()) == names
    assert [parameter.data_ptr() for parameter in model.parameters()] == values
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        assert (parameter.grad - gradient).abs().max() <= 2e-5 * gradient.abs().max()


def test_an_exception_ends_the_context():
    model = nn.Conv2d(64, 64, 1)
    with pytest.raises(RuntimeError), faster_weight_gradients(model, enabled=True):
        model(torch.zeros(1, 3, 2, 2))
    assert type(model) is nn.Conv2d


class OtherConv2d(nn.Conv2d):
    """Of a derived class, which may compute something else."""


@pytest.mark.parametrize(
    ("capability", "tiles", "expected"),
    [("AVX2", False, True), ("AVX2", True, True), ("AVX512", False, False), ("AVX512", True, True),
     ("DEFAULT", True, False), ("SVE256", False, False)],
)  # fmt: skip
def test_the_processor_decides(capability, tiles, expected, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_tile": tiles})
    assert products_are_faster() is expected
    model = nn.Conv2d(64, 64, 1)
    with faster_weight_gradients(model):
        assert (type(model) is ProductConv2d) is expected
    assert type(model) is nn.Conv2d
