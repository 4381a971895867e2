"""Where the outputs of a bulk job go: a folder, or an address such as s3://bucket/out."""

from __future__ import annotations

import contextlib
import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from resnest_seg.errors import printable
from resnest_seg.files import TEMPORARY, atomic_write, check_output_folder, naming
from resnest_seg.storage.remote import is_address, list_addresses, read_address, remove_address, write_address
from resnest_seg.storage.retries import without_secrets


class Destination(ABC):
    """Files by name, with `/` between folders. A file that is written is there as a whole, or not at all.

    Attributes:
        shown: The place in messages, without passwords.
        remote: Every look and every write is a request.
    """

    shown: str
    remote = False

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
    def append(self, name: str, lines: Sequence[str]) -> None:
        """Add lines to a file that only this process writes; where files cannot grow, in a file of their own."""

    def tidy(self, places: Collection[str]) -> None:  # noqa: B027  # where writing leaves nothing
        """Remove what killed processes left of outputs at these places, which no process is writing now."""


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

    def append(self, name: str, lines: Sequence[str]) -> None:
        """Add lines by one write each, behind those of before."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with naming(path), open(path, "ab", buffering=0) as file:
            for line in lines:
                data = f"{line}\n".encode()
                while data:  # a disk that becomes full takes a part, and refuses the rest
                    data = data[file.write(data) :]

    def tidy(self, places: Collection[str]) -> None:
        """Remove temporary files of `atomic_write`."""
        names: dict[str, set[str]] = {}
        for place in places:
            folder, _, name = place.rpartition("/")
            names.setdefault(folder, set()).add(name)
        for folder, mine in names.items():
            for path in (self.root / folder).glob(".*.tmp*"):
                match = TEMPORARY.fullmatch(path.name)
                if match and any(match["stem"].removesuffix(end) in mine for end in ("_labels", "_overlay", "_scores")):
                    path.unlink(missing_ok=True)


class AddressDestination(Destination):
    """A folder at an address, such as s3://bucket/out. Files are written here and sent as they are finished.

    Args:
        address: The folder.
    """

    remote = True

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        self.shown, self._count = without_secrets(self.address), 0

    def write(self, name: str, data: bytes) -> None:
        """Write a file by one request; raises DatasetError if the store refuses."""
        write_address(f"{self.address}/{name}", data)

    def read(self, name: str) -> bytes | None:
        """Read a file; None if there is none."""
        return read_address(f"{self.address}/{name}") if self.has(name) else None

    def names(self, folder: str) -> list[str]:
        """The names of the files in a folder."""
        found = (address.rpartition("/")[2] for address in list_addresses(f"{self.address}/{folder}"))
        return sorted(f"{folder}/{name}" for name in found)

    def has(self, name: str) -> bool:
        """True if there is such a file."""
        return next(iter(list_addresses(f"{self.address}/{name}")), None) is not None

    def remove(self, name: str) -> None:
        """Remove a file, if there is one."""
        remove_address(f"{self.address}/{name}")

    def empty(self) -> bool:
        """True if nothing lies below the address."""
        return next(iter(list_addresses(self.address)), None) is None

    @contextlib.contextmanager
    def files(self, names: Sequence[str]) -> Iterator[list[Path]]:
        """Paths in a temporary folder, whose files are sent at the end."""
        with tempfile.TemporaryDirectory(prefix="resnest_seg_") as folder:
            # numbers before the endings, by which the writers choose their formats
            paths = [Path(folder) / f"{number}{Path(name).suffix}" for number, name in enumerate(names)]
            yield paths
            for name, path in zip(names, paths, strict=True):
                if path.is_file():
                    self.write(name, path.read_bytes())

    def append(self, name: str, lines: Sequence[str]) -> None:
        """Write the lines into an object of their own: objects cannot grow."""
        self._count += 1
        stem, dot, suffix = name.rpartition(".")
        self.write(f"{stem}-{self._count:06d}{dot}{suffix}", "".join(f"{line}\n" for line in lines).encode())


def open_destination(output: str) -> Destination:
    """Open the place that --output names.

    Raises:
        ConfigError: It cannot be written to.
    """
    if is_address(output):
        return AddressDestination(output)
    return FolderDestination(output)
