"""Files at an address that fsspec knows, such as s3://bucket/mine: of a data set, or one by one."""

from __future__ import annotations

import functools
import io
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from resnest_seg.errors import DatasetError, printable
from resnest_seg.files import naming
from resnest_seg.storage.cache import Cache, copy_name
from resnest_seg.storage.retries import (
    LIMITS,
    WHOLE_FILES_ONLY,
    Limits,
    ShortBodyError,
    answer_of,
    persist,
    without_secrets,
)
from resnest_seg.storage.sources import Source


class Entry(NamedTuple):
    """A file as a store lists it.

    Attributes:
        path: Its path in the store, without the scheme: "bucket/mine/a.png".
        size: Its bytes, where the store says so.
        tag: What changes with its content: an ETag, a generation or a time; None where the store has none.
    """

    path: str
    size: int | None
    tag: str | None


class Store:
    """The file system behind an address; its requests are tried again while the reason of a failure passes.

    Args:
        address: An address of a folder or file.
        limits: How often and how long it is asked.

    Attributes:
        shown: The address without passwords, for messages.
        folder: The path in the store that the address names; None until it was opened once.
    """

    def __init__(self, address: str, *, limits: Limits = LIMITS) -> None:
        self.address, self.limits, self.shown = address, limits, without_secrets(address)
        self.folder: str | None = None

    def __getstate__(self) -> dict[str, object]:
        return {key: value for key, value in vars(self).items() if not key.startswith("_")}

    def opened(self) -> tuple[Any, str]:
        """The file system and the path in it, opened by this process: connections must not be shared.

        Raises:
            Exception: Of any type: of fsspec and the libraries below it.
        """
        if getattr(self, "_owner", None) != os.getpid():
            import fsspec

            scheme, _, rest = self.address.partition("://")
            if _CHAIN.search(self.address):  # zip://::s3://bucket/mine.zip
                inner = _options("s3") | {"s3": _options("s3")["s3"] | {"default_block_size": 1 << 18}}
                self._system: tuple[Any, str] = fsspec.url_to_fs(self.address, skip_instance_cache=True, **inner)
            elif "::" in rest:  # a name, which url_to_fs would take for a chain
                kind = fsspec.get_filesystem_class(scheme)
                options = kind._get_kwargs_from_urls(self.address) | _options(scheme).get(scheme, {})
                system = fsspec.filesystem(scheme, **options)
                self._system = system, system._strip_protocol(self.address)
            else:
                self._system = fsspec.url_to_fs(self.address, **_options(scheme).get(scheme, {}))
            if hasattr(self._system[0], "call_s3"):
                self._system[0].retries = 1  # the tries are counted here
            _hold(self._system[0])
            self._owner: int | None = os.getpid()
            self.folder = self._system[1]
        return self._system

    def entries(self) -> Iterator[Entry]:
        """List the files below the address; if it is a file, itself. S3 is listed page by page of 1,000, in order.

        Raises:
            DatasetError: The store cannot be reached, or refuses. A missing folder is an empty one.
        """
        system, folder = persist(self.opened, self.shown, verb="list", limits=self.limits)
        found = False
        for page in self._pages(system, folder):
            for entry in page:
                found = True
                yield entry
        if not found and folder.strip("/"):
            yield from persist(lambda: _itself(system, folder), self.shown, verb="list", limits=self.limits)

    def _pages(self, system: Any, folder: str) -> Iterator[list[Entry]]:
        if not hasattr(system, "call_s3"):
            system.invalidate_cache()
            if _has_own_find(system):
                yield persist(lambda: _found(system, folder), self.shown, verb="list", limits=self.limits)
            else:
                yield self._walked(system, folder)
            return
        bucket, key, _ = system.split_path(folder)
        options = {"Bucket": bucket, "Prefix": f"{key.rstrip('/')}/" if key else ""}
        while True:
            page = persist(
                lambda asked=dict(options): system.call_s3("list_objects_v2", **asked),  # type: ignore[misc]
                self.shown, verb="list", limits=self.limits)  # fmt: skip
            yield [
                Entry(f"{bucket}/{each['Key']}", each["Size"], each.get("ETag"))
                for each in page.get("Contents", ())
                if not each["Key"].endswith("/")  # what some tools write for a folder
            ]
            if not page.get("IsTruncated"):
                return
            options["ContinuationToken"] = page["NextContinuationToken"]

    def _walked(self, system: Any, folder: str) -> list[Entry]:
        """The files below a folder of a store that lists one folder at a time, sorted by their paths.

        A folder that cannot be listed is an error; fsspec's own `find` would leave out what is in it.
        """
        found: dict[str, Entry] = {}
        folders, seen, linked = [folder], {folder}, list[str]()
        while folders:
            path = folders.pop()
            infos = persist(lambda at=path: _inside(system, at),  # type: ignore[misc]
                            self.locate(path), verb="list", limits=self.limits)  # fmt: skip
            for info in infos:
                name = info["name"].rstrip("/")
                if info["type"] == "file":
                    found[info["name"]] = _entry(info)
                elif info["type"] == "directory" and info.get("islink", False):
                    linked.append(name)
                elif info["type"] == "directory" and name not in seen and not name.endswith("/."):
                    seen.add(name)
                    folders.append(name)
        if linked:
            more = f" (and {len(linked) - 1} more)" if len(linked) > 1 else ""
            print(
                f"warning: {self.locate(linked[0])} is a link to a folder{more}: what is in it is not read here, as it "
                "could lead round in circles.",
                file=sys.stderr,
            )
        return [found[path] for path in sorted(found)]

    def read(self, path: str, *, size: int | None = None, tag: str | None = None, where: str | None = None) -> bytes:
        """Read a file.

        Args:
            path: Its path in the store.
            size: Its bytes by the listing; another length is tried again, and then an error.
            tag: Its tag by the listing; S3 is asked for that content only.
            where: Its name in messages; None is its address.

        Raises:
            DatasetError: The file is missing, was changed, or the store fails.
        """
        file = io.BytesIO()
        self.copy(path, file, size=size, tag=tag, where=where)
        return file.getvalue()

    def copy(
        self, path: str, file: BinaryIO, *, size: int | None = None, tag: str | None = None, where: str | None = None
    ) -> None:
        """Copy a file of the store into an open one, part by part where the store allows that; see `read`."""

        def whole() -> None:
            system, _ = self.opened()
            file.seek(0)
            try:
                came = _copied(system, path, file, tag, self.limits.seconds(size))
            except Exception:
                if not getattr(system, "async_impl", False):
                    self._owner = None  # such as a zip file, whose state is not known now
                raise
            if size is not None and came != size:
                raise ShortBodyError(
                    f"{came} bytes came, and the listing says {size}: it was cut off, or changed since then. If it was "
                    "changed, start again, so that the new files are listed"
                )
            file.truncate(came)

        persist(whole, where or self.locate(path), limits=self.limits)

    def read_range(
        self, path: str, start: int, stop: int, *, tag: str | None = None, where: str | None = None
    ) -> bytes:
        """Read the bytes start..stop - 1 of a file by one request; fewer where the file ends before.

        Args:
            path: Its path in the store.
            start: The first byte.
            stop: The byte behind the last.
            tag: Its tag by the listing; S3 is asked for that content only.
            where: Its name in messages; None is its address.

        Raises:
            DatasetError: The file is missing, was changed, or the store fails.
        """

        def part() -> bytes:
            system, _ = self.opened()
            buffer = io.BytesIO()
            try:
                _copied(system, path, buffer, tag, self.limits.seconds(stop - start), (start, stop))
            except Exception as error:
                if answer_of(error)[0] == 416:  # it ends before the start
                    return b""
                raise
            if buffer.tell() > stop - start:
                raise DatasetError(f"cannot read {where or self.locate(path)}: {WHOLE_FILES_ONLY}")
            return buffer.getvalue()

        return persist(part, where or self.locate(path), limits=self.limits)

    def write(self, path: str, data: bytes) -> None:
        """Write a file at once: a reader sees the old one or the new one.

        Raises:
            DatasetError: The store refuses or fails.
            OSError: It is a disk of this machine, and full.
        """
        where = self.locate(path)
        with naming(where):
            persist(lambda: self.opened()[0].pipe_file(path, data), where, verb="write", limits=self.limits)

    def locate(self, path: str) -> str:
        """Return the address of a path in the store, for messages."""
        return without_secrets(self.address_of(path))

    def address_of(self, path: str) -> str:
        """Return the address of a path in the store, with the host, the account or the archive of the store's own."""
        scheme, folder = self.address.partition("://")[0], self.folder
        first, _, inner = self.address.partition("::")
        if path == folder:
            return self.address
        if _CHAIN.search(self.address) and ("://" in first or not folder):  # the path is one in the archive
            return f"{first.partition('://')[0]}://{path}::{inner}"
        if folder is not None and (not folder or path.startswith(f"{folder.rstrip('/')}/")):
            joint = "" if self.address.endswith("/") else "/"
            return self.address + joint + path[len(folder) :].removeprefix("/")
        if path.startswith(f"{scheme}://"):  # as https has them
            return path
        return f"{scheme}://{path if scheme in ('file', 'local') else path.lstrip('/')}"


