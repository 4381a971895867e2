"""The encoders: parity with timm and torchvision, formulas, shapes, and what the options change."""

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from support.reference import fill, fill_fast

from resnest_seg.config import ModelConfig
from resnest_seg.errors import ConfigError
from resnest_seg.models.resnest import DILATIONS, SPECS, ResNeSt, SplitAttention, adapt_first_convolution


def encoder_like(original, name, **options):
    """Our encoder with the weights of a timm or torchvision classifier, whose names are the same."""
    with torch.device("meta"):
        encoder = ResNeSt(ModelConfig(name, **options)).eval()
    weights = {key: value for key, value in original.state_dict().items() if not key.startswith("fc.")}
    encoder.load_state_dict(weights, assign=True)
    return encoder


def assert_close(ours, theirs):
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() / theirs.abs().max() < 1e-5


@torch.inference_mode()
@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("resnest14", "resnest14d"),
        ("resnest26", "resnest26d"),
        ("resnest50_fast_4s2x40d", "resnest50d_4s2x40d"),
        ("resnest50_fast_1s4x24d", "resnest50d_1s4x24d"),
        ("resnet50c", "resnet50c"),
        ("resnet50d", "resnet50d"),
    ],
)
def test_timm_variant_is_live_timm(name, theirs):
    """Features of all stages and the classifier's logits, on a size that no stride divides.

    The networks of the three strides have the same weights.
    """
    weights = fill_fast(timm.create_model(theirs)).state_dict()
    images = torch.randn(1, 3, 75, 91, generator=torch.Generator().manual_seed(0))
    for output_stride in (8, 16, 32):
        with torch.device("meta"):
            original = timm.create_model(theirs, output_stride=output_stride).eval()
        original.load_state_dict(weights, assign=True)
        encoder = encoder_like(original, name, output_stride=output_stride, dilation="timm")
        _, expected = original.forward_intermediates(images)
        features = encoder(images)
        for ours, want in zip(features, expected[-4:], strict=True):
            assert_close(ours, want)
        assert_close(original.fc(features[-1].mean(dim=(2, 3))), original.forward_head(expected[-1]))


@torch.inference_mode()
@pytest.mark.parametrize("dilation", DILATIONS)
def test_at_stride_32_every_variant_is_the_imagenet_network(dilation):
    original = fill_fast(timm.create_model("resnest14d"))
    encoder = encoder_like(original, "resnest14", output_stride=32, dilation=dilation)
    images = torch.randn(1, 3, 65, 96, generator=torch.Generator().manual_seed(0))
    assert_close(encoder(images)[-1], original.forward_features(images))


@torch.inference_mode()
@pytest.mark.parametrize("name", ["resnet50", "resnext50_32x4d"])
@pytest.mark.parametrize("replace", [[False, False, False], [False, False, True], [False, True, True]])
def test_radix_zero_is_torchvision(name, replace):
    original = fill_fast(getattr(torchvision.models, name)(replace_stride_with_dilation=replace))
    encoder = encoder_like(original, name, output_stride=32 >> sum(replace), dilation="encoding")
    images = torch.randn(1, 3, 70, 90, generator=torch.Generator().manual_seed(0))
    x = original.maxpool(original.relu(original.bn1(original.conv1(images))))
    for stage, ours in enumerate(encoder(images), start=1):
        x = getattr(original, f"layer{stage}")(x)
        assert_close(ours, x)


@torch.inference_mode()
def test_the_dilation_variants_are_different_networks():
    """The trap that the names exist for: the same state dict fits all, the numbers differ."""
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for output_stride in (8, 16):
        c4 = {}
        for dilation in DILATIONS:
            encoder = fill(ResNeSt(ModelConfig("resnest14_tiny", output_stride=output_stride, dilation=dilation)))
            c4[dilation] = encoder(images)[-1]
        for one, other in (("encoding", "mmseg"), ("encoding", "timm"), ("mmseg", "timm")):
            assert (c4[one] - c4[other]).abs().mean() > 0.01 * c4[one].abs().mean(), (output_stride, one, other)


