"""Engines hand the items of a job out to workers: here one process with its share of the items, and the job's end."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence

from resnest_seg.bulk.job import PARQUET, Job
from resnest_seg.bulk.ledger import Ledger, Outcome
from resnest_seg.bulk.listing import BulkItem, share
from resnest_seg.bulk.parquet import FAILED, failed_name, inputs_of, places_in
from resnest_seg.bulk.worker import Worker
from resnest_seg.errors import ConfigError, printable

CHUNK = 64
"""Items that a worker is given at once."""

ROWS = 256
"""Items that a worker is given at once if they become rows of a table: the most that a file of it holds."""

ERRORS = "errors.jsonl"
"""The list of the inputs that could not be segmented, below the output."""

LISTED = 20
"""Maximum of them that are shown."""

EVERY = 60.0
"""Seconds between lines of progress where there is no terminal."""


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

    def add(self, outcomes: Sequence[Outcome], seconds: float) -> None:
        """Count outcomes, which were there after so many seconds of work."""
        self.failed += [outcome for outcome in outcomes if outcome.error is not None]
        self.done += sum(outcome.error is None for outcome in outcomes)
        self.seconds = seconds

    @property
    def left(self) -> int:
        """Items that are still to be segmented."""
        return self.total - self.before - self.done - len(self.failed)

    @property
    def rate(self) -> float:
        """Images a second."""
        return (self.done + len(self.failed)) / self.seconds if self.seconds else 0.0


def remaining(job: Job, items: Sequence[BulkItem]) -> list[BulkItem]:
    """The items that no line of the manifest calls done, or whose outputs are gone.

    What killed processes left of these is cleared away: no process may be segmenting them now.

    Args:
        job: The job.
        items: All items of this process.

    Raises:
        ConfigError: The results of other inputs lie where those of these would go.
    """
    place, ledger = job.destination, Ledger(job.destination)
    done = ledger.done({item.key for item in items})
    _check_places(job, [item for item in items if item.key not in done])
    if PARQUET in job.write:
        done |= _adopted(job, [item for item in items if item.key not in done], ledger)
        _forget_failures(job)
    if not place.remote:
        done = {key: names for key, names in done.items() if all(place.has(name) for name in names)}
    todo = [item for item in items if item.key not in done]
    if done or place.names("manifest"):
        place.tidy([item.place for item in todo])
    return todo


def _check_places(job: Job, items: Sequence[BulkItem]) -> None:
    """Refuse to write over the results of another input, which the manifest would go on to call done."""
    places, output = {item.place: item for item in items}, job.destination
    for outcome in Ledger(output).read() if places else ():
        item = places.get(outcome.place)
        if item is None or outcome.error is not None or outcome.source in (item.key, item.key.removesuffix(item.mark)):
            continue
        if output.remote or any(output.has(name) for name in outcome.outputs):
            raise ConfigError(
                f"{output.shown} holds the results of {printable(outcome.source)} as {printable(item.place)}, where "
                f"those of {printable(item.key)} would go. Choose another --output, or pass --overwrite to begin anew."
            )


def _adopted(job: Job, items: Sequence[BulkItem], ledger: Ledger) -> dict[str, tuple[str, ...]]:
    """Items whose rows lie in a file without a line of their own: its process was killed before it wrote that."""
    lacking = {name: inputs for name in job.destination.names(PARQUET) if (inputs := inputs_of(name))}
    if lacking:
        for outcome in ledger.read():
            for name in lacking.keys() & set(outcome.outputs):
                lacking[name] -= 1
    by_place = {item.place: item for item in items} if any(lacking.values()) else {}
    adopted = [
        Outcome(by_place[place].key, place, (part,), None, 0.0, height, width)
        for part, inputs in lacking.items()
        if inputs > 0
        for place, height, width in places_in(job.destination, part)
        if place in by_place
    ]
    if adopted:
        ledger.write(adopted)
    return {outcome.source: outcome.outputs for outcome in adopted}


def _forget_failures(job: Job) -> None:
    """Remove the rows of inputs that failed once, and are done now."""
    names = {name for name in job.destination.names(PARQUET) if name.startswith(FAILED)}
    if names:
        for outcome in Ledger(job.destination).read():
            name = failed_name(printable(outcome.source))
            if outcome.error is None and name in names:
                job.destination.remove(name)
                names.discard(name)


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
        report: Is told of the state after every group of images, and at the beginning.

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
    print(f"protocol {worker.predictor.protocol.description}", file=sys.stderr)
    report(summary)
    began = time.monotonic()

    def finished(outcomes: Sequence[Outcome]) -> None:
        summary.add(outcomes, time.monotonic() - began)
        report(summary)

    size = ROWS if PARQUET in job.write else CHUNK
    for first in range(0, len(todo), size):
        worker(todo[first : first + size], finished)
    return summary


@contextlib.contextmanager
def shown_progress() -> Iterator[Callable[[Summary], None]]:
    """Show the state of a job that is reported: a bar on a terminal, else a line now and then."""
    from resnest_seg.io.display import progress_bars

    with progress_bars(shown=True) as progress:
        bar = progress.add_task("segmenting", total=None, shown="")
        last = time.monotonic()

        def report(summary: Summary) -> None:
            nonlocal last
            todo, rate = summary.total - summary.before, f"{summary.rate:.1f} images/s"
            progress.update(bar, total=todo, completed=todo - summary.left, shown=rate)
            if progress.disable and time.monotonic() - last > EVERY:
                last = time.monotonic()
                left = summary.left / summary.rate if summary.rate else 0.0
                words = f"{todo - summary.left} of {todo}: {rate}, {left / 60:.0f} min left"
                print(words, file=sys.stderr, flush=True)

        yield report


def finish(summary: Summary, job: Job, problems: Sequence[str] = (), *, shard: tuple[int, int] = (0, 1)) -> int:
    """Write the list of errors, print what was done and what failed, and return the exit code.

    Args:
        summary: What this process did.
        job: The job.
        problems: Sentences on inputs that are no items.
        shard: See `run_plain`.

    Returns:
        1 if an input failed, else 0.
    """
    _write_errors(job)
    number, count = shard
    whose = "" if count == 1 else f" of shard {number}/{count}"
    if not summary.total:
        print(f"nothing to do: no input is in shard {number}/{count}." if count > 1 else "nothing to do: no inputs.")
    else:
        rate = f", {summary.rate:.1f} images/s" if summary.done else ""
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


def _write_errors(job: Job) -> None:
    """Write the list of the inputs that could not be segmented, by all processes so far."""
    place = job.destination
    lines = [json.dumps({"source": each, "error": why}) for each, why in sorted(Ledger(place).failures().items())]
    if lines or place.has(ERRORS):
        place.write(ERRORS, "".join(f"{line}\n" for line in lines).encode())
    if PARQUET in job.write:
        _forget_failures(job)


def wait_for_the_others(code: int) -> None:
    """Under torchrun, wait until every process has come to its end, if this one is going to fail.

    torchrun ends all processes as soon as one has failed, and an input that cannot be read is no reason for that.
    The agent's own store counts those that have ended; no process group is made.

    Args:
        code: The exit code of this process.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # public by its documentation

    count = int(os.environ["WORLD_SIZE"])
    key = f"resnest_seg/ended/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    with contextlib.suppress(RuntimeError):  # the agent is gone: no one is to be waited for
        store = TCPStore(
            os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, wait_for_workers=False
        )
        ended = store.add(key, 1)
        while code and ended < count:
            time.sleep(0.2)
            ended = store.add(key, 0)
