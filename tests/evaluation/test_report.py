"""Reports survive their files, and say what may be compared."""

import dataclasses
import json
import sys
from xml.etree import ElementTree

import pytest
import torch
from rich.console import Console

from resnest_seg.errors import ConfigError, DatasetError
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
        "matrices": {"whole": matrix.counts.tolist(), "encoding <b>": matrix.counts.tolist()},
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


def test_a_matrix_has_a_row_a_line_and_may_be_missing(tmp_path):
    one = report()
    text = one.to_json()
    for row in one.matrices["whole"]:
        assert f"\n      {row}" in text
    tree = json.loads(text)
    assert tree["matrices"] == one.matrices
    del tree["matrices"]  # as in reports of older versions
    (tmp_path / "old.json").write_text(json.dumps(tree))
    assert EvalReport.load(tmp_path / "old.json") == dataclasses.replace(one, matrices={})


@pytest.mark.parametrize(
    "matrix", [[[1, 2], [3, 4]], [[1] * 4] * 3, [[1] * 4] * 5, [[1.5] * 4] * 4, [[-1] * 4] * 4, [[True] * 4] * 4, {}, 7]
)
def test_what_is_no_matrix_is_refused(tmp_path, matrix):
    tree = json.loads(report().to_json())
    (tmp_path / "report.json").write_text(json.dumps({**tree, "matrices": {"whole": matrix}}))
    with pytest.raises(DatasetError, match=r"matrix of protocol 'whole' is not 4 x 4 counts"):
        EvalReport.load(tmp_path / "report.json")


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
    assert one.caveats(beside) == ["split test before and val now", "protocol whole with other settings",
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


HOSTILE = ("<b>sky", "road & $\\frac$", "_car", "moon</td>")


def test_a_notebook_shows_means_and_classes_with_their_names_escaped():
    one = report(classes=HOSTILE, model="a <script>")
    page = ElementTree.fromstring(one._repr_html_())  # raises where a name is not escaped
    assert page.find("p").text == "a <script>"
    means, classes = page.iterfind(".//table")
    rows = [[cell.text for cell in row] for row in classes.iterfind("tbody/tr")]
    assert [row[0] for row in rows] == list(HOSTILE)
    assert rows[0][1] == f"{100 * one.scores['whole'].class_iou[0]:.2f}"
    assert rows[3][1:] == ["-", "-", "0.00"]
    assert [cell.text for cell in means.find("thead/tr")] == [None, "whole", "encoding"]
    assert means.find("tbody/tr")[1].text == f"{100 * one.mean_iou('whole'):.2f}"
    assert classes.find("tfoot/tr")[2].text == f"{100 * one.mean_iou('encoding'):.2f}"


def test_a_plot_has_a_bar_for_every_class(pyplot, tmp_path):
    one = report(classes=HOSTILE)
    ax = one.plot()
    assert [tick.get_text() for tick in ax.get_yticklabels()] == list(HOSTILE)
    ious = one.scores["whole"].class_iou
    assert [bar.get_width() for bar in ax.patches] == [100 * (iou or 0) for iou in ious]
    assert [text.get_text() for text in ax.texts] == [f"{100 * iou:.2f}" for iou in ious[:3]] + ["absent"]
    assert ax.lines[0].get_xdata()[0] == 100 * one.mean_iou("whole")
    ax.figure.savefig(tmp_path / "plot.png")
    _, mine = pyplot.subplots()
    assert one.plot("encoding", ax=mine) is mine
    assert mine.lines[0].get_xdata()[0] == 100 * one.mean_iou("encoding")
    assert len(pyplot.get_fignums()) == 2
    with pytest.raises(ConfigError, match=r"unknown protocol of this report 'slide'.*whole, encoding"):
        one.plot("slide")


def test_a_plot_without_matplotlib_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ConfigError, match=r"needs matplotlib, .* pip install 'resnest-seg\[plot\]'"):
        report().plot()
