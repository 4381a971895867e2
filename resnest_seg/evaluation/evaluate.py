"""Evaluation of a model on a data set by named protocols, in memory that does not grow with the number of images."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resnest_seg.config_types import check_option
from resnest_seg.data.datasets import SegmentationDataset
from resnest_seg.data.loader import Batch, load_batches
from resnest_seg.errors import CheckpointError, ConfigError, DatasetError
from resnest_seg.evaluation.boundaries import BoundaryScores
from resnest_seg.evaluation.calibration import Calibration
from resnest_seg.evaluation.label_scores import LabelMasks, LabelScores, ScoreHistogram, unpack_labels
from resnest_seg.evaluation.metrics import ConfusionMatrix, Scores
from resnest_seg.evaluation.report import EvalReport, Method
from resnest_seg.inference.backends import Backend, Decision, RunOptions
from resnest_seg.inference.protocols import Protocol
from resnest_seg.inference.torch_backend import TorchBackend
from resnest_seg.inference.torch_engine import probabilities
from resnest_seg.io.visualize import picture_of
from resnest_seg.labels import LabelSpace
from resnest_seg.models.segmenter import Segmenter


class EvaluatedImage(NamedTuple):
    """One evaluated image, as `evaluate` passes it to `on_image`.

    Attributes:
        image: RGB, uint8 [H, W, 3]; of other bands, the first three as a picture.
        labels: The truth, uint8 [H, W]; of a multi-label task bits, uint16.
        predictions: By the first protocol, likewise.
        name: The sample's name.
        mean_iou: Of everything that this process has counted so far by the first protocol.
    """

    image: NDArray[np.uint8]
    labels: NDArray[Any]
    predictions: NDArray[Any]
    name: str
    mean_iou: float


@dataclasses.dataclass(frozen=True)
class Measures:
    """Measures that are computed besides the confusion matrix.

    Attributes:
        boundaries: Boundary IoU and F-score.
        boundary_width: Width of the boundary region, as a share of an image's diagonal.
        boundary_tolerance: Distance at which contours still match, as a share of an image's diagonal.
        calibration: Whether confidences can be believed.
        bins: Bins of the calibration.

    Raises:
        ConfigError: A width or a tolerance out of range.
    """

    boundaries: bool = False
    boundary_width: float = 0.02
    boundary_tolerance: float = 0.0075
    calibration: bool = False
    bins: int = 15

    def __post_init__(self) -> None:
        BoundaryScores(1, width=self.boundary_width, tolerance=self.boundary_tolerance)  # refuses what makes no sense


class _Meter:
    """The counts of one protocol.

    Args:
        method: The protocol.
        space: The classes.
        measures: What else is measured.
        device: Device of the counts.
        decision: How scores become labels.
    """

    def __init__(
        self, method: Protocol, space: LabelSpace, measures: Measures, device: torch.device, decision: Decision
    ) -> None:
        self.method, self.space, self.decision = method, space, decision
        classes = len(space)
        multiclass = space.task == "multiclass"
        self.matrix = ConfusionMatrix(classes, device=device) if multiclass else None
        self.histogram = None if multiclass else ScoreHistogram(len(space.score_names), device=device)
        # Class 1 are the labelled pixels, of which those with exactly the right labels are hits.
        self.exact = None if multiclass else ConfusionMatrix(2, device=device)
        self.boundaries = (
            BoundaryScores(classes, width=measures.boundary_width, tolerance=measures.boundary_tolerance)
            if measures.boundaries
            else None
        )
        self.calibration = Calibration(bins=measures.bins, device=device) if measures.calibration else None

    def update(self, backend: Backend, image: NDArray[Any], labels: Tensor, memory: int | None) -> Tensor:
        """Predict an image [H, W, C] a block at a time and count it; returns its labels, as integers [H, W]."""
        predictions = torch.empty(labels.shape, dtype=labels.dtype, device=labels.device)
        for block in backend.blocks(image, self.method, memory=memory):
            here = (block.rows, block.columns)
            if block.scores is None:
                best = torch.from_numpy(block.labels().astype(np.int32)).to(labels.dtype)
            else:
                scores = torch.as_tensor(block.scores)
                best = self.decision.labels(scores)
            predictions[here] = best
            if self.histogram is not None:
                truth = self._unpacked(labels[here])
                found = self._unpacked(best).present.float() if block.scores is None else scores
                self.histogram.update(found, truth.present, truth.valid)
            if self.calibration is not None:
                confidence = probabilities(scores, self.method.merge).amax(dim=0)
                self.calibration.update(labels[here], best, confidence)
        if self.matrix is not None:
            self.matrix.update(labels, predictions)
        if self.histogram is not None and self.exact is not None:
            truth = self._unpacked(labels)
            self.histogram.count_image(truth.present, truth.valid)
            self.exact.update(truth.valid.byte(), (predictions == labels).byte())
        if self.boundaries is not None:
            self.boundaries.update(labels, predictions)
        return predictions

    def _unpacked(self, labels: Tensor) -> LabelMasks:
        return unpack_labels(labels, len(self.space.score_names), ignore_label=self.space.ignore_value)

    def scores(self) -> Scores:
        """The scores of everything that was counted."""
        if self.matrix is not None:
            return self.matrix.scores()
        found = self.label_scores()
        assert found is not None
        assert self.exact is not None
        right, labelled = self.exact.counts[1, 1], self.exact.counts[1].sum()
        return found.as_scores(pixel_accuracy=int(right) / max(int(labelled), 1))

    def label_scores(self) -> LabelScores | None:
        """The scores of labels at their thresholds; None of classes."""
        return None if self.histogram is None else self.histogram.scores(self.decision.thresholds)

    @property
    def labelled(self) -> bool:
        """True if a labelled pixel was counted."""
        if self.exact is not None:
            return bool(self.exact.counts[1].any())
        assert self.matrix is not None
        return bool(self.matrix.counts.any())

    def reduce(self, reduce: Callable[[Tensor], Tensor] | None, device: torch.device) -> None:
        """Sum the counts over all processes, which can be done on the model's device only; None is a single one."""
        for counts in (self.matrix, self.histogram, self.exact, self.boundaries, self.calibration):
            if counts is not None and reduce is not None:
                counts.state = [reduce(state.to(device)).to(state.device) for state in counts.state]


