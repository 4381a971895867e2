"""Sections of a page about evaluations: means, scores by class, confusions, calibration, thresholds."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element

from resnest_seg.errors import command
from resnest_seg.evaluation.label_scores import ThresholdCurve
from resnest_seg.evaluation.report import EvalReport
from resnest_seg.reports.charts import Point, Series, bar, line_chart, matrix_chart, reliability_chart
from resnest_seg.reports.page import Cell, Section, element, table

MEANS = {
    "mean_iou": "mean IoU, absent classes skipped",
    "mean_iou_absent_zero": "mean IoU, absent classes count 0",
    "pixel_accuracy": "pixel accuracy",
    "mean_accuracy": "mean accuracy of classes",
    "frequency_weighted_iou": "frequency weighted IoU",
    "mean_dice": "mean Dice",
}
"""Attribute of `Scores` -> its name on the page."""


class Evaluated(NamedTuple):
    """An evaluation that a page shows.

    Attributes:
        name: Of the run.
        report: Its scores.
        protocol: The one that tables by class and images are of.
        file: Where the report was read.
        images: The file of scores by image, if there is one.
        own_network: The run's encoder or head is its author's own.
    """

    name: str
    report: EvalReport
    protocol: str
    file: Path
    images: Path | None
    own_network: bool = False


def scores_section(found: Sequence[Evaluated], comparison: Sequence[Element] = ()) -> Section:
    """Means by protocol, and scores by class.

    Args:
        found: One evaluation a run, of the same classes.
        comparison: Elements that say how the runs differ.
    """
    lines = [_settings(one) for one in found]
    protocol = found[0].protocol
    alike = [one for one in found if one.protocol == protocol]
    by_class = _classes_of_one(found[0]) if len(alike) == 1 else _classes_of_several(alike)
    body = [
        *lines,
        _means(found),
        *comparison,
        element("h3", None, f"By class (protocol {protocol})"),
        *(_left_out(one, found[0]) for one in found if one.protocol != protocol),
        by_class,
    ]
    if any(one.report.labels for one in alike):
        body += [element("h3", None, "Labels at the thresholds of the model"), _labels(alike)]
    return Section("scores", "Scores", body)


def _left_out(one: Evaluated, first: Evaluated) -> Element:
    """Why a run is not in the tables by class, and what brings it there."""
    protocol = first.protocol
    text = (
        f"{one.name} is left out: it was evaluated by protocol {', '.join(one.report.scores)} and not by {protocol}. "
        "Scores by two protocols do not tell models apart. Evaluate it by the same: "
    )
    by_the_same = (
        f"{command('eval')} --checkpoint {shlex.quote(str(one.file.parent))} --protocols {protocol} "
        f"--split {first.report.split}{' --model FILE.py:FUNCTION' * one.own_network}"
    )
    return element("p", {"class": "note"}, text, element("code", None, by_the_same))


def percent(value: float | None) -> Cell:
    """A share 0..1 as a cell in percent."""
    return Cell("-", None, number=True) if value is None else Cell(f"{100 * value:.2f}", value, number=True)


def _barred(value: float | None, place: int = 0) -> Cell:
    if value is None:
        return Cell("absent", None, number=True)
    return Cell("", value, (f"{100 * value:.2f}", bar(value, place=place)), number=True)


def _settings(one: Evaluated) -> Element:
    """What was evaluated and how, as figures may only be compared that are of one protocol."""
    report, parts = one.report, []
    for name in report.scores:
        method = report.methods.get(name)
        parts.append(name if method is None else f"{method.description}")
    what = f"{report.dataset} {report.split}, {report.images} images; {report.model}, {report.precision}"
    return element(
        "p", None, element("strong", None, one.name), f": {what}. Protocol: {'; '.join(parts)}. From {one.file.name}."
    )


def _means(found: Sequence[Evaluated]) -> Element:
    columns = [(one, name) for one in found for name in one.report.scores]
    several = len(found) > 1
    heads = [f"{one.name}, {name}" if several else name for one, name in columns]
    rows: list[list[Cell | str]] = []
    for key, text in MEANS.items():
        rows.append([text, *(percent(getattr(one.report.scores[name], key)) for one, name in columns)])
    for text, key in (("mean boundary IoU", "mean_boundary_iou"), ("mean boundary F-score", "mean_boundary_f")):
        if any(one.report.boundaries for one in found):
            rows.append(
                [text, *(percent(getattr(one.report.boundaries.get(name), key, None)) for one, name in columns)]
            )
    if any(one.report.calibration for one in found):
        key = "expected_calibration_error"
        cells = [percent(getattr(one.report.calibration.get(name), key, None)) for one, name in columns]
        rows.append(["expected calibration error", *cells])
    if any(one.report.labels for one in found):
        key = "mean_average_precision"
        cells = [percent(getattr(one.report.labels.get(name), key, None)) for one, name in columns]
        rows.append(["mean average precision", *cells])
    return table(["in %", *heads], rows, label="means by protocol")


def _classes_of_one(one: Evaluated) -> Element:
    """IoU as bars, by every protocol, further scores of the first, and the share of pixels."""
    report, scores = one.report, one.report.scores[one.protocol]
    others = [name for name in report.scores if name != one.protocol]
    boundary = report.boundaries.get(one.protocol)
    heads = ["class", "IoU %", *(f"IoU % ({name})" for name in others), "accuracy %", "Dice %"]
    heads += ["boundary IoU %", "boundary F %"] if boundary is not None else []
    rows = []
    for label, name in enumerate(report.classes):
        cells: list[Cell | str] = [name, _barred(scores.class_iou[label])]
        cells += [percent(report.scores[other].class_iou[label]) for other in others]
        cells += [percent(scores.class_accuracy[label]), percent(scores.class_dice[label])]
        if boundary is not None:
            cells += [percent(boundary.class_boundary_iou[label]), percent(boundary.class_boundary_f[label])]
        rows.append([*cells, _barred(scores.class_share[label], 4)])
    return table([*heads, "share of pixels %"], rows, label="scores by class", sortable=True)


def _classes_of_several(found: Sequence[Evaluated]) -> Element:
    """IoU of every run as bars, and the change from the first one."""
    first = found[0].report
    heads = ["class", *(f"{one.name} IoU %" for one in found)]
    heads += [f"{one.name} - {found[0].name}, points" for one in found[1:]]
    rows = []
    for label, name in enumerate(first.classes):
        ious = [one.report.scores[one.protocol].class_iou[label] for one in found]
        cells: list[Cell | str] = [name, *(_barred(iou, place) for place, iou in enumerate(ious))]
        cells += [_points(ious[0], iou) for iou in ious[1:]]
        rows.append([*cells, _barred(first.scores[found[0].protocol].class_share[label], 4)])
    return table([*heads, "share of pixels %"], rows, label="IoU by class and run", sortable=True)


def _points(before: float | None, now: float | None) -> Cell:
    if before is None or now is None:
        return Cell("-", None, number=True)
    return Cell(f"{100 * (now - before):+.2f}", now - before, number=True)


def _labels(found: Sequence[Evaluated]) -> Element:
    heads = ["label", "threshold", "IoU %", "F1 %", "precision %", "recall %", "average precision %", "best threshold"]
    rows: list[list[Cell | str]] = []
    for one in found:
        if one.protocol not in one.report.labels:
            continue
        scores = one.report.labels[one.protocol]
        before = f"{one.name}: " if len(found) > 1 else ""
        for name, label in zip([*one.report.classes, "all pooled"], [*scores.labels, scores.micro], strict=True):
            parts = (label.iou, label.f1, label.precision, label.recall, label.average_precision)
            best = "-" if label.best_threshold is None else f"{label.best_threshold:.3f}"
            threshold = Cell(f"{label.threshold:.3f}", label.threshold, number=True)
            last = Cell(best, label.best_threshold, number=True)
            rows.append([f"{before}{name}", threshold, *map(percent, parts), last])
    return table(heads, rows, label="scores by label", sortable=True)


def confusion_section(found: Sequence[Evaluated]) -> Section | None:
    """The whole confusion matrix of each run; None where no report holds one."""
    anchor, blocks, data = "confusion", list[Element](), {}
    for place, one in enumerate(found):
        counts = one.report.matrices.get(one.protocol)
        if counts is None:
            continue
        name, names = f"run{place}", list(one.report.classes)
        data[name] = {"names": names, "counts": [list(row) for row in counts]}
        parts = [matrix_chart(counts, names, title=f"{one.name}, {one.protocol}", section=anchor, name=name)]
        pairs = one.report.confusions.get(one.protocol, ())
        rows: list[list[Cell | str]] = [
            [names[pair.label], names[pair.prediction], Cell(f"{pair.pixels:,}", pair.pixels, number=True),
             percent(pair.share)]
            for pair in pairs
        ]  # fmt: skip
        if rows:
            heads = ["class", "taken for", "pixels", "% of the class"]
            parts.append(element("h3", None, f"Most frequent confusions of {one.name}"))
            parts.append(table(heads, rows, label=f"confusions of {one.name}"))
        blocks.append(element("div", None, *parts))
    if not blocks:
        return None
    beside = all(len(one.report.classes) <= 30 for one in found)  # else each takes the whole width
    grid = element("div", {"class": "charts" if beside else None}, *blocks)
    return Section(anchor, "Confusion matrix", [grid], data)


def calibration_section(found: Sequence[Evaluated]) -> Section | None:
    """Reliability diagrams and their numbers, where calibration was measured."""
    charts, tables = [], []
    for one in found:
        for name, report in one.report.calibration.items():
            title = f"{one.name}, {name}"
            charts.append(reliability_chart(report, title=title))
            rows: list[list[Cell | str]] = [
                [f"{bin_.low:.3g} to {bin_.high:.3g}", percent(bin_.confidence), percent(bin_.accuracy),
                 Cell(f"{bin_.count:,}", bin_.count, number=True)]
                for bin_ in report.bins
            ]  # fmt: skip
            heads = ["confidence", "mean confidence %", "accuracy %", "pixels"]
            numbers = table(heads, rows, label=f"reliability of {title}")
            tables.append(element("details", None, element("summary", None, f"Table of {title}"), numbers))
    if not charts:
        return None
    return Section("calibration", "Reliability", [element("div", {"class": "charts"}, *charts), *tables])


def threshold_section(found: Sequence[Evaluated]) -> Section | None:
    """Scores of labels at every threshold, of binary and multi-label tasks."""
    charts = []
    for one in found:
        scores = one.report.labels.get(one.protocol)
        if scores is None:
            continue
        for name, label, curves in zip(one.report.classes, scores.labels, scores.curves, strict=False):
            lines = [
                Series("IoU", _points_of(curves, curves.iou)),
                Series("F1", _f1(curves)),
                Series("precision", _points_of(curves, curves.precision)),
                Series("recall", _points_of(curves, curves.recall)),
            ]
            title = f"{one.name}: {name}" if len(found) > 1 else name
            best = "" if label.best_threshold is None else f"; the best on these images is {label.best_threshold:.3f}"
            note = f"The model's threshold is {label.threshold:.3f}{best}."
            charts.append(line_chart(lines, title=title, x_name="threshold", bounds=(0, 1), note=note))
    return Section("thresholds", "Thresholds", [element("div", {"class": "charts"}, *charts)]) if charts else None


def _points_of(curve: ThresholdCurve, values: Sequence[float | None]) -> list[Point]:
    return list(zip(curve.thresholds, values, strict=True))


def _f1(curve: ThresholdCurve) -> list[Point]:
    """F1 is 2 IoU / (1 + IoU)."""
    return [
        (x, None if iou is None else 2 * iou / (1 + iou)) for x, iou in zip(curve.thresholds, curve.iou, strict=True)
    ]
