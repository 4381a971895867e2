"""Calibration against torchmetrics, a plain loop and laws."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.classification import multiclass_calibration_error

from resnest_seg.errors import CheckpointError, ConfigError
from resnest_seg.evaluation.calibration import Calibration


def outputs(seed, *, classes=5, sharpness=2.0, pixels=400, ignored=0.2):
    """Labels, predictions, confidences [pixels] and probabilities [pixels, classes]."""
    generator = torch.Generator().manual_seed(seed)
    probabilities = (sharpness * torch.randn(pixels, classes, generator=generator)).softmax(dim=1)
    confidences, predictions = probabilities.max(dim=1)
    labels = torch.where(
        torch.rand(pixels, generator=generator) < 0.5,
        predictions,
        torch.randint(0, classes, (pixels,), generator=generator),
    )
    labels[torch.rand(pixels, generator=generator) < ignored] = 255
    return labels, predictions, confidences, probabilities


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    bins=st.sampled_from([1, 2, 10, 15, 37]),
    sharpness=st.sampled_from([0.1, 2.0, 300.0]),
    ignored=st.sampled_from([0.0, 0.3]),
)
def test_torchmetrics_agrees(seed, bins, sharpness, ignored):
    """Also where probabilities round to exactly 1, which sharp logits do."""
    labels, predictions, confidences, probabilities = outputs(seed, sharpness=sharpness, ignored=ignored)
    report = Calibration(bins=bins).update(labels.to(torch.uint8), predictions, confidences).report()
    for norm, ours in (("l1", report.expected_calibration_error), ("max", report.maximum_calibration_error)):
        theirs = multiclass_calibration_error(probabilities, labels, 5, n_bins=bins, norm=norm, ignore_index=255)
        assert ours == pytest.approx(theirs.item(), abs=1e-6)


def test_the_bins_are_those_of_a_loop():
    labels, predictions, confidences, _ = outputs(3)
    confidences[:9] = torch.tensor([0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0, 1.0])  # float32 edges of ten bins
    labels[:9] = 0
    report = Calibration(bins=10).update(labels, predictions, confidences).report()
    edges = torch.linspace(0, 1, 11).tolist()
    members = [[] for _ in range(11)]
    for label, prediction, confidence in zip(labels.tolist(), predictions.tolist(), confidences.tolist(), strict=True):
        if label != 255:
            place = max(k for k in range(11) if edges[k] <= confidence)
            members[place].append((label == prediction, confidence))
    assert len(report.bins) == 11
    for k, (found, inside) in enumerate(zip(report.bins, members, strict=True)):
        assert (found.low, found.high) == pytest.approx((k / 10, min((k + 1) / 10, 1)))
        assert found.count == len(inside)
        if inside:
            assert found.accuracy == np.mean([hit for hit, _ in inside])
            assert found.confidence == pytest.approx(np.mean([confidence for _, confidence in inside]))
        else:
            assert found.accuracy is found.confidence is None
    assert report.bins[10].count == 2
    assert report.bins[10].confidence == 1.0


def test_calibration_by_hand():
    """Four pixels: 0.8 sure and right three times of four; two: 0.55 sure and never right."""
    labels, predictions = torch.tensor([1, 1, 1, 0, 0, 0, 255]), torch.tensor([1, 1, 1, 1, 1, 1, 1])
    confidences = torch.tensor([0.85, 0.85, 0.85, 0.85, 0.55, 0.55, 0.99])
    report = Calibration(bins=10).update(labels, predictions, confidences).report()
    assert report.expected_calibration_error == pytest.approx((4 * 0.1 + 2 * 0.55) / 6)
    assert report.maximum_calibration_error == pytest.approx(0.55)


def test_a_calibrated_model_has_no_error():
    confidences = torch.full((1000,), 0.75)
    labels = (torch.arange(1000) % 4 == 0).long()  # right three times of four
    report = Calibration().update(labels, torch.zeros_like(labels), confidences).report()
    assert report.expected_calibration_error == pytest.approx(0)
    assert report.maximum_calibration_error == pytest.approx(0)


def test_everything_ignored_and_nothing_at_all_are_zero():
    ignored = torch.full((2, 3, 4), 255, dtype=torch.uint8)
    for calibration in (Calibration().update(ignored, ignored, torch.full((2, 3, 4), torch.nan)), Calibration()):
        report = calibration.report()
        assert (report.expected_calibration_error, report.maximum_calibration_error) == (0, 0)
        assert all(part.count == 0 and part.accuracy is None for part in report.bins)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_any_float_type_and_a_little_beyond_one(dtype):
    labels, confidences = torch.tensor([0, 1]), torch.tensor([1.0, 0.5]).to(dtype)
    confidences[0] += torch.finfo(dtype).eps
    report = Calibration(bins=4).update(labels, labels, confidences).report()
    assert [part.count for part in report.bins] == [0, 0, 1, 0, 1]
    assert report.expected_calibration_error == 0.25


def test_states_add_up():
    labels, predictions, confidences, _ = outputs(5)
    whole = Calibration().update(labels, predictions, confidences)
    parts = [
        Calibration().update(labels[part], predictions[part], confidences[part])
        for part in (slice(0, 150), slice(150, 400))
    ]
    parts[0].state = [mine + other for mine, other in zip(parts[0].state, parts[1].state, strict=True)]
    assert parts[0].report() == whole.report()
    assert [tensor.dtype for tensor in whole.state] == [torch.int64]


def test_sums_do_not_depend_on_the_order():
    labels, predictions, confidences, _ = outputs(8)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    one, other = Calibration(), Calibration().update(labels[order], predictions[order], confidences[order])
    for part in range(0, len(labels), 7):
        one.update(*(values[part : part + 7] for values in (labels, predictions, confidences)))
    assert one.report() == other.report()


def test_the_report_is_json():
    report = Calibration().update(*outputs(6)[:3]).report()
    tree = json.loads(json.dumps(dataclasses.asdict(report), allow_nan=False))
    assert tree["expected_calibration_error"] == report.expected_calibration_error
    assert len(tree["bins"]) == 16


def test_mistakes_are_named():
    with pytest.raises(ConfigError, match="at least one bin, not 0"):
        Calibration(bins=0)
    with pytest.raises(CheckpointError, match="NaN"):
        Calibration().update(torch.tensor([0]), torch.tensor([0]), torch.tensor([torch.nan])).report()
    with pytest.raises(AssertionError):
        Calibration().update(torch.tensor([0]), torch.tensor([0]), torch.tensor([[0.5]]))
