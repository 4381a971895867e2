"""Scores of every image: JSON lines beside a report, written while images come, read a line at a time, without torch.

The first line is a header, then there is a line for every image and protocol:

    {"format": "resnest_seg image scores", "version": 1, "dataset": ..., "split": ..., "classes": [names],
     "protocols": [names], "task": ..., "model": ..., "checkpoint": ...}
    {"index": 12, "name": "0001TP_008550", "protocol": "whole", "pixels": 168000, "counts": {"3": [410, 502, 455]}, ...}

`counts` are intersection, truth and prediction in labelled pixels by class id, without classes that are absent from
both. Summed over the images they are the diagonal, the rows and the columns of the report's confusion matrix.
"""

from __future__ import annotations

import contextlib
import dataclasses
import heapq
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from resnest_seg.errors import DatasetError, unknown_name
from resnest_seg.files import atomic_write, naming

FORMAT, VERSION = "resnest_seg image scores", 1
"""What the header of a file says."""

SUFFIX = ".images.jsonl"
"""Suffix of the file beside a report: that of eval_camvid_val.json is eval_camvid_val.images.jsonl."""

VALIDATION_REPORT, VALIDATION_IMAGES = "val_report.json", "val_images.jsonl"
"""Names in a run folder: the report of the best validation, and the scores of its images."""

_SHARES = ("mean_iou", "mean_iou_absent_zero", "pixel_accuracy", "boundary_iou", "confidence", "entropy")


def images_beside(report: str | Path) -> Path:
    """Return the file of the images' scores that belongs to a report."""
    report = Path(report)
    if report.name == VALIDATION_REPORT:
        return report.with_name(VALIDATION_IMAGES)
    return report.with_name(f"{report.name.removesuffix('.json')}{SUFFIX}")


@dataclasses.dataclass(frozen=True)
class ImagesHeader:
    """What the images of a file have in common.

    Attributes:
        dataset: Name of the data set.
        split: Its split.
        classes: Class names; of a binary or multi-label task the labels.
        protocols: Names of the protocols.
        task: multiclass, binary or multilabel.
        model: The network in one line.
        checkpoint: The file that was evaluated, if known.
    """

    dataset: str
    split: str
    classes: tuple[str, ...]
    protocols: tuple[str, ...]
    task: str = "multiclass"
    model: str = ""
    checkpoint: str = ""


@dataclasses.dataclass(frozen=True)
class ImageScores:
    """The scores of one image by one protocol; shares are 0..1.

    Attributes:
        index: Of the sample in the data set.
        name: The sample's name within its data set, the same on every machine.
        protocol: Name of the protocol.
        pixels: Labelled pixels.
        counts: Class id -> intersection, truth and prediction in labelled pixels, of the classes in either.
        mean_iou: Mean IoU over the classes of `counts`; None without any.
        mean_iou_absent_zero: Mean IoU over all classes, absent ones as 0; None without labelled pixels.
        pixel_accuracy: Share of the labelled pixels that are right (of a multi-label task in every label); None
            without labelled pixels.
        boundary_iou: Mean boundary IoU of the image's classes; None without a boundary, or if it was not measured.
        confidence: Mean over labelled pixels of the probability of what was predicted (of binary and multi-label tasks
            the mean over labels); None if the model gives labels only, or without labelled pixels.
        entropy: Mean over labelled pixels of the entropy of the probabilities, 1 if all classes are equally probable;
            None likewise.
    """

    index: int
    name: str
    protocol: str
    pixels: int
    counts: dict[int, tuple[int, int, int]]
    mean_iou: float | None
    mean_iou_absent_zero: float | None
    pixel_accuracy: float | None
    boundary_iou: float | None = None
    confidence: float | None = None
    entropy: float | None = None

    @classmethod
    def of_counts(
        cls,
        counts: NDArray[np.int64],
        *,
        index: int,
        name: str,
        protocol: str,
        pixels: int,
        right: int,
        boundary_iou: float | None = None,
        confidence: float | None = None,
        entropy: float | None = None,
    ) -> ImageScores:
        """Derive the means.

        Args:
            counts: [3, K]: intersection, truth and prediction of every class.
            index: See the attributes.
            name: See the attributes.
            protocol: See the attributes.
            pixels: Labelled pixels.
            right: Of these, the pixels that are right.
            boundary_iou: See the attributes.
            confidence: See the attributes.
            entropy: See the attributes.
        """
        unions = counts[1] + counts[2] - counts[0]
        present = np.flatnonzero(unions)
        total = float((counts[0][present] / unions[present]).sum())
        return cls(
            index=index,
            name=name,
            protocol=protocol,
            pixels=pixels,
            counts={int(k): (int(counts[0, k]), int(counts[1, k]), int(counts[2, k])) for k in present},
            mean_iou=total / len(present) if len(present) else None,
            mean_iou_absent_zero=total / counts.shape[1] if pixels else None,
            pixel_accuracy=right / pixels if pixels else None,
            boundary_iou=boundary_iou,
            confidence=confidence,
            entropy=entropy,
        )

    def iou(self, class_id: int) -> float | None:
        """Return the IoU of a class; None if it is absent from the labels and the prediction."""
        if class_id not in self.counts:
            return None
        intersection, truth, predicted = self.counts[class_id]
        return intersection / (truth + predicted - intersection)


