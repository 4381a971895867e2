"""Checkpoints, or the networks of configs, side by side: accuracy against milliseconds in every runtime."""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import importlib.util
import multiprocessing
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnest_seg.cli.benchmark.eval import settle
from resnest_seg.cli.benchmark.export import CALIBRATION, PEERS, exported, opened, padded, pixels_of
from resnest_seg.cli.benchmark.infer import count, scenes
from resnest_seg.cli.benchmark.measuring import interleave, peak_during, spread
from resnest_seg.cli.benchmark.options import DEVICES
from resnest_seg.cli.parsing.options import DATASET_OPTIONS, add_dataset, open_dataset
from resnest_seg.errors import ConfigError, DatasetError, ExportError, unknown_name

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from resnest_seg.cli.benchmark.export import Run
    from resnest_seg.data.datasets import SegmentationDataset
    from resnest_seg.models.segmenter import Segmenter

    Photos = list[NDArray[Any]]

TORCH, COMPILED, INT8 = "torch", "torch, compiled", "onnxruntime, int8"
RUNTIMES = ("torch", *PEERS)
NEEDS = {"torch": (), "onnxruntime": ("onnx", "onnxscript", "onnxruntime"),
         "int8": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("onnx", "onnxscript", "openvino")}  # fmt: skip
"""Runtime -> the packages that write its files and run them."""

CLASSES = 21
"""Classes of a config whose data set says nothing of them, as in Pascal VOC."""


@dataclasses.dataclass(frozen=True)
class Subject:
    """A network to measure.

    Attributes:
        name: As it was given.
        config: It is a config, whose network has fresh weights; else a checkpoint.
    """

    name: str
    config: bool

    def build(self) -> Segmenter:
        """The model, in eval mode; that of a config with norms like those of a trained one."""
        from resnest_seg.config import load_run_config
        from resnest_seg.files import find_config
        from resnest_seg.labels import LabelSpace
        from resnest_seg.models.loading import load_checkpoint, segmenter_for

        if not self.config:
            model = load_checkpoint(self.name)
        else:
            run = load_run_config(find_config(self.name))
            space = LabelSpace.numbered(1 if run.model.task == "binary" else CLASSES)
            with contextlib.suppress(ConfigError):  # a data set that has no classes of its own
                space = LabelSpace.of(run.data.dataset) if run.model.task == "multiclass" else space
            model = segmenter_for(run, dataclasses.replace(space, task=run.model.task), pretrained=False).eval()
            settle(model)
        return model


@dataclasses.dataclass(frozen=True)
class Entry:
    """A model in a runtime.

    Attributes:
        subject: The model.
        runtime: The runtime's name.
        label: Labels the photos.
        file: The exported file, if it is one.
    """

    subject: Subject
    runtime: str
    label: Run
    file: Path | None = None