_CHAIN = re.compile(r"::[a-z][a-z0-9+.-]*://")
"""What follows the name in an archive: the address of the archive. Names themselves may hold :: or ://."""


def _hold(system: Any) -> None:
    """Keep a file system alive, or the one that it reads an archive from: fsspec drops it in a process that is forked.

    It would be closed there, with connections that are those of this process.
    """
    system = getattr(getattr(system, "fo", None), "fs", system)
    if all(system is not other for other in _held()):
        _held().append(system)


@functools.cache
def _held() -> list[Any]:
    return []


def _options(scheme: str) -> dict[str, dict[str, Any]]:
    """Options of a file system by scheme, unless the user has set them (fsspec's config)."""
    from fsspec.config import conf

    ours: dict[str, Any] = {"config_kwargs": {"retries": {"total_max_attempts": 1}}, "max_concurrency": 1}
    if scheme not in ("s3", "s3a"):
        return {}
    return {scheme: {key: value for key, value in ours.items() if key not in conf.get("s3", {})}}


def _has_own_find(system: Any) -> bool:
    """True if a file system lists all files below a folder in a way of its own, not folder by folder."""
    from fsspec.asyn import AsyncFileSystem
    from fsspec.spec import AbstractFileSystem

    kind = type(system)
    inherited = kind.find is AbstractFileSystem.find
    return not (inherited and getattr(kind, "_find", AsyncFileSystem._find) is AsyncFileSystem._find)