def evaluate(
    model: Segmenter | Backend,
    dataset: SegmentationDataset,
    *,
    protocols: Sequence[str | Protocol] = ("whole",),
    indices: Sequence[int] | None = None,
    workers: int = 0,
    on_image: Callable[[EvaluatedImage], None] | None = None,
    reduce: Callable[[Tensor], Tensor] | None = None,
    require_labels: bool = True,
    measures: Measures = Measures(),  # a constant
    memory: int | None = None,
) -> EvalReport:
    """Evaluate a model, which stays on its device and is put into eval mode.

    Memory does not grow with the number of images, nor, beyond `memory`, with classes times pixels: scores are
    computed, and forgotten, a slab of rows at a time.

    Args:
        model: The model; a `Backend`, as of `resnest_seg.inference.predictor.open_backend`, runs as it was opened.
        dataset: Its label space must have the model's classes.
        protocols: Inference protocols, or their names; the first is the one that `on_image` sees.
        indices: The samples to evaluate; None takes all.
        workers: Loader processes, which decode the next images while the model is at work.
        on_image: Called with every image, in the order of the indices, for progress bars and pictures.
        reduce: Sums a tensor over processes, when each evaluates its share of the indices.
        require_labels: Refuse a split in which no pixel is labelled; False is for its predictions alone.
        measures: What else is measured.
        memory: Bytes that scores may take, 1 or more; None is 1 GiB, or 4 for an exported file, whose logits are large.

    Raises:
        CheckpointError: The model has other classes than the data set, or its scores are no numbers.
        ConfigError: Unknown protocol, the same one twice, what an exported file cannot do, a number out of range.
        DatasetError: A sample cannot be read, or no pixel is labelled.
        ResNeStSegError: A loader process died.
    """
    check_fits(model, dataset)
    check_option("memory", memory, 1, math.inf)
    if isinstance(model, Segmenter):
        model = TorchBackend(model, RunOptions(device=str(model.pixel_mean.device), fuse=False))
    methods = _distinct([model.protocol(name) for name in protocols])
    _check_measures(measures, model)
    device = torch.device(model.device)
    meters = [_Meter(method, dataset.label_space, measures, device, model.decision) for method in methods]
    indices = range(len(dataset)) if indices is None else indices
    order = ([(0, index)] for index in indices)
    batches = load_batches(dataset, order, workers=workers, pin_memory=device.type == "cuda")
    with torch.inference_mode(), contextlib.closing(batches):
        for batch in batches:
            image, labels = _pixels(batch), batch.labels[0].to(device, non_blocking=True)
            predictions = [meter.update(model, image, labels, memory) for meter in meters]
            if on_image is not None:
                on_image(_shown(batch, predictions[0], meters[0].scores().mean_iou_by(methods[0].absent)))
    images = len(indices) if reduce is None else int(reduce(torch.tensor(len(indices), device=device)))
    for meter in meters:
        meter.reduce(reduce, device)
    if require_labels:
        _check_labelled(dataset, meters)
    return _report(model, dataset, meters, images)


