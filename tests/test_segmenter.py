"""The whole model: normalisation, sizes, memory formats, auxiliary head."""

import pytest
import torch

from resnest_seg.segmenter import build_segmenter


@pytest.fixture(scope="module")
def segmenter():
    torch.manual_seed(0)
    return build_segmenter("resnest14_tiny", num_classes=5).eval()


def test_normalises_like_torchvision(segmenter):
    from torchvision.transforms.v2.functional import normalize

    images = torch.randint(0, 256, (2, 3, 8, 9), dtype=torch.uint8)
    expected = normalize(images / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    assert torch.allclose(segmenter.normalise(images), expected, atol=1e-5)


@torch.inference_mode()
def test_uint8_and_float_pixels_are_the_same_input(segmenter):
    images = torch.randint(0, 256, (1, 3, 40, 52), dtype=torch.uint8)
    assert torch.equal(segmenter(images).logits, segmenter(images.float()).logits)


@torch.inference_mode()
@pytest.mark.parametrize("size", [(33, 47), (64, 64), (1, 5)])
def test_logits_have_the_input_size(segmenter, size):
    output = segmenter(torch.zeros(2, 3, *size, dtype=torch.uint8))
    assert output.logits.shape == (2, 5, *size)
    assert output.aux_logits is None


def test_the_auxiliary_head_answers_in_training_only():
    segmenter = build_segmenter("resnest14_tiny", head="fcn", num_classes=4)
    images = torch.randint(0, 256, (2, 3, 32, 40), dtype=torch.uint8)
    assert segmenter.training
    assert segmenter(images).aux_logits.shape == (2, 4, 32, 40)
    assert segmenter.eval()(images).aux_logits is None
    assert build_segmenter("resnest14_tiny", num_classes=4, aux_head=False)(images).aux_logits is None


@torch.inference_mode()
def test_channels_last_and_contiguous_memory_agree(segmenter):
    images = torch.randint(0, 256, (1, 3, 48, 56), dtype=torch.uint8)
    assert segmenter.encoder.layer1[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)
    plain = build_segmenter("resnest14_tiny", num_classes=5).eval()
    plain.load_state_dict(segmenter.state_dict())
    plain = plain.to(memory_format=torch.contiguous_format)
    assert torch.allclose(segmenter(images).logits, plain(images).logits, atol=1e-4)


@torch.inference_mode()
def test_a_batch_is_its_images_one_by_one(segmenter):
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    together = segmenter(images).logits
    for image, logits in zip(images, together, strict=True):
        assert torch.allclose(segmenter(image[None]).logits[0], logits, atol=1e-5)


def test_every_parameter_gets_a_gradient():
    segmenter = build_segmenter("resnest14_tiny", num_classes=3)
    output = segmenter(torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8))
    (output.logits.square().mean() + output.aux_logits.square().mean()).backward()
    assert [name for name, p in segmenter.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
