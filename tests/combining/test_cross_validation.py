"""`train --folds`: every sample is scored once, by the model that has not seen it."""

import json
import statistics
from pathlib import Path

import albumentations as A
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image

import resnest_seg
from resnest_seg.cli import train
from resnest_seg.combining.cross_validation import cross_validate
from resnest_seg.config import load_run_config
from resnest_seg.data.datasets import Sample, SegmentationDataset, Subset, assign_folds
from resnest_seg.data.folder import FolderDataset
from resnest_seg.errors import CheckpointError, ConfigError, DatasetError
from resnest_seg.models.checkpoint import Checkpoint

pytestmark = pytest.mark.slow

NAMES = ["ü [1] a.png", "day_1.png", "day_2.png", "night_1.png", "night_2.png", "x.png"]

CONFIG = """
model: {encoder: resnest14_tiny, head: fcn, encoder_weights: null}
data: {dataset: folder, root: ROOT, base_size: 40, crop_size: 32, workers: 0, check: 0}
optim: {lr: 0.05, reference_batch: null}
train: {epochs: null, iterations: 2, batch_size: 2, log_every: 1, trackers: none}
eval: {sheet: 0, protocol: slide}
"""


def command(*words):
    AcceleratorState._reset_state(reset_partial_state=True)
    return train.main([str(word) for word in words])


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A folder with a data set of six photos, the folds' runs in `folds`, and the predictions in `oof`."""
    folder = tmp_path_factory.mktemp("cv")
    random = np.random.default_rng(0)
    for split, names in (("train", NAMES), ("val", ["v.png"])):
        for number, name in enumerate(names):
            labels = random.integers(0, 3, (4, 5)).repeat(10, 0).repeat(9, 1).astype(np.uint8)
            labels[:3] = 255
            photo = np.repeat(labels[..., None], 3, 2) % 3 * np.uint8(90) + random.integers(0, 30, (40, 45, 3))
            for kind, pixels in (("images", photo[number % 2 :].astype(np.uint8)), ("masks", labels[number % 2 :])):
                (folder / "data" / kind / split).mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(folder / "data" / kind / split / name)
    (folder / "data" / "classes.csv").write_text("id,name\n0,sky\n1,road\n2,car\n")
    (folder / "run.yaml").write_text(CONFIG.replace("ROOT", str(folder / "data")))
    words = ("--folds", 3, "--group-by", "^[^_]+", "--save-predictions", folder / "oof")
    assert command("--config", folder / "run.yaml", "--output", folder / "folds", *words) == 0
    return folder


def dataset(done):
    return FolderDataset(done / "data", "train")


def places(done):
    """Sample -> its prediction."""
    data = dataset(done)
    return {index: done / "oof" / Path(data.sample_name(index)).with_suffix(".png") for index in range(len(data))}


def test_every_sample_is_predicted_once_by_the_model_that_has_not_seen_it(done):
    data, found = dataset(done), places(done)
    fold_of = assign_folds(data, 3, group_by="^[^_]+")
    assert sorted(path for path in (done / "oof").rglob("*") if path.is_file()) == sorted(found.values())
    for fold in range(3):
        predictor = resnest_seg.Predictor.from_checkpoint(
            done / "folds" / f"fold_{fold}", device="cpu", protocol="slide", fuse=False
        )
        others = resnest_seg.Predictor.from_checkpoint(
            done / "folds" / f"fold_{(fold + 1) % 3}", device="cpu", protocol="slide", fuse=False
        )
        indices = np.flatnonzero(fold_of == fold)
        assert len(indices) == 2
        written = [np.array(Image.open(found[index])) for index in indices]
        assert all(
            np.array_equal(mask, predictor(data[index].image).labels)
            for mask, index in zip(written, indices, strict=True)
        )
        assert any(
            not np.array_equal(mask, others(data[index].image).labels)
            for mask, index in zip(written, indices, strict=True)
        )


