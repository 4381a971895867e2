"""Checks of a data set: read every photo and mask, and report problems with their files and cause."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnest_seg.data.class_balance import (
    PixelStatistics,
    class_shares,
    effective_number_weights,
    median_frequency_weights,
    merged_statistics,
)
from resnest_seg.data.class_lists import csv_lines
from resnest_seg.data.datasets import PairedFiles, SegmentationDataset
from resnest_seg.data.folder import FolderDataset
from resnest_seg.data.inspection import SampleFacts, near_duplicates, scan, scan_masks
from resnest_seg.errors import DatasetError, command
from resnest_seg.files import atomic_write
from resnest_seg.io.display import PlainTable
from resnest_seg.labels import IGNORE_LABEL, LabelSpace

LOOK = 500
"""Maximum number of masks that `check_classes` reads while nothing is suspicious."""

TURNED = "turned photos"
"""Kind of the finding that photos are rotated by their orientation tag and masks are not."""

NOTABLE = 0.01
"""Share of pixels, 0..1, above which an unlisted id is not an accident."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """One problem of a data set.

    Attributes:
        severity: "error" if training would fail or learn the wrong classes, "warning" if a person should check.
        kind: The sort of problem, in a few words.
        message: What is wrong and how to fix it.
        files: The files concerned.
    """

    severity: str
    kind: str
    message: str
    files: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """The result of scanning a data set.

    Attributes:
        dataset: Name of the data set.
        classes: Class names.
        samples: Split -> number of samples that were scanned.
        findings: The problems, errors first.
        shares: Split -> share of each class in the labelled pixels, K values in 0..1.
        ignored: Split -> share of ignored pixels, 0..1.
        histogram: Split -> raw id -> number of pixels, for masks of ids.
        sizes: Split -> smallest, median and largest (H, W) by area.
        median_frequency: K class weights for a loss by `median_frequency_weights`, from the first split; empty for
            binary and multi-label tasks, whose losses have others.
        effective_number: K class weights for a loss by `effective_number_weights`, likewise.
        suggested_crop: Side of a training crop that most photos fill, a multiple of 32.
        pixel_mean: Mean of each band of the first split, in the units of the files; empty for photos.
        pixel_std: Standard deviation, likewise.
    """

    dataset: str
    classes: tuple[str, ...]
    samples: dict[str, int]
    findings: tuple[Finding, ...]
    shares: dict[str, list[float]]
    ignored: dict[str, float]
    histogram: dict[str, dict[int, int]]
    sizes: dict[str, list[tuple[int, int]]]
    median_frequency: list[float]
    effective_number: list[float]
    suggested_crop: int
    pixel_mean: tuple[float, ...] = ()
    pixel_std: tuple[float, ...] = ()

    @property
    def errors(self) -> list[Finding]:
        """The findings of severity "error"."""
        return [finding for finding in self.findings if finding.severity == "error"]

    def to_json(self) -> str:
        """Serialise all attributes to JSON."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    def save(self, path: str | Path) -> None:
        """Write the JSON file atomically."""
        with atomic_write(path) as temporary:
            temporary.write_text(self.to_json() + "\n", encoding="utf-8")

    def table(self) -> PlainTable:
        """Make a table of the classes with their shares in each split and their weights."""
        counted = ", ".join(f"{count} {split}" for split, count in self.samples.items())
        table = PlainTable(title=f"{self.dataset}: {counted}", show_footer=True)
        table.column("class", footer="ignored")
        for split in self.shares:
            table.column(f"{split} %", footer=f"{100 * self.ignored[split]:.2f}", right=True)
        weights = {"median freq.": self.median_frequency, "effective no.": self.effective_number}
        weights = {title: values for title, values in weights.items() if values}
        for title in weights:
            table.column(title, right=True)
        for label, name in enumerate(self.classes):
            shares = (f"{100 * shares[label]:.2f}" for shares in self.shares.values())
            table.row(name, *shares, *(f"{values[label]:.2f}" for values in weights.values()))
        return table


