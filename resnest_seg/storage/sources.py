"""Storage of a data set's files: a folder, zip files as they were downloaded, or an address such as s3://bucket/mine.

A source lists and reads files by name, with `/` between folders, so that a data set does not know which of them it
reads. Sources can be sent to other processes.
"""

from __future__ import annotations

import os
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

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

    def local(self, name: str) -> Path:
        """Return the path of a file, for a library that reads files by itself.

        Raises:
            DatasetError: The storage has no such files; the message says what to do.
        """
        raise DatasetError(
            f"{self.locate(name)} must be a file of its own, and is not: unpack the data set, or read whole images "
            "(data.window null)."
        )

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

        def refused(error: OSError) -> None:
            """Raise for a folder that cannot be read, whose photos would be missing, unless it is a system's own."""
            hidden = any(
                part.startswith(".") or part == "lost+found"
                for part in Path(error.filename).relative_to(self.root).parts
            )
            if not (hidden or isinstance(error, FileNotFoundError | NotADirectoryError)):
                raise DatasetError(f"cannot read the folder {printable(error.filename)}: {error.strerror}.")

        names: list[str] = []
        above: dict[str, frozenset[tuple[int, int]]] = {}  # a folder and those above it, by device and number
        for parent, folders, files in os.walk(self.root / folder, onerror=refused, followlinks=True):
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

    def local(self, name: str) -> Path:
        """Return a file's path."""
        return self.root / name

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


class JoinedSource(Source):
    """Files of several storages, as if they were one; of files with the same name, the last storage has it.

    Args:
        parts: The storages.
    """

    def __init__(self, parts: Sequence[Source]) -> None:
        self.parts = list(parts)
        self.owners = {name: part for part in self.parts for name in part.names("")}

    def names(self, folder: str) -> list[str]:
        """List the names of all files below a folder, sorted."""
        return sorted(name for name in self.owners if not folder or name.startswith(f"{folder}/"))

    def has(self, name: str) -> bool:
        """True if there is a file of this name."""
        return name in self.owners

    def blocks(self, name: str) -> bool:
        """True if the name is that of a folder with files."""
        return name not in self.owners and any(part.blocks(name) for part in self.parts)

    def read(self, name: str) -> bytes:
        """Read a file; raises DatasetError if it is missing or corrupt."""
        return self.owners.get(name, self.parts[0]).read(name)

    def locate(self, name: str) -> str:
        """Return a file's place for messages."""
        return self.owners.get(name, self.parts[0]).locate(name)
