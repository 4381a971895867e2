"""The report of one run, or of several side by side: what was run, curves, scores, confusions and pictures."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from resnest_seg.config import CUSTOM, RunConfig
from resnest_seg.data.build import dataset_for
from resnest_seg.data.datasets import SegmentationDataset
from resnest_seg.errors import CheckpointError, ConfigError, DatasetError, ResNeStSegError
from resnest_seg.evaluation.comparison import compare_images
from resnest_seg.evaluation.image_scores import images_beside
from resnest_seg.evaluation.report import EvalReport
from resnest_seg.inference.backends import RunOptions
from resnest_seg.inference.predictor import open_backend
from resnest_seg.models.checkpoint import BEST
from resnest_seg.models.loading import Network
from resnest_seg.models.segmenter import Segmenter
from resnest_seg.reports.charts import Point, Series, line_chart
from resnest_seg.reports.gallery import gallery
from resnest_seg.reports.page import Section, element, table, write_page
from resnest_seg.reports.run_files import (
    DEFAULTS,
    RunFiles,
    changed_keys,
    config_table,
    names_of,
    number,
    plain,
    read_files,
)
from resnest_seg.reports.run_pictures import Chosen, Model, Predicted, choose, pictures, predict
from resnest_seg.reports.score_sections import (
    Evaluated,
    calibration_section,
    confusion_section,
    scores_section,
    threshold_section,
)

IMAGES = 16
"""Images of each kind (worst, best, random) that a report shows if nothing else is asked for."""


@dataclasses.dataclass(frozen=True)
class Pictures:
    """How a report comes by its pictures.

    Attributes:
        count: Images of each kind; 0 for none.
        root: Where the data set is, if not where the training found it.
        into: The network of checkpoints with parts of the user's own, see `load_checkpoint`.
        device: Where the model predicts.
        segmenter: The best model of a single run, if it is at hand.
        dataset: The data set that was evaluated, if it is at hand.
    """

    count: int = IMAGES
    root: str | None = None
    into: Network | None = None
    device: str = "auto"
    segmenter: Segmenter | None = None
    dataset: SegmentationDataset | None = None


def write_report(
    folders: Sequence[str | Path],
    output: str | Path,
    *,
    images: Pictures = Pictures(),  # a constant
    say: Callable[[str], None] = print,
) -> None:
    """Write the report of run folders; what is missing in them is left out, and the page says so.

    Args:
        folders: The runs, of which the first is what the others are compared with.
        output: The HTML file; it is replaced.
        images: How the pictures are made.
        say: Is called with every problem, such as what is left out.

    Raises:
        CheckpointError: A folder is no run folder.
        ConfigError: A config cannot be read, or no run is given.
        OSError: The file cannot be written.
    """
    if not folders:
        raise ConfigError("a report is of one run folder or more, and none is given.")
    runs = [read_files(folder) for folder in folders]
    names = names_of([run.folder for run in runs])
    found, problems = evaluations(runs, names)
    sections = [_what(runs, names), *_curves(runs, names, found)]
    if found:
        sections.append(scores_section(found, _comparison(found)))
        parts = (confusion_section(found), calibration_section(found), threshold_section(found))
        sections += [part for part in parts if part is not None]
        shown, problem = _images(runs, found, images)
        sections += [shown] if shown is not None else []
        problems += [problem] if problem else []
    for problem in problems:
        say(problem)
    notes = [element("p", {"class": "note"}, problem) for problem in problems]
    states = [element("p", None, element("strong", None, name), f": {run.state}") for name, run in zip(names, runs)]  # noqa: B905
    write_page(output, " / ".join(names), sections, lead=[*states, *notes])


def evaluations(runs: Sequence[RunFiles], names: Sequence[str]) -> tuple[list[Evaluated], list[str]]:
    """Choose an evaluation of each run: the newest of those that all runs have, by the name of the file.

    Those by a protocol that all have go before newer ones without; by that protocol runs are compared. Where no name
    is of such, they are found by split and protocol, see `_alike`.

    Returns:
        One for each run that has any, all of the same classes; and what is missing, in words.
    """
    files = [run.evaluations() if isinstance(run.config, RunConfig) else {} for run in runs]
    evaluated = [one for one in files if one]
    common = [name for name in evaluated[0] if all(name in one for one in evaluated)] if evaluated else []
    shared = [name for name in common if _share_a_protocol([one[name] for one in evaluated])]
    paths = iter([one[shared[-1]] for one in evaluated] if shared else _alike(evaluated, common))
    found: list[Evaluated] = []
    problems = []
    for run, name, own in zip(runs, names, files, strict=True):
        if not own:
            if isinstance(run.config, RunConfig):
                validated = "its validations left no report" if run.validations else "no validation so far"
                problems.append(f"{name} has not been evaluated: {validated}, and no report of an evaluation.")
            continue
        path = next(paths)
        try:
            report = EvalReport.load(path)
        except DatasetError as error:
            problems.append(str(error))
            continue
        if found and report.classes != found[0].report.classes:
            problems.append(f"{name} has other classes than {found[0].name}: its scores are left out.")
            continue
        images = images_beside(path)
        protocol, network = next(iter(report.scores)), _has_own_network(run)
        found.append(Evaluated(name, report, protocol, path, images if images.is_file() else None, network))
    found = _by_one_protocol(found)
    for one in found[1:]:
        words = f"in {found[0].name}", f"in {one.name}"
        problems += [f"careful: {caveat}" for caveat in one.report.caveats(found[0].report, names=words)]
    return found, problems


def _alike(evaluated: Sequence[Mapping[str, Path]], common: Sequence[str]) -> list[Path]:
    """A report of each run: the one of the first run that most others have one like, and the newest of theirs.

    Alike are reports of the same classes by a protocol that both have, those of the same images before others. A run
    that has none gives the newest that all have by its name (`common`), else its newest.
    """
    read = [[(path, report) for path in own.values() if (report := _readable(path)) is not None] for own in evaluated]
    chosen = [own[common[-1]] if common else [*own.values()][-1] for own in evaluated]
    most = (0, 0)
    for first, report in read[0] if read else []:
        exact = [[path for path, other in own if _comparable(report, other, same_images=True)] for own in read[1:]]
        loose = [[path for path, other in own if _comparable(report, other)] for own in read[1:]]
        count = sum(map(bool, exact)), sum(map(bool, loose))
        if any(count) and count >= most:  # a newer one of the same number
            others = [(one or other or [path])[-1] for one, other, path in zip(exact, loose, chosen[1:], strict=True)]
            most, best = count, [first, *others]
    return best if any(most) else chosen


def _comparable(report: EvalReport, other: EvalReport, *, same_images: bool = False) -> bool:
    """True if two reports of the same classes have a protocol in common, and if asked for, data set and split."""
    same = (report.dataset, report.split) == (other.dataset, other.split) or not same_images
    return same and report.classes == other.classes and bool(report.scores.keys() & other.scores.keys())


def _readable(path: Path) -> EvalReport | None:
    """A report; None of a damaged one, of which something is said where it is chosen."""
    try:
        return EvalReport.load(path)
    except DatasetError:
        return None


def _has_own_network(run: RunFiles) -> bool:
    """True if the encoder or the head of a run is its author's own."""
    return isinstance(run.config, RunConfig) and CUSTOM in (run.config.model.encoder, run.config.model.head)


