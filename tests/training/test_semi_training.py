"""Runs that learn from unlabelled photos, through `fit` as a user calls it; in many processes: see test_sharding.py."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from support import fake_data
from support.small_models import OneConvolution

import resnest_seg
from resnest_seg.config import (
    DataConfig,
    EvalConfig,
    ModelConfig,
    OptimConfig,
    PretrainConfig,
    RunConfig,
    SemiConfig,
    TrainConfig,
    config_from_dict,
)
from resnest_seg.data.datasets import Sample, SegmentationDataset
from resnest_seg.errors import CheckpointError, ConfigError, DatasetError
from resnest_seg.labels import LabelSpace
from resnest_seg.models.checkpoint import LAST, Checkpoint
from resnest_seg.models.heads import FCNHead
from resnest_seg.reports.run_report import write_report
from resnest_seg.training.assembly import Parts, trainer_for
from resnest_seg.training.memory import measure
from resnest_seg.training.rehearsal import dry_run

pytestmark = pytest.mark.slow


class Colours(SegmentationDataset):
    """Pictures of three colours, whose colour is the class."""

    def __init__(self, space=None, channels=3, kind=np.uint8, count=4):
        self.label_space = space or LabelSpace.numbered(3, name="three")
        self.split, self.channels, self.kind, self.count = "train", channels, kind, count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        random = np.random.default_rng(index)
        labels = random.integers(0, 3, (5, 6), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)
        image = 80 * labels[..., None] + random.integers(0, 60, (*labels.shape, self.channels))
        if self.label_space.task == "binary":
            labels = (labels > 0).astype(np.uint8)
        if self.label_space.task == "multilabel":
            labels = np.array([0, 1, 6], np.uint16)[labels]
        return Sample(image.astype(self.kind), labels, f"colours {index}")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "more photos [ü]"
    for index in range(5):
        fake_data.write(root / f"{index}.png", Colours()[10 + index].image)
    return root


@pytest.fixture(autouse=True)
def _fresh_engine():
    AcceleratorState._reset_state(reset_partial_state=True)


def config_of(photos, *, model=None, data=None, train=None, **semi):
    return RunConfig(
        model=ModelConfig(**{"encoder": "resnest14_tiny", "head": "fcn", "output_stride": 32} | (model or {})),
        data=DataConfig(**{"base_size": 48, "crop_size": 32, "workers": 0, "check": 4} | (data or {})),
        optim=OptimConfig(lr=0.02, reference_batch=None),
        train=TrainConfig(
            **{"epochs": None, "iterations": 5, "batch_size": 2, "save_every": 2, "log_every": 1, "trackers": "none"}
            | {"validate_every_steps": 100, "unlabelled": str(photos)} | (train or {})
        ),
        eval=EvalConfig(sheet=0),
        semi=SemiConfig(**{"threshold": 0.35} | semi),
    )  # fmt: skip


def fit(config, output, **options):
    AcceleratorState._reset_state(reset_partial_state=True)
    options = {"train": Colours(), "validation": Colours()} | options
    return resnest_seg.fit(config, output=output, **options)


def lines(folder, kind="train"):
    every = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in every if line["kind"] == kind]


def same_bits(first, second):
    first, second = (Checkpoint.load(folder / LAST) for folder in (first, second))
    assert first.training.values == second.training.values
    for ours, theirs in ((first.weights, second.weights), (first.training.tensors, second.training.tensors)):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(value, theirs[key]) for key, value in ours.items())


@pytest.fixture(scope="module")
def finished(photos, tmp_path_factory):
    """One complete run by UniMatch with the average as teacher, in two micro-batches."""
    output = tmp_path_factory.mktemp("runs") / "whole"
    fit(EMA(photos), output)
    return output


def EMA(photos, **data):  # noqa: N802
    return config_of(photos, data=data, train={"ema": 0.5, "batch_size": 4, "accumulation": 2}, teacher="ema")


class Dies(resnest_seg.Callback):
    def on_step(self, report):
        if report.step == 3:
            raise KeyboardInterrupt  # nothing is saved


@pytest.mark.long
def test_a_run_that_died_goes_on_to_the_same_bits(photos, finished, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fit(EMA(photos), tmp_path / "run", callbacks=[Dies()])
    assert Checkpoint.load(tmp_path / "run" / LAST).training.values["step"] == 2
    fit(EMA(photos, workers=2), tmp_path / "run", resume="yes")
    same_bits(tmp_path / "run", finished)
    assert lines(tmp_path / "run") == lines(finished)


def test_what_is_logged(finished):
    found = lines(finished)
    assert len(found) == 5
    for line in found:
        assert line["loss"] == pytest.approx((line["labelled_loss"] + line["unlabelled_loss"]) / 2)
        assert 0 < line["certain"] <= 1
        assert 0 <= line["agreement"] <= 1
    assert any(line["unlabelled_loss"] > 0 for line in found)
    values = Checkpoint.load(finished / LAST).training.values
    assert values["sources"]["train.unlabelled"].startswith("5 photos, SHA-256 ")


def test_the_report_draws_both_losses_and_the_shares(finished, tmp_path):
    page = tmp_path / "report.html"
    write_report([finished], page, say=lambda text: None)
    text = page.read_text(encoding="utf-8")
    for words in ("labelled", "unlabelled", "certain pixels", "agreement"):
        assert words in text, words


def test_other_photos_are_refused_and_a_moved_folder_is_not(photos, finished, tmp_path):
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in photos.iterdir():
        (moved / path.name).write_bytes(path.read_bytes())
    begun = tmp_path / "run"
    fit(EMA(photos), begun, until=1)
    fit(EMA(moved), begun, resume="yes", until=2)
    fake_data.write(moved / "new.png", Colours()[3].image)
    said = r"train.unlabelled is not what .* was 5 photos, .* is 6 photos, .*--allow-changes train.unlabelled"
    with pytest.raises(CheckpointError, match=said):
        fit(EMA(moved), begun, resume="yes")
    AcceleratorState._reset_state(reset_partial_state=True)
    parts = Parts(train=Colours(), validation=Colours())
    trainer = trainer_for(EMA(moved), parts, output=begun, resume="yes", allow_changes=["train.unlabelled"])
    assert trainer.step == 2
    with pytest.raises(CheckpointError, match=r"semi.threshold \(0.35 -> 0.9\)"):
        fit(dataclasses.replace(EMA(photos), semi=SemiConfig(teacher="ema", threshold=0.9)), begun, resume="yes")


@pytest.mark.parametrize("task", ["binary", "multilabel"])
def test_other_tasks_learn_from_photos(photos, tmp_path, task):
    space = LabelSpace.numbered(3, names=["a", "b", "c"])
    space = space.for_task(task, positive=["b", "c"]) if task == "binary" else space.for_task(task)
    data = Colours(space)
    precision = "bf16" if task == "binary" else "fp32"
    config = config_of(photos, model={"task": task}, train={"iterations": 2, "precision": precision}, threshold=0.5)
    fit(config, tmp_path / "run", train=data, validation=data)
    for line in lines(tmp_path / "run"):
        assert line["unlabelled_loss"] > 0


def test_images_of_bands_learn_from_files_of_bands(tmp_path):
    root = tmp_path / "arrays"
    root.mkdir()
    for index in range(4):
        np.save(root / f"{index}.npy", Colours(channels=5, kind=np.uint16)[index].image)
    data = Colours(channels=5, kind=np.uint16)
    config = config_of(root, data={"bands": (1, 2, 3, 4, 5)}, train={"iterations": 2})
    fit(config, tmp_path / "run", train=data, validation=data)
    assert len(lines(tmp_path / "run")) == 2


def test_a_network_and_a_loss_of_ones_own(photos, tmp_path):
    def build(classes):
        return resnest_seg.Segmenter(OneConvolution(), FCNHead(16, classes), num_classes=classes)

    def loss(logits, labels):
        return torch.nn.functional.cross_entropy(logits, labels, ignore_index=255)

    fit(config_of(photos, train={"iterations": 2}), tmp_path / "run", segmenter=build, loss=loss)
    assert all(np.isfinite(line["unlabelled_loss"]) for line in lines(tmp_path / "run"))


def test_what_does_not_go_together_is_refused(photos):
    for options, said in (
        ({"method": "unimatchs"}, "unknown semi.method 'unimatchs'. Did you mean 'unimatch'"),
        ({"teacher": "average"}, "unknown semi.teacher 'average'"),
        ({"teacher": "ema"}, "semi.teacher ema is the moving average of the weights: set train.ema"),
        ({"model": {"head": "mask2former", "family": "mmseg", "aux_head": False}}, "head mask2former"),
        ({"data": {"window": 64}}, "data.window"),
        ({"teacher": "ema", "train": {"ema": 0.9, "parallel": "fsdp"}}, "train.parallel fsdp"),
        ({"train": {"unlabelled": None}}, "semi.threshold is for unlabelled photos, and train.unlabelled names none"),
    ):
        with pytest.raises(ConfigError) as caught:
            config_of(photos, **options)
        assert said in str(caught.value)


def test_configs_without_the_groups_load():
    """Of checkpoints from before; a classifier's has none."""
    old = RunConfig().to_dict()
    del old["semi"], old["train"]["unlabelled"], old["data"]["samples"]
    assert config_from_dict(old) == RunConfig()
    assert "semi" not in PretrainConfig().to_dict()
    with pytest.raises(ConfigError, match="unlabelled"):
        PretrainConfig.from_dict({"train": {"unlabelled": "x"}})


