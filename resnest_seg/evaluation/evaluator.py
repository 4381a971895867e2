"""Evaluation of a model on a data set by named protocols, in memory that does not grow with the number of images."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Generator, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resnest_seg.config_types import check_option
from resnest_seg.data.datasets import PairedFiles, SegmentationDataset, Subset, behind_views
from resnest_seg.data.loader import Batch, load_batches
from resnest_seg.data.tiles import paired_files
from resnest_seg.errors import CheckpointError, ConfigError, DatasetError
from resnest_seg.evaluation.boundaries import BoundaryScores
from resnest_seg.evaluation.calibration import Calibration, certainty
from resnest_seg.evaluation.image_scores import ImageScores, ImageScoresWriter, ImagesHeader
from resnest_seg.evaluation.label_scores import LabelMasks, LabelScores, ScoreHistogram, unpack_labels
from resnest_seg.evaluation.metrics import ConfusionMatrix, Scores
from resnest_seg.evaluation.report import EvalReport, Method
from resnest_seg.inference.backends import Backend, RunOptions
from resnest_seg.inference.protocols import Protocol
from resnest_seg.inference.torch_backend import TorchBackend, reader_of
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


OnScores = Callable[[Tensor, Tensor, str], None]
"""Hears the scores of a block [K, r, c], its labels [r, c], and the protocol's `merge`."""


class _Sample(NamedTuple):
    """A sample on the device.

    Attributes:
        place: Its index in the data set.
        name: Its name.
        image: [H, W, C].
        labels: [H, W].
    """

    place: int
    name: str
    image: NDArray[Any]
    labels: Tensor


class _Certainty:
    """Sums over the labelled pixels of an image: of confidence and of entropy, see `certainty`.

    Args:
        ignore: The value of ignored pixels.
        device: Device of the sums.
    """

    def __init__(self, ignore: int, device: torch.device) -> None:
        exact = torch.float32 if device.type == "mps" else torch.float64  # in which the order of a sum does not matter
        self.ignore, self.sums, self.known = ignore, torch.zeros(2, dtype=exact, device=device), True

    def add(self, scores: Tensor | None, labels: Tensor, best: Tensor, merge: str) -> None:
        """Add a block; of None, the labels of a file that gives no scores, nothing can be known."""
        if scores is None:
            self.known = False
            return
        both = torch.stack(certainty(scores, merge, best))
        self.sums += torch.where(labels != self.ignore, both, 0).sum(dim=(1, 2), dtype=self.sums.dtype)

    def means(self, pixels: int) -> dict[str, float | None]:
        """The means over so many labelled pixels, to seven places: further ones depend on threads."""
        if not self.known or not pixels:
            return {"confidence": None, "entropy": None}
        confidence, entropy = (round(min(max(total / pixels, 0.0), 1.0), 7) for total in self.sums.tolist())
        return {"confidence": confidence, "entropy": entropy}