def _inside(system: Any, folder: str) -> list[dict[str, Any]]:
    """What is in a folder, of links what they lead to; nothing if there is no such folder, or a file in its place."""
    try:
        infos = system.ls(folder, detail=True)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except PermissionError:
        name = folder.rpartition("/")[2]
        if name.startswith(".") or name == "lost+found":  # a system's own
            return []
        raise
    return [_linked(system, info) if info.get("islink") or info["type"] == "link" else info for info in infos]


def _linked(system: Any, link: dict[str, Any]) -> dict[str, Any]:
    """A link as what it leads to; one that leads nowhere is a file, so that reading it says so."""
    try:
        return {**system.info(link["name"]), "islink": True}
    except FileNotFoundError:
        return {"name": link["name"], "type": "file"}


def _found(system: Any, folder: str) -> list[Entry]:
    """The files below a folder of a file system that has its own `find`; none if there is no such folder."""
    try:
        infos = system.find(folder, detail=True)
    except FileNotFoundError:
        return []
    return [_entry(infos[path]) for path in sorted(infos) if infos[path]["type"] == "file"]


def _itself(system: Any, path: str) -> list[Entry]:
    try:
        info = system.info(path)
    except FileNotFoundError:
        return []
    return [_entry(info)] if info["type"] == "file" else []


def _entry(info: dict[str, Any]) -> Entry:
    names = ("ETag", "etag", "generation", "LastModified", "last_modified", "updated", "mtime", "created")
    tag = next((str(info[name]) for name in names if info.get(name) is not None), None)
    return Entry(info["name"], info.get("size"), tag)


PART = 1 << 20
"""Bytes that are copied at once."""