def _check_measures(measures: Measures, model: Backend) -> None:
    """Refuse measures that a model has not enough for, or that its task does not have."""
    if measures.calibration and not model.scored:
        raise ConfigError("calibration needs scores, and the model gives labels only: export it again with logits.")
    task = model.decision.task
    if task != "multiclass" and (measures.calibration or measures.boundaries):
        measure = "calibration" if measures.calibration else "boundaries"
        raise ConfigError(f"{measure} is measured of multiclass models, and this task is {task}.")


def _distinct(methods: list[Protocol]) -> list[Protocol]:
    names = [method.name for method in methods]
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"name one or more protocols, each once, not {', '.join(names) or 'none'}.")
    return methods


def _report(model: Backend, dataset: SegmentationDataset, meters: list[_Meter], images: int) -> EvalReport:
    return EvalReport(
        model=model.description,
        dataset=dataset.label_space.name,
        split=dataset.split,
        images=images,
        classes=dataset.label_space.score_names,
        scores={meter.method.name: meter.scores() for meter in meters},
        methods={m.method.name: Method(m.method.absent, m.method.description) for m in meters},
        confusions={m.method.name: m.matrix.pairs() for m in meters if m.matrix is not None},
        boundaries={m.method.name: m.boundaries.report() for m in meters if m.boundaries is not None},
        calibration={m.method.name: m.calibration.report() for m in meters if m.calibration is not None},
        labels={m.method.name: found for m in meters if (found := m.label_scores()) is not None},
    )


def check_fits(model: Segmenter | Backend, dataset: SegmentationDataset) -> None:
    """Refuse a model that cannot segment the images of a data set into its classes.

    Raises:
        ConfigError: A model for images of other channels.
        CheckpointError: Other classes: says how many each has, or which name differs first.
    """
    channels = model.config.model.in_channels if isinstance(model, Segmenter) else model.channels
    bands = dataset.bands.bands if dataset.bands is not None else None
    found = 3 if bands is None else len(bands)
    if bands is None and channels != 3:
        found = dataset.raster(0).pixels.shape[2]
    if found != channels:
        raise ConfigError(
            f"model.in_channels is {channels}, and the images of data set {dataset.label_space.name} have {found}: "
            "data.bands says which bands of the files are read."
        )
    own, needed = model.label_space, dataset.label_space
    task = model.task if isinstance(model, Segmenter) else model.decision.task
    if task != needed.task:
        raise CheckpointError(
            f"wrong task: the model's is {task}, and that of data set {needed.name} is {needed.task}."
        )
    if own is None or own.names == needed.names:
        return
    if len(own) != len(needed):
        problem = f"{len(own)} classes ({own.name}) and the data set {needed.name} has {len(needed)}"
    else:
        label = next(label for label in range(len(own)) if own.names[label] != needed.names[label])
        problem = (
            f"class {label} = {own.names[label]!r} and the data set {needed.name} has {needed.names[label]!r} there"
        )
    raise CheckpointError(f"wrong classes: the checkpoint has {problem}. Evaluate on the data set it was trained on.")


def _check_labelled(dataset: SegmentationDataset, meters: Iterable[_Meter]) -> None:
    if not any(meter.labelled for meter in meters):
        raise DatasetError(
            f"nothing to measure: no pixel of the {dataset.split} split of {dataset.label_space.name} has a label. "
            "Test splits of public data sets often come without labels; evaluate on another split."
        )


def _pixels(batch: Batch) -> NDArray[Any]:
    """The image of a batch of one, [H, W, C]."""
    return batch.images[0].permute(1, 2, 0).numpy()


def _shown(batch: Batch, predictions: Tensor, mean_iou: float) -> EvaluatedImage:
    labels, found = batch.labels[0].numpy(), predictions.cpu().numpy()
    if labels.dtype != np.uint8:  # multi-label bits, which travel as int32
        labels, found = labels.astype(np.uint16), found.astype(np.uint16)
    return EvaluatedImage(picture_of(_pixels(batch)), labels, found, batch.names[0], mean_iou)
