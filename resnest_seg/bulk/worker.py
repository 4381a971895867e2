"""`Worker`: a model that segments items, writes their outputs, and records each in the manifest."""

from __future__ import annotations

import contextlib
import dataclasses
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.pool import AsyncResult, ThreadPool
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from resnest_seg.bulk.job import PARQUET, Job
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
from resnest_seg.bulk.parquet import Row, row_of, write_failed, write_part
from resnest_seg.errors import DatasetError, printable
from resnest_seg.inference.inputs import VIDEO_SUFFIXES, image_at
from resnest_seg.io.georeference import is_tiff

if TYPE_CHECKING:
    from resnest_seg.inference.prediction import Prediction

TOGETHER = 16
"""Maximum images that are decoded, or fetched, at once."""

PIXELS = 4_000_000
"""Maximum pixels of these, if they are several."""

MOST_BYTES = 2 << 30
"""Maximum size of a file that is not a TIFF or a video."""

FETCHERS = 8
"""Threads that fetch images from addresses, while others are segmented."""


@dataclasses.dataclass(frozen=True)
class _Photo:
    """An item and its file on this machine, or why there is none."""

    item: BulkItem
    file: str
    problem: str | None = None

    def in_words(self, text: str) -> str:
        """A message about the file, about what the item names instead."""
        return text if self.file == self.item.source else text.replace(self.file, self.item.key)


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
        self._rows: list[Row] = []

    def __call__(
        self, items: Sequence[BulkItem], finished: Callable[[Sequence[Outcome]], None] = lambda outcomes: None
    ) -> list[Outcome]:
        """Segment items, of which those of one size share calls of the model.

        An item's outcome is in the manifest when its outputs lie under their names, and not before.

        Args:
            items: A few items; their rows of a table become one file.
            finished: Is told of outcomes as they come.

        Returns:
            One outcome an item, in their order; its error says why there are no outputs.

        Raises:
            OSError: What ends the job, such as a full disk.
        """
        self._rows = []
        found: dict[str, Outcome] = {}
        at_once = PARQUET in self.job.write or self.destination.remote
        for photos in self._fetched(items):
            for group in _groups(photos):
                began = time.monotonic()
                outcomes = self._together(group)
                seconds = round((time.monotonic() - began) / len(group), 4)
                done = [dataclasses.replace(outcome, seconds=seconds) for outcome in outcomes]
                if not at_once:
                    self.ledger.write(done)
                found.update((outcome.source, outcome) for outcome in done)
                finished(done)
        ordered = [found[item.key] for item in items]
        if at_once:
            ordered = self._tabled(ordered)
            self.ledger.write(ordered)
        return ordered

    def _tabled(self, outcomes: list[Outcome]) -> list[Outcome]:
        """Write the rows of outcomes; returns the outcomes, also those that failed, with the file of them all."""
        if PARQUET not in self.job.write or not outcomes:
            return outcomes
        space = self.predictor.label_space
        for each in outcomes:
            if each.error is not None:
                row = Row(printable(each.source), each.place, error=printable(each.error))
                write_failed(self.destination, row, space)
        part = write_part(self.destination, [each.source for each in outcomes], self._rows, space)
        if part is None:
            return outcomes
        return [dataclasses.replace(each, outputs=(*each.outputs, part)) for each in outcomes]

    def _fetched(self, items: Sequence[BulkItem]) -> Iterator[list[_Photo]]:
        """The items with their files: those on this machine at once, then those of addresses, some at a time."""
        here = [_Photo(item, item.source, _refusal(item.source)) for item in items if item.kind != "address"]
        if here:
            yield here
        away = [item for item in items if item.kind == "address"]
        windows = [away[first : first + TOGETHER] for first in range(0, len(away), TOGETHER)]
        if not windows:
            return
        with contextlib.ExitStack() as held:
            threads = held.enter_context(ThreadPool(FETCHERS))  # whose threads do not hold up a Ctrl-C

            def begun(window: list[BulkItem]) -> tuple[contextlib.ExitStack, AsyncResult[list[_Photo]]]:
                stack = held.enter_context(contextlib.ExitStack())
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="resnest_seg_"))
                work = [(item, folder, number) for number, item in enumerate(window)]
                return stack, threads.starmap_async(_fetch, work, chunksize=1)

            following = begun(windows[0])
            for window in [*windows[1:], None]:
                stack, fetched = following
                photos = fetched.get()
                if window is not None:
                    following = begun(window)  # is fetched while these are segmented
                yield photos
                stack.close()

    def _together(self, group: Sequence[_Photo]) -> list[Outcome]:
        """Segment and write photos of one size, or one item of any kind."""
        if len(group) == 1:
            return [self._written(group[0], None)]
        try:
            predictions = self.predictor([photo.file for photo in group])
        except Exception:  # of one of them: each alone says whose it is
            return [self._written(photo, None) for photo in group]
        return [self._written(photo, found) for photo, found in zip(group, predictions, strict=True)]

    def _written(self, photo: _Photo, prediction: Prediction | None) -> Outcome:
        """Write the outputs of an item, which is segmented first where that is not done."""
        item, height, width = photo.item, 0, 0
        if photo.problem is not None:
            return Outcome(item.key, item.place, error=photo.problem)
        try:
            kind = "image" if item.kind == "address" else item.kind
            if kind == "video" and PARQUET in self.job.write:
                raise DatasetError("a row of a table holds an image, and this is a video: leave --write parquet out.")
            endings = endings_of(photo.file, kind, self.job)
            if not endings and PARQUET not in self.job.write:
                raise DatasetError(
                    "it has no CRS or no place in it, and --write geopackage is for images on the map. Write polygons."
                )
            names = {written: f"{item.place}{ending}" for written, ending in endings.items()}
            with self.destination.files(list(names.values())) as files:
                paths = dict(zip(names, files, strict=True))
                if kind == "video":
                    segment_video(self.predictor, photo.file, paths["video"], self.job)
                elif prediction is None:
                    prediction = segmented(self.predictor, photo.file, kind, paths, self.job)
                if prediction is not None:
                    height, width = prediction.labels.shape
                    write_outputs(prediction, paths, self.job)
            if prediction is not None and PARQUET in self.job.write:
                self._rows.append(row_of(item.key, item.place, prediction, ids=self.job.ids))
        except Exception as error:
            problem = problem_of(error, photo.file)
            if problem is None:
                raise
            return Outcome(item.key, item.place, error=photo.in_words(problem))
        return Outcome(item.key, item.place, tuple(names.values()), None, 0.0, height, width)