def test_scores_are_those_of_each_fold_and_of_all_pixels(done):
    result = json.loads((done / "folds" / "cross_validation.json").read_text())
    data = dataset(done)
    fold_of = assign_folds(data, 3, group_by="^[^_]+")
    confusion, means = np.zeros((3, 3), int), []
    for fold in range(3):
        here = np.zeros((3, 3), int)
        for index in np.flatnonzero(fold_of == fold):
            labels = data[index].labels
            found = np.array(Image.open(places(done)[index]))
            for truth, label in zip(labels[labels != 255], found[labels != 255], strict=True):
                here[truth, label] += 1
        confusion += here
        means.append(plain_iou(here))
    assert result["images"] == [2, 2, 2]
    assert result["group_by"] == "^[^_]+"
    assert result["protocol"] == "slide"
    assert np.allclose(result["mean_iou"]["folds"], [np.nanmean(ious) for ious in means])
    assert result["mean_iou"]["mean"] == pytest.approx(np.mean([np.nanmean(ious) for ious in means]))
    assert result["mean_iou"]["deviation"] == pytest.approx(np.std([np.nanmean(ious) for ious in means], ddof=1))
    assert result["mean_iou"]["pooled"] == pytest.approx(np.nanmean(plain_iou(confusion)))
    assert result["pixel_accuracy"]["pooled"] == pytest.approx(np.trace(confusion) / confusion.sum())
    assert list(result["class_iou"]) == ["sky", "road", "car"]
    for place, spread in enumerate(result["class_iou"].values()):
        known = [ious[place] for ious in means if not np.isnan(ious[place])]
        assert spread["mean"] == pytest.approx(statistics.fmean(known))
        assert spread["deviation"] == pytest.approx(statistics.stdev(known))
        assert spread["pooled"] == pytest.approx(plain_iou(confusion)[place])


def plain_iou(confusion):
    with np.errstate(invalid="ignore"):
        return np.diag(confusion) / (confusion.sum(0) + confusion.sum(1) - np.diag(confusion))


def test_the_same_command_goes_on_and_refuses_what_differs(done, capsys):
    before = (done / "folds" / "cross_validation.json").read_bytes()
    (done / "folds" / "cross_validation.json").unlink()
    states = {path: path.read_bytes() for path in (done / "folds").rglob("last.safetensors")}
    assert command("--resume", done / "folds") == 0  # the folds and their groups are in the folder
    assert (done / "folds" / "cross_validation.json").read_bytes() == before
    assert {path: path.read_bytes() for path in states} == states
    output = capsys.readouterr().out
    assert "mean +- sample deviation over folds (n - 1)" in output
    again = ("--config", done / "run.yaml", "--output", done / "folds", "--group-by", "^[^_]+")
    for words, problem, kind in (
        (
            ("--resume", done / "folds", "--folds", 2),
            "the folds in .* were begun with 3",
            ConfigError,
        ),
        (("--resume", done / "folds", "--group-by", "x"), "--group-by is x", ConfigError),
        (("--resume", done / "folds" / "fold_0", "--folds", 3), "is one run, not the folder of folds", ConfigError),
        ((*again, "--folds", 3), "folds cannot begin in .*: it exists", CheckpointError),
        ((*again, "--folds", 2, "--resume", "auto"), "folds was 3, and is 2", CheckpointError),
        ((*again, "--folds", 3, "--resume", "auto", "--optim.lr", 1), r"optim.lr \(0.05 -> 1.0\)", CheckpointError),
        (again, "--group-by is for a cross-validation", ConfigError),
        ((*again, "--folds", "many"), "must be a number of parts, such as 5, not 'many'", ConfigError),
        ((*again, "--folds", 1), "--folds must be from 2", ConfigError),
        ((*again, "--folds", 3, "--budget", "auto"), "--budget does not go with --folds", ConfigError),
        ((*again, "--folds", 3, "--seed", "0,1"), "start one cross-validation per --seed", ConfigError),
        ((*again, "--folds", 3, "--save-predictions", done / "oof"), "exists. Choose another folder", ConfigError),
    ):
        with pytest.raises(kind, match=problem):
            command(*words)
    assert load_run_config(done / "folds" / "config.yaml").optim.lr == 0.05


def test_folds_of_other_samples_are_not_scored(done):
    with pytest.raises(DatasetError, match="has other samples than the folds"):
        cross_validate(done / "folds", train=Subset(dataset(done), [0, 1, 2]))


