"""The task interface of the trainer, and the segmentation task: crops, a loss over labelled pixels, mIoU.

Validation during training runs on every process, each on its share, and a stop signal is heard between two images.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from rich.progress import Progress
from torch import Tensor, nn

from resnest_seg.config import AnyConfig, RunConfig
from resnest_seg.data.datasets import SegmentationDataset
from resnest_seg.data.loader import AugmentedSamples, Batch, Division, ShardOrder, run_loader, stack_samples
from resnest_seg.data.shards import shard_numbers
from resnest_seg.data.transforms import RECIPES, TrainTransform, Transform, sample_transform
from resnest_seg.errors import ConfigError, command, unknown_name
from resnest_seg.evaluation.evaluator import EvaluatedImage, check_fits, evaluate
from resnest_seg.evaluation.report import EvalReport
from resnest_seg.inference.protocols import protocol
from resnest_seg.io.visualize import contact_sheet
from resnest_seg.labels import IGNORE_LABEL, MULTILABEL_IGNORE, LabelSpace
from resnest_seg.models.checkpoint import BEST
from resnest_seg.models.heads import check_head
from resnest_seg.models.segmenter import PixelModel, Segmenter, SegmenterOutput, check_names
from resnest_seg.teachers.consistency import Consistency, ConsistencyLoss, ConsistencyOutput
from resnest_seg.teachers.distillation import Distillation, Lesson
from resnest_seg.teachers.teacher import open_teachers, teachers_identity
from resnest_seg.teachers.unlabelled import MixedBatch, PhotoViews, UnlabelledPhotos, mixed_batches
from resnest_seg.training.chunked_loss import lean_binary_cross_entropy, lean_cross_entropy
from resnest_seg.training.distributed import PARALLEL, PRECISIONS, StopSignal, resolved_precision
from resnest_seg.training.losses import (
    CoarseLogits,
    LabelLoss,
    Loss,
    MaskLoss,
    MaskPredictions,
    OwnLoss,
    ScoredLoss,
    SegmentationLoss,
)
from resnest_seg.training.optim import CURVES, DECAYS, OPTIMIZERS, frozen_names
from resnest_seg.training.trackers import tracker_names


def check_choices(config: AnyConfig, *, network: bool = True) -> None:
    """Reject every name in a config that does not exist, before data is looked for or anything is built.

    Args:
        config: The run.
        network: Look at those of the network, too; a network of the user's own has none.

    Raises:
        ConfigError: An encoder, a head, a protocol, an optimiser or another choice is unknown; names the nearest ones.
    """
    if isinstance(config, RunConfig):
        if network:
            check_names(config.model)
            check_head(config.model)
        protocol(config.eval.protocol)
        if config.data.recipe not in RECIPES:
            raise unknown_name("data.recipe", config.data.recipe, RECIPES)
    else:
        check_names(config.model.network)
    for key, name, known in (
        ("optim.optimizer", config.optim.optimizer, OPTIMIZERS),
        ("optim.decay", config.optim.decay, DECAYS),
        ("optim.schedule", config.optim.schedule, CURVES),
        ("train.parallel", config.train.parallel, PARALLEL),
        ("train.precision", config.train.precision, ("auto", *PRECISIONS)),
    ):
        if name not in known:
            raise unknown_name(key, name, known)
    frozen_names(config.optim)
    tracker_names(config.train.trackers)


class TrainingBatch(Protocol):
    """What a task makes a loss of: a micro-batch, on the CPU."""

    @property
    def names(self) -> list[str]:
        """The files in it, for messages."""


B = TypeVar("B", bound=TrainingBatch)


class Moment(NamedTuple):
    """What a loss may depend on besides the batch and the weights.

    Attributes:
        step: The optimiser step, from 0 on.
        reported: The step's figures are logged, so that those that take time are worth it.
        average: The moving average of the weights, in eval mode, where the task's description asks for it.
    """

    step: int
    reported: bool = False
    average: PixelModel | None = None


class StepLoss(NamedTuple):
    """The loss of a micro-batch.

    Attributes:
        loss: A scalar, divided by the weights of the effective batch, so that parts add up.
        sums: Name -> scalar without gradient that adds up likewise; `Task.figures` makes figures of the sums.
    """

    loss: Tensor
    sums: Mapping[str, Tensor] = MappingProxyType({})


@dataclasses.dataclass(frozen=True)
class TaskDescription:
    """Description of a task for the trainer, and the values that are saved beside the weights.

    Attributes:
        size: Samples of the training split.
        identity: Hash that tells whether the training split is still the same.
        num_classes: K.
        score: Name of the score that decides which weights are best.
        label_space: The classes, or None where they have no colours and raw ids.
        files: Name -> text of files that the run folder has besides.
        sources: Config key of what else decides the run, such as train.unlabelled -> a text that says what it is, with
            a hash; a run is not resumed with another one.
        uses_average: The loss needs the moving average of the weights, `Moment.average`.
    """

    size: int
    identity: str
    num_classes: int
    score: str
    label_space: LabelSpace | None = None
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)
    sources: Mapping[str, str] = dataclasses.field(default_factory=dict)
    uses_average: bool = False


@dataclasses.dataclass(frozen=True)
class Validation:
    """The result of a validation over all processes.

    Attributes:
        scores: Name -> value, 0..1.
        text: The scores in words, with the split that they are of.
        picture: Epoch -> an image of what was validated, RGB uint8 [H, W, 3]; None where there is nothing to draw, and
            on other processes than the main one.
        report: The whole report, where there is one.
        loss: The loss of the validated images, where it is measured.
        class_iou: IoU by class, None of absent ones; empty where there is none.
        buffers: Buffers that the kept model takes: the best thresholds of a binary or multi-label task.
    """

    scores: Mapping[str, float]
    text: str
    picture: Callable[[int], NDArray[np.uint8]] | None = None
    report: EvalReport | None = None
    loss: float | None = None
    class_iou: Sequence[float | None] = ()
    buffers: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)


class Task(Protocol[B]):
    """Interface of a training task: segmentation is in `tasks`, image classification in `classification`."""

    @property
    def description(self) -> TaskDescription:
        """The constants of the task."""

    def begin(self, model: PixelModel, device: torch.device) -> nn.Module:
        """Check that the model fits the data, and bring the loss to the device.

        Returns:
            Images -> what `loss` takes, around the model: the engine patches half precision into this module, and the
            model within stays as it is, so that validation computes what an evaluation of the saved file computes.
        """

    def batches(self, division: Division, *, pin_memory: bool) -> Generator[B, None, None]:
        """This process's micro-batches, loaded and augmented; to be closed."""

    def weight_of(self, batch: B) -> dict[str, Tensor]:
        """Name -> weight of a micro-batch on the device: its share of a divisor of the effective batch's loss."""

    def loss(self, model: nn.Module, batch: B, *, total: Mapping[str, Tensor], moment: Moment) -> StepLoss:
        """The loss of a micro-batch on the device; `model` is that of `begin`, prepared, and to be called once.

        Args:
            model: The module.
            batch: The micro-batch.
            total: `weight_of`, summed over the effective batch.
            moment: The step.
        """

    def figures(self, sums: Mapping[str, float]) -> dict[str, float]:
        """What is logged of a step, beside its loss, of `StepLoss.sums` over the effective batch."""

    def validate(
        self,
        model: PixelModel,
        engine: Accelerator,
        *,
        stop: StopSignal,
        progress: Progress,
        images: Path | None = None,
    ) -> Validation | None:
        """Score a model, each process on its share; None if one was asked to stop.

        A task whose validation has a report writes this process's scores by image into `images`.
        """


