"""`Classifier`: images in, one answer for each out, and files that say what they are."""

import pytest
import torch
from support.reference import fill

from resnest_seg.config import ClassifierConfig, ClassifyConfig, PretrainConfig
from resnest_seg.errors import CheckpointError, ConfigError
from resnest_seg.models.checkpoint import Checkpoint
from resnest_seg.models.loading import build_segmenter, classifier_for, load_checkpoint, load_classifier
from resnest_seg.models.segmenter import Classifier

TINY = PretrainConfig(model=ClassifierConfig(encoder="resnest14_tiny"), classify=ClassifyConfig(dropout=0.3))


@pytest.fixture(scope="module")
def classifier():
    return fill(classifier_for(TINY, num_classes=4))


@torch.inference_mode()
@pytest.mark.parametrize("encoder", ["resnest14_tiny", "smp:resnet18"])
@pytest.mark.parametrize("size", [(33, 47), (1, 1), (50, 90)])
def test_every_size_gives_one_answer(encoder, size):
    network = PretrainConfig(model=ClassifierConfig(encoder=encoder))
    scores = classifier_for(network, num_classes=4).eval()(torch.zeros(2, 3, *size, dtype=torch.uint8))
    assert scores.shape == (2, 4)


@torch.inference_mode()
def test_half_precision_and_contiguous_memory_agree_with_float32():
    torch.manual_seed(0)
    model = classifier_for(TINY, num_classes=4).eval()
    images = torch.randint(0, 256, (2, 3, 65, 80), dtype=torch.uint8)
    expected = model(images)
    plain = classifier_for(TINY, num_classes=4).eval()
    plain.load_state_dict(model.state_dict())
    plain = plain.to(memory_format=torch.contiguous_format)
    assert torch.allclose(plain(images), expected, atol=1e-4 * expected.abs().max())
    half = model.bfloat16()(images)
    assert half.dtype == torch.bfloat16
    assert (half.float() - expected).abs().mean() < 0.03 * expected.abs().mean()


@torch.inference_mode()
def test_it_is_the_mean_of_the_last_features_and_a_linear_layer(classifier):
    images = torch.randint(0, 256, (2, 3, 65, 80), dtype=torch.uint8)
    mean = classifier.encoder(classifier.normalise(images))[-1].mean(dim=(2, 3))
    expected = mean @ classifier.head.fc.weight.T + classifier.head.fc.bias
    assert torch.allclose(classifier(images), expected, atol=1e-5)
    assert classifier.head.dropout.p == 0.3


def test_it_normalises_and_looks_at_pixels_as_a_segmenter_does():
    classifier = classifier_for(TINY, num_classes=4).eval()
    images = torch.randint(0, 256, (1, 3, 20, 30), dtype=torch.uint8)
    segmenter = build_segmenter("resnest14_tiny", head="fcn", num_classes=4)
    assert torch.equal(classifier.normalise(images), segmenter.normalise(images))
    with pytest.raises(ConfigError, match=r"images must have the shape \[N, 3, H, W\], not \[1, 4, 8, 8\]"):
        classifier(torch.zeros(1, 4, 8, 8))
    with pytest.warns(UserWarning, match="this model takes RGB 0..255"):
        classifier(torch.rand(1, 3, 32, 32))


def test_its_file_comes_back_exactly_and_is_no_segmenter(classifier, tmp_path):
    path = tmp_path / "classifier.safetensors"
    classifier.to_checkpoint().save(path)
    loaded = load_classifier(path)
    assert not loaded.training
    assert (loaded.config, loaded.num_classes) == (TINY, 4)
    assert str(loaded.load_report).startswith(f"{path}: resnest_seg, resnest14_tiny classifier, output stride 32")
    for key, value in classifier.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key
    with pytest.raises(CheckpointError, match=r"classifier.safetensors: this is an image classifier, it cannot segm"):
        load_checkpoint(path)
    half = classifier_for(TINY, num_classes=1000).half()
    half.to_checkpoint().save(path)
    assert next(load_classifier(path).parameters()).dtype == torch.float16
    assert Checkpoint.load(path).num_classes == 1000


def test_a_segmentation_model_is_no_classifier(tmp_path):
    path, segmenter = tmp_path / "s.safetensors", build_segmenter("resnest14_tiny", head="fcn", num_classes=19)
    segmenter.to_checkpoint().save(path)
    torch.save(segmenter.state_dict(), tmp_path / "s.pth")
    for file in (path, tmp_path / "s.pth"):
        with pytest.raises(CheckpointError, match="this is a segmentation model, no image classifier"):
            load_classifier(file)
    with pytest.raises(CheckpointError, match="this is a segmentation model, no image classifier"):
        Classifier.from_checkpoint(segmenter.to_checkpoint())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"encoder": "resnest51"}, "unknown encoder 'resnest51'. Did you mean 'resnest50'?"),
        ({"dilation": "foo"}, "unknown dilation 'foo'"),
        ({"zero_gamma": True, "encoder_weights": "imagenet"}, "zero_gamma is a way to start from fresh weights"),
    ],
)
def test_mistakes(change, says):
    with pytest.raises(ConfigError, match=says):
        classifier_for(PretrainConfig(model=ClassifierConfig(**change)), num_classes=3)
