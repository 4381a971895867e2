"""Graphs that torch.export can follow, against the modules and models that they stand for."""

import copy
import hashlib

import numpy as np
import pytest
import torch
from support.small_models import logits_of, noise, small_segmenter, used
from torch import nn

from resnest_seg.errors import ConfigError, ExportError
from resnest_seg.export.graph import (
    ExportOptions,
    PartMeans,
    _followable,
    exportable,
    info_of,
    smallest_for_torch,
    trace,
)
from resnest_seg.models.loading import build_segmenter, load_checkpoint

pytestmark = pytest.mark.slow

POOLS = [
    nn.AvgPool2d(3, 2, padding=1),
    nn.AvgPool2d(3, 2, padding=1, count_include_pad=False),
    nn.AvgPool2d(2, 2),
    nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False),
    nn.MaxPool2d(3, 2, padding=1),
    nn.MaxPool2d(3, 2, ceil_mode=True),
    nn.MaxPool2d(2, 2, ceil_mode=True),
    nn.MaxPool2d(4, 3, padding=2),
    *(nn.AdaptiveAvgPool2d(size) for size in (1, 2, 3, 6, (2, 5))),
]


@pytest.mark.parametrize("pool", POOLS, ids=str)
def test_what_stands_for_a_pool_computes_the_same_at_every_size(pool):
    other = _followable(pool)
    for height in range(3, 14):
        for width in (3, 4, 9, 17):
            x = torch.randn(2, 3, height, width)
            assert torch.allclose(other(x), pool(x), atol=1e-6), (height, width)


@pytest.mark.parametrize(
    "module",
    [
        nn.Conv2d(3, 4, 3, stride=2),
        nn.AvgPool2d(3, 1, padding=1),
        nn.AvgPool2d(2, 2, ceil_mode=True),
        nn.AvgPool2d(3, 2, ceil_mode=True, count_include_pad=False),
        nn.AvgPool2d(3, 2, divisor_override=5),
        nn.AvgPool2d((3, 2), 2),
        nn.MaxPool2d(3, 2, dilation=2),
        nn.MaxPool2d(3, 2, padding=1, ceil_mode=True),
        nn.AdaptiveAvgPool2d((None, 3)),
    ],
    ids=str,
)
def test_other_modules_stay(module):
    assert _followable(module) is None


def test_means_of_parts_keep_half_precision():
    assert PartMeans(2, 3)(torch.ones(1, 1, 5, 7).half()).dtype == torch.float16


def graph_of(segmenter, **options):
    info = info_of(segmenter, ExportOptions(**options))
    return exportable(segmenter, info), info


NETWORKS = [
    {"head": "deeplabv3", "rectify": "rectify"},
    {"head": "pspnet", "family": "mmseg", "dilation": "mmseg", "output_stride": 32},
    {"head": "fcn", "in_channels": 5, "dilation": "timm", "output_stride": 16},
    {"head": "smp:unet", "output_stride": 32},
    *(
        {"head": "mask2former", "family": "mmseg", "output_stride": 32, "aux_head": False, "pixel_decoder": decoder}
        for decoder in ("deformable", "fpn")
    ),
]


@pytest.mark.long
@pytest.mark.parametrize("values", NETWORKS, ids=str)
def test_a_graph_and_its_program_are_the_model_at_any_size(values):
    segmenter = build_segmenter("resnest14_tiny", num_classes=4, **values)
    if segmenter.predicts_masks:  # one layer for each level; the others are like them
        del segmenter.head.transformer_decoder.layers[3:]
        if values["pixel_decoder"] == "deformable":
            del segmenter.head.pixel_decoder.encoder.layers[1:]
    used(segmenter)
    before = copy.deepcopy(segmenter.state_dict())
    graph, info = graph_of(segmenter)
    assert segmenter.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in segmenter.state_dict().items())
    smallest = smallest_for_torch(info)
    program = trace(graph, smallest=smallest).module()
    for batch, height, width in ((1, 1, 1), (2, 7, 30), (1, 33, 47), (3, 64, 64), (1, 97, 66)):
        images = noise(batch, info.channels, height, width)
        expected = logits_of(segmenter, images)
        with torch.inference_mode():
            found = [graph(torch.from_numpy(images))]
            if min(height, width) >= smallest:
                found.append(program(torch.from_numpy(images)))
        for logits in found:
            assert np.abs(logits.numpy() - expected).max() < 1e-4 * np.abs(expected).max()


