"""Encoders and heads by name, and what an encoder starts from."""

import dataclasses
import hashlib

import pytest
import timm
import torch
from support.local_server import serve
from support.reference import fill, filled_state, original_keys

from resnest_seg.config import ModelConfig
from resnest_seg.errors import CheckpointError, ConfigError
from resnest_seg.models.checkpoint import TrainingState
from resnest_seg.models.loading import build_segmenter
from resnest_seg.models.published_weights import PublishedCheckpoint
from resnest_seg.models.resnest import ResNeSt, adapt_first_convolution


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """A file in the format of the ImageNet releases, and its state dict."""
    state = fill(timm.create_model("resnest14d")).state_dict()
    path = tmp_path_factory.mktemp("weights") / "resnest14.pth"
    torch.save(state, path)
    return path, {key: value for key, value in state.items() if not key.startswith("fc.")}


def assert_encoder_is(segmenter, state):
    own = segmenter.encoder.state_dict()
    assert set(own) == set(state)
    assert all(torch.equal(own[key], value) for key, value in state.items())


def test_an_encoder_starts_from_a_file(imagenet):
    path, state = imagenet
    assert_encoder_is(build_segmenter("resnest14", head="fcn", encoder_weights=str(path)), state)
    assert_encoder_is(build_segmenter("resnest14", head="smp:unet", encoder_weights=str(path)), state)


def test_an_encoder_starts_from_our_own_checkpoint(tmp_path):
    segmenter = build_segmenter("resnest14_tiny", head="fcn", num_classes=3)
    training = TrainingState({"step": 1}, {"optimizer.0.momentum_buffer": torch.zeros(2)})
    dataclasses.replace(segmenter.to_checkpoint(), training=training).save(tmp_path / "own.safetensors")
    started = build_segmenter("resnest14_tiny", num_classes=7, encoder_weights=str(tmp_path / "own.safetensors"))
    assert_encoder_is(started, segmenter.encoder.state_dict())


def test_an_encoder_starts_from_a_segmentation_file_of_others(tmp_path):
    shapes = {key: shape for key, shape in original_keys()["fcn_resnest50"].items() if key.startswith("pretrained.")}
    state = filled_state(shapes)
    torch.save(state, tmp_path / "encoding.pth")
    segmenter = build_segmenter("resnest50", head="fcn", encoder_weights=str(tmp_path / "encoding.pth"))
    assert_encoder_is(segmenter, {key.removeprefix("pretrained."): value for key, value in state.items()})


@pytest.mark.parametrize("in_channels", [1, 4])
def test_the_first_convolution_is_adapted(imagenet, in_channels):
    path, state = imagenet
    segmenter = build_segmenter("resnest14", head="fcn", encoder_weights=str(path), in_channels=in_channels)
    adapted = adapt_first_convolution(state["conv1.0.weight"], in_channels)
    assert_encoder_is(segmenter, state | {"conv1.0.weight": adapted})
    assert segmenter.eval()(torch.zeros(1, in_channels, 32, 32)).logits.shape == (1, 150, 32, 32)


def test_imagenet_means_the_published_file(imagenet, monkeypatch, tmp_path):
    """Downloaded once into the folder of torch.hub, checked against the hash in its name."""
    path, state = imagenet
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    entry = PublishedCheckpoint(f"resnest14-{digest}", "resnest", 10.6, "resnest14")
    monkeypatch.setattr("resnest_seg.models.published_weights.PUBLISHED", (entry,))
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    with serve({f"/{entry.name}.pth": path.read_bytes()}) as site:
        monkeypatch.setattr("resnest_seg.models.published_weights.RESNEST_RELEASE", site.url)
        for name in ("imagenet", entry.name, entry.alias):
            assert_encoder_is(build_segmenter("resnest14", head="fcn", encoder_weights=name), state)
        assert len(site.asked) == 1
    assert (tmp_path / "checkpoints" / f"{entry.name}.pth").is_file()


def test_none_asks_no_network(monkeypatch):
    asked = []
    monkeypatch.setattr("socket.socket.connect", lambda *address: asked.append(address))
    build_segmenter("resnest14", head="smp:fpn", output_stride=32)
    build_segmenter("smp:resnet18", head="fcn")
    assert asked == []


