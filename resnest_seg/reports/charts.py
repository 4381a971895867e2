"""Charts as SVG from plain numbers: lines, bars, confusion matrices, reliability diagrams.

Colours are Okabe and Ito's that stand out on white, and every line has a pattern of dashes besides, so nothing is told
by colour alone. Shares are painted in cividis, dark for many. The script of the page adds the values under the pointer.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple
from xml.etree.ElementTree import Element

import cv2
import numpy as np

from resnest_seg.evaluation.calibration import CalibrationReport
from resnest_seg.reports.page import Child, element

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#1b1b1f")
"""Colours of lines, in turn; each contrasts with white by 3:1 or more."""

DASHES = (None, "7 3", "2 3", "9 3 2 3")
"""Patterns of lines, in turn: neighbours differ in both, and twenty lines in one of the two."""

MOST_POINTS = 1000
"""Points of a line; longer ones are thinned."""

BLANK = 0.005
"""Cells of a matrix with a smaller share are left blank."""

_HUGE = 1e100  # numbers beyond it are damaged

Point = tuple[float, float | None]
"""x and y; None where there is no value, at which a line breaks."""


class Series(NamedTuple):
    """A line of a chart.

    Attributes:
        name: Its name.
        points: By ascending x.
    """

    name: str
    points: Sequence[Point]


class _Plot(NamedTuple):
    """Where values are on a chart: the rectangle in pixels, and the values at its edges."""

    left: float
    top: float
    right: float
    bottom: float
    x: tuple[float, float]
    y: tuple[float, float]
    log: bool

    def place(self, x: float, y: float) -> tuple[float, float]:
        across = (x - self.x[0]) / (self.x[1] - self.x[0])
        low, high = self.y
        up = math.log(y / low) / math.log(high / low) if self.log else (y - low) / (high - low)
        return self.left + across * (self.right - self.left), self.bottom - up * (self.bottom - self.top)


def thinned(points: Sequence[Point], limit: int = MOST_POINTS) -> list[Point]:
    """Return at most `limit` of the points, at least 4: the first, the last, and the extremes of equal stretches."""
    if len(points) <= limit:
        return list(points)
    stretches = (limit - 2) // 2
    kept = {0, len(points) - 1}
    for place in range(stretches):
        stretch = range(len(points) * place // stretches, len(points) * (place + 1) // stretches)
        known = [(y, index) for index in stretch if (y := points[index][1]) is not None and math.isfinite(y)]
        if known:
            kept |= {min(known)[1], max(known)[1]}
    return [points[index] for index in sorted(kept)]


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return round numbers at equal distances that reach from `low` or below to `high` or above, about `count`."""
    size = max(abs(low), abs(high))
    span = high - low if high - low > max(1e-9 * size, 1e-10) else 0.0  # else it is one value
    span = span or (size if size > 1e-10 else 1.0)
    step = 10.0 ** math.floor(math.log10(span / count))
    step = next(step * factor for factor in (1, 2, 2.5, 5, 10) if span / (step * factor) <= count)
    first, last = math.floor(low / step + 1e-9), math.ceil(max(high, low + span / 2) / step - 1e-9)
    return [round(index * step, 12) for index in range(first, max(last, first + 1) + 1)]


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    x_name: str,
    bounds: tuple[float, float] | None = None,
    log: bool = False,
    shown: Sequence[bool] | None = None,
    note: str = "",
) -> Element:
    """Draw lines, with a toggle for each where there are several.

    Args:
        series: The lines; points without a finite value, or not above 0 on a logarithmic axis, are gaps.
        title: What y is.
        x_name: What x is.
        bounds: The values of y at the edges; None takes round numbers around what there is.
        log: The axis of y is logarithmic.
        shown: Which lines are visible at first; None for all.
        note: A line below.
    """
    lines = [Series(one.name, thinned(_clean(one.points, log=log))) for one in series]
    xs = [x for one in lines for x, _ in one.points]
    ys = [y for one in lines for _, y in one.points if y is not None]
    if not ys:
        return element("figure", {"class": "chart"}, element("h3", None, title), element("p", None, "No values yet."))
    plot = _plot(xs, ys, bounds, log=log)
    numbers = (plot.left, plot.top, plot.right, plot.bottom, *plot.x, *plot.y)
    attributes = {
        "viewBox": "0 0 480 240",
        "role": "img",
        "tabindex": 0,
        "aria-label": f"{title} by {x_name}: {', '.join(one.name for one in lines[:8])}"
        f"{' and more' if len(lines) > 8 else ''}. Arrow keys show the values.",
        "data-plot": " ".join(f"{value:.10g}" for value in numbers),
        "data-log": True if log else None,
        "data-axis": x_name,
    }
    guide = {"class": "guide off", "y1": plot.top, "y2": plot.bottom, "stroke": "#55555f", "stroke-dasharray": "3 3"}
    paths = [path for place, one in enumerate(lines) for path in _line(one, plot, place)]
    svg = element("svg", attributes, *_axes(plot, x_name), *paths, element("line", guide))
    scale = " (logarithmic)" if log else ""
    readout = element("p", {"class": "readout", "aria-live": "polite"}, note)
    legend = _legend([one.name for one in lines], shown)
    return element(
        "figure", {"class": "chart lines"}, element("h3", None, title + scale), svg, readout,
        element("figcaption", None, legend),
    )  # fmt: skip


