"""Copies of remote files on a local disk: bounded, shared by processes and runs, never stale, never half a file.

A copy is named by a hash of address, size and tag (ETag, generation or time), so a changed object is another file. It
is written under a temporary name, synchronised and renamed: whatever is killed at any instant, a name has its whole
content. The sum of all files never exceeds the limit: room is taken, under a lock, before a byte is written, and the
files that were not read for longest make room. fsspec's own caches have no limit; diskcache loses count of files where
a process is killed.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import re
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from resnest_seg.errors import ConfigError, DatasetError, printable
from resnest_seg.files import check_output_folder

GIB = 1 << 30

ABANDONED = 3600.0
"""Seconds after which a temporary file is one that a killed process left."""

SPARE = 0.1
"""Share of the limit that is freed at once where room is made, so that the files are counted seldom."""

_COPY = re.compile("[0-9a-f]{64}")
_TEMPORARY = ".tmp-"


def copy_name(address: str, size: int | None, tag: str) -> str:
    """Return the name of the copy of an object in the state that a listing shows."""
    return hashlib.sha256(f"{address}\n{size}\n{tag}".encode("utf-8", "surrogatepass")).hexdigest()


class Cache:
    """A folder of copies. It can be sent to other processes, and any number of them use it at once.

    Args:
        folder: The folder; it is made if it is missing. Files in it that are no copies are left alone.
        gib: Limit of all copies in GiB.

    Raises:
        ConfigError: The folder cannot be made or written to, or the system has no locks of files that end with their
            process (Windows).
    """

    def __init__(self, folder: str | Path, *, gib: float = 20.0) -> None:
        if importlib.util.find_spec("fcntl") is None:
            raise ConfigError("data.cache needs Linux or macOS, whose locks end with their process: leave it null.")
        self.folder, self.limit, self._off = Path(folder).expanduser().absolute(), int(gib * GIB), False
        check_output_folder(self.folder, option="data.cache")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"cannot make the cache {printable(str(self.folder))}: {error.strerror}. Choose another data.cache."
            ) from None

    def read(self, name: str, size: int | None, load: Callable[[], bytes]) -> bytes:
        """Return the content of a copy, which is loaded and kept if it is not there.

        What the disk refuses (it is full) turns the cache off for this process, with a warning, and nothing else.

        Args:
            name: See `copy_name`.
            size: Its bytes; a copy of another length is made anew.
            load: Reads the object.
        """
        path = self._path(name)
        with contextlib.suppress(OSError):  # it is not there, or the disk fails: the object itself is there
            data = path.read_bytes()
            if size is None or len(data) == size:
                _used(path)
                return data
        data = load()
        self._keep(path, len(data), lambda file: file.write(data))
        return data

    def local(self, name: str, size: int, fill: Callable[[BinaryIO], object], where: str) -> Path:
        """Return the path of a copy, for a library that reads files by itself; it should be opened at once.

        Args:
            name: See `copy_name`.
            size: Its bytes.
            fill: Copies the object into a file, part by part: it may be larger than memory.
            where: The object, for messages.

        Raises:
            DatasetError: It does not fit, or cannot be written.
        """
        path = self._path(name)
        with contextlib.suppress(OSError):
            if path.stat().st_size == size:
                _used(path)
                return path
        if size > self.limit:
            raise DatasetError(
                f"{where} has {size} bytes, and the cache {self.limit}: raise data.cache_size (GiB) to several such "
                "files."
            )
        why = self._keep(path, size, fill)
        if why is None and not path.is_file():
            why = "other copies are being written and fill it: raise data.cache_size"
        if why is not None:
            raise DatasetError(f"cannot keep a copy of {where} in {self.folder}: {why}. Choose another data.cache.")
        return path

    def _path(self, name: str) -> Path:
        return self.folder / name[:2] / name

    def _keep(self, path: Path, size: int, fill: Callable[[BinaryIO], object]) -> str | None:
        """Write a copy; returns why there is none."""
        if self._off:
            return "the cache is off, see above"
        if size > self.limit:
            return "it is larger than the cache"
        try:
            self._write(path, size, fill)
        except OSError as error:
            self._off, why = True, error.strerror or str(error)
            print(
                f"warning: the cache {printable(str(self.folder))} cannot be written ({why}): going on without it. "
                "Free some space, or lower data.cache_size.",
                file=sys.stderr,
            )
            return why
        return None

    def _write(self, path: Path, size: int, fill: Callable[[BinaryIO], object]) -> None:
        path.parent.mkdir(exist_ok=True)
        with self._counted() as count:
            if path.is_file() and path.stat().st_size == size:
                return  # another process was faster
            if not count(size):
                return  # what others are writing fills it
            temporary = path.with_name(f"{_TEMPORARY}{uuid.uuid4().hex}")
            # not mkstemp, whose files are for their owner alone: who shares the folder reads by the umask
            number = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
            file = open(number, "r+b")  # noqa: SIM115  # closed below, when the lock is released
            try:
                os.ftruncate(number, size)  # so that whoever counts sees what it will have
            except BaseException:
                file.close()
                temporary.unlink()
                raise
        try:
            with file:
                fill(file)
                file.flush()
                os.fsync(number)
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise

    @contextlib.contextmanager
    def _counted(self) -> Iterator[Callable[[int], bool]]:
        """Hold the lock, and yield a function that takes room of so many bytes, or says that there is none.

        The file of the lock holds the sum of all copies, or more: it is raised before a copy is written, so a process
        that is killed leaves it too high, and it is counted anew when it reaches the limit.
        """
        import fcntl  # imported here because Windows has none, where data sets are read without a cache

        number = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(number, fcntl.LOCK_EX)

            def take(size: int) -> bool:
                text = os.pread(number, 32, 0).strip()
                used = int(text) if text.isdigit() else self.limit  # a new cache, or one whose count is gone
                if used + size > self.limit:
                    used = self._evict(size)
                fits = used + size <= self.limit
                os.pwrite(number, f"{used + size if fits else used:<32}".encode(), 0)
                return fits

            yield take
        finally:
            os.close(number)  # which releases the lock

    def _evict(self, size: int) -> int:
        """Delete what was not read for longest until `size` more bytes fit; returns the bytes that are left."""
        found, used, now = [], 0, time.time()
        for path in self.folder.glob("[0-9a-f][0-9a-f]/*"):
            with contextlib.suppress(OSError):
                status = path.stat()
                abandoned = path.name.startswith(_TEMPORARY) and now - status.st_mtime > ABANDONED
                if abandoned:
                    path.unlink()
                elif _COPY.fullmatch(path.name) or path.name.startswith(_TEMPORARY):
                    used += status.st_size
                    found.append((status.st_mtime_ns, status.st_size, path))
        if used + size <= self.limit:  # the count was too high
            return used
        goal = max(0, min(self.limit - size, int(self.limit * (1 - SPARE))))
        for _, each, path in sorted(found):
            if used <= goal:
                break
            if not path.name.startswith(_TEMPORARY):
                with contextlib.suppress(OSError):
                    path.unlink()
                    used -= each
        return used


def _used(path: Path) -> None:
    """Note that a copy was read now; in a folder that can only be read, nothing is noted."""
    with contextlib.suppress(OSError):
        os.utime(path)
