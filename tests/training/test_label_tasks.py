"""Training and evaluation of binary and multi-label tasks, from the config to the report."""

import dataclasses
import functools
import json
import signal

import numpy as np
import pytest
import torch
from torchmetrics.classification import BinaryAveragePrecision, BinaryF1Score, BinaryJaccardIndex

from resnest_seg import LabelSpace, PairDataset, RunConfig, SegmentationDataset, fit, load_checkpoint
from resnest_seg.data.build import build_dataset
from resnest_seg.data.datasets import Subset
from resnest_seg.evaluation.evaluator import evaluate
from resnest_seg.evaluation.report import EvalReport
from resnest_seg.inference.predictor import Predictor
from resnest_seg.models.checkpoint import Checkpoint
from resnest_seg.training.tasks import SegmentationTask
from resnest_seg.training.trainer import Trainer

SHORT = {
    "model": {"encoder": "resnest14_tiny", "head": "fcn", "output_stride": 16},
    "data": {"dataset": "synthetic", "crop_size": 64, "base_size": 80, "workers": 0, "check": 0},
    "train": {"epochs": None, "iterations": 6, "batch_size": 2, "validate_every_steps": 3, "trackers": "none"},
    "eval": {"limit": 4, "sheet": 1},
}


def config(**changes):
    values = RunConfig.from_dict(SHORT).to_dict()
    for key, value in changes.items():
        group, name = key.split("__")
        values[group][name] = value
    return RunConfig.from_dict(values)


TASKS = {
    "binary": {"model__task": "binary", "data__positive": "car,tree", "train__class_weights": "balanced"},
    "multilabel": {"model__task": "multilabel", "train__loss": "cross_entropy+dice", "train__pos_weight": 2.0},
}


class Ending(SegmentationDataset):
    """Validation scenes of which so many may be read before SIGTERM comes."""

    def __init__(self, reads=None):
        self.scenes, self.reads = build_dataset("synthetic", split="val", task="multilabel"), reads
        self.label_space, self.split = self.scenes.label_space, "val"

    def __len__(self):
        return len(self.scenes)

    def __getitem__(self, index):
        if self.reads is not None:
            self.reads -= 1
            if self.reads == 0:
                signal.raise_signal(signal.SIGTERM)
        return self.scenes[index]


def dataset_of(config, split="val"):
    return build_dataset("synthetic", split=split, task=config.model.task, positive=config.data.positive)


def data_of(config):
    """Training scenes, few, since weights of labels count the pixels of all; and, for several labels, the others."""
    few = Subset(dataset_of(config, "train"), range(24))
    return {"train": few, "validation": Ending() if config.model.task == "multilabel" else dataset_of(config)}


def weights_score_nothing(patch):
    """Let the average win, which after so few steps would depend on how this processor rounds."""
    shown = []
    show, validate = Trainer._show_to_judge, SegmentationTask.validate

    def shows(self, name):
        shown.append(name)
        show(self, name)

    def validates(self, *given, **options):
        found = validate(self, *given, **options)
        zeros = dict.fromkeys(found.scores, 0.0)
        return dataclasses.replace(found, scores=zeros) if shown[-1] == "weights" else found

    patch.setattr(Trainer, "_show_to_judge", shows)
    patch.setattr(SegmentationTask, "validate", validates)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """(task, decay of the average) -> config, result, and an evaluation of the best weights in a report and lines.

    Where there is an average, it is the better one.
    """

    @functools.cache
    def run(task, ema=0.0):
        values = config(**TASKS[task], train__ema=ema, optim__lr=0.05, optim__reference_batch=2)
        folder = tmp_path_factory.mktemp(task)
        data = data_of(values)
        with pytest.MonkeyPatch.context() as patch:
            if ema:
                weights_score_nothing(patch)
            result = fit(values, output=folder / "run", **data)
        lines = folder / "images.jsonl"
        again = evaluate(load_checkpoint(result.best), data["validation"], indices=range(4), images=lines)
        return values, result, again, lines.read_text().splitlines()

    return run


@pytest.mark.parametrize("task", TASKS)
def test_a_run_keeps_the_best_thresholds_of_its_validation(task, runs, tmp_path):
    values, result, report, _ = runs(task)
    loaded = load_checkpoint(result.best)
    assert loaded.task == task
    assert len(loaded.decision_thresholds) == (1 if task == "binary" else 10)
    scores = report.labels["whole"]
    for label, threshold in zip(scores.labels, loaded.decision_thresholds, strict=True):
        assert label.threshold == pytest.approx(threshold)
        if label.best_iou is not None:  # the threshold was the best on these images
            assert label.iou == pytest.approx(label.best_iou)
    ious = [label.best_iou for label in scores.labels if label.best_iou is not None]
    assert result.best_score == pytest.approx(np.mean(ious))
    report.save(tmp_path / "report.json")
    assert EvalReport.load(tmp_path / "report.json") == report
    names = list(dataset_of(values).label_space.score_names)
    assert json.loads((tmp_path / "report.json").read_text())["classes"] == names
    shown = "".join(str(cell) for column in report.label_table().columns for cell in column.cells)
    assert f"{loaded.decision_thresholds[0]:.3f}" in shown


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_the_best_and_the_last_weights_have_thresholds(ema, runs):
    """Of those kept as best, weights or their average, the thresholds are just these weights'."""
    values, result, report, _ = runs("binary", ema)
    best = load_checkpoint(result.best)
    assert Checkpoint.load(result.best).origin["of"] == ("average" if ema else "weights")
    (label,) = report.labels["whole"].labels
    assert best.decision_thresholds == pytest.approx([label.best_threshold])
    assert best.decision_thresholds != (0.5,)
    if not ema:
        last = load_checkpoint(result.output / "last.safetensors")
        (label,) = evaluate(last, dataset_of(values), indices=range(4)).labels["whole"].labels
        assert last.decision_thresholds == pytest.approx([label.best_threshold])