@torch.inference_mode()
def test_fast_models_pool_before_split_attention():
    """Same keys and shapes as resnest50, another network."""
    plain, fast = (ResNeSt(ModelConfig(name, output_stride=32, dilation="encoding")) for name in
                   ("resnest50", "resnest50_fast_2s1x64d"))  # fmt: skip
    fast.load_state_dict(fill_fast(plain).state_dict())
    fast.eval()
    assert {k: v.shape for k, v in plain.state_dict().items()} == {k: v.shape for k, v in fast.state_dict().items()}
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert (plain(images)[-1] - fast(images)[-1]).abs().mean() > 0.01 * plain(images)[-1].abs().mean()


def test_split_attention_is_the_formula():
    """Against the formula written with loops over groups and splits."""
    torch.manual_seed(0)
    radix, cardinality, channels = 2, 2, 8
    block = SplitAttention(channels, channels, dilation=1, cardinality=cardinality, radix=radix).eval()
    x = torch.randn(2, channels, 5, 7)
    with torch.inference_mode():
        u = F.relu(block.bn0(block.conv(x)))
        splits = [u[:, r * channels : (r + 1) * channels] for r in range(radix)]
        pooled = sum(splits).mean(dim=(2, 3), keepdim=True)
        scores = block.fc2(F.relu(block.bn1(block.fc1(pooled))))[:, :, 0, 0]
        expected = torch.zeros_like(splits[0])
        share = channels // cardinality
        for n in range(len(x)):
            for k in range(cardinality):
                of_group = scores[n, k * radix * share : (k + 1) * radix * share].view(radix, share).softmax(dim=0)
                for r in range(radix):
                    for c in range(share):
                        expected[n, k * share + c] += of_group[r, c] * splits[r][n, k * share + c]
        assert torch.allclose(block(x), expected, atol=1e-6)


def test_radix_one_is_squeeze_and_excitation():
    torch.manual_seed(0)
    block = SplitAttention(8, 8, dilation=2, cardinality=1, radix=1).eval()
    x = torch.randn(1, 8, 6, 6)
    with torch.inference_mode():
        u = F.relu(block.bn0(block.conv(x)))
        gate = torch.sigmoid(block.fc2(F.relu(block.bn1(block.fc1(u.mean(dim=(2, 3), keepdim=True))))))
        assert torch.allclose(block(x), u * gate, atol=1e-6)


