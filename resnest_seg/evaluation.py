"""Evaluate a model on a data set by named protocols, one image at a time."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table
from torch import Tensor

from resnest_seg.errors import CheckpointError, ConfigError, DatasetError
from resnest_seg.files import atomic_write
from resnest_seg.inference import protocol
from resnest_seg.loader import Batch, build_loader
from resnest_seg.metrics import ConfusionMatrix, Scores
from resnest_seg.samples import SegmentationDataset
from resnest_seg.segmenter import Segmenter


class EvaluatedImage(NamedTuple):
    """What `evaluate` shows of each image.

    Attributes:
        image: RGB, uint8 [H, W, 3].
        labels: The truth, uint8 [H, W].
        predictions: By the first protocol, uint8 [H, W].
        name: The sample's name.
        mean_iou: Of everything counted so far by the first protocol.
    """

    image: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    predictions: NDArray[np.uint8]
    name: str
    mean_iou: float


@dataclasses.dataclass(frozen=True)
class EvalReport:
    """Scores by protocol, with everything that a number needs to be compared.

    Attributes:
        model: Encoder, head, output stride and dilation variant in one line.
        dataset: Name of the data set.
        split: Its split.
        images: Number of images evaluated.
        classes: Class names.
        scores: Protocol name -> scores.
        checkpoint: The file that was evaluated, where one is known.
    """

    model: str
    dataset: str
    split: str
    images: int
    classes: tuple[str, ...]
    scores: dict[str, Scores]
    checkpoint: str = ""

    def table(self) -> Table:
        """A table for people: per class IoU and accuracy by protocol and the share of pixels, then the means."""
        title = (
            f"{self.model}\n{self.dataset} {self.split}, {self.images} images, % (protocol: {', '.join(self.scores)})"
        )
        table = Table(title=title, show_footer=True)
        table.add_column("class", footer="mean of classes\npixel accuracy")
        for name, scores in self.scores.items():
            prefix = f"{name} " if len(self.scores) > 1 else ""
            means = f"{_percent(scores.mean_iou)}\n{_percent(scores.pixel_accuracy)}"
            table.add_column(f"{prefix}IoU", footer=means, justify="right")
            table.add_column(f"{prefix}accuracy", footer=_percent(scores.mean_accuracy), justify="right")
        table.add_column("share of pixels", justify="right")
        for label, name in enumerate(self.classes):
            cells = [(scores.class_iou[label], scores.class_accuracy[label]) for scores in self.scores.values()]
            share = next(iter(self.scores.values())).class_share[label]
            table.add_row(name, *(_percent(value) for pair in cells for value in pair), _percent(share))
        return table

    def to_json(self) -> str:
        """The report as JSON, shares 0..1."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    def save(self, path: str | Path) -> None:
        """Write the JSON file atomically."""
        with atomic_write(path) as temporary:
            temporary.write_text(self.to_json() + "\n", encoding="utf-8")


def evaluate(
    segmenter: Segmenter,
    dataset: SegmentationDataset,
    *,
    protocols: Sequence[str] = ("whole",),
    indices: Sequence[int] | None = None,
    workers: int = 0,
    on_image: Callable[[EvaluatedImage], None] | None = None,
    reduce: Callable[[Tensor], Tensor] | None = None,
    require_labels: bool = True,
) -> EvalReport:
    """Evaluate a model, which stays on its device and is put into eval mode.

    Args:
        segmenter: The model.
        dataset: Its label space must have the model's classes.
        protocols: Names of inference protocols; the first is the one that `on_image` sees.
        indices: The samples to evaluate; None takes all.
        workers: Loader processes.
        on_image: Called with every image, for progress bars and pictures.
        reduce: Sums a tensor over processes, when each evaluates its share of the indices.
        require_labels: Refuse a split in which no pixel is labelled; False is for its predictions alone.

    Raises:
        CheckpointError: The model has other classes than the data set.
        ConfigError: Unknown protocol.
        DatasetError: A sample cannot be read, or no pixel is labelled.
    """
    check_fits(segmenter, dataset)
    methods = {name: protocol(name) for name in protocols}
    device = segmenter.pixel_mean.device
    matrices = {name: ConfusionMatrix(len(dataset.label_space), device=device) for name in methods}
    indices = range(len(dataset)) if indices is None else indices
    batches = build_loader(
        dataset, ([(0, index)] for index in indices), workers=workers, pin_memory=device.type == "cuda"
    )
    segmenter.eval()
    with torch.inference_mode():
        for batch in batches:
            image, labels = batch.images[0].to(device, non_blocking=True), batch.labels[0]
            predictions = {name: _predict(method, segmenter, image) for name, method in methods.items()}
            for name, matrix in matrices.items():
                matrix.update(labels, predictions[name])
            if on_image is not None:
                mean_iou = matrices[protocols[0]].scores().mean_iou
                on_image(_shown(batch, predictions[protocols[0]], mean_iou))
    images = _over_processes(len(indices), matrices.values(), reduce)
    if require_labels:
        _check_labelled(dataset, matrices.values())
    return EvalReport(
        model=segmenter.description,
        dataset=dataset.label_space.name,
        split=dataset.split,
        images=images,
        classes=dataset.label_space.names,
        scores={name: matrix.scores() for name, matrix in matrices.items()},
    )


def check_fits(segmenter: Segmenter, dataset: SegmentationDataset) -> None:
    """Refuse a model that cannot segment the images of a data set into its classes.

    Raises:
        ConfigError: An image classifier, or a model for images of other channels.
        CheckpointError: Other classes: says how many each has, or which name differs first.
    """
    model = segmenter.config.model
    if model.head == "classifier":
        raise ConfigError("head 'classifier' gives one answer for a whole image: choose another head to segment.")
    if model.in_channels != 3:
        raise ConfigError(
            f"model.in_channels is {model.in_channels}, and the images of data set {dataset.label_space.name} have 3."
        )
    own, needed = segmenter.label_space, dataset.label_space
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


def _check_labelled(dataset: SegmentationDataset, matrices: Iterable[ConfusionMatrix]) -> None:
    if not any(int(matrix.counts.sum()) for matrix in matrices):
        raise DatasetError(
            f"nothing to measure: no pixel of the {dataset.split} split of {dataset.label_space.name} has a label. "
            "Test splits of public data sets often come without labels; evaluate on another split."
        )


def _over_processes(images: int, matrices: Iterable[ConfusionMatrix], reduce: Callable[[Tensor], Tensor] | None) -> int:
    """Sum the counts of all processes; returns how many images they evaluated."""
    if reduce is None:
        return images
    device = torch.device("cpu")
    for matrix in matrices:
        matrix.counts, device = reduce(matrix.counts), matrix.counts.device
    return int(reduce(torch.tensor(images, device=device)))


def _shown(batch: Batch, predictions: Tensor, mean_iou: float) -> EvaluatedImage:
    photo = batch.images[0].permute(1, 2, 0).numpy()
    labels = predictions.to("cpu", torch.uint8).numpy()
    return EvaluatedImage(photo, batch.labels[0].numpy(), labels, batch.names[0], mean_iou)


def _predict(method: Callable[..., Tensor], segmenter: Segmenter, image: Tensor) -> Tensor:
    """[3, H, W] -> train ids [H, W]."""
    logits = method(lambda images: segmenter(images).logits, image, stride=segmenter.output_stride)
    return logits.argmax(dim=0)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"
