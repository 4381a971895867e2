"""Limits of connections and time for clients of the HTTP server, which uvicorn does not have.

uvicorn 0.54 counts connections (`limit_concurrency`) when the head of a request has come, and awaits a head, and the
taking of an answer, for ever. Here both have a time limit. Who connects when all places are taken gets the place of the
connection whose request has been on its way the longest, or 503 when the requests of all have come.
"""

from __future__ import annotations

import asyncio
import resource
import socket
from pathlib import Path
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from resnest_seg.errors import ConfigError

ACCEPT_QUEUE = 1024
"""Connections that the system holds until they are accepted."""

SPARE_FILES = 32
"""File descriptors beside those of connections and decoders: the event loop, logs, files that libraries open."""

FILES_OF_A_WORKER = 6
"""Pipes to the process that decodes, while it is started."""

FEWEST_CONNECTIONS = 4

FULL_BODY = b'{"error":"too many are connected, try again in a second."}'

FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(FULL_BODY), FULL_BODY)
)
"""The answer to a connection that finds no place."""


class Places:
    """Connections of a server: how many there may be, how long they may take, and which wait for a request.

    Args:
        most: Connections at a time.
        head_seconds: In which the head of a request must have come, from the connection's begin or the last answer.
        answer_seconds: In which an answer must have been taken.
    """

    def __init__(self, *, most: int, head_seconds: float, answer_seconds: float) -> None:
        self.most, self.head_seconds, self.answer_seconds = most, head_seconds, answer_seconds
        self.waiting: dict[Connection, None] = {}  # those whose request has not come as a whole; the first began first


class Connection(H11Protocol):
    """One connection; uvicorn calls these methods as `asyncio.Protocol` says, and `on_response_complete`."""

    def __init__(
        self,
        places: Places,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.places = places
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a place, or that of another, or none."""
        if len(self.connections) >= self.places.most:
            longest = next(iter(self.places.waiting), None)
            if longest is None:
                self.transport = transport
                transport.write(FULL)
                transport.close()
                return
            longest.give_way()
        super().connection_made(transport)
        transport.set_write_buffer_limits(0)  # so that writing is paused as long as anything is untaken
        self._update()

    def give_way(self) -> None:
        """End the connection; its place is free at once."""
        self.connections.discard(self)
        self.places.waiting.pop(self, None)
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        """A part of a head or of a body."""
        super().data_received(data)
        self._update()

    def on_response_complete(self) -> None:
        """An answer is written, but maybe not taken."""
        super().on_response_complete()
        self._update()

    def pause_writing(self) -> None:
        """Something is untaken."""
        super().pause_writing()
        self._time("answer", self.places.answer_seconds)
        self._update()

    def resume_writing(self) -> None:
        """All is taken."""
        super().resume_writing()
        self._time("answer", None)
        self._update()

    def connection_lost(self, exc: Exception | None) -> None:
        """The end of the connection, whoever ended it."""
        self.places.waiting.pop(self, None)
        self._time("head", None)
        self._time("answer", None)
        super().connection_lost(exc)

    def _update(self) -> None:
        """See what is awaited of the client: that it takes its answer, a head, a body, or nothing."""
        taking = "answer" in self._timers
        head = not taking and (self.cycle is None or self.cycle.response_complete)
        if head or (not taking and self.cycle.more_body):
            self.places.waiting.setdefault(self)
        else:
            self.places.waiting.pop(self, None)
        if not head:
            self._time("head", None)
        elif "head" not in self._timers:
            self._time("head", self.places.head_seconds)

    def _time(self, what: str, seconds: float | None) -> None:
        """Give the client some seconds for what is awaited; None says that it is there."""
        if what in self._timers:
            self._timers.pop(what).cancel()
        if seconds is not None:
            self._timers[what] = self.loop.call_later(seconds, self.transport.abort)


class ListeningSocket(socket.socket):
    """A socket that listens with a queue of its own length, whatever length it is told.

    asyncio takes one number for that length and for the connections that it accepts in one go, each of which it tries
    again in a second, with a line in the log, when no file descriptor is left: the number must be 1, or tries multiply.
    """

    def listen(self, backlog: int = ACCEPT_QUEUE) -> None:
        """Listen, with `ACCEPT_QUEUE`."""
        super().listen(ACCEPT_QUEUE)


def most_connections(wanted: int, *, workers: int) -> int:
    """The connections that this process may have: as many as wanted, or as its limit of file descriptors permits.

    Raises:
        ConfigError: It permits next to none.
    """
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY:
        return wanted
    taken = len(list(Path("/dev/fd").iterdir())) + SPARE_FILES + FILES_OF_A_WORKER * workers
    if limit < taken + FEWEST_CONNECTIONS:
        raise ConfigError(
            f"this process may open {limit} files (ulimit -n), and serving with {workers} workers needs "
            f"{taken + FEWEST_CONNECTIONS}: raise the limit, or use fewer workers."
        )
    return min(wanted, limit - taken)
