"""Inspection of every photo and mask of a data set, in several processes; corrupt files do not stop it."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Sequence
from typing import Any, NamedTuple, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from resnest_seg.data.datasets import PairedFiles, SegmentationDataset, Subset, behind_views
from resnest_seg.data.loader import run_loader
from resnest_seg.data.tiles import WindowDataset
from resnest_seg.errors import DatasetError, ResNeStSegError
from resnest_seg.io.bands import BandStatistics, Raster, without_labels
from resnest_seg.io.masks import orientation
from resnest_seg.labels import IGNORE_LABEL, LabelSpace, bits_to_labels

T = TypeVar("T")

HASH_SIDE = 16
"""Rows and comparisons per row of a photo's fingerprint."""


class BandFacts(NamedTuple):
    """The bands of one raster.

    Attributes:
        name: Name of the file.
        kind: Type of its values.
        sums: Their statistics.
        values: Number of values, with and without data.
        undeclared: It holds NaN, and nothing says that NaN means no data.
    """

    name: str
    kind: str
    sums: BandStatistics
    values: int
    undeclared: bool

    @classmethod
    def of(cls, raster: Raster, name: str) -> BandFacts:
        """Those of a raster."""
        values = raster.pixels.size
        return cls(name, raster.pixels.dtype.name, BandStatistics.of(raster), values, raster.undeclared)


@dataclasses.dataclass(frozen=True)
class SampleFacts:
    """Statistics and problems of one sample.

    Attributes:
        name: Name of the photo.
        mask: Name of the mask, or of the photo if there is no mask file.
        problem: Why the sample cannot be trained on; None if it can.
        kind: The sort of problem, in a word or two.
        size: (H, W) of the photo; (0, 0) if it cannot be read.
        raw_ids: Pixels by raw id, int64 [256]; zeros for masks of colours.
        labels: Pixels by train id and, last, ignored pixels, int64 [K + 1]; of a multi-label task, pixels by label.
        fingerprint: Difference hash of the photo, uint64 [4]; zeros if it cannot be read.
        turned: The photo's EXIF orientation, 1..8; the photo is rotated by it, the mask is not.
        bands: Of images that are no photos.
    """

    name: str
    mask: str
    problem: str | None
    kind: str | None
    size: tuple[int, int]
    raw_ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    fingerprint: NDArray[np.uint64]
    turned: int = 1
    bands: BandFacts | None = None

    @property
    def labelled(self) -> int:
        """Number of pixels that are not ignored; 0 of a sample with a problem."""
        return 0 if self.problem is not None else self.size[0] * self.size[1] - int(self.labels[-1])


def scan(
    dataset: SegmentationDataset, indices: Sequence[int], *, workers: int = 0
) -> Generator[SampleFacts, None, None]:
    """Inspect samples, in the order of `indices`.

    Raises:
        DatasetError: A sample of a data set other than `PairedFiles` cannot be read.
        ResNeStSegError: A library that files need is not installed; or a loader process could not be started, or died.
    """
    yield from run_loader(_Inspected(dataset), ([index] for index in indices), _the_only_one, workers=workers)


def scan_bands(
    dataset: SegmentationDataset, indices: Sequence[int], *, workers: int = 0
) -> Generator[BandFacts, None, None]:
    """Inspect the images of samples alone, in the order of `indices`.

    Raises:
        DatasetError: One cannot be read.
        ResNeStSegError: A library that files need is not installed; or a loader process could not be started, or died.
    """
    yield from run_loader(_Rasters(dataset), ([index] for index in indices), _the_only_one, workers=workers)


def scan_masks(
    dataset: PairedFiles, indices: Sequence[int], *, workers: int = 0
) -> Generator[NDArray[np.int64], None, None]:
    """Count a mask's pixels: of each class, of the id 255, and all, int64 [K + 2]; zeros for unreadable masks.

    Raises:
        ResNeStSegError: A loader process could not be started, or died.
    """
    yield from run_loader(_Masks(dataset), ([index] for index in indices), _the_only_one, workers=workers)


def inspect_sample(dataset: SegmentationDataset, index: int) -> SampleFacts:
    """Inspect one sample; problems are returned, not raised."""
    classes = len(dataset.label_space)
    nothing = SampleFacts("", "", None, None, (0, 0), np.zeros(256, np.int64), np.zeros(classes + 1, np.int64),
                          np.zeros(4, np.uint64))  # fmt: skip
    if isinstance(dataset, Subset):
        return inspect_sample(dataset.inner, dataset.inner_index(index))
    if not isinstance(dataset, PairedFiles):
        inner = behind_views(dataset)
        sample = dataset[index]
        raster = None if dataset.bands is None else dataset.raster(index)
        return dataclasses.replace(
            nothing,
            name=sample.name,
            mask=sample.name,
            size=(sample.image.shape[0], sample.image.shape[1]),
            labels=_label_counts(sample.labels, dataset.label_space),
            # windows of one field look alike, which makes them no copies
            fingerprint=nothing.fingerprint if isinstance(inner, WindowDataset) else fingerprint(sample.image),
            bands=None if raster is None else BandFacts.of(raster, sample.name),
        )
    return _inspect_files(dataset, index, nothing)