def _share_a_protocol(paths: Sequence[Path]) -> bool:
    """True if reports have a protocol in common, and if one cannot be read, which is then said of it."""
    try:
        names = [set(EvalReport.load(path).scores) for path in paths]
    except DatasetError:
        return True
    return bool(set.intersection(*names))


def _by_one_protocol(found: Sequence[Evaluated]) -> list[Evaluated]:
    """Take the first protocol that all have; without one, the first one's, and of who lacks that its own."""
    if not found:
        return []
    first, *others = (one.report.scores for one in found)
    protocol = next((name for name in first if all(name in other for other in others)), next(iter(first)))
    return [one._replace(protocol=protocol if protocol in one.report.scores else one.protocol) for one in found]


def _what(runs: Sequence[RunFiles], names: Sequence[str]) -> Section:
    """What was run: the settings, the machine, and what the configs have of their own."""
    facts = [_facts(run) for run in runs]
    keys = dict.fromkeys(key for fact in facts for key in fact)
    rows = [[key, *(fact.get(key, "-") for fact in facts)] for key in keys]
    body = [table(["", *names], rows, label="what was run")]
    if len(runs) > 1:
        different = config_table([run.config for run in runs])
        body.append(element("h3", None, "Config keys that differ"))
        lines = [[key, *map(plain, values)] for key, values in different.items()]
        body.append(
            table(["key", *names], lines, label="differences of the configs")
            if lines
            else element("p", None, "All keys are equal.")
        )
    for run, name in zip(runs, names, strict=True):
        base, changes = changed_keys(run.config)
        lines = [[key, plain(before), plain(now)] for key, (before, now) in changes.items()]
        title = f"Config of {name}: {len(lines)} keys differ from {base}"
        inner = (
            table(["key", "default" if base == DEFAULTS else "shipped", "this run"], lines, label=title)
            if lines
            else element("p", None, "All keys are equal.")
        )
        few = len(runs) == 1
        body.append(element("details", {"open": few}, element("summary", None, title), inner))
    return Section("what", "What was run", body)


