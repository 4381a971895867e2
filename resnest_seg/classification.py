"""Train an image classifier, whose encoder a segmenter then starts from: the loop of `resnest_seg.training` in small.

As there, a step's work depends on the config, the step and the saved state alone, so an interrupted run continues to
the same bits. A classifier is a `Segmenter` with head "classifier"; its checkpoint is one like any other.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor
from torchvision.transforms import v2

from resnest_seg.checkpoint import BEST, CONFIG, LAST, Checkpoint, TrainingState, optimizer_tensors, restore_optimizer
from resnest_seg.class_folder import ClassBatch, ClassFolder, class_batches, eval_transform, train_transform
from resnest_seg.config import flatten, to_yaml
from resnest_seg.engine import StopSignal, accelerator_for, shares_statistics
from resnest_seg.errors import CheckpointError, DatasetError, ResNeStSegError
from resnest_seg.files import atomic_write
from resnest_seg.loader import training_batches
from resnest_seg.optim import build_optimizer, freeze, hold_frozen, set_lr
from resnest_seg.pretraining import PretrainConfig
from resnest_seg.schedules import Schedule, describe_lr
from resnest_seg.segmenter import Segmenter, load_weights
from resnest_seg.transforms import sample_seed

METRICS, CLASSES = "metrics.jsonl", "classes.txt"
"""Names in a run folder: one JSON object a line, and the classes, one a line in the order of the outputs."""

MAY_CHANGE = ("output", "data.root", "data.workers", "train.log_every", "model.checkpointing")
"""Config keys that a resumed run may change, because they change no number."""


class ClassifierTrainer:
    """Trains a classifier into a run folder: config.yaml, classes.txt, metrics.jsonl, last and best.safetensors.

    Args:
        config: The run.
        segmenter: A model with head "classifier" and as many classes as the data.
        train: The training split.
        validation: The validation split, of the same classes.
        output: The run folder. It must not exist, unless the run is resumed.
        resume: Continue from the folder's last checkpoint.

    Raises:
        ConfigError: Unknown names; a batch that cannot be divided.
        DatasetError: The splits have other classes.
        CheckpointError: The folder exists already, or cannot be resumed.
    """

    def __init__(
        self,
        config: PretrainConfig,
        *,
        segmenter: Segmenter,
        train: ClassFolder,
        validation: ClassFolder,
        output: str | Path,
        resume: bool = False,
    ) -> None:
        self.config, self.train, self.validation, self.output = config, train, validation, Path(output)
        if train.names != validation.names:
            differing = sorted(set(train.names) ^ set(validation.names))
            raise DatasetError(f"the splits have other classes: {', '.join(differing[:5])} is in one of them only.")
        saved = Checkpoint.load(self.output / LAST) if resume else None
        if not resume and self.output.exists():
            raise CheckpointError(
                f"run folder {self.output} already exists. Choose another with --output, or --resume."
            )
        self.engine = accelerator_for(config, self.output)
        self.console = Console(quiet=not self.engine.is_main_process)
        segmenter.head.dropout.p = config.classify.dropout  # type: ignore[union-attr]
        shared = shares_statistics(config, self.engine)
        self.segmenter = torch.nn.SyncBatchNorm.convert_sync_batchnorm(segmenter) if shared else segmenter
        freeze(self.segmenter, config.optim)
        optimizer = build_optimizer(self.segmenter, config.optim)
        # The engine patches half precision into the module it is given: the segmenter itself stays as it is.
        self.model, self.optimizer = self.engine.prepare(_Scores(self.segmenter), optimizer)
        self.mix = batch_mix(config, len(train.names))
        self.steps_per_epoch = max(len(train) // config.train.batch_size, 1)
        self.schedule = Schedule.from_config(config, steps_per_epoch=self.steps_per_epoch)
        self.step, self.validated_step, self.best_top1 = 0, 0, -1.0
        if saved is not None:
            self._restore(saved)

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self.schedule.steps

    def fit(self) -> bool:
        """Train to the end, or until Ctrl-C or SIGTERM, which end the step, save, and stop.

        Returns:
            Whether the run is complete.

        Raises:
            DatasetError: An image cannot be read.
            ResNeStSegError: The loss is not finite; the weights are those before the bad step.
        """
        self._open_run()
        batches = self._batches()
        with StopSignal() as stop:
            clock, since = time.perf_counter(), self.step
            if self._validation_due():
                self._validate()
            while self.step < self.steps:
                lr = self.schedule(self.step)
                set_lr(self.optimizer, lr)
                loss = self._optimise(list(itertools.islice(batches, self.config.train.accumulation)))
                self.step += 1
                if self.step % self.config.train.log_every == 0 or self.step == 1:
                    speed = (self.step - since) * self.config.train.batch_size / (time.perf_counter() - clock)
                    self._log("train", {"loss": loss, "lr": lr, "images_per_second": speed})
                    self.console.print(f"step {self.step}/{self.steps}  loss {loss:.3f}  {speed:.1f} images/s")
                stopping = stop.anywhere(self.engine) is not None
                if stopping or self.step % self.steps_per_epoch == 0 or self.step == self.steps:
                    self._save(LAST, training=True)
                if stopping:
                    break
                if self._validation_due():
                    self._validate()
                    clock, since = time.perf_counter(), self.step
        return self.step == self.validated_step == self.steps

    def _optimise(self, parts: list[ClassBatch]) -> float:
        """One optimiser step over the micro-batches of the effective batch; returns its loss."""
        self.model.train()
        hold_frozen(self.segmenter, self.config.optim)
        torch.manual_seed(sample_seed(self.config.seed, self.step, self.engine.process_index))  # dropout's and mixing's
        total = torch.zeros((), device=self.engine.device)
        for number, part in enumerate(parts):
            images = part.images.to(self.engine.device, non_blocking=True)
            labels = part.labels.to(self.engine.device, non_blocking=True)
            if self.mix is not None:
                images, labels = self.mix(images.float(), labels)  # labels [N] become shares [N, K]
            last = number == len(parts) - 1
            with contextlib.nullcontext() if last else self.engine.no_sync(self.model):
                scores = self.model(images).float()
                loss = F.cross_entropy(scores, labels, label_smoothing=self.config.classify.label_smoothing)
                self.engine.backward(loss / len(parts))  # of equally many images each, over processes likewise
            total += loss.detach() / len(parts)
        value = float(self.engine.reduce(total, reduction="mean"))
        if not math.isfinite(value):
            raise ResNeStSegError(
                f"the loss is {value} at step {self.step} (lr {self.optimizer.param_groups[0]['lr']:.3g}); the weights "
                f"were not updated. Files of the batch: {', '.join(name for part in parts for name in part.names)}. "
                "Lower optim.lr, or look at these files."
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        return value

    def _batches(self) -> Iterator[ClassBatch]:
        """This process's micro-batches, from the current step to the last."""
        order = training_batches(
            len(self.train),
            seed=self.config.seed,
            batch_size=self.config.train.batch_size,
            steps=range(self.step, self.steps),
            parts=self.config.train.accumulation,
            rank=self.engine.process_index,
            processes=self.engine.num_processes,
        )
        return class_batches(
            self.train,
            order,
            transform=train_transform(self.config),
            seed=self.config.seed,
            workers=self.config.data.workers,
            pin_memory=self.engine.device.type == "cuda",
        )

    def _validation_due(self) -> bool:
        every = self.config.train.validate_every * self.steps_per_epoch
        return (self.step % every == 0 or self.step == self.steps) and self.step > self.validated_step

    def _validate(self) -> None:
        """Top-1 and top-5 accuracy over the validation split, each process its share; keeps the best weights."""
        mine = range(self.engine.process_index, len(self.validation), self.engine.num_processes)
        size = max(self.config.train.batch_size // (self.config.train.accumulation * self.engine.num_processes), 1)
        order = [[(0, index) for index in mine[first : first + size]] for first in range(0, len(mine), size)]
        transform = eval_transform(self.config)
        batches = class_batches(self.validation, order, transform=transform, workers=self.config.data.workers)
        top1, top5 = accuracy(self.segmenter, batches, device=self.engine.device)
        count = self._summed(len(mine))
        scores = {"top1": self._summed(top1) / count, "top5": self._summed(top5) / count}
        self._log("validation", scores)
        self.console.print(f"step {self.step}  top-1 {100 * scores['top1']:.2f}  top-5 {100 * scores['top5']:.2f}")
        if scores["top1"] > self.best_top1:
            self.best_top1 = scores["top1"]
            self._save(BEST, training=False)
        self.validated_step = self.step
        self._save(LAST, training=True)

    def _summed(self, value: int) -> int:
        """The sum over processes."""
        return int(self.engine.reduce(torch.tensor(value, device=self.engine.device), reduction="sum"))

    def _log(self, kind: str, values: dict[str, float]) -> None:
        if self.engine.is_main_process:
            line = {"kind": kind, "step": self.step, "epoch": round(self.step / self.steps_per_epoch, 4), **values}
            with open(self.output / METRICS, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def _open_run(self) -> None:
        """Create the run folder, or cut a resumed run's metrics back to the step it continues from."""
        if self.engine.is_main_process:
            self.output.mkdir(parents=True, exist_ok=True)
            metrics = self.output / METRICS
            lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.exists() else []
            reached = {"train": self.step, "validation": self.validated_step}
            files = {
                CONFIG: to_yaml(self.config),
                CLASSES: "".join(f"{name}\n" for name in self.train.names),
                METRICS: "".join(f"{line}\n" for line in lines if _is_reached(line, reached)),
            }
            for name, text in files.items():
                with atomic_write(self.output / name) as temporary:
                    temporary.write_text(text, encoding="utf-8")
        self.engine.wait_for_everyone()
        if self.step == 0:
            self._save(LAST, training=True)
        self.console.print(
            f"{self.segmenter.description}, {len(self.train.names)} classes; {len(self.train)} training images, "
            f"{self.steps} steps of {self.config.train.batch_size} images on {self.engine.num_processes} x "
            f"{self.engine.device}, {describe_lr(self.config)}; run folder {self.output}",
            soft_wrap=True,
        )

    def _save(self, name: str, *, training: bool) -> None:
        if self.engine.is_main_process:
            state = self._training_state() if training else None
            weights = self.segmenter.state_dict()
            file = Checkpoint(self.config.run, None, weights, state, num_classes=len(self.train.names))
            file.save(self.output / name)
        self.engine.wait_for_everyone()

    def _training_state(self) -> TrainingState:
        values: dict[str, Any] = {
            "step": self.step,
            "validated_step": self.validated_step,
            "best_top1": self.best_top1,
            "data": self.train.identity(),
            "classify": dataclasses.asdict(self.config.classify),
        }
        if self.engine.scaler is not None:
            values["scaler"] = self.engine.scaler.state_dict()
        return TrainingState(values, optimizer_tensors(self.optimizer))

    def _restore(self, saved: Checkpoint) -> None:
        """Take over weights, optimiser and step of a checkpoint."""
        place = self.output / LAST
        if saved.training is None or "best_top1" not in saved.training.values:
            raise CheckpointError(f"{place} is no state of a classifier's training: it cannot be resumed.")
        values = saved.training.values
        before = flatten(saved.config) | {f"classify.{key}": value for key, value in values["classify"].items()}
        changed = [f"{key} ({before[key]} -> {value})" for key, value in flatten(self.config).items()
                   if before.get(key) != value and key not in MAY_CHANGE]  # fmt: skip
        if changed:
            raise CheckpointError(
                f"{self.output / CONFIG} is not the config of this run any more: {', '.join(changed)}."
            )
        if values["data"] != self.train.identity():
            raise CheckpointError(f"the training images are not those of {place} any more. Begin a new run.")
        load_weights(self.segmenter, saved.weights)
        try:
            restore_optimizer(self.optimizer, saved.training.tensors)
            if self.engine.scaler is not None:
                self.engine.scaler.load_state_dict(values["scaler"])
            self.step, self.validated_step = int(values["step"]), int(values["validated_step"])
            self.best_top1 = float(values["best_top1"])
        except (KeyError, ValueError) as error:
            raise CheckpointError(f"{place} cannot be resumed here: no or another state of {error}.") from None


class _Scores(torch.nn.Module):
    """A `Segmenter` with head "classifier" as images [N, 3, H, W] -> class scores [N, K]."""

    def __init__(self, segmenter: Segmenter) -> None:
        super().__init__()
        self.segmenter = segmenter

    def forward(self, images: Tensor) -> Tensor:
        # An encoder that pads images gives full-size logits, equal everywhere.
        scores: Tensor = self.segmenter(images, coarse=True).logits[:, :, 0, 0]
        return scores


def batch_mix(config: PretrainConfig, num_classes: int) -> v2.Transform | None:
    """MixUp, CutMix, either one by chance, or None: (images, labels [N]) -> (images, shares of classes [N, K])."""
    own, mixes = config.classify, []
    if own.mixup:
        mixes.append(v2.MixUp(alpha=own.mixup, num_classes=num_classes))
    if own.cutmix:
        mixes.append(v2.CutMix(alpha=own.cutmix, num_classes=num_classes))
    return v2.RandomChoice(mixes) if len(mixes) > 1 else mixes[0] if mixes else None


def accuracy(segmenter: Segmenter, batches: Iterator[ClassBatch], *, device: torch.device) -> tuple[int, int]:
    """How many images of the batches have their class among the first one and the first five; in eval mode."""
    segmenter.eval()
    model, first, among = _Scores(segmenter), 0, 0
    with torch.inference_mode():
        for batch in batches:
            scores = model(batch.images.to(device))
            right = scores.topk(min(5, scores.shape[1])).indices.cpu() == batch.labels[:, None]  # [N, 5]
            first, among = first + int(right[:, 0].sum()), among + int(right.sum())
    return first, among


def _is_reached(line: str, reached: dict[str, int]) -> bool:
    """Whether a line of metrics.jsonl is whole, and not after the step that a resumed run continues from."""
    try:
        entry = json.loads(line)
        return int(entry["step"]) <= reached[entry["kind"]]
    except (ValueError, KeyError, TypeError):
        return False  # the run died while writing it
