"""Training on images of many bands: statistics into config and checkpoint, exact resume, own arrays, refusals."""

import dataclasses

import numpy as np
import pytest
import torch
from support.rasters import NAMES, make_scenes, scene, values

from resnest_seg.config import RunConfig, load_run_config
from resnest_seg.data.build import dataset_for
from resnest_seg.data.datasets import PairDataset
from resnest_seg.errors import ConfigError, DatasetError
from resnest_seg.evaluation.evaluator import evaluate
from resnest_seg.inference.predictor import Predictor
from resnest_seg.models.checkpoint import Checkpoint
from resnest_seg.models.loading import build_segmenter, load_checkpoint
from resnest_seg.models.segmenter import PIXEL_MEAN
from resnest_seg.training.assembly import fit
from resnest_seg.training.rehearsal import dry_run

TINY = {
    "model.encoder": "resnest14_tiny", "model.head": "fcn", "data.dataset": "folder", "data.crop_size": 32,
    "data.base_size": 48, "data.workers": 0, "train.epochs": 2, "train.batch_size": 2, "optim.reference_batch": None,
    "train.log_every": 1, "eval.sheet": 2,
}  # fmt: skip


def config_of(root, **changes):
    return RunConfig.from_dict(TINY | {"data.root": None if root is None else str(root)} | changes)


def everything(indices, first_row=0):
    return np.concatenate([scene(index)[0][first_row:].reshape(-1, 4) for index in indices]).astype(np.float64)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = make_scenes(tmp_path_factory.mktemp("data"), nodata=0)
    config = config_of(root, **{"data.bands": list(NAMES), "data.rotate": 10.0, "data.class_mix": 0.5})
    return fit(config, output=tmp_path_factory.mktemp("runs") / "whole")


def test_statistics_are_in_the_config_and_the_checkpoint(run):
    pixels = everything(range(6), 8)
    config = load_run_config(run.output / "config.yaml")
    assert np.allclose(config.data.pixel_mean, pixels.mean(axis=0), rtol=1e-13)
    assert np.allclose(config.data.pixel_std, pixels.std(axis=0), rtol=1e-12)
    assert config.model.in_channels == 4
    checkpoint = Checkpoint.load(run.best)
    assert checkpoint.config.data.pixel_mean == config.data.pixel_mean
    mean = torch.tensor(config.data.pixel_mean, dtype=torch.float64).float()
    assert torch.equal(checkpoint.weights["pixel_mean"].flatten(), mean)
    assert (run.output / "contact_sheet.png").is_file()


def test_a_stopped_run_resumes_to_the_same_bits(run, tmp_path):
    config = dataclasses.replace(load_run_config(run.output / "config.yaml"), output=None)
    data = dataclasses.replace(config.data, pixel_mean=None, pixel_std=None)  # as it was given
    given = dataclasses.replace(config, data=data)
    assert not fit(given, output=tmp_path / "cut", until=3).finished
    resumed = fit(given, output=tmp_path / "cut", resume="auto")
    whole, cut = (Checkpoint.load(folder / "last.safetensors") for folder in (run.output, tmp_path / "cut"))
    assert whole.weights.keys() == cut.weights.keys()
    assert all(torch.equal(value, cut.weights[key]) for key, value in whole.weights.items())
    assert resumed.scores == run.scores