def _inspect_files(dataset: PairedFiles, index: int, facts: SampleFacts) -> SampleFacts:
    image_name, mask_name = dataset.pairs[index]
    where = dataset.source.locate(image_name)
    facts = dataclasses.replace(
        facts, name=where, mask=where if mask_name is None else dataset.source.locate(mask_name)
    )
    try:
        data = dataset.source.read(image_name)
        raster = dataset.decode(data, where)
        image = raster.pixels
    except DatasetError as error:
        return dataclasses.replace(facts, problem=str(error), kind="unreadable photo")
    facts = dataclasses.replace(
        facts, size=(image.shape[0], image.shape[1]), fingerprint=fingerprint(image), turned=orientation(data)
    )
    if dataset.bands is not None:
        facts = dataclasses.replace(facts, bands=BandFacts.of(raster, where))
    if mask_name is None:
        ignored = dataset.nothing_labelled(image.shape[:2])
        return dataclasses.replace(facts, labels=_label_counts(ignored, dataset.label_space))
    if not dataset.source.has(mask_name):
        return dataclasses.replace(facts, problem=f"{where} has no mask {facts.mask}.", kind="missing mask")
    try:
        raw = dataset.read_mask(mask_name)
    except DatasetError as error:
        return dataclasses.replace(facts, problem=str(error), kind="unreadable mask")
    if raw.ndim == 2 and raw.dtype == np.uint8:
        facts = dataclasses.replace(facts, raw_ids=np.bincount(raw.ravel(), minlength=256).astype(np.int64))
    if raw.shape[:2] != image.shape[:2]:
        return dataclasses.replace(facts, problem=dataset.size_problem(index, image, raw), kind="sizes differ")
    try:
        labels = without_labels(dataset.encode(mask_name, raw), raster.valid)
    except DatasetError as error:
        kind = "mask of colours" if raw.ndim == 3 and not dataset.colors else "ids outside the label space"
        return dataclasses.replace(facts, problem=str(error), kind=kind)
    return dataclasses.replace(facts, labels=_label_counts(labels, dataset.label_space))


def fingerprint(image: NDArray[Any]) -> NDArray[np.uint64]:
    """Return the difference hash of a photo, 256 bits as uint64 [4]: comparisons of neighbours in a tiny grey copy."""
    photo = image.dtype == np.uint8 and image.shape[2] == 3
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) if photo else np.nan_to_num(image.mean(axis=2, dtype=np.float32))
    tiny = cv2.resize(grey, (HASH_SIDE + 1, HASH_SIDE), interpolation=cv2.INTER_AREA).astype(int)
    return np.packbits(tiny[:, 1:] > tiny[:, :-1]).view(np.uint64)


def near_duplicates(
    first: NDArray[np.uint64], second: NDArray[np.uint64], *, bits: int = 28
) -> list[tuple[int, int, int]]:
    """Find pairs of fingerprints that differ in at most `bits` of 256 bits.

    Args:
        first: uint64 [A, 4].
        second: uint64 [B, 4].
        bits: 28 matches recompressed, resized and slightly edited copies (measured: up to 27); different photos of
            the same kind differed in 74 and more.

    Returns:
        (index in first, index in second, differing bits), nearest first.
    """
    pairs = []
    for index, one in enumerate(first):
        if one.any():
            distance = np.bitwise_count(second ^ one).sum(axis=1)
            near = np.flatnonzero((distance <= bits) & second.any(axis=1))
            pairs += [(index, int(other), int(distance[other])) for other in near]
    return sorted(pairs, key=lambda pair: pair[2])


def _label_counts(labels: NDArray[Any], space: LabelSpace) -> NDArray[np.int64]:
    """Count pixels by class and, last, ignored ones: [K + 1]; a pixel with several labels counts for each."""
    if space.task == "multilabel":
        present, valid = bits_to_labels(labels, len(space))
        return np.append(present.sum(axis=(1, 2)), (~valid).sum()).astype(np.int64)
    counts = np.bincount(labels.ravel(), minlength=256)
    return np.append(counts[: len(space)], counts[IGNORE_LABEL]).astype(np.int64)


class _Inspected(Dataset["SampleFacts | ResNeStSegError"]):
    """Facts by index. An error is returned as a value: raised in a loader process it would become a traceback."""

    def __init__(self, dataset: SegmentationDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, index: int) -> SampleFacts | ResNeStSegError:
        try:
            return inspect_sample(self.dataset, index)
        except ResNeStSegError as error:
            return error


def _the_only_one(batch: Sequence[T]) -> T:
    """Return the sample of a batch of one."""
    return batch[0]


class _Masks(Dataset["NDArray[np.int64]"]):
    def __init__(self, dataset: PairedFiles) -> None:
        self.dataset = dataset

    def __getitem__(self, index: int) -> NDArray[np.int64]:
        name, space = self.dataset.pairs[index][1], self.dataset.label_space
        classes = len(space)
        if name is None:
            return np.zeros(classes + 2, np.int64)
        try:
            raw = self.dataset.read_mask(name)
            counts = _label_counts(self.dataset.encode(name, raw), space)[:-1]
        except DatasetError:  # reported by `check_samples` and by training
            return np.zeros(classes + 2, np.int64)
        of_255 = int((raw == IGNORE_LABEL).sum()) if raw.ndim == 2 else 0
        return np.append(counts, [of_255, raw.shape[0] * raw.shape[1]]).astype(np.int64)


class _Rasters(Dataset["BandFacts | ResNeStSegError"]):
    def __init__(self, dataset: SegmentationDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, index: int) -> BandFacts | ResNeStSegError:
        dataset = self.dataset
        name = dataset.sample_name(index)
        if isinstance(dataset, PairedFiles):
            name = dataset.source.locate(name)
        try:
            return BandFacts.of(dataset.raster(index), name)
        except ResNeStSegError as error:
            return error
