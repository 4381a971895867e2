"""Answers from the web that must keep a least speed, so that nobody waits for ever for a byte a second.

A limit on silence alone does not help, because every byte ends a silence; one on the whole would cut off large files on
slow lines. So bytes are counted as they leave the socket, headers included, in one window of time after the other.
"""

from __future__ import annotations

import dataclasses
import functools
import http.client
import io
import socket
import time
import urllib.request
from typing import Any


@dataclasses.dataclass(frozen=True)
class Pace:
    """The least speed of an answer.

    Attributes:
        rate: Bytes a second; by default a tenth of what a telephone modem carries.
        window: Seconds that it is averaged over: so long may a line falter.
    """

    rate: int = 512
    window: float = 30.0


class TooSlowError(ConnectionError):
    """An answer that does not keep its `Pace`."""


def paced_handlers(pace: Pace) -> list[urllib.request.BaseHandler]:
    """What `urllib.request.build_opener` takes to open http and https addresses whose answers keep a pace."""
    return [_HTTPHandler(pace), _HTTPSHandler(pace)]


class _HTTPHandler(urllib.request.HTTPHandler):
    def __init__(self, pace: Pace) -> None:
        super().__init__()
        self.pace = pace

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(functools.partial(_HTTPConnection, pace=self.pace), req)


class _HTTPSHandler(urllib.request.HTTPSHandler):
    def __init__(self, pace: Pace) -> None:
        super().__init__()
        self.pace = pace

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(functools.partial(_HTTPSConnection, pace=self.pace), req)


class _HTTPConnection(http.client.HTTPConnection):
    def __init__(self, host: str, *, timeout: float, pace: Pace) -> None:
        super().__init__(host, timeout=timeout)
        self.response_class = functools.partial(_response, pace)  # type: ignore[assignment]  # it is only called


class _HTTPSConnection(http.client.HTTPSConnection):
    def __init__(self, host: str, *, timeout: float, pace: Pace) -> None:
        super().__init__(host, timeout=timeout)
        self.response_class = functools.partial(_response, pace)  # type: ignore[assignment]


def _response(
    pace: Pace, sock: socket.socket, debuglevel: int = 0, method: str | None = None
) -> http.client.HTTPResponse:
    return http.client.HTTPResponse(_Socket(sock, pace), debuglevel, method)  # type: ignore[arg-type]


class _Socket:
    """Of a socket, what an `HTTPResponse` asks for: the file that it is read through."""

    def __init__(self, connection: socket.socket, pace: Pace) -> None:
        self._connection, self._pace = connection, pace

    def makefile(self, mode: str) -> io.BufferedReader:
        assert mode == "rb", mode
        return io.BufferedReader(_Counted(self._connection.makefile("rb", buffering=0), self._pace))


class _Counted(io.RawIOBase):
    """The bytes of a connection, counted as they arrive."""

    def __init__(self, raw: socket.SocketIO, pace: Pace) -> None:
        self._raw, self._pace, self._got = raw, pace, 0
        self._began: float | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        got = self._raw.readinto(buffer)
        now = time.monotonic()
        if self._began is None:  # how long the server may think before it begins is limited by the socket's own time
            self._began = now
        self._got += got or 0
        took = now - self._began
        if took > self._pace.window:
            if got and self._got < self._pace.rate * took:
                raise TooSlowError(
                    f"it came at {self._got / took:.0f} bytes a second for {took:.0f} s, and the least is "
                    f"{self._pace.rate}"
                )
            self._began, self._got = now, 0
        return got

    def close(self) -> None:
        self._raw.close()
        super().close()
