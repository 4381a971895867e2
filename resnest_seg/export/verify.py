"""Verification of exported files: file and source see the same pixels, and their differences have bounds."""

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
from resnest_seg.evaluation.evaluate import check_fits
from resnest_seg.evaluation.metrics import ConfusionMatrix
from resnest_seg.export.graph import sha256
from resnest_seg.inference.exported import ExportedModel
from resnest_seg.io.display import PlainTable
from resnest_seg.models.segmenter import Segmenter

SIZES = (((33, 47), 3), ((64, 64), 1), ((97, 130), 3), ((256, 256), 1), ((512, 683), 1))
"""Sizes (H, W) at which an export is compared with its source, and how many images at once."""

PHOTOS = sum(count for _, count in SIZES)
"""Photos that a comparison uses."""

OWN_SIZE = 4
"""Photos that are compared at their own size as well."""

LARGEST = 4_000_000
"""Pixels up to which they are."""


@dataclasses.dataclass(frozen=True)
class Bounds:
    """What an export must keep; None asks nothing.

    Attributes:
        agreement: Least share of pixels, over all images, with the same label.
        relative_error: Largest error of the output, as a share of its largest value.
        drop: Largest loss of mean IoU, as a share 0..1.
    """

    agreement: float | None = None
    relative_error: float | None = None
    drop: float | None = None


BOUNDS = {
    "float32": Bounds(agreement=0.9999, relative_error=1e-3),
    "half": Bounds(agreement=0.995),
    "int8": Bounds(drop=0.01),
}
"""Precision -> what an export of it must keep."""


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What an export is compared on.

    Attributes:
        photos: RGB, uint8 [H, W, 3], of which the first `PHOTOS` are used; empty takes some of the data set's, or drawn
            street scenes without one.
        dataset: Labelled images, of which both get a mean IoU.
        limit: The first this many of them; None takes all.
    """

    photos: Sequence[NDArray[np.uint8]] = ()
    dataset: SegmentationDataset | None = None
    limit: int | None = None


@dataclasses.dataclass(frozen=True)
class Comparison:
    """An export and its source on images of one size.

    Attributes:
        height: Of the images.
        width: Of the images.
        batch: How many at once.
        max_error: Largest difference of the output; None where the output is labels, as for the next two.
        mean_error: Mean difference.
        relative_error: Largest difference as a share of the source's largest value.
        agreement: Share of pixels with the same label.
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
        """Of all images together."""
        return self.height * self.width * self.batch