def test_a_program_carries_no_paths_of_this_machine():
    graph, _ = graph_of(small_segmenter())
    program = trace(graph, smallest=9)
    assert not any("stack_trace" in node.meta for node in program.graph.nodes)


@pytest.mark.parametrize(("pixels", "layout"), [("uint8", "nhwc"), ("float32", "nchw")])
def test_every_layout_and_output(pixels, layout):
    segmenter, images = small_segmenter(), noise(2, 3, 20, 31)
    expected = torch.from_numpy(logits_of(segmenter, images))
    arranged = torch.from_numpy(images if layout == "nchw" else np.ascontiguousarray(images.transpose(0, 2, 3, 1)))
    arranged = arranged.to(getattr(torch, pixels))
    for output, wanted in (
        ("logits", expected),
        ("softmax", expected.softmax(dim=1)),
        ("labels", expected.argmax(dim=1).to(torch.uint8)),
    ):
        graph, _ = graph_of(segmenter, pixels=pixels, layout=layout, output=output)
        for module in (graph, trace(graph, smallest=9).module()):
            found = module(arranged)
            assert found.dtype == wanted.dtype
            assert torch.allclose(found, wanted, atol=1e-4)


def test_half_precision_is_that_of_the_network_alone():
    segmenter, images = small_segmenter(), noise(1, 3, 24, 40)
    graph, _ = graph_of(segmenter, precision="half")
    assert {value.dtype for value in graph.parameters()} == {torch.float16}
    assert graph.mean.dtype == graph.scale.dtype == torch.float32
    found, expected = graph(torch.from_numpy(images)), logits_of(segmenter, images)
    assert found.dtype == torch.float32
    assert 0 < np.abs(found.numpy() - expected).max() < 0.01 * np.abs(expected).max()
    assert next(segmenter.parameters()).dtype == torch.float32


def test_an_export_says_what_it_is(tiny_space, tmp_path):
    segmenter = small_segmenter(tiny_space)
    options = ExportOptions(output="labels", precision="half")
    info = info_of(segmenter, options)
    assert info.label_space is tiny_space
    assert np.allclose(info.mean, np.array([0.485, 0.456, 0.406]) * 255)
    assert np.allclose(info.std, np.array([0.229, 0.224, 0.225]) * 255)
    assert (info.encoder, info.head, info.output_stride, info.output) == ("resnest14_tiny", "fcn", 8, "labels")
    assert (info.setting.dataset, info.setting.crop, info.setting.base_size) == ("camvid", (48, 48), 64)
    assert info_of(small_segmenter(classes=4), options).label_space.names[3] == "class 3"
    other = small_segmenter(tiny_space)
    assert info_of(other, options) == info
    other.head.conv5[0].weight.data[0] += 1
    assert info_of(other, options).source_sha256 != info.source_sha256

    path = tmp_path / "model.safetensors"
    build_segmenter("resnest14_tiny", head="fcn", num_classes=3).to_checkpoint().save(path)
    info = info_of(load_checkpoint(path), options)
    assert (info.source, info.source_sha256) == (path.name, hashlib.sha256(path.read_bytes()).hexdigest())
    with pytest.raises(ConfigError, match="Did you mean 'labels'"):
        info_of(segmenter, ExportOptions(output="label"))


def test_a_network_that_decides_by_its_pixels_is_refused():
    class Moody(nn.Module):
        def forward(self, x):
            return (x if x.sum() > 0 else -x,) * 4

    segmenter = small_segmenter()
    segmenter.encoder, segmenter.head = Moody(), nn.Conv2d(3, 3, 1)
    segmenter.head.forward = lambda features: features[-1] * segmenter.head.weight[0, 0]
    graph, _ = graph_of(segmenter)
    with pytest.raises(ExportError, match=r"torch\.export cannot follow this network"):
        trace(graph, smallest=9)