@pytest.mark.long
def test_the_memory_of_a_step_counts_the_photos(photos):
    """Four images of UniMatch are in memory for the one of before, and a little more."""
    plain, semi = (
        measure(config_of(photos, data={"crop_size": 64}, train={"unlabelled": where}, threshold=0.95), num_classes=3,
                half=False).per_image
        for where in (None, "photos")
    )  # fmt: skip
    assert 4 * plain < semi < 5 * plain


def test_a_dry_run_draws_photos_where_the_data_is_missing_too(tmp_path, monkeypatch):
    monkeypatch.setenv("RESNEST_SEG_DATA", str(tmp_path / "nowhere"))
    assert "passed" in dry_run(config_of(tmp_path / "none", data={"dataset": "camvid"}))
    with pytest.raises(DatasetError, match="there is no such folder"):
        dry_run(config_of(tmp_path / "none", data={"dataset": "synthetic"}))


def test_a_dry_run_refuses_photos_all_of_which_are_samples(tmp_path):
    """It trains on the first samples alone, and the run on all."""
    for split, count in (("train", 6), ("val", 1)):
        for index in range(count):
            fake_data.write(tmp_path / "images" / split / f"{index}.png", Colours()[index].image)
            fake_data.write(tmp_path / "masks" / split / f"{index}.png", Colours()[index].labels)
    data = {"dataset": "folder", "root": str(tmp_path)}
    with pytest.raises(DatasetError, match=r"all 6 photos of train.unlabelled .* are samples of the training split"):
        dry_run(config_of(tmp_path / "images" / "train", data=data))
