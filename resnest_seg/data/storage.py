"""Storage of a data set's files: a folder, zip files as they were downloaded, or an address such as s3://bucket/mine.

A source lists and reads files by name, with `/` between folders, so that a data set does not know which of them it
reads. Sources can be sent to other processes.
"""

from __future__ import annotations

import contextlib
import os
import re
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from resnest_seg.errors import DatasetError, printable


class Source(ABC):
    """Protocol of a storage of files by name."""

    @abstractmethod
    def names(self, folder: str) -> list[str]:
        """List the names of all files below a folder, sorted; empty if there is no such folder."""

    @abstractmethod
    def has(self, name: str) -> bool:
        """True if there is a file of this name."""

    @abstractmethod
    def blocks(self, name: str) -> bool:
        """True if the name is that of a folder or a dangling link."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """Read a file.

        Raises:
            DatasetError: The file is missing or corrupt; the message names it.
        """

    @abstractmethod
    def locate(self, name: str) -> str:
        """Return a file's path for messages; bytes that are not UTF-8 are escaped, as `\\xff`."""


class FolderSource(Source):
    """Files in a folder.

    Args:
        root: The folder.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def names(self, folder: str) -> list[str]:
        """List the names of all files below a folder, sorted."""
        names: list[str] = []
        above: dict[str, frozenset[tuple[int, int]]] = {}  # a folder and those above it, by device and number
        for parent, folders, files in os.walk(self.root / folder, followlinks=True):
            status, known = Path(parent).stat(), above.pop(parent, frozenset())
            if (status.st_dev, status.st_ino) in known:  # a link back
                folders.clear()
                continue
            above |= dict.fromkeys((os.path.join(parent, name) for name in folders),  # noqa: PTH118  # as os.walk does
                                   known | {(status.st_dev, status.st_ino)})  # fmt: skip
            within = Path(parent).relative_to(self.root).as_posix()
            names += [name if within == "." else f"{within}/{name}" for name in files]
        return sorted(names)

    def has(self, name: str) -> bool:
        """True if there is a file of this name."""
        return (self.root / name).is_file()

    def blocks(self, name: str) -> bool:
        """True if the name is that of a folder or a dangling link."""
        return not self.has(name) and os.path.lexists(self.root / name)

    def read(self, name: str) -> bytes:
        """Read a file; raises DatasetError if it is missing or corrupt."""
        try:
            return (self.root / name).read_bytes()
        except OSError as error:
            raise DatasetError(f"cannot read {self.locate(name)}: {error.strerror}.") from None

    def locate(self, name: str) -> str:
        """Return a file's path for messages."""
        return printable(str(self.root / name))


class ZipSource(Source):
    """Files in one or several zip files, as if unpacked into one folder.

    Args:
        paths: The zip files.

    Raises:
        DatasetError: A file is not a zip file, or is truncated.
    """

    def __init__(self, paths: Sequence[str | Path]) -> None:
        self.paths = [Path(path) for path in paths]
        self.owners: dict[str, int] = {}
        for index in range(len(self.paths)):
            members = (name for name in self._archive(index).namelist() if not name.endswith("/"))
            self.owners |= dict.fromkeys(members, index)

    def names(self, folder: str) -> list[str]:
        """List the names of all files below a folder, sorted."""
        return sorted(name for name in self.owners if not folder or name.startswith(f"{folder}/"))

    def has(self, name: str) -> bool:
        """True if there is a file of this name."""
        return name in self.owners

    def blocks(self, name: str) -> bool:
        """True if the name is that of a folder with files."""
        return any(file.startswith(f"{name}/") for file in self.owners)

    def read(self, name: str) -> bytes:
        """Read a file; raises DatasetError if it is missing or corrupt."""
        if name not in self.owners:
            raise DatasetError(f"cannot read {self.locate(name)}: there is no such file.")
        try:
            return self._archive(self.owners[name]).read(name)  # zipfile checks its CRC
        except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError, NotImplementedError) as error:
            raise DatasetError(f"cannot read {self.locate(name)}: {error}.") from None

    def locate(self, name: str) -> str:
        """Return a file's path for messages."""
        return printable(f"{self.paths[self.owners.get(name, 0)]}!{name}")

    def _archive(self, index: int) -> zipfile.ZipFile:
        """Return the zip file, opened by this process: processes must not share a file position."""
        if getattr(self, "_owner", None) != os.getpid():
            self._owner, self._open = os.getpid(), dict[int, zipfile.ZipFile]()
        if index not in self._open:
            try:
                self._open[index] = zipfile.ZipFile(self.paths[index])
            except (zipfile.BadZipFile, OSError) as error:
                raise DatasetError(
                    f"cannot read {self.paths[index]}: not a zip file, or a truncated one ({error})."
                ) from None
        return self._open[index]

    def __getstate__(self) -> dict[str, object]:
        return {"paths": self.paths, "owners": self.owners}