class _Meter:
    """The counts of one protocol.

    Args:
        method: The protocol.
        space: The classes.
        measures: What else is measured.
        model: What decides how scores become labels, and on which device they are.
        by_image: Score every image by itself, too.

    Attributes:
        image: The scores of the last image, if `by_image`.
    """

    def __init__(
        self, method: Protocol, space: LabelSpace, measures: Measures, model: Backend, *, by_image: bool
    ) -> None:
        self.method, self.space, self.decision, self.by_image = method, space, model.decision, by_image
        self.scored = model.scored
        device = torch.device(model.device)
        self.image: ImageScores | None = None
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

    def update(
        self, backend: Backend, sample: _Sample, memory: int | None, on_scores: OnScores | None = None
    ) -> Tensor:
        """Predict an image a block at a time and count it; returns its labels, as integers [H, W]."""
        labels = sample.labels
        predictions = torch.empty(labels.shape, dtype=labels.dtype, device=labels.device)
        sure = _Certainty(self.space.ignore_value, labels.device) if self.by_image else None
        for block in backend.blocks(sample.image, self.method, memory=memory):
            here = (block.rows, block.columns)
            scores = None if block.scores is None else torch.as_tensor(block.scores)
            if scores is None:
                best = torch.from_numpy(block.labels().astype(np.int32)).to(labels.dtype)
            else:
                best = self.decision.labels(scores)
                if on_scores is not None:
                    on_scores(scores, labels[here], self.method.merge)
            predictions[here] = best
            if self.histogram is not None:
                truth = self._unpacked(labels[here])
                found = self._unpacked(best).present.float() if scores is None else scores
                self.histogram.update(found, truth.present, truth.valid)
            if self.calibration is not None and scores is not None:
                confidence = probabilities(scores, self.method.merge).amax(dim=0)
                self.calibration.update(labels[here], best, confidence)
            if sure is not None:
                sure.add(scores, labels[here], best, self.method.merge)
        count = self._count_labels if self.matrix is None else self._count_classes
        counts, right, pixels = count(labels, predictions)
        boundary_iou = self._count_boundaries(labels, predictions)
        if sure is not None:
            self.image = ImageScores.of_counts(
                counts.cpu().numpy(),
                index=sample.place,
                name=sample.name,
                protocol=self.method.name,
                pixels=pixels,
                right=right,
                boundary_iou=boundary_iou,
                **sure.means(pixels),
            )
        return predictions

    def _count_classes(self, labels: Tensor, predictions: Tensor) -> tuple[Tensor, int, int]:
        """Count an image; returns intersection, truth and prediction by class, [3, K], right and labelled pixels."""
        assert self.matrix is not None
        found = ConfusionMatrix(len(self.space), device=labels.device).update(labels, predictions).counts
        self.matrix.counts += found
        counts = torch.stack([found.diagonal(), found.sum(dim=1), found.sum(dim=0)])
        if not self.by_image:  # whose numbers a GPU would be waited for
            return counts, 0, 0
        right, pixels = counts[:2].sum(dim=1).tolist()
        return counts, right, pixels

    def _count_labels(self, labels: Tensor, predictions: Tensor) -> tuple[Tensor, int, int]:
        """The same of a binary or multi-label task, whose pixels are counted in the histogram already."""
        assert self.histogram is not None
        assert self.exact is not None
        truth = self._unpacked(labels)
        self.histogram.count_image(truth.present, truth.valid)
        exact = ConfusionMatrix(2, device=labels.device).update(truth.valid.byte(), (predictions == labels).byte())
        self.exact.counts += exact.counts
        if not self.by_image:
            return exact.counts, 0, 0
        found = self._unpacked(predictions).present & truth.valid
        counts = torch.stack([(truth.present & found).sum(dim=(1, 2)), truth.present.sum(dim=(1, 2)),
                              found.sum(dim=(1, 2))])  # fmt: skip
        wrong, right = exact.counts[1].tolist()
        return counts, right, right + wrong

    def _count_boundaries(self, labels: Tensor, predictions: Tensor) -> float | None:
        """Count the boundaries of an image, if they are measured; returns their mean IoU, None without any."""
        if self.boundaries is None:
            return None
        known = self.boundaries
        here = BoundaryScores(len(self.space), width=known.width, tolerance=known.tolerance, device=labels.device)
        here.update(labels, predictions)
        known.state = [total + more for total, more in zip(known.state, here.state, strict=True)]
        report = here.report()
        return report.mean_boundary_iou if any(iou is not None for iou in report.class_boundary_iou) else None

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
        if self.histogram is None:
            return None
        found = self.histogram.scores(self.decision.thresholds)
        return found if self.scored else found.of_labels_only()

    @property
    def labelled(self) -> bool:
        """True if a labelled pixel was counted."""
        if self.exact is not None:
            return bool(self.exact.counts[1].any())
        assert self.matrix is not None
        return bool(self.matrix.counts.any())

    def summed(self) -> list[Counts]:
        """What is summed over processes, in the same order on all of them."""
        every = (self.matrix, self.histogram, self.exact, self.boundaries, self.calibration)
        return [counts for counts in every if counts is not None]


