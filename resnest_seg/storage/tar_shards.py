"""Tar shards: the samples of a split in few large files, and a table by which any of them is read.

A shard is a POSIX tar file in the naming of WebDataset: the files of a sample are adjacent and have one key without
dots, `000000123.jpg`, `000000123.seg.png`, `000000123.json`. The table says where each sample lies, so that samples are
read in any order, each by one read of photo and mask together: `os.pread` in a folder, a range of an object at an
address. A shard is opened once by each process, and at most `most_open` are open at a time.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import io
import json
import os
import re
import tarfile
import threading
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from resnest_seg.errors import DatasetError, printable
from resnest_seg.storage.remote import RemoteSource
from resnest_seg.storage.sources import FolderSource, Source

BLOCK = 512
"""Bytes of a header of a tar file; the data of a member is padded to a multiple of it."""

RECORD = 20 * BLOCK
"""A tar file is padded to a multiple of so many bytes."""

MASK_SUFFIX = ".seg.png"
"""Suffix of the mask of a sample."""

LONGEST = (1 << 32) - 1
"""Maximum bytes of a photo or mask."""

_SHARD_NAME = re.compile(r"\w[\w.-]*\.tar")
_MEMBER = re.compile(r"(?P<key>\d{9,})(?P<suffix>\.[\w.]+)")


class Shard(NamedTuple):
    """A tar file.

    Attributes:
        name: Its name in the folder of all shards.
        size: Its bytes.
        sha256: The hash of its content, hexadecimal.
    """

    name: str
    size: int
    sha256: str


class SampleFiles(NamedTuple):
    """The files of one sample.

    Attributes:
        name: Name of the sample in its data set.
        group: Name of what it is cut from; see `SegmentationDataset.group`.
        suffix: Suffix of the photo: ".jpg".
        photo: Content of the photo.
        mask: Content of the mask, a PNG file; empty if there is none.
    """

    name: str
    group: str
    suffix: str
    photo: bytes
    mask: bytes

    @property
    def description(self) -> bytes:
        """Name and group as JSON, in ASCII."""
        return json.dumps({"name": self.name, "group": self.group}).encode()

    @property
    def size(self) -> int:
        """Bytes of the sample in a tar file."""
        files = (self.photo, self.mask, self.description)
        return sum(_padded(len(file)) for file in files if file)


@dataclasses.dataclass(frozen=True)
class Texts:
    """N strings in two arrays, which processes share as they are, unlike a list of N objects.

    Attributes:
        data: All strings as UTF-8, one behind the other, uint8 [B].
        ends: Where each ends, uint64 [N].
    """

    data: NDArray[np.uint8]
    ends: NDArray[np.uint64]

    @classmethod
    def of(cls, texts: Sequence[str]) -> Texts:
        """Keep strings; names of files may hold bytes that are not UTF-8, as lone surrogates."""
        parts = [text.encode("utf-8", "surrogatepass") for text in texts]
        ends = np.cumsum([len(part) for part in parts], dtype=np.uint64)
        return cls(np.frombuffer(b"".join(parts), np.uint8), ends)

    @classmethod
    def joined(cls, parts: Sequence[Texts]) -> Texts:
        """Put the strings of several behind each other."""
        before = np.cumsum([0, *(len(part.data) for part in parts)])[:-1].astype(np.uint64)
        ends = [part.ends + first for part, first in zip(parts, before, strict=True)]
        return cls(
            np.concatenate([np.empty(0, np.uint8), *(part.data for part in parts)]),
            np.concatenate([np.empty(0, np.uint64), *ends]),
        )

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> str:
        first = int(self.ends[index - 1]) if index else 0
        return self.data[first : int(self.ends[index])].tobytes().decode("utf-8", "surrogatepass")


ROW = np.dtype(
    [("shard", "<u4"), ("start", "<u8"), ("photo", "<u4"), ("mask", "<u4"), ("kind", "u1"), ("checksum", "<u4")]
)
"""Where a sample lies: number of its tar file, offset of the photo's header in it, bytes of the photo, bytes of the
mask (0 without one), number of the photo's suffix, CRC-32 from the photo's header to the end of the mask."""


LONGEST_ROW = 10_000
"""Bytes of a table for a sample, at most: its row, and two names as long as paths can be."""


@dataclasses.dataclass(frozen=True)
class SampleTable:
    """Where the samples of a split lie.

    Attributes:
        rows: A row of `ROW` for each sample, [N], in the order of the samples.
        names: Their names, [N].
        groups: Their groups, [N]; empty if all are the names.
    """

    rows: NDArray[np.void]
    names: Texts
    groups: Texts

    def __len__(self) -> int:
        return len(self.rows)

    @classmethod
    def joined(cls, tables: Sequence[SampleTable]) -> SampleTable:
        """Put the tables of the shards 0, 1, 2 ... behind each other."""
        rows = np.concatenate([np.empty(0, ROW), *(table.rows for table in tables)])
        rows["shard"] = np.repeat(np.arange(len(tables)), [len(table) for table in tables])
        grouped = any(len(table.groups) for table in tables)
        groups = [table.groups if len(table.groups) else table.names for table in tables if grouped]
        return cls(rows, Texts.joined([table.names for table in tables]), Texts.joined(groups))

    def to_bytes(self) -> bytes:
        """Return the table as an .npz file."""
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer,
            rows=self.rows,
            names=self.names.data,
            names_ends=self.names.ends,
            groups=self.groups.data,
            groups_ends=self.groups.ends,
        )
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes, where: str, *, samples: int | None = None) -> SampleTable:
        """Read a table; nothing in it is executed.

        Args:
            data: The .npz file.
            where: Its place, for messages.
            samples: How many it must have; it is not unpacked if it claims to hold much more.

        Raises:
            DatasetError: It is damaged, or holds something else.
        """
        try:
            if samples is not None:
                claimed = sum(member.file_size for member in zipfile.ZipFile(io.BytesIO(data)).infolist())
                _require(claimed <= LONGEST_ROW * (samples + 1), f"{claimed} bytes for {samples} samples")
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                rows = _array(arrays["rows"], ROW)
                names, groups = (
                    Texts(_array(arrays[name], np.dtype("u1")), _array(arrays[f"{name}_ends"], np.dtype("<u8")))
                    for name in ("names", "groups")
                )
            _require(len(rows) == len(names) and len(groups) in (0, len(rows)), "columns of unequal length")
            for texts in (names, groups):
                ends = np.append(np.uint64(0), texts.ends)
                _require(bool((ends[1:] >= ends[:-1]).all()) and int(ends[-1]) == len(texts.data), "names cut off")
        except _BROKEN as error:
            raise DatasetError(
                f"cannot read {where}: a damaged table of samples ({' '.join(str(error).split())}). Copy it again, or "
                "pack the data set anew."
            ) from None
        if samples not in (None, len(rows)):
            raise DatasetError(
                f"{where} has {len(rows)} samples, and index.json says {samples}: they are of different packs. Copy "
                "both again, or pack the data set anew."
            )
        return cls(rows, names, groups)


_BROKEN = (ValueError, KeyError, TypeError, OSError, EOFError, MemoryError, OverflowError, SyntaxError, RuntimeError,
           tokenize.TokenError, zipfile.BadZipFile, zlib.error)  # fmt: skip
"""What NumPy raises of an .npz file that is damaged, or that claims to be larger than memory: the header of an array is
a Python literal, and what a member's flags ask for may not be there (RuntimeError)."""


