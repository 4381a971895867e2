"""`EvalReport`: the scores of an evaluation by protocol, with all settings needed to compare them; tables and JSON."""

from __future__ import annotations

import dataclasses
import html
import itertools
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from resnest_seg.errors import DatasetError, load_extra, unknown_name
from resnest_seg.evaluation.boundaries import BoundaryReport
from resnest_seg.evaluation.calibration import CalibrationReport, ReliabilityBin
from resnest_seg.evaluation.label_scores import LabelScores
from resnest_seg.evaluation.metrics import Confusion, Scores
from resnest_seg.files import atomic_write
from resnest_seg.io.display import PlainTable, table_html

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Method(NamedTuple):
    """The settings of a protocol.

    Attributes:
        absent: Policy of its mean IoU for classes absent from labels and predictions: "skipped" or "zero".
        description: Scales, windows and merging in one line.
    """

    absent: str
    description: str


@dataclasses.dataclass(frozen=True)
class EvalReport:
    """Scores by protocol, with all settings needed to compare them.

    Attributes:
        model: Encoder, head, output stride and dilation variant in one line.
        dataset: Name of the data set.
        split: Its split.
        images: Number of images evaluated.
        classes: Class names.
        scores: Protocol name -> scores.
        methods: Protocol name -> its settings.
        confusions: Protocol name -> the most frequent confusions of two classes.
        boundaries: Protocol name -> boundary IoU and F-score, if requested.
        calibration: Protocol name -> calibration errors, if requested.
        labels: Protocol name -> scores by label of a binary or multi-label task, at the model's thresholds; the classes
            are the labels then, and the accuracy of a label is its recall.
        matrices: Protocol name -> the whole confusion matrix of a multi-class task in pixels, [K, K]; rows are the
            truth, columns the prediction. Empty in reports of older versions.
        checkpoint: The file that was evaluated, if known.
        precision: Precision of the network's arithmetic.
    """

    model: str
    dataset: str
    split: str
    images: int
    classes: tuple[str, ...]
    scores: dict[str, Scores]
    methods: dict[str, Method] = dataclasses.field(default_factory=dict)
    confusions: dict[str, tuple[Confusion, ...]] = dataclasses.field(default_factory=dict)
    boundaries: dict[str, BoundaryReport] = dataclasses.field(default_factory=dict)
    calibration: dict[str, CalibrationReport] = dataclasses.field(default_factory=dict)
    labels: dict[str, LabelScores] = dataclasses.field(default_factory=dict)
    matrices: dict[str, list[list[int]]] = dataclasses.field(default_factory=dict)
    checkpoint: str = ""
    precision: str = "fp32"

    def mean_iou(self, name: str) -> float:
        """Return the mean IoU of a protocol by its policy for absent classes."""
        absent = self.methods[name].absent if name in self.methods else "skipped"
        return self.scores[name].mean_iou_by(absent)

    @property
    def labelled(self) -> bool:
        """True if a pixel had a label; of a binary or multi-label task also where no pixel had any of the objects."""
        shares = any(sum(scores.class_share) for scores in self.scores.values())
        return shares or any(scores.images for scores in self.labels.values())

    def table(self, name: str | None = None) -> PlainTable:
        """Make a table by class: all scores of one protocol, or the IoU of several side by side; and pixel shares.

        Args:
            name: The protocol; None for all.
        """
        names = list(self.scores) if name is None else [name]
        title = f"{self.model}\n{self.dataset} {self.split}, {self.images} images, % (protocol: {', '.join(names)})"
        table = PlainTable(title=title, show_footer=True)
        table.column("class", footer="mean of classes")
        columns: list[tuple[float | None, ...]] = []

        def add(heading: str, values: tuple[float | None, ...], mean: float) -> None:
            table.column(heading, footer=_percent(mean), right=True)
            columns.append(values)

        for each in names:
            add("IoU" if len(names) == 1 else f"{each} IoU", self.scores[each].class_iou, self.mean_iou(each))
        if len(names) == 1:  # more would not fit a terminal
            scores, boundary = self.scores[names[0]], self.boundaries.get(names[0])
            add("accuracy", scores.class_accuracy, scores.mean_accuracy)
            add("Dice", scores.class_dice, scores.mean_dice)
            if boundary is not None:
                add("boundary IoU", boundary.class_boundary_iou, boundary.mean_boundary_iou)
                add("boundary F", boundary.class_boundary_f, boundary.mean_boundary_f)
        table.column("share of pixels", right=True)
        columns.append(self.scores[names[0]].class_share)
        for label, title in enumerate(self.classes):
            table.row(title, *(_percent(values[label]) for values in columns))
        return table

    def label_table(self, name: str | None = None) -> PlainTable:
        """Make a table by label of a binary or multi-label task: all scores of a protocol at the model's thresholds.

        Args:
            name: The protocol; None for the first.

        Raises:
            ConfigError: There are no scores of labels by this protocol.
        """
        name = next(iter(self.scores)) if name is None else name
        if name not in self.labels:
            raise unknown_name("protocol with scores of labels", name, self.labels)
        scores = self.labels[name]
        rows = [*zip(self.classes, scores.labels, strict=True), ("all pooled", scores.micro)]
        table = PlainTable(title=f"{self.dataset} {self.split}, {self.images} images, % (protocol: {name})")
        table.column("label")
        for heading in ("threshold", "IoU", "F1", "precision", "recall", "AP", "pixels"):
            table.column(heading, right=True)
        for title, score in rows:
            parts = (score.iou, score.f1, score.precision, score.recall, score.average_precision, score.share)
            table.row(title, f"{score.threshold:.3f}", *map(_percent, parts))
        return table

    def summary(self) -> PlainTable:
        """Make a table of the means, one column per protocol, with the protocols' settings below."""
        names = list(self.scores)
        methods = [self.methods.get(name, Method("skipped", name)) for name in names]
        caption = "\n".join(method.description for method in methods)
        table = PlainTable(title=f"{self.dataset} {self.split}, {self.images} images, %", caption=caption)
        table.column("")
        for name in names:
            table.column(name, right=True)
        table.row("mean IoU", *(_percent(self.mean_iou(name)) for name in names))
        absent = ["count 0" if method.absent == "zero" else "are skipped" for method in methods]
        table.row("  absent classes", *absent)
        for title, key in (
            ("mean IoU, absent classes skipped", "mean_iou"),
            ("mean IoU, absent classes count 0", "mean_iou_absent_zero"),
            ("pixel accuracy", "pixel_accuracy"),
            ("mean accuracy", "mean_accuracy"),
            ("frequency weighted IoU", "frequency_weighted_iou"),
            ("mean Dice, absent classes skipped", "mean_dice"),
        ):
            table.row(title, *(_percent(getattr(self.scores[name], key)) for name in names))
        if self.labels:
            found = [self.labels[name] for name in names]
            table.row("mean average precision", *(_percent(scores.mean_average_precision) for scores in found))
            table.row("IoU of all labels pooled", *(_percent(scores.micro.iou) for scores in found))
        for title, key in (("mean boundary IoU", "mean_boundary_iou"), ("mean boundary F", "mean_boundary_f")):
            if self.boundaries:
                table.row(title, *(_percent(getattr(self.boundaries.get(name), key, None)) for name in names))
        if self.calibration:
            errors = [getattr(self.calibration.get(name), "expected_calibration_error", None) for name in names]
            table.row("expected calibration error", *(_percent(error) for error in errors))
        return table

    def _repr_html_(self) -> str:
        """Show the means and the scores by class in a notebook."""
        by_class = f'<div style="max-height:30em;overflow:auto">{table_html(self.table())}</div>'
        return f"<div><p>{html.escape(self.model)}</p>{table_html(self.summary())}{by_class}</div>"

    def plot(self, name: str | None = None, *, ax: Axes | None = None) -> Axes:
        """Draw the IoU of every class by matplotlib, with the mean as a line, and return the axes.

        Args:
            name: The protocol; None for the first.
            ax: Where to draw; None makes a new figure with `matplotlib.pyplot`.

        Raises:
            ConfigError: There are no scores by this protocol, or matplotlib is not installed: pip install
                'resnest-seg[plot]'.
        """
        name = next(iter(self.scores)) if name is None else name
        if name not in self.scores:
            raise unknown_name("protocol of this report", name, self.scores)
        if ax is None:
            pyplot = load_extra("matplotlib.pyplot", "plot")
            _, ax = pyplot.subplots(figsize=(7, 1.2 + 0.22 * len(self.classes)), layout="constrained")
        assert ax is not None
        scores, places = self.scores[name].class_iou, range(len(self.classes))
        ax.barh(places, [100 * (iou or 0.0) for iou in scores], color="tab:blue")
        for place, iou in enumerate(scores):
            shown = "absent" if iou is None else _percent(iou)
            ax.annotate(shown, (1.01, place), xycoords=("axes fraction", "data"), va="center", fontsize="small")
        mean = 100 * self.mean_iou(name)
        ax.axvline(mean, color="tab:red", linestyle="--")
        ax.set_yticks(places, self.classes, parse_math=False)  # "$" is a letter in a name
        ax.set(xlim=(0, 100), ylim=(len(self.classes) - 0.5, -0.5), xlabel=f"IoU in % (dashed: the mean, {mean:.2f})")
        ax.set_title(f"{self.dataset} {self.split}, {self.images} images, protocol {name}", parse_math=False)
        return ax

    def confusion_table(self) -> PlainTable:
        """Make a table of the first protocol's most frequent confusions."""
        name = next(iter(self.scores))
        table = PlainTable(title=f"most frequent confusions ({name})")
        for heading in ("class", "taken for", "pixels", "% of the class"):
            table.column(heading, right=heading in ("pixels", "% of the class"))
        for pair in self.confusions.get(name, ()):
            names = self.classes[pair.label], self.classes[pair.prediction]
            table.row(*names, f"{pair.pixels:,}", _percent(pair.share))
        return table

    def check_comparable(self, dataset: str, classes: Sequence[str], protocols: Sequence[str]) -> None:
        """Reject an evaluation that could not be compared with this report, before it starts.

        Args:
            dataset: Name of the data set to evaluate.
            classes: Its class names.
            protocols: Names of the protocols.

        Raises:
            DatasetError: The classes differ, or there is no common protocol.
        """
        if self.classes != tuple(classes):
            pairs = zip(self.classes, classes, strict=False)
            first = next((f": the first that differs is {one!r} there and {two!r} here" for one, two in pairs
                          if one != two), "")  # fmt: skip
            raise DatasetError(
                f"reports of {self.dataset} ({len(self.classes)} classes) and {dataset} ({len(classes)} classes) have "
                f"different classes{first}."
            )
        if not set(self.scores) & set(protocols):
            raise DatasetError(
                f"the reports share no protocol: {', '.join(self.scores)} there, {', '.join(protocols)} here. "
                "Evaluate by the same protocol with --protocols."
            )

    def comparison(self, other: EvalReport) -> PlainTable:
        """Make a table of the changes from another report to this one by class, in points, for common protocols.

        Raises:
            DatasetError: The classes differ, or there is no common protocol.
        """
        other.check_comparable(self.dataset, self.classes, list(self.scores))
        names = [name for name in self.scores if name in other.scores]
        table = PlainTable(title=f"IoU in %, and the change in points from\n{other.model}", show_footer=True)
        table.column("class", footer="mean of classes")
        for name in names:
            before, now = other.mean_iou(name), self.mean_iou(name)
            table.column(f"{name} before", footer=_percent(before), right=True)
            table.column("now", footer=_percent(now), right=True)
            table.column("change", footer=_points(before, now), right=True)
        for label, title in enumerate(self.classes):
            cells: list[str] = []
            for name in names:
                pair = (other.scores[name].class_iou[label], self.scores[name].class_iou[label])
                cells += [_percent(pair[0]), _percent(pair[1]), _points(*pair)]
            table.row(title, *cells)
        return table

    def caveats(self, other: EvalReport, *, names: tuple[str, str] = ("before", "now")) -> list[str]:
        """List differences of the reports besides the model, which may make their scores incomparable.

        Args:
            other: The report that this one is compared with.
            names: Words that tell the other report and this one apart.
        """
        caveats = []
        for what in ("dataset", "split", "images"):
            before, now = getattr(other, what), getattr(self, what)
            if before != now:
                caveats.append(f"{what} {before} {names[0]} and {now} {names[1]}")
        for name in self.scores:
            pair = other.methods.get(name), self.methods.get(name)
            if name in other.scores and pair[0] != pair[1]:
                caveats.append(f"protocol {name} with other settings")
        return caveats

    def to_json(self) -> str:
        """Serialise the report to JSON; scores are shares 0..1."""
        tree = dataclasses.asdict(self)
        for kind in ("methods", "confusions"):  # named tuples would become lists without names
            tree[kind] = {name: _tree(value) for name, value in getattr(self, kind).items()}
        matrices = tree.pop("matrices")
        text = json.dumps(tree, indent=2).removesuffix("\n}")
        by_protocol = [f"    {json.dumps(name)}: [\n      {_lines(rows)}\n    ]" for name, rows in matrices.items()]
        shown = ",\n".join(by_protocol)
        return f'{text},\n  "matrices": {{\n{shown}\n  }}\n}}'

    def save(self, path: str | Path) -> None:
        """Write the JSON file atomically."""
        with atomic_write(path) as temporary:
            temporary.write_text(self.to_json() + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> EvalReport:
        """Read a file of `save`.

        Raises:
            DatasetError: The file is missing or is not a report of this version.
        """
        try:
            tree = json.loads(Path(path).read_text(encoding="utf-8"))
            report = cls(
                **{
                    **tree,
                    "classes": tuple(tree["classes"]),
                    "scores": {name: Scores(**_tuples(values)) for name, values in tree["scores"].items()},
                    "methods": {name: Method(**values) for name, values in tree["methods"].items()},
                    "confusions": {
                        name: tuple(Confusion(**pair) for pair in pairs) for name, pairs in tree["confusions"].items()
                    },
                    "boundaries": {k: BoundaryReport(**_tuples(values)) for k, values in tree["boundaries"].items()},
                    "labels": {name: LabelScores.from_dict(values) for name, values in tree.get("labels", {}).items()},
                    "calibration": {
                        name: CalibrationReport(
                            **{**values, "bins": tuple(ReliabilityBin(**b) for b in values["bins"])}
                        )
                        for name, values in tree["calibration"].items()
                    },
                }
            )
            wrong = [name for name, scores in report.scores.items() if len(scores.class_iou) != len(report.classes)]
            if wrong or not report.scores:
                raise ValueError("it has no score for every class")
            _check_values(report)
            for name, matrix in report.matrices.items():
                _check_matrix(matrix, name, len(report.classes))
            return report
        except OSError as error:
            raise DatasetError(f"cannot read report {path}: {error.strerror}.") from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DatasetError(
                f"{path} is not a report of this version ({type(error).__name__}: {error}). Evaluate again."
            ) from None


def _tree(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if hasattr(value, "_asdict"):
        return value._asdict()
    return [_tree(part) for part in value]


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def _lines(rows: list[list[int]]) -> str:
    """A matrix in JSON, a row a line: json's indent would give each number a line."""
    return ",\n      ".join(map(json.dumps, rows))


def _check_values(report: EvalReport) -> None:
    """Raise a ValueError for names and numbers that no evaluation has written."""
    count = len(report.classes)
    texts = (*report.classes, report.model, report.dataset, report.split, report.checkpoint, report.precision)
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("a name is no text")
    kinds: tuple[dict[str, Any], ...] = (report.scores, report.boundaries, report.calibration, report.labels)
    for leaf in _leaves([dataclasses.asdict(one) for kind in kinds for one in kind.values()]):
        if leaf is not None and (
            isinstance(leaf, bool) or not isinstance(leaf, int | float) or not math.isfinite(leaf)
        ):
            raise ValueError(f"a score is {leaf!r:.20}")
    for scores in report.scores.values():
        by_class = (scores.class_iou, scores.class_accuracy, scores.class_share, scores.class_dice)
        if any(len(values) != count for values in by_class) or None in scores.class_share:
            raise ValueError("it has no score for every class")
    if any(len(scores.labels) != count for scores in report.labels.values()):
        raise ValueError("it has no scores for every label")
    for pair in itertools.chain.from_iterable(report.confusions.values()):
        if not all(isinstance(label, int) and 0 <= label < count for label in (pair.label, pair.prediction)):
            raise ValueError("a confusion is of a class that is not there")


def _leaves(value: Any) -> Iterator[Any]:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else None
    if parts is None:
        yield value
    else:
        for part in parts:
            yield from _leaves(part)


def _check_matrix(matrix: object, name: str, classes: int) -> None:
    """Raise a ValueError for what is no confusion matrix of so many classes."""
    rows = matrix if isinstance(matrix, list) else []
    cells = [cell for row in rows if isinstance(row, list) and len(row) == classes for cell in row]
    if len(rows) != classes or len(cells) != classes**2 or not all(type(c) is int and c >= 0 for c in cells):
        raise ValueError(f"the confusion matrix of protocol {name!r:.40} is not {classes} x {classes} counts")


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def _points(before: float | None, now: float | None) -> str:
    return "-" if before is None or now is None else f"{100 * (now - before):+.2f}"