Counts = ConfusionMatrix | ScoreHistogram | BoundaryScores | Calibration
"""What counts pixels in tensors that are summed over processes."""


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
    images: str | Path | ImageScoresWriter | None = None,
    on_scores: OnScores | None = None,
    checkpoint: str = "",
) -> EvalReport:
    """Evaluate a model, which stays on its device and is put into eval mode.

    Memory does not grow with the number of images, nor, beyond `memory`, with classes times pixels: scores are
    computed, and forgotten, a slab of rows at a time.

    Args:
        model: The model; a `Backend`, as of `resnest_seg.inference.predictor.open_backend`, runs as it was opened.
        dataset: Its label space must have the model's classes. Where it was not told how bands are read
            (`SegmentationDataset.read_as`), it reads them as the model's were in training, and goes on to afterwards:
            until the next model, which has it read its own, or until it is told, `read_as(None)` as photos.
        protocols: Inference protocols, or their names; the first is the one that `on_image` sees.
        indices: The samples to evaluate; None takes all.
        workers: Loader processes, which decode the next images while the model is at work.
        on_image: Called with every image, in the order of the indices, for progress bars and pictures.
        reduce: Sums a tensor over processes, when each evaluates its share of the indices.
        require_labels: Refuse a split in which no pixel is labelled; False is for its predictions alone.
        measures: What else is measured.
        memory: Bytes that scores may take, 1 or more; None is 1 GiB, or 4 for an exported file, whose logits are large.
        images: File for the scores of every image, JSON lines that `ImageScoresFile` reads, or its writer; replaced.
        on_scores: Called with the scores of every block of every image by the first protocol, if the model gives any.
        checkpoint: What the report and the scores by image say was evaluated.

    Raises:
        CheckpointError: The model has other classes than the data set, or its scores are no numbers.
        ConfigError: Unknown protocol, the same one twice, what an exported file cannot do, a number out of range.
        DatasetError: A sample cannot be read, or no pixel is labelled.
        ResNeStSegError: A loader process died.
        OSError: `images` cannot be written.
    """
    read_like(model, dataset, chosen=indices is not None)
    counting = Counting(
        model, dataset, protocols=protocols, measures=measures, memory=memory, by_image=images is not None
    )
    with contextlib.ExitStack() as opened:
        writer = opened.enter_context(ImageScoresWriter(images)) if isinstance(images, str | Path) else images
        counting.count(indices, workers=workers, on_image=on_image, images=writer, on_scores=on_scores,
                       checkpoint=checkpoint)  # fmt: skip
        if reduce is not None:  # which can be done on the model's device only
            counting.state = [reduce(part.to(counting.backend.device)) for part in counting.state]
        if require_labels:
            counting.check_labelled()
    return counting.report(checkpoint=checkpoint)


class Counting:
    """What is counted of a model's predictions of a data set, of which `evaluate` makes its report.

    Several processes may count a share of the samples each. All that is counted are whole numbers, or multiples of a
    power of two: the sums of their states do not depend on who counted what, nor on the order.

    Args:
        model: See `evaluate`, as for the others.
        dataset: See `evaluate`.
        protocols: See `evaluate`.
        measures: See `evaluate`.
        memory: See `evaluate`.
        by_image: Score every image by itself, too.

    Attributes:
        backend: The model, ready to run.
        dataset: The data set.
        images: Images that were counted.

    Raises:
        CheckpointError: The model has other classes than the data set.
        ConfigError: Unknown protocol, the same one twice, what an exported file cannot do, a number out of range.
    """

    def __init__(
        self,
        model: Segmenter | Backend,
        dataset: SegmentationDataset,
        *,
        protocols: Sequence[str | Protocol] = ("whole",),
        measures: Measures = Measures(),  # a constant
        memory: int | None = None,
        by_image: bool = False,
    ) -> None:
        read_like(model, dataset, chosen=True)
        check_fits(model, dataset)
        check_option("memory", memory, 1, math.inf)
        self.backend, self.dataset, self.images, self._memory = _backend(model), dataset, 0, memory
        self._methods = _distinct([self.backend.protocol(name) for name in protocols])
        _check_measures(measures, self.backend)
        self._meters = [
            _Meter(method, dataset.label_space, measures, self.backend, by_image=by_image) for method in self._methods
        ]

    def count(
        self,
        indices: Sequence[int] | None = None,
        *,
        workers: int = 0,
        on_image: Callable[[EvaluatedImage], None] | None = None,
        images: ImageScoresWriter | None = None,
        on_scores: OnScores | None = None,
        checkpoint: str = "",
    ) -> None:
        """Predict samples and count them.

        Args:
            indices: See `evaluate`, as for the others.
            workers: See `evaluate`.
            on_image: See `evaluate`.
            images: Writer of the scores of every image, if there is `by_image`.
            on_scores: See `evaluate`.
            checkpoint: See `evaluate`.

        Raises:
            DatasetError: A sample cannot be read.
            CheckpointError: The model's scores are no numbers.
            ResNeStSegError: A loader process died.
            OSError: `images` cannot be written.
        """
        if images is not None:
            images.begin(_header(self.backend, self.dataset, self._methods, checkpoint))
        indices = range(len(self.dataset)) if indices is None else indices
        samples = _samples(self.dataset, indices, workers, self.backend.device)
        _count(self.backend, samples, self._meters, self._memory, writer=images, on_image=on_image, on_scores=on_scores)
        self.images += len(indices)

    @property
    def state(self) -> list[Tensor]:
        """The tensors to sum over processes, on any device; assign the sums."""
        counted = [part for meter in self._meters for counts in meter.summed() for part in counts.state]
        return [torch.tensor(self.images), *counted]

    @state.setter
    def state(self, state: list[Tensor]) -> None:
        """The sums."""
        images, *parts = state
        self.images, remaining = int(images), iter(parts)
        for meter in self._meters:
            for counts in meter.summed():
                counts.state = [next(remaining).to(part.device) for part in counts.state]

    def check_labelled(self) -> None:
        """Raise a `DatasetError` if no pixel that was counted has a label."""
        _check_labelled(self.dataset, self._meters)

    def report(self, *, checkpoint: str = "") -> EvalReport:
        """Make the report of all that was counted."""
        return _report(self.backend, self.dataset, self._meters, self.images, checkpoint)


