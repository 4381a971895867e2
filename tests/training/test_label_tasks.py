"""Training and evaluation of binary and multi-label tasks, from the config to the report."""

import json
import signal

import numpy as np
import pytest
import torch
from torchmetrics.classification import BinaryAveragePrecision, BinaryF1Score, BinaryJaccardIndex

from resnest_seg import LabelSpace, PairDataset, RunConfig, SegmentationDataset, fit, load_checkpoint
from resnest_seg.data.build import build_dataset
from resnest_seg.evaluation.evaluator import evaluate
from resnest_seg.evaluation.report import EvalReport
from resnest_seg.inference.predictor import Predictor

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


@pytest.mark.parametrize("task", TASKS)
def test_a_run_keeps_the_best_thresholds_of_its_validation(task, tmp_path):
    run = config(**TASKS[task])
    result = fit(run, output=tmp_path / "run")
    loaded = load_checkpoint(result.best)
    assert loaded.task == task
    assert len(loaded.decision_thresholds) == (1 if task == "binary" else 10)
    positive = run.data.positive
    dataset = build_dataset("synthetic", split="val", task=task, positive=positive)
    report = evaluate(loaded, dataset, indices=range(4))
    scores = report.labels["whole"]
    for label, threshold in zip(scores.labels, loaded.decision_thresholds, strict=True):
        assert label.threshold == pytest.approx(threshold)
        if label.best_iou is not None:  # the threshold was the best on these images
            assert label.iou == pytest.approx(label.best_iou)
    ious = [label.best_iou for label in scores.labels if label.best_iou is not None]
    assert result.best_score == pytest.approx(np.mean(ious))
    report.save(tmp_path / "report.json")
    assert EvalReport.load(tmp_path / "report.json") == report
    assert json.loads((tmp_path / "report.json").read_text())["classes"] == list(dataset.label_space.score_names)
    shown = "".join(str(cell) for column in report.label_table().columns for cell in column.cells)
    assert f"{loaded.decision_thresholds[0]:.3f}" in shown


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_the_best_and_the_last_weights_have_thresholds(ema, tmp_path):
    """Of those kept as best, weights or (at the larger rate) their average, the thresholds are just these weights'."""
    run = config(model__task="binary", data__positive="car,tree", train__ema=ema, optim__lr=0.5 if ema else 0.05,
                 optim__reference_batch=2)  # fmt: skip
    result = fit(run, output=tmp_path / "run")
    dataset = build_dataset("synthetic", split="val", task="binary", positive="car,tree")
    best = load_checkpoint(result.best)
    (label,) = evaluate(best, dataset, indices=range(4)).labels["whole"].labels
    assert best.decision_thresholds == pytest.approx([label.best_threshold])
    assert best.decision_thresholds != (0.5,)
    if not ema:
        last = load_checkpoint(tmp_path / "run" / "last.safetensors")
        (label,) = evaluate(last, dataset, indices=range(4)).labels["whole"].labels
        assert last.decision_thresholds == pytest.approx([label.best_threshold])


@pytest.mark.parametrize(("task", "ema"), [("binary", 0.0), ("multilabel", 0.0), ("binary", 0.5)])
def test_report_and_images_of_the_best_validation_are_those_of_the_kept_weights(task, ema, tmp_path):
    """Not those at the thresholds before, of which a model card would say 0 where the model has much more."""
    run = config(**TASKS[task], train__ema=ema, optim__lr=0.5 if ema else 0.05, optim__reference_batch=2)
    result = fit(run, output=tmp_path / "run")
    dataset = build_dataset("synthetic", split="val", task=task, positive=run.data.positive)
    images = tmp_path / "images.jsonl"
    again = evaluate(load_checkpoint(result.best), dataset, indices=range(4), images=images)
    kept = EvalReport.load(tmp_path / "run" / "val_report.json")
    assert kept.labels == again.labels
    assert kept.mean_iou("whole") == pytest.approx(result.best_score)
    assert (tmp_path / "run" / "val_images.jsonl").read_text().splitlines()[1:] == images.read_text().splitlines()[1:]
    lines = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    best = max((line for line in lines if line["kind"] == "validation"), key=lambda line: line["mean_iou"])
    assert best["class_iou"] == pytest.approx(list(kept.scores["whole"].class_iou), nan_ok=True)


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


def test_a_run_stopped_while_a_kept_model_is_scored_again_ends_the_same(tmp_path):
    run = config(model__task="multilabel")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert fit(run, validation=Ending(), output=whole).stopped_by is None
    stopped = fit(run, validation=Ending(6), output=parts)  # 4 images are validated
    assert stopped.stopped_by == signal.SIGTERM
    assert not (parts / "best.safetensors").exists()
    assert fit(run, validation=Ending(), output=parts, resume="yes").stopped_by is None
    for name in ("val_report.json", "val_images.jsonl", "metrics.jsonl"):
        assert (parts / name).read_bytes() == (whole / name).read_bytes(), name
    best = [load_checkpoint(folder / "best.safetensors").state_dict() for folder in (whole, parts)]
    assert all(torch.equal(best[0][name], value) for name, value in best[1].items())


def test_scores_are_torchmetrics(tmp_path):
    result = fit(config(**TASKS["binary"]), output=tmp_path / "run")
    segmenter = load_checkpoint(result.best)
    dataset = build_dataset("synthetic", split="val", task="binary", positive="car,tree")
    report = evaluate(segmenter, dataset, indices=range(3))
    predictor = Predictor(segmenter, device="cpu")
    scores, truth = [], []
    for index in range(3):
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


@pytest.mark.parametrize("task", TASKS)
def test_a_resumed_run_has_the_same_bits(task, tmp_path):
    run = config(**TASKS[task])
    whole = fit(run, output=tmp_path / "whole")
    part = fit(run, output=tmp_path / "part", until=4)
    assert not part.finished
    rest = fit(run, output=tmp_path / "part", resume="yes")
    found = rest.segmenter.state_dict()
    for key, value in whole.segmenter.state_dict().items():
        assert torch.equal(found[key], value), key


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