@dataclasses.dataclass(frozen=True)
class Proof:
    """How far an export agrees with its source.

    Attributes:
        file: Its name.
        sha256: Its hash: what was found is true of this file alone.
        runtime: What it was run by.
        info: What it says about itself.
        images: What was compared: the data set's or given photos, or drawn scenes.
        comparisons: One a size.
        agreement: Share of pixels with the same label, over all comparisons.
        scored: What the mean IoU below is measured on; empty if it is not.
        source_mean_iou: Mean IoU of the source, 0..1.
        mean_iou: Mean IoU of the export.
        bounds: What it has to keep.
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
        """The largest of all comparisons."""
        errors = [row.relative_error for row in self.comparisons if row.relative_error is not None]
        # not by max(), which may skip a value that is no number
        return None if not errors else float(np.max(errors))

    @property
    def breaches(self) -> list[str]:
        """What it does not keep, one sentence each."""
        found, bounds, error = [], self.bounds, self.relative_error
        if bounds.agreement is not None and not self.agreement >= bounds.agreement:
            found.append(f"{self.agreement:.3%} of the labels agree (at least {bounds.agreement:.2%})")
        if bounds.relative_error is not None and error is not None and not error <= bounds.relative_error:
            found.append(f"the output is off by {error:.2g} of its largest value (at most {bounds.relative_error:g})")
        if bounds.drop is not None:
            assert self.mean_iou is not None
            assert self.source_mean_iou is not None
            drop = self.source_mean_iou - self.mean_iou
            if not drop <= bounds.drop:
                found.append(f"mean IoU {self.scored} drops by {100 * drop:.2f} points (at most {100 * bounds.drop:g})")
        return found

    def table(self) -> PlainTable:
        """The comparisons, a row each, and the mean IoU below."""
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
        """As plain values that JSON can hold."""
        return dataclasses.asdict(self) | {"relative_error": self.relative_error, "agrees": not self.breaches}


@torch.inference_mode()
def prove(
    model: ExportedModel,
    segmenter: Segmenter,
    *,
    evidence: Evidence = Evidence(),  # a constant
    on_image: Callable[[], object] | None = None,
) -> Proof:
    """Compare an exported file with its source, which stays as it is.

    The label of the source is the class of its highest logit. With a data set, both label its images whole, at their
    own size. Without one, an 8-bit export is scored against the labels of the source.

    Args:
        model: The file, in its own runtime.
        segmenter: Its source, not fused, on any device.
        evidence: What they are compared on.
        on_image: Called after every image of the data set, for progress bars.

    Raises:
        ExportError: The export does not keep the bounds of its precision; says which and by how much.
        CheckpointError: The data set has other classes.
        DatasetError: A sample cannot be read.
    """
    info, precision = model.info, model.info.precision
    if evidence.dataset is not None:
        check_fits(segmenter, evidence.dataset)
    photos, images, own = _photos(evidence)
    matrices = ConfusionMatrix(segmenter.num_classes), ConfusionMatrix(segmenter.num_classes)
    rows: list[Comparison] = []
    with _in_eval_mode(segmenter):
        for photo_batch in _batches(photos, own, smallest=info.smallest):
            batch = photo_batch[..., np.arange(info.channels) % 3]  # channels beyond RGB repeat it
            expected, found = _outputs(segmenter, model, batch)
            row = _compare(expected, found, batch)
            rows.append(row)
            if evidence.dataset is None and precision == "int8":
                truth = _labels(expected)
                for matrix, output in zip(matrices, (expected, found), strict=True):
                    matrix.update(truth, _labels(output))
        if evidence.dataset is not None:
            _score(segmenter, model, evidence, matrices, on_image)
    scored = _scored(evidence, precision)
    source_iou, export_iou = (_mean_iou(matrix, known=evidence.dataset is not None) for matrix in matrices)
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


def _scored(evidence: Evidence, precision: str) -> str:
    """What the mean IoU is measured on, in words; empty if it is not."""
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
            advice = " Judge it by real labels (--dataset), or calibrate with more images."
    elif proof.info["precision"] == "half":
        advice = " This model needs float32."
    return (
        f"{proof.file} ({proof.info['precision']}, {proof.runtime}) does not predict what its source predicts, so it "
        f"is not kept: {'; '.join(proof.breaches)}. Compared on {proof.images}.{advice}"
    )


@contextlib.contextmanager
def _in_eval_mode(segmenter: Segmenter) -> Iterator[None]:
    """Within this context, the model is in eval mode."""
    training = segmenter.training
    segmenter.eval()
    try:
        yield
    finally:
        if training:
            segmenter.train()


def _photos(evidence: Evidence) -> tuple[list[NDArray[np.uint8]], str, int]:
    """What is compared, what it is in words, and how many of them at their own size as well."""
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


def _batches(photos: Sequence[NDArray[np.uint8]], own: int, *, smallest: int) -> Iterator[NDArray[np.uint8]]:
    """Images uint8 [N, H, W, 3]: the photos resized to `SIZES`, then `own` of them at their own size."""
    place = 0
    for (height, width), count in SIZES:
        height, width = max(height, smallest), max(width, smallest)
        chosen = [photos[(place + offset) % len(photos)] for offset in range(count)]
        place += count
        resized = [cv2.resize(photo, (width, height), interpolation=cv2.INTER_AREA) for photo in chosen]
        yield np.stack(resized).astype(np.uint8, copy=False)
    for photo in photos[:own]:
        if smallest <= min(photo.shape[:2]) and photo.shape[0] * photo.shape[1] <= LARGEST:
            yield photo[None]


def _outputs(segmenter: Segmenter, model: ExportedModel, images: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
    """The source's logits (or probabilities, if that is what the export gives) and the export's output, on the CPU."""
    nchw = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    expected = segmenter(torch.from_numpy(nchw).to(segmenter.pixel_mean.device)).logits.float().cpu()
    if model.info.output == "softmax":
        expected = expected.softmax(dim=1)
    return expected, torch.from_numpy(model(images if model.info.layout == "nhwc" else nchw))


def _labels(output: Tensor) -> Tensor:
    """Labels uint8 [N, H, W] of scores [N, K, H, W], or of labels."""
    return output.argmax(dim=1).to(torch.uint8) if output.dim() == 4 else output


def _compare(expected: Tensor, found: Tensor, images: NDArray[np.uint8]) -> Comparison:
    batch, height, width = images.shape[:3]
    labels = _labels(found)
    if labels.shape != (batch, height, width):
        raise ExportError(f"images of {list(images.shape)} gave an output of {list(found.shape)}: its size is wrong.")
    agreement = float((labels == _labels(expected)).double().mean())
    if found.dim() == 3:
        return Comparison(height, width, batch, None, None, None, agreement)
    error = (found - expected).abs()
    largest, scale = float(error.max()), float(expected.abs().max())
    return Comparison(height, width, batch, largest, float(error.mean()), largest / max(scale, 1e-12), agreement)


def _mean_iou(matrix: ConfusionMatrix, *, known: bool) -> float:
    """The usual one where labels are known; of the source's own labels, that of the classes that it found.

    A single pixel of a class that the source never names would otherwise count as a whole class missed.
    """
    scores = matrix.scores()
    if known:
        return scores.mean_iou
    found = [iou for iou, share in zip(scores.class_iou, scores.class_share, strict=True) if share and iou is not None]
    return float(np.mean(found)) if found else 0.0


def _score(
    segmenter: Segmenter,
    model: ExportedModel,
    evidence: Evidence,
    matrices: tuple[ConfusionMatrix, ConfusionMatrix],
    on_image: Callable[[], object] | None,
) -> None:
    """Count the labels of the source and of the export on the data set."""
    dataset = evidence.dataset
    assert dataset is not None
    for index in range(min(evidence.limit or len(dataset), len(dataset))):
        sample = dataset[index]
        truth = torch.from_numpy(sample.labels)
        for matrix, output in zip(matrices, _outputs(segmenter, model, sample.image[None]), strict=True):
            matrix.update(truth, _labels(output)[0])
        if on_image is not None:
            on_image()