def _fetch(item: BulkItem, folder: str, number: int) -> _Photo:
    """Fetch what is at an address into a file of its own."""
    file = Path(folder) / f"{number}{PurePosixPath(item.place).suffix or Path(item.source).suffix[:10]}"
    try:
        file.write_bytes(image_at(item.source))
    except DatasetError as error:
        return _Photo(item, str(file), printable(str(error)))
    return _Photo(item, str(file))


def _refusal(file: str) -> str | None:
    """Why a file is not opened: devices and pipes may never end, and no photo has gigabytes."""
    try:
        status = Path(file).stat()
    except (OSError, ValueError):
        return None  # reading it says why
    if not stat.S_ISREG(status.st_mode):
        return f"cannot read {printable(file)}: it is no regular file."
    if status.st_size > MOST_BYTES and not (is_tiff(file) or file.lower().endswith(VIDEO_SUFFIXES)):
        return f"cannot read {printable(file)}: it has {status.st_size} bytes, and a photo may have {MOST_BYTES}."
    return None


def _groups(photos: Sequence[_Photo]) -> Iterator[list[_Photo]]:
    """Photos of one size, as many as are decoded at once; what is no photo is alone."""
    sizes: dict[tuple[int, int], list[_Photo]] = {}
    for photo in photos:
        height, width = (0, 0) if photo.item.kind == "video" or photo.problem is not None else _size(photo.file)
        if not height:
            yield [photo]
            continue
        group = sizes.setdefault((height, width), [])
        group.append(photo)
        if len(group) >= min(TOGETHER, max(PIXELS // (height * width), 1)):
            yield sizes.pop((height, width))
    yield from sizes.values()


def _size(file: str) -> tuple[int, int]:
    """(H, W) of a photo for grouping, zeros of one that cannot be read, or that is large."""
    with contextlib.suppress(Exception):  # which segmenting it reports
        height, width = size_of(file)
        if height * width < LARGE:
            return height, width
    return 0, 0