def consistency_loss(config: RunConfig, model: Segmenter, *, steps_per_epoch: int) -> ConsistencyLoss:
    """The loss of unlabelled photos that a config describes.

    Raises:
        ConfigError: The head predicts masks.
    """
    if model.predicts_masks:
        raise ConfigError("train.unlabelled does not go with a head that predicts masks and not pixels.")
    task, corners = config.model.task, model.align_corners

    def summed(logits: Tensor, labels: Tensor) -> Tensor:
        if task == "multiclass":
            return lean_cross_entropy(logits, labels, align_corners=corners)
        ignore = MULTILABEL_IGNORE if task == "multilabel" else IGNORE_LABEL
        return lean_binary_cross_entropy(logits, labels, ignore_label=ignore, align_corners=corners)

    unit = 1 if config.train.epochs is None else max(steps_per_epoch, 1)
    return ConsistencyLoss(config.semi, summed, task, model.num_classes, corners, config.semi.ramp_up * unit)


def _sources(config: RunConfig, photos: UnlabelledPhotos | None) -> dict[str, str]:
    """See `TaskDescription.sources`."""
    found = {} if photos is None else {"train.unlabelled": photos.identity}
    return found if config.distill.teacher is None else found | {"distill.teacher": teachers_identity(config.distill)}


