"""Audit of a data set's labels by models: which images and which areas of them to look at first.

Every image is predicted once, a slab of rows at a time. What the later steps need of its pixels is kept in a temporary
file, compressed, because an issue is one among all pixels of the data set: it is known after the last image.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import heapq
import io
import json
import math
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resnest_seg.config_types import check_option
from resnest_seg.data.datasets import SegmentationDataset
from resnest_seg.data.loader import load_batches
from resnest_seg.data.tiles import scored_part
from resnest_seg.errors import ConfigError, DatasetError
from resnest_seg.evaluation.evaluator import check_fits, read_like
from resnest_seg.evaluation.label_issues import (
    LEVELS,
    ConfidentLearning,
    DoubtfulRegion,
    JudgedLabels,
    SoftMinimum,
    doubtful_regions,
    to_levels,
)
from resnest_seg.files import atomic_write
from resnest_seg.inference.backends import Backend, RunOptions
from resnest_seg.inference.protocols import Protocol
from resnest_seg.inference.torch_backend import TorchBackend
from resnest_seg.inference.torch_engine import probabilities
from resnest_seg.io.display import PlainTable
from resnest_seg.labels import IGNORE_LABEL, LabelSpace, ignored_pixels, labels_to_bits
from resnest_seg.models.segmenter import Segmenter

MIN_AREA = 64
"""Default of the smallest region in pixels."""

MOST_REGIONS = 10_000
"""Regions that an audit keeps, the highest scores: their number must not grow with that of the images."""

AUDIT, IMAGES, REGIONS = "audit.json", "images.jsonl", "regions.jsonl"
"""Files of an audit: what was audited and found in all, the ranked images, the ranked regions."""


def questions(space: LabelSpace) -> list[tuple[str, ...]]:
    """Return what is asked of each pixel: the classes to choose from, of a multi-label task for each label.

    A multi-label task asks for each label whether it is present, as if it were alone.
    """
    if space.task == "multilabel":
        return [(f"no {name}", name) for name in space.names]
    return [space.names]


def given_answers(labels: NDArray[Any], space: LabelSpace) -> list[NDArray[np.uint8]]:
    """Return the label maps [H, W] of every question: 0..K-1 or `IGNORE_LABEL`.

    Args:
        labels: Train ids, uint8 [H, W], or bits of a multi-label task.
        space: Their label space.
    """
    if space.task != "multilabel":
        return [labels.astype(np.uint8, copy=False)]
    ignored = ignored_pixels(labels)
    return [np.where(ignored, IGNORE_LABEL, labels >> label & 1).astype(np.uint8) for label in range(len(space))]


def joined_answers(answers: Sequence[NDArray[np.uint8]], space: LabelSpace) -> NDArray[Any]:
    """Return the label map whose `given_answers` these are."""
    if space.task != "multilabel":
        return answers[0]
    ignored = answers[0] == IGNORE_LABEL
    return labels_to_bits(np.stack([answer == 1 for answer in answers]), ~ignored)


@dataclasses.dataclass(frozen=True)
class AuditedImage:
    """The labels of an image, as they were judged.

    Attributes:
        index: Of the sample in the data set.
        name: Of the sample within the data set.
        pixels: Labelled pixels; of a multi-label task, once for each label.
        score: Soft minimum of their self-confidences, 0..1, low for doubtful labels, by which images are ranked; 1
            without a labelled pixel.
        issues: How many of the pixels are issues.
        regions: Number of its regions.
        pairs: (given, predicted), as names -> how many issues have it.
    """

    index: int
    name: str
    pixels: int
    score: float
    issues: int
    regions: int
    pairs: dict[tuple[str, str], int]

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        values = dataclasses.asdict(self)
        values["issue_share"] = self.issues / max(self.pixels, 1)
        values["pairs"] = [{"given": given, "predicted": predicted, "pixels": count}
                           for (given, predicted), count in self.pairs.items()]  # fmt: skip
        return values


@dataclasses.dataclass(frozen=True)
class AuditedRegion:
    """A region whose label is doubtful.

    Attributes:
        index: Of the sample in the data set.
        name: Of the sample within the data set.
        given: Name of its label.
        predicted: Name of the class that the model says.
        region: Place and measures; the box lies in the sample, of windows of a raster in their cell.
    """

    index: int
    name: str
    given: str
    predicted: str
    region: DoubtfulRegion

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        region = self.region
        return {
            "index": self.index, "name": self.name, "given": self.given, "predicted": self.predicted,
            "box": list(region.box), "area": region.area, "issues": region.issues, "score": region.score,
            "confidence": region.confidence, "self_confidence": region.self_confidence, "width": region.width,
        }  # fmt: skip


class AuditMaps(NamedTuple):
    """Label maps of an image [H, W], in the values of its data set.

    Attributes:
        given: Its labels.
        predicted: What the model says.
        doubtful: The pixels of its regions, bool.
        suggested: Its labels with the model's in the regions.
    """

    given: NDArray[Any]
    predicted: NDArray[Any]
    doubtful: NDArray[np.bool_]
    suggested: NDArray[Any]


@dataclasses.dataclass(frozen=True)
class AuditReport:
    """The result of an audit.

    Attributes:
        space: The classes of the data set.
        split: Its split.
        models: Descriptions of the models, in the order of the folds.
        protocol: Name of the inference protocol.
        images: The images, the most doubtful ones first.
        regions: The regions, the most doubtful ones first, at most `MOST_REGIONS`.
        found: How many regions there are in all.
        small: How many regions were smaller than `min_area`, and are not among them.
        min_area: The smallest region in pixels.
        thresholds: For each question, class -> probability from which the model is confident.
        confident: Pixels at which the models are confident of another class than the label: an estimate of the number
            of wrong ones.
        kept: The judged labels of all images.
    """

    space: LabelSpace
    split: str
    models: tuple[str, ...]
    protocol: str
    images: tuple[AuditedImage, ...]
    regions: tuple[AuditedRegion, ...]
    found: int
    small: int
    min_area: int
    thresholds: tuple[dict[str, float], ...]
    confident: int
    kept: JudgedPixels

    @property
    def pixels(self) -> int:
        """Labelled pixels of all images."""
        return sum(image.pixels for image in self.images)

    @property
    def issues(self) -> int:
        """Issues in all images."""
        return sum(image.issues for image in self.images)

    @property
    def pairs(self) -> dict[tuple[str, str], int]:
        """(given, predicted), as names -> how many issues have it; the most frequent first."""
        total = collections.Counter[tuple[str, str]]()
        for image in self.images:
            total.update(image.pairs)
        return dict(total.most_common())

    def flagged(self, count: int) -> list[AuditedImage]:
        """The most doubtful images that have a region or an issue, at most `count`."""
        return [image for image in self.images if image.issues or image.regions][:count]

    def maps(self, index: int) -> AuditMaps:
        """The label maps of an image by its index; of a window of a raster, of its cell."""
        judged = self.kept[index]
        masks = [
            doubtful_regions(one, cutoff, min_area=self.min_area).mask
            for one, cutoff in zip(judged, self.kept.cutoffs, strict=True)
        ]
        given = [one.given for one in judged]
        suggested = [np.where(mask, one.predicted, one.given) for one, mask in zip(judged, masks, strict=True)]
        predicted = [one.predicted for one in judged]
        return AuditMaps(
            joined_answers(given, self.space),
            joined_answers(predicted, self.space),
            np.any(masks, axis=0),
            joined_answers(suggested, self.space),
        )

    def save(self, folder: str | Path, *, about: Mapping[str, Any] = MappingProxyType({})) -> None:
        """Write `audit.json`, `images.jsonl` and `regions.jsonl`.

        Args:
            folder: Where to write.
            about: More that `audit.json` says, as plain values.

        Raises:
            OSError: A file cannot be written.
        """
        tables: dict[str, Sequence[AuditedImage | AuditedRegion]] = {IMAGES: self.images, REGIONS: self.regions}
        for name, rows in tables.items():
            with atomic_write(Path(folder, name)) as temporary, open(temporary, "w", encoding="utf-8") as file:
                for rank, row in enumerate(rows, start=1):
                    file.write(json.dumps({"rank": rank, **row.to_dict()}, ensure_ascii=True) + "\n")
        with atomic_write(Path(folder, AUDIT)) as temporary:
            temporary.write_text(json.dumps({**self.to_dict(), **about}, indent=1) + "\n", encoding="utf-8")

    def to_dict(self) -> dict[str, Any]:
        """What was audited and found in all, as plain values."""
        return {
            "format": "resnest_seg audit", "version": 1, "dataset": self.space.name, "split": self.split,
            "models": list(self.models), "protocol": self.protocol, "classes": list(self.space.names),
            "images": len(self.images), "pixels": self.pixels, "issues": self.issues, "confident": self.confident,
            "regions": self.found, "smaller_regions": self.small, "min_area": self.min_area,
            "thresholds": list(self.thresholds),
            "pairs": [{"given": given, "predicted": predicted, "pixels": count}
                      for (given, predicted), count in self.pairs.items()],
        }  # fmt: skip

    def table(self, *, most: int = 12) -> PlainTable:
        """The most frequent confusions of label and model, for a console."""
        share = self.issues / max(self.pixels, 1)
        table = PlainTable(
            title=f"{self.space.name} {self.split}: {100 * share:.2f} % of {self.pixels:,} pixels are doubtful",
            caption=f"{self.found:,} regions of at least {self.min_area} pixels; {self.small:,} smaller ones left out",
        )
        for heading, right in (("label", False), ("prediction", False), ("pixels", True), ("share", True)):
            table.column(heading, right=right)
        for (given, predicted), count in list(self.pairs.items())[:most]:
            table.row(given, predicted, str(count), f"{100 * count / max(self.issues, 1):.1f} %")
        return table


class JudgedPixels:
    """The judged labels of many images, in a temporary file that vanishes with this object.

    Args:
        folder: Where the file is; None for the system's folder of temporary files.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self._file: IO[bytes] = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  # as long as this object lives
        weakref.finalize(self, self._file.close)
        self._places: dict[int, tuple[int, int]] = {}
        self.cutoffs: list[int] = []

    def add(self, index: int, judged: Sequence[JudgedLabels]) -> None:
        """Keep an image: its judged labels for every question; probabilities only where the model disagrees."""
        arrays: dict[str, NDArray[Any]] = {}
        for number, one in enumerate(judged):
            other = one.disagreement
            arrays |= {f"given{number}": one.given, f"predicted{number}": one.predicted,
                       f"levels{number}": np.stack([one.self_confidence[other], one.confidence[other]])}  # fmt: skip
        start = self._file.seek(0, io.SEEK_END)
        np.savez_compressed(self._file, allow_pickle=False, **arrays)
        self._places[index] = (start, self._file.tell() - start)

    def __getitem__(self, index: int) -> list[JudgedLabels]:
        """The judged labels of an image by its index; probabilities are 1 where model and label agree."""
        start, size = self._places[index]
        self._file.seek(start)
        with np.load(io.BytesIO(self._file.read(size)), allow_pickle=False) as arrays:
            found = []
            for number in range(len(arrays) // 3):
                given, predicted = arrays[f"given{number}"], arrays[f"predicted{number}"]
                levels = np.full((2, *given.shape), LEVELS, np.uint16)
                other = JudgedLabels(given, predicted, *levels).disagreement
                levels[:, other] = arrays[f"levels{number}"]
                found.append(JudgedLabels(given, predicted, *levels))
        return found

    def issues(self, index: int) -> list[NDArray[np.bool_]]:
        """Where an image has issues, for every question, [H, W]."""
        return [one.issues(cutoff) for one, cutoff in zip(self[index], self.cutoffs, strict=True)]


def audit(
    models: Segmenter | Backend | Iterable[Segmenter | Backend],
    dataset: SegmentationDataset,
    *,
    fold_of: Sequence[int] | NDArray[np.int64] | None = None,
    protocol: str | Protocol = "whole",
    indices: Sequence[int] | None = None,
    workers: int = 0,
    memory: int | None = None,
    min_area: int = MIN_AREA,
    on_step: Callable[[str, int, int], None] | None = None,
    folder: str | Path | None = None,
) -> AuditReport:
    """Rank images, and areas of them, by how doubtful their labels are.

    The models must not have been trained on the images that they judge: a model repeats the errors of the labels that
    it learnt. `resnest_seg.combining.folds.fit_folds` trains models each of which has not seen a part.

    Args:
        models: A model for all samples; or one for each fold, in their order, of which one is in use at a time.
        dataset: The labelled images.
        fold_of: The fold of every sample, [N]: it is judged by the model with that number.
        protocol: Inference protocol, or its name.
        indices: The samples to audit; None takes all.
        workers: Loader processes.
        memory: Bytes that scores may take, see `evaluate`.
        min_area: Regions of fewer pixels are left out, 1 or more.
        on_step: Called with the name of the step ("predicting", "comparing"), the images done and their number.
        folder: Where a temporary file is made, of about a tenth of the size of the decoded images.

    Raises:
        CheckpointError: A model has other classes than the data set.
        ConfigError: A model gives labels only; folds that do not fit; a number out of range.
        DatasetError: A sample cannot be read, or no pixel is labelled.
        ResNeStSegError: A loader process died.
    """
    check_option("min_area", min_area, 1, 1 << 40)
    check_option("memory", memory, 1, math.inf)
    chosen = sorted(set(range(len(dataset)) if indices is None else indices))
    judge = _Judge(dataset, protocol, workers, memory, folder)
    for model, part in _shares(models, dataset, chosen, fold_of):
        for done in judge.judge(model, part):
            if on_step is not None:
                on_step("predicting", done, len(chosen))
    if len(judge.judged) < len(chosen):
        missing = next(index for index in chosen if index not in judge.judged)
        raise ConfigError(
            f"sample {missing} is of fold {0 if fold_of is None else fold_of[missing]}, and there are "
            f"{len(judge.descriptions)} models: give one for each fold."
        )
    if not any(pixels for _, pixels, _ in judge.judged.values()):
        raise DatasetError(
            f"nothing to audit: no pixel of the {dataset.split} split of {dataset.label_space.name} has a label."
        )
    return judge.report(min_area, on_step)


def _shares(
    models: Segmenter | Backend | Iterable[Segmenter | Backend],
    dataset: SegmentationDataset,
    chosen: Sequence[int],
    fold_of: Sequence[int] | NDArray[np.int64] | None,
) -> Iterator[tuple[Segmenter | Backend, Sequence[int]]]:
    """Yield each model with the samples that it judges; see `audit` for the arguments and errors."""
    if isinstance(models, Segmenter | Backend):
        if fold_of is not None:
            raise ConfigError("fold_of belongs to one model for each fold: give a list of models.")
        yield models, chosen
        return
    if fold_of is None or len(fold_of) != len(dataset):
        count = "is missing" if fold_of is None else f"has {len(fold_of)} values"
        raise ConfigError(f"several models need the fold of each of the {len(dataset)} samples: fold_of {count}.")
    for fold, model in enumerate(models):
        yield model, [index for index in chosen if fold_of[index] == fold]


class _Judge:
    """Judges images, and then draws the conclusions.

    Args:
        dataset: See `audit`, also for the others.
        protocol: As above.
        workers: As above.
        memory: As above.
        folder: As above.

    Attributes:
        judged: Index -> name, number of labelled pixels and score of every image so far.
        descriptions: Of the models so far.
    """

    def __init__(
        self,
        dataset: SegmentationDataset,
        protocol: str | Protocol,
        workers: int,
        memory: int | None,
        folder: str | Path | None,
    ) -> None:
        self.dataset, self.protocol, self.workers, self.memory = dataset, protocol, workers, memory
        self.questions = questions(dataset.label_space)
        self.learning = [ConfidentLearning(len(names)) for names in self.questions]
        self.kept = JudgedPixels(folder)
        self.judged: dict[int, tuple[str, int, float]] = {}
        self.descriptions: list[str] = []

    def judge(self, model: Segmenter | Backend, indices: Sequence[int]) -> Iterator[int]:
        """Judge samples by a model, and yield how many have been judged in all."""
        read_like(model, self.dataset, chosen=True)
        check_fits(model, self.dataset)
        if isinstance(model, Segmenter):
            model = TorchBackend(model, RunOptions(device=str(model.pixel_mean.device), fuse=False))
        model.check_scores()
        method = model.protocol(self.protocol)
        self.descriptions.append(model.description)
        pinned = torch.device(model.device).type == "cuda"
        order = ([(0, index)] for index in indices)
        batches = load_batches(self.dataset, order, workers=self.workers, pin_memory=pinned)
        with torch.inference_mode(), contextlib.closing(batches):
            for index, batch in zip(indices, batches, strict=True):
                image, labels = batch.images[0].permute(1, 2, 0).numpy(), batch.labels[0].numpy()
                if self.dataset.label_space.task == "multilabel":
                    labels = labels.astype(np.uint16)  # which travels as int32
                self._add(index, self._answers(model, method, image, labels))
                yield len(self.judged)

    def _answers(
        self, model: Backend, method: Protocol, image: NDArray[Any], labels: NDArray[Any]
    ) -> tuple[list[JudgedLabels], float | None]:
        """The judged labels of an image for every question, and its score."""
        given = given_answers(labels, self.dataset.label_space)
        judged = [
            JudgedLabels(one, *(np.zeros(one.shape, kind) for kind in (np.uint8, np.uint16, np.uint16)))
            for one in given
        ]
        score = SoftMinimum()
        for block in model.blocks(image, method, memory=self.memory):
            here = (block.rows, block.columns)
            scores = probabilities(torch.as_tensor(block.scores), method.merge)
            for number, one in enumerate(judged):
                answers = scores
                if self.dataset.label_space.task != "multiclass":
                    present = scores[number]
                    answers = torch.stack([1 - present, present])
                known = one.given[here] != IGNORE_LABEL
                own, best, top = _of_labels(answers, np.where(known, one.given[here], 0))
                score.update(own[known])
                self.learning[number].update(one.given[here][known], own[known], best[known], top[known])
                one.predicted[here] = best
                one.self_confidence[here], one.confidence[here] = to_levels(own), to_levels(top)
        return judged, score.value

    def _add(self, index: int, answers: tuple[list[JudgedLabels], float | None]) -> None:
        part = scored_part(self.dataset, index)
        judged = [one.part(*part) for one in answers[0]]
        self.kept.add(index, judged)
        pixels = sum(int((one.given != IGNORE_LABEL).sum()) for one in judged)
        self.judged[index] = (self.dataset.sample_name(index), pixels, 1.0 if answers[1] is None else answers[1])

    def report(self, min_area: int, on_step: Callable[[str, int, int], None] | None) -> AuditReport:
        """Find issues and regions, and rank."""
        self.kept.cutoffs = [learning.cutoff for learning in self.learning]
        images, best, found, small = list[AuditedImage](), list[tuple[float, int, AuditedRegion]](), 0, 0
        for done, (index, (name, pixels, score)) in enumerate(sorted(self.judged.items()), start=1):
            pairs, before = collections.Counter[tuple[str, str]](), found
            for names, one, cutoff in zip(self.questions, self.kept[index], self.kept.cutoffs, strict=True):
                wrong = one.issues(cutoff)
                codes = one.given[wrong].astype(np.int64) * 256 + one.predicted[wrong]
                for code, count in zip(*np.unique(codes, return_counts=True), strict=True):
                    pairs[names[code // 256], names[code % 256]] += int(count)
                seen = doubtful_regions(one, cutoff, min_area=min_area)
                small += seen.small
                for region in seen.regions:
                    found += 1
                    entry = AuditedRegion(index, name, names[region.given], names[region.predicted], region)
                    heapq.heappush(best, (region.score, -found, entry))
                    if len(best) > MOST_REGIONS:
                        heapq.heappop(best)
            images.append(
                AuditedImage(index, name, pixels, score, sum(pairs.values()), found - before, dict(pairs.most_common()))
            )
            if on_step is not None:
                on_step("comparing", done, len(self.judged))
        return AuditReport(
            space=self.dataset.label_space,
            split=self.dataset.split,
            models=tuple(self.descriptions),
            protocol=self.protocol if isinstance(self.protocol, str) else self.protocol.name,
            images=tuple(sorted(images, key=lambda image: image.score)),
            regions=tuple(entry for _, _, entry in sorted(best, key=lambda kept: kept[:2], reverse=True)),
            found=found,
            small=small,
            min_area=min_area,
            thresholds=tuple(
                dict(zip(names, learning.thresholds.tolist(), strict=True))
                for names, learning in zip(self.questions, self.learning, strict=True)
            ),
            confident=sum(learning.confident for learning in self.learning),
            kept=self.kept,
        )


def _of_labels(
    answers: Tensor, given: NDArray[np.uint8]
) -> tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.float32]]:
    """Of probabilities [K, r, c]: that of each given label, the most probable class, and its probability, [r, c]."""
    labels = torch.from_numpy(given.astype(np.int64)).to(answers.device)
    best = answers.argmax(dim=0)
    own, top = (answers.gather(0, chosen[None])[0].cpu().numpy() for chosen in (labels, best))
    return own, best.to(torch.uint8).cpu().numpy(), top
