"""Cross-validation: the runs of folds, each scored on the part of the training split that it has not seen."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from resnest_seg.config import CUSTOM, load_run_config
from resnest_seg.data.build import bands_of, dataset_for
from resnest_seg.data.datasets import SegmentationDataset, assign_folds
from resnest_seg.errors import ConfigError, DatasetError
from resnest_seg.evaluation.evaluator import EvaluatedImage, evaluate
from resnest_seg.evaluation.label_scores import unpack_labels
from resnest_seg.evaluation.report import EvalReport
from resnest_seg.files import atomic_write
from resnest_seg.inference.backends import RunOptions
from resnest_seg.inference.ensemble import FOLDS, checkpoints_of, read_fold_record
from resnest_seg.inference.predictor import open_backend
from resnest_seg.io.display import PlainTable
from resnest_seg.labels import LabelSpace
from resnest_seg.models.checkpoint import BEST, CONFIG
from resnest_seg.models.loading import Network

CROSS_VALIDATION, HELD_OUT = "cross_validation.json", "held_out_report.json"
"""Files of the result in the folder of the folds, and of each fold's report in its run folder."""

MIB = 1 << 20


class Spread(NamedTuple):
    """A score over the folds, 0..1.

    Attributes:
        folds: By fold; None where a class is in neither labels nor predictions.
        mean: Over the folds that have it; None if none has.
        deviation: The sample deviation (n - 1) of these; None of fewer than two.
        pooled: Of all pixels of all folds counted together.
    """

    folds: tuple[float | None, ...]
    mean: float | None
    deviation: float | None
    pooled: float | None

    @staticmethod
    def of(folds: Sequence[float | None], pooled: float | None) -> Spread:
        """Sum up the scores of folds."""
        known = [value for value in folds if value is not None]
        mean = statistics.fmean(known) if known else None
        return Spread(tuple(folds), mean, statistics.stdev(known) if len(known) > 1 else None, pooled)

    def __str__(self) -> str:
        if self.mean is None:
            return "-"
        return f"{100 * self.mean:.2f}" + ("" if self.deviation is None else f" +- {100 * self.deviation:.2f}")


