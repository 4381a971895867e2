"""Verification of exported files: the differences between file and source on the same images must be within bounds."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resnest_seg.data.datasets import SegmentationDataset
from resnest_seg.data.synthetic import Synthetic
from resnest_seg.errors import ExportError
from resnest_seg.evaluation.evaluator import check_fits, read_like
from resnest_seg.evaluation.label_scores import unpack_labels
from resnest_seg.evaluation.metrics import ConfusionMatrix
from resnest_seg.export.graph import in_units_of, members_of, orders_of
from resnest_seg.files import sha256
from resnest_seg.inference.backends import Decision
from resnest_seg.inference.exported import ExportedModel, ExportInfo
from resnest_seg.io.display import PlainTable
from resnest_seg.io.resize import resized_bands
from resnest_seg.labels import IGNORE_LABEL, MULTILABEL_IGNORE
from resnest_seg.models.segmenter import Segmenter

SIZES = (((33, 47), 3), ((64, 64), 1), ((97, 130), 3), ((256, 256), 1), ((512, 683), 1))
"""Sizes (H, W) at which an export is compared with its source, and the batch sizes."""

PHOTOS = sum(count for _, count in SIZES)
"""Number of photos in a comparison."""

OWN_SIZE = 4
"""Number of photos that are also compared at their original size."""

LARGEST = 4_000_000
"""Maximum pixels of a photo that is compared at its original size."""


@dataclasses.dataclass(frozen=True)
class Bounds:
    """Acceptance bounds of an export; None for no bound.

    Attributes:
        agreement: Minimum share of pixels, over all images, with the same label, 0..1.
        relative_error: Maximum error of the output, as a share of its largest value.
        drop: Maximum decrease of mean IoU, 0..1.
    """

    agreement: float | None = None
    relative_error: float | None = None
    drop: float | None = None


BOUNDS = {
    "float32": Bounds(agreement=0.9999, relative_error=1e-3),
    "half": Bounds(agreement=0.995),
    "int8": Bounds(drop=0.01),
}
"""Precision -> acceptance bounds."""


@dataclasses.dataclass(frozen=True)
class Evidence:
    """The images on which an export is compared with its source.

    Attributes:
        photos: RGB, uint8 [H, W, 3], of which the first `PHOTOS` are used; if empty, photos of the data set, or drawn
            street scenes without one.
        dataset: Labelled images for the mean IoU of both.
        limit: Number of images of the data set to use, the first ones; None for all.
    """

    photos: Sequence[NDArray[np.uint8]] = ()
    dataset: SegmentationDataset | None = None
    limit: int | None = None


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Differences between an export and its source on images of one size.

    Attributes:
        height: Height of the images.
        width: Width of the images.
        batch: Number of images in a batch.
        max_error: Largest difference of the output; None if the output is labels.
        mean_error: Mean difference of the output; None if the output is labels.
        relative_error: Largest difference as a share of the source's largest value; None if the output is labels.
        agreement: Share of pixels with the same label, 0..1.
    """

    height: int
    width: int
    batch: int
    max_error: float | None
    mean_error: float | None
    relative_error: float | None
    agreement: float

    @property
    def pixels(self) -> int:
        """Number of pixels of all images."""
        return self.height * self.width * self.batch


