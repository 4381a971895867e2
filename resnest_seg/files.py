"""Atomic file writing: a reader, or a restart after a crash, never meets half a file. Names of outputs."""

from __future__ import annotations

import collections
import contextlib
import hashlib
import os
import re
import stat
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from resnest_seg.errors import ConfigError, printable

TEMPORARY = re.compile(r"\.(?P<stem>.+)\.\d+\.tmp(\.\w+)?")
"""Names of `atomic_write`'s temporary files."""

LONGEST_PART = 200
"""Bytes of a part of a place: file systems take 255, and an ending follows."""

_HARMFUL = re.compile(r"[\x00-\x1f\x7f:\\]")  # to some system a drive, a folder, or the end of the name


def result_places(names: Mapping[str, str], *, endings: Sequence[str]) -> dict[str, Path]:
    """Where the results of samples go: relative paths that lead out of no folder, no two of them to the same file.

    The place of a sample is its name without the ending. Where that would give two samples one file, also on a file
    system that does not tell upper from lower case, or a file the name of a folder, the ending stays in the name, and
    if that is not enough, a hash follows. What is dangerous on any system becomes an underscore: absolute paths,
    `..`, drives (`C:`), backslashes, control characters and bytes that are no UTF-8. Long parts are cut, with a hash.

    Args:
        names: What identifies a sample -> its name, such as its path below the root of its data set, with `/`.
        endings: All that is appended to a place for a file: (".png",).

    Returns:
        Identity -> place without ending. It depends on the set of the names, not on their order.
    """
    tries = dict.fromkeys(names, 0)
    while True:
        places = {identity: _place(identity, names[identity], number) for identity, number in tries.items()}
        files = {
            identity: [_folded(place.with_name(place.name + end)) for end in endings]
            for identity, place in places.items()
        }
        counts = collections.Counter(file for group in files.values() for file in group)
        folders = {_folded(parent) for place in places.values() for parent in place.parents}
        clashes = [
            identity for identity, group in files.items() if any(counts[file] > 1 or file in folders for file in group)
        ]
        if not clashes:
            return {identity: Path(place) for identity, place in places.items()}
        for identity in clashes:
            tries[identity] += 1


def _place(identity: str, name: str, number: int) -> PurePosixPath:
    """The place that is tried as the `number`th."""
    *folders, last = [part for part in name.split("/") if part not in ("", ".")] or ["unnamed"]
    if number == 0:
        last = PurePosixPath(last).stem
    mark = "" if number < 2 else f"-{_digest(identity)[: 8 * (number - 1)]}"
    return PurePosixPath(*map(_part, folders), _part(last) + mark)


def _part(name: str) -> str:
    """One part of a path that is a plain name on every system."""
    plain = _HARMFUL.sub("_", printable(name))
    if not plain.strip(". "):  # "..", and what some system takes for it
        plain = "_" * len(plain)
    data = plain.encode()
    if len(data) <= LONGEST_PART:
        return plain
    return f"{data[: LONGEST_PART - 20].decode(errors='ignore')}-{_digest(name)[:16]}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def _folded(path: PurePosixPath) -> str:
    """What two paths share that some file system takes for the same."""
    return unicodedata.normalize("NFC", str(path)).casefold()


def check_output_file(path: str | Path, *, what: str, overwrite: bool, option: str = "--output") -> None:
    """Refuse a file that could not be written, before the work whose result it takes.

    Args:
        path: The file.
        what: Its name in errors: "report".
        overwrite: Whether it may exist.
        option: What names it on the command line.

    Raises:
        ConfigError: It exists, is a folder or a device, or lies where nothing can be written.
    """
    path, mode = Path(path), None
    with _refusals(path, option), contextlib.suppress(FileNotFoundError, NotADirectoryError):
        mode = path.stat().st_mode
    if mode is not None and stat.S_ISDIR(mode):
        raise ConfigError(f"cannot write the {what} to {path}: it is a folder. Choose a file with {option}.")
    if mode is not None and not stat.S_ISREG(mode):
        raise ConfigError(f"cannot write the {what} to {path}: it is no regular file. Choose another {option}.")
    if mode is not None and not overwrite:
        raise ConfigError(f"{what} {path} already exists. Choose another {option}, or pass --overwrite.")
    check_output_folder(path.parent, option=option)