def pareto(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Which of several (gain, cost) are worth having.

    A point is if no other has at least its gain at no more than its cost, and more gain or less cost. Of points that
    are equal in both, all are or none is.
    """
    best: dict[float, float] = {}
    for gain, cost in points:
        best[cost] = max(gain, best.get(cost, gain))
    front, most = set(), -float("inf")
    for cost in sorted(best):
        if best[cost] > most:
            most = best[cost]
            front.add((most, cost))
    return [point in front for point in points]


def photos(model: Segmenter, size: Sequence[int], number: int) -> Photos:
    """Drawn street scenes, [H, W, C], in the units of the model's bands; channels beyond RGB repeat RGB."""
    import numpy as np

    from resnest_seg.export.graph import ExportOptions, in_units_of, info_of

    drawn = np.stack(scenes(size, number))
    if model.config.data.bands is None:
        return list(drawn[..., np.arange(model.config.model.in_channels) % 3])
    return list(in_units_of(drawn, info_of(model, ExportOptions(pixels=pixels_of(model), output="labels"))))


def in_torch(model: Segmenter, images: Photos, options: argparse.Namespace, *, compiled: bool = False) -> Run:
    """A model as a `Predictor` runs it, with its norms folded."""
    import numpy as np

    from resnest_seg.inference.predictor import Predictor

    predictor = Predictor(model, device=options.device, fuse=True, compiled=compiled, batch=options.batch)
    return lambda: np.stack([found.labels for found in predictor(list(images))])


def entries(
    subject: Subject, options: argparse.Namespace, folder: Path, calibration: Photos | None = None
) -> Iterator[Entry]:
    """A model in all runtimes that are asked for; one that cannot be exported is left out, and a line says why."""
    model = subject.build()
    images = photos(model, options.size, options.batch)
    found = {TORCH: in_torch(copy.deepcopy(model), images, options)}
    if options.compile:
        found[COMPILED] = in_torch(copy.deepcopy(model), images, options, compiled=True)
    examples = calibration or photos(model, options.size, CALIBRATION)
    files: dict[str, Path] = {}
    for runtime in options.runtimes:
        try:
            files |= {} if runtime == TORCH else exported(model, [runtime], folder, calibration=examples)
        except (ExportError, ConfigError) as error:
            print(f"{subject.name} is not measured in {runtime}: {error}", file=sys.stderr)
    for name, path in files.items():
        found[name] = opened(path, padded(images, model), device=options.device, threads=options.threads)
    expected = found[TORCH]()
    for name, label in found.items():
        equal = float((label()[:, : options.size[0], : options.size[1]] == expected).mean())
        if equal <= 0.999 and name != INT8:
            print(f"{subject.name} is not measured in {name}: only {equal:.2%} of the labels agree", file=sys.stderr)
        elif name in files or TORCH in options.runtimes:
            yield Entry(subject, name, label, files.get(name))


def peak(entry: tuple[Subject, str, Path | None], images: Photos, options: argparse.Namespace) -> float:
    """Mebibytes above the opened model at the worst moment of its first call; for a fresh process."""
    subject, runtime, file = entry
    if file is not None:
        return peak_during(opened(file, images, device=options.device, threads=options.threads))
    import torch

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    return peak_during(in_torch(subject.build(), images, options, compiled=runtime == COMPILED))


def stored(subject: Subject) -> tuple[float | None, str]:
    """mIoU in percent of the newest evaluation that lies beside a checkpoint and is of it, and what it is of."""
    from resnest_seg.evaluation.report import EvalReport
    from resnest_seg.models.loading import checkpoint_file
    from resnest_seg.reports.run_files import evaluations

    if subject.config:
        return None, ""
    file = checkpoint_file(subject.name)
    for path in reversed(evaluations(file.parent).values()):
        try:
            report = EvalReport.load(path)
        except DatasetError:
            continue
        if report.checkpoint and Path(report.checkpoint).name != file.name:
            continue
        protocol = next(iter(report.scores))
        return 100 * report.mean_iou(protocol), f"{report.dataset} {report.split}, {protocol}, {report.images}"
    return None, ""


def measured(model: Segmenter, file: Path | None, dataset: SegmentationDataset, limit: int | None) -> float:
    """mIoU in percent of a model, or of its 8-bit file, by the protocol whole."""
    from resnest_seg.evaluation.evaluator import evaluate
    from resnest_seg.inference.backends import FileBackend

    indices = range(min(len(dataset), limit or len(dataset)))
    report = evaluate(model if file is None else FileBackend(file), dataset, indices=indices)
    return 100 * report.mean_iou("whole")


def data_of(
    subject: Subject, options: argparse.Namespace, *, training: bool = False
) -> tuple[Segmenter, SegmentationDataset]:
    """A model and the data set that --dataset names."""
    model = subject.build()
    split = "train" if training else options.split or "val"
    space, trained = model.label_space, model.config.data
    return model, open_dataset(options, trained, space, name=options.dataset, split=split)


def accuracies(found: Sequence[Entry], options: argparse.Namespace) -> list[tuple[float | None, str]]:
    """mIoU in percent of every entry and of which evaluation; None where it is not known.

    Runtimes in 32 bits have that of the checkpoint, whose labels they give; 8 bits have one of their own.
    """
    known: dict[tuple[Subject, Path | None], tuple[float | None, str]] = {}
    for entry in found:
        key = entry.subject, entry.file if entry.runtime == INT8 else None
        if key in known:
            continue
        if entry.subject.config or (options.dataset is None and entry.runtime == INT8):
            known[key] = None, ""
        elif options.dataset is None:
            known[key] = stored(entry.subject)
        else:
            model, dataset = data_of(entry.subject, options)
            number = min(len(dataset), options.limit or len(dataset))
            score = measured(model, key[1], dataset, options.limit)
            known[key] = score, f"{options.dataset} {options.split or 'val'}, whole, {number}"
    return [known[entry.subject, entry.file if entry.runtime == INT8 else None] for entry in found]


def calibration_of(subject: Subject, options: argparse.Namespace) -> Photos | None:
    """Training photos of --dataset, for the ranges of 8 bits; None without one."""
    if options.dataset is None or subject.config or "int8" not in options.runtimes:
        return None
    _, dataset = data_of(subject, options, training=True)
    step = max(len(dataset) // 32, 1)
    return [dataset[index].image for index in range(0, len(dataset), step)][:32]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    text = "run folders, checkpoint files, or names of published ones"
    parser.add_argument("--checkpoint", nargs="+", default=[], metavar="RUN", help=text)
    text = "configs, by name or file: their networks, with fresh weights"
    parser.add_argument("--config", nargs="+", default=[], metavar="FILE", help=text)
    parser.add_argument("--size", type=int, nargs=2, default=(360, 480), metavar=("H", "W"), help="default: 360 480")
    parser.add_argument("--batch", type=int, default=1, help="images together (default: 1); times are those of one")
    parser.add_argument("--device", default="cpu", help=f"{' or '.join(DEVICES)} (default: cpu)")
    text = f"of {', '.join(RUNTIMES)} (default: those that are installed)"
    parser.add_argument("--runtimes", nargs="+", default=None, metavar="NAME", help=text)
    parser.add_argument("--compile", action="store_true", help="torch.compile as well")
    parser.add_argument("--threads", type=int, help="of every runtime (default: theirs)")
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True, help="peaks, in own processes")
    parser.add_argument("--limit", type=int, help="evaluate the first LIMIT images only")
    add_dataset(parser, default="none: accuracies are those of evaluations that lie beside the checkpoints")


def check(options: argparse.Namespace) -> list[Subject]:
    """The networks; what cannot be measured is refused, and the runtimes that are installed are filled in.

    Raises:
        ConfigError: Says which.
    """
    import torch

    subjects = [Subject(name, False) for name in options.checkpoint] + [Subject(name, True) for name in options.config]
    if not subjects:
        raise ConfigError("this benchmark needs --checkpoint RUN ... or --config FILE ...: which networks to measure.")
    for name in options.runtimes or ():
        if name not in RUNTIMES:
            raise unknown_name("--runtimes", name, RUNTIMES)
    if options.device not in DEVICES:
        raise unknown_name("--device", options.device, DEVICES)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: this machine has no GPU that torch can use.")
    if min(options.size) < 32:
        raise ConfigError(f"--size must be at least 32 32, not {options.size[0]} {options.size[1]}.")
    for option in ("batch", "threads", "limit"):
        value = getattr(options, option)
        if value is not None and value < 1:
            raise ConfigError(f"--{option} must be at least 1, not {value}.")
    for key, option in (DATASET_OPTIONS | {"limit": "--limit"}).items():
        if options.dataset is None and getattr(options, key) is not None:
            raise ConfigError(
                f"{option} is for the evaluation of --dataset: give --dataset NAME as well. Without it, accuracies are "
                "those of evaluations that lie beside the checkpoints."
            )
    absent = {name: [each for each in NEEDS[name] if importlib.util.find_spec(each) is None] for name in RUNTIMES}
    for name in options.runtimes or ():
        if absent[name]:
            extra = "openvino" if name == "openvino" else "export"
            raise ConfigError(f"--runtimes {name} needs {absent[name][0]}: pip install 'resnest-seg[{extra}]'.")
    if options.runtimes is None:
        options.runtimes = [name for name in RUNTIMES if not absent[name]]
    if options.device != "cpu":
        options.runtimes = [name for name in options.runtimes if name != "openvino"]
    return subjects


def run(options: argparse.Namespace) -> list[dict[str, object]]:
    """One row a model and runtime; `pareto_front` compares rows of the same evaluation."""
    import torch

    subjects = check(options)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        found: list[Entry] = []
        for number, subject in enumerate(subjects):
            place = Path(folder, str(number))
            place.mkdir()
            found += entries(subject, options, place, calibration_of(subject, options))
        if not found:
            raise ConfigError("none of the networks can be measured in these runtimes: see the lines above.")
        inputs, counts = {}, {}
        for subject in subjects:
            model = subject.build()
            images = photos(model, options.size, options.batch)
            inputs[subject] = images, padded(images, model)  # as torch takes them, and as a file does
            counts[subject] = count(model, options, channels=model.config.model.in_channels)
        peaks: list[float | None] = [None] * len(found)
        for index, entry in enumerate(found if options.memory and options.device == "cpu" else ()):
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh:
                what = entry.subject, entry.runtime, entry.file
                plain, grown = inputs[entry.subject]
                peaks[index] = fresh.submit(peak, what, plain if entry.file is None else grown, options).result()
        scores = accuracies(found, options)
        times = interleave([entry.label for entry in found], options.rounds)
    rows = [
        {
            "name": entry.subject.name,
            "runtime": entry.runtime.removeprefix("onnxruntime, "),
            "mean_iou": score,
            "milliseconds": 1000 * statistics.median(taken) / options.batch,  # of an image, like the operations
            "spread": spread(taken),
            "parameters_m": counts[entry.subject][0],
            "gmacs": counts[entry.subject][1] / 2 / options.batch,
            "peak_mebibytes": most,
            "evaluation": of,
        }
        for entry, (score, of), taken, most in zip(found, scores, times, peaks, strict=True)
    ]
    return marked(rows)


def marked(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    """The rows with `pareto_front`, after the milliseconds: of those that the same evaluation scores; else None."""
    for evaluation in {row["evaluation"] for row in rows}:
        group = [row for row in rows if row["evaluation"] == evaluation and row["mean_iou"] is not None]
        front = pareto([(float(str(row["mean_iou"])), float(str(row["milliseconds"]))) for row in group])
        for row, on in zip(group, front, strict=True):
            row["pareto_front"] = on
    order = ["name", "runtime", "mean_iou", "milliseconds", "pareto_front"]
    rest = [key for key in rows[0] if key not in order]
    return [{key: row.get(key) for key in [*order, *rest]} for row in rows]