def test_evaluation_and_prediction_agree(run):
    root = load_run_config(run.output / "config.yaml").data.root
    segmenter = load_checkpoint(run.output)
    dataset = dataset_for(segmenter.config.data, "val")
    seen = {}
    evaluate(segmenter, dataset, on_image=lambda image: seen.update({image.name: image}))
    predictor = Predictor(segmenter)
    for name, image in seen.items():
        prediction = predictor(name)
        assert name.startswith(root)
        assert np.array_equal(prediction.labels[8:], image.predictions[8:])
        assert (prediction.labels[:8] == 255).all()
        assert image.image.dtype == np.uint8
    image, labels = scene(0)
    photos = PairDataset([((image[..., :3] // 8).astype(np.uint8), labels)], dataset.label_space)
    with pytest.raises(ConfigError, match=r"model.in_channels is 4, and train sample 0 has 3 bands"):
        evaluate(segmenter, photos)


def test_arrays_of_python_are_trained_on(tmp_path):
    """Their bands and statistics go into the config; a model from it takes such arrays."""
    classes = ("ground", "tree", "roof")
    pairs = [scene(index) for index in range(4)]
    splits = {"train": PairDataset(pairs, classes), "validation": PairDataset(pairs[:2], classes, split="val")}
    result = fit(config_of(None), **splits, output=tmp_path / "run")
    data = result.segmenter.config.data
    assert data.bands == (1, 2, 3, 4)
    assert np.allclose(data.pixel_mean, everything(range(4)).mean(axis=0), rtol=1e-13)
    predictor = Predictor.from_checkpoint(result.output)
    assert predictor(pairs[0][0]).labels.shape == (48, 48)
    (one, two) = predictor([pairs[0][0], torch.from_numpy(pairs[1][0]).permute(2, 0, 1)])
    assert np.array_equal(predictor(pairs[1][0].astype(np.float32)).labels, two.labels)
    assert np.array_equal(predictor(np.stack([pair[0] for pair in pairs]))[0].labels, one.labels)


def test_three_bands_of_eight_bits_keep_imagenets_statistics(tmp_path):
    pairs = [(scene(index)[0][..., :3] // 8).astype(np.uint8) for index in range(2)]
    splits = [
        PairDataset([(image, scene(0)[1]) for image in pairs], ("a", "b", "c"), split=s) for s in ("train", "val")
    ]
    result = fit(config_of(None), train=splits[0], validation=splits[1], output=tmp_path / "photos", until=1)
    assert result.segmenter.config.data.bands is None
    assert result.segmenter.config.data.pixel_mean is None
    named = config_of(None, **{"data.bands": [1, 2, 3]})
    result = fit(named, train=splits[0], validation=splits[1], output=tmp_path / "bands", until=1)
    assert result.segmenter.config.data.pixel_mean == PIXEL_MEAN


def test_statistics_that_are_given_are_taken(tmp_path):
    given = {"data.bands": [4, 1], "data.pixel_mean": [1500, 1300.5], "data.pixel_std": [400, 250]}
    result = fit(config_of(make_scenes(tmp_path / "data"), **given), output=tmp_path / "run", until=1)
    assert result.segmenter.pixel_mean.flatten().tolist() == [1500, 1300.5]
    assert result.segmenter.pixel_std.flatten().tolist() == [400, 250]


def test_what_does_not_fit_is_refused_before_a_step(tmp_path):
    root = make_scenes(tmp_path / "data")
    for changes, error, message in (
        ({"data.color_jitter": 0.3}, ConfigError, "data.color_jitter is for 8-bit RGB"),
        ({"data.recipe": "mmseg"}, ConfigError, "set data.recipe to encoding"),
        ({"data.bands": [1, 9]}, DatasetError, r"asks for band 9: give numbers from 1 to 4"),
        ({"data.bands": ["red", "swir"]}, DatasetError, "unknown band .* 'swir'"),
    ):
        with pytest.raises(error, match=message):
            fit(config_of(root, **({"data.bands": [1, 2]} | changes)), output=tmp_path / "run")
        assert not (tmp_path / "run").exists()
    network = build_segmenter("resnest14_tiny", "fcn", 3)
    with pytest.raises(ConfigError, match="takes images of 3 channels, and those of the data have 2"):
        fit(config_of(root, **{"data.bands": [1, 2]}), segmenter=network, output=tmp_path / "run")
    pairs = PairDataset([(values("uint16", 48, 48, 5), scene(0)[1])] * 2, ("a", "b", "c"))
    with pytest.raises(ConfigError, match=r"images have 5 channels, and data.bands names 2"):
        fit(config_of(None, **{"data.bands": [1, 2]}), train=pairs, validation=pairs, output=tmp_path / "run")


def test_a_dry_run_of_bands(tmp_path, monkeypatch):
    root = make_scenes(tmp_path / "data", nodata=0)
    assert "passed" in dry_run(config_of(root, **{"data.bands": list(NAMES)}))
    assert "not found, so street scenes" in dry_run(config_of(tmp_path / "none", **{"data.bands": [1, 2, 3, 8]}))