def _copied(
    system: Any, path: str, file: BinaryIO, tag: str | None, limit: float | None, span: tuple[int, int] | None = None
) -> int:
    """Copy a file of a store, or a span of its bytes, within `limit` seconds where that can be limited.

    Returns:
        The bytes that came.
    """
    if hasattr(system, "call_s3"):
        return _copied_from_s3(system, path, file, tag, limit, span)
    start, stop = span or (None, None)
    if getattr(system, "async_impl", False):
        return file.write(system.cat_file(path, start=start, end=stop, timeout=limit))
    if span is not None:
        return file.write(system.cat_file(path, start=start, end=stop))
    with system.open(path, "rb") as opened:
        shutil.copyfileobj(opened, file, PART)
    return file.tell()


def _copied_from_s3(
    system: Any, path: str, file: BinaryIO, tag: str | None, limit: float | None, span: tuple[int, int] | None
) -> int:
    """Copy an object of S3 by one request (cat_file makes two), and only if its content is still that of the tag."""
    from fsspec.asyn import sync

    bucket, key, version = system.split_path(path)
    condition = {} if tag is None else {"IfMatch": tag}
    if version:
        condition["VersionId"] = version
    if span is not None:
        condition["Range"] = f"bytes={span[0]}-{span[1] - 1}"

    async def body() -> int:
        answer, came = await system._call_s3("get_object", Bucket=bucket, Key=key, **condition), 0
        async with answer["Body"] as stream:
            while part := await stream.read(PART):
                came += file.write(part)
        if came != answer["ContentLength"]:
            raise ShortBodyError(f"{came} of {answer['ContentLength']} bytes came")
        return came

    came: int = sync(system.loop, body, timeout=limit)
    return came


class RemoteSource(Source):
    """Files at an address that fsspec knows: s3://, gs://, memory:// and others; listed once, when it is opened.

    Args:
        address: The folder, or a zip file.
        cache: Where copies of what is read are kept; None reads everything from the store each time.
        limits: How often and how long the store is asked.

    Raises:
        DatasetError: There is no such bucket or file, the storage cannot be reached, or its library is not installed.
    """

    def __init__(self, address: str, *, cache: Cache | None = None, limits: Limits = LIMITS) -> None:
        self.store, self.cache = Store(_plain(address), limits=limits), cache
        self.shown = self.store.shown
        entries = list(self.store.entries())
        _, self.folder = self.store.opened()
        if [entry.path for entry in entries] == [self.folder]:  # a file
            self.store, tag = Store(f"zip://::{_plain(address)}", limits=limits), entries[0].tag
            self.store.shown, self.folder = self.shown, ""
            entries = [entry._replace(tag=tag) for entry in self.store.entries()]
        skipped = len(f"{self.folder.rstrip('/')}/") if self.folder else 0
        self._entries = {entry.path[skipped:]: (entry.size, entry.tag) for entry in entries}
        if not self._entries:
            raise DatasetError(f"no files at {self.shown}: is the address right? It must be a folder or a zip file.")

    def names(self, folder: str) -> list[str]:
        """List the names of all files below a folder, sorted."""
        return sorted(name for name in self._entries if not folder or name.startswith(f"{folder}/"))

    def has(self, name: str) -> bool:
        """True if there was a file of this name when the storage was listed."""
        return name in self._entries

    def blocks(self, name: str) -> bool:
        """True if the name is that of a folder with files."""
        return name not in self._entries and any(file.startswith(f"{name}/") for file in self._entries)

    def read(self, name: str) -> bytes:
        """Read a file; raises DatasetError if it is missing, was changed since the listing, or the storage fails."""
        size, tag = self._listed(name)
        if self.cache is None or tag is None:
            return self._load(name)
        return self.cache.read(copy_name(f"{self.store.address}/{name}", size, tag), size, lambda: self._load(name))

    def read_range(self, name: str, start: int, stop: int, *, where: str | None = None) -> bytes:
        """Read the bytes start..stop - 1 of a file by one request; fewer where the file ends before.

        Args:
            name: The file.
            start: The first byte.
            stop: The byte behind the last.
            where: Its name in messages; None is its address.

        Raises:
            DatasetError: The file is missing, was changed since the listing, or the storage fails.
        """
        size, tag = self._listed(name)
        path = f"{self.folder.rstrip('/')}/{name}" if self.folder else name

        def load() -> bytes:
            return self.store.read_range(path, start, stop, tag=tag, where=where or self.locate(name))

        if self.cache is None or tag is None:
            return load()
        known = copy_name(f"{self.store.address}/{name}#{start}-{stop}", size, tag)
        return self.cache.read(known, stop - start, load)

    def size(self, name: str) -> int | None:
        """Bytes of a file by the listing; None where it does not say."""
        return self._listed(name)[0]

    def inner(self, name: str) -> RemoteSource:
        """Open a zip file of this storage."""
        return RemoteSource(f"{self.store.address}/{name}", cache=self.cache, limits=self.store.limits)

    def local(self, name: str) -> Path:
        """Return the path of a copy of a file; needs a cache."""
        size, tag = self._listed(name)
        if self.cache is None:
            raise DatasetError(
                f"{self.locate(name)} must be read from a file on this machine: say where copies are kept, with "
                "data.cache FOLDER and data.cache_size (GiB)."
            )
        if size is None or tag is None:
            raise DatasetError(
                f"{self.locate(name)} must be read from a file on this machine, and its storage lists no sizes and "
                "times, so no copy of it can be kept: download the data set."
            )

        def fill(file: BinaryIO) -> None:
            self.store.copy(self._path(name), file, size=size, tag=tag, where=self.locate(name))

        return self.cache.local(copy_name(f"{self.store.address}/{name}", size, tag), size, fill, self.locate(name))

    def locate(self, name: str) -> str:
        """Return a file's address for messages, without passwords in it."""
        return printable(f"{self.shown}/{name}" if name else self.shown)

    def _listed(self, name: str) -> tuple[int | None, str | None]:
        """Size and tag of a file by the listing."""
        if name not in self._entries:
            raise DatasetError(
                f"cannot read {self.locate(name)}: there is no such file (in the listing of the storage)."
            )
        return self._entries[name]

    def _load(self, name: str) -> bytes:
        size, tag = self._entries[name]
        return self.store.read(self._path(name), size=size, tag=tag, where=self.locate(name))

    def _path(self, name: str) -> str:
        """The path of a file in the store."""
        return f"{self.folder.rstrip('/')}/{name}" if self.folder else name