class RemoteSource(Source):
    """Files at an address that fsspec knows: s3://, gs://, memory:// and others; listed once.

    Args:
        address: The folder, or a zip file.

    Raises:
        DatasetError: There is no such bucket or file, the storage cannot be reached, or its library is not installed.
    """

    def __init__(self, address: str) -> None:
        self.address, self.shown = address.rstrip("/"), re.sub(r"//[^/@]*@", "//", printable(address.rstrip("/")))
        with self._refusals(self.shown):
            system, folder = self._opened()
            if system.isfile(folder):
                self.address, self._owner = f"zip://::{self.address}", 0
                system, folder = self._opened()
            prefix = f"{folder.strip('/')}/".lstrip("/")
            found = (name.lstrip("/") for name in system.find(folder))
            self._names = sorted(name.removeprefix(prefix) for name in found)
        self._known = frozenset(self._names)
        if not self._names:
            raise DatasetError(f"no files at {self.shown}: is the address right? It must be a folder or a zip file.")

    def names(self, folder: str) -> list[str]:
        """List the names of all files below a folder, sorted."""
        return [name for name in self._names if not folder or name.startswith(f"{folder}/")]

    def has(self, name: str) -> bool:
        """True if there was a file of this name when the storage was listed."""
        return name in self._known

    def blocks(self, name: str) -> bool:
        """True if the name is that of a folder with files."""
        return name not in self._known and any(file.startswith(f"{name}/") for file in self._names)

    def read(self, name: str) -> bytes:
        """Read a file; raises DatasetError if it is missing or the storage fails."""
        with self._refusals(self.locate(name)):
            system, folder = self._opened()
            data: bytes = system.cat_file(f"{folder.rstrip('/')}/{name}" if folder else name)
        return data

    def locate(self, name: str) -> str:
        """Return a file's address for messages, without passwords in it."""
        return printable(f"{self.shown}/{name}")

    def _opened(self) -> tuple[Any, str]:
        """The file system and the folder in it, opened by this process: connections must not be shared."""
        if getattr(self, "_owner", None) != os.getpid():
            import fsspec

            self._system: tuple[Any, str] = fsspec.url_to_fs(self.address)
            self._owner = os.getpid()
        return self._system

    @contextlib.contextmanager
    def _refusals(self, where: str) -> Iterator[None]:
        """Raise what a storage's library raises, which is of any type, as `DatasetError`s."""
        try:
            yield
        except ImportError as error:
            raise DatasetError(
                f"cannot read {where}: {error}. For s3:// addresses: pip install 'resnest-seg[remote]'."
            ) from None
        except FileNotFoundError as error:
            reason = "" if "bucket" not in str(error) else f" ({error})"
            raise DatasetError(f"cannot read {where}: there is no such file or folder{reason}.") from None
        except Exception as error:
            reason = re.sub(r"[^\s/@\"]+@", "", " ".join(str(error).split())) or "no reason given"  # no passwords
            kind = type(error).__name__
            raise DatasetError(f"cannot read {where}: {reason} ({kind}). Are address and credentials right?") from None


def is_address(root: str | Path) -> bool:
    """True for the address of a remote storage, such as s3://bucket/mine, instead of a path."""
    return isinstance(root, str) and re.match(r"[a-z][a-z0-9+.-]+:(//|:)", root) is not None


def base_of(source: Source, folder: str) -> str:
    """Return the prefix of `folder` in a zip file that wraps everything in one top folder: "" or "top/"."""
    if not isinstance(source, ZipSource) or source.names(folder):
        return ""
    inside = (name.partition(f"/{folder}/")[0] for name in source.names("") if f"/{folder}/" in name)
    shortest = min(inside, key=len, default=None)
    return "" if shortest is None else f"{shortest}/"


def open_source(root: str | Path, *, zips: Sequence[str]) -> Source:
    """Open the storage at `root`.

    Args:
        root: A folder, a zip file, a folder with the official zip files in it, or an address such as s3://bucket/mine.
        zips: Names of the official zip files; where the folder holds all of them, they are read.

    Raises:
        DatasetError: A file that is no zip file, a name that no file can have, or an address that cannot be read.
    """
    if is_address(root):
        return RemoteSource(str(root))
    root = Path(root)
    if "\0" in str(root):
        raise DatasetError(f"no data set can be at {printable(str(root))}: the path holds a zero byte.")
    if root.is_file():
        return ZipSource([root])
    inside = [root / name for name in zips]
    if inside and all(path.is_file() for path in inside):
        return ZipSource(inside)
    return FolderSource(root)
