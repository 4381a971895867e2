"""Which storage a root names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from resnest_seg.errors import DatasetError, printable
from resnest_seg.storage.remote import RemoteSource, is_address
from resnest_seg.storage.sources import FolderSource, JoinedSource, Source, ZipSource


def base_of(source: Source, folder: str) -> str:
    """Return the prefix of `folder` in a zip file that wraps everything in one top folder: "" or "top/"."""
    if not isinstance(source, ZipSource) or source.names(folder):
        return ""
    inside = (name.partition(f"/{folder}/")[0] for name in source.names("") if f"/{folder}/" in name)
    shortest = min(inside, key=len, default=None)
    return "" if shortest is None else f"{shortest}/"


def open_source(root: str | Path | Source, *, zips: Sequence[str]) -> Source:
    """Open the storage at `root`.

    Args:
        root: A folder, a zip file, a folder with the official zip files in it, or an address such as s3://bucket/mine;
            or a storage that is open.
        zips: Names of the official zip files; where the folder, or that at the address, holds all of them, they are
            read.

    Raises:
        DatasetError: A file that is no zip file, a name that no file can have, or an address that cannot be read.
    """
    if isinstance(root, Source) or is_address(root):
        source = root if isinstance(root, Source) else RemoteSource(str(root))
        if isinstance(source, RemoteSource) and zips and all(map(source.has, zips)):
            return JoinedSource([source.inner(name) for name in zips])
        return source
    root = Path(root)
    if "\0" in str(root):
        raise DatasetError(f"no data set can be at {printable(str(root))}: the path holds a zero byte.")
    if root.is_file():
        return ZipSource([root])
    inside = [root / name for name in zips]
    if inside and all(path.is_file() for path in inside):
        return ZipSource(inside)
    return FolderSource(root)
