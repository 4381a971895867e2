"""Atomic file writing: no reader, and no restart after a crash, sees a partial file. Names of output files."""

from __future__ import annotations

import collections
import contextlib
import difflib
import errno
import hashlib
import itertools
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
"""Bytes of a path component without suffix; file systems allow 255 with it."""

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""System errors of writing that would occur for every further file in the place: no space, no quota, read-only."""

_HARMFUL = re.compile(r"[\x00-\x1f\x7f:\\]")  # to some system a drive, a folder, or the end of the name


def shipped_configs() -> dict[str, Path]:
    """Return the configs that come with the package, by name: `configs/` in the wheel, or at the top of a checkout."""
    package = Path(__file__).resolve().parent
    folder = next((folder for folder in (package, package.parent) if (folder / "configs").is_dir()), package)
    return {path.stem: path for path in sorted((folder / "configs").glob("*.yaml"))}


def find_config(path: str | Path) -> Path:
    """Return the file of a config: a path, or the name of a shipped config, with or without `configs/` and `.yaml`.

    Raises:
        ConfigError: There is no such file or name; the message lists the nearest names.
    """
    path, shipped = Path(path), shipped_configs()
    if path.is_file():
        return path
    name = path.stem if path.suffix == ".yaml" else path.name
    if name in shipped and path.parent in (Path(), Path("configs")):
        return shipped[name]
    nearest = difflib.get_close_matches(name, shipped, n=3, cutoff=0.3)
    hint = f" Did you mean {' or '.join(nearest)}?" if nearest else ""
    where = next(iter(shipped.values())).parent if shipped else "missing: the package is not installed completely"
    raise ConfigError(
        f"no config file {path}, and no shipped config of that name.{hint} The shipped ones are in {where}."
    )


def result_places(names: Mapping[str, str], *, endings: Sequence[str]) -> dict[str, Path]:
    """Choose the output paths of samples: relative, inside the output folder, and unique.

    The path of a sample is its name without the suffix. If two samples would share a file (also on a case-insensitive
    file system), or a file would have the name of a folder, the suffix is kept, and if that is not enough, a hash is
    appended. What is unsafe on any system becomes an underscore: absolute paths, `..`, drives (`C:`), backslashes,
    control characters and bytes that are not UTF-8. Long components are truncated, with a hash.

    Args:
        names: Identifier of a sample -> its name, such as its path below the root of its data set, with `/`.
        endings: Every suffix that is appended to a path: (".png",).

    Returns:
        Identifier -> path without suffix. It depends on the set of the names, not on their order.
    """
    tries = dict.fromkeys(names, 0)
    ends = [end.casefold() for end in endings]  # plain ASCII, which changes no letter before it
    while True:
        paths = {identity: _place(identity, names[identity], number) for identity, number in tries.items()}
        stems = {identity: _folded(path) for identity, path in paths.items()}
        counts = collections.Counter(stem + end for stem in stems.values() for end in ends)
        within = {path.parent for path in paths.values()}
        folders = {_folded(folder) for parent in within for folder in (parent, *parent.parents)}
        clashes = [
            identity
            for identity, stem in stems.items()
            if any(counts[stem + end] > 1 or stem + end in folders for end in ends)
        ]
        if not clashes:
            return {identity: Path(path) for identity, path in paths.items()}
        for identity in clashes:
            tries[identity] += 1


def _place(identity: str, name: str, number: int) -> PurePosixPath:
    """Return candidate `number` for the path of a sample."""
    *folders, last = [part for part in name.split("/") if part not in ("", ".")] or ["unnamed"]
    if number == 0:
        last = PurePosixPath(last).stem
    mark = "" if number < 2 else f"-{_digest(identity)[: 8 * (number - 1)]}"
    return PurePosixPath(*map(_part, folders), _part(last) + mark)


def _part(name: str) -> str:
    """Make a path component a plain name on every system."""
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
    """Return a key that is equal for two paths that some file system treats as the same."""
    return unicodedata.normalize("NFC", str(path)).casefold()


def numbered(path: str | Path, *, suffix: str = "") -> dict[int, Path]:
    """Find what exists of a series of outputs: `runs/x` as 1, `runs/x-2` as 2, and so on.

    Args:
        path: The first name of the series.
        suffix: What its names end with, behind the number: ".json".
    """
    path = Path(path)
    stem = path.name.removesuffix(suffix)
    name = re.compile(rf"{re.escape(stem)}-([2-9]|[1-9]\d+){re.escape(suffix)}")
    found = {1: path} if os.path.lexists(path) else {}
    with contextlib.suppress(OSError):  # no folder, or one that cannot be read: writing there reports it
        matches = [(name.fullmatch(entry.name), entry) for entry in path.parent.iterdir()]
        found |= {int(match[1]): entry for match, entry in matches if match is not None}
    return dict(sorted(found.items()))


def next_free(path: str | Path, *, suffix: str = "") -> Path:
    """Return the name after the last of a series: `runs/x` if there is none, then `runs/x-2`, `runs/x-3`.

    A gap is not filled: the last of a series is its newest.
    """
    path = Path(path)
    last = max(numbered(path, suffix=suffix), default=0)
    if not last:
        return path
    stem = path.name.removesuffix(suffix)
    following = (path.with_name(f"{stem}-{number}{suffix}") for number in itertools.count(last + 1))
    return next(name for name in following if not os.path.lexists(name))  # it may be in a folder that cannot be listed


@contextlib.contextmanager
def claimed(path: str | Path) -> Iterator[Path]:
    """Make the next free folder of a series, so that no other process takes it, and yield it.

    At the end it is removed if it is still empty, and so is the folder around it if that was made here.

    Raises:
        OSError: The folder cannot be made.
    """
    path = Path(path)
    outer = None if path.parent.exists() else path.parent
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        folder = next_free(path)
        with contextlib.suppress(FileExistsError):  # another process was faster
            folder.mkdir()
            break
    try:
        yield folder
    finally:
        with contextlib.suppress(OSError):  # it is in use, as it should be
            folder.rmdir()
            if outer is not None:
                outer.rmdir()


def check_output_file(path: str | Path, *, what: str, overwrite: bool, option: str = "--output") -> None:
    """Reject an output file that could not be written, before the work begins.

    Args:
        path: The file.
        what: Its description in errors: "report".
        overwrite: Allow an existing file.
        option: The command-line option that sets it.

    Raises:
        ConfigError: It exists, is a folder or a device, or its folder is not writable.
    """
    path, mode = Path(path), None
    with _refusals(path, option), contextlib.suppress(FileNotFoundError, NotADirectoryError):
        mode = path.stat().st_mode
    if mode is not None and stat.S_ISDIR(mode):
        raise ConfigError(f"cannot write the {what} to {path}: it is a folder. Choose a file with {option}.")
    if mode is not None and not stat.S_ISREG(mode):
        raise ConfigError(f"cannot write the {what} to {path}: it is not a regular file. Choose another {option}.")
    if mode is not None and not overwrite:
        raise ConfigError(f"{what} {path} already exists. Choose another {option}, or pass --overwrite.")
    check_output_folder(path.parent, option=option)


def check_output_folder(folder: str | Path, *, option: str = "--output") -> None:
    """Reject an output folder that could not be created or written to.

    Raises:
        ConfigError: The path exists and is not a folder, or there is no permission to write.
    """
    folder = Path(folder)
    with _refusals(folder, option), contextlib.suppress(FileNotFoundError, NotADirectoryError):
        folder.stat()
    nearest = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(path))
    if not nearest.is_dir():
        raise ConfigError(f"cannot write to {folder}: {nearest} is not a folder. Choose another {option}.")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ConfigError(f"cannot write to {folder}: no permission in {nearest}. Choose another {option}.")


@contextlib.contextmanager
def _refusals(path: Path, option: str) -> Iterator[None]:
    """Turn the system's error about an invalid path into a `ConfigError`."""
    try:
        yield
    except (OSError, ValueError) as error:  # ValueError: a zero byte
        why = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"cannot write to {printable(str(path))}: {why}. Choose another {option}.") from None


