"""A model behind a logits_fn: precision, compiling, and the sizes it was trained with."""

import dataclasses

import pytest
import torch

from resnest_seg.config import DataConfig
from resnest_seg.errors import ConfigError
from resnest_seg.inference.backends import protocol_of, runner_for, setting_of
from resnest_seg.inference.protocols import Protocol, Setting
from resnest_seg.inference.torch_engine import scores
from resnest_seg.models.loading import build_segmenter


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build_segmenter("resnest14_tiny", num_classes=5)


@pytest.fixture
def image():
    return torch.randint(0, 256, (3, 40, 56), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def test_coarse_logits_resized_by_rows_are_the_models_own(model, image):
    run = runner_for(model)
    assert not model.training
    ours = scores(run, image, protocol_of(model, "whole"))
    assert torch.allclose(ours, model(image[None]).logits[0], atol=1e-5)


@torch.inference_mode()
def test_half_precision_is_near_and_accumulated_in_float32(model, image):
    exact = scores(runner_for(model), image, protocol_of(model, "mmseg"))
    half = scores(runner_for(model, precision="bf16"), image, protocol_of(model, "mmseg"))
    assert half.dtype == torch.float32
    assert 0 < (half - exact).abs().max() < 0.1


def test_precisions_that_are_not_there(model):
    with pytest.raises(ConfigError, match="Did you mean 'bf16'"):
        runner_for(model, precision="bf61")
    with pytest.raises(ConfigError, match="fp16 needs a GPU"):
        runner_for(model, precision="fp16")


def test_protocols_take_the_sizes_of_the_run(model):
    data = DataConfig(dataset="cityscapes", recipe="mmseg", base_size=1024, crop_size=512, crop_width=1024)
    config = dataclasses.replace(model.config, data=data)
    other = build_segmenter("resnest14_tiny", num_classes=5)
    other.config = config
    assert setting_of(other) == Setting("cityscapes", "mmseg", 1024, (512, 1024), 2048)
    assert protocol_of(other, "slide").window == (512, 1024)
    own = Protocol("own", scales=(2.0,))
    assert protocol_of(other, own) is own