def _array(array: Any, kind: np.dtype[Any]) -> NDArray[Any]:
    found = np.asarray(array)
    _require(found.ndim == 1 and found.dtype == kind, f"{found.dtype} {list(found.shape)} in place of {kind}")
    return found


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise ValueError(what)


def member(name: str, data: bytes) -> bytes:
    """Return a member of a tar file, padded: the same bytes at any time and by any user."""
    header = tarfile.TarInfo(name)  # mode 644, no time, no owner
    header.size = len(data)
    return b"".join((header.tobuf(tarfile.USTAR_FORMAT), data, bytes(-len(data) % BLOCK)))


def write_shard(
    path: Path, first: int, samples: Iterator[SampleFiles], suffixes: list[str]
) -> tuple[Shard, SampleTable]:
    """Write samples into a tar file.

    Args:
        path: The file.
        first: Number of the first sample in its split, by which keys are counted.
        samples: The samples; at least one.
        suffixes: The photos' suffixes by their numbers; new ones are appended.

    Returns:
        The shard, and the table of its samples with number 0 for the shard.

    Raises:
        OSError: The file cannot be written, or the disk is full.
    """
    rows, names, groups = list[tuple[int, ...]](), list[str](), list[str]()
    with open(path, "wb") as file:
        for key, sample in enumerate(samples, first):
            block, photo, mask = sample_block(key, sample), len(sample.photo), len(sample.mask)
            if sample.suffix not in suffixes:
                suffixes.append(sample.suffix)
            checksum = zlib.crc32(memoryview(block)[: _length(photo, mask)])
            rows.append((0, file.tell(), photo, mask, suffixes.index(sample.suffix), checksum))
            names.append(sample.name)
            groups.append(sample.group)
            file.write(block)
            file.write(member(f"{key:09}.json", sample.description))
        file.write(bytes(2 * BLOCK))  # the end of the archive
        file.write(bytes(-file.tell() % RECORD))
        size = file.tell()
    with open(path, "rb") as file:
        shard = Shard(path.name, size, hashlib.file_digest(file, "sha256").hexdigest())
    return shard, SampleTable(np.array(rows, ROW), Texts.of(names), Texts.of(groups if groups != names else []))