def check_not_inputs(results: Sequence[Path], inputs: Sequence[str | Path], *, option: str = "--output") -> None:
    """Reject outputs that would replace input files, even with --overwrite.

    Raises:
        ConfigError: An output is an input; the message names the first.
    """
    existing = {file_id: path for path in results if (file_id := _file_id(path)) is not None}
    if not existing:  # the usual case, in which a hundred thousand inputs need not be looked up
        return
    for path in inputs:
        if (file_id := _file_id(path)) in existing:
            raise ConfigError(
                f"{existing[file_id]} is an input file, and a result would overwrite it. Choose another {option}."
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
    """Return the identity of a file, independent of the spelling of its path; None if there is no such file."""
    try:
        status = Path(path).stat()
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


@contextlib.contextmanager
def naming(path: str | Path, *, instead_of: Path | None = None) -> Iterator[None]:
    """Set the `filename` of an `OSError` without one (a full disk), or with a temporary file's name, to `path`."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename not in (None, None if instead_of is None else str(instead_of)):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, and rename it to `path` at the end.

    The data is synchronised to the disk before the rename, and the rename before this returns: after a power failure
    there is the old file or the new one. If the body raises, `path` is unchanged and the temporary file is removed; if
    the process is killed, `remove_leftovers` removes it later. The file's mode is that of any new file (by the umask).

    Raises:
        OSError: The file cannot be written, or the disk is full; `filename` is `path`.
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
            temporary.chmod(mode)  # safetensors, for one, creates its file readable by the owner only
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _temporary_parts(name: str) -> tuple[str, str]:
    """Return stem and suffix of a file's temporary name, which fits even if its own has the maximum length."""
    stem, suffix = Path(name).stem, Path(name).suffix
    if len(os.fsencode(suffix)) > 20:
        stem, suffix = name, ""
    if len(os.fsencode(stem)) > LONGEST_PART:
        stem = f"{os.fsencode(stem)[:100].decode(errors='ignore')}-{_digest(name)[:16]}"
    return stem, suffix


def _temporary_name(path: Path) -> str:
    """Return the name of the temporary file of this process for a file."""
    stem, suffix = _temporary_parts(path.name)
    # The suffix stays last, because image libraries choose the format by it.
    return f".{stem}.{os.getpid()}.tmp{suffix}"


def sha256(path: str | Path) -> str:
    """The hash of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_folder(folder: Path) -> None:
    """Synchronise a folder's entries to the disk, where the system supports it (Windows does not need it)."""
    with contextlib.suppress(OSError):
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def remove_leftovers(folder: Path, names: Collection[str]) -> None:
    """Remove temporary files of `atomic_write` that killed processes left in a folder.

    Args:
        folder: The folder.
        names: Names of the files that were being written; no process may be writing them now.
    """
    stems = {_temporary_parts(name)[0] for name in names}
    for path in folder.glob(".*.tmp*"):
        match = TEMPORARY.fullmatch(path.name)
        if match and match["stem"] in stems:
            path.unlink(missing_ok=True)