def _plain(address: str) -> str:
    """An address without a closing slash; s3:// itself stays, for the message that there is no bucket."""
    return address if address.endswith("://") else address.rstrip("/")


def is_address(root: str | Path) -> bool:
    """True for the address of a remote storage, such as s3://bucket/mine, instead of a path."""
    return isinstance(root, str) and re.match(r"[a-z][a-z0-9+.-]+:(//|:)", root) is not None


def read_address(address: str) -> bytes:
    """Read the file at an address.

    Raises:
        DatasetError: It is missing, or the store fails or refuses.
    """
    store = Store(address)
    _, path = persist(store.opened, store.shown)
    return store.read(path)


def list_addresses(address: str, suffixes: Sequence[str] = ()) -> Iterator[str]:
    """List the addresses of the files below an address, or itself if it is a file; S3's page by page, in order.

    Args:
        address: A folder or a file.
        suffixes: Endings in lower case, such as ".jpg"; files with others are left out. Without any, all are listed.

    Raises:
        DatasetError: The store cannot be reached or refuses. Nothing is listed of a folder that does not exist.
    """
    store = Store(_plain(address))
    for entry in store.entries():
        if not suffixes or entry.path.lower().endswith(tuple(suffixes)):
            yield store.address_of(entry.path)


def write_address(address: str, data: bytes) -> None:
    """Write a file to an address at once: whoever reads it sees the old content or the new one.

    Raises:
        DatasetError: The store fails or refuses.
    """
    store = Store(address)
    _, path = persist(store.opened, store.shown, verb="write")
    store.write(path, data)


def remove_address(address: str) -> None:
    """Remove the file at an address, if there is one.

    Raises:
        DatasetError: The store fails or refuses.
    """
    store = Store(address)
    system, path = persist(store.opened, store.shown, verb="remove")

    def removed() -> None:
        try:
            system.rm_file(path)
        except FileNotFoundError:
            return

    persist(removed, store.shown, verb="remove")