def _facts(run: RunFiles) -> dict[str, str]:
    """The settings and the machine of a run, in words."""
    config, start = run.config, run.starts[0] if run.starts else {}
    facts: dict[str, str] = {"folder": str(run.folder), "state": run.state}
    if isinstance(config, RunConfig):
        model = config.model
        facts["model"] = f"{model.head} on {model.encoder}, output stride {model.output_stride}, family {model.family}"
        facts["dilation"] = model.dilation
        facts["task"] = model.task
        facts["validation"] = f"{config.eval.split}, protocol {config.eval.protocol}"
    else:
        facts["model"] = f"classifier on {config.model.encoder}"
    facts["data set"] = config.data.dataset
    if "images" in start:
        facts["training images"] = f"{start['images']:,}" if isinstance(start["images"], int) else str(start["images"])
        facts["data fingerprint"] = str(start.get("data", "-"))
    length = f"{config.train.epochs} epochs" if config.train.epochs else f"{config.train.iterations} iterations"
    facts["length"] = f"{length} of batches of {config.train.batch_size}"
    facts["seed"] = str(config.seed)
    facts |= _machine(run)
    return facts


def _machine(run: RunFiles) -> dict[str, str]:
    """Versions, device and speed."""
    facts = {}
    if run.starts:
        last = run.starts[-1]
        versions = [f"{name} {last[key]}" for key, name in
                    (("version", "resnest_seg"), ("torch", "torch"), ("python", "Python")) if key in last]  # fmt: skip
        facts["versions"] = ", ".join(versions)
        count = last.get("processes", 1)
        facts["machine"] = f"{last.get('host', '-')}, {count} process{'es' * (count != 1)} on {last.get('device', '-')}"
        if "precision" in last:
            facts["machine"] += f", {last['precision']}"
        if len(run.starts) > 1:
            recorded = [start["changes"] for start in run.starts if isinstance(start.get("changes"), list)]
            changes = [str(text) for texts in recorded for text in texts]
            facts["resumed"] = f"{len(run.starts) - 1} times" + (f"; changed: {', '.join(changes)}" if changes else "")
    for key, name, unit, scale in (
        ("images_per_second", "speed", "images/s (median)", 1),
        ("data_wait", "waiting for data", "% of the time (median)", 100),
        ("save_wait", "saving checkpoints", "% of the time (mean)", 100),
        ("memory_mib", "memory", "MiB (peak)", 1),
        ("cuda_peak_mib", "GPU memory", "MiB (peak)", 1),
    ):
        values = [value for line in run.speeds if (value := number(line, key)) is not None]
        if values:
            middle = statistics.mean if "mean" in unit else statistics.median
            value = max(values) if "peak" in unit else middle(values)
            facts[name] = f"{scale * value:.4g} {unit}"
    return facts


LOSSES = [
    ("steps", "labelled_loss", "labelled"),
    ("steps", "unlabelled_loss", "unlabelled"),
    ("steps", "kl_loss", "teachers, kl"),
    ("steps", "cwd_loss", "teachers, cwd"),
]
SHARES = [("steps", "certain", "certain pixels"), ("steps", "agreement", "agreement of strong views")]
"""Curves of runs that learn from unlabelled photos or from other models, too."""