def diagnose(
    splits: Sequence[SegmentationDataset],
    *,
    limit: int | None = None,
    workers: int = 0,
    on_sample: Callable[[SampleFacts], None] | None = None,
) -> Diagnosis:
    """Scan the splits of a data set.

    Args:
        splits: The splits, training first; opened with `allow_missing`, so that missing masks can be listed.
        limit: Number of samples of each split to scan, evenly spread; None scans all.
        workers: Number of loader processes.
        on_sample: Called with the facts of every sample, for progress bars.

    Raises:
        DatasetError: `splits` is empty.
    """
    if not splits:
        raise DatasetError("there is nothing to scan: no split of the data set was found.")
    findings: list[Finding] = []
    facts: dict[str, list[SampleFacts]] = {}
    for dataset in splits:
        seen = facts.setdefault(dataset.split, [])
        with contextlib.closing(scan(dataset, spread(len(dataset), limit), workers=workers)) as scanned:
            for fact in scanned:
                seen.append(fact)
                if on_sample is not None:
                    on_sample(fact)
        findings += _findings_of_split(dataset, seen)
    findings += _duplicates(facts)
    bands = _bands(splits[0], facts[splits[0].split])[0]
    space = splits[0].label_space
    first = np.stack([fact.labels for fact in facts[splits[0].split]])[:, :-1]
    weighted = space.task == "multiclass"  # other tasks weigh the pixels with and without a label
    return Diagnosis(
        dataset=space.name,
        classes=space.names,
        samples={split: len(seen) for split, seen in facts.items()},
        findings=tuple(sorted(findings, key=lambda finding: finding.severity)),
        shares={split: _shares(seen, space).tolist() for split, seen in facts.items()},
        ignored={split: _ignored_share(seen) for split, seen in facts.items()},
        histogram={split: _histogram(seen) for split, seen in facts.items()},
        sizes={split: _sizes(seen) for split, seen in facts.items()},
        median_frequency=[round(float(value), 6) for value in median_frequency_weights(first) if weighted],
        effective_number=[round(float(value), 6) for value in effective_number_weights(first) if weighted],
        suggested_crop=_suggested_crop(facts[splits[0].split]),
        pixel_mean=() if bands is None else bands.mean,
        pixel_std=() if bands is None else bands.std,
    )


def _shares(seen: Sequence[SampleFacts], space: LabelSpace) -> NDArray[np.float64]:
    """Return each class's share of the labelled pixels, [K]; those of labels that overlap may sum up to more than 1."""
    counts = np.stack([fact.labels for fact in seen])[:, :-1]
    if space.task != "multilabel":
        return class_shares(counts)
    shares: NDArray[np.float64] = counts.sum(axis=0) / max(sum(fact.labelled for fact in seen), 1)
    return shares


def _ignored_share(seen: Sequence[SampleFacts]) -> float:
    ignored = sum(int(fact.labels[-1]) for fact in seen)
    return ignored / max(ignored + sum(fact.labelled for fact in seen), 1)


def _bands(dataset: SegmentationDataset, seen: Sequence[SampleFacts]) -> tuple[PixelStatistics | None, list[Finding]]:
    """The statistics of the bands of a split, and what is wrong with them; nothing for photos."""
    bands = [fact.bands for fact in seen if fact.bands is not None]
    if not bands:
        return None, []
    try:
        found = merged_statistics(bands, dataset)
    except DatasetError as error:
        return None, [Finding("error", "bands", str(error))]
    return found, [Finding("warning", "bands", warning) for warning in found.warnings]


def check_samples(dataset: SegmentationDataset, *, count: int, workers: int = 0) -> list[str]:
    """Check some samples, evenly spread over a split, before a training run.

    Returns:
        Warnings of problems that training does not show: photos rotated by EXIF whose masks may not be.

    Raises:
        DatasetError: There is a finding of severity "error"; the message names the cause and the first file.
    """
    seen = list(scan(dataset, spread(len(dataset), count), workers=workers))
    findings = _findings_of_split(dataset, seen)
    errors = [finding for finding in findings if finding.severity == "error"]
    if errors:
        rest = f" ({len(errors) - 1} more causes)" if len(errors) > 1 else ""
        files = (
            f" First: {errors[0].files[0]}" if errors[0].files and errors[0].files[0] not in errors[0].message else ""
        )
        raise DatasetError(
            f"{errors[0].message}{files}{rest} To check every file: {command('check')} with the same "
            "--dataset and --data options. To train without this check: --data.check 0."
        )
    return [finding.message for finding in findings if finding.kind == TURNED]


