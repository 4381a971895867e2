"""Fused models: the same numbers without batch norms."""

import copy

import pytest
import torch
from support.reference import fill
from torch import nn

from resnest_seg.config import ModelConfig
from resnest_seg.errors import ConfigError, ExportError
from resnest_seg.models.fuse import fold_batch_norms, fuse_model
from resnest_seg.models.loading import build_segmenter
from resnest_seg.models.resnest import DILATIONS, SPECS, EncoderSpec, ResNeSt

NETWORKS = [
    {"head": "fcn"},
    {"head": "deeplabv3"},
    {"head": "deeplabv3", "dilation": "timm", "output_stride": 16},
    {"head": "deeplabv3", "rectify": "rectify"},
    {"head": "fcn", "rectify": "rectify_avg", "drop_block": 0.1, "drop_path": 0.1, "checkpointing": True},
    {"head": "fcn", "family": "mmseg", "dilation": "mmseg"},
    {"head": "deeplabv3", "family": "mmseg"},
    {"head": "pspnet", "family": "mmseg", "output_stride": 32},
    {"head": "deeplabv3plus", "family": "mmseg"},
    {"head": "fcn", "in_channels": 5},
    {"head": "smp:upernet", "output_stride": 16},
    {"head": "smp:unet", "output_stride": 32},
    {"encoder": "smp:resnet18", "head": "smp:fpn", "output_stride": 32},
    {"encoder": "smp:timm-skresnet18", "head": "smp:linknet", "output_stride": 32},
    {"encoder": "smp:tu-resnest14d", "head": "deeplabv3", "output_stride": 32},
    {"encoder": "smp:mobilenet_v2", "head": "smp:deeplabv3plus", "output_stride": 16},
    {"encoder": "smp:efficientnet-b0", "head": "smp:pan", "output_stride": 32},
]
"""Values of `build_segmenter`; the encoder is resnest14_tiny where none is named."""


def norms(model):
    return [name for name, module in model.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def network(**values):
    """A model with statistics of its own in every norm."""
    return fill(build_segmenter(values.pop("encoder", "resnest14_tiny"), num_classes=4, **values))


def assert_same(fused, plain, images):
    with torch.inference_mode():
        ours, expected = fused(images).logits, plain(images).logits
    assert (ours - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.long
@pytest.mark.parametrize("values", NETWORKS, ids=str)
def test_a_fused_model_gives_the_same_logits(values):
    plain = network(**values)
    fused = copy.deepcopy(plain)
    assert fused.fuse() is fused
    assert len(norms(fused)) < len(norms(plain))
    assert_same(
        fused,
        plain,
        255 * torch.rand(1, values.get("in_channels", 3), 65, 97, generator=torch.Generator().manual_seed(0)),
    )


SMALL = {
    "radix 1": EncoderSpec((1, 1, 1, 1), stem_width=8, radix=1, planes=8),
    "fast 4s2x": EncoderSpec((1, 2, 1, 1), stem_width=8, radix=4, cardinality=2, planes=8, pool_first=True),
    "resnet": EncoderSpec((1, 2, 1, 1), deep_stem=False, radix=0, planes=8, avg_down=False),
    "resnext, deep stem": EncoderSpec((1, 1, 1, 1), stem_width=8, radix=0, cardinality=4, planes=8, avg_down=False),
}  # fmt: skip


@pytest.mark.parametrize("spec", SMALL.values(), ids=list(SMALL))
@pytest.mark.parametrize("dilation", DILATIONS)
def test_every_kind_of_encoder_loses_all_its_norms(spec, dilation, monkeypatch):
    monkeypatch.setitem(SPECS, "small", spec)
    plain = fill(ResNeSt(ModelConfig("small", dilation=dilation)))
    fused = copy.deepcopy(plain)
    fuse_model(fused, lambda images: fused(images)[-1], 3)
    assert norms(fused) == []
    images = torch.randn(1, 3, 40, 56, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        for ours, expected in zip(fused(images), plain(images), strict=True):
            assert (ours - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize("family", ["encoding", "mmseg"])
@pytest.mark.parametrize("head", ["fcn", "deeplabv3"])
def test_our_networks_lose_all_norms_and_the_auxiliary_head(head, family):
    fused = network(head=head, family=family).fuse()
    assert norms(fused) == []
    assert fused.aux_head is None
    assert not any(parameter.requires_grad for parameter in fused.parameters())
    assert all(conv.weight.is_contiguous(memory_format=torch.channels_last)
               for conv in fused.modules() if isinstance(conv, nn.Conv2d))  # fmt: skip


def test_a_rectified_convolution_keeps_its_norm():
    """The map that it multiplies by is not in the norm's bias."""
    fused = network(head="fcn", rectify="rectify").fuse()
    assert "encoder.layer1.0.conv2.bn0" in norms(fused)
    assert "encoder.layer1.0.bn1" not in norms(fused)


def test_fusing_twice_is_fusing_once():
    once = network().fuse()
    twice = copy.deepcopy(once).fuse()
    assert twice.state_dict().keys() == once.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(once.parameters(), twice.parameters(), strict=True))


def test_half_precision_stays_and_is_rounded_once():
    plain = network()
    images = 255 * torch.rand(8, 3, 65, 80, generator=torch.Generator().manual_seed(0))
    half = copy.deepcopy(plain).bfloat16()
    exact = copy.deepcopy(half).double()
    fused = copy.deepcopy(half).fuse()
    assert {value.dtype for value in fused.state_dict().values()} == {torch.bfloat16}
    conv = exact.fuse().encoder.layer1[0].conv1
    assert torch.equal(fused.encoder.layer1[0].conv1.weight, conv.weight.bfloat16())
    with torch.inference_mode():
        expected = plain(images).logits
        assert (fused(images).logits.float() - expected).abs().mean() < 0.03 * expected.abs().mean()


def test_a_fused_model_refuses_to_be_trained_or_saved(tmp_path):
    fused = network(head="fcn").train().fuse()
    assert not fused.training
    assert fused.eval() is fused
    assert fused.description.endswith(", fused")
    with pytest.raises(ConfigError, match="a fused model cannot be trained"):
        fused.train()
    with pytest.raises(ConfigError, match="a fused model cannot be saved"):
        fused.save_pretrained(tmp_path)


class Shared(nn.Module):
    """One convolution read by a norm and by somebody else, or read through a ReLU that works in place."""

    def __init__(self, in_place):
        super().__init__()
        self.conv, self.norm, self.in_place = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), in_place
        self.norm.running_mean.fill_(1.0)

    def forward(self, x):
        x = self.conv(x)
        return self.norm(x.relu_()) if self.in_place else self.norm(x) + x


@pytest.mark.parametrize("in_place", [True, False])
def test_a_norm_that_is_not_alone_stays(in_place):
    model, x = Shared(in_place).eval(), torch.randn(1, 3, 4, 4)
    assert fold_batch_norms(model, lambda: model(x)) == 0
    assert norms(model) == ["norm"]


def test_fusing_that_changes_the_output_is_refused():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    model[1].running_var.fill_(4.0)
    with pytest.raises(ExportError, match=r"fusing changed the model's output by .* of its largest value"):
        fuse_model(model, lambda images: model(images) + 1e4 * model[0].weight.sum(), 3)
