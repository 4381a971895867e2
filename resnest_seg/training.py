"""The training loop: one function a screen long, the same for one process and for many.

A step's work depends on the config, the step and the saved state alone: the samples on (seed, epoch, index), the
learning rate on the step, dropout on (seed, step, process). So an interrupted run continues as if nothing had happened.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from resnest_seg.checkpoint import (
    BEST,
    CONFIG,
    LAST,
    Checkpoint,
    TrainingState,
    optimizer_tensors,
    restore_optimizer,
)
from resnest_seg.config import RunConfig, flatten, to_yaml
from resnest_seg.engine import PRECISIONS, StopSignal, accelerator_for, shares_statistics
from resnest_seg.errors import CheckpointError, ResNeStSegError
from resnest_seg.evaluation import EvaluatedImage, check_fits, evaluate
from resnest_seg.files import atomic_write
from resnest_seg.loader import Batch, build_loader, training_batches
from resnest_seg.losses import SegmentationLoss, labelled_pixels
from resnest_seg.optim import build_optimizer, poly_lr, set_lr
from resnest_seg.protocols import protocol
from resnest_seg.report import EvalReport
from resnest_seg.samples import SegmentationDataset
from resnest_seg.segmenter import Segmenter, load_weights
from resnest_seg.transforms import TrainTransform, sample_seed
from resnest_seg.visualize import contact_sheet, write_png

METRICS, SHEET = "metrics.jsonl", "contact_sheet.png"
"""Names in a run folder: one JSON object a line, and the picture of validation images."""

MAY_CHANGE = (
    "output",
    "data.root",
    "data.workers",
    "data.check",
    "train.log_every",
    "eval.sheet",
    "eval.memory",
    "model.checkpointing",
)
"""Config keys that a resumed run may change, because they change no number."""


class Trainer:
    """Trains a model into a run folder.

    The folder gets config.yaml (whole and resolved), last.safetensors and best.safetensors, metrics.jsonl,
    contact_sheet.png and tensorboard/.

    Args:
        config: The run.
        segmenter: The model, with fresh or loaded weights.
        train: The training split.
        validation: The split that `config.eval` names.
        output: The run folder. It must not exist, unless the run is resumed.
        resume: Continue from the folder's last checkpoint.
        probabilities: Draw the samples of an epoch with these, [len(train)]; None takes each once.

    Raises:
        ConfigError: Unknown protocol or precision; a batch that cannot be divided.
        CheckpointError: The folder exists already, or cannot be resumed.
    """

    def __init__(
        self,
        config: RunConfig,
        *,
        segmenter: Segmenter,
        train: SegmentationDataset,
        validation: SegmentationDataset,
        output: str | Path,
        resume: bool = False,
        probabilities: NDArray[np.float64] | None = None,
    ) -> None:
        self.config, self.train, self.validation, self.output = config, train, validation, Path(output)
        self.probabilities = probabilities
        protocol(config.eval.protocol)
        for dataset in (train, validation):
            check_fits(segmenter, dataset)
        saved = Checkpoint.load(self.output / LAST) if resume else None
        if not resume and self.output.exists():
            way_out = f", or continue that run with --resume {self.output}" if (self.output / LAST).exists() else ""
            raise CheckpointError(f"run folder {self.output} already exists. Choose another with --output{way_out}.")
        self.engine = accelerator_for(config, self.output)
        self.console = Console(quiet=not self.engine.is_main_process)
        self.segmenter = segmenter
        if shares_statistics(config, self.engine):
            self.segmenter = torch.nn.SyncBatchNorm.convert_sync_batchnorm(segmenter)
        optimizer = build_optimizer(self.segmenter, config.optim)
        # The engine patches half precision into the module it is given: the segmenter itself stays as it is, so that
        # validation computes what an evaluation of the saved file computes.
        self.model, self.optimizer = self.engine.prepare(torch.nn.Sequential(self.segmenter), optimizer)
        self.loss = SegmentationLoss(config.train.aux_weight)
        self.steps_per_epoch = max(len(train) // config.train.batch_size, 1)
        self.steps = config.train.epochs * self.steps_per_epoch
        self.step, self.best_mean_iou, self.validated_step = 0, -1.0, 0
        if saved is not None:
            self._restore(saved)

    def fit(self) -> bool:
        """Train to the end, or until Ctrl-C or SIGTERM, which end the step, save, and stop.

        Returns:
            Whether the run is complete.

        Raises:
            DatasetError: A sample cannot be loaded.
            ResNeStSegError: The loss is not finite; the weights are those before the bad step.
        """
        self._open_run()
        batches = self._batches()
        with StopSignal() as stop, self._progress() as progress:
            bar = progress.add_task("training", total=self.steps, completed=self.step, shown="")
            clock, since = time.perf_counter(), self.step
            if self._validation_due():  # the run was killed between the last step of an epoch and its validation
                self._validate(progress)
            while self.step < self.steps:
                lr = poly_lr(self.step, steps=self.steps, lr=self.config.optim.lr, power=self.config.optim.power)
                set_lr(self.optimizer, lr)
                loss = self._optimise(list(itertools.islice(batches, self.config.train.accumulation)))
                self.step += 1
                speed = (self.step - since) * self.config.train.batch_size / (time.perf_counter() - clock)
                progress.update(bar, advance=1, shown=f"loss {loss:.3f}  lr {lr:.2g}  {speed:.1f} images/s")
                if self.step % self.config.train.log_every == 0 or self.step == 1:
                    self._log("train", {"loss": loss, "lr": lr, "images_per_second": speed})
                stopping = self._any_process(stop.requested)
                if stopping or self.step % self.steps_per_epoch == 0 or self.step == self.steps:
                    self._save(LAST, training=True)
                if stopping:
                    break
                if self._validation_due():
                    self._validate(progress)
                    clock, since = time.perf_counter(), self.step
        self.engine.end_training()
        return self.step == self.validated_step == self.steps

    def _optimise(self, parts: list[Batch]) -> float:
        """One optimiser step over the micro-batches of the effective batch; returns its loss."""
        self.model.train()
        torch.manual_seed(sample_seed(self.config.seed, self.step, self.engine.process_index))  # dropout's
        device, processes = self.engine.device, self.engine.num_processes
        pixels = sum((labelled_pixels(part.labels) for part in parts), torch.zeros((), dtype=torch.int64)).to(device)
        pixels = self.engine.reduce(pixels, reduction="sum")
        total = torch.zeros((), device=device)
        for number, part in enumerate(parts):
            images, labels = part.images.to(device, non_blocking=True), part.labels.to(device, non_blocking=True)
            last = number == len(parts) - 1
            with contextlib.nullcontext() if last else self.engine.no_sync(self.model):
                output = self.model(images)
                loss = self.loss(output.logits, output.aux_logits, labels.long(), pixels=pixels)
                # Gradients are averaged over processes, and the loss is already divided by all processes' pixels.
                self.engine.backward(loss * processes)
            total += loss.detach()
        loss_value = float(self.engine.reduce(total, reduction="sum"))
        if not math.isfinite(loss_value):
            raise ResNeStSegError(
                f"the loss is {loss_value} at step {self.step} (epoch {self.epoch}, lr "
                f"{self.optimizer.param_groups[0]['lr']:.3g}); the weights were not updated. Files of the batch: "
                f"{', '.join(name for part in parts for name in part.names)}. Lower optim.lr, or look at these files."
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss_value

    @property
    def epoch(self) -> int:
        """Epochs completed so far."""
        return self.step // self.steps_per_epoch

    def _batches(self) -> Iterator[Batch]:
        """This process's micro-batches, from the current step to the last."""
        order = training_batches(
            len(self.train),
            seed=self.config.seed,
            batch_size=self.config.train.batch_size,
            steps=range(self.step, self.steps),
            parts=self.config.train.accumulation,
            rank=self.engine.process_index,
            processes=self.engine.num_processes,
            probabilities=self.probabilities,
        )
        return build_loader(
            self.train,
            order,
            transform=TrainTransform.from_config(self.config.data),
            seed=self.config.seed,
            workers=self.config.data.workers,
            pin_memory=self.engine.device.type == "cuda",
        )

    def _validation_due(self) -> bool:
        every = self.config.train.validate_every * self.steps_per_epoch
        due = self.step % every == 0 or self.step == self.steps
        return due and self.step > self.validated_step

    def _validate(self, progress: Progress) -> None:
        """Evaluate the validation split, each process its share, and keep the best weights."""
        count = min(len(self.validation), self.config.eval.limit or len(self.validation))
        mine = range(self.engine.process_index, count, self.engine.num_processes)
        bar = progress.add_task("validating", total=len(mine), shown="")
        # Spread over the split, because neighbours are often frames of one video.
        apart = max(len(mine) // max(self.config.eval.sheet, 1), 1)
        sheet: list[EvaluatedImage] = []
        places = itertools.count()

        def on_image(image: EvaluatedImage) -> None:
            progress.update(bar, advance=1, shown=f"mIoU {image.mean_iou:.3f}")
            if next(places) % apart == 0 and len(sheet) < self.config.eval.sheet:
                sheet.append(image)

        report = evaluate(
            self.segmenter,
            self.validation,
            protocols=(self.config.eval.protocol,),
            indices=mine,
            workers=min(self.config.data.workers, len(mine)),
            on_image=on_image,
            reduce=lambda counts: self.engine.reduce(counts, reduction="sum"),
            memory=self.config.eval.memory << 20,
        )
        progress.remove_task(bar)
        scores = report.scores[self.config.eval.protocol]
        self._log("validation", {"mean_iou": scores.mean_iou, "pixel_accuracy": scores.pixel_accuracy})
        self.console.print(
            f"epoch {self.epoch:>3}/{self.config.train.epochs}  step {self.step}  {report.split} mIoU "
            f"{100 * scores.mean_iou:.2f}  pixel accuracy {100 * scores.pixel_accuracy:.2f}"
        )
        self._draw(sheet, report)
        if scores.mean_iou > self.best_mean_iou:
            self.best_mean_iou = scores.mean_iou
            self._save(BEST, training=False)
        self.validated_step = self.step
        self._save(LAST, training=True)

    def _draw(self, sheet: list[EvaluatedImage], report: EvalReport) -> None:
        if not sheet or not self.engine.is_main_process:
            return
        rows = [(image.image, image.labels, image.predictions) for image in sheet]
        mean_iou = report.scores[self.config.eval.protocol].mean_iou
        title = f"{report.dataset} {report.split}, epoch {self.epoch}, mIoU {100 * mean_iou:.2f}"
        page = contact_sheet(rows, self.validation.label_space, title=title)
        write_png(self.output / SHEET, page)
        self.engine.get_tracker("tensorboard").log_images(
            {"validation": page[None]}, step=self.step, dataformats="NHWC"
        )

    def _log(self, kind: str, values: dict[str, float]) -> None:
        """Append a line to metrics.jsonl and points to TensorBoard's curves."""
        self.engine.log({f"{kind}/{name}": value for name, value in values.items()}, step=self.step)
        if self.engine.is_main_process:
            line = {"kind": kind, "step": self.step, "epoch": round(self.step / self.steps_per_epoch, 4), **values}
            with open(self.output / METRICS, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def _open_run(self) -> None:
        """Create the run folder, or cut a resumed run's metrics back to the step it continues from."""
        if self.engine.is_main_process:
            self.output.mkdir(parents=True, exist_ok=True)
            with atomic_write(self.output / CONFIG) as temporary:
                temporary.write_text(to_yaml(self.config), encoding="utf-8")
            metrics = self.output / METRICS
            lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.exists() else []
            reached = {"train": self.step, "validation": self.validated_step}
            kept = [line for line in lines if _is_reached(line, reached)]
            with atomic_write(metrics) as temporary:
                temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        self.engine.wait_for_everyone()
        values = {key: str(value) for key, value in flatten(self.config).items()}
        self.engine.init_trackers("tensorboard", values, init_kwargs={"tensorboard": {"purge_step": self.step + 1}})
        if self.step == 0:
            self._save(LAST, training=True)  # from here on the folder can be resumed, whatever happens
        precision = next(name for name, theirs in PRECISIONS.items() if theirs == self.engine.mixed_precision)
        self.console.print(
            f"{self.segmenter.description}, {len(self.validation.label_space)} classes; "
            f"{len(self.train)} training images, {self.config.train.epochs} epochs = {self.steps} steps of "
            f"{self.config.train.batch_size} images ({self.config.train.accumulation} micro-batches x "
            f"{self.engine.num_processes} processes) on {self.engine.device}, {precision}; run folder {self.output}",
            soft_wrap=True,
        )

    def _save(self, name: str, *, training: bool) -> None:
        if self.engine.is_main_process:
            state = self._training_state() if training else None
            weights = self.segmenter.state_dict()
            Checkpoint(self.config, self.validation.label_space, weights, state).save(self.output / name)
        self.engine.wait_for_everyone()

    def _training_state(self) -> TrainingState:
        values: dict[str, Any] = {
            "step": self.step,
            "best_mean_iou": self.best_mean_iou,
            "validated_step": self.validated_step,
            "data": self.train.identity(),
        }
        if self.engine.scaler is not None:
            values["scaler"] = self.engine.scaler.state_dict()
        return TrainingState(values, optimizer_tensors(self.optimizer))

    def _restore(self, saved: Checkpoint) -> None:
        """Take over weights, optimiser and step of a checkpoint."""
        if saved.training is None:
            raise CheckpointError(
                f"{self.output / LAST} holds weights only and no training state: it cannot be resumed."
            )
        before, now = flatten(saved.config), flatten(self.config)
        changed = [f"{key} ({before[key]} -> {now[key]})" for key in now if now[key] != before[key]]
        changed = [change for change in changed if change.split(" ")[0] not in MAY_CHANGE]
        if changed:
            raise CheckpointError(
                f"{self.output / CONFIG} is not the config of this run any more: {', '.join(changed)}."
            )
        values = saved.training.values
        if values.get("data", self.train.identity()) != self.train.identity():
            raise CheckpointError(
                f"the training split is not that of {self.output / LAST} any more: photos, masks or classes were "
                "added, removed or renamed. A resumed run would be another one. Put them back, or begin a new run."
            )
        load_weights(self.segmenter, saved.weights)
        try:
            restore_optimizer(self.optimizer, saved.training.tensors)
            if self.engine.scaler is not None:
                self.engine.scaler.load_state_dict(values["scaler"])
            self.step, self.validated_step = int(values["step"]), int(values["validated_step"])
            self.best_mean_iou = float(values["best_mean_iou"])
        except (KeyError, ValueError) as error:
            raise CheckpointError(
                f"{self.output / LAST} cannot be resumed here: no or another state of {error}."
            ) from None

    def _any_process(self, requested: bool) -> bool:
        """Whether a stop was requested anywhere: all processes must leave the loop at the same step."""
        if self.engine.num_processes == 1:
            return requested
        flags = self.engine.reduce(torch.tensor(int(requested), device=self.engine.device), reduction="sum")
        return bool(flags > 0)

    def _progress(self) -> Progress:
        return Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[shown]}"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
        )


def _is_reached(line: str, reached: dict[str, int]) -> bool:
    """Whether a line of metrics.jsonl is whole, and not after the step that a resumed run continues from."""
    try:
        entry = json.loads(line)
        return int(entry["step"]) <= reached[entry["kind"]]
    except (ValueError, KeyError, TypeError):
        return False  # the run died while writing it
