"""The page of an audit: doubtful regions and images to click through, with tick boxes for those to label again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element

import numpy as np

from resnest_seg.data.datasets import SegmentationDataset
from resnest_seg.data.tiles import scored_part
from resnest_seg.evaluation.label_audit import AuditedImage, AuditedRegion, AuditMaps, AuditReport
from resnest_seg.io.visualize import Image, Labels, picture_of
from resnest_seg.labels import LabelSpace
from resnest_seg.reports.gallery import Card, gallery
from resnest_seg.reports.page import Cell, Section, element, table, write_page

MARGIN = 1.0
"""What is shown around a region, as a share of its longer side."""

CONTEXT = 48
"""The least that is shown around a region, in pixels."""

PAIRS = 20
"""Class pairs by which images can be chosen."""

BYTES = 4_500_000
"""Limit of the pictures of regions, and of those of images."""


def write_audit_page(
    path: str | Path,
    report: AuditReport,
    dataset: SegmentationDataset,
    *,
    count: int,
    mark: Callable[[int], str],
    warnings: Sequence[str] = (),
) -> None:
    """Write the page of an audit.

    Args:
        path: Its file.
        report: The audit.
        dataset: What was audited, from which the photos are read again.
        count: Images and regions to show, at most.
        mark: Index of a sample -> how it is called in the list of images to label again.
        warnings: What a reader must know before all.

    Raises:
        DatasetError: A photo cannot be read any more.
        OSError: The page cannot be written.
    """
    reader = _Reader(report, dataset, mark)
    images, regions = report.flagged(count), report.regions[:count]
    sections = [
        _pairs(report),
        gallery((reader.region_card(*entry) for entry in enumerate(regions, start=1)), report.space,
                anchor="regions", title="Doubtful regions", limit=BYTES),
        gallery((reader.image_card(*entry) for entry in enumerate(images, start=1)), report.space,
                anchor="images", title="Doubtful images", limit=BYTES),
        _marks(report),
    ]  # fmt: skip
    title = f"Label audit of {report.space.name}, {report.split}"
    write_page(path, title, sections, lead=_lead(report, warnings), scripts=["marks.js"])


def _lead(report: AuditReport, warnings: Sequence[str]) -> list[Element]:
    share = 100 * report.issues / max(report.pixels, 1)
    lines = [
        f"{len(report.images)} images with {report.pixels:,} labelled pixels were predicted by "
        f"{_counted(len(report.models), 'model')} ({'; '.join(dict.fromkeys(report.models))}), protocol "
        f"{report.protocol}.",
        f"{report.issues:,} pixels ({share:.2f} %) are doubtful: the model is sure of another class. They and their "
        f"neighbours make {report.found:,} regions of at least {report.min_area} pixels.",
        "A doubtful label need not be wrong: models err, too, most of all along outlines. Tick the images that are to "
        "be labelled again; their list is at the end of this page.",
    ]
    notes = [element("p", {"class": "note"}, text) for text in warnings]
    return [*notes, *(element("p", None, text) for text in lines)]


def _counted(count: int, thing: str) -> str:
    return f"1 {thing}" if count == 1 else f"{count} {thing}s"


def _pairs(report: AuditReport) -> Section:
    rows = [
        (given, predicted, Cell(f"{count:,}", count, number=True),
         Cell(f"{100 * count / max(report.issues, 1):.1f} %", count, number=True))
        for (given, predicted), count in list(report.pairs.items())[:PAIRS]
    ]  # fmt: skip
    if not rows:
        return Section("pairs", "Doubtful pixels by class pair", [element("p", None, "No label is doubtful.")])
    heads = ("label", "prediction", "doubtful pixels", "share")
    return Section("pairs", "Doubtful pixels by class pair", [table(heads, rows, label="doubtful pixels by class pair",
                                                             sortable=True)])  # fmt: skip


def _marks(report: AuditReport) -> Section:
    names = hashlib.sha256("\n".join(image.name for image in report.images).encode(errors="surrogatepass"))
    page = f"{report.space.name} {report.split} {names.hexdigest()[:16]}"
    area = element("textarea", {"class": "list-of-marks", "readonly": True, "data-page": page, "id": "list-of-marks"})
    buttons = [
        element("button", {"type": "button", "class": name}, text)
        for name, text in (("download", "download relabel.txt"), ("tick", "tick all"), ("untick", "untick all"))
    ]
    return Section(
        "relabel",
        "To label again",
        [
            element("p", {"class": "count-of-marks", "role": "status"}, "0 images are ticked"),
            element("p", {"class": "row"}, *buttons),
            element("label", {"for": "list-of-marks"}, "the ticked images"),
            area,
        ],
    )


def _pair(given: str, predicted: str) -> str:
    return f"{given} → {predicted}"


class _Pictures(NamedTuple):
    """An image in full size, with what is painted on it."""

    photo: Image
    given: Labels
    predicted: Labels
    doubtful: Labels

    def part(self, rows: slice, columns: slice) -> _Pictures:
        """A part of the image."""
        return _Pictures(*(np.ascontiguousarray(picture[rows, columns]) for picture in self))


class _Reader:
    """Makes cards; the image that was read last is kept, because the next region is often one of the same.

    Args:
        report: The audit.
        dataset: The photos.
        mark: See `write_audit_page`.
    """

    def __init__(self, report: AuditReport, dataset: SegmentationDataset, mark: Callable[[int], str]) -> None:
        self.report, self.dataset, self.mark = report, dataset, mark
        self.tags = {_pair(*pair) for pair in list(report.pairs)[:PAIRS]}
        self._last: tuple[int, _Pictures] | None = None

    def _read(self, index: int) -> _Pictures:
        if self._last is None or self._last[0] != index:
            maps = self.report.maps(index)
            photo = picture_of(self.dataset[index].image[scored_part(self.dataset, index)])
            self._last = index, _Pictures(photo, maps.given, maps.predicted, _doubtful(maps, self.report.space))
        return self._last[1]

    def image_card(self, rank: int, image: AuditedImage) -> Card:
        """The card of an image."""
        share = image.issues / max(image.pixels, 1)
        return self._card(
            self._read(image.index),
            image,
            f"rank {rank}: {100 * share:.2f} % of its labels are doubtful, in {image.regions} regions",
            [_pair(*pair) for pair in image.pairs],
            {"score": image.score, "share of doubtful labels": share, "regions": float(image.regions)},
        )

    def region_card(self, rank: int, entry: AuditedRegion) -> Card:
        """The card of a region: the part of the image around it."""
        region, pair = entry.region, _pair(entry.given, entry.predicted)
        pictures = self._read(entry.index)
        left, top, width, height = region.box
        box = slice(top, top + height), slice(left, left + width)
        shown = np.ones(pictures.given[box].shape, np.bool_)
        if self.report.space.task != "multilabel":  # else these are bits
            shown = (pictures.given[box] == region.given) & (pictures.predicted[box] == region.predicted)
        alone = np.full_like(pictures.doubtful, self.report.space.ignore_value)
        alone[box] = np.where(shown, pictures.doubtful[box], alone[box])
        return self._card(
            pictures._replace(doubtful=alone).part(*_around(region.box, pictures.given.shape)),
            entry,
            f"rank {rank}: labelled {entry.given}, predicted {entry.predicted} (confidence "
            f"{100 * region.confidence:.0f} %), {region.area:,} pixels in {width} x {height} at {left}, {top}",
            [pair],
            {"score": region.score, "area": float(region.area), "confidence": region.confidence},
        )

    def _card(
        self,
        pictures: _Pictures,
        entry: AuditedImage | AuditedRegion,
        caption: str,
        tags: Sequence[str],
        scores: Mapping[str, float],
    ) -> Card:
        return Card(
            entry.name,
            caption,
            pictures.photo,
            None,
            None,
            scores,
            tuple(tag for tag in tags if tag in self.tags),
            others={"label": pictures.given, "prediction": pictures.predicted, "doubtful": pictures.doubtful},
            mark=self.mark(entry.index),
        )


def _doubtful(maps: AuditMaps, space: LabelSpace) -> Labels:
    """What is painted of the doubtful pixels: the model's class, of a binary or multi-label task the label in doubt."""
    shown = maps.predicted
    if space.task == "binary":
        shown = np.ones_like(maps.predicted)
    elif space.task == "multilabel":
        shown = maps.given ^ maps.predicted
    return np.where(maps.doubtful, shown, shown.dtype.type(space.ignore_value))


def _around(box: tuple[int, int, int, int], size: tuple[int, ...]) -> tuple[slice, slice]:
    """Rows and columns of the part of an image [H, W] that is shown of a region."""
    left, top, width, height = box
    more = max(round(MARGIN * max(width, height)), CONTEXT)
    rows = slice(max(top - more, 0), min(top + height + more, size[0]))
    return rows, slice(max(left - more, 0), min(left + width + more, size[1]))
