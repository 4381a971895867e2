"""Downloads that resume after an interruption, are verified by their hash and appear atomically."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import hashlib
import http.client
import io
import socket
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from filelock import FileLock
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

from resnest_seg.errors import DownloadError, ResNeStSegError
from resnest_seg.files import FULL
from resnest_seg.io.display import ShownText, progress_bars


@dataclasses.dataclass(frozen=True)
class Pace:
    """The minimum transfer rate of a response.

    Attributes:
        rate: Bytes per second; the default is a tenth of a telephone modem's rate.
        window: Seconds over which the rate is averaged; shorter stalls are tolerated.
    """

    rate: int = 512
    window: float = 30.0


class TooSlowError(ConnectionError):
    """A response is slower than its `Pace`."""


def paced_handlers(pace: Pace) -> list[urllib.request.BaseHandler]:
    """Return handlers for `urllib.request.build_opener` that raise `TooSlowError` on slow http(s) responses."""
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
    """The part of a socket's interface that `HTTPResponse` uses: `makefile`."""

    def __init__(self, connection: socket.socket, pace: Pace) -> None:
        self._connection, self._pace = connection, pace

    def makefile(self, mode: str) -> io.BufferedReader:
        assert mode == "rb", mode
        return io.BufferedReader(_Counted(self._connection.makefile("rb", buffering=0), self._pace))


class _Counted(io.RawIOBase):
    """A raw stream that measures the rate at which bytes arrive."""

    def __init__(self, raw: socket.SocketIO, pace: Pace) -> None:
        self._raw, self._pace, self._got = raw, pace, 0
        self._began: float | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        got = self._raw.readinto(buffer)
        now = time.monotonic()
        if self._began is None:  # the wait before the first byte is limited by the socket's timeout
            self._began = now
        self._got += got or 0
        took = now - self._began
        if took > self._pace.window:
            if got and self._got < self._pace.rate * took:
                raise TooSlowError(
                    f"the rate was {self._got / took:.0f} bytes a second for {took:.0f} s, and the minimum is "
                    f"{self._pace.rate}"
                )
            self._began, self._got = now, 0
        return got

    def close(self) -> None:
        self._raw.close()
        super().close()


CHUNK = 1 << 20
"""Bytes per read."""

TRIES = 4
"""Consecutive attempts without progress before a download fails. Each resumes the last."""

PROGRESS = 1 << 16
"""Bytes that an attempt must fetch to count as progress."""

UNWRITABLE = (*FULL, errno.EACCES, errno.EPERM)
"""System errors of the folder that is written into, not of the network: trying again would not help."""


@dataclasses.dataclass(frozen=True)
class Digest:
    """The expected hash of a file.

    Attributes:
        algorithm: A name of `hashlib`, such as "sha256".
        prefix: The known first hexadecimal digits.
        member: For a zip whose hash is that of a file inside it: returns the name of that file, given the path and
            the open zip, or raises a `ResNeStSegError`. None for other files.
    """

    algorithm: str
    prefix: str
    member: Callable[[Path, zipfile.ZipFile], str] | None = None

    def __str__(self) -> str:
        return f"{self.algorithm.upper()} {self.prefix}...{' inside the zip' if self.member else ''}"

    def matches(self, path: Path) -> bool:
        """True if the file's content has this hash; False for a corrupt zip."""
        with contextlib.ExitStack() as opened:
            file: IO[bytes] = opened.enter_context(open(path, "rb"))
            if self.member is not None:
                try:
                    archive = opened.enter_context(zipfile.ZipFile(file))
                    file = opened.enter_context(archive.open(self.member(path, archive)))
                    return self._is_of(file)
                except (zipfile.BadZipFile, ResNeStSegError, EOFError, zlib.error):
                    return False
            return self._is_of(file)

    def _is_of(self, file: IO[bytes]) -> bool:
        content = hashlib.new(self.algorithm)
        while chunk := file.read(CHUNK):
            content.update(chunk)
        return content.hexdigest().startswith(self.prefix)