class Bits(SegmentationDataset):
    """Four pictures with two labels, one of which is never there."""

    def __init__(self, split="train"):
        self.split = split
        self.label_space = resnest_seg.LabelSpace.numbered(3, names=["a", "b", "never"]).for_task("multilabel")

    def __len__(self):
        return 4

    def __getitem__(self, index):
        bits = np.random.default_rng(index).integers(0, 4, (4, 4)).repeat(8, 0).repeat(8, 1).astype(np.uint16)
        bits[:2] = 32768
        return Sample(np.repeat((bits % 4 * 60).astype(np.uint8)[..., None], 3, 2), bits, f"bits {index}")


def test_labels_of_a_multilabel_task_are_pooled_by_their_own_thresholds(tmp_path):
    AcceleratorState._reset_state(reset_partial_state=True)
    config = {
        "model": {"encoder": "resnest14_tiny", "head": "fcn", "task": "multilabel", "encoder_weights": None},
        "data": {"base_size": 32, "crop_size": 32, "workers": 0, "check": 0},
        "train": {"epochs": None, "iterations": 2, "batch_size": 2, "trackers": "none"},
        "optim": {"lr": 0.05, "reference_batch": None},
        "eval": {"sheet": 0},
    }
    resnest_seg.fit_folds(config, 2, train=Bits(), validation=Bits("val"), output=tmp_path / "folds")
    seen = []
    found = cross_validate(tmp_path / "folds", train=Bits(), device="cpu", on_image=seen.append)
    with pytest.raises(ConfigError, match="of your own: give it, as train="):
        cross_validate(tmp_path / "folds")
    assert sorted(image.name for image in seen) == [f"bits {index}" for index in range(4)]
    known = [image.labels != 32768 for image in seen]
    right = sum(int((image.labels == image.predictions)[valid].sum()) for image, valid in zip(seen, known, strict=True))
    assert found.pixel_accuracy.pooled == pytest.approx(right / sum(int(valid.sum()) for valid in known))
    ious = []
    for label in range(2):
        both = either = 0
        for image, valid in zip(seen, known, strict=True):
            truth, label_found = image.labels[valid] >> label & 1, image.predictions[valid] >> label & 1
            both, either = both + int((truth & label_found).sum()), either + int((truth | label_found).sum())
        ious.append(both / either)
        assert found.class_iou["ab"[label]].pooled == pytest.approx(ious[-1])
    assert found.class_iou["never"].mean in (None, 0)
    thresholds = [Checkpoint.load(tmp_path / "folds" / f"fold_{fold}").weights["thresholds"] for fold in range(2)]
    assert not torch.equal(*thresholds)


def test_statistics_of_bands_are_each_folds_own(tmp_path):
    """The config of all folds keeps none, so that a fold which begins after a kill finds its own."""
    AcceleratorState._reset_state(reset_partial_state=True)
    random = np.random.default_rng(0)
    pairs = [
        (
            random.normal(100 * index, 20, (32, 32, 4)).astype(np.float32),
            random.integers(0, 2, (32, 32)).astype(np.uint8),
        )
        for index in range(4)
    ]
    space = resnest_seg.LabelSpace.numbered(2)
    data = resnest_seg.PairDataset(pairs, space, split="train")
    config = {
        "model": {"encoder": "resnest14_tiny", "head": "fcn", "encoder_weights": None},
        "data": {"base_size": 32, "crop_size": 32, "workers": 0, "check": 0},
        "train": {"epochs": None, "iterations": 1, "batch_size": 2, "trackers": "none"},
        "optim": {"lr": 0.05, "reference_batch": None},
        "eval": {"sheet": 0},
    }
    transform = A.RandomCrop(32, 32)
    resnest_seg.fit_folds(config, 2, train=data, validation=data, transform=transform, output=tmp_path / "folds")
    whole, *each = (
        load_run_config(tmp_path / place / "config.yaml").data for place in ("folds", "folds/fold_0", "folds/fold_1")
    )
    assert (whole.bands, whole.pixel_mean) == (None, None)
    assert each[0].bands == each[1].bands == (1, 2, 3, 4)
    assert each[0].pixel_mean != each[1].pixel_mean
    assert [report.images for report in cross_validate(tmp_path / "folds", train=data, device="cpu").reports] == [2, 2]
