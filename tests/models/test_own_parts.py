"""Networks with an encoder or head of the user's own: saved, recognised, loaded again, and refused in words."""

import json

import pytest
import torch
from safetensors import safe_open
from support.small_models import OneConvolution, used
from torch import nn

import resnest_seg
from resnest_seg.errors import CheckpointError, ConfigError
from resnest_seg.models.checkpoint import fingerprint
from resnest_seg.models.heads import freeze_unread


class Head(nn.Module):
    """One convolution of one feature."""

    def __init__(self, channels, classes, kernel=1):
        super().__init__()
        self.layer = nn.Conv2d(channels, classes, kernel, padding=kernel // 2)

    def forward(self, features):
        return self.layer(features[-1])


def own_head(classes, *, kernel=1, dilation="encoding", align_corners=False):
    encoder = resnest_seg.build_encoder("resnest14_tiny", output_stride=16, dilation=dilation)
    head = Head(encoder.channels[-1], classes, kernel)
    return resnest_seg.Segmenter(encoder, head, num_classes=classes, align_corners=align_corners)


def own_encoder(classes, output_stride=8):
    head = Head(16, classes)
    return resnest_seg.Segmenter(OneConvolution(), head, num_classes=classes, output_stride=output_stride)


@pytest.fixture
def saved(tmp_path):
    segmenter = used(own_head(4))
    path = tmp_path / "own.safetensors"
    segmenter.label_space = resnest_seg.LabelSpace.numbered(4)
    segmenter.to_checkpoint().save(path)
    return segmenter, path


class Patches(nn.Module):
    """An encoder that takes multiples of 14 only, as networks of patches do."""

    size_divisor = 14

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 8, 14, stride=14)

    def forward(self, images):
        self.seen = tuple(images.shape[2:])
        assert [side % 14 for side in self.seen] == [0, 0]
        return [self.layer(images)] * 4


def logits(segmenter, seed=0):
    images = torch.randint(0, 256, (2, 3, 33, 47), generator=torch.Generator().manual_seed(seed))
    with torch.inference_mode():
        return segmenter.eval()(images).logits


def test_a_checkpoint_loads_into_a_function_or_a_model(saved):
    segmenter, path = saved
    for into in (own_head, own_head(4)):
        loaded = resnest_seg.load_checkpoint(path, into=into)
        assert torch.equal(logits(loaded), logits(segmenter))
        assert loaded.label_space == segmenter.label_space
        assert not loaded.training
        assert "custom head" in str(loaded.load_report)
    assert resnest_seg.Predictor.from_checkpoint(path, into=own_head, device="cpu").label_space == segmenter.label_space


def test_the_file_says_custom_with_a_fingerprint_and_names_no_code(saved):
    segmenter, path = saved
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    model = json.loads(metadata["config"])["model"]
    assert (model["encoder"], model["head"]) == ("resnest14_tiny", "custom")
    assert json.loads(metadata["fingerprints"]) == {"head": fingerprint(segmenter.state_dict(), "head")}
    assert not any(name in json.dumps(metadata) for name in ("test_own_parts", "Head", ".py"))
    assert fingerprint(segmenter.state_dict(), "head") in segmenter.description
    assert fingerprint(own_head(4, kernel=3).state_dict(), "head") not in segmenter.description


def test_without_into_the_error_says_what_to_give(saved):
    _, path = saved
    for load in (resnest_seg.load_checkpoint, resnest_seg.Segmenter.from_pretrained):
        with pytest.raises(CheckpointError, match=r"--model FILE\.py:FUNCTION.*load_checkpoint\(path, into="):
            load(path)
    with pytest.raises(ConfigError, match=r"--model FILE\.py:FUNCTION"):
        resnest_seg.build_segmenter(head="custom")


