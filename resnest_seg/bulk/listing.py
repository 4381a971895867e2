"""The inputs of a bulk job: folders, patterns, manifests and addresses as items, each with a place of its own."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import os
import posixpath
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from resnest_seg.bulk.outputs import ALL_ENDINGS
from resnest_seg.errors import ConfigError, DatasetError, load_extra, printable
from resnest_seg.files import result_places
from resnest_seg.inference.inputs import VIDEO_SUFFIXES, Input, address_place, named, problem_of_address
from resnest_seg.io.images import IMAGE_SUFFIXES
from resnest_seg.storage.remote import is_address, read_address
from resnest_seg.storage.retries import without_secrets

TABLES = (".csv", ".parquet")
"""Endings of inputs that are manifests: lists of inputs."""


@dataclasses.dataclass(frozen=True, slots=True)
class BulkItem:
    """One input.

    Attributes:
        source: The file's absolute path, or an address.
        place: Where its outputs go: a path below the output, with `/`, without ending.
        mark: What tells its key from those of addresses that differ in what looks like a secret only.
    """

    source: str
    place: str
    mark: str = ""

    @property
    def kind(self) -> str:
        """ "address", "video" or "image"."""
        if is_address(self.source):
            return "address"
        return "video" if self.source.lower().endswith(VIDEO_SUFFIXES) else "image"

    @property
    def key(self) -> str:
        """The source as the manifest of outputs names it: an address without passwords and signatures."""
        return without_secrets(self.source) + self.mark if is_address(self.source) else self.source


def is_manifest(word: str) -> bool:
    """True for an input that is a list of inputs: a CSV or Parquet file, or the address of one."""
    return word.lower().endswith(TABLES) and (is_address(word) or Path(word).is_file())


def list_inputs(
    words: Sequence[str], *, output: str, path_column: str = "path", earlier: Sequence[Path] = ()
) -> tuple[list[BulkItem], list[str]]:
    """Resolve the words of a command line to items.

    A manifest is a CSV or Parquet file with a column of paths and addresses; relative paths are relative to the folder
    of the manifest. Other words mean what they do in `resnest_seg.inference.inputs.plan`, and places are made as there.
    They depend on the set of all inputs only, so that every process of a job finds the same.

    Args:
        words: The inputs as the user gave them.
        output: The output, which is left out where it lies within a folder of inputs.
        path_column: The column of a manifest.
        earlier: Folders with results of before, which are left out like the output.

    Returns:
        Items with different sources and places, and a sentence on each problem.

    Raises:
        ConfigError: A manifest has no such column.
        DatasetError: A manifest cannot be read.
    """
    problems: list[str] = []
    found: dict[str, str] = {}  # source -> identity
    places: dict[str, str] = {}  # identity -> place
    folder = Path(output if not is_address(output) else os.devnull)
    inside = _Within(output, folder)
    for word in words:
        again = 0
        above = is_address(word) and output.startswith(f"{word.rstrip('/')}/")
        for source, place, identity in _of_word(word, [folder, *earlier], path_column, problems):
            if source in found or identity in places:
                again += 1
            elif inside(source):
                if above:
                    continue  # as below a folder: results are left out
                shown = without_secrets(source)
                problems.append(f"{shown} lies in the output folder: results are no inputs. Choose another --output.")
            else:
                found[source], places[identity] = identity, place
        if again and is_manifest(word):
            print(f"note: {printable(word)} names {again} inputs again: each is segmented once.", file=sys.stderr)
    unique = result_places(places, endings=ALL_ENDINGS)
    return _told_apart([BulkItem(source, unique[identity].as_posix()) for source, identity in found.items()]), problems


def _told_apart(items: Sequence[BulkItem]) -> list[BulkItem]:
    """The same items with keys that differ, also where addresses only do in `?key=1.jpg` or `10:30@cam.jpg`.

    The keys of all others stay the same when an address is signed anew.
    """
    counts = Counter(item.key for item in items if item.kind == "address")
    return [
        dataclasses.replace(item, mark=f"#{bucket(item.source):016x}") if counts[item.key] > 1 else item
        for item in items
    ]


def _of_word(word: str, results: Sequence[Path], column: str, problems: list[str]) -> Iterator[tuple[str, str, str]]:
    """The inputs that a word names: absolute path or address, place that others may have, too, and identity."""
    if is_manifest(word):
        yield from ((source, place, f"{place} {source}") for source, place in _rows(word, column, problems))
        return
    for item in named(word, results, IMAGE_SUFFIXES, problems):
        if item.kind == "camera":
            problems.append(f"{item.source} is a camera, and a job takes files: leave --shard and --engine out.")
        else:
            yield _source(item), item.place.as_posix(), item.identity


def _source(item: Input) -> str:
    return item.source if item.kind == "address" else _absolute(item.source)


def _rows(word: str, column: str, problems: list[str]) -> Iterator[tuple[str, str]]:
    """What the rows of a manifest name."""
    remote = is_address(word)
    base = word.rpartition("/")[0] if remote else _absolute(str(Path(word).parent))
    empty, first, count = 0, "", 0
    for count, (line, path) in enumerate(_paths(word, column), start=1):
        if not path.strip() or "\0" in path:
            empty, first = empty + 1, first or line
        elif is_address(path):
            if (problem := problem_of_address(path)) is None:
                yield path, address_place(path)
            else:
                problems.append(f"{word}, {line}: {problem}")
        elif remote:
            source = f"{base}/{path.lstrip('/')}"
            yield source, posixpath.normpath(path.lstrip("/"))
        else:
            source = _absolute(os.path.join(base, path))  # noqa: PTH118  # keeps what an absolute path is
            if count == 1 and not os.path.isabs(path):  # noqa: PTH117
                _check_base(word, path, source)
            below = source.startswith(f"{base.rstrip('/')}/")
            yield source, (os.path.relpath(source, base) if below else source).replace(os.sep, "/").lstrip("/")
    if empty:
        problems.append(f"{word}: {empty} of {count} rows have no path in column {column}, the first is {first}.")
    if not count:
        problems.append(f"{word} has no rows.")


def _check_base(word: str, path: str, source: str) -> None:
    """Raise a ConfigError if the first relative path is relative to the current folder, not to the manifest's."""
    if not os.path.lexists(source) and os.path.lexists(path):
        raise ConfigError(
            f"{word}: paths are relative to the folder of the manifest, and {printable(source)} does not exist, but "
            f"{printable(_absolute(path))} does. Move the manifest there, or write absolute paths."
        )


