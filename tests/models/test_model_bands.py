"""Models of many bands: their statistics, the first convolution, and the law of bands in another order."""

import dataclasses
import warnings

import pytest
import timm
import torch
from support.rasters import values
from support.reference import fill

from resnest_seg.config import DataConfig, ModelConfig, RunConfig
from resnest_seg.errors import CheckpointError, ConfigError
from resnest_seg.labels import LabelSpace
from resnest_seg.models.loading import build_segmenter, load_checkpoint, load_fitting, segmenter_for
from resnest_seg.models.resnest import adapt_first_convolution
from resnest_seg.models.segmenter import PIXEL_MEAN, PIXEL_STD

SPACE = LabelSpace.numbered(3)
MEAN, STD = (1031.85, 800.25, 412.0, 2071.5), (136.7, 90.0, 55.5, 251.125)


def model_of(mean=MEAN, std=STD, **model):
    data = DataConfig(bands=tuple(range(1, len(mean) + 1)), pixel_mean=mean, pixel_std=std)
    model = {"encoder": "resnest14_tiny", "head": "fcn"} | model
    return segmenter_for(RunConfig(model=ModelConfig(**model), data=data), SPACE)


def images_of(kind="uint16", count=4):
    return torch.from_numpy(
        values(kind, 2, count, 40, 56) // 20 if kind != "float32" else values(kind, 2, count, 40, 56)
    )


@torch.inference_mode()
def test_pixels_are_normalised_by_the_statistics_of_the_data():
    model = model_of()
    for kind in ("uint8", "uint16", "int16", "float32"):
        images = images_of(kind)
        expected = (images.double() - torch.tensor(MEAN).double().view(1, 4, 1, 1)) / torch.tensor(STD).view(1, 4, 1, 1)
        assert torch.allclose(model.normalise(images).double(), expected, rtol=1e-5, atol=1e-4)


