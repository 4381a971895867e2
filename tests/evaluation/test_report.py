"""Reports survive their files, and say what may be compared."""

import dataclasses
import json

import pytest
import torch
from rich.console import Console

from resnest_seg.errors import DatasetError
from resnest_seg.evaluation.boundaries import BoundaryScores
from resnest_seg.evaluation.calibration import Calibration
from resnest_seg.evaluation.metrics import ConfusionMatrix
from resnest_seg.evaluation.report import EvalReport, Method


def report(seed=0, **changes):
    """Of random labels; class 3 is absent."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (20, 30), generator=random)
    predictions = torch.randint(0, 3, (20, 30), generator=random)
    matrix = ConfusionMatrix(4).update(labels, predictions)
    values = {
        "model": "resnest14 fcn",
        "dataset": "tiny",
        "split": "val",
        "images": 7,
        "classes": ("sky", "road", "car", "moon"),
        "scores": {"whole": matrix.scores(), "encoding": matrix.scores()},
        "methods": {"whole": Method("skipped", "whole: as it is"), "encoding": Method("zero", "encoding: many")},
        "confusions": {"whole": matrix.pairs(), "encoding": matrix.pairs()},
        "boundaries": {"whole": BoundaryScores(4).update(labels, predictions).report()},
        "calibration": {"whole": Calibration().update(labels, predictions, torch.rand(20, 30)).report()},
    }
    return EvalReport(**(values | changes))


def printed(table):
    console = Console(record=True, width=250)
    console.print(table)
    return console.export_text()


def test_a_file_gives_the_same_report_back(tmp_path):
    one = report()
    one.save(tmp_path / "report.json")
    assert EvalReport.load(tmp_path / "report.json") == one
    tree = json.loads((tmp_path / "report.json").read_text())
    assert tree["methods"]["encoding"] == {"absent": "zero", "description": "encoding: many"}
    assert tree["confusions"]["whole"][0].keys() == {"label", "prediction", "pixels", "share"}


def test_the_mean_follows_the_protocols_policy_for_absent_classes():
    one = report()
    scores = one.scores["whole"]
    assert one.mean_iou("whole") == scores.mean_iou
    assert one.mean_iou("encoding") == scores.mean_iou_absent_zero == pytest.approx(scores.mean_iou * 3 / 4)
    text = printed(one.summary())
    assert "count 0" in text
    assert "skipped" in text
    assert f"{100 * scores.mean_iou_absent_zero:.2f}" in text
    assert "encoding: many" in text


def test_tables_name_what_is_there():
    text = printed(report().table())
    for part in ("whole IoU", "encoding IoU", "moon", "7 images"):
        assert part in text
    assert "accuracy" not in text
    for single in (report().table("whole"), report(scores={"whole": report().scores["whole"]}).table()):
        text = printed(single)
        for part in ("protocol: whole)", "accuracy", "Dice", "boundary IoU", "boundary F"):
            assert part in text
    first = report().confusions["whole"][0]
    assert f"{first.pixels:,}" in printed(report().confusion_table())


def test_comparing_two_reports():
    one, other = report(0), report(1)
    change = one.scores["whole"].class_iou[0] - other.scores["whole"].class_iou[0]
    text = printed(one.comparison(other))
    assert f"{100 * change:+.2f}" in text
    assert one.caveats(other) == []
    beside = dataclasses.replace(other, split="test", methods={"whole": Method("zero", "another")})
    assert one.caveats(beside) == ["split test there and val here", "protocol whole with other settings",
                                   "protocol encoding with other settings"]  # fmt: skip
    with pytest.raises(DatasetError, match="different classes"):
        one.comparison(dataclasses.replace(other, classes=("a", "b", "c", "d")))
    with pytest.raises(DatasetError, match="share no protocol: mmseg there"):
        one.comparison(dataclasses.replace(other, scores={"mmseg": other.scores["whole"]}))


def test_files_that_are_no_reports(tmp_path):
    with pytest.raises(DatasetError, match="cannot read report"):
        EvalReport.load(tmp_path / "none.json")
    for content in (
        "",
        "{",
        "[]",
        '{"classes": ["a"]}',
        '{"model": "x", "classes": [], "scores": {"whole": {}}}',
        "[" * 100_000,
    ):
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(DatasetError, match="is not a report of this version"):
            EvalReport.load(tmp_path / "bad.json")