def _curves(runs: Sequence[RunFiles], names: Sequence[str], found: Sequence[Evaluated]) -> list[Section]:
    """Loss, rates, norms and scores over the epochs."""
    if not any(run.steps or run.validations for run in runs):
        return []
    charts = [
        _chart(runs, names, "loss", [("steps", "loss", "training"), ("validations", "val_loss", "validation")]),
        _chart(runs, names, "parts of the loss", LOSSES),
        _chart(runs, names, "unlabelled photos", SHARES),
        _score_chart(runs, names),
        _chart(runs, names, "learning rate", [("steps", "lr", "learning rate")]),
        _chart(runs, names, "gradient norm", [("steps", "grad_norm", "gradient norm")]),
        *(_class_chart(run, name, found, several=len(runs) > 1) for run, name in zip(runs, names, strict=True)),
    ]
    hint = element(
        "p", {"class": "soft"}, "Point at a chart for its values, or choose it with Tab and use the arrow keys."
    )
    grid = element("div", {"class": "charts"}, *(chart for chart in charts if chart is not None))
    return [Section("curves", "Curves", [hint, grid])]


def _score_chart(runs: Sequence[RunFiles], names: Sequence[str]) -> Element | None:
    """The scores of validations: of one run all of them, of several the one that decides."""
    keys = [("validations", runs[0].score, _score_name(runs[0].score))]
    if len(runs) == 1:
        others = {
            key: None for line in runs[0].validations for key in line
            if key not in ("step", "epoch", runs[0].score, "val_loss") and number(line, key) is not None
        }  # fmt: skip
        keys += [("validations", key, _score_name(key)) for key in others]
    return _chart(runs, names, "validation scores" if len(runs) == 1 else keys[0][2], keys)


def _score_name(key: str) -> str:
    return {"mean_iou": "mean IoU"}.get(key, key.replace("_", " "))


def _chart(
    runs: Sequence[RunFiles], names: Sequence[str], title: str, keys: Sequence[tuple[str, str, str]]
) -> Element | None:
    """Draw numbers of lines over the epochs, for every run and key that has some; None where there are none."""
    series = []
    for run, name in zip(runs, names, strict=True):
        for kind, key, text in keys:
            points = _points(getattr(run, kind), key)
            if points:
                called = text if len(runs) == 1 else name if len(keys) == 1 else f"{name}, {text}"
                series.append(Series(called, points))
    if not series:
        return None
    values = [y for one in series for _, y in one.points if y is not None and y > 0]
    wide = len(values) > 20 and max(values) > 200 * statistics.median(values) and title == "gradient norm"
    return line_chart(series, title=title, x_name="epoch", log=wide)


def _points(lines: Sequence[Any], key: str) -> list[Point]:
    return [
        (x, y) for line in lines if (x := number(line, "epoch")) is not None and (y := number(line, key)) is not None
    ]


def _class_chart(run: RunFiles, name: str, found: Sequence[Evaluated], *, several: bool) -> Element | None:
    """IoU by class over the validations; the classes with most pixels are visible at first."""
    lines = [line for line in run.validations if isinstance(line.get("class_iou"), list) and line["class_iou"]]
    if not lines:
        return None
    count = max(len(line["class_iou"]) for line in lines)
    report = next((one.report for one in found if one.name == name and len(one.report.classes) == count), None)
    names = [f"class {label}" for label in range(count)] if report is None else list(report.classes)
    shares = [0.0] * count if report is None else list(next(iter(report.scores.values())).class_share)
    largest = sorted(range(count), key=lambda label: (-shares[label], label))[:8]
    series = []
    for label, title in enumerate(names):
        points: list[Point] = []
        for line in lines:
            values = line["class_iou"]
            x, y = number(line, "epoch"), number({"y": values[label]}, "y") if label < len(values) else None
            points += [(x, y)] if x is not None else []
        series.append(Series(title, points))
    title = f"IoU by class, {name}" if several else "IoU by class"
    shown = [label in largest for label in range(count)]
    return line_chart(series, title=title, x_name="epoch", bounds=(0, 1), shown=shown)