class ImageScoresWriter:
    """A context manager that writes a file of scores line by line; it gets its name at the end, if all went well.

    Args:
        path: The file, which is replaced.
        keep_going: After an error of the system (a full disk), write no more and raise it at the end of the context
            instead of at once: an evaluation need not be lost with it.

    Raises:
        OSError: The file cannot be written.
    """

    def __init__(self, path: str | Path, *, keep_going: bool = False) -> None:
        self.path, self.keep_going = Path(path), keep_going
        self.problem: OSError | None = None
        self._file: TextIO | None = None

    def __enter__(self) -> ImageScoresWriter:
        with contextlib.ExitStack() as opened:
            temporary = opened.enter_context(atomic_write(self.path))
            self._file = opened.enter_context(open(temporary, "w", encoding="utf-8"))
            self._opened = opened.pop_all()
        return self

    def begin(self, header: ImagesHeader) -> None:
        """Write the header, before the first image."""
        self._write({"format": FORMAT, "version": VERSION, **dataclasses.asdict(header)})

    def add(self, scores: Iterable[ImageScores]) -> None:
        """Append an image, by every protocol."""
        for each in scores:
            self._write(vars(each))  # dataclasses.asdict copies, which takes longer than writing

    def _write(self, values: Mapping[str, Any]) -> None:
        assert self._file is not None, "the file is open within the context only"
        if self.problem is not None:
            return
        try:
            with naming(self.path):
                self._file.write(json.dumps(values) + "\n")
        except OSError as error:
            self.problem = error
            if not self.keep_going:
                raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.problem is None or error is not None:
            self._opened.__exit__(kind, error, trace)
        else:
            self._opened.__exit__(type(self.problem), self.problem, self.problem.__traceback__)
            raise self.problem


