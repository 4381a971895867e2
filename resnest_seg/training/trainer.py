"""The training loop: one function a screen long, the same for one process and for many.

A step's work depends on the config, the step and the saved state alone: the samples on (seed, epoch, index), the
learning rate on the step, dropout on (seed, step, process): the random state needs no saving. So a run that was killed
continues as if nothing had happened, to the same bits on a CPU.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
import os
import platform
import shlex
import sys
import uuid
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from accelerate.utils import gather_object
from rich.progress import Progress
from torch import nn

import resnest_seg
from resnest_seg.config import AnyConfig
from resnest_seg.config_doubts import without_effect
from resnest_seg.data.loader import Division
from resnest_seg.data.transforms import sample_seed
from resnest_seg.errors import CheckpointError
from resnest_seg.io.display import console
from resnest_seg.io.visualize import write_png
from resnest_seg.models.checkpoint import BEST, CONFIG, LAST, Checkpoint, TrainingState
from resnest_seg.models.segmenter import PixelModel, load_weights
from resnest_seg.training.cpu_speed import faster_training
from resnest_seg.training.distributed import (
    StopSignal,
    accelerator_for,
    check_agreement,
    describe_precision,
    gradients_stay,
    launched,
    lost_peers_named,
    part_like,
    precision_of,
    settle,
    shard,
    shares_statistics,
    splits_model,
    whole,
)
from resnest_seg.training.monitor import (
    Callback,
    Gauge,
    ProgressLines,
    StepReport,
    ValidationReport,
    check_finite,
    enough_memory,
    gradient_norm,
    has_bars,
    progress_bars,
)
from resnest_seg.training.optim import (
    OwnOptimizer,
    Schedule,
    WeightAverage,
    adopt_optimizer,
    batch_factor,
    build_optimizer,
    clip_gradients,
    describe_lr,
    freeze,
    hold_frozen,
    set_lr,
    too_short,
)
from resnest_seg.training.run_folder import (
    MACHINE,
    METRICS,
    SHEET,
    RunFolder,
    config_changes,
    kept_state,
    number_slots,
    optimizer_state,
    optimizer_tensors,
    restore_kept,
    restore_optimizer,
)
from resnest_seg.training.tasks import Moment, Task, TrainingBatch, Validation, share_buffers
from resnest_seg.training.trackers import TENSORBOARD, begin_trackers, class_points, log_picture, tracker_names


class Trainer:
    """Trains a model into a run folder, see `resnest_seg.training.run_folder`.

    Args:
        config: The run.
        segmenter: The model that the task trains, with fresh or loaded weights: a `Segmenter`, or a `Classifier`.
        task: What it is trained for: samples, loss and score.
        output: The run folder. It must not exist, unless the run is resumed.
        resume: Continue from the folder's newest whole state.
        adopt: Begin in a folder that exists if a run has saved nothing into it yet.
        allow_changes: Config keys that a resumed run may change, beyond `MAY_CHANGE`.
        optimizer: In place of the config's, see `adopt_optimizer`.
        callbacks: Objects that hear of steps and validations.
        kept: Name -> further objects of the user's own whose state is saved with the run, see `kept_state`; the
            callbacks are among them anyway.

    Attributes:
        step: Optimiser steps done.
        stopped_by: The signal that ended `fit`, or None.
        ended: A callback ended the run.
        scores: Name -> value of the best validation so far, empty before the first, or if it was before a resume.
        doubts: What in the config can hardly be meant or has no effect, in words.

    Raises:
        ConfigError: Unknown precision or tracker; a batch that cannot be divided; a model that does not fit the data.
        CheckpointError: The folder exists already, cannot be resumed, or is another live run's.
    """

    def __init__(
        self,
        config: AnyConfig,
        *,
        segmenter: PixelModel,
        task: Task[Any],
        output: str | Path,
        resume: bool = False,
        adopt: bool = False,
        allow_changes: Collection[str] = (),
        optimizer: OwnOptimizer | None = None,
        callbacks: Sequence[Callback] = (),
        kept: Mapping[str, object] = MappingProxyType({}),
    ) -> None:
        self.config, self.task, self.about, self.output = config, task, task.description, Path(output)
        self.own_optimizer, self.callbacks, self.ended = optimizer, list(callbacks), False
        self.kept = {**kept, **{f"callback {place}": callback for place, callback in enumerate(self.callbacks)}}
        self.scores: Mapping[str, float] = {}
        self.folder = RunFolder(output, keep=config.train.keep)
        self.steps_per_epoch = max(self.about.size // config.train.batch_size, 1)
        self.schedule = Schedule.from_config(config, steps_per_epoch=self.steps_per_epoch)
        self.steps = self.schedule.steps
        self.step, self.best_score, self.validated_step, self.stale_validations = 0, -1.0, 0, 0
        self.best_of = "weights"
        self.stopped_by: int | None = None
        self.changes: list[str] = []
        self.doubts = [*filter(None, [too_short(config.train.ema, self.steps)]), *without_effect(config)]
        if os.environ.get("RANK", "0") == "0":
            self.folder.check_free()
        saved = self._open_state(allow_changes) if resume else None
        if saved is None:
            self.folder.check_new(adopt=adopt)
        with self._lost_peers_named():
            self.engine = accelerator_for(config, self.output / TENSORBOARD)
            check_agreement(config, self.output)  # nor does the main process make the folder before all found none
            self.precision = precision_of(self.engine)
            if saved is not None:
                self._check_precision(saved, allow_changes)
            self.console = console(quiet=not self.engine.is_main_process)
            self._build(segmenter, task.begin(segmenter, self.engine.device), saved)
        self.gauge = Gauge()

    def _lost_peers_named(self) -> contextlib.AbstractContextManager[None]:
        """Context in which the loss of another process ends this one with a message that says how to go on."""
        again = (
            "torchrun starts all of them again, as often as its --max-restarts allows, and the run goes on from its "
            f"newest state; after that, give the same command again, with --resume {shlex.quote(str(self.output))}. An "
            f"answer is waited for as long as train.peer_timeout says, {self.config.train.peer_timeout} s."
        )
        return lost_peers_named(launched(), go_on=again)

    def _build(self, segmenter: PixelModel, model: nn.Module, saved: Checkpoint | None) -> None:
        """Put model, average and optimiser on their devices, with the values of a saved state; `model` is around it."""
        if saved is not None:
            load_weights(segmenter, saved.weights)
        if shares_statistics(self.config, self.engine):
            segmenter = torch.nn.SyncBatchNorm.convert_sync_batchnorm(segmenter)  # in place
        self.segmenter = segmenter.to(self.engine.device)
        freeze(self.segmenter, self.config.optim)
        self.splits = splits_model(self.config, self.engine)
        # What is validated and kept as best: whole on every process.
        apart = self.splits or self.config.train.ema > 0
        self.judged: PixelModel = copy.deepcopy(self.segmenter).eval() if apart else self.segmenter
        if self.splits:
            shard(self.segmenter, processes=self.engine.num_processes, device=self.engine.device.type)
        if self.own_optimizer is None:
            optimizer = build_optimizer(self.segmenter, self.config.optim)
        else:
            optimizer = adopt_optimizer(
                self.segmenter, self.config.optim, self.own_optimizer, factor=batch_factor(self.config)
            )
        if self.splits:
            self.model, self.optimizer = model, self.engine.prepare(optimizer)
        else:
            self.model, self.optimizer = self.engine.prepare(model, optimizer)
        decay = self.config.train.ema
        self.average = WeightAverage(self.segmenter, decay=decay) if decay else None
        self.averaged: PixelModel | None = None
        if self.average is not None and self.about.uses_average:
            self.averaged = self.average.show_in(copy.deepcopy(self.segmenter))
        if saved is not None:
            self._restore(saved)

    @property
    def finished(self) -> bool:
        """True when training is complete: all steps are done and validated, or patience ran out."""
        patience = self.config.train.patience
        validated = self.step == self.validated_step
        return validated and (self.step >= self.steps or 0 < patience <= self.stale_validations)

    def fit(self, *, until: int | None = None) -> bool:
        """Train to the end, or until Ctrl-C or SIGTERM, which end the step, save, and stop.

        In another thread than the main one, which alone hears signals, only `until` stops it early.

        Args:
            until: Stop after this step as if a signal had come; None trains to the end.

        Returns:
            Whether the run is complete.

        Raises:
            CheckpointError: Another run trains into the folder, or the disk is full.
            DatasetError: A sample cannot be loaded.
            ResNeStSegError: The loss or the gradient is not finite; the weights are those before the bad step. Or a
                loader process died, or another process of the run.
        """
        with (
            self._lost_peers_named(),
            self._open_run(),
            StopSignal() as stop,
            contextlib.closing(self._batches()) as batches,
            progress_bars(self.console) as progress,
            faster_training(self.segmenter, self.engine.device),
        ):
            bar = progress.add_task("training", total=self.steps, completed=self.step, shown="")
            if self._validation_due():  # the run was killed between a step and its validation
                self._validate(stop, progress)
            self.gauge.restart()
            lines = ProgressLines(self.step, self.steps, steps_per_epoch=self.steps_per_epoch)
            while not self.finished and not self.ended and self.stopped_by is None and self.step != until:
                lr = self.schedule(self.step)
                set_lr(self.optimizer, lr)
                with self.gauge.waiting():
                    parts = list(itertools.islice(batches, self.config.train.accumulation))
                with enough_memory(self.config.train, self.engine.num_processes, where=f"step {self.step}"):
                    loss, norm, figures = self._optimise(parts)
                self.step += 1
                speed = self.gauge.count(self.config.train.batch_size)
                progress.update(bar, advance=1, shown=f"loss {loss:.3f}  lr {lr:.2g}  {speed:.1f} images/s")
                if self._is_reported(self.step):
                    values = {"loss": loss, **figures, "grad_norm": norm, "lr": lr, **self._rates()}
                    self._log(METRICS, "train", values)
                    machine = self.gauge.read()
                    self._log(MACHINE, "speed", machine)
                    line = lines.line(self.step, loss=loss, lr=lr, machine=machine)
                    self._say(None if has_bars(self.console) else line, self.gauge.advice())
                self._tell_step(loss, norm, lr)
                self.stopped_by = stop.anywhere(self.engine)
                if self.stopped_by or self.ended or self.step == until or self._save_due() or self._validation_due():
                    with self.gauge.saving():
                        self._save_state()
                if self._validation_due() and self.stopped_by is None and self.step != until:
                    self._validate(stop, progress)
                    self.gauge.restart()
        self.engine.end_training()
        settle(self.engine.num_processes)
        return self.finished

    def _say(self, *lines: str | None) -> None:
        for line in filter(None, lines):
            self.console.print(line, soft_wrap=True)

    def _optimise(self, parts: Sequence[TrainingBatch]) -> tuple[float, float, dict[str, float]]:
        """One optimiser step over the micro-batches of the effective batch; returns loss, gradient norm, figures."""
        self.model.train()
        hold_frozen(self.segmenter, self.config.optim)
        torch.manual_seed(sample_seed(self.config.seed, self.step, self.engine.process_index))  # dropout's
        device, processes = self.engine.device, self.engine.num_processes
        weight, moment = self._weight_of(parts), self._moment()
        total, sums = torch.zeros((), device=device), dict[str, torch.Tensor]()
        for number, part in enumerate(parts):
            with self._micro_batch(is_last=number == len(parts) - 1):
                loss, own = self.task.loss(self.model, part, total=weight, moment=moment)
                # Gradients are averaged over processes, and the loss is already divided by all processes' weight.
                self.engine.backward(loss * processes)
            total += loss.detach()
            sums = {name: value + sums.get(name, 0) for name, value in own.items()}
        scaler = self.engine.scaler
        if scaler is not None:
            self.engine.unscale_gradients(self.optimizer)
        totals = self.engine.reduce(torch.stack([total, *sums.values()]), reduction="sum")
        norm_here = gradient_norm(self.segmenter.parameters()).to(device)
        loss_value, *values, norm = torch.cat([totals, norm_here[None]]).tolist()
        check_finite(
            loss_value,
            norm,
            self.segmenter,
            where=f"step {self.step} (epoch {self.epoch}, lr {self.optimizer.param_groups[0]['lr']:.3g})",
            files=lambda: gather_object([name for part in parts for name in part.names]),
            allow_inf=scaler is not None and scaler.get_scale() > 1,
        )
        clip_gradients(self.segmenter.parameters(), norm=norm, limit=self.config.optim.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update()
        return loss_value, norm, self.task.figures(dict(zip(sums, values, strict=True)))

    def _weight_of(self, parts: Sequence[TrainingBatch]) -> dict[str, torch.Tensor]:
        """The weights of the effective batch, over all micro-batches and processes."""
        weights = [self.task.weight_of(part) for part in parts]
        summed = {name: torch.stack([each[name] for each in weights]).sum(dim=0) for name in weights[0]}
        return {name: self.engine.reduce(weight, reduction="sum") for name, weight in summed.items()}

    def _moment(self) -> Moment:
        """The step that begins; the average has the same statistics on every process, as a resumed run begins with."""
        if self.averaged is not None:
            share_buffers(self.averaged, self.engine)
        return Moment(self.step, self._is_reported(self.step + 1), self.averaged)

    def _is_reported(self, step: int) -> bool:
        return step % self.config.train.log_every == 0 or step == 1

    @contextlib.contextmanager
    def _micro_batch(self, *, is_last: bool) -> Iterator[None]:
        """Precision and communication of one forward and backward pass: gradients travel after the last one only."""
        if self.splits:
            with self.engine.autocast(), contextlib.nullcontext() if is_last else gradients_stay(self.segmenter):
                yield
        else:
            with contextlib.nullcontext() if is_last else self.engine.no_sync(self.model):
                yield

    @property
    def epoch(self) -> int:
        """Epochs completed so far."""
        return self.step // self.steps_per_epoch

    def _batches(self) -> Generator[TrainingBatch, None, None]:
        """This process's micro-batches, from the current step to the last."""
        division = Division(
            seed=self.config.seed,
            batch_size=self.config.train.batch_size,
            steps=range(self.step, self.steps),
            parts=self.config.train.accumulation,
            rank=self.engine.process_index,
            processes=self.engine.num_processes,
        )
        return self.task.batches(division, pin_memory=self.engine.device.type == "cuda")

    def _save_due(self) -> bool:
        return self.step % (self.config.train.save_every or self.steps_per_epoch) == 0 or self.step == self.steps

    def _validation_due(self) -> bool:
        train = self.config.train
        every = train.validate_every_steps or train.validate_every * self.steps_per_epoch
        due = self.step % every == 0 or self.step == self.steps
        return due and self.step > self.validated_step

    def _validate(self, stop: StopSignal, progress: Progress) -> None:
        """Evaluate the validation split and keep the best weights; does nothing if the run was asked to stop.

        Where there is an average of the weights, both are evaluated, and the better one's scores are those of the
        validation: what is kept as best, and what `train.patience` looks at. If the kept model takes buffers that its
        scores gave, the best thresholds, it is evaluated once more with them: report, scores by image and picture are
        those of what is kept.
        """
        results: dict[str, Validation] = {}
        names = ("weights",) if self.average is None else ("average", "weights")
        better, score = "", self.about.score
        with self._image_parts(names) as parts:

            def judge(name: str) -> bool:
                found = self.task.validate(self.judged, self.engine, stop=stop, progress=progress, images=parts[name])
                if found is None:
                    self.stopped_by = stop.anywhere(self.engine)
                    return False
                results[name] = found
                return True

            for name in names:
                self._show_to_judge(name)
                if not judge(name):
                    return
                if not better or results[name].scores[score] > results[better].scores[score]:
                    better = name
            best = results[better].scores[score] > self.best_score
            if best and results[better].buffers:  # what is kept is this model with them, and not what was scored
                if name != better:
                    self._show_to_judge(better)
                self.judged.load_state_dict(dict(results[better].buffers), strict=False)
                name = better
                if not judge(name):
                    return
            self._report(results, better)
            self.stale_validations += 1
            if best:
                self._keep_best(results[better], better, judged=name)
            self._tell_validation(results[better], best=best)  # when the best is on the disk: a callback may copy it
            self.validated_step = self.step
            self._save_state()
        if self.finished and self.step < self.steps:
            self.console.print(f"ended early: {self.stale_validations} validations in a row without a better {score}")

    def _keep_best(self, result: Validation, name: str, *, judged: str) -> None:
        """Write the weights of this name as the best, with their report; those `judged` are in the model now."""
        self.best_score, self.best_of, self.stale_validations = result.scores[self.about.score], name, 0
        self.scores = result.scores
        if name != judged:
            self._show_to_judge(name)
        self.engine.wait_for_everyone()  # each has written its scores by image
        if self.engine.is_main_process:
            if result.report is not None:
                processes = range(self.engine.num_processes)
                self.folder.save_validation(result.report, [self.folder.image_part(name, each) for each in processes])
            origin = {"step": self.step, "of": name, **result.scores}
            weights = self.judged.state_dict() | dict(result.buffers)
            self.folder.save_best(self._checkpoint(weights, origin=origin))

    @contextlib.contextmanager
    def _image_parts(self, names: Sequence[str]) -> Iterator[dict[str, Path]]:
        """Name -> file for this process's scores by image; they are removed at the end."""
        parts = {name: self.folder.image_part(name, self.engine.process_index) for name in names}
        try:
            yield parts
        finally:
            for part in parts.values():
                part.unlink(missing_ok=True)

    def _tell_step(self, loss: float, norm: float, lr: float) -> None:
        epoch = self.step / self.steps_per_epoch
        report = StepReport(self.step, self.steps, epoch, loss, norm, lr)
        self._end_if([callback.on_step(report) for callback in self._told()])

    def _tell_validation(self, result: Validation, *, best: bool) -> None:
        epoch = self.step / self.steps_per_epoch
        report = ValidationReport(self.step, epoch, result.scores, best, result.report, self.output)
        self._end_if([callback.on_validation(report) for callback in self._told()])

    def _told(self) -> Sequence[Callback]:
        """The callbacks in the main process, none elsewhere."""
        return self.callbacks if self.engine.is_main_process else ()

    def _end_if(self, answers: Sequence[bool | None]) -> None:
        """End the run, on all processes, if a callback asks for it; collective where there are callbacks."""
        if self.callbacks:
            asked = torch.tensor(int(True in answers), device=self.engine.device)
            self.ended = bool(self.engine.reduce(asked, reduction="sum")) or self.ended

    def _show_to_judge(self, name: str) -> None:
        """Put the "weights" or their "average" into the model that is validated, the same on every process."""
        if self.judged is not self.segmenter:
            average = self.average if name == "average" else None
            values = self.segmenter.state_dict() if average is None else average.values
            load_weights(self.judged, whole(values))
        share_buffers(self.judged, self.engine)

    def _report(self, results: Mapping[str, Validation], better: str) -> None:
        """Draw, log and print a validation: the better scores and, if there are two, whose they are and both."""
        self._draw(results[better])
        result = results[better]
        values: dict[str, Any] = dict(result.scores)
        if result.report is not None:
            values |= {"val_loss": result.loss, "class_iou": list(result.class_iou)}
            self.engine.log(class_points(result.report.classes, result.class_iou), step=self.step)
        shown = result.text
        if len(results) > 1:
            values["of"] = better
            values |= {f"{name}/{key}": value for name, one in results.items() for key, value in one.scores.items()}
            other = next(name for name in results if name != better)
            shown += f"  of the {better} ({other}: {100 * results[other].scores[self.about.score]:.2f})"
        self._log(METRICS, "validation", values)
        epochs = math.ceil(self.steps / self.steps_per_epoch)
        self.console.print(f"epoch {self.epoch:>3}/{epochs}  step {self.step}  {shown}", soft_wrap=True)

    def _draw(self, result: Validation) -> None:
        """Write the picture of a validation into the run folder, and hand it to the trackers."""
        if result.picture is None:
            return
        page = result.picture(self.epoch)
        write_png(self.output / SHEET, page)
        names = tracker_names(self.config.train.trackers)
        log_picture(self.engine, names, page, step=self.step, folder=self.output)

    def _rates(self) -> dict[str, float]:
        """The learning rate of every parameter group."""
        return {f"lr/{number}": group["lr"] for number, group in enumerate(self.optimizer.param_groups)}

    def _log(self, file: str, kind: str, values: dict[str, Any]) -> None:
        """Append a line to a file of the run folder and points to the trackers' curves."""
        numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
        points = {f"{kind}/{name.replace('/', '_')}": value for name, value in numbers.items()}
        self.engine.log(points, step=self.step)  # of "lr" and "lr/0" some trackers would make a file and a folder
        if self.engine.is_main_process:
            epoch = round(self.step / self.steps_per_epoch, 4)
            self.folder.append(file, {"kind": kind, "step": self.step, "epoch": epoch, **values})

    @contextlib.contextmanager
    def _open_run(self) -> Iterator[None]:
        """Within this, the run folder is this run's alone; begins by making it, or going back to where it continues."""
        with contextlib.ExitStack() as held:
            refusal = ""
            if self.engine.is_main_process:
                try:
                    held.enter_context(self.folder.held())
                except CheckpointError as error:
                    refusal = str(error)
            refusals = [text for text in gather_object([refusal]) if text]
            if refusals:
                raise CheckpointError(refusals[0])
            self._begin()
            yield

    def _begin(self) -> None:
        """Create the run folder, or cut a resumed run's metrics back to the step it continues from; say what is run."""
        if self.engine.is_main_process:
            reached = {"train": self.step, "validation": self.validated_step}
            self.folder.open(self.config, reached, files=self.about.files, say=_warn)
        self.engine.wait_for_everyone()
        self._check_shared()
        identity = self.folder.identity()
        begin_trackers(self.config, self.engine, folder=self.output, identity=identity, step=self.step)
        versions = {"version": resnest_seg.__version__, "torch": torch.__version__, "python": platform.python_version()}
        where = {"host": platform.node(), "processes": self.engine.num_processes, "device": str(self.engine.device)}
        data = {"images": self.about.size, "data": self.about.identity[:12]}
        started = {"steps": self.steps, "precision": self.precision, **data, **where, **versions}
        self._log(MACHINE, "start", {"id": identity, **started, "changes": self.changes})
        if self.changes:
            self.console.print(f"changed since the run began: {', '.join(self.changes)}", soft_wrap=True)
        if self.step == 0:
            self._save_state()  # from here on the folder can be resumed, whatever happens
        count, precision = self.about.num_classes, describe_precision(self.engine, self.config.train.precision)
        self.console.print(
            f"{self.segmenter.description}, {count} class{'es' * (count > 1)}; "
            f"{self.about.size} training images, {self.steps / self.steps_per_epoch:g} epochs = {self.steps} steps of "
            f"{self.config.train.batch_size} images ({self.config.train.accumulation} micro-batches x "
            f"{self.engine.num_processes} processes) on {self.engine.device}, {precision}, "
            f"{describe_lr(self.config)}; run folder {self.output}",
            soft_wrap=True,
        )

    def _check_shared(self) -> None:
        """Refuse a run folder that some of the machines do not see, at the start and not at the first validation.

        Raises:
            CheckpointError: Names them.
        """
        if self.engine.num_processes == int(os.environ.get("LOCAL_WORLD_SIZE", "1")):
            return
        mark = gather_object([uuid.uuid4().hex])[0]
        with self.folder.marked(mark) if self.engine.is_main_process else contextlib.nullcontext():
            self.engine.wait_for_everyone()
            blind = gather_object(["" if self.folder.shows(mark) else platform.node()])
        machines = sorted({name for name in blind if name})
        if machines:
            raise CheckpointError(
                f"what process 0 writes into {self.output.absolute()} is not there on {', '.join(machines)}: the run "
                "folder must lie where all machines see the same files. Choose another with --output."
            )

    def _save_state(self) -> None:
        """Save everything that the run needs to continue; all processes take part."""
        tensors = whole(optimizer_tensors(self.optimizer, list(self._trained())))
        if self.average is not None:
            tensors |= {f"average.{key}": value for key, value in whole(self.average.values).items()}
        tensors |= kept_state(self.kept)[1]
        weights = whole(self.segmenter.state_dict())
        if self.engine.is_main_process:
            self.folder.save_state(self._checkpoint(weights, TrainingState(self._values(), tensors)), self.step)
        self.engine.wait_for_everyone()

    def _checkpoint(
        self,
        weights: dict[str, torch.Tensor],
        state: TrainingState | None = None,
        *,
        origin: Mapping[str, Any] | None = None,
    ) -> Checkpoint:
        about = self.about
        return Checkpoint(self.config, about.label_space, weights, state, about.num_classes, origin or {})

    def _values(self) -> dict[str, Any]:
        """The part of the state that is plain values."""
        values: dict[str, Any] = {
            "step": self.step,
            f"best_{self.about.score}": self.best_score,
            "validated_step": self.validated_step,
            "stale_validations": self.stale_validations,
            "precision": self.precision,
            "data": self.about.identity,
        }
        if self.about.sources:
            values["sources"] = dict(self.about.sources)
        if self.average is not None:
            values |= {"average_updates": self.average.updates, "best_of": self.best_of}
        if self.engine.scaler is not None:
            values["scaler"] = self.engine.scaler.state_dict()
        if self.own_optimizer is not None:
            values |= {
                "own_optimizer": type(self.optimizer.optimizer).__name__,
                "numbers": number_slots(self.optimizer),
            }
        plain, _ = kept_state(self.kept)
        return values | ({"kept": plain} if plain else {})

    def _open_state(self, allow_changes: Collection[str]) -> Checkpoint:
        """The state to continue from, if it is one of this run."""
        saved = self.folder.load_state(say=_warn)
        assert saved.training is not None
        if type(saved.config) is not type(self.config):
            raise CheckpointError(f"{self.output / LAST} is a state of a model of another kind: it cannot be resumed.")
        self.changes = config_changes(saved.config, self.config, allowed=allow_changes, file=self.output / CONFIG)
        before = saved.training.values.get("own_optimizer")
        if (before is None) != (self.own_optimizer is None):
            raise CheckpointError(
                f"{self.output / LAST} was trained by {before or 'the optimiser of its config'}: give fit() the same "
                "optimizer again, or begin a new run from its weights."
            )
        if saved.training.values.get("data", self.about.identity) != self.about.identity:
            raise CheckpointError(
                f"the training split is not that of {self.output / LAST} any more: photos, masks or classes were "
                "added, removed or renamed. A resumed run would be another one. Put them back, or begin a new run."
            )
        sources = saved.training.values.get("sources", {})
        for key in sorted((sources.keys() | self.about.sources.keys()) - set(allow_changes)):
            before, now = (each.get(key, "none") for each in (sources, self.about.sources))
            if before != now:
                raise CheckpointError(
                    f"{key} is not what {self.output / LAST} was trained with: it was {before}, and is {now}. The run "
                    f"would be another one. If that is what you want: --allow-changes {key}"
                )
        return saved

    def _check_precision(self, saved: Checkpoint, allow_changes: Collection[str]) -> None:
        """Refuse to go on in another precision than before, which `train.precision` auto can become elsewhere."""
        assert saved.training is not None
        before = saved.training.values.get("precision", self.precision)  # older states do not tell
        if before == self.precision:
            return
        if "train.precision" not in allow_changes:
            raise CheckpointError(
                f"{self.output / LAST} was computed in {before}, and on {self.engine.device} train.precision "
                f"{self.config.train.precision} is {self.precision}: the run would be another one. To go on in "
                f"{before} all the same: --train.precision {before} --allow-changes train.precision; in "
                f"{self.precision}: --allow-changes train.precision"
            )
        self.changes.append(f"arithmetic ({before} -> {self.precision})")

    def _trained(self) -> dict[str, torch.nn.Parameter]:
        """The parameters of the optimiser by their names, in its order."""
        names = {parameter: name for name, parameter in self.segmenter.named_parameters()}
        return {names[parameter]: parameter for group in self.optimizer.param_groups for parameter in group["params"]}

    def _restore(self, saved: Checkpoint) -> None:
        """Take over optimiser, average and counters of a state."""
        assert saved.training is not None
        values, tensors = saved.training.values, saved.training.tensors
        try:
            same = saved.config.optim.optimizer == self.config.optim.optimizer
            state = optimizer_state(tensors, values.get("numbers", ())) if same else {}
            may_differ = any(change.startswith("optim.freeze ") for change in self.changes)
            restore_optimizer(self.optimizer, self._trained(), state, may_differ=may_differ)
            if self.average is not None and saved.config.train.ema:  # else it begins here, from the saved weights
                mean, updates = self.average.values, int(values.get("average_updates", values["step"]))
                averages = {key: part_like(tensors[f"average.{key}"], mean[key]) for key in mean}
                self.average.load(averages, updates=updates)
            if self.engine.scaler is not None and values.get("precision", self.precision) == self.precision:
                self.engine.scaler.load_state_dict(values["scaler"])
            self.step, self.validated_step = int(values["step"]), int(values["validated_step"])
            self.best_score = float(values[f"best_{self.about.score}"])
            self.best_of = str(values.get("best_of", "average" if saved.config.train.ema else "weights"))
            self.stale_validations = int(values.get("stale_validations", 0))
            restore_kept(self.kept, values.get("kept", {}), tensors)
        except (KeyError, ValueError, IndexError) as error:
            raise CheckpointError(
                f"{self.output / LAST} cannot be resumed here: no or another state of {error}."
            ) from None
        if self.step > self.steps:
            raise CheckpointError(
                f"{self.output / LAST} is at step {self.step}, and the run would have {self.steps} only: it cannot be "
                f"shortened to less than it has done. Its best weights are {self.output / BEST}."
            )
        steps = gather_object([self.step])
        if len(set(steps)) > 1:
            raise CheckpointError(
                f"the processes found different states in {self.output} (steps {steps}): the run folder must lie "
                "where all machines see the same files."
            )


def _warn(text: str) -> None:
    print(text, file=sys.stderr)
