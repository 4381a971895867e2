"""Charts: the numbers are read back from the SVG and compared with what was drawn."""

import itertools
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.functional.classification import multiclass_confusion_matrix

from resnest_seg.evaluation.calibration import CalibrationReport, ReliabilityBin
from resnest_seg.reports.charts import (
    BLANK,
    COLORS,
    Series,
    bar,
    line_chart,
    matrix_chart,
    matrix_shares,
    reliability_chart,
    share_color,
    thinned,
    ticks,
)


def lines_of(figure):
    """Name -> points in the units of the data, as the page's script computes them."""
    svg = next(part for part in figure.iter("svg") if part.get("data-plot"))
    left, top, right, bottom, x0, x1, y0, y1 = map(float, svg.get("data-plot").split())
    found = {}
    for path in svg.iter("path"):
        if path.get("class") != "series":
            continue
        points = []
        for pen, x, y in re.findall(r"([ML])([-\d.]+),([-\d.]+)", path.get("d")):
            up = (bottom - float(y)) / (bottom - top)
            value = y0 * (y1 / y0) ** up if svg.get("data-log") is not None else y0 + up * (y1 - y0)
            points.append((pen, x0 + (float(x) - left) / (right - left) * (x1 - x0), value))
        found[path.get("data-name")] = points
    return found


@pytest.mark.parametrize("log", [False, True])
def test_lines_are_where_their_numbers_are(log):
    random = np.random.default_rng(0)
    values = 10 ** random.uniform(-3, 2, (2, 50))
    series = [Series(name, list(enumerate(row.tolist()))) for name, row in zip("ab", values, strict=True)]
    found = lines_of(line_chart(series, title="loss", x_name="epoch", log=log))
    for one in series:
        drawn = np.array([point[1:] for point in found[one.name]])
        expected = np.array(one.points)
        assert np.abs(drawn[:, 0] - expected[:, 0]).max() < 1e-4
        scale = expected[:, 1] if log else values.max()
        assert (np.abs(drawn[:, 1] - expected[:, 1]) / scale).max() < 1e-5


def test_a_line_breaks_where_there_is_no_number():
    points = [(0, 1.0), (1, None), (2, 2.0), (3, math.nan), (4, 3.0), (5, 4.0)]
    (drawn,) = lines_of(line_chart([Series("a", points)], title="t", x_name="x")).values()
    assert [pen for pen, _, _ in drawn] == ["M", "M", "M", "L"]
    empty = line_chart([Series("a", [(0, None)])], title="t", x_name="x")
    assert "No values yet." in [part.text for part in empty.iter("p")]


def test_lines_differ_in_more_than_their_colour():
    figure = line_chart([Series(str(k), [(0, 0.0), (1, 1.0)]) for k in range(20)], title="t", x_name="x")
    paths = [path for path in figure.iter("path") if path.get("data-name")]
    looks = [(path.get("stroke"), path.get("stroke-dasharray")) for path in paths]
    assert len(set(looks)) == 20
    assert {color for color, _ in looks} == set(COLORS)
    assert len({dashes for _, dashes in looks[:4]}) == 4


@pytest.mark.parametrize("color", COLORS)
def test_colours_of_lines_stand_out_on_white(color):
    """WCAG 2.1, 1.4.11: a contrast of 3 for graphics."""
    channels = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    light = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    assert 1.05 / (0.2126 * light[0] + 0.7152 * light[1] + 0.0722 * light[2] + 0.05) >= 2.99


@given(st.integers(1, 400), st.integers(4, 50), st.integers(0, 1000))
def test_thinned_lines_keep_ends_and_extremes(count, limit, seed):
    values = np.random.default_rng(seed).normal(size=count).tolist()
    points = list(enumerate(values))
    kept = thinned(points, limit)
    assert len(kept) <= max(limit, 4)
    assert kept[0] == points[0]
    assert kept[-1] == points[-1]
    assert set(kept) <= set(points)
    assert [x for x, _ in kept] == sorted({x for x, _ in kept})
    assert min(y for _, y in kept) == min(values)
    assert max(y for _, y in kept) == max(values)