def _distillation(config: RunConfig, model: Segmenter, space: LabelSpace, device: torch.device) -> Distillation | None:
    """The teachers of a run, ready to be asked; None without any.

    Raises:
        ConfigError, CheckpointError: They cannot teach this model, or cannot be opened.
    """
    if config.distill.teacher is None:
        return None
    if model.predicts_masks:
        raise ConfigError(
            "distill.teacher is for models with logits, and head mask2former predicts masks: leave it out, or choose "
            "another model.head. As a teacher it is welcome."
        )
    teachers = open_teachers(
        config.distill,
        config.data,
        channels=config.model.in_channels,
        task=model.task,
        device=device,
        precision=resolved_precision(config.train.precision),
    )
    found = Distillation(config.distill, teachers, space, align_corners=model.align_corners)
    found.tell()
    return found


def _seed_of(seed: int, step: int, name: str) -> int:
    """A seed of 64 bits for a sample in a step, wherever in the effective batch it is."""
    text = f"{seed} {step} {name}".encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.sha256(text).digest()[:8])


def _shard_order(train: SegmentationDataset, window: int | None) -> ShardOrder | None:
    """The order of a training split by `data.shard_window`.

    Raises:
        ConfigError: The data set is not packed.
    """
    if window is None:
        return None
    shards = shard_numbers(train)
    if shards is None:
        raise ConfigError(
            f"data.shard_window {window} is for packed shards, and the training split is not in shards: leave it out, "
            f"or pack the data set ({command('pack')} --help)."
        )
    return ShardOrder(shards, window)


