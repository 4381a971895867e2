"""`Worker`: a model that segments items, writes their outputs, and records each in the manifest."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from resnest_seg.bulk.job import Job
from resnest_seg.bulk.ledger import Ledger, Outcome
from resnest_seg.bulk.listing import BulkItem
from resnest_seg.bulk.outputs import (
    LARGE,
    endings_of,
    open_predictor,
    problem_of,
    segment_video,
    segmented,
    size_of,
    write_outputs,
)

if TYPE_CHECKING:
    from resnest_seg.inference.prediction import Prediction

TOGETHER = 16
"""Maximum images that are decoded at once."""

PIXELS = 4_000_000
"""Maximum pixels of these, if they are several."""


class Worker:
    """Segments items by one model, which is opened once.

    A worker is of one process. Every process of a job has its own, and they need not know each other.

    Args:
        job: What is done with the items.

    Attributes:
        predictor: The model.
        ledger: This process's part of the manifest.

    Raises:
        CheckpointError: The model cannot be loaded.
        ConfigError: It cannot do what the job asks for, or the output cannot be written to.
    """

    def __init__(self, job: Job) -> None:
        self.job, self.destination = job, job.destination
        self.predictor = open_predictor(job)
        self.ledger = Ledger(self.destination)

    def __call__(
        self, items: Sequence[BulkItem], finished: Callable[[Sequence[Outcome]], None] = lambda outcomes: None
    ) -> list[Outcome]:
        """Segment items, of which those of one size share calls of the model.

        An item's outcome is in the manifest when its outputs lie under their names, and not before.

        Args:
            items: A few items.
            finished: Is told of outcomes when they are written down.

        Returns:
            One outcome an item, in their order; its error says why there are no outputs.

        Raises:
            OSError: What ends the job, such as a full disk.
        """
        found: dict[str, Outcome] = {}
        for group in self._groups(items):
            began = time.monotonic()
            outcomes = self._together(group)
            seconds = (time.monotonic() - began) / len(group)
            done = [dataclasses.replace(outcome, seconds=round(seconds, 4)) for outcome in outcomes]
            self.ledger.write(done)
            finished(done)
            found.update((outcome.source, outcome) for outcome in done)
        return [found[item.source] for item in items]

    def _groups(self, items: Sequence[BulkItem]) -> Iterator[list[BulkItem]]:
        """Items of one size, as many as are decoded at once; what is no image file is alone."""
        sizes: dict[tuple[int, int], list[BulkItem]] = {}
        for item in items:
            height, width = (0, 0) if item.kind != "image" else _size(item.source)
            if not height:
                yield [item]
                continue
            group = sizes.setdefault((height, width), [])
            group.append(item)
            if len(group) >= min(TOGETHER, max(PIXELS // (height * width), 1)):
                yield sizes.pop((height, width))
        yield from sizes.values()

    def _together(self, group: Sequence[BulkItem]) -> list[Outcome]:
        """Segment and write items of one size, or one item of any kind."""
        if len(group) > 1:
            try:
                predictions = self.predictor([item.source for item in group])
            except Exception:  # of one of them: each alone says whose it is
                return [outcome for item in group for outcome in self._together([item])]
            return [self._written(item, found) for item, found in zip(group, predictions, strict=True)]
        return [self._written(group[0], None)]

    def _written(self, item: BulkItem, prediction: Prediction | None) -> Outcome:
        """Write the outputs of an item, which is segmented first where that is not done."""
        height = width = 0
        try:
            endings = endings_of(item.source, item.kind, self.job)
            names = {kind: f"{item.place}{ending}" for kind, ending in endings.items()}
            with self.destination.files(list(names.values())) as files:
                paths = dict(zip(names, files, strict=True))
                if item.kind == "video":
                    segment_video(self.predictor, item.source, paths["video"], self.job)
                elif prediction is None:
                    prediction = segmented(self.predictor, item.source, item.kind, paths, self.job)
                if prediction is not None:
                    height, width = prediction.labels.shape
                    write_outputs(prediction, paths, self.job)
        except Exception as error:
            problem = problem_of(error, item.source)
            if problem is None:
                raise
            return Outcome(item.source, item.place, error=problem)
        return Outcome(item.source, item.place, tuple(names.values()), None, 0.0, height, width)


def _size(source: str) -> tuple[int, int]:
    """(H, W) of a photo for grouping, zeros of one that cannot be read, or that is large."""
    with contextlib.suppress(Exception):  # which segmenting it reports
        height, width = size_of(source)
        if height * width < LARGE:
            return height, width
    return 0, 0