def test_another_network_is_refused(saved, tmp_path):
    _, path = saved
    for into, words in (
        (lambda classes: own_head(classes, kernel=3), "head.layer.weight"),
        (lambda classes: own_head(classes, dilation="mmseg"), "dilation 'encoding'.*'mmseg'"),
        (lambda classes: own_head(classes, align_corners=True), "align_corners"),
        (lambda classes: own_head(classes + 1), "shape"),
        (own_encoder, "output_stride 16"),
        (lambda classes: own_encoder(classes, output_stride=16), "do not fit"),
    ):
        with pytest.raises(CheckpointError, match=words):
            resnest_seg.load_checkpoint(path, into=into)
    with pytest.raises(ConfigError, match=r"must return a resnest_seg\.Segmenter, not a Head"):
        resnest_seg.load_checkpoint(path, into=lambda classes: Head(3, classes))
    classifier = tmp_path / "other"
    with pytest.raises(CheckpointError, match="no checkpoint"):
        resnest_seg.load_checkpoint(classifier, into=own_head)


def test_an_encoder_of_ones_own_is_custom_too(tmp_path):
    segmenter = used(own_encoder(5))
    assert (segmenter.config.model.encoder, segmenter.output_stride) == ("custom", 8)
    segmenter.save_pretrained(tmp_path / "folder")
    loaded = resnest_seg.load_checkpoint(tmp_path / "folder", into=own_encoder)
    assert torch.equal(logits(loaded), logits(segmenter))
    assert "custom encoder" in loaded.description


def test_a_named_network_loads_into_itself_and_into_no_other_variant(tmp_path):
    segmenter = used(resnest_seg.build_segmenter("resnest14_tiny", head="fcn", num_classes=3))
    segmenter.to_checkpoint().save(tmp_path / "named.safetensors")
    twin = resnest_seg.build_segmenter("resnest14_tiny", head="fcn", num_classes=3)
    assert torch.equal(
        logits(resnest_seg.load_checkpoint(tmp_path / "named.safetensors", into=twin)), logits(segmenter)
    )
    for other in ({"dilation": "timm"}, {"output_stride": 16}, {"rectify": "rectify"}):
        stranger = resnest_seg.build_segmenter("resnest14_tiny", head="fcn", num_classes=3, **other)
        with pytest.raises(CheckpointError, match="mean something else"):
            resnest_seg.load_checkpoint(tmp_path / "named.safetensors", into=stranger)


def test_encoders_by_name_are_feature_extractors():
    encoder = resnest_seg.build_encoder("resnest14_tiny", output_stride=8).eval()
    with torch.inference_mode():
        features = encoder(torch.zeros(1, 3, 64, 96))
    assert [tuple(feature.shape[1:]) for feature in features[-4:]] == [
        (channels, 64 // stride, 96 // stride) for channels, stride in zip(encoder.channels, (4, 8, 8, 8), strict=True)
    ]
    assert resnest_seg.build_encoder("smp:resnet18", output_stride=16).config.encoder == "smp:resnet18"
    with pytest.raises(ConfigError, match="resnest50"):
        resnest_seg.build_encoder("resnest5")


@pytest.mark.parametrize(
    ("divisor", "smallest", "wanted"), [(1, 1, (42, 56)), (32, 1, (224, 224)), (1, 64, (70, 70)), (4, 60, (84, 84))]
)
def test_images_are_padded_to_what_encoder_and_head_both_take(divisor, smallest, wanted):
    """To multiples of both numbers, also where that is the smallest size."""
    head = Head(8, 3)
    head.size_divisor, head.min_size = divisor, smallest
    segmenter = resnest_seg.Segmenter(Patches(), head, num_classes=3)
    assert logits(segmenter).shape == (2, 3, 33, 47)
    assert segmenter.encoder.seen == wanted


def test_what_no_head_reads_is_found_by_an_image_that_the_encoder_takes():
    encoder, head = Patches(), Head(8, 3)
    head.size_divisor = 4
    encoder.unread = nn.Parameter(torch.zeros(1))
    freeze_unread(encoder, [head], in_channels=3)
    assert encoder.seen == (84, 84)
    assert not encoder.unread.requires_grad
    assert encoder.layer.weight.requires_grad