class SegmentationTask:
    """A `resnest_seg.training.tasks.Task`.

    Args:
        config: The run.
        train: The training split.
        validation: The split that `config.eval` names.
        probabilities: Draw the samples of an epoch with these, [len(train)]; None takes each once.
        class_weights: Of each class in the loss, [K], as `train.class_weights` names them.
        pos_weight: Of the pixels with a label in the loss, [K], as `train.class_weights` balanced names them.
        loss: In place of the config's losses.
        transform: In place of the config's recipe and further options, but for ClassMix.
        photos: Unlabelled photos to learn from as well, as the config's `semi` says.

    Raises:
        ConfigError: Unknown protocol or recipe; `data.shard_window` with a data set that is not packed.
    """

    def __init__(
        self,
        config: RunConfig,
        train: SegmentationDataset,
        validation: SegmentationDataset,
        *,
        probabilities: NDArray[np.float64] | None = None,
        class_weights: Tensor | None = None,
        pos_weight: Tensor | None = None,
        loss: Loss | None = None,
        transform: Transform | None = None,
        photos: UnlabelledPhotos | None = None,
    ) -> None:
        self.config, self.train, self.validation, self.class_weights = config, train, validation, class_weights
        protocol(config.eval.protocol)
        self.own_loss, self.pos_weight = loss, pos_weight
        self.transform = (
            TrainTransform.from_config(config.data, ignore=train.label_space.ignore_value)
            if transform is None
            else sample_transform(transform, class_mix=config.data.class_mix)
        )
        self.probabilities, self.shard_order = probabilities, _shard_order(train, config.data.shard_window)
        self.description = TaskDescription(
            size=len(train),
            identity=train.identity(),
            num_classes=len(train.label_space.score_names),
            score="mean_iou",
            label_space=validation.label_space,
            sources=_sources(config, photos),
            uses_average=photos is not None and config.semi.teacher == "ema",
        )
        wide = train.label_space.task == "multilabel"
        self.views = None if photos is None else PhotoViews(photos, self.transform, config.semi, config.seed, wide=wide)

    def begin(self, model: PixelModel, device: torch.device) -> nn.Module:
        """Check both splits against the model, build the loss, open the teachers; the module gives coarse logits.

        Raises:
            ConfigError: The classes or channels are others; class weights are missing.
            CheckpointError: A teacher cannot be loaded.
        """
        assert isinstance(model, Segmenter)
        self.device = device
        for dataset in (self.train, self.validation):
            check_fits(model, dataset)
        train, corners, space = self.config.train, model.align_corners, self.train.label_space
        criterion: OwnLoss | SegmentationLoss | LabelLoss
        self.masks: MaskLoss | None = None
        if self.own_loss is not None:
            criterion = OwnLoss(
                self.own_loss, aux_weight=train.aux_weight, align_corners=corners, ignore=space.ignore_value
            )
        elif space.task == "multiclass":
            criterion = SegmentationLoss.from_config(train, align_corners=corners, class_weights=self.class_weights)
        else:
            criterion = LabelLoss.from_config(
                train, space.task, num_labels=model.num_classes, align_corners=corners, pos_weight=self.pos_weight
            )
        self.criterion = criterion.to(device)
        self.distillation = _distillation(self.config, model, self.train.label_space, device)
        if model.predicts_masks and self.own_loss is None and self.views is None:
            self.masks = MaskLoss(model, points=train.mask_points, ignore=space.ignore_value)
            return MaskPredictions(model)
        if self.views is None:
            return CoarseLogits(model)
        self.consistency = consistency_loss(self.config, model, steps_per_epoch=len(self.train) // train.batch_size)
        return Consistency(model, self.config.semi)

    def batches(self, division: Division, *, pin_memory: bool) -> Generator[Batch | MixedBatch, None, None]:
        """Augmented by the config's recipe; with unlabelled photos, where there are some."""
        order = division.batches(len(self.train), probabilities=self.probabilities, shard_order=self.shard_order)
        samples = AugmentedSamples(self.train, self.transform, self.config.seed)
        workers = self.config.data.workers
        if self.views is None:
            return run_loader(samples, order, stack_samples, workers=workers, pin_memory=pin_memory)
        photos = self.views.order(division)
        return mixed_batches(samples, order, self.views, photos, workers=workers, pin_memory=pin_memory)

    def weight_of(self, batch: Batch | MixedBatch) -> dict[str, Tensor]:
        """Labelled pixels, or the sum of their classes' weights; of a head that predicts masks, its two divisors.

        And the valid pixels of unlabelled photos.
        """
        labels = batch.labels.to(self.device, non_blocking=True)
        weights = {"labelled": (self.criterion if self.masks is None else self.masks).weight_of(labels)}
        if isinstance(batch, MixedBatch):
            weights["unlabelled"] = self.consistency.weight_of(batch, self.device)
        return weights

    def loss(
        self, model: nn.Module, batch: Batch | MixedBatch, *, total: Mapping[str, Tensor], moment: Moment
    ) -> StepLoss:
        """Compute the loss of the main logits and, weighted, of the auxiliary ones; or that of masks.

        With unlabelled photos it is mixed with their loss.
        """
        images, labels = (each.to(self.device, non_blocking=True) for each in (batch.images, batch.labels))
        lesson = None if self.distillation is None else self.distillation.ask(images)
        if isinstance(batch, MixedBatch):
            return self._mixed_loss(model, batch, (images, labels), total, moment, lesson)
        output = model(images)
        if self.masks is not None:
            seeds = [_seed_of(self.config.seed, moment.step, name) for name in batch.names]
            return StepLoss(self.masks(output, labels, total=total["labelled"], seeds=seeds))
        return self._supervised(output, labels, total, lesson)

    def _supervised(
        self,
        output: SegmenterOutput | ConsistencyOutput,
        labels: Tensor,
        total: Mapping[str, Tensor],
        lesson: Lesson | None,
    ) -> StepLoss:
        """The loss of labels, and what the teachers say about the same images."""
        loss = self.criterion(output.logits, output.aux_logits, labels, pixels=total["labelled"])
        if lesson is None:
            return StepLoss(loss)
        losses = {"labelled_loss": loss, **lesson.losses(output.logits, images=self.config.train.batch_size)}
        return StepLoss(torch.stack([*losses.values()]).sum(), {name: value.detach() for name, value in losses.items()})

    def _mixed_loss(
        self,
        model: nn.Module,
        batch: MixedBatch,
        labelled: tuple[Tensor, Tensor],
        total: Mapping[str, Tensor],
        moment: Moment,
        lesson: Lesson | None,
    ) -> StepLoss:
        (images, labels), own = labelled, self.consistency
        weak, strong, partner = (
            each.to(self.device, non_blocking=True) for each in (batch.weak, batch.strong, batch.partner)
        )
        output = model(images, weak, strong, partner if self.config.semi.cutmix else None, moment.average)
        supervised, parts = self._supervised(output, labels, total, lesson)
        loss, sums = own(output, batch, total=total["unlabelled"], reported=moment.reported)
        share, rest = own.share(moment.step)
        return StepLoss(share * supervised + rest * loss, {"labelled_loss": supervised.detach(), **parts, **sums})

    def figures(self, sums: Mapping[str, float]) -> dict[str, float]:
        """The parts of the loss, where teachers or unlabelled photos add some, and what `ConsistencyLoss` counts."""
        parts = {name: value for name, value in sums.items() if name.endswith("_loss")}
        return parts if self.views is None else parts | self.consistency.figures(sums)

    def validate(
        self,
        model: PixelModel,
        engine: Accelerator,
        *,
        stop: StopSignal,
        progress: Progress,
        images: Path | None = None,
    ) -> Validation | None:
        """mIoU by the protocol's rule for absent classes, pixel accuracy, the loss, and a contact sheet."""
        assert isinstance(model, Segmenter)
        validator = Validator(self.config, self.validation, engine, loss=ScoredLoss(self.criterion))
        with _evaluating(self.criterion):
            seen = validator.run(model, stop=stop, progress=progress, images=images)
        if seen is None:
            return None
        report, sheet, split = seen.report, seen.sheet, self.validation.split
        scores, text, buffers = self._judged(model, report)
        mean_iou, method = scores["mean_iou"], self.config.eval.protocol
        labels = report.labels.get(method)
        ious = report.scores[method].class_iou if labels is None else [one.best_iou for one in labels.labels]

        def picture(epoch: int) -> NDArray[np.uint8]:
            rows = [(image.image, image.labels, image.predictions) for image in sheet]
            before = labels is not None and any(
                one.best_threshold not in (None, one.threshold) for one in labels.labels
            )
            drawn_at = " at the best thresholds; the pictures are at the thresholds before" if before else ""
            title = f"{report.dataset} {report.split}, epoch {epoch}, mIoU {100 * mean_iou:.2f}{drawn_at}"
            return contact_sheet(rows, self.validation.label_space, title=title)

        drawn = picture if sheet and engine.is_main_process else None
        return Validation(scores, f"{split} {text}", drawn, report, seen.loss, ious, buffers)

    def _judged(self, model: Segmenter, report: EvalReport) -> tuple[dict[str, float], str, dict[str, Tensor]]:
        """The scores of a validation, a text, and the buffers that a kept model takes.

        Of a binary or multi-label task, the mean IoU is that at the best thresholds, which the model takes over.
        """
        labels = report.labels.get(self.config.eval.protocol)
        if labels is None:
            mean_iou = report.mean_iou(self.config.eval.protocol)
            accuracy = report.scores[self.config.eval.protocol].pixel_accuracy
            text = f"mIoU {100 * mean_iou:.2f}  pixel accuracy {100 * accuracy:.2f}"
            return {"mean_iou": mean_iou, "pixel_accuracy": accuracy}, text, {}
        thresholds = torch.tensor(labels.best_thresholds, device=model.thresholds.device)
        with torch.no_grad():
            model.thresholds.copy_(thresholds)
        ious = [label.best_iou for label in labels.labels if label.best_iou is not None]
        mean_iou, precision = sum(ious) / len(ious) if ious else 0.0, labels.mean_average_precision
        assert precision is not None, "a model in training gives scores"
        shown = ", ".join(f"{value:.3f}" for value in labels.best_thresholds)
        name, noun = ("mIoU", "thresholds") if len(labels.labels) > 1 else ("IoU", "threshold")
        text = f"{name} {100 * mean_iou:.2f} ({noun} {shown})  average precision {100 * precision:.2f}"
        return {"mean_iou": mean_iou, "average_precision": precision}, text, {"thresholds": thresholds}


@contextlib.contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Within this, a module is in eval mode: a loss of the user's own may learn in training mode."""
    before = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(before)


class _StoppedError(Exception):
    """A process was asked to stop (by a signal)."""


class Validated(NamedTuple):
    """What a validation found.

    Attributes:
        report: The scores.
        sheet: This process's images for the contact sheet.
        loss: The mean loss of the images; None without labelled pixels.
    """

    report: EvalReport
    sheet: list[EvaluatedImage]
    loss: float | None


class Validator:
    """Evaluates a model on the split that `config.eval` names.

    Args:
        config: The run.
        dataset: The split.
        engine: The processes that share it.
        loss: What the loss of the images is measured by.
    """

    def __init__(
        self, config: RunConfig, dataset: SegmentationDataset, engine: Accelerator, *, loss: ScoredLoss
    ) -> None:
        self.config, self.dataset, self.engine, self.loss = config, dataset, engine, loss

    def run(
        self, segmenter: Segmenter, *, stop: StopSignal, progress: Progress, images: Path | None
    ) -> Validated | None:
        """Evaluate the split; None if a process was asked to stop.

        Args:
            segmenter: The whole model, with the same weights on every process.
            stop: What is asked after every image.
            progress: Shows how far it is.
            images: File for this process's scores by image; None writes none.
        """
        count = min(len(self.dataset), self.config.eval.limit or len(self.dataset))
        mine = range(self.engine.process_index, count, self.engine.num_processes)
        bar = progress.add_task("validating", total=len(mine), shown="")
        # Spread over the split, because neighbours are often frames of one video.
        apart = max(len(mine) // max(self.config.eval.sheet, 1), 1)
        sheet: list[EvaluatedImage] = []
        places, agreed = itertools.count(), False

        def on_image(image: EvaluatedImage) -> None:
            self.loss.end_image()
            progress.update(bar, advance=1, shown=f"mIoU {image.mean_iou:.3f}")
            if next(places) % apart == 0 and len(sheet) < self.config.eval.sheet:
                sheet.append(image)
            if stop.number is not None:
                raise _StoppedError

        def reduce(counts: Tensor) -> Tensor:
            nonlocal agreed
            if not agreed:  # once, before the first sum: a process that stopped early asks then, too
                agreed = True
                if stop.anywhere(self.engine) is not None:
                    raise _StoppedError
            total: Tensor = self.engine.reduce(counts, reduction="sum")
            return total

        try:
            report = evaluate(
                segmenter,
                self.dataset,
                protocols=(self.config.eval.protocol,),
                indices=mine,
                workers=min(self.config.data.workers, len(mine)),
                on_image=on_image,
                reduce=reduce,
                memory=self.config.eval.memory << 20,
                images=images,
                on_scores=self.loss.add,
                checkpoint=BEST,
            )
        except _StoppedError:
            if not agreed:
                stop.anywhere(self.engine)
            return None
        finally:
            progress.remove_task(bar)
        if self.engine.num_processes > 1:  # one alone may have an Apple GPU, which holds no float64
            self.loss.sums = reduce(self.loss.sums.to(self.engine.device)).cpu()
        return Validated(report, sheet, self.loss.mean())


def share_buffers(model: torch.nn.Module, engine: Accelerator) -> None:
    """Give every process the main one's buffers: batch norm's statistics differ where they are not synchronised."""
    if engine.num_processes > 1:
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, src=0)