def test_weights_of_another_encoder_are_refused(imagenet, tmp_path):
    path, _ = imagenet
    with pytest.raises(
        CheckpointError, match=r"does not hold the weights of this encoder: missing layer1.1.conv1.weight"
    ):
        build_segmenter("resnest26", head="fcn", encoder_weights=str(path))
    wide = ResNeSt(ModelConfig("resnest14", output_stride=8, dilation="encoding")).state_dict()
    torch.save(wide | {"layer1.0.conv1.weight": torch.zeros(1)}, tmp_path / "misfit.pth")
    with pytest.raises(CheckpointError, match=r"layer1.0.conv1.weight \[1\] instead of \[64, 64, 1, 1\]"):
        build_segmenter("resnest14", head="fcn", encoder_weights=str(tmp_path / "misfit.pth"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder": "resnest51"}, "unknown encoder 'resnest51'. Did you mean 'resnest50'?"),
        ({"head": "deeplab"}, "unknown head 'deeplab'. Did you mean 'deeplabv3'?"),
        ({"head": "pspnet"}, "head 'pspnet' exists in family 'mmseg' only"),
        ({"head": "classifier"}, "unknown head 'classifier'"),
        ({"head": "smp:unet", "family": "mmsegm", "aux_head": False}, "unknown family 'mmsegm'. Did you mean 'mmseg'?"),
        ({"encoder": "smp:resnet18", "dilation": "foo"}, "unknown dilation 'foo'"),
        ({"zero_gamma": True, "encoder_weights": "imagenet"}, "zero_gamma is a way to start from fresh weights"),
        (
            {"encoder_weights": "resnest269"},
            "'resnest269' is for encoder 'resnest269', and the encoder is 'resnest14_tiny'",
        ),
        ({"family": "mmsegm"}, "unknown family 'mmsegm'. Did you mean 'mmseg'?"),
        ({"dilation": "encodings"}, "unknown dilation 'encodings'. Did you mean 'encoding'?"),
        ({"output_stride": 4}, "output_stride must be 8, 16 or 32, not 4"),
        ({"encoder": "ResNeSt-50"}, "unknown encoder 'ResNeSt-50'. Did you mean 'resnest50'?"),
        ({"head": "DeepLabV3"}, "unknown head 'DeepLabV3'. Did you mean 'deeplabv3'?"),
        ({"num_classes": 0}, "num_classes must be a whole number at least 1, not 0"),
        ({"num_classes": "19"}, "num_classes must be a whole number, not '19'."),
        ({"num_classes": 19.0}, "num_classes must be a whole number, not 19.0."),
        ({"num_classes": True}, "num_classes must be a whole number, not True."),
        ({"num_classes": None}, "num_classes must be a whole number, not None."),
        ({"encoder": 50}, "encoder must be text, not 50."),
        ({"head": None}, "head must be text, not None."),
        ({"output_stride": "8"}, "output_stride must be a whole number, not '8'."),
        ({"aux_head": "yes"}, "aux_head must be true or false, not 'yes'."),
        ({"drop_path": "0.1"}, "drop_path must be a number, not '0.1'."),
        ({"encoder_weights": True}, "or None (random weights), not True. Give 'imagenet'."),
        ({"encoder_weights": False}, "or None (random weights), not False. Give None."),
        ({"encoder_weights": 1}, "encoder_weights must be text, not 1."),
        ({"encoder_weights": "ImageNet"}, "not 'ImageNet'. Give 'imagenet'."),
        ({"encoder_weights": "IMAGENET1K_V1"}, "not 'IMAGENET1K_V1'. Give 'imagenet'."),
        ({"encoder": "smp:resnet18", "encoder_weights": "pretrained"}, "not 'pretrained'. Give 'imagenet'."),
        ({"in_channels": 0}, "in_channels must be a whole number from 1 to 4096, not 0"),
        ({"drop_path": 1.5}, "drop_path must be a number from 0 to below 1, not 1.5"),
        ({"encoder_weights": "imagenet"}, "no published ImageNet weights for encoder 'resnest14_tiny'"),
        (
            {"encoder_weights": "resnest50-528c19cb"},
            "no such file, run folder or name 'resnest50-528c19cb'. Did you mean 'resnest50",
        ),
    ],
)
def test_wrong_choices_name_the_right_ones(change, message):
    values = {"encoder": "resnest14_tiny"} | change
    with pytest.raises(ConfigError) as error:
        build_segmenter(values.pop("encoder"), **values)
    assert message in str(error.value)


def test_encoder_head_and_classes_are_the_first_three():
    segmenter = build_segmenter("resnest14_tiny", "fcn", 19)
    assert (segmenter.config.model.encoder, segmenter.config.model.head) == ("resnest14_tiny", "fcn")
    assert segmenter(torch.zeros(2, 3, 32, 32)).logits.shape == (2, 19, 32, 32)
    with pytest.raises(TypeError):
        build_segmenter("resnest14_tiny", "fcn", 19, 16)


def test_a_weight_file_may_be_a_path(imagenet):
    path, state = imagenet
    segmenter = build_segmenter("resnest14", "fcn", encoder_weights=path)
    assert_encoder_is(segmenter, state)
    assert segmenter.config.model.encoder_weights == str(path)


def test_nothing_is_fetched_for_a_model_that_cannot_be_built(monkeypatch):
    monkeypatch.setattr("resnest_seg.models.loading.pretrained_file", lambda *names: pytest.fail("fetched"))
    with pytest.raises(ConfigError, match="unknown head 'deeplab'"):
        build_segmenter("resnest50", head="deeplab", encoder_weights="imagenet")


def test_the_twin_of_resnest50_is_told_by_its_file(tmp_path):
    """resnest50_fast_2s1x64d has the same keys and shapes: our metadata, or a file's name, tell them apart."""
    with torch.device("meta"):
        fast = ResNeSt(ModelConfig("resnest50_fast_2s1x64d", output_stride=32, dilation="encoding")).state_dict()
    state = {key: torch.zeros(value.shape, dtype=value.dtype) for key, value in fast.items()}
    torch.save(state, tmp_path / "resnest50_fast_2s1x64d-44938639.pth")
    named = str(tmp_path / "resnest50_fast_2s1x64d-44938639.pth")
    with pytest.raises(
        CheckpointError, match=r"weights of encoder 'resnest50_fast_2s1x64d', and this model has encoder 'res"
    ):
        build_segmenter("resnest50", head="fcn", encoder_weights=named)
    build_segmenter("resnest50_fast_2s1x64d", head="fcn", encoder_weights=named)


def test_weights_of_a_rectified_network_are_no_weights_of_another(tmp_path):
    segmenter = build_segmenter("resnest14_tiny", head="fcn", num_classes=3, rectify="rectify")
    segmenter.to_checkpoint().save(tmp_path / "own.safetensors")
    with pytest.raises(CheckpointError, match="weights of rectify 'rectify', and this model has rectify 'none'"):
        build_segmenter("resnest14_tiny", encoder_weights=str(tmp_path / "own.safetensors"))
