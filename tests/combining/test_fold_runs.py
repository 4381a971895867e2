"""`fit_folds`: one run for each part of a split, on the other parts."""

import gc
import json

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from support import fake_data
from torch import nn

import resnest_seg
from resnest_seg.config import load_run_config
from resnest_seg.data.datasets import Sample, SegmentationDataset, assign_folds
from resnest_seg.errors import CheckpointError, ConfigError, DatasetError
from resnest_seg.models.checkpoint import CONFIG, LAST, Checkpoint
from resnest_seg.training.trainer import Trainer

pytestmark = pytest.mark.slow

CONFIG_OF_TEST = {
    "model": {"encoder": "resnest14_tiny", "head": "fcn"},
    "data": {"base_size": 56, "crop_size": 32, "workers": 0, "check": 0},
    "optim": {"lr": 0.02, "reference_batch": None},
    "train": {"epochs": None, "iterations": 2, "batch_size": 2, "log_every": 1, "trackers": "none"},
    "eval": {"sheet": 0},
}


class Numbered(SegmentationDataset):
    """Pictures whose class is the brightness, and which tell which ones were read."""

    def __init__(self, split="train", count=6):
        self.split, self.count, self.label_space = split, count, resnest_seg.LabelSpace.numbered(3, name="own")
        self.read = set()

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        self.read.add(index)
        labels = np.random.default_rng(index).integers(0, 3, (2, 3)).repeat(20, 0).repeat(20, 1).astype(np.uint8)
        labels[:3] = 255
        return Sample(np.repeat(labels[..., None], 3, 2) % 3 * np.uint8(100), labels, f"own {index}")


def fit_folds(output, folds=3, values=None, **parts):
    AcceleratorState._reset_state(reset_partial_state=True)
    given = {"train": Numbered(), "validation": Numbered("val", 4), **parts}
    return resnest_seg.fit_folds(CONFIG_OF_TEST if values is None else values, folds, output=output, **given)


def weights(folder):
    return Checkpoint.load(folder / LAST).weights


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Runs of three folds, each one epoch of four pictures; the data set, and which pictures each of them has read."""
    train, seen = Numbered(), []

    class Watch(resnest_seg.Callback):
        def on_validation(self, report):
            seen.append(frozenset(train.read))
            train.read.clear()

    fold_of = assign_folds(train, 3)
    return fit_folds(tmp_path_factory.mktemp("whole") / "folds", train=train, callbacks=[Watch()]), fold_of, seen


def test_every_fold_trains_on_the_other_parts_alone(whole):
    results, fold_of, seen = whole
    assert [result.output.name for result in results] == ["fold_0", "fold_1", "fold_2"]
    assert seen == [frozenset(np.flatnonzero(fold_of != fold).tolist()) for fold in range(3)]
    assert all(result.finished and result.best.is_file() for result in results)
    assert load_run_config(results[0].output / CONFIG).data.dataset == "custom"


def test_unlabelled_photos_are_none_that_the_fold_is_scored_on(tmp_path, capsys):
    """Each fold of six samples learns from the four others, and from the two photos that are no training samples."""
    samples = Numbered(count=8)
    for index in range(8):
        split = "train" if index < 6 else "val"
        fake_data.write(tmp_path / "data" / "images" / split / f"{index}.png", samples[index].image)
        fake_data.write(tmp_path / "data" / "masks" / split / f"{index}.png", samples[index].labels)
    train, validation = (resnest_seg.FolderDataset(tmp_path / "data", split) for split in ("train", "val"))
    where = {"unlabelled": str(tmp_path / "data" / "images"), "iterations": 1}
    values = {**CONFIG_OF_TEST, "train": {**CONFIG_OF_TEST["train"], **where}, "semi": {"method": "fixmatch"}}
    for result in fit_folds(tmp_path / "folds", values=values, train=train, validation=validation):
        sources = Checkpoint.load(result.output / LAST).training.values["sources"]
        assert sources["train.unlabelled"].startswith("2 photos, ")
    said = "unlabelled: 2 photos, without 4 that the training split has with labels and 2 that this fold is scored on"
    assert capsys.readouterr().err.count(said) == 3


def test_folds_go_on_where_they_were_killed_and_refuse_others(whole, tmp_path):
    class KilledError(Exception):
        pass

    class Kill(resnest_seg.Callback):
        def on_step(self, report):
            if report.step == 1 and (tmp_path / "folds" / "fold_1").exists():
                raise KilledError

    with pytest.raises(KilledError):
        fit_folds(tmp_path / "folds", callbacks=[Kill()])
    before = (tmp_path / "folds" / "fold_0" / LAST).stat().st_mtime_ns
    with pytest.raises(CheckpointError, match=r"folds cannot begin in .*folds: it exists"):
        fit_folds(tmp_path / "folds")
    with pytest.raises(CheckpointError, match="folds was 3, and is 2"):
        fit_folds(tmp_path / "folds", 2, resume="auto")
    with pytest.raises(CheckpointError, match="there is no"):
        fit_folds(tmp_path / "none", resume="yes")
    results = fit_folds(tmp_path / "folds", resume="auto")
    assert all(same(weights(one.output), weights(other.output)) for one, other in zip(whole[0], results, strict=True))
    assert (tmp_path / "folds" / "fold_0" / LAST).stat().st_mtime_ns == before
    record = {"format": "resnest_seg folds", "samples": "x", "group_by": None}
    for text, problem in (
        ("[" * 10_000, "cannot be read"),
        ("[1]", "no file of"),
        (record | {"folds": "9"}, "no file"),
    ):
        (tmp_path / "folds" / "folds.json").write_text(text if isinstance(text, str) else json.dumps(text))
        with pytest.raises(DatasetError, match=problem):
            fit_folds(tmp_path / "folds", resume="auto")


def test_parts_that_folds_would_share_are_refused(tmp_path):
    for name, part in (
        ("segmenter", nn.Conv2d(3, 3, 1)),
        ("optimizer", torch.optim.SGD([nn.Parameter(torch.ones(1))])),
    ):
        with pytest.raises(ConfigError, match=f"{name} must be a function"):
            fit_folds(tmp_path / "folds", **{name: part})
    assert not (tmp_path / "folds").exists()


def test_a_start_that_is_refused_leaves_nothing_behind(tmp_path):
    wrong = CONFIG_OF_TEST | {"train": CONFIG_OF_TEST["train"] | {"trackers": "no such"}}
    with pytest.raises(ConfigError, match="no such"):
        fit_folds(tmp_path / "folds", values=wrong)
    assert not (tmp_path / "folds").exists()
    for name in ("a run", "photos"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "best.safetensors").write_bytes(b"")
        with pytest.raises(CheckpointError, match=f"folds cannot begin in .*{name}: it exists, and holds no folds"):
            fit_folds(tmp_path / name, resume="auto" if name == "photos" else "no")
        assert [path.name for path in (tmp_path / name).iterdir()] == ["best.safetensors"]


def test_the_trainer_of_a_fold_is_gone_when_the_next_is_built(tmp_path):
    """Its optimiser and its averages would take memory twice."""
    alive = []

    def segmenter(classes):
        alive.append(sum(type(one) is Trainer for one in gc.get_objects()))
        return resnest_seg.build_segmenter("resnest14_tiny", head="fcn", num_classes=classes)

    gc.collect()
    results = fit_folds(tmp_path / "folds", 2, segmenter=segmenter)
    assert len(results) == len(alive) == 2
    assert max(alive) == alive[0]
