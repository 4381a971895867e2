"""Engines hand the items of a job out to workers: here one process with its share of the items, and the job's end."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Sequence

from resnest_seg.bulk.job import Job
from resnest_seg.bulk.ledger import Ledger, Outcome
from resnest_seg.bulk.listing import BulkItem, share
from resnest_seg.bulk.worker import Worker
from resnest_seg.errors import printable

CHUNK = 64
"""Items that a worker is given at once."""

ERRORS = "errors.jsonl"
"""The list of the inputs that could not be segmented, below the output."""

LISTED = 20
"""Maximum of them that are shown."""


@dataclasses.dataclass
class Summary:
    """What a process did.

    Attributes:
        total: Items of its share.
        before: Of these, done by earlier starts.
        done: Done now.
        failed: The outcomes with errors.
        seconds: That the work took, without loading the model.
    """

    total: int
    before: int = 0
    done: int = 0
    failed: list[Outcome] = dataclasses.field(default_factory=list)
    seconds: float = 0.0

    def add(self, outcomes: Sequence[Outcome]) -> None:
        """Count outcomes."""
        self.failed += [outcome for outcome in outcomes if outcome.error is not None]
        self.done += sum(outcome.error is None for outcome in outcomes)


def remaining(job: Job, items: Sequence[BulkItem]) -> list[BulkItem]:
    """The items that no line of the manifest calls done, or whose outputs are gone."""
    place = job.destination
    known = Ledger(place).known({item.source for item in items})
    done = {
        source
        for source, outcome in known.items()
        if outcome.error is None and all(place.has(name) for name in outcome.outputs)
    }
    return [item for item in items if item.source not in done]


def run_plain(
    job: Job,
    items: Sequence[BulkItem],
    *,
    shard: tuple[int, int] = (0, 1),
    report: Callable[[Summary], None] = lambda summary: None,
) -> Summary:
    """Segment this process's share of the items that are not done.

    Args:
        job: What is done; `begin` has recorded it.
        items: All items of the job.
        shard: The number of this process, from 0, and how many there are.
        report: Is told of the state after every group of images.

    Raises:
        OSError: What ends the job, such as a full disk; what is done is written down.
        CheckpointError, ConfigError: See `Worker`.
    """
    mine = share(items, shard)
    todo = remaining(job, mine)
    summary = Summary(total=len(mine), before=len(mine) - len(todo))
    if not todo:
        return summary
    worker = Worker(job)
    began = time.monotonic()

    def finished(outcomes: Sequence[Outcome]) -> None:
        summary.add(outcomes)
        summary.seconds = time.monotonic() - began
        report(summary)

    for first in range(0, len(todo), CHUNK):
        worker(todo[first : first + CHUNK], finished)
    return summary


def write_errors(job: Job) -> None:
    """Write the list of the inputs that could not be segmented, by all processes so far."""
    place = job.destination
    failed = [outcome for outcome in Ledger(place).known().values() if outcome.error is not None]
    lines = [
        json.dumps({"source": each.source, "error": each.error}) for each in sorted(failed, key=lambda o: o.source)
    ]
    if lines or place.has(ERRORS):
        place.write(ERRORS, "".join(f"{line}\n" for line in lines).encode())


def say(summary: Summary, job: Job, problems: Sequence[str], *, shard: tuple[int, int] = (0, 1)) -> int:
    """Print what was done, and what failed; returns the exit code: 1 if an input failed, else 0."""
    number, count = shard
    whose = "" if count == 1 else f" of shard {number}/{count}"
    if not summary.total:
        print(f"nothing to do: no input is{whose or ' there'}.")
    else:
        rate = f", {summary.done / summary.seconds:.1f} images/s" if summary.done and summary.seconds else ""
        print(
            f"{summary.done} of {summary.total} inputs{whose} segmented into {job.destination.shown}: "
            f"{', '.join(job.write)} ({summary.before} done before, {len(summary.failed)} failed{rate})"
        )
    texts = [*problems, *(str(outcome.error) for outcome in summary.failed)]
    if texts:
        more = [f"and {len(texts) - LISTED} more, see {job.destination.shown}/{ERRORS}"] if len(texts) > LISTED else []
        lines = [f"error: {len(texts)} not segmented:", *map(printable, texts[:LISTED]), *more]
        print("\n  ".join(lines), file=sys.stderr)
    return 1 if texts else 0