@dataclasses.dataclass(frozen=True)
class CrossValidation:
    """The scores of all folds, each on its held-out part.

    Attributes:
        reports: By fold.
        protocol: Name of the inference protocol.
        group_by: How the folds were grouped.
        mean_iou: By the protocol's policy for absent classes.
        pixel_accuracy: Share of pixels with the right label.
        class_iou: By class.
    """

    reports: tuple[EvalReport, ...]
    protocol: str
    group_by: str | None
    mean_iou: Spread
    pixel_accuracy: Spread
    class_iou: dict[str, Spread]

    def table(self) -> PlainTable:
        """Make a table: a row by class, a column by fold, mean, deviation, and the score of all pixels together."""
        folds = range(len(self.reports))
        table = PlainTable(
            title=f"cross-validation on {self.reports[0].dataset}, {len(folds)} folds, protocol {self.protocol}: IoU",
            caption="mean +- sample deviation over folds (n - 1); pooled: the pixels of all folds counted together",
        )
        table.column("class")
        for heading in (*(f"fold {fold}" for fold in folds), "mean", "pooled"):
            table.column(heading, right=True)
        rows = {**self.class_iou, "mean IoU": self.mean_iou, "pixel accuracy": self.pixel_accuracy}
        for name, spread in rows.items():
            table.row(name, *map(_percent, spread.folds), str(spread), _percent(spread.pooled))
        return table

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values for JSON."""
        return {
            "format": "resnest_seg cross-validation",
            "dataset": self.reports[0].dataset,
            "protocol": self.protocol,
            "method": self.reports[0].methods[self.protocol].description,
            "folds": len(self.reports),
            "group_by": self.group_by,
            "deviation": "of the sample, over folds (n - 1)",
            "images": [report.images for report in self.reports],
            "checkpoints": [report.checkpoint for report in self.reports],
            "mean_iou": self.mean_iou._asdict(),
            "pixel_accuracy": self.pixel_accuracy._asdict(),
            "class_iou": {name: spread._asdict() for name, spread in self.class_iou.items()},
        }

    def save(self, path: str | Path) -> None:
        """Write the JSON file atomically."""
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def held_out(folder: str | Path, dataset: SegmentationDataset) -> list[list[int]]:
    """The samples of every fold's held-out part, in ascending order.

    Args:
        folder: The folder of `fit_folds`.
        dataset: The split that was divided.

    Raises:
        DatasetError: It has other samples than those that were divided.
    """
    path = Path(folder) / FOLDS
    record = read_fold_record(path)
    if record["samples"] != dataset.identity():
        raise DatasetError(f"the {dataset.split} split has other samples than the folds in {path} were made of: "
                           "some would be scored by a model that was trained on them.")  # fmt: skip
    fold_of = assign_folds(dataset, record["folds"], group_by=record["group_by"])
    return [np.flatnonzero(fold_of == fold).tolist() for fold in range(record["folds"])]


def folded_dataset(folder: str | Path) -> SegmentationDataset:
    """Open the split that was divided, as the folds' config names it.

    Raises:
        ConfigError: It is a data set of the user's own.
        DatasetError: It is not there.
    """
    config = load_run_config(Path(folder) / CONFIG)
    if config.data.dataset == CUSTOM:
        raise ConfigError(f"the folds in {folder} were made of a data set of your own: give it, as train=.")
    return dataset_for(config.data, "train", task=config.model.task, begun=True)


def cross_validate(
    folder: str | Path,
    *,
    train: SegmentationDataset | None = None,
    into: Network | None = None,
    device: str = "auto",
    on_image: Callable[[EvaluatedImage], None] | None = None,
) -> CrossValidation:
    """Score every fold's best model on the part of the training split that it has not seen, by its config's protocol.

    Writes cross_validation.json into the folder, and each fold's report into its run folder.

    Args:
        folder: The folder of `fit_folds`, all of whose runs are finished.
        train: The split that was divided; None opens what the config names.
        into: The network of checkpoints with parts of the user's own, see `load_checkpoint`.
        device: See `resnest_seg.inference.backends.RunOptions`.
        on_image: Called with every image, fold by fold, in ascending order within a fold (`held_out`): each sample of
            the split once, with the prediction of the model that has not seen it.

    Raises:
        CheckpointError: A fold was not trained to the end.
        DatasetError: The data set has other samples than the folds were made of, or one cannot be read.
        ConfigError: The data set is one of the user's own, and was not given.
    """
    folder = Path(folder)
    dataset = folded_dataset(folder) if train is None else train
    bands = bands_of(load_run_config(folder / CONFIG).data, of_model=True)
    if bands is not None:  # which decide what windows have data, so before they are divided as they were
        dataset.read_as(bands)
    parts, runs = held_out(folder, dataset), [Path(run) for run in checkpoints_of(folder)]
    pooled, reports = _Pooled(dataset.label_space), list[EvalReport]()

    def count(image: EvaluatedImage) -> None:
        pooled.add(image)
        if on_image is not None:
            on_image(image)

    for run, indices in zip(runs, parts, strict=True):
        config = load_run_config(run / CONFIG)
        backend = open_backend(run, RunOptions(device, fuse=False), into=into)
        dataset.read_as(None if backend.bands is None else dataclasses.replace(backend.bands, of_model=True))
        reports.append(
            evaluate(
                backend,
                dataset,
                protocols=[config.eval.protocol],
                indices=indices,
                workers=config.data.workers,
                memory=config.eval.memory * MIB,
                on_image=count,
                checkpoint=str(run / BEST),
            )
        )
        reports[-1].save(run / HELD_OUT)
    found = _summed_up(reports, pooled, group_by=read_fold_record(folder / FOLDS)["group_by"])
    found.save(folder / CROSS_VALIDATION)
    return found


class _Pooled:
    """Pixels of all folds counted together: by class, and those with the right label."""

    def __init__(self, space: LabelSpace) -> None:
        self.space, self.right, self.labelled = space, 0, 0
        self.counts = np.zeros((3, len(space.score_names)), np.int64)  # in both, in the truth, in the prediction

    def add(self, image: EvaluatedImage) -> None:
        """Count an image."""
        known = image.labels != self.space.ignore_value
        truth, found = image.labels[known], image.predictions[known]
        self.right, self.labelled = self.right + int((truth == found).sum()), self.labelled + len(truth)
        if self.space.task == "multiclass":
            each = (truth[truth == found], truth, found)
            self.counts += np.stack([np.bincount(ids, minlength=len(self.space)) for ids in each])
            return
        labels, labels_found = (
            unpack_labels(
                torch.from_numpy(ids.astype(np.int32)), len(self.counts[0]), ignore_label=self.space.ignore_value
            )
            for ids in (image.labels, image.predictions)
        )
        present = labels_found.present & labels.valid
        self.counts += torch.stack([labels.present & present, labels.present, present]).sum(dim=(2, 3)).numpy()


def _summed_up(reports: Sequence[EvalReport], pooled: _Pooled, *, group_by: str | None) -> CrossValidation:
    """Means and deviations over folds, and the scores of all pixels together."""
    (protocol,) = reports[0].scores
    scores = [report.scores[protocol] for report in reports]
    absent = reports[0].methods[protocol].absent
    both, truth, found = pooled.counts.tolist()
    union = [t + f - b for b, t, f in zip(both, truth, found, strict=True)]
    ious = [b / u if u else None for b, u in zip(both, union, strict=True)]
    counted = [iou or 0.0 for iou in ious] if absent == "zero" else [iou for iou in ious if iou is not None]
    accuracy = pooled.right / max(pooled.labelled, 1)
    classes = {
        name: Spread.of([score.class_iou[place] for score in scores], ious[place])
        for place, name in enumerate(reports[0].classes)
    }
    return CrossValidation(
        reports=tuple(reports),
        protocol=protocol,
        group_by=group_by,
        mean_iou=Spread.of([score.mean_iou_by(absent) for score in scores], statistics.fmean(counted or [0.0])),
        pixel_accuracy=Spread.of([score.pixel_accuracy for score in scores], accuracy),
        class_iou=classes,
    )
