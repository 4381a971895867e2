"""Validation during training: each process its share, and a stop signal is heard between two images."""

from __future__ import annotations

import itertools
from pathlib import Path

import torch
from accelerate import Accelerator
from rich.progress import Progress
from torch import Tensor

from resnest_seg.config import RunConfig
from resnest_seg.engine import StopSignal, trackers
from resnest_seg.evaluation import EvaluatedImage, evaluate
from resnest_seg.files import naming
from resnest_seg.report import EvalReport
from resnest_seg.run_folder import SHEET
from resnest_seg.samples import SegmentationDataset
from resnest_seg.segmenter import Segmenter
from resnest_seg.visualize import contact_sheet, write_png


class _StoppedError(Exception):
    """Some process was told to stop."""


class Validator:
    """Evaluates a model on the split that `config.eval` names.

    Args:
        config: The run.
        dataset: The split.
        engine: The processes that share it.
    """

    def __init__(self, config: RunConfig, dataset: SegmentationDataset, engine: Accelerator) -> None:
        self.config, self.dataset, self.engine = config, dataset, engine

    def run(
        self, segmenter: Segmenter, *, stop: StopSignal, progress: Progress
    ) -> tuple[EvalReport, list[EvaluatedImage]] | None:
        """The scores, and this process's images for the contact sheet; None if a process was told to stop.

        Args:
            segmenter: The whole model, with the same weights on every process.
            stop: What is asked after every image.
            progress: Shows how far it is.
        """
        count = min(len(self.dataset), self.config.eval.limit or len(self.dataset))
        mine = range(self.engine.process_index, count, self.engine.num_processes)
        bar = progress.add_task("validating", total=len(mine), shown="")
        # Spread over the split, because neighbours are often frames of one video.
        apart = max(len(mine) // max(self.config.eval.sheet, 1), 1)
        sheet: list[EvaluatedImage] = []
        places, agreed = itertools.count(), False

        def on_image(image: EvaluatedImage) -> None:
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
            )
        except _StoppedError:
            if not agreed:
                stop.anywhere(self.engine)
            return None
        finally:
            progress.remove_task(bar)
        return report, sheet

    def draw(self, sheet: list[EvaluatedImage], report: EvalReport, *, folder: Path, epoch: int, step: int) -> None:
        """Write the main process's images as a contact sheet into the run folder, and hand it to the trackers."""
        if not sheet or not self.engine.is_main_process:
            return
        rows = [(image.image, image.labels, image.predictions) for image in sheet]
        mean_iou = report.mean_iou(self.config.eval.protocol)
        title = f"{report.dataset} {report.split}, epoch {epoch}, mIoU {100 * mean_iou:.2f}"
        page = contact_sheet(rows, self.dataset.label_space, title=title)
        write_png(folder / SHEET, page)
        for name in trackers(self.config.train.trackers):  # whose errors name no file
            extra = {"dataformats": "NHWC"} if name == "tensorboard" else {}
            with naming(folder / name):
                self.engine.get_tracker(name).log_images({"validation": page[None]}, step=step, **extra)


def share_buffers(model: torch.nn.Module, engine: Accelerator) -> None:
    """Give every process the main one's buffers: batch norm's statistics differ where they are not synchronised."""
    if engine.num_processes > 1:
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, src=0)
