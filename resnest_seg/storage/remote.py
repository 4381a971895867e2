"""Files of a data set at an address that fsspec knows, such as s3://bucket/mine."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from resnest_seg.errors import DatasetError, printable
from resnest_seg.storage.sources import Source


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
