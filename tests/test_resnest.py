"""The encoders and heads: parity with the authors' code, shapes, and what the options change."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from reference import fill, golden_images, original_key

from resnest_seg.errors import ConfigError
from resnest_seg.heads import resize_logits
from resnest_seg.resnest import SPECS, SplitAttention, build_encoder
from resnest_seg.segmenter import build_segmenter

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize(("head", "file"), [("fcn", "fcn_resnest50"), ("deeplabv3", "deeplab_resnest50")])
def test_parity_with_pytorch_encoding(head, file):
    """All four stages and both outputs, against numbers from the original implementation."""
    golden = np.load(GOLDEN / f"{file}.npz")
    segmenter = fill(build_segmenter("resnest50", head=head, num_classes=int(golden["nclass"])))
    height, width = int(golden["h"]), int(golden["w"])
    images = golden_images(segmenter, int(golden["input_seed"]), height, width)
    with torch.inference_mode():
        features = segmenter.encoder(segmenter.normalise(images))
        main = segmenter(images).logits
        aux = resize_logits(segmenter.aux_head(features[2]), (height, width))
    outputs = dict(zip(("c1", "c2", "c3", "c4"), features, strict=True)) | {"main": main, "aux": aux}
    for name, output in outputs.items():
        assert output.shape == tuple(golden[f"{name}_shape"]), name
        values, expected = output.contiguous().flatten().numpy()[golden[f"{name}_idx"]], golden[f"{name}_val"]
        assert np.abs(values - expected).max() / np.abs(expected).max() < 1e-4, name
        assert abs(float(output.mean()) - golden[f"{name}_mean"]) < 1e-4 * golden[f"{name}_std"], name
        assert abs(float(output.std()) / golden[f"{name}_std"] - 1) < 1e-4, name


@pytest.mark.parametrize(
    ("encoder", "head", "entry"),
    [
        ("resnest50", "fcn", "fcn_resnest50"),
        ("resnest101", "fcn", "fcn_resnest101"),
        ("resnest50", "deeplabv3", "deeplab_resnest50"),
        ("resnest101", "deeplabv3", "deeplab_resnest101"),
        ("resnest200", "deeplabv3", "deeplab_resnest200"),
        ("resnest269", "deeplabv3", "deeplab_resnest269"),
    ],
)
def test_keys_and_shapes_are_those_of_the_originals(encoder, head, entry, real_data):
    """Every published network has exactly the original's keys and shapes."""
    import json

    originals = json.loads((real_data.parent / "reference" / "state_dict_keys.json").read_text())
    originals = originals[entry]
    classes = next(
        shape[0] for key, shape in reversed(originals.items()) if key.startswith("head.") and len(shape) == 4
    )
    with torch.device("meta"):
        segmenter = build_segmenter(encoder, head=head, num_classes=classes)
    ours = {original_key(k): list(v.shape) for k, v in segmenter.state_dict().items() if not k.startswith("pixel_")}
    assert ours == originals


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


@pytest.mark.parametrize("output_stride", [8, 16, 32])
@pytest.mark.parametrize("size", [(64, 96), (33, 47), (1, 1)])
def test_feature_sizes(output_stride, size):
    encoder = build_encoder("resnest14_tiny", output_stride=output_stride, dilation="encoding").eval()
    with torch.inference_mode():
        features = encoder(torch.randn(1, 3, *size))
    strides = (4, 8, min(16, output_stride), output_stride)
    for feature, channels, stride in zip(features, encoder.channels, strides, strict=True):
        assert feature.shape == (1, channels, -(-size[0] // stride), -(-size[1] // stride))


def test_same_weights_at_another_stride_are_another_network():
    """The trap that the variants' names exist for: the state dict fits, the numbers differ."""
    wide = build_encoder("resnest14_tiny", output_stride=8, dilation="encoding").eval()
    narrow = build_encoder("resnest14_tiny", output_stride=32, dilation="encoding").eval()
    narrow.load_state_dict(wide.state_dict())
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        difference = (wide(images)[3][:, :, ::4, ::4] - narrow(images)[3]).abs().max()
    assert difference > 1e-2


def test_parameter_counts_are_the_published_ones():
    """The ResNeSt paper, table 3: 27.5 and 48.3 million with the classifier, which has 2048 * 1000 + 1000 of them."""
    for name, millions in (("resnest50", 27.5), ("resnest101", 48.3)):
        with torch.device("meta"):
            encoder = build_encoder(name, output_stride=32, dilation="encoding")
        count = sum(parameter.numel() for parameter in encoder.parameters()) + 2048 * 1000 + 1000
        assert abs(count / 1e6 - millions) < 0.05, name


def test_all_specs_build_with_their_depths_and_widths():
    for name, spec in SPECS.items():
        with torch.device("meta"):
            encoder = build_encoder(name, output_stride=8, dilation="encoding")
        stages = (encoder.layer1, encoder.layer2, encoder.layer3, encoder.layer4)
        assert tuple(len(stage) for stage in stages) == spec.depths, name
        assert encoder.channels == tuple(spec.planes * 4 * 2**stage for stage in range(4)), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder": "resnest51"}, "unknown encoder 'resnest51'. Did you mean 'resnest50'?"),
        ({"head": "deeplab"}, "unknown head 'deeplab'. Did you mean 'deeplabv3'?"),
        ({"dilation": "encodings"}, "unknown dilation 'encodings'. Did you mean 'encoding'?"),
        ({"output_stride": 4}, "output_stride must be one of [8, 16, 32], not 4"),
        ({"num_classes": 0}, "num_classes must be at least 1, not 0"),
    ],
)
def test_wrong_choices_name_the_right_ones(change, message):
    values = {"encoder": "resnest14_tiny"} | change
    with pytest.raises(ConfigError) as error:
        build_segmenter(values.pop("encoder"), **values)
    assert message in str(error.value)