@pytest.mark.parametrize(("task", "ema"), [("binary", 0.0), ("multilabel", 0.0), ("binary", 0.5)])
def test_report_and_images_of_the_best_validation_are_those_of_the_kept_weights(task, ema, runs):
    """Not those at the thresholds before, of which a model card would say 0 where the model has much more."""
    _, result, again, images = runs(task, ema)
    kept = EvalReport.load(result.output / "val_report.json")
    assert kept.labels == again.labels
    assert kept.mean_iou("whole") == pytest.approx(result.best_score)
    assert (result.output / "val_images.jsonl").read_text().splitlines()[1:] == images[1:]
    lines = map(json.loads, (result.output / "metrics.jsonl").read_text().splitlines())
    best = max((line for line in lines if line["kind"] == "validation"), key=lambda line: line["mean_iou"])
    assert best["class_iou"] == pytest.approx(list(kept.scores["whole"].class_iou), nan_ok=True)


def test_a_run_stopped_while_a_kept_model_is_scored_again_ends_the_same(runs, tmp_path):
    """And so if it is stopped once more, between two validations."""
    values, whole, *_ = runs("multilabel")
    data = data_of(values)
    stopped = fit(values, **data | {"validation": Ending(6)}, output=tmp_path / "run")  # 4 images are validated
    assert stopped.stopped_by == signal.SIGTERM
    assert not (tmp_path / "run" / "best.safetensors").exists()
    assert not fit(values, **data, output=tmp_path / "run", resume="yes", until=4).finished
    rest = fit(values, **data, output=tmp_path / "run", resume="yes")
    assert rest.stopped_by is None
    for name in ("val_report.json", "val_images.jsonl", "metrics.jsonl"):
        assert (rest.output / name).read_bytes() == (whole.output / name).read_bytes(), name
    for name in ("best.safetensors", "last.safetensors"):
        same_bits(load_checkpoint(rest.output / name), load_checkpoint(whole.output / name))


def same_bits(first, second):
    found, expected = first.state_dict(), second.state_dict()
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(found[key], value), key


def test_scores_are_torchmetrics(runs):
    values, result, report, _ = runs("binary")
    segmenter, dataset = load_checkpoint(result.best), dataset_of(values)
    predictor = Predictor(segmenter, device="cpu")
    scores, truth = [], []
    for index in range(4):
        image, labels, _ = dataset[index]
        valid = labels != 255
        scores.append(predictor(image).scores()[0][valid])
        truth.append(labels[valid])
    flat, target = torch.from_numpy(np.concatenate(scores)), torch.from_numpy(np.concatenate(truth)).int()
    (threshold,) = segmenter.decision_thresholds
    (ours,) = report.labels["whole"].labels
    predicted = (flat >= torch.tensor(threshold)).int()
    assert ours.iou == pytest.approx(BinaryJaccardIndex()(predicted, target).item(), abs=1e-6)
    assert ours.f1 == pytest.approx(BinaryF1Score()(predicted, target).item(), abs=1e-6)
    edges = torch.from_numpy((np.arange(1001) / 1000).astype(np.float32))
    assert ours.average_precision == pytest.approx(BinaryAveragePrecision(edges)(flat, target).item(), abs=1e-5)
    assert report.scores["whole"].pixel_accuracy == pytest.approx((predicted == target).double().mean().item())


@pytest.mark.long
def test_a_resumed_binary_run_has_the_same_bits(runs, tmp_path):
    """Of several labels, see the run that is stopped twice."""
    values, whole, *_ = runs("binary")
    data = data_of(values)
    assert not fit(values, **data, output=tmp_path / "run", until=4).finished
    same_bits(fit(values, **data, output=tmp_path / "run", resume="yes").segmenter, whole.segmenter)


def test_overlapping_labels_of_ones_own_arrays_can_be_learnt(tmp_path):
    """Bright pixels are label 0, red ones label 1: red and bright ones have both, and a few steps find that."""
    random = np.random.default_rng(0)

    def sample(_):
        blocks = random.integers(0, 4, (4, 4)).repeat(16, axis=0).repeat(16, axis=1)
        red, bright = blocks & 1, blocks >> 1
        image = np.stack([40 + 100 * red + 100 * bright, 40 + 100 * bright, 40 + 100 * bright], axis=2)
        mask = (bright | red << 1).astype(np.int32)
        mask[:4] = 1 << 15
        return image.astype(np.uint8), mask

    samples = [sample(index) for index in range(12)]
    space = LabelSpace.numbered(2, names=["bright", "red"]).for_task("multilabel")
    pairs = PairDataset(samples, space)
    assert pairs[0].labels.dtype == np.uint16
    run = config(model__task="multilabel", train__iterations=40, train__batch_size=4, optim__lr=0.1,
                 data__base_size=64, train__validate_every_steps=20, eval__limit=None)  # fmt: skip
    result = fit(run, train=pairs, validation=PairDataset(samples[:4], space, split="val"), output=tmp_path / "run")
    assert result.scores["mean_iou"] > 0.6