class ImageScoresFile:
    """A file of scores, read a line at a time; `for scores in ImageScoresFile(path)` gives every image and protocol.

    Args:
        path: The file.

    Attributes:
        path: The file.
        header: What the images have in common.

    Raises:
        DatasetError: The file is missing, or no such file of this version; in the loop: a line is damaged.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        with self._lines() as lines:
            self.header = self._read_header(next(lines, ""))

    def __iter__(self) -> Iterator[ImageScores]:
        with self._lines() as lines:
            next(lines, "")
            for number, line in enumerate(lines, start=2):
                yield self._read(line, number)

    def counts(self, protocol: str) -> tuple[list[tuple[int, str]], NDArray[np.int64]]:
        """Read the counts of all images by one protocol.

        Returns:
            (index, name) of N images, and counts [N, K, 3]: intersection, truth and prediction of every class.

        Raises:
            DatasetError: There are no scores by this protocol, or an image is there twice.
        """
        if protocol not in self.header.protocols:
            raise DatasetError(str(unknown_name(f"protocol in {self.path}:", protocol, self.header.protocols)))
        names: list[tuple[int, str]] = []
        rows: list[NDArray[np.int64]] = []
        for scores in self:
            if scores.protocol != protocol:
                continue
            row = np.zeros((len(self.header.classes), 3), np.int64)
            for label, counted in scores.counts.items():
                row[label] = counted
            names.append((scores.index, scores.name))
            rows.append(row)
        if len({index for index, _ in names}) < len(names):
            raise DatasetError(f"{self.path} has an image twice by protocol {protocol}. Evaluate again.")
        return names, np.stack(rows) if rows else np.zeros((0, len(self.header.classes), 3), np.int64)

    @contextlib.contextmanager
    def _lines(self) -> Iterator[Iterator[str]]:
        try:
            with open(self.path, encoding="utf-8") as file:
                yield iter(file)
        except OSError as error:
            raise DatasetError(f"cannot read the scores by image in {self.path}: {error.strerror}.") from None
        except UnicodeDecodeError as error:
            raise DatasetError(f"{self.path} is no file of scores by image: {error}. Evaluate again.") from None

    def _read_header(self, line: str) -> ImagesHeader:
        try:
            tree = json.loads(line)
            _require(isinstance(tree, dict) and tree["format"] == FORMAT, "it has another format")
            _require(tree["version"] == VERSION, f"it is of version {tree['version']!r:.20}, not {VERSION}")
            header = ImagesHeader(
                classes=tuple(tree["classes"]),
                protocols=tuple(tree["protocols"]),
                **{key: tree[key] for key in ("dataset", "split", "task", "model", "checkpoint")},
            )
            rest = (header.dataset, header.split, header.task, header.model, header.checkpoint)
            _require(all(isinstance(text, str) for text in (*header.classes, *header.protocols, *rest)), "no text")
            _require(bool(header.classes and header.protocols), "it has no classes or no protocols")
            return header
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DatasetError(
                f"{self.path} is no file of scores by image, which `eval` writes beside its report: line 1: "
                f"{type(error).__name__}: {error}. Evaluate again."
            ) from None

    def _read(self, line: str, number: int) -> ImageScores:
        try:
            tree = json.loads(line)
            counts = {int(key): _checked_counts(value) for key, value in tree["counts"].items()}
            _require(all(0 <= label < len(self.header.classes) for label in counts), "a class id is out of range")
            _require(isinstance(tree["name"], str), "the name is no text")
            _require(tree["protocol"] in self.header.protocols, "the protocol is none of the header's")
            return ImageScores(
                index=_whole(tree["index"]),
                name=tree["name"],
                protocol=tree["protocol"],
                pixels=_whole(tree["pixels"]),
                counts=counts,
                **{key: _share(tree[key]) for key in _SHARES},
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DatasetError(
                f"{self.path}, line {number}, is no scores of an image ({type(error).__name__}: {error}): the file is "
                "damaged, or was not written to its end. Evaluate again."
            ) from None


def merge_image_scores(parts: Sequence[str | Path], output: str | Path) -> None:
    """Merge the files of several processes by the images' indices, and remove them.

    Lines stay as they are, and an image that several processes evaluated is kept once.

    Args:
        parts: The files, each with ascending indices.
        output: The merged file, which is replaced.

    Raises:
        DatasetError: A part is missing or damaged, or they have different headers.
        OSError: The file cannot be written.
    """
    files = [ImageScoresFile(part) for part in parts]
    for file in files[1:]:
        if file.header != files[0].header:
            raise DatasetError(f"{file.path} and {files[0].path} are scores of different evaluations. Evaluate again.")
    with atomic_write(output) as temporary, contextlib.ExitStack() as opened:
        target = opened.enter_context(open(temporary, "w", encoding="utf-8"))
        sources = [opened.enter_context(open(part, encoding="utf-8")) for part in parts]
        headers = [next(lines) for lines in sources]
        target.write(headers[0])
        kept = (-1, -1)
        for index, place, line in heapq.merge(*map(_numbered, sources, itertools.count())):
            if index != kept[0]:
                kept = (index, place)
            if place == kept[1]:
                target.write(line)
    for file in files:
        file.path.unlink(missing_ok=True)


def _numbered(lines: Iterable[str], place: int) -> Iterator[tuple[int, int, str]]:
    """Index of the image, place of the file, and line: `heapq.merge` never compares two lines of one file."""
    return ((int(json.loads(line)["index"]), place, line) for line in lines)


def _whole(value: Any) -> int:
    _require(isinstance(value, int) and not isinstance(value, bool) and value >= 0, f"{value!r:.20} is no count")
    return int(value)


def _share(value: Any) -> float | None:
    if value is None:
        return None
    _require(isinstance(value, int | float) and 0 <= value <= 1, f"{value!r:.20} is no share from 0 to 1")
    return float(value)


def _checked_counts(values: Any) -> tuple[int, int, int]:
    intersection, truth, predicted = (_whole(value) for value in values)
    _require(intersection <= min(truth, predicted) and truth + predicted > 0, "counts contradict each other")
    return intersection, truth, predicted


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)