def check_output_folder(folder: str | Path, *, option: str = "--output") -> None:
    """Refuse a folder that exists as something else, or could not be made or written to.

    Raises:
        ConfigError: Says why.
    """
    folder = Path(folder)
    with _refusals(folder, option), contextlib.suppress(FileNotFoundError, NotADirectoryError):
        folder.stat()
    nearest = next(place for place in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(place))
    if not nearest.is_dir():
        raise ConfigError(f"cannot write to {folder}: {nearest} is not a folder. Choose another {option}.")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ConfigError(f"cannot write to {folder}: no permission in {nearest}. Choose another {option}.")


@contextlib.contextmanager
def _refusals(path: Path, option: str) -> Iterator[None]:
    """A name that no file system takes is the user's mistake."""
    try:
        yield
    except (OSError, ValueError) as error:  # ValueError: a zero byte
        why = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"cannot write to {printable(str(path))}: {why}. Choose another {option}.") from None


def check_not_inputs(results: Sequence[Path], inputs: Sequence[str | Path], *, option: str = "--output") -> None:
    """Refuse results that would replace the files they are made from, whatever --overwrite says.

    Raises:
        ConfigError: Names the first.
    """
    existing = {found: path for path in results if (found := _file_id(path)) is not None}
    if not existing:  # the usual case, in which a hundred thousand inputs need not be looked up
        return
    for path in inputs:
        if (found := _file_id(path)) in existing:
            raise ConfigError(
                f"{existing[found]} is a file that is read, and a result would overwrite it. Choose another {option}."
            )


def check_outside(folder: str | Path, inputs: Iterable[Path], *, option: str = "--output") -> None:
    """Refuse an output folder within folders of inputs: what is written there would be read as input the next time.

    Raises:
        ConfigError: Names both.
    """
    with _refusals(Path(folder), option):
        place = Path(os.path.realpath(folder))
    for inner in inputs:
        if place.is_relative_to(os.path.realpath(inner)):
            raise ConfigError(
                f"{printable(str(folder))} lies within {printable(str(inner))}, which holds the data set's files: "
                f"results there would become a part of it. Choose another {option}."
            )


def _file_id(path: str | Path) -> tuple[int, int] | None:
    """What tells a file from all others, whatever its name is written like; None where there is none."""
    try:
        status = Path(path).stat()
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


@contextlib.contextmanager
def naming(path: str | Path, *, instead_of: Path | None = None) -> Iterator[None]:
    """Within this, an error of the system that names no file (a full disk), or a temporary one, names `path`."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename not in (None, None if instead_of is None else str(instead_of)):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; what is written there becomes `path` at the end, in one step.

    The data is on the disk before the name changes, and the name before this returns: a power failure leaves the old
    file or the new one. If the body raises, `path` stays as it was and the temporary file is removed; if the process is
    killed, `remove_leftovers` removes it later. The file's mode is that of any new file (the umask's), whichever mode
    the library that writes it prefers.

    Raises:
        OSError: The system refuses, or the disk is full; its `filename` is `path`.
    """
    path = Path(path)
    temporary = path.with_name(_temporary_name(path))
    try:
        with naming(path, instead_of=temporary):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.unlink(missing_ok=True)
            temporary.touch()
            mode = temporary.stat().st_mode
            yield temporary
            temporary.chmod(mode)  # safetensors, for one, makes a file of its own, for the owner alone
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _temporary_name(path: Path) -> str:
    """Short where the file's own name is as long as the file system allows."""
    stem, suffix = path.stem, path.suffix
    if len(os.fsencode(suffix)) > 20:
        stem, suffix = path.name, ""
    if len(os.fsencode(stem)) > LONGEST_PART:
        stem = f"{os.fsencode(stem)[:100].decode(errors='ignore')}-{_digest(path.name)[:16]}"
    # The ending stays last, because image libraries choose the format by it.
    return f".{stem}.{os.getpid()}.tmp{suffix}"


def sync_folder(folder: Path) -> None:
    """Bring a folder's list of names to the disk, where the system can (Windows cannot, and needs not)."""
    with contextlib.suppress(OSError):
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def remove_leftovers(folder: Path, names: Collection[str]) -> None:
    """Remove the temporary files of some names that killed processes left in a folder.

    Args:
        folder: Where they lie.
        names: What they would have become; nobody may be writing these there.
    """
    stems = {Path(name).stem for name in names}
    for path in folder.glob(".*.tmp*"):
        found = TEMPORARY.fullmatch(path.name)
        if found and found["stem"] in stems:
            path.unlink(missing_ok=True)