def _clean(points: Sequence[Point], *, log: bool) -> list[Point]:
    """Leave out what no axis holds."""
    return [
        (x, y if y is not None and abs(y) < _HUGE and (y > 0 or not log) else None)  # not NaN, either
        for x, y in points
        if abs(x) < _HUGE
    ]


def _plot(xs: Sequence[float], ys: Sequence[float], bounds: tuple[float, float] | None, *, log: bool) -> _Plot:
    low, high = min(xs), max(xs)
    low = 0.0 if 0 < low < high / 5 else low
    across = (low, high) if high > low else (low - 0.5, high + 0.5)
    if log:
        up = (10.0 ** math.floor(math.log10(min(ys))), 10.0 ** math.ceil(math.log10(max(ys)) + 1e-9))
    else:
        marks = ticks(min(ys), max(ys))
        up = bounds if bounds is not None else (marks[0], marks[-1])
    return _Plot(56, 12, 470, 200, across, up, log)


def _axes(plot: _Plot, x_name: str) -> list[Element]:
    made = []
    low, high = plot.y
    marks = ticks(low, high)
    if plot.log:
        decades = range(round(math.log10(low)), round(math.log10(high)) + 1)
        marks = [10.0**power for power in decades][:: max(len(decades) // 6, 1)]
    for mark in marks:
        if low - 1e-12 <= mark <= high + 1e-12:
            _, y = plot.place(plot.x[0], mark)
            line = {"x1": plot.left, "x2": plot.right, "y1": f"{y:.2f}", "y2": f"{y:.2f}", "stroke": "#c9c9d2"}
            made += [element("line", line), _text(plot.left - 6, y + 4, _number(mark), anchor="end")]
    for mark in ticks(*plot.x):
        if plot.x[0] - 1e-9 <= mark <= plot.x[1] + 1e-9:
            x, _ = plot.place(mark, low)
            line = {"x1": f"{x:.2f}", "x2": f"{x:.2f}", "y1": plot.bottom, "y2": plot.bottom + 4, "stroke": "#55555f"}
            made += [element("line", line), _text(x, plot.bottom + 17, _number(mark), anchor="middle")]
    frame = {"d": f"M{plot.left},{plot.top}V{plot.bottom}H{plot.right}", "fill": "none", "stroke": "#55555f"}
    made += [element("path", frame), _text((plot.left + plot.right) / 2, plot.bottom + 35, x_name, anchor="middle")]
    return made


def _line(series: Series, plot: _Plot, place: int) -> list[Element]:
    """The path of a line, and dots where points are few or alone."""
    steps, pen = [], "M"
    for x, y in series.points:
        if y is None:
            pen = "M"
            continue
        across, up = plot.place(x, y)
        steps.append(f"{pen}{across:.4f},{up:.4f}")  # the page reads values back from them
        pen = "L"
    style = {"fill": "none", "stroke": COLORS[place % len(COLORS)], "data-line": place}
    dashes = DASHES[place % len(DASHES)]
    line = {**style, "class": "series", "data-name": series.name, "d": "".join(steps), "stroke-width": 1.8,
            "stroke-dasharray": dashes, "stroke-linejoin": "round"}  # fmt: skip
    made = [element("path", line)]
    if len(steps) <= 60:
        dots = "".join(f"{step.replace('L', 'M')}h.01" for step in steps)
        made.append(element("path", {**style, "d": dots, "stroke-width": 5, "stroke-linecap": "round"}))
    return made


def _legend(names: Sequence[str], shown: Sequence[bool] | None) -> Element:
    """What the lines are: toggles, or one name."""
    samples = [_sample(place) for place in range(len(names))]
    if len(names) == 1:
        return element("div", {"class": "list"}, element("span", None, samples[0], names[0]))
    labels = []
    for place, (name, sample) in enumerate(zip(names, samples, strict=True)):
        checked = shown is None or shown[place]
        box = element("input", {"type": "checkbox", "data-series": place, "checked": checked})
        labels.append(element("label", None, box, sample, name))
    listed: list[Child] = [element("legend", None, "lines"), element("div", {"class": "list"}, *labels)]
    if len(names) > 5:
        listed[1:1] = [
            element("button", {"type": "button", "class": "every"}, "all"),
            element("button", {"type": "button", "class": "none"}, "none"),
        ]
    return element("fieldset", {"class": "toggles"}, *listed)


def _sample(place: int) -> Element:
    line = {"x1": 0, "x2": 26, "y1": 5, "y2": 5, "stroke": COLORS[place % len(COLORS)], "stroke-width": 2.5,
            "stroke-dasharray": DASHES[place % len(DASHES)]}  # fmt: skip
    frame = {"class": "swatch", "viewBox": "0 0 26 10", "width": 26, "height": 10, "aria-hidden": "true"}
    return element("svg", frame, element("line", line))


def bar(share: float, *, place: int = 0) -> Element:
    """Draw a bar of a share 0..1 in the colour of line `place`, for a cell beside its number."""
    back = {"width": 100, "height": 10, "fill": "#e4e4ea"}
    front = {"width": f"{100 * min(max(share, 0), 1):.2f}", "height": 10, "fill": COLORS[place % len(COLORS)]}
    frame = {"class": "bar", "viewBox": "0 0 100 10", "width": 100, "height": 10, "aria-hidden": "true"}
    return element("svg", frame, element("rect", back), element("rect", front))


WAYS = {"truth": "by truth: rows sum to 100 %", "predicted": "by prediction: columns sum to 100 %"}
"""Ways in which a confusion matrix is normalised -> in words."""


def matrix_shares(counts: Sequence[Sequence[int]], way: str) -> list[list[float | None]]:
    """Normalise a confusion matrix: rows are truth, columns predictions.

    Args:
        counts: [K, K].
        way: One of `WAYS`.

    Returns:
        [K, K] shares 0..1; None where the class has no pixel to divide by.
    """
    rows = [sum(row) for row in counts]
    columns = [sum(row[column] for row in counts) for column in range(len(counts))]
    return [
        [
            count / whole if (whole := rows[row] if way == "truth" else columns[column]) else None
            for column, count in enumerate(line)
        ]
        for row, line in enumerate(counts)
    ]


def matrix_chart(
    counts: Sequence[Sequence[int]], names: Sequence[str], *, title: str, section: str, name: str
) -> Element:
    """Draw a confusion matrix both ways, of which a page shows one; the page's data has names and counts.

    Args:
        counts: [K, K]; rows are truth, columns predictions.
        names: Of the classes.
        title: Its heading.
        section: Id of the section's data, which maps `name` to names and counts.
        name: Of the matrix there.
    """
    radios, pictures = [], []
    for place, (way, text) in enumerate(WAYS.items()):
        radio = {"type": "radio", "name": f"{section}-{name}", "value": way, "checked": place == 0}
        radios.append(element("label", None, element("input", radio), text))
        pictures.append(element("div", {"data-way": way}, _matrix(matrix_shares(counts, way), names, text)))
    area = {"class": "scroll tall", "tabindex": 0, "role": "region", "aria-label": title}
    legend = element("legend", None, "normalised")
    choice = element("fieldset", {"class": "toggles"}, legend, element("div", {"class": "list"}, *radios))
    readout = element("p", {"class": "readout", "aria-live": "polite"}, "Point at a cell to read its values here.")
    return element(
        "figure", {"class": "matrix", "data-from": f"{section}-data", "data-name": name}, element("h3", None, title),
        choice, readout, element("div", area, *pictures), _scale(),
    )  # fmt: skip


def _matrix(shares: Sequence[Sequence[float | None]], names: Sequence[str], way: str) -> Element:
    count = len(names)
    size = 34 if count <= 12 else 26 if count <= 30 else 12
    font = 11 if count <= 30 else 9
    short = [name if len(name) <= 22 else f"{name[:21]}…" for name in names]
    margin = 26 + math.ceil(max(map(len, short)) * font * 0.62)
    whole = margin + count * size + 8
    made = [
        _text(14, margin + count * size / 2, "truth", anchor="middle", turn=True, bold=True),
        _text(margin + count * size / 2, 14, "predicted", anchor="middle", bold=True),
    ]
    for place, text in enumerate(short):
        middle = margin + (place + 0.5) * size
        made.append(_text(margin - 5, middle + font * 0.35, text, anchor="end", size=font))
        made.append(_text(middle + font * 0.35, margin - 5, text, turn=True, size=font))
    frame = {
        "x": margin,
        "y": margin,
        "width": count * size,
        "height": count * size,
        "fill": "#fff",
        "stroke": "#84848e",
    }
    made.append(element("rect", frame))
    for row, line in enumerate(shares):
        for column, share in enumerate(line):
            if share is not None and share >= BLANK:
                corner = margin + column * size, margin + row * size
                words = f"truth {names[row]}, predicted {names[column]}: {100 * share:.1f} %"
                made += _cell(share, corner, size, words if count <= 30 else "")
    made.append(element("rect", {"class": "cursor off", "width": size, "height": size, "fill": "none",
                                 "stroke": "#d55e00", "stroke-width": 2.5}))  # fmt: skip
    label = f"confusion matrix {way}; rows are truth, columns are predictions. Arrow keys choose a cell."
    attributes = {"viewBox": f"0 0 {whole} {whole}", "width": whole, "height": whole, "role": "img", "tabindex": 0,
                  "aria-label": label, "data-grid": f"{margin} {margin} {size}"}  # fmt: skip
    return element("svg", attributes, *made)


def _cell(share: float, corner: tuple[int, int], size: int, words: str) -> list[Element]:
    x, y = corner
    color = share_color(share)
    square = {"x": x, "y": y, "width": size, "height": size, "fill": color}
    title = [element("title", None, words)] if words else []
    made = [element("rect", square, *title)]
    if words:
        dark = _luminance(color) < 0.18  # so that white has the better contrast
        middle = {"x": x + size / 2, "y": y + size / 2 + 4, "text-anchor": "middle", "font-size": 10,
                  "class": "light" if dark else None, "pointer-events": "none"}  # fmt: skip
        made.append(element("text", middle, f"{100 * share:.0f}"))
    return made


def share_color(share: float) -> str:
    """Return the colour of a share 0..1: cividis from yellow, for few, to dark blue."""
    return _cividis()[round(255 * (1 - min(max(share, 0), 1)))]


def _luminance(color: str) -> float:
    """Relative luminance of #rrggbb, 0..1, as WCAG 2.1 defines it."""
    channels = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    light = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * light[0] + 0.7152 * light[1] + 0.0722 * light[2]


@functools.cache
def _cividis() -> list[str]:
    colors = cv2.applyColorMap(np.arange(256, dtype=np.uint8), cv2.COLORMAP_CIVIDIS).reshape(-1, 3)
    return [f"#{red:02x}{green:02x}{blue:02x}" for blue, green, red in colors.tolist()]


def _scale() -> Element:
    """The colours of shares, as a caption."""
    squares = [
        element("rect", {"x": 8 * place, "width": 8, "height": 10, "fill": share_color(place / 24)})
        for place in range(25)
    ]
    frame = {"class": "swatch", "viewBox": "0 0 200 10", "width": 200, "height": 10, "aria-hidden": "true"}
    parts: tuple[Child, ...] = ("0 %", element("svg", frame, *squares), f"100 %; below {100 * BLANK:g} % is blank")
    return element("figcaption", {"class": "list"}, element("span", None, *parts))


def reliability_chart(report: CalibrationReport, *, title: str) -> Element:
    """Draw the accuracy of pixels by their confidence, beside the diagonal, and how many pixels there are."""
    left, top, side, below = 50.0, 12.0, 240.0, 60.0
    whole = sum(bin_.count for bin_ in report.bins)
    made = [
        _text(left + side / 2, top + side + below + 52, "confidence", anchor="middle"),
        _text(14, top + side / 2, "accuracy", anchor="middle", turn=True),
        _text(14, top + side + 24 + below / 2, "pixels", anchor="middle", turn=True),
    ]
    for mark in (0, 0.25, 0.5, 0.75, 1):
        y, x = top + side * (1 - mark), left + side * mark
        line = {"x1": left, "x2": left + side, "y1": y, "y2": y, "stroke": "#c9c9d2"}
        made += [element("line", line), _text(left - 6, y + 4, f"{mark:g}", anchor="end")]
        made.append(_text(x, top + side + below + 36, f"{mark:g}", anchor="middle"))
    for bin_ in report.bins:
        if bin_.accuracy is None or bin_.confidence is None:
            continue
        width = max(side * (bin_.high - bin_.low) - 1, 3)
        words = (
            f"confidence {bin_.low:.3g} to {bin_.high:.3g}: accuracy {bin_.accuracy:.4f}, mean confidence "
            f"{bin_.confidence:.4f}, {bin_.count:,} pixels"
        )
        for height, foot, color in (
            (side * bin_.accuracy, top + side, COLORS[0]),
            (below * bin_.count / max(whole, 1), top + side + 20 + below, "#84848e"),
        ):
            block = {"x": f"{left + side * bin_.low:.2f}", "y": f"{foot - height:.2f}", "width": f"{width:.2f}",
                     "height": f"{height:.2f}", "fill": color}  # fmt: skip
            made.append(element("rect", block, element("title", None, words)))
    diagonal = {"x1": left, "y1": top + side, "x2": left + side, "y2": top, "stroke": "#d55e00", "stroke-width": 1.8,
                "stroke-dasharray": "7 3"}  # fmt: skip
    made.append(element("line", diagonal))
    label = f"{title}: accuracy by confidence; perfect is the diagonal"
    svg = element("svg", {"viewBox": "0 0 300 380", "role": "img", "aria-label": label}, *made)
    errors = f"expected calibration error {100 * report.expected_calibration_error:.2f} %, maximum "
    words = f"{errors}{100 * report.maximum_calibration_error:.2f} %. Below the dashed line it is overconfident."
    return element(
        "figure", {"class": "chart square"}, element("h3", None, title), svg, element("figcaption", None, words)
    )


def _text(
    x: float, y: float, text: str, *, anchor: str = "start", turn: bool = False, size: int = 13, bold: bool = False
) -> Element:
    attributes: dict[str, object] = {"x": f"{x:.2f}", "y": f"{y:.2f}", "text-anchor": anchor, "font-size": size}
    if turn:
        attributes["transform"] = f"rotate(-90 {x:.2f} {y:.2f})"
    if bold:
        attributes["font-weight"] = 600
    return element("text", attributes, text)


def _number(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 1e5 else f"{value:.6g}"