def download(
    url: str,
    path: Path,
    *,
    digest: Digest | None = None,
    moved_by: str | None = None,
    timeout: float = 30.0,
    pace: Pace = Pace(),  # a constant
    pause: Callable[[float], object] = time.sleep,
) -> Path:
    """Download `url` to `path`, unless `path` exists.

    Bytes are written to `path`.part, which the next call resumes after an interruption. It is renamed to `path` when
    it is complete and its hash is right. Several processes may call this at the same time: one downloads.

    Args:
        url: http or https address.
        path: The file.
        digest: The expected hash; None checks the length only.
        moved_by: The option or variable that puts the file into another folder, for messages: "--root".
        timeout: Seconds without a byte after which an attempt fails.
        pace: The minimum rate; a slower attempt fails.
        pause: Waits the given seconds between attempts.

    Raises:
        DownloadError: The download failed, or the hash differs; the message says how to fetch the file by hand. Or the
            folder cannot be written.
    """
    if path.exists():  # no lock: the folder may be read-only
        return _checked(path, digest)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f"{path.name}.lock")):
            if path.exists():
                return _checked(path, digest)
            problem = _attempt(url, path, digest=digest, timeout=timeout, pace=pace, pause=pause)
    except OSError as error:
        raise unwritable(path.parent, error, moved_by=moved_by) from None
    if problem is not None:
        known = f" (it must have {digest})" if digest is not None else ""
        raise DownloadError(
            f"cannot download {url}: {problem}. Without a network, fetch the file{known} elsewhere and put it at "
            f"{path}."
        )
    return path


def unwritable(folder: Path, error: OSError, *, moved_by: str | None) -> DownloadError:
    """The error for a folder that a download cannot be written into; see `download`."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    why = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or str(error)
    ways = ["free some space there"] if full else []
    ways += [] if moved_by is None else [f"choose another folder with {moved_by}"]
    way = " or ".join(ways)
    return DownloadError(f"cannot write into {folder}: {why}.{f' {way[0].upper()}{way[1:]}.' if way else ''}")


def _checked(path: Path, digest: Digest | None) -> Path:
    if digest is not None and not digest.matches(path):
        raise DownloadError(f"{path} is not the published file: its hash is not {digest}. Delete it to fetch it again.")
    return path


def _attempt(
    url: str, path: Path, *, digest: Digest | None, timeout: float, pace: Pace, pause: Callable[[float], object]
) -> str | None:
    """Retry until the file is complete; return the reason if that is hopeless, else None. `UNWRITABLE` are raised."""
    part = path.with_name(f"{path.name}.part")
    problem, failures = "", 0
    if digest is not None and part.exists() and digest.matches(part):  # interrupted just before the rename
        part.replace(path)
        return None
    while failures < TRIES:
        had = part.stat().st_size if part.exists() else 0
        try:
            _fetch(url, part, timeout=timeout, pace=pace)
        except urllib.error.HTTPError as error:
            problem = f"HTTP {error.code} {error.reason}"
            if error.code < 500 and error.code != 429:
                break  # a retry will not help
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, OSError) and error.errno in UNWRITABLE:  # a URLError has no number of its own
                raise
            problem = str(getattr(error, "reason", error)) or type(error).__name__
        else:
            if digest is None or digest.matches(part):
                part.replace(path)
                return None
            part.unlink()
            problem = f"the server has another file, its hash is not {digest}"
            if not had:
                break  # a resumed file may mix two versions, so it is fetched afresh once
        grown = part.exists() and part.stat().st_size >= had + PROGRESS
        failures = 0 if grown else failures + 1
        if failures < TRIES:
            pause(2.0 ** max(failures - 1, 0))
    return problem


def _fetch(url: str, part: Path, *, timeout: float, pace: Pace) -> None:
    """Make one attempt: append the missing bytes to `part` until it has the length that the server states."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.build_opener(*paced_handlers(pace)).open(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        part.unlink()  # longer than the file on the server, so not a prefix of it
        raise ConnectionError("the partial download does not belong to this file") from None
    with response, open(part, "ab") as file, _bar() as progress:
        start = (response.headers.get("Content-Range") or "").removeprefix("bytes ").partition("-")[0]
        if response.status != 206 or start != str(have):  # the server cannot resume, or there was nothing to resume
            file.truncate(0)
            have = 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length is not None else None
        task = progress.add_task(part.name.removesuffix(".part"), total=total, completed=have)
        while chunk := response.read(CHUNK):
            file.write(chunk)
            progress.update(task, advance=len(chunk))
    if total is not None and part.stat().st_size != total:
        raise ConnectionError(f"the connection broke off after {part.stat().st_size} of {total} bytes")


def _bar() -> Progress:
    return progress_bars(ShownText(), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