@torch.inference_mode()
@pytest.mark.parametrize("output_stride", [8, 16, 32])
@pytest.mark.parametrize("size", [(64, 96), (33, 47), (1, 1)])
@pytest.mark.parametrize("dilation", DILATIONS)
def test_feature_sizes(output_stride, size, dilation):
    encoder = ResNeSt(ModelConfig("resnest14_tiny", output_stride=output_stride, dilation=dilation)).eval()
    features = encoder(torch.randn(1, 3, *size))
    strides = (4, 8, min(16, output_stride), output_stride)
    for feature, channels, stride in zip(features, encoder.channels, strides, strict=True):
        assert feature.shape == (1, channels, -(-size[0] // stride), -(-size[1] // stride))


def test_parameter_counts_are_the_published_ones():
    """The ResNeSt paper, table 3: 27.5 and 48.3 million with the classifier, which has 2048 * 1000 + 1000 of them."""
    for name, millions in (("resnest50", 27.5), ("resnest101", 48.3)):
        with torch.device("meta"):
            encoder = ResNeSt(ModelConfig(name, output_stride=32, dilation="encoding"))
        count = sum(parameter.numel() for parameter in encoder.parameters()) + 2048 * 1000 + 1000
        assert abs(count / 1e6 - millions) < 0.05, name


def test_all_specs_build_with_their_depths_and_widths():
    for place, (name, spec) in enumerate(SPECS.items()):
        with torch.device("meta"):
            encoder = ResNeSt(
                ModelConfig(name, output_stride=(8, 16, 32)[place % 3], dilation=DILATIONS[place // 3 % 3])
            )
        stages = (encoder.layer1, encoder.layer2, encoder.layer3, encoder.layer4)
        assert tuple(len(stage) for stage in stages) == spec.depths, name
        assert encoder.channels == tuple(spec.planes * 4 * 2**stage for stage in range(4)), name


def test_parameter_counts_of_the_rivals_are_torchvisions():
    for name in ("resnet50", "resnet101", "resnet152", "resnext50_32x4d", "resnext101_32x8d"):
        with torch.device("meta"):
            ours = ResNeSt(ModelConfig(name, output_stride=32, dilation="encoding")).state_dict()
            theirs = getattr(torchvision.models, name)().state_dict()
        shapes = {key: value.shape for key, value in theirs.items() if not key.startswith("fc.")}
        assert {key: value.shape for key, value in ours.items()} == shapes, name


def training_pair(**options):
    """A tiny encoder in training mode with and without options, and a batch; the same weights."""
    torch.manual_seed(0)
    plain = ResNeSt(ModelConfig("resnest14_tiny", output_stride=8, dilation="encoding"))
    other = ResNeSt(ModelConfig("resnest14_tiny", output_stride=8, dilation="encoding", **options))
    other.load_state_dict(plain.state_dict())
    return plain, other, torch.randn(4, 3, 48, 48)


@pytest.mark.parametrize("option", ["drop_block", "drop_path"])
def test_regularisation_acts_in_training_only(option):
    plain, other, images = training_pair(**{option: 0.3})
    assert not torch.equal(plain(images)[-1], other(images)[-1])
    plain.load_state_dict(other.state_dict())
    assert torch.equal(plain.eval()(images)[-1], other.eval()(images)[-1])


def test_drop_block_clears_its_share_in_the_last_two_stages():
    _, other, _ = training_pair(drop_block=0.25)
    for stage, acts in ((other.layer1, False), (other.layer2, False), (other.layer3, True), (other.layer4, True)):
        for drop in (stage[0].drop_block1, stage[0].drop_block3, stage[0].conv2.drop_block):
            cleared = (drop(torch.ones(8, 16, 24, 24)) == 0).float().mean()
            assert abs(cleared - (0.25 if acts else 0.0)) < 0.06
    assert ResNeSt(ModelConfig("resnet50d", output_stride=32, dilation="timm",
                         drop_block=0.1)).layer4[0].drop_block2.p == 0.1  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_drop_block_keeps_the_mean_in_half_precision(dtype):
    """More pixels than float16 can count: torchvision's own would clear everything."""
    dropped = training_pair(drop_block=0.1)[1].layer4[0].drop_block1(torch.ones(2, 256, 60, 60, dtype=dtype))
    assert dropped.dtype == dtype
    assert abs(float(dropped.float().mean()) - 1) < 0.02


def test_fresh_weights_have_the_authors_variance():
    encoder = ResNeSt(ModelConfig("resnest50", output_stride=32, dilation="encoding"))
    for conv in (encoder.conv1[0], encoder.layer3[1].conv1, encoder.layer4[2].conv2.conv):
        area = conv.kernel_size[0] * conv.kernel_size[1]
        assert float(conv.weight.detach().std()) == pytest.approx((2 / (area * conv.out_channels)) ** 0.5, rel=0.06)


def test_stochastic_depth_grows_with_depth_and_can_skip_a_block():
    encoder = ResNeSt(ModelConfig("resnest26", output_stride=32, dilation="encoding", drop_path=0.7))
    blocks = [block for stage in (encoder.layer1, encoder.layer2, encoder.layer3, encoder.layer4) for block in stage]
    rates = [getattr(block.drop_path, "p", 0.0) for block in blocks]
    assert rates == pytest.approx([0.7 * place / 7 for place in range(8)])
    last = ResNeSt(ModelConfig("resnest26", output_stride=32, dilation="encoding", drop_path=1.0))
    x = torch.randn(2, 2048, 3, 3)
    assert torch.equal(last.layer4[1](x), x.relu())


def test_zero_gamma_starts_blocks_as_their_shortcut():
    encoder = ResNeSt(ModelConfig("resnest26", output_stride=32, zero_gamma=True))
    x = torch.randn(2, 256, 6, 6)
    assert torch.equal(encoder.layer1[1](x), x.relu())


def test_activation_checkpointing_changes_no_number():
    """Gradients, and the running statistics, which a second forward pass must not move again."""
    plain, other, images = training_pair(checkpointing=True)
    for encoder in (plain, other):
        sum(feature.square().mean() for feature in encoder(images)).backward()
    for (name, a), b in zip(plain.named_parameters(), other.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, rtol=1e-5, atol=1e-7), name
    for (name, a), b in zip(plain.named_buffers(), other.buffers(), strict=True):
        assert torch.equal(a, b), name
    assert all(module.momentum == 0.1 for module in other.modules() if isinstance(module, torch.nn.BatchNorm2d))


def test_activation_checkpointing_keeps_less_for_the_backward_pass():
    def kept(encoder, images):
        total = 0

        def count(tensor):
            nonlocal total
            total += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            encoder(images)
        return total

    plain, other, images = training_pair(checkpointing=True)
    assert kept(other, images) < 0.5 * kept(plain, images)


@torch.inference_mode()
def test_rectified_network_differs_at_the_border_only():
    """Same weights; in the middle of a large image, farther from the border than the network sees, nothing changes."""
    plain = fill(ResNeSt(ModelConfig("resnest14_tiny", output_stride=8, dilation="encoding")))
    other = fill(ResNeSt(ModelConfig("resnest14_tiny", output_stride=8, rectify="rectify")))
    images = torch.randn(1, 3, 64, 640, generator=torch.Generator().manual_seed(0))
    a, b = plain.stem(images), other.stem(images)
    assert not torch.equal(a[..., 0], b[..., 0])
    assert torch.allclose(a[..., 8:-8, 8:-8], b[..., 8:-8, 8:-8])
    assert not torch.allclose(plain(images)[-1], other(images)[-1])


@pytest.mark.parametrize("in_channels", [1, 2, 4, 7])
def test_first_convolution_adapts_like_timm(in_channels):
    weight = torch.randn(16, 3, 3, 3)
    adapted = adapt_first_convolution(weight, in_channels)
    assert torch.allclose(adapted, timm.models.adapt_input_conv(in_channels, weight))
    encoder = ResNeSt(ModelConfig("resnest14_tiny", output_stride=8, dilation="mmseg", in_channels=in_channels)).eval()
    assert encoder(torch.zeros(1, in_channels, 32, 32))[-1].shape == (1, 256, 4, 4)


@torch.inference_mode()
def test_a_grey_image_gives_what_its_rgb_copy_gave():
    colour = ResNeSt(ModelConfig("resnest14_tiny", output_stride=8, dilation="encoding")).eval()
    grey = ResNeSt(ModelConfig("resnest14_tiny", output_stride=8, dilation="encoding", in_channels=1)).eval()
    weights = copy.copy(colour.state_dict())
    weights["conv1.0.weight"] = adapt_first_convolution(weights["conv1.0.weight"], 1)
    grey.load_state_dict(weights)
    image = torch.randn(1, 1, 40, 40)
    assert torch.allclose(grey(image)[-1], colour(image.expand(-1, 3, -1, -1))[-1], atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "resnest51"}, "unknown encoder 'resnest51'. Did you mean 'resnest50'?"),
        ({"dilation": "encodings"}, "unknown dilation 'encodings'. Did you mean 'encoding'?"),
        ({"output_stride": 4}, "output_stride must be one of [8, 16, 32], not 4"),
        ({"rectify": "rectified"}, "unknown rectify 'rectified'. Did you mean 'rectify'?"),
    ],
)
def test_wrong_choices_name_the_right_ones(change, message):
    values = {"name": "resnest14_tiny", "output_stride": 8, "dilation": "encoding"} | change
    with pytest.raises(ConfigError) as error:
        ResNeSt(ModelConfig(values.pop("name"), **values))
    assert message in str(error.value)


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (2, 2), (2, 7), (3, 2), (4, 4)])
def test_drop_block_takes_features_of_any_size(size):
    """torchvision's own refuses a side of two pixels, where its 3x3 blocks become even."""
    from resnest_seg.models.resnest import DropBlock

    torch.manual_seed(0)
    x = torch.ones(64, 8, *size)
    out = DropBlock(0.3).train()(x)
    assert out.shape == x.shape
    assert (out == 0).any()
    assert (out > 0).any()
    assert torch.equal(DropBlock(0.3).eval()(x), x)


def test_weights_of_splits_in_float32_leave_the_sum_in_half_precision():
    """A GPU's autocast computes their softmax in float32; the pixels must not follow."""
    block = SplitAttention(4, 4, dilation=1, cardinality=1, radix=2)
    features, weights = torch.randn(2, 8, 5, 6).bfloat16(), torch.rand(2, 8, 1, 1)
    summed = block.weighted_sum(features, weights)
    assert summed.dtype == torch.bfloat16
    expected = (features.float() * weights).unflatten(1, (2, 4)).sum(dim=1)
    assert (summed.float() - expected).abs().max() < 0.03 * expected.abs().max()
