"""Where the outputs of a bulk job go: a folder, or an address such as s3://bucket/out."""

from __future__ import annotations

import contextlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path

from resnest_seg.errors import ConfigError, printable
from resnest_seg.files import atomic_write, check_output_folder
from resnest_seg.storage.remote import is_address


class Destination(ABC):
    """Files by name, with `/` between folders. A file that is written is there as a whole, or not at all.

    Attributes:
        shown: The place in messages, without passwords.
    """

    shown: str

    @abstractmethod
    def write(self, name: str, data: bytes) -> None:
        """Write a file; replaces one that exists.

        Raises:
            OSError: It cannot be written, or the disk is full.
        """

    @abstractmethod
    def read(self, name: str) -> bytes | None:
        """Read a file; None if there is none."""

    @abstractmethod
    def names(self, folder: str) -> list[str]:
        """The names of the files in a folder, with the folder, sorted; not those that begin with a dot."""

    @abstractmethod
    def has(self, name: str) -> bool:
        """True if there is such a file."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file, if there is one."""

    @abstractmethod
    def empty(self) -> bool:
        """True if it holds no files."""

    @abstractmethod
    def files(self, names: Sequence[str]) -> contextlib.AbstractContextManager[list[Path]]:
        """Paths at which files of these names are to be written, atomically each; at the end they are at their place.

        If the body raises, nothing has to be there.
        """

    @abstractmethod
    def append(self, name: str, lines: Sequence[str]) -> str:
        """Add lines to a file that only this process writes; returns the name of the file that holds them."""


class FolderDestination(Destination):
    """A folder on this machine, or one that machines share.

    Args:
        root: The folder; it is made when the first file is written.

    Raises:
        ConfigError: It is a file, or cannot be written to.
    """

    def __init__(self, root: str | Path) -> None:
        self.root, self.shown = Path(root), printable(str(root))
        check_output_folder(self.root)

    def write(self, name: str, data: bytes) -> None:
        """Write a file by a temporary one beside it."""
        with atomic_write(self.root / name) as temporary:
            temporary.write_bytes(data)

    def read(self, name: str) -> bytes | None:
        """Read a file; None if there is none."""
        try:
            return (self.root / name).read_bytes()
        except FileNotFoundError:
            return None

    def names(self, folder: str) -> list[str]:
        """The names of the files in a folder."""
        try:
            with os.scandir(self.root / folder) as entries:
                return sorted(
                    f"{folder}/{entry.name}" for entry in entries if entry.is_file() and not entry.name.startswith(".")
                )
        except FileNotFoundError:
            return []

    def has(self, name: str) -> bool:
        """True if there is such a file."""
        return os.path.lexists(self.root / name)

    def remove(self, name: str) -> None:
        """Remove a file, if there is one."""
        (self.root / name).unlink(missing_ok=True)

    def empty(self) -> bool:
        """True if there is no folder, or nothing in it but names that begin with a dot."""
        try:
            with os.scandir(self.root) as entries:
                return all(entry.name.startswith(".") for entry in entries)
        except FileNotFoundError:
            return True

    @contextlib.contextmanager
    def files(self, names: Sequence[str]) -> Iterator[list[Path]]:
        """The paths themselves."""
        yield [self.root / name for name in names]

    def append(self, name: str, lines: Sequence[str]) -> str:
        """Add lines by one write each, behind those of before."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        opened = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            for line in lines:
                data = f"{line}\n".encode()
                while data:  # a disk that becomes full takes a part, and refuses the rest
                    data = data[os.write(opened, data) :]
        finally:
            os.close(opened)
        return name


def open_destination(output: str) -> Destination:
    """Open the place that --output names.

    Raises:
        ConfigError: It cannot be written to.
    """
    if is_address(output):
        raise ConfigError(f"--output {printable(output)}: results of a bulk job go into a folder.")
    return FolderDestination(output)