def _paths(word: str, column: str) -> Iterator[tuple[str, str]]:
    """(where, path) of the rows of a manifest, read as they are asked for.

    Raises:
        ConfigError: There is no such column.
        DatasetError: It cannot be read.
    """
    try:
        data = read_address(word) if is_address(word) else None
        read = _csv_paths if word.lower().endswith(".csv") else _parquet_paths
        yield from read(word, data, column)
    except OSError as error:
        raise DatasetError(f"cannot read {printable(word)}: {error.strerror or error}.") from None


def _opened(word: str, data: bytes | None) -> TextIO:
    """A CSV file as text; bytes that are not UTF-8 are kept, as they may be those of a file's name."""
    raw: Any = open(word, "rb") if data is None else io.BytesIO(data)  # noqa: SIM115  # closed with the text
    return io.TextIOWrapper(raw, encoding="utf-8-sig", errors="surrogateescape", newline="")


def _csv_paths(word: str, data: bytes | None, column: str) -> Iterator[tuple[str, str]]:
    with _opened(word, data) as file:
        head = file.readline()
        delimiter = next((mark for mark in ("\t", ";") if mark in head and "," not in head), ",")
        names = next(csv.reader([head], delimiter=delimiter), [])
        index = names.index(_column(word, [name.strip() for name in names], column, names))
        rows = csv.reader(file, delimiter=delimiter)
        try:
            for row in rows:
                if row:
                    yield f"in line {rows.line_num + 1}", row[index] if index < len(row) else ""
        except csv.Error as error:
            raise DatasetError(f"cannot read {printable(word)}, line {rows.line_num + 1}: {error}.") from None


def _parquet_paths(word: str, data: bytes | None, column: str) -> Iterator[tuple[str, str]]:
    parquet = load_extra("pyarrow.parquet", "import")
    arrow = load_extra("pyarrow", "import")
    try:
        with parquet.ParquetFile(word if data is None else io.BytesIO(data)) as file:
            names = file.schema_arrow.names
            chosen = _column(word, names, column, names)
            number = 0
            for batch in file.iter_batches(batch_size=8192, columns=[chosen]):
                for value in batch.column(0).to_pylist():
                    number += 1
                    if value is not None and not isinstance(value, str | bytes):
                        kind = file.schema_arrow.field(chosen).type
                        raise ConfigError(f"{word}: column {chosen} is of type {kind}, and paths are strings.")
                    yield f"row {number}", os.fsdecode(value or "")
    except arrow.lib.ArrowException as error:
        first = str(error).partition("\n")[0]
        raise DatasetError(f"cannot read {printable(word)}: no Parquet file, or a damaged one ({first}).") from None


def _column(word: str, names: Sequence[str], wanted: str, spelled: Sequence[str]) -> str:
    """The column of that name as it is spelled, or the only one that differs in its case.

    Raises:
        ConfigError: There is none; the message lists the columns.
    """
    alike = [index for index, name in enumerate(names) if name == wanted]
    alike = alike or [index for index, name in enumerate(names) if name.casefold() == wanted.casefold()]
    if len(alike) != 1:
        shown = ", ".join(map(repr, names[:20])) or "none"
        raise ConfigError(
            f"{printable(word)} has no column {wanted!r} of paths: its first line names {printable(shown)}. Name the "
            "column with --path-column; without a line of names, add one."
        )
    return spelled[alike[0]]


class _Within:
    """Whether a path lies in the output folder, links followed; each folder is looked up once."""

    def __init__(self, output: str, folder: Path) -> None:
        self.folder = os.path.realpath(folder)
        self.address = f"{output.rstrip('/')}/" if is_address(output) else None
        self.known: dict[str, bool] = {}

    def __call__(self, source: str) -> bool:
        if is_address(source):
            return self.address is not None and source.startswith(self.address)
        parent = os.path.dirname(source)  # noqa: PTH120  # a hundred times faster than Path
        if parent not in self.known:
            real = os.path.realpath(parent)
            self.known[parent] = real == self.folder or real.startswith(self.folder + os.sep)
        return self.known[parent]


def share(items: Iterable[BulkItem], shard: tuple[int, int]) -> list[BulkItem]:
    """The items of one process: those whose hash modulo the number of processes is its number.

    It depends on the item alone, so that it is the same where files are added, and needs no coordination.

    Args:
        items: All items.
        shard: The number of the process, from 0, and how many there are.
    """
    number, count = shard
    return [item for item in items if count == 1 or bucket(item.key) % count == number]


def bucket(source: str) -> int:
    """A hash of a source, the same in every process."""
    return int.from_bytes(hashlib.blake2b(os.fsencode(source), digest_size=8).digest())


def _absolute(path: str) -> str:
    """A path from the root, which means the same in every process; links in it are kept."""
    return os.path.abspath(path)  # noqa: PTH100  # resolve() follows links
