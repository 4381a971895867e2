"""The authors' heads: what the options change. Their numbers are compared with the original in test_conversion.py."""

import pytest
import torch

from resnest_seg.models.heads import ClassifierHead, DeepLabV3Head, FCNHead, aspp_rates, resize_logits
from resnest_seg.models.loading import build_segmenter


@pytest.mark.parametrize(("output_stride", "rates"), [(8, (12, 24, 36)), (16, (6, 12, 18)), (32, (3, 6, 9))])
def test_aspp_rates_span_the_same_part_of_the_image(output_stride, rates):
    assert aspp_rates(output_stride) == rates
    ours = build_segmenter("resnest14_tiny", output_stride=output_stride).head.aspp
    assert tuple(branch[0].dilation[0] for branch in (ours.b1, ours.b2, ours.b3)) == rates
    theirs = build_segmenter("resnest14_tiny", family="mmseg", output_stride=output_stride).head.aspp_modules
    assert tuple(module.conv.dilation[0] for module in theirs[1:]) == rates
    plus = build_segmenter("resnest14_tiny", head="deeplabv3plus", family="mmseg", output_stride=output_stride).head
    assert tuple(module.depthwise_conv.conv.dilation[0] for module in plus.aspp_modules[1:]) == rates


def test_dropout_is_the_authors():
    def shares(module):
        return [(type(part).__name__, part.p) for part in module.modules() if "Dropout" in type(part).__name__]

    assert shares(FCNHead(64, 3)) == [("Dropout", 0.1)]
    assert shares(DeepLabV3Head(64, 3)) == [("Dropout2d", 0.5), ("Dropout", 0.1)]


def test_a_classifier_is_a_mean_and_a_linear_layer():
    head = ClassifierHead(8, 3)
    c4 = torch.randn(2, 8, 4, 5)
    expected = c4.mean(dim=(2, 3)) @ head.fc.weight.T + head.fc.bias
    assert torch.allclose(head([c4]), expected, atol=1e-6)


@pytest.mark.parametrize("align_corners", [False, True])
def test_resizing_is_interpolation(align_corners):
    logits = torch.randn(1, 2, 5, 6)
    expected = torch.nn.functional.interpolate(logits, (11, 13), mode="bilinear", align_corners=align_corners)
    assert torch.equal(resize_logits(logits, (11, 13), align_corners=align_corners), expected)
    single = torch.randn(1, 2, 1, 1)
    expected = torch.nn.functional.interpolate(single, (3, 4), mode="bilinear", align_corners=align_corners)
    # interpolate weighs the pixel with w and 1 - w, whose sum may be off by the last bit
    torch.testing.assert_close(resize_logits(single, (3, 4), align_corners=align_corners), expected)