def check_classes(dataset: SegmentationDataset, *, workers: int = 0) -> list[str]:
    """Check that the classes of a user's list occur in the masks.

    Reads masks, evenly spread over the split, until every class has been seen: a few if the list is right. It stops
    after `LOOK` masks, unless 255 may be an absent class or only one class has been seen: then it reads all masks, so
    that an error holds for all of them.

    Returns:
        Warnings that name absent classes of the training split.

    Raises:
        DatasetError: A class is in no mask, while the unlisted id 255 is.
    """
    if not isinstance(dataset, FolderDataset) or not dataset.listed:
        return []
    order = spread(len(dataset), LOOK)
    order += sorted(set(range(len(dataset))) - set(order))
    total = np.zeros(len(dataset.label_space) + 2, np.int64)
    seen = 0
    with contextlib.closing(scan_masks(dataset, order, workers=workers)) as masks:
        for counts in masks:
            total, seen = total + counts, seen + 1
            if total[:-2].all():
                break
            known = np.count_nonzero(total[:-2]) > 1 or not dataset.assumes_ignored
            if seen >= LOOK and known and _what_255_is(dataset, total) is None:
                break
    problem = _what_255_is(dataset, total)
    if problem is not None:
        raise DatasetError(problem)
    absent = [name for name, count in zip(dataset.label_space.names, total, strict=False) if not count]
    if not absent or not total[-1] or dataset.split != "train":
        return []
    which = f"any of the {seen} masks" if seen == len(dataset) else f"the {seen} of {len(dataset)} masks that were read"
    return [
        f"{len(absent)} of {len(dataset.label_space)} classes of the list have no pixel in {which} "
        f"of {dataset.split}: {_few(absent)}. They cannot be learnt."
    ]


def _what_255_is(dataset: SegmentationDataset, counts: NDArray[np.int64]) -> str | None:
    """Describe the problem if 255 seems to be a class: a listed class is absent, and the unlisted id 255 occurs.

    If only one class occurs, there is nothing to learn, however rare 255 is. Otherwise the class may be truly absent
    or, in a small split, rare: then the problem requires a share of `NOTABLE` of 255 in the training split.

    Args:
        dataset: A split.
        counts: Pixels of each class, pixels of the id 255, and all pixels: [K + 2].

    Returns:
        The message; None if there is no problem.
    """
    if not isinstance(dataset, FolderDataset) or not dataset.assumes_ignored or not counts[-2]:
        return None
    space, share = dataset.encoding, counts[-2] / counts[-1]
    absent = [label for label in range(len(space)) if not counts[label]]
    alone = len(space) - len(absent) <= 1
    if not absent or not (alone or (dataset.split == "train" and share >= NOTABLE)):
        return None
    named = list(zip(space.names, space.raw_ids, strict=True))
    meant = [(name, IGNORE_LABEL if label == absent[0] else raw) for label, (name, raw) in enumerate(named)]
    short = meant if len(meant) <= 6 else [meant[absent[0]]]  # of a long list, the line that changes
    return (
        f"no mask of {dataset.split} holds {_few([f'{named[label][0]} (id {named[label][1]})' for label in absent])}, "
        f"while the id 255, of which the list of classes says nothing, covers {100 * share:.2f} % of the pixels and "
        f"would be ignored. If 255 is {named[absent[0]][0]}, the list must say so:\n    {csv_lines(short)}\n"
        "If 255 is not labelled, give the list a column ignore and the line\n    unlabelled,255,yes\n"
        "(columns: name,id,ignore; the other lines keep their ids and leave ignore empty)."
    )


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")