@given(st.floats(-1e9, 1e9), st.floats(0, 1e9).filter(lambda span: span == 0 or span > 1e-5))
def test_ticks_reach_around_what_there_is(low, span):
    marks = ticks(low, low + span)
    assert 2 <= len(marks) <= 12
    steps = np.diff(marks)
    assert np.allclose(steps, steps[0], rtol=1e-5)
    assert marks[0] <= low + steps[0] * 1e-6
    assert marks[-1] >= low + span - steps[0] * 1e-6


def test_an_axis_of_one_value_is_near_it():
    assert ticks(0.01, 0.01)[-1] < 0.03
    assert ticks(-5, -5)[0] >= -10
    assert ticks(0, 0) == [0.0, 0.2, 0.4, 0.6]


@pytest.mark.filterwarnings("ignore:5 NaN values found in confusion matrix")
def test_shares_of_a_matrix_are_those_of_torchmetrics():
    random = np.random.default_rng(1)
    truth, found = random.integers(0, 5, 400), random.integers(0, 4, 400)
    truth[truth == 3] = 0  # a class without truth, one without prediction
    both = torch.from_numpy(found), torch.from_numpy(truth)
    counts = multiclass_confusion_matrix(*both, 5).numpy()
    for way, normalize, axis in (("truth", "true", 1), ("predicted", "pred", 0)):
        expected = multiclass_confusion_matrix(*both, 5, normalize=normalize).numpy()
        whole = counts.sum(axis=axis, keepdims=True)
        expected = np.where(np.broadcast_to(whole, counts.shape) > 0, expected, np.nan)
        np.testing.assert_allclose(np.array(matrix_shares(counts.tolist(), way), dtype=float), expected, rtol=1e-6)


@pytest.mark.parametrize("classes", [3, 150])
def test_cells_of_a_matrix_have_the_colours_of_their_shares(classes):
    random = np.random.default_rng(2)
    counts = random.integers(0, 3, (classes, classes)) + np.diag(random.integers(50, 900, classes))
    names = [f"class {k}" for k in range(classes)]
    figure = matrix_chart(counts.tolist(), names, title="t", section="s", name="n")
    pictures = [svg for svg in figure.iter("svg") if svg.get("data-grid")]
    assert len(pictures) == 2
    for svg, axis in zip(pictures, (1, 0), strict=True):
        margin, _, size = map(int, svg.get("data-grid").split())
        shares = counts / counts.sum(axis=axis, keepdims=True)
        drawn = {}
        for rect in svg.iter("rect"):
            if rect.get("fill") not in ("none", "#fff"):
                place = [(int(rect.get(key)) - margin) / size for key in ("y", "x")]
                drawn[int(place[0]), int(place[1])] = rect.get("fill")
        assert set(drawn) == {(int(row), int(column)) for row, column in np.argwhere(shares >= BLANK)}
        assert all(share_color(shares[cell]) == color for cell, color in drawn.items())
        labels = [text.text for text in svg.iter("text")]
        assert {*names, "truth", "predicted"} <= set(labels)


def test_colours_of_shares_grow_darker_evenly():
    light = [
        sum(int(share_color(k / 20)[i : i + 2], 16) * w for i, w in ((1, 0.3), (3, 0.59), (5, 0.11))) for k in range(21)
    ]
    assert all(before > after for before, after in itertools.pairwise(light))


def test_the_diagram_of_reliability_has_the_numbers_of_its_bins():
    bins = (
        ReliabilityBin(0.0, 0.5, 0, None, None),
        ReliabilityBin(0.5, 1.0, 300, 0.25, 0.75),
        ReliabilityBin(1.0, 1.0, 100, 0.9, 1.0),
    )
    figure = reliability_chart(CalibrationReport(0.4, 0.5, bins), title="r")
    blocks = [rect for rect in figure.iter("rect") if rect.get("fill") == COLORS[0]]
    svg_side = 240
    assert [float(rect.get("height")) / svg_side for rect in blocks] == pytest.approx([0.25, 0.9])
    words = [title.text for title in figure.iter("title")]
    assert words[0] == "confidence 0.5 to 1: accuracy 0.2500, mean confidence 0.7500, 300 pixels"
    assert "expected calibration error 40.00 %" in "".join(figure.itertext())


def test_a_bar_is_as_long_as_its_share():
    back, front = bar(0.375).iter("rect")
    assert float(front.get("width")) / float(back.get("width")) == 0.375
