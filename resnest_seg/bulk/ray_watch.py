"""The head's watch over a job of Ray's: it ends a wait that nothing else would end, and loses no signal.

When an actor dies, Ray can miss that its chunk has ended with it (ray-project/ray#50814, #62535, #62537), or go on
counting it as alive. Then the head waits without end, as it does for a process that is frozen. Actors therefore give
signs while they work; where there are none for minutes, the wait is over. A job can be started again at no loss.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from types import FrameType
from typing import Any

from resnest_seg.errors import ResNeStSegError

QUIET = 15 * 60.0
"""Seconds for which the head waits without a result and without a sign of any actor. A chunk may take longer: whoever
works on it gives signs."""

LOOK = 10.0
"""Seconds between two looks for signs."""

LONGEST = 60.0
"""Maximum seconds that one look adds to a silence: a machine that slept, or a head that was stopped, heard nothing."""

AGAIN = "Start the same command again: a prediction goes on with what is not done, an evaluation begins anew."
"""What helps when Ray fails."""


class Watch:
    """Measures for how long the head has waited without hearing of an actor.

    Args:
        signs: Returns a number that changes with every sign of work, or None if it is not known. If it raises, it is
            not known, either.
        limit: Seconds of silence after which the wait is to be ended.
        patient: Wait for the first sign without limit: on a cluster that others use, actors wait for room.
        clock: Returns seconds.

    Attributes:
        waiting: True while the head waits for a row; it is not watched otherwise.
        rows: Rows that it was given.
        stalled: True if the wait was ended.
    """

    def __init__(
        self,
        signs: Callable[[], int | None],
        *,
        limit: float,
        patient: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.waiting, self.rows, self.stalled = True, 0, False
        self.limit = limit
        self._signs, self._patient, self._clock = signs, patient, clock
        self._seen = self._counted = 0
        self._silence, self._looked = 0.0, clock()

    def look(self) -> bool:
        """Look for signs; returns True if the silence has become too long."""
        found: int | None = None
        with contextlib.suppress(Exception):  # of Ray's: whoever counts the signs has died, or is late
            found = self._signs()
        now, rows = self._clock(), self.rows
        passed, self._looked = min(now - self._looked, LONGEST), now
        heard = rows != self._counted or found not in (None, self._seen)
        self._counted, self._seen = rows, self._seen if found is None else found
        self._patient = self._patient and not heard
        self._silence = 0.0 if heard or self._patient or not self.waiting else self._silence + passed
        return self._silence > self.limit

    @contextlib.contextmanager
    def running(self, every: float) -> Iterator[None]:
        """Look from a thread, and interrupt this one when the silence has become too long.

        Only the main thread can be interrupted: in another one, nothing is watched.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        ended, waits = threading.Event(), threading.get_ident()

        def run() -> None:
            while not ended.wait(every):
                if self.look():
                    self.stalled, self._silence = True, 0.0  # time to end; a destructor may swallow the exception
                    signal.pthread_kill(waits, signal.SIGINT)

        thread = threading.Thread(target=run, name="ray_watch", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()  # it must not ask Ray when that has ended: Ray would start a cluster for the question


def watched(
    rows: Iterable[Any],
    signs: Callable[[], int | None],
    *,
    patient: bool,
    limit: float | None = None,
    every: float | None = None,
) -> Generator[Any, None, None]:
    """Yield rows as they come, as long as somebody works on them.

    Args:
        rows: What is waited for.
        signs: See `Watch`.
        patient: See `Watch`.
        limit: Seconds, see `Watch`; None for `QUIET`.
        every: Seconds between two looks; None for `LOOK`.

    Raises:
        ResNeStSegError: Nothing was heard of any actor for too long.
        KeyboardInterrupt, SystemExit: A signal came, though a destructor swallowed its exception.
    """
    watch = Watch(signs, limit=QUIET if limit is None else limit, patient=patient)
    with _kept_ends(watch) as ended, watch.running(LOOK if every is None else every):
        try:
            for row in rows:
                watch.waiting = False
                yield row
                if ended:
                    raise ended[0]
                watch.rows, watch.waiting = watch.rows + 1, True
        except KeyboardInterrupt:
            if not watch.stalled:
                raise
            raise ResNeStSegError(
                f"Ray's processes have done nothing for {watch.limit / 60:.0f} minutes, after {watch.rows} parts of "
                "the work: one of them was killed or has frozen, and Ray waits for it without end. "
                f"What is done stays done. {AGAIN}"
            ) from None


@contextlib.contextmanager
def _kept_ends(watch: Watch) -> Iterator[list[BaseException]]:
    """Keep in mind what the handlers of Ctrl-C and SIGTERM raise: in a destructor of Ray's, it would be lost.

    Args:
        watch: If it has ended the wait, SIGINT is its own, and raises even where Ctrl-C is ignored, as under nohup.
    """
    ended: list[BaseException] = []
    if threading.current_thread() is not threading.main_thread():
        yield ended
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def kept(number: int, frame: FrameType | None) -> None:
        handler = before[signal.Signals(number)]
        try:
            if number == signal.SIGINT and watch.stalled:
                raise KeyboardInterrupt
            if callable(handler):
                handler(number, frame)
            elif number == signal.SIGINT and handler != signal.SIG_IGN:
                raise KeyboardInterrupt
        except BaseException as error:
            ended.append(error)
            raise

    try:
        signal.signal(signal.SIGINT, kept)
        if callable(before[signal.SIGTERM]):
            signal.signal(signal.SIGTERM, kept)
        yield ended
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