def spread(size: int, count: int | None) -> list[int]:
    """Return `count` indices of 0..size - 1, evenly spread and ascending; all if None or at least `size`."""
    if count is None or count >= size:
        return list(range(size))
    return sorted({index * size // count for index in range(count)})


def _findings_of_split(dataset: SegmentationDataset, seen: Sequence[SampleFacts]) -> list[Finding]:
    raw = np.sum([fact.raw_ids for fact in seen], axis=0) if seen else np.zeros(256, np.int64)
    findings = _suspicions(dataset, raw)  # first, because they cause the findings below
    for kind in dict.fromkeys(fact.kind for fact in seen if fact.kind is not None):
        broken = [fact for fact in seen if fact.kind == kind]
        files = tuple(fact.name if kind in ("unreadable photo", "missing mask") else fact.mask for fact in broken)
        more = f" ({len(broken)} such files in {dataset.split})" if len(broken) > 1 else ""
        findings.append(Finding("error", kind, f"{broken[0].problem}{more}", files))
    good = [fact for fact in seen if fact.problem is None]
    if good and not any(fact.labelled for fact in good):
        severity = "warning" if dataset.split == "test" else "error"
        message = f"no pixel of the {dataset.split} split has a label: everything is ignored."
        findings.append(Finding(severity, "nothing labelled", message, tuple(fact.mask for fact in good[:8])))
    else:
        empty = tuple(fact.mask for fact in good if not fact.labelled)
        if empty:
            message = f"{len(empty)} masks of {dataset.split} have no labelled pixel. The first: {empty[0]}."
            findings.append(Finding("warning", "mask without labels", message, empty))
    findings += _train_ids(dataset, good) + _without_positives(dataset, good)
    findings += _bands(dataset, seen)[1]
    if good:
        pixels = sum(fact.size[0] * fact.size[1] for fact in good)
        classes = np.sum([fact.labels[:-1] for fact in good], axis=0)
        ids = np.sum([fact.raw_ids for fact in good], axis=0)
        problem = _what_255_is(dataset, np.append(classes, [ids[IGNORE_LABEL], pixels]))
        if problem is not None:  # a class that is absent from some masks may be in the others
            findings.append(Finding("error" if len(seen) == len(dataset) else "warning", "255 may be a class", problem))
    if isinstance(dataset, PairedFiles) and dataset.orphans:
        files = tuple(dataset.source.locate(name) for name in dataset.orphans)
        message = f"{len(files)} masks of {dataset.split} have no photo. The first: {files[0]}."
        findings.append(Finding("warning", "mask without photo", message, files))
    turned = [fact for fact in seen if fact.turned != 1 and fact.mask != fact.name]
    if turned:
        message = (
            f"{len(turned)} of {len(seen)} photos of {dataset.split} are rotated by their orientation tag (EXIF), and "
            "masks are never rotated: masks must fit the rotated photo. The first: "
            f"{turned[0].name}, with orientation {turned[0].turned}. If the masks were painted on the pixels as "
            "they are stored, delete the tags: "
            "exiftool -Orientation= -overwrite_original FILES"
        )
        findings.append(Finding("warning", TURNED, message, tuple(fact.name for fact in turned)))
    small = tuple(fact.name for fact in good if 0 < min(fact.size) < 32)
    if small:
        message = f"{len(small)} photos of {dataset.split} are less than 32 pixels wide or high. The first: {small[0]}."
        findings.append(Finding("warning", "tiny photo", message, small))
    counts = np.sum([fact.labels[:-1] for fact in good], axis=0) if good else np.zeros(0)
    absent = [name for name, count in zip(dataset.label_space.names, counts, strict=False) if not count]
    if good and absent and dataset.split == "train":
        message = (
            f"{len(absent)} of {len(dataset.label_space)} classes have no pixel in the scanned train masks: "
            f"{_few(absent)}."
        )
        findings.append(Finding("warning", "class without pixels", message))
    return findings


def _without_positives(dataset: SegmentationDataset, good: Sequence[SampleFacts]) -> list[Finding]:
    """Find masks that show nothing: no object of a binary task, no label of a multi-label task."""
    task = dataset.label_space.task
    if task == "multiclass":
        return []
    first = 1 if task == "binary" else 0
    empty = tuple(fact.mask for fact in good if fact.labelled and not fact.labels[first:-1].any())
    if not empty:
        return []
    what = f"without {dataset.label_space.names[1]}" if task == "binary" else "without any label"
    share = 100 * len(empty) / len(good)
    message = f"{len(empty)} of {len(good)} masks of {dataset.split} ({share:.0f} %) are {what}. The first: {empty[0]}."
    return [Finding("warning", "mask without positive pixels", message, empty)]


def _suspicions(dataset: SegmentationDataset, raw: NDArray[np.int64]) -> list[Finding]:
    """Find masks whose ids are valid but probably mean other classes."""
    if not isinstance(dataset, PairedFiles) or not raw.any():
        return []
    space: LabelSpace = dataset.encoding
    present = np.flatnonzero(raw)
    inner = present[present != IGNORE_LABEL]
    top = int(inner.max()) if len(inner) else 0
    if space.name == "ade20k" and raw[IGNORE_LABEL]:
        message = (
            "the masks hold the id 255, which raw ADE20K masks never do: they are shifted by one already (0..149, "
            "255). Use the original annotations, with 0 for ignored and 1..150 for classes."
        )
        return [Finding("error", "off by one", message)]
    if space.name == "ade20k" and len(inner) and not raw[0] and top < 150:
        message = "no pixel has the id 0 (ignored): are the masks shifted by one already (0..149 instead of 1..150)?"
        return [Finding("warning", "off by one", message)]
    if space.name == "cityscapes" and space.raw_ids[0] == 7 and len(inner) and top <= 18:
        message = (
            f"files named labelIds hold only ids up to {top}: they are train ids (0..18, 255), where label ids (0..33) "
            "are expected. Name them *_gtFine_labelTrainIds.png, or regenerate them from the polygons."
        )
        return [Finding("error", "train ids", message)]
    if (
        space.name == "folder"
        and len(inner)
        and int(inner.min()) == 1
        and 0 not in space.raw_ids + space.ignored_raw_ids
    ):
        message = "the ids begin with 1, and 0 never occurs: is 0 the background, and missing from the list of classes?"
        return [Finding("warning", "off by one", message)]
    ignorable = [value for value in space.ignored_raw_ids if raw[value]]
    if space.ignored_raw_ids and not ignorable and dataset.split == "train":
        ids = ", ".join(str(value) for value in space.ignored_raw_ids[:4])
        message = f"no pixel of the train split is ignored (ids {ids}): are unlabelled pixels labelled as some class?"
        return [Finding("warning", "nothing ignored", message)]
    return []


def _train_ids(dataset: SegmentationDataset, good: Sequence[SampleFacts]) -> list[Finding]:
    """Find single Cityscapes masks that hold train ids among masks of label ids."""
    if (
        not isinstance(dataset, PairedFiles)
        or dataset.encoding.name != "cityscapes"
        or dataset.encoding.raw_ids[0] != 7
    ):
        return []
    low = tuple(fact.mask for fact in good if fact.raw_ids.any() and not fact.raw_ids[19:].any())
    if not low or len(low) == len(good):
        return []
    message = f"{len(low)} masks of {dataset.split} hold only ids up to 18: are these train ids? The first: {low[0]}."
    return [Finding("warning", "train ids", message, low)]


def _duplicates(facts: dict[str, list[SampleFacts]]) -> list[Finding]:
    """Find photos of other splits that nearly equal a photo of the first."""
    findings = []
    splits = list(facts)
    prints = {split: np.stack([fact.fingerprint for fact in seen]) for split, seen in facts.items() if seen}
    for other in splits[1:]:
        pairs = near_duplicates(prints[splits[0]], prints[other])
        if pairs:
            files = tuple(f"{facts[splits[0]][a].name} = {facts[other][b].name}" for a, b, _ in pairs)
            copies = len({b for _, b, _ in pairs})
            message = (
                f"{copies} of {len(facts[other])} photos of {other} are nearly the same as photos of {splits[0]}: the "
                f"score on {other} will be too good. The first: {files[0]}."
            )
            findings.append(Finding("warning", "near duplicates", message, files[:100]))
    return findings


def _histogram(seen: Sequence[SampleFacts]) -> dict[int, int]:
    total = np.sum([fact.raw_ids for fact in seen], axis=0)
    return {int(value): int(total[value]) for value in np.flatnonzero(total)}


def _sizes(seen: Sequence[SampleFacts]) -> list[tuple[int, int]]:
    sizes = sorted((fact.size for fact in seen if fact.size != (0, 0)), key=lambda size: size[0] * size[1])
    return [sizes[0], sizes[len(sizes) // 2], sizes[-1]] if sizes else []


def _suggested_crop(seen: Sequence[SampleFacts]) -> int:
    """Return the short side that three photos in four reach, rounded down to a multiple of 32, at most 768."""
    short: list[Any] = [min(fact.size) for fact in seen if fact.size != (0, 0)]
    return int(np.clip(np.quantile(short, 0.25) // 32 * 32, 32, 768)) if short else 32
