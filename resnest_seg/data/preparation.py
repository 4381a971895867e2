"""Unpacking the official zip files of a data set: safe paths only, all or nothing."""

from __future__ import annotations

import shutil
import stat
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path, PureWindowsPath

from filelock import FileLock

from resnest_seg.errors import DatasetError
from resnest_seg.files import FULL
from resnest_seg.io.display import progress_bars


def unpack(archive: Path, root: Path, *, inside: str = "", wanted: Sequence[str] = ()) -> int:
    """Unpack a zip file below `root` completely, or change nothing.

    Every name is checked before a file is written, and every file's CRC while it is written. Files are written to a
    staging folder and moved at the end, so that an interruption, a corrupt zip or a full disk leaves no partial result.

    Args:
        archive: The zip file.
        root: Destination; existing files are replaced one by one.
        inside: Unpack only this folder of the zip, without the folder's name.
        wanted: Unpack only names with one of these prefixes, relative to `inside`; empty for all.

    Returns:
        The number of files.

    Raises:
        DatasetError: The file is not a zip, is corrupt, contains links or names that lead out of `root`, or the disk
            is full.
    """
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / f".{archive.name}.lock"):  # two at once would share the staging folder
        return _unpack(archive, root, inside, tuple(wanted))


def _unpack(archive: Path, root: Path, inside: str, wanted: tuple[str, ...]) -> int:
    staging = root / f".{archive.name}.unpacking"
    try:
        with zipfile.ZipFile(archive) as content:
            members = _members(archive, content, inside, wanted)
            shutil.rmtree(staging, ignore_errors=True)
            with progress_bars() as progress:
                bar = progress.add_task(f"unpacking {archive.name}", total=len(members))
                for name, member in members.items():
                    target = staging / name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with content.open(member) as source, open(target, "wb") as file:
                        shutil.copyfileobj(source, file, 1 << 20)
                    progress.advance(bar)
        for name in members:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (staging / name).replace(root / name)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
        raise DatasetError(
            f"{archive} is not a zip file, or a truncated or corrupt one ({error}). Delete it and fetch it again; "
            "nothing was unpacked."
        ) from None
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise DatasetError(
            f"cannot unpack {archive.name} into {root}: {error.strerror}. Free some space there, or choose another "
            "folder, and run this again. Nothing was unpacked."
        ) from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return len(members)


def _members(
    archive: Path, content: zipfile.ZipFile, inside: str, wanted: tuple[str, ...]
) -> dict[str, zipfile.ZipInfo]:
    """Map names below the root to members of the zip, without directories.

    Raises:
        DatasetError: A name leads out of the root, a member is a link, or there is no file to unpack.
    """
    members = {}
    prefix = f"{inside}/" if inside else ""
    for member in content.infolist():
        written = member.orig_filename  # zipfile truncates `filename` at a zero byte
        path = PureWindowsPath(member.filename)  # parses drives, servers and both slashes, on every system
        if path.drive or path.root or ".." in path.parts or "\0" in written:
            raise DatasetError(f"{archive} holds the name {written!r}, which leads out of its folder: not unpacked.")
        if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise DatasetError(f"{archive} holds a link or device, {written!r}: not unpacked.")
        name = path.as_posix()
        if member.is_dir() or not name.startswith(prefix):
            continue
        name = name.removeprefix(prefix)
        if not wanted or name.startswith(wanted):
            members[name] = member
    if not members:
        raise DatasetError(f"{archive} has no file of {inside or 'the data set'}: is it another archive?")
    return members


def missing(root: Path, expected: Mapping[str, int]) -> list[str]:
    """List the missing parts of a data set, one sentence each.

    Args:
        root: Its folder.
        expected: Pattern below it, such as "images/training/*.jpg" -> expected number of files.
    """
    counts = {pattern: sum(1 for path in root.glob(pattern) if not path.name.startswith(".")) for pattern in expected}
    return [
        f"{root / pattern}: {counts[pattern]} files instead of {count}"
        for pattern, count in expected.items()
        if counts[pattern] < count
    ]


def require_complete(root: Path, expected: Mapping[str, int]) -> None:
    """Reject a data set that lacks files.

    Raises:
        DatasetError: Files are missing; the message lists them.
    """
    lacking = missing(root, expected)
    if lacking:
        raise DatasetError(f"the data set is not complete: {'; '.join(lacking)}.")