def sample_block(key: int, sample: SampleFiles) -> bytes:
    """Return the photo and the mask of a sample as members of a tar file.

    Raises:
        DatasetError: One has more than 4 GiB.
    """
    if max(len(sample.photo), len(sample.mask)) > LONGEST:
        raise DatasetError(f"cannot pack {printable(sample.name)}: it has more than 4 GiB. Cut it into tiles.")
    photo = member(f"{key:09}{sample.suffix}", sample.photo)
    return photo + member(f"{key:09}{MASK_SUFFIX}", sample.mask) if sample.mask else photo


def _padded(size: int) -> int:
    """Bytes of a member: header, data, padding."""
    return BLOCK + size + -size % BLOCK


def _length(photo: int, mask: int) -> int:
    """Bytes of a sample from the photo's header to the end of the mask, or of the photo if there is no mask."""
    return _padded(photo) + BLOCK + mask if mask else BLOCK + photo


class TarShards(Source):
    """The photos and masks in tar shards, by the names that they have there; masks end with `MASK_SUFFIX`.

    Args:
        place: The folder of the shards, or the storage at their address.
        shards: The tar files.
        table: Where the samples lie.
        suffixes: Suffixes of photos by their number in the table.
        most_open: Tar files that a process has open at a time, at most.

    Raises:
        DatasetError: The table does not belong to these shards.
    """

    def __init__(
        self,
        place: FolderSource | RemoteSource,
        shards: Sequence[Shard],
        table: SampleTable,
        suffixes: Sequence[str],
        *,
        most_open: int = 256,
    ) -> None:
        self.place, self.shards, self.table, self.suffixes = place, list(shards), table, tuple(suffixes)
        self.shown = place.shown if isinstance(place, RemoteSource) else printable(str(place.root))
        for shard in self.shards:
            if not _SHARD_NAME.fullmatch(shard.name):
                raise DatasetError(f"{self.shown}: the index names a shard {shard.name!r}, which is no tar file.")
        rows, sizes = table.rows, np.array([shard.size for shard in self.shards], np.int64)
        if (rows["shard"] >= len(sizes)).any() or (rows["kind"] >= len(self.suffixes)).any():
            raise DatasetError(f"{self.shown}: the index names {len(sizes)} shards, and its table of samples more.")
        photo, mask = rows["photo"].astype(np.int64), rows["mask"].astype(np.int64)
        ends = rows["start"] + (photo + mask + BLOCK * (1 + (mask > 0))).astype(np.uint64)
        limits = sizes.astype(np.uint64)[rows["shard"]]
        beyond = (rows["start"] > limits) | (ends > limits)  # the sum may have run over
        if beyond.any():
            row = int(np.argmax(beyond))
            raise DatasetError(
                f"{self.shown}: the table of samples has sample {row} beyond the end of "
                f"{self.shards[int(rows['shard'][row])].name}: the files of the index are of different packs."
            )
        self.files: _Ranges = _Remote(place) if isinstance(place, RemoteSource) else _Local(place.root, most_open)
        self._last: tuple[int, bytes] | None = None

    @property
    def paths(self) -> list[Path]:
        """The tar files; none where they lie at an address."""
        return [self.place.root / shard.name for shard in self.shards if isinstance(self.place, FolderSource)]

    def photo_name(self, row: int) -> str:
        """Name of the photo of a sample in its shard."""
        return f"{row:09}{self.suffixes[self.table.rows['kind'][row]]}"

    def mask_name(self, row: int) -> str | None:
        """Name of the mask of a sample in its shard; None without one."""
        return f"{row:09}{MASK_SUFFIX}" if self.table.rows["mask"][row] else None

    def names(self, folder: str) -> list[str]:
        """List the names of all photos and masks, which are in no folder."""
        pairs = ((self.photo_name(row), self.mask_name(row)) for row in range(len(self.table)) if not folder)
        return [name for pair in pairs for name in pair if name is not None]

    def has(self, name: str) -> bool:
        """True if there is a photo or mask of this name."""
        return self._row(name) is not None

    def blocks(self, name: str) -> bool:
        """False: there are no folders and links."""
        return False

    def locate(self, name: str) -> str:
        """Return the path of a shard, with the name in it and the name of the sample."""
        row = self._row(name)
        if row is None:
            return printable(f"{self.shown}!{name}")
        shard = self.shards[int(self.table.rows["shard"][row])].name
        return printable(f"{self.shown}/{shard}!{name} ({self.table.names[row]})")

    def read(self, name: str) -> bytes:
        """Read a photo or a mask; both are read at once and checked, and the sample that was read last is kept.

        Raises:
            DatasetError: The shard is missing, truncated or was changed; the message names it and the sample.
        """
        row = self._row(name)
        if row is None:
            raise DatasetError(f"cannot read {self.locate(name)}: there is no such file.")
        last = self._last
        block = last[1] if last is not None and last[0] == row else self._sample(row)
        self._last = row, block
        photo, mask = int(self.table.rows["photo"][row]), int(self.table.rows["mask"][row])
        first, size = (_padded(photo) + BLOCK, mask) if name.endswith(MASK_SUFFIX) else (BLOCK, photo)
        return block[first : first + size]

    def _sample(self, row: int) -> bytes:
        """Read photo and mask with their headers."""
        number, start, photo, mask, _, checksum = (int(value) for value in self.table.rows[row])
        shard, length, where = self.shards[number], _length(photo, mask), self.locate(self.photo_name(row))
        block = self.files.read(shard, start, length, where)
        if len(block) != length or zlib.crc32(block) != checksum:
            raise DatasetError(
                f"cannot read {where}: its bytes are not those that were packed: {shard.name} is damaged, or was "
                "written anew. Copy it again together with the index (its sha256 is in index.json), or pack the data "
                "set anew."
            )
        return block

    def _row(self, name: str) -> int | None:
        match = _MEMBER.fullmatch(name)
        row = int(match["key"]) if match and len(name) < 64 else -1
        return row if 0 <= row < len(self.table) and name in (self.photo_name(row), self.mask_name(row)) else None

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_last": None}