@torch.inference_mode()
def test_the_order_of_bands_changes_nothing_but_their_order():
    model, order = model_of().eval(), torch.tensor([2, 0, 3, 1])
    turned = model_of([MEAN[band] for band in order], [STD[band] for band in order]).eval()
    weights = model.state_dict()
    weights["encoder.conv1.0.weight"] = weights["encoder.conv1.0.weight"][:, order]
    weights = {key: value for key, value in weights.items() if not key.startswith("pixel_")}
    turned.load_state_dict(weights, strict=False)
    images = images_of()
    assert torch.allclose(model(images).logits, turned(images[:, order]).logits, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(model(images).logits, turned(images).logits, rtol=1e-2, atol=1e-2)


def test_photos_keep_imagenets_statistics():
    model = build_segmenter("resnest14_tiny", "fcn", 3)
    assert torch.equal(model.pixel_mean.flatten(), torch.tensor(PIXEL_MEAN))
    assert torch.equal(model.pixel_std.flatten(), torch.tensor(PIXEL_STD))


@pytest.mark.parametrize("count", [1, 2, 3, 4, 8, 12])
def test_weights_for_rgb_start_models_of_other_bands_by_timms_rule(tmp_path, count):
    """As encoder weights and as weights of the whole model; timm is the oracle."""
    photos = fill(build_segmenter("resnest14_tiny", "fcn", 3))
    photos.to_checkpoint().save(tmp_path / "rgb.safetensors")
    stem = photos.state_dict()["encoder.conv1.0.weight"]
    expected = timm.models.adapt_input_conv(count, stem.clone())
    assert torch.allclose(adapt_first_convolution(stem, count), expected)
    mean, std = (MEAN * 3)[:count], (STD * 3)[:count]
    started = model_of(mean, std, encoder_weights=str(tmp_path / "rgb.safetensors"))
    assert torch.allclose(started.state_dict()["encoder.conv1.0.weight"], expected)
    tuned = model_of(mean, std)
    report = str(load_fitting(tuned, tmp_path / "rgb.safetensors"))
    assert torch.allclose(tuned.state_dict()["encoder.conv1.0.weight"], expected)
    assert torch.allclose(tuned.pixel_mean.flatten(), torch.tensor(mean))  # not those of the file
    said = {1: "fits 1 bands as the sum of R, G and B", 3: ""}
    assert said.get(count, f"fits {count} bands as R, G, B repeated, times 3 / {count}") in report
    assert ("first convolution" in report) == (count != 3)


def test_photos_are_not_normalised_by_the_bands_that_weights_were_trained_on(tmp_path):
    fill(model_of(MEAN[:3], STD[:3])).to_checkpoint().save(tmp_path / "bands.safetensors")
    photos = segmenter_for(RunConfig(model=ModelConfig(encoder="resnest14_tiny", head="fcn")), SPACE)
    load_fitting(photos, tmp_path / "bands.safetensors")
    assert torch.equal(photos.pixel_mean.flatten(), torch.tensor(PIXEL_MEAN))
    assert torch.equal(photos.pixel_std.flatten(), torch.tensor(PIXEL_STD))


def test_weights_for_other_bands_are_refused_with_the_numbers(tmp_path):
    fill(model_of()).to_checkpoint().save(tmp_path / "bands.safetensors")
    with pytest.raises(CheckpointError, match=r"\(1 problem\)\. It is for images of 4 channels, and these have 2"):
        load_fitting(model_of(MEAN[:2], STD[:2]), tmp_path / "bands.safetensors")


@torch.inference_mode()
def test_a_checkpoint_keeps_bands_and_statistics(tmp_path):
    model = fill(model_of()).eval()
    model.take_statistics(model.config.data)
    model.to_checkpoint().save(tmp_path / "a.safetensors")
    loaded = load_checkpoint(tmp_path / "a.safetensors")
    assert loaded.config == model.config
    assert (loaded.config.data.bands, loaded.config.model.in_channels) == ((1, 2, 3, 4), 4)
    images = images_of()
    assert torch.equal(model(images).logits, loaded(images).logits)
    fused = load_checkpoint(tmp_path / "a.safetensors").fuse()
    assert torch.allclose(fused(images).logits, model(images).logits, rtol=1e-3, atol=1e-3)


def test_channels_follow_the_bands_and_conflicts_name_both_keys():
    assert RunConfig.from_dict({"data": {"bands": [1, "nir"]}}).model.in_channels == 2
    for values_ in ({"data.bands": [1, 2], "model.in_channels": 5}, {"data.bands": [1, 2], "model.in_channels": 3}):
        with pytest.raises(ConfigError, match=r"model.in_channels is \d.*data.bands names 2 bands"):
            RunConfig.from_dict(values_)
    with pytest.raises(ConfigError, match=r"data.pixel_mean has 2 values, for the 3 channels of model.in_channels"):
        RunConfig.from_dict({"data.pixel_mean": [1, 2], "data.pixel_std": [1, 2]})
    with pytest.raises(ConfigError, match="go together"):
        RunConfig.from_dict({"data.pixel_mean": [1, 2, 3]})
    with pytest.raises(ConfigError, match=r"every value of data.pixel_std must be a number above 0"):
        RunConfig.from_dict({"data.pixel_mean": [1, 2, 3], "data.pixel_std": [1, 0, 3]})


@torch.inference_mode()
def test_floats_in_0_to_1_are_warned_of_in_the_units_of_the_bands():
    with pytest.warns(
        UserWarning, match="this model takes bands with means from 412 to 2072: pass the values of the files"
    ):
        model_of().eval()(torch.rand(1, 4, 32, 32))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model_of((0.2, 0.1, 0.3), (0.1, 0.1, 0.1)).eval()(torch.rand(1, 3, 32, 32))  # reflectances are such floats


def test_classes_of_config_are_frozen_tuples():
    config = RunConfig.from_dict({"data": {"bands": [4, 3], "pixel_mean": [1, 2], "pixel_std": [3, 4]}})
    assert config.data.pixel_mean == (1.0, 2.0)
    assert hash(dataclasses.astuple(config.data))