def _backend(model: Segmenter | Backend) -> Backend:
    if isinstance(model, Backend):
        return model
    return TorchBackend(model, RunOptions(device=str(model.pixel_mean.device), fuse=False))


def _count(
    model: Backend,
    samples: Generator[tuple[Batch, _Sample], None, None],
    meters: Sequence[_Meter],
    memory: int | None,
    *,
    writer: ImageScoresWriter | None,
    on_image: Callable[[EvaluatedImage], None] | None,
    on_scores: OnScores | None,
) -> None:
    """Predict and count the samples, and tell of every one."""
    with torch.inference_mode(), contextlib.closing(samples):
        for batch, sample in samples:
            found = [meter.update(model, sample, memory, on_scores) for meter in meters[:1]]
            found += [meter.update(model, sample, memory) for meter in meters[1:]]
            if writer is not None:
                writer.add([meter.image for meter in meters if meter.image is not None])
            if on_image is not None:
                mean_iou = meters[0].scores().mean_iou_by(meters[0].method.absent)
                on_image(_shown(batch, found[0], mean_iou))


def _samples(
    dataset: SegmentationDataset, indices: Sequence[int], workers: int, device: str
) -> Generator[tuple[Batch, _Sample], None, None]:
    """The samples in the order of the indices."""
    order = ([(0, index)] for index in indices)
    batches = load_batches(dataset, order, workers=workers, pin_memory=torch.device(device).type == "cuda")
    with contextlib.closing(batches):
        for index, batch in zip(indices, batches, strict=True):
            labels = batch.labels[0].to(device, non_blocking=True)
            yield batch, _Sample(index, dataset.sample_name(index), _pixels(batch), labels)


def _header(model: Backend, dataset: SegmentationDataset, methods: Sequence[Protocol], checkpoint: str) -> ImagesHeader:
    space = dataset.label_space
    return ImagesHeader(
        dataset=space.name,
        split=dataset.split,
        classes=space.score_names,
        protocols=tuple(method.name for method in methods),
        task=space.task,
        model=model.description,
        checkpoint=checkpoint,
    )


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


def _report(
    model: Backend, dataset: SegmentationDataset, meters: list[_Meter], images: int, checkpoint: str
) -> EvalReport:
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
        matrices={m.method.name: m.matrix.counts.tolist() for m in meters if m.matrix is not None},
        checkpoint=checkpoint,
    )


def read_like(model: Segmenter | Backend, dataset: SegmentationDataset, *, chosen: bool) -> None:
    """Have a data set that was not told how bands are read read them as a model does; as photos, they are others.

    Args:
        model: The model.
        dataset: It is changed, if it reads them otherwise: as photos, or as another model does that it was given to.
        chosen: Samples of it are chosen by index already.

    Raises:
        DatasetError: These would become other ones, see `Subset.read_as`.
        ConfigError: Its images are drawn, and have no bands.
    """
    bands = reader_of(model) if isinstance(model, Segmenter) else model.bands
    before = behind_views(dataset).bands  # a view may have been made before
    if before is not None and not before.of_model:
        bands = before
    elif bands is not None:
        bands = dataclasses.replace(bands, of_model=True)
    if bands != before or bands != dataset.bands:
        (Subset(dataset, ()) if chosen else dataset).read_as(bands)


def check_fits(model: Segmenter | Backend, dataset: SegmentationDataset) -> None:
    """Refuse a model that cannot segment the images of a data set into its classes.

    Raises:
        ConfigError: A model for images of other channels.
        CheckpointError: Other classes: says how many each has, or which name differs first.
    """
    channels = model.config.model.in_channels if isinstance(model, Segmenter) else model.channels
    bands = dataset.bands.bands if dataset.bands is not None else None
    found = 3 if bands is None else len(bands)
    if (bands is None and channels != 3) or (bands is not None and not isinstance(paired_files(dataset), PairedFiles)):
        found = dataset.raster(0).pixels.shape[2]  # files have the bands that are named, or an error says so
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