class _Ranges(Protocol):
    def read(self, shard: Shard, start: int, length: int, where: str) -> bytes:
        """Read bytes of a shard; fewer at its end."""


class _Remote:
    """Shards at an address: one request a range."""

    def __init__(self, source: RemoteSource) -> None:
        self.source = source

    def read(self, shard: Shard, start: int, length: int, where: str) -> bytes:
        """Read a range of an object."""
        size = self.source.size(shard.name)
        if size not in (None, shard.size):
            raise _truncated(self.source.locate(shard.name), size, shard)
        return self.source.read_range(shard.name, start, start + length, where=where)


def _truncated(where: str, size: int | None, shard: Shard) -> DatasetError:
    return DatasetError(
        f"cannot read {where}: it has {size} bytes, and index.json says {shard.size}: it is truncated, or of another "
        "pack. Copy it again, or pack the data set anew."
    )


class _Local:
    """Shards in a folder, each opened once by a process; those used longest ago are closed beyond `most`."""

    def __init__(self, root: Path, most: int) -> None:
        self.root, self.most = root, most
        self._state = _Opened()

    def read(self, shard: Shard, start: int, length: int, where: str) -> bytes:
        """Read a range of a file."""
        if self._state.owner != os.getpid():  # a forked child must not close what its parent reads
            self._state = _Opened()
        state = self._state
        with state.lock:  # else another thread could close the file, and its number be that of another
            handle = state.handles.pop(shard.name, None) or self._open(shard, where)
            state.handles[shard.name] = handle
            while len(state.handles) > self.most:
                state.handles.popitem(last=False)
            try:
                parts = [os.pread(handle.number, length, start)]
                while len(parts[-1]) > 0 and sum(map(len, parts)) < length:  # a call gives at most 2 GiB
                    done = sum(map(len, parts))
                    parts.append(os.pread(handle.number, length - done, start + done))
            except OSError as error:
                raise DatasetError(f"cannot read {where}: {error.strerror}.") from None
        return b"".join(parts)

    def _open(self, shard: Shard, where: str) -> _Handle:
        path = self.root / shard.name
        try:
            handle = _Handle(path)
            size = os.fstat(handle.number).st_size
        except FileNotFoundError:
            raise DatasetError(
                f"cannot read {where}: there is no such file as {shard.name}, which index.json names. Copy it again, "
                "or pack the data set anew."
            ) from None
        except OSError as error:
            raise DatasetError(f"cannot read {where}: {error.strerror}.") from None
        if size != shard.size:
            raise _truncated(printable(str(path)), size, shard)
        return handle

    def __getstate__(self) -> dict[str, object]:
        return {"root": self.root, "most": self.most}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._state = _Opened()


class _Opened:
    """The open files of a process, those used last at the end."""

    def __init__(self) -> None:
        self.owner, self.lock = os.getpid(), threading.Lock()
        self.handles: collections.OrderedDict[str, _Handle] = collections.OrderedDict()


class _Handle:
    """A file that is open for reading until nothing refers to this."""

    def __init__(self, path: Path) -> None:
        self.number = -1
        self.number = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))

    def __del__(self) -> None:
        if self.number >= 0:
            os.close(self.number)