def _comparison(found: Sequence[Evaluated]) -> list[Element]:
    """How the mean IoU of further runs differs from the first one's, with its interval over images."""
    first, lines = found[0], []
    for one in found[1:]:
        if one.protocol != first.protocol:
            lines.append(f"{one.name}: no interval, because it was not evaluated by protocol {first.protocol}")
            continue
        if first.images is None or one.images is None:
            lines.append(f"{one.name}: no interval, because there are no scores by image")
            continue
        method = first.report.methods.get(first.protocol)
        absent = "skipped" if method is None else method.absent
        try:
            lines.append(
                f"{one.name}: {compare_images(first.images, one.images, protocol=first.protocol, absent=absent)}"
            )
        except DatasetError as error:
            lines.append(f"{one.name}: no interval. {error}")
    if not lines:
        return []
    listed = element("ul", None, *(element("li", None, line) for line in lines))
    return [element("h3", None, f"Difference from {first.name}"), listed]


def _images(runs: Sequence[RunFiles], found: Sequence[Evaluated], how: Pictures) -> tuple[Section | None, str]:
    """The section of images, or None and why there is none."""
    if not how.count:
        return None, ""
    listed = [one for one in found if one.images is not None]
    if not listed or listed[0] is not found[0]:
        return None, f"no pictures: there are no scores by image of {found[0].name}. Evaluate it again."
    first = listed[0]
    try:
        classes = first.report.classes
        files = [(one.name, one.images) for one in listed if one.images is not None]
        chosen = choose(files, first.protocol, classes=classes, count=how.count)
        dataset = how.dataset if how.dataset is not None else _dataset(_run_of(first, runs), first, how)
        predicted, missing = [], []
        for one in listed:
            try:
                predicted.append(_predicted(_run_of(one, runs), one, how, dataset, chosen))
            except (ResNeStSegError, OSError) as error:
                if one is first:
                    raise
                missing.append(f"no predictions of {one.name}: {error}")
        cards = pictures(predicted, chosen)
        note = element("p", None, f"Chosen by mean IoU of {first.name} among {first.report.images} images of "
                       f"{first.report.dataset} {first.report.split}, protocol {first.protocol}.")  # fmt: skip
        return gallery(cards, dataset.label_space, sort="", lead=[note]), " ".join(missing)
    except (ResNeStSegError, OSError) as error:
        return None, f"no pictures: {error}"


def _run_of(one: Evaluated, runs: Sequence[RunFiles]) -> RunFiles:
    """The run of an evaluation: the first ones may have none."""
    return next(run for run in runs if run.folder == one.file.parent)


def _dataset(run: RunFiles, one: Evaluated, how: Pictures) -> SegmentationDataset:
    """The data set of an evaluation, by the config of the run."""
    config = run.config
    assert isinstance(config, RunConfig)
    data = config.data if how.root is None else dataclasses.replace(config.data, root=how.root)
    if data.dataset == CUSTOM:
        raise DatasetError("the data set is one of its author's own (custom), which no name opens.")
    data = dataclasses.replace(data, cache=None)  # a few pictures, perhaps on another machine
    return dataset_for(data, one.report.split, task=config.model.task, begun=True)


def _predicted(
    run: RunFiles, one: Evaluated, how: Pictures, dataset: SegmentationDataset, chosen: Sequence[Chosen]
) -> Predicted:
    """What the model that was evaluated predicts: of several files that may be it, the first that has its scores."""
    if how.segmenter is not None:
        return predict(Model(one.name, how.segmenter, one.protocol, one.images), dataset, chosen)
    own = _has_own_network(run)  # other runs beside it are not of that network
    paths = _files_of(run, one)
    for path in paths:
        try:
            model = open_backend(path, RunOptions(device=how.device), into=how.into if own else None)
            return predict(Model(one.name, model, one.protocol, one.images), dataset, chosen)
        except ResNeStSegError:
            if path == paths[-1]:
                raise
    raise CheckpointError(f"{run.folder} has no {Path(one.report.checkpoint or BEST).name}.")


def _files_of(run: RunFiles, one: Evaluated) -> list[Path]:
    """Files that may be what was evaluated: where the report says, if that is no newer file, and in the run folder.

    A name without a folder is that of a file in the run folder. The run may have been moved, and another one may be
    where it was: a file there that is newer than the report was not evaluated.
    """
    named = Path(one.report.checkpoint or BEST)
    here = run.folder / named.name
    there = [named] if named.parent != Path() and named.is_file() else []
    if there and (named.stat().st_mtime > one.file.stat().st_mtime or (here.is_file() and named.samefile(here))):
        there = []
    return [*there, *([here] if here.is_file() else [])]