@dataclasses.dataclass(frozen=True)
class Proof:
    """The measured agreement of an export with its source.

    Attributes:
        file: Name of the file.
        sha256: Hash of the file, to which alone the measurements apply.
        runtime: The runtime that executed it.
        info: The file's metadata.
        images: The images compared, in words: the data set's photos, given ones, or drawn scenes.
        comparisons: One comparison per size.
        agreement: Share of pixels with the same label, over all comparisons, 0..1.
        scored: The images of the mean IoU below, in words; empty without it.
        source_mean_iou: Mean IoU of the source, 0..1.
        mean_iou: Mean IoU of the export, 0..1.
        bounds: Acceptance bounds.
    """

    file: str
    sha256: str
    runtime: str
    info: dict[str, Any]
    images: str
    comparisons: tuple[Comparison, ...]
    agreement: float
    scored: str
    source_mean_iou: float | None
    mean_iou: float | None
    bounds: Bounds

    @property
    def relative_error(self) -> float | None:
        """The largest relative error of all comparisons."""
        errors = [row.relative_error for row in self.comparisons if row.relative_error is not None]
        # not by max(), which may skip a NaN
        return None if not errors else float(np.max(errors))

    @property
    def breaches(self) -> list[str]:
        """The violated bounds, one sentence each."""
        breaches, bounds, error = [], self.bounds, self.relative_error
        if bounds.agreement is not None and not self.agreement >= bounds.agreement:
            breaches.append(f"{self.agreement:.3%} of the labels agree (at least {bounds.agreement:.2%})")
        if bounds.relative_error is not None and error is not None and not error <= bounds.relative_error:
            breaches.append(
                f"the output is off by {error:.2g} of its largest value (at most {bounds.relative_error:g})"
            )
        if bounds.drop is not None:
            assert self.mean_iou is not None
            assert self.source_mean_iou is not None
            drop = self.source_mean_iou - self.mean_iou
            if not drop <= bounds.drop:
                breaches.append(
                    f"mean IoU {self.scored} drops by {100 * drop:.2f} points (at most {100 * bounds.drop:g})"
                )
        return breaches

    def table(self) -> PlainTable:
        """Make a table with one row per comparison, and the mean IoU below."""
        caption = f"{self.agreement:.4%} of all labels agree; compared on {self.images}"
        if self.mean_iou is not None and self.source_mean_iou is not None:
            caption += (
                f"\nmean IoU {self.scored}: source {100 * self.source_mean_iou:.2f}, export {100 * self.mean_iou:.2f}"
            )
        options = ", ".join(str(self.info[key]) for key in ("precision", "pixels", "layout", "output"))
        table = PlainTable(title=f"{self.file} ({options}), {self.runtime}", caption=caption)
        for heading in ("size", "images", "max error", "mean error", "relative", "same labels"):
            table.column(heading, right=True)
        for row in self.comparisons:
            errors = (row.max_error, row.mean_error, row.relative_error)
            table.row(
                f"{row.height} x {row.width}",
                str(row.batch),
                *("-" if error is None else f"{error:.2g}" for error in errors),
                f"{row.agreement:.4%}",
            )
        return table

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values for JSON."""
        return dataclasses.asdict(self) | {"relative_error": self.relative_error, "agrees": not self.breaches}


@torch.inference_mode()
def prove(
    model: ExportedModel,
    segmenter: Segmenter | Sequence[Segmenter],
    *,
    evidence: Evidence = Evidence(),  # a constant
    on_image: Callable[[], object] | None = None,
) -> Proof:
    """Compare an exported file with its source, which is not changed.

    The label of the source is the class of its highest logit. With a data set, both predict its images whole, at their
    original size. Without one, an 8-bit export is scored against the labels of the source.

    Args:
        model: The file, opened in its runtime.
        segmenter: Its source, not fused, on any device; of the mean of several models all of them.
        evidence: The images.
        on_image: Called after every image of the data set, for progress bars.

    Raises:
        ExportError: The export violates the bounds of its precision; the message says which and by how much.
        CheckpointError: The data set has other classes.
        DatasetError: A sample cannot be read.
    """
    info, precision = model.info, model.info.precision
    source = Source(members_of(segmenter), info)
    if evidence.dataset is not None:
        read_like(source.members[0], evidence.dataset, chosen=False)
        check_fits(source.members[0], evidence.dataset)
    photos, images, full_size = _photos(evidence)
    matrices = _matrices(source.members[0]), _matrices(source.members[0])
    rows: list[Comparison] = []
    with _in_eval_mode(source.members):
        for photo_batch in _batches(photos, full_size, smallest=info.smallest):
            batch = photo_batch if _has_bands(evidence, info) else in_units_of(photo_batch, info)
            expected, actual = _outputs(source, model, batch)
            rows.append(_compare(expected, actual, batch, info))
            if evidence.dataset is None and precision == "int8":
                truth = _labels(expected, info)
                for counts, output in zip(matrices, (expected, actual), strict=True):
                    _count(counts, truth, _labels(output, info), info)
        if evidence.dataset is not None:
            _score(source, model, evidence, matrices, on_image)
    scored = _scored(evidence, precision)
    source_iou, export_iou = (_mean_iou(counts, info, known=evidence.dataset is not None) for counts in matrices)
    proof = Proof(
        file=model.path.name,
        sha256=sha256(model.path),
        runtime=model.runtime,
        info=dataclasses.asdict(info) | {"setting": info.setting._asdict()},
        images=images,
        comparisons=tuple(rows),
        agreement=float(np.average([row.agreement for row in rows], weights=[row.pixels for row in rows])),
        scored=scored,
        source_mean_iou=source_iou if scored else None,
        mean_iou=export_iou if scored else None,
        bounds=BOUNDS[precision],
    )
    if proof.breaches:
        raise ExportError(_complaint(proof))
    return proof


def _has_bands(evidence: Evidence, info: ExportInfo) -> bool:
    """True where the images of the evidence are those of a data set of bands, not photos."""
    return bool(info.bands) and evidence.dataset is not None and not len(evidence.photos)


def _scored(evidence: Evidence, precision: str) -> str:
    """Describe the images of the mean IoU; empty without it."""
    dataset = evidence.dataset
    if dataset is not None:
        count = min(evidence.limit or len(dataset), len(dataset))
        return f"on {count} images of {dataset.label_space.name} ({dataset.split})"
    return "against the source's own labels (no data set was given)" if precision == "int8" else ""


def _complaint(proof: Proof) -> str:
    advice = ""
    if proof.info["precision"] == "int8":
        advice = " More calibration images may help; if not, this model needs more than 8 bits."
        if "own labels" in proof.scored:
            advice = " Evaluate it with ground truth (--dataset), or calibrate with more images."
    elif proof.info["precision"] == "half":
        advice = " This model needs float32."
    return (
        f"{proof.file} ({proof.info['precision']}, {proof.runtime}) does not predict what its source predicts, so it "
        f"is not kept: {'; '.join(proof.breaches)}. Compared on {proof.images}.{advice}"
    )


@contextlib.contextmanager
def _in_eval_mode(members: Sequence[Segmenter]) -> Iterator[None]:
    """Context in which the models are in eval mode."""
    training = [member for member in members if member.training]
    for member in members:
        member.eval()
    try:
        yield
    finally:
        for member in training:
            member.train()


def _photos(evidence: Evidence) -> tuple[list[NDArray[Any]], str, int]:
    """Return the photos, their description, and the number to compare at their original size as well."""
    dataset = evidence.dataset
    if len(evidence.photos):
        photos = list(evidence.photos[:PHOTOS])
        name = f"{len(photos)} given photos"
    elif dataset is not None:
        places = np.linspace(0, len(dataset) - 1, min(OWN_SIZE, len(dataset))).round().astype(int)
        photos, name = [dataset[int(place)].image for place in places], f"photos of {dataset.label_space.name}"
    else:
        scenes = Synthetic("val", size=SIZES[-1][0])
        photos, name = [scenes[index].image for index in range(3)], "drawn street scenes"
        return photos, name, 0
    return photos, name, OWN_SIZE


def _batches(photos: Sequence[NDArray[Any]], full_size: int, *, smallest: int) -> Iterator[NDArray[Any]]:
    """Yield images [N, H, W, C]: the photos resized to `SIZES`, then `own` of them at their original size."""
    start = 0
    for (height, width), count in SIZES:
        height, width = max(height, smallest), max(width, smallest)
        chosen = [photos[(start + offset) % len(photos)] for offset in range(count)]
        start += count
        yield np.stack([resized_bands(photo, (height, width), interpolation=cv2.INTER_AREA) for photo in chosen])
    for photo in photos[:full_size]:
        if smallest <= min(photo.shape[:2]) and photo.shape[0] * photo.shape[1] <= LARGEST:
            yield photo[None]


class Source:
    """What an export is compared with: a model, or the mean of the probabilities of several.

    Args:
        members: The models.
        info: What the file says about itself.
    """

    def __init__(self, members: Sequence[Segmenter], info: ExportInfo) -> None:
        self.members, self.task = members, info.label_space.task
        self.orders = orders_of(members, info)
        self.predicts_masks = any(member.predicts_masks for member in members)

    def logits(self, nchw: NDArray[Any]) -> Tensor:
        """Logits [N, K, H, W] of images, float32 on the CPU; those of a mean are made of probabilities in float64."""
        found: list[Tensor] = [
            member(torch.from_numpy(nchw).to(member.pixel_mean.device)).logits.cpu() for member in self.members
        ]
        if len(found) == 1:
            return found[0].float()
        ordered = [logits.double()[:, order] for logits, order in zip(found, self.orders, strict=True)]
        least = torch.finfo(torch.float64).tiny
        if self.task == "multiclass":
            mean = torch.stack([logits.softmax(dim=1) for logits in ordered]).mean(dim=0)
            return mean.clamp(min=least).log().float()
        present, absent = (
            torch.stack([(sign * logits).sigmoid() for logits in ordered]).mean(dim=0).clamp(min=least)
            for sign in (1, -1)
        )
        return (present.log() - absent.log()).float()


def _outputs(source: Source, model: ExportedModel, images: NDArray[Any]) -> tuple[Tensor, Tensor]:
    """Return the source's logits (or probabilities, if the export returns them) and the export's output, on the CPU."""
    nchw = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    expected = source.logits(nchw)
    if model.info.output in ("softmax", "sigmoid"):
        expected = expected.softmax(dim=1) if model.info.output == "softmax" else expected.sigmoid()
    return expected, torch.from_numpy(model(images if model.info.layout == "nhwc" else nchw))


def _labels(output: Tensor, info: ExportInfo) -> Tensor:
    """Convert scores [N, K, H, W], or labels, to labels [N, H, W]: uint8, or int32 of multi-label bits."""
    if output.dim() == 3:
        return output
    task = info.label_space.task
    if task != "multiclass" and info.output != "sigmoid":
        output = output.sigmoid()
    decision = Decision(task, info.thresholds)
    return torch.stack([decision.labels(scores) for scores in output])


def _matrices(segmenter: Segmenter) -> list[ConfusionMatrix]:
    """One for all classes, or one for each label: absent, present."""
    if segmenter.task == "multiclass":
        return [ConfusionMatrix(segmenter.num_classes)]
    return [ConfusionMatrix(2) for _ in range(segmenter.num_classes)]


def _count(matrices: Sequence[ConfusionMatrix], truth: Tensor, labels: Tensor, info: ExportInfo) -> None:
    """Count the confusions of labels [N, H, W]; of a multi-label task those of every label, present or absent."""
    if info.label_space.task != "multilabel":
        matrices[0].update(truth, labels)
        return
    masks, found = (unpack_labels(x, len(info.label_space), ignore_label=MULTILABEL_IGNORE) for x in (truth, labels))
    planes = masks.present.byte().masked_fill(~masks.valid.unsqueeze(-3), IGNORE_LABEL)
    for label, matrix in enumerate(matrices):
        matrix.update(planes[..., label, :, :], found.present[..., label, :, :].byte())


def _compare(expected: Tensor, actual: Tensor, images: NDArray[Any], info: ExportInfo) -> Comparison:
    batch, height, width = images.shape[:3]
    labels = _labels(actual, info)
    if labels.shape != (batch, height, width):
        raise ExportError(f"images of {list(images.shape)} gave an output of {list(actual.shape)}: its size is wrong.")
    agreement = float((labels == _labels(expected, info)).double().mean())
    if actual.dim() == 3:
        return Comparison(height, width, batch, None, None, None, agreement)
    error = (actual - expected).abs()
    largest, scale = float(error.max()), float(expected.abs().max())
    return Comparison(height, width, batch, largest, float(error.mean()), largest / max(scale, 1e-12), agreement)


def _mean_iou(matrices: Sequence[ConfusionMatrix], info: ExportInfo, *, known: bool) -> float:
    """Return the mean IoU, as an evaluation does; against the source's labels, over the classes that it predicts.

    A single pixel of a class that the source never predicts would otherwise count as a class with IoU 0.
    """
    scores = [matrix.scores() for matrix in matrices]
    if info.label_space.task == "multiclass":
        pairs = list(zip(scores[0].class_iou, scores[0].class_share, strict=True))
    else:
        pairs = [(score.class_iou[1], score.class_share[1]) for score in scores]
    ious = [iou for iou, share in pairs if iou is not None and (known or share)]
    return float(np.mean(ious)) if ious else 0.0


def _score(
    source: Source,
    model: ExportedModel,
    evidence: Evidence,
    matrices: tuple[Sequence[ConfusionMatrix], Sequence[ConfusionMatrix]],
    on_image: Callable[[], object] | None,
) -> None:
    """Count the confusions of the source and of the export on the data set."""
    dataset = evidence.dataset
    assert dataset is not None
    for index in range(min(evidence.limit or len(dataset), len(dataset))):
        sample = dataset[index]
        truth = torch.from_numpy(sample.labels.astype(np.int32))
        for counts, output in zip(matrices, _outputs(source, model, sample.image[None]), strict=True):
            _count(counts, truth, _labels(output, model.info)[0], model.info)
        if on_image is not None:
            on_image()
