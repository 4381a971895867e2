"""Data sets in tar shards: packing one, and reading it with the same samples; see `resnest_seg.storage.tar_shards`.

    index.json          what is in the folder, written last: label space, splits, shards with their sizes and hashes
    train.npz           where every sample of the split lies
    train-000000.tar    photos as their files are, masks as PNG files of train ids, names and groups as JSON
    train-000001.tar    ...

While a data set is packed, `packing.json` says what is packed, and `train-000000.rows` which shards are finished:
after a kill, the same call goes on behind them, to the same bytes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from torch.utils.data import Dataset

from resnest_seg.data.datasets import DatasetView, PairedFiles, SegmentationDataset, behind_views
from resnest_seg.data.loader import run_loader
from resnest_seg.data.tiles import WindowDataset
from resnest_seg.errors import ConfigError, DatasetError, ResNeStSegError, command, printable, unknown_name
from resnest_seg.files import TEMPORARY, atomic_write, check_output_folder
from resnest_seg.labels import IGNORE_LABEL, LabelSpace
from resnest_seg.storage.opening import open_source
from resnest_seg.storage.remote import RemoteSource
from resnest_seg.storage.sources import FolderSource, Source
from resnest_seg.storage.tar_shards import SampleFiles, SampleTable, Shard, TarShards, write_shard

INDEX, PACKING, LOCK, ROWS = "index.json", "packing.json", ".lock", ".rows"

FORMAT = {"format": "resnest_seg shards", "version": 1}
"""The first entries of an index."""

SHARD_SIZE = 256_000_000
"""Bytes of a shard, at most, unless one sample has more."""

_PART = re.compile(r"(\w+?)(?:-\d{6,}\.(?:tar|rows)|\.npz)")
_SPLIT = re.compile(r"\w+")


@dataclasses.dataclass(frozen=True)
class SplitIndex:
    """A packed split.

    Attributes:
        samples: Number of samples.
        identity: Identity of the data set that was packed, see `SegmentationDataset.identity`.
        suffixes: Suffixes of photos by their number in the table.
        shards: The tar files.
    """

    samples: int
    identity: str
    suffixes: tuple[str, ...]
    shards: tuple[Shard, ...]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SplitIndex:
        """Read the values of `dataclasses.asdict`; raises a KeyError, TypeError or ValueError of others."""
        shards = [Shard(str(each["name"]), int(each["size"]), str(each["sha256"])) for each in values["shards"]]
        suffixes = tuple(str(suffix) for suffix in values["suffixes"])
        if any(not 0 <= shard.size < 1 << 62 for shard in shards):
            raise ValueError("the size of a shard is out of range")
        return cls(int(values["samples"]), str(values["identity"]), suffixes, tuple(shards))


@dataclasses.dataclass(frozen=True)
class ShardIndex:
    """What is in a folder of shards.

    Attributes:
        label_space: The classes.
        splits: The splits by name.
        bands: The bands that were read when it was packed, where its images are no photos; the shards hold all bands.
    """

    label_space: LabelSpace
    splits: dict[str, SplitIndex]
    bands: tuple[int | str, ...] | None = None

    @property
    def shards(self) -> list[Shard]:
        """The tar files of all splits."""
        return [shard for split in self.splits.values() for shard in split.shards]

    def to_json(self) -> str:
        """Return the content of index.json."""
        splits = {
            name: dataclasses.asdict(split) | {"shards": [shard._asdict() for shard in split.shards]}
            for name, split in self.splits.items()
        }
        space = self.label_space
        values = FORMAT | {"task": space.task, "bands": self.bands, "label_space": space.to_dict(), "splits": splits}
        return json.dumps(values, indent=1) + "\n"

    @classmethod
    def read(cls, source: Source) -> ShardIndex:
        """Read the index of a storage.

        Raises:
            DatasetError: There is none, it is damaged, or of a version that is not known here.
        """
        where = source.locate(INDEX)
        if not source.has(INDEX):
            begun = f"{command('pack')} makes one"
            if source.has(PACKING):
                begun = "it was not packed to its end, and the command that packed it goes on where it was stopped"
            raise DatasetError(f"no packed data set: there is no {where}: {begun}.")
        data = source.read(INDEX)
        try:
            values = json.loads(data)
            if values["format"] != FORMAT["format"]:
                raise ValueError(f"its format is {values['format']!r}")
            if values["version"] != FORMAT["version"]:
                raise DatasetError(
                    f"{where} has version {values['version']!r}, and version {FORMAT['version']} is read here: pack "
                    "the data set anew, or use a newer resnest_seg."
                )
            splits = {str(name): SplitIndex.from_dict(split) for name, split in values["splits"].items()}
            bands = None if values["bands"] is None else tuple(values["bands"])
            return cls(LabelSpace.from_dict(values["label_space"]), splits, bands)
        except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
            if isinstance(error, DatasetError):
                raise
            why = " ".join(str(error).split())[:200]
            raise DatasetError(
                f"cannot read {where}: damaged, or no index of shards ({type(error).__name__}: {why}). Copy it again, "
                "or pack the data set anew."
            ) from None


class _Members(Sequence[tuple[str, str | None]]):
    """The names of photos and masks in shards, made when they are asked for: no list of a million strings."""

    def __init__(self, source: TarShards) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source.table)

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.source.photo_name(index), self.source.mask_name(index)


class ShardDataset(PairedFiles):
    """A packed split: the samples of the data set that was packed, in its order, with its names and classes.

    Args:
        root: The folder of the shards, their address such as s3://bucket/shards, or a storage that is open.
        split: A split that was packed.

    Attributes:
        index: What is in the folder.
        source: The shards.

    Raises:
        DatasetError: There is no index, it is damaged or has no such split.
    """

    source: TarShards

    def __init__(self, root: str | Path | Source, split: str = "train") -> None:
        place = open_source(root, zips=())
        if not isinstance(place, FolderSource | RemoteSource):
            raise DatasetError(f"packed shards are read from a folder or an address: unpack {place.locate('')}.")
        self.index, name = ShardIndex.read(place), f"{split}.npz"
        if split not in self.index.splits:
            raise DatasetError(f"{place.locate(INDEX)}: {unknown_name('split', split, self.index.splits)}")
        packed, where = self.index.splits[split], place.locate(name)
        if not place.has(name):
            raise DatasetError(f"{where} is missing, which says where samples lie: copy it as well.")
        table = SampleTable.from_bytes(place.read(name), where, samples=packed.samples)
        source = TarShards(place, packed.shards, table, packed.suffixes)
        space = self.index.label_space
        super().__init__(
            space, split, source, _Members(source), encoding=_stored_ids(space), allow_missing=True
        )  # the table knows which masks there are

    def identity(self) -> str:
        """Return the identity of the data set that was packed: a run may go on with either."""
        return self.index.splits[self.split].identity

    def sample_name(self, index: int) -> str:
        """The name that the sample had in the data set that was packed."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.source.table.names[index]

    def group(self, index: int) -> str:
        """The group that the sample had in the data set that was packed."""
        groups = self.source.table.groups
        return groups[index] if len(groups) else self.sample_name(index)


def _stored_ids(space: LabelSpace) -> LabelSpace:
    """The label space of masks of train ids, as they are in shards."""
    if space.task == "multilabel":
        return space
    return dataclasses.replace(
        space,
        name=f"train ids of {space.name}",
        raw_ids=tuple(range(len(space))),
        ignored_raw_ids=(IGNORE_LABEL,),
        ignored_colors=(),
    )


def shard_numbers(dataset: SegmentationDataset) -> NDArray[np.int64] | None:
    """Return the number of the shard in which each sample lies, [N]; None where a data set is not packed."""
    if not isinstance(behind_views(dataset), ShardDataset):
        return None
    indices = np.arange(len(dataset))
    while isinstance(dataset, DatasetView):
        if type(dataset).inner_index is not DatasetView.inner_index:
            indices = np.array([dataset.inner_index(int(index)) for index in indices], np.int64)
        dataset = dataset.inner
    assert isinstance(dataset, ShardDataset)
    return dataset.source.table.rows["shard"][indices].astype(np.int64)


def is_packed(root: str | Path | Source) -> bool:
    """True if a folder or an open storage holds packed shards: its index.json begins as theirs do."""
    if isinstance(root, Source):
        return root.has(INDEX) and _MARK in root.read(INDEX)[: len(_MARK) + 20]
    try:
        with open(Path(root) / INDEX, "rb") as file:
            return _MARK in file.read(len(_MARK) + 20)
    except (OSError, ValueError):
        return False


_MARK = f'"{FORMAT["format"]}"'.encode()


def pack_shards(
    splits: Sequence[SegmentationDataset],
    output: str | Path,
    *,
    shard_size: int = SHARD_SIZE,
    workers: int = 0,
    overwrite: bool = False,
    on_sample: Callable[[int], None] | None = None,
) -> ShardIndex:
    """Pack the splits of a data set into tar shards, which `ShardDataset` reads with the same samples.

    Every photo and mask is read and checked. Files of photos keep their bytes; images of other data sets become PNG
    files, and bands .npy files. Masks become PNG files of train ids, 255 ignored, or of bits. What was interrupted goes
    on where it was: finished shards stay.

    Args:
        splits: The splits, of equal classes.
        output: The folder, new or empty, or that of an interrupted call.
        shard_size: Bytes of a shard, at most, unless one sample has more.
        workers: Loader processes; the shards do not depend on their number.
        overwrite: Replace what was packed in the folder before; other files are never removed.
        on_sample: Called with 1 for every packed sample, and with the number of those that were packed before.

    Raises:
        ConfigError: The folder holds something else, another pack or the data set itself; a data set of windows, or
            splits of one name or of different classes.
        DatasetError: A photo or mask cannot be read; the message names it.
        OSError: The disk is full.
    """
    folder = Path(output)
    _check_splits(splits, folder)
    check_output_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        _begin(splits, folder, shard_size, overwrite=overwrite)
        said = on_sample or (lambda count: None)
        packed = {dataset.split: _pack_split(dataset, folder, shard_size, workers, said) for dataset in splits}
        bands = None if splits[0].bands is None else splits[0].bands.bands
        index = ShardIndex(splits[0].label_space, packed, bands)
        _write(folder / INDEX, index.to_json().encode())
        for path in [folder / PACKING, *folder.glob(f"*{ROWS}")]:
            path.unlink(missing_ok=True)
    return index


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Within this, no other process packs into the folder.

    Raises:
        ConfigError: Another one does.
    """
    lock = FileLock(folder / LOCK, blocking=False, fallback_to_soft=False)
    with contextlib.suppress(OSError):  # a file system without locks: two calls would write the same bytes
        try:
            lock.acquire()
        except Timeout:
            raise ConfigError(
                f"another process is packing into {printable(str(folder))}: wait for it to end."
            ) from None
    try:
        yield
    finally:
        (folder / LOCK).unlink(missing_ok=True)
        lock.release()


def _check_splits(splits: Sequence[SegmentationDataset], folder: Path) -> None:
    if not splits:
        raise ConfigError("there is nothing to pack: no split of the data set was given.")
    names = [dataset.split for dataset in splits]
    for dataset in splits:
        if not _SPLIT.fullmatch(dataset.split) or names.count(dataset.split) > 1:
            raise ConfigError(f"the names of splits must be different words, not {', '.join(map(repr, names))}.")
        if isinstance(behind_views(dataset), WindowDataset):
            raise ConfigError(
                "windows of rasters cannot be packed: training takes them at random places, and shards hold whole "
                "files. Pack whole images (without data.window), cut into tiles where they are too large."
            )
        if dataset.label_space != splits[0].label_space:
            raise ConfigError(f"the splits {names[0]} and {dataset.split} have different classes: pack them apart.")
        files = behind_views(dataset)
        root = _folder_of(files.source) if isinstance(files, PairedFiles) else None
        if root is not None and root.resolve() == folder.resolve():
            raise ConfigError(
                f"{printable(str(folder))} holds the data set that is to be packed: choose another --output."
            )


def _folder_of(source: Source) -> Path | None:
    if isinstance(source, TarShards):
        source = source.place
    return source.root if isinstance(source, FolderSource) else None


def _begin(splits: Sequence[SegmentationDataset], folder: Path, shard_size: int, *, overwrite: bool) -> None:
    """Check what is in the folder, remove what must go, and say what is being packed.

    Raises:
        ConfigError: The folder holds something that must stay.
    """
    shown, there = printable(str(folder)), sorted(path.name for path in folder.iterdir())
    recorded = [name for name in (INDEX, PACKING) if name in there]
    packed = {dataset.split for dataset in splits}.union(*(_splits_in(folder / name) for name in recorded))
    own = {LOCK, *recorded, *(name for name in there if TEMPORARY.fullmatch(name))}
    if recorded:  # without a record, what looks like shards is another's, such as WebDataset's
        own |= {name for name in there if (part := _PART.fullmatch(name)) and part[1] in packed}
    strange = [name for name in there if name not in own]
    if strange:
        raise ConfigError(f"{shown} holds other files, such as {printable(strange[0])}: choose another --output.")
    job = FORMAT | {
        "shard_size": shard_size,
        "label_space": splits[0].label_space.to_dict(),
        "splits": {dataset.split: {"samples": len(dataset), "identity": dataset.identity()} for dataset in splits},
    }
    text = json.dumps(job, indent=1) + "\n"
    before = (folder / PACKING).read_bytes() if PACKING in there else None
    if not overwrite and INDEX in there:
        raise ConfigError(f"{shown} holds a packed data set already: choose another --output, or pass --overwrite.")
    if not overwrite and before is not None and before != text.encode():
        raise ConfigError(
            f"another call began to pack into {shown} ({_difference(before, json.loads(text))}): give its options to "
            "go on, choose another --output, or pass --overwrite to begin anew."
        )
    if overwrite and recorded:  # until all is gone, the folder is ours and belongs to no call
        _write(folder / PACKING, json.dumps({"splits": dict.fromkeys(packed)}).encode())
    for name in sorted(there, key=lambda name: name != INDEX):  # first what calls the rest whole
        if (overwrite or TEMPORARY.fullmatch(name)) and name not in (LOCK, PACKING):
            (folder / name).unlink(missing_ok=True)
    _write(folder / PACKING, text.encode())


def _splits_in(record: Path) -> set[str]:
    """The splits that an index, or what is being packed, names; none if it is damaged."""
    try:
        return set(json.loads(record.read_bytes())["splits"])
    except (ValueError, TypeError, KeyError):
        return set()


def _difference(before: bytes, job: Mapping[str, Any]) -> str:
    """Say in what another call differs."""
    try:
        other = json.loads(before)
        keys = [key for key in job if other.get(key) != job[key]]
    except (ValueError, AttributeError):
        return f"{PACKING} is damaged"
    if "shard_size" in keys and "shard_size" in other:
        return f"shards of {other['shard_size']} bytes, not {job['shard_size']}"
    return f"other {', '.join(key.replace('_', ' ') for key in keys)}"


def _pack_split(
    dataset: SegmentationDataset, folder: Path, shard_size: int, workers: int, on_sample: Callable[[int], None]
) -> SplitIndex:
    """Write the shards of a split that are not there yet, and its table."""
    suffixes, shards, tables = list[str](), list[Shard](), list[SampleTable]()

    def place(number: int, suffix: str) -> Path:
        return folder / f"{dataset.split}-{number:06}{suffix}"

    while (before := _finished(place(len(shards), ROWS))) is not None:
        shard, table, suffixes = before
        shards.append(shard)
        tables.append(table)
    first = sum(map(len, tables))
    on_sample(first)
    order = ([index] for index in range(first, len(dataset)))
    with contextlib.closing(run_loader(_Packed(dataset), order, _the_only_one, workers=workers)) as stream:
        rest = next(stream, None)
        while rest is not None:
            chosen, path = _Chosen(rest, stream, shard_size, on_sample), place(len(shards), ".tar")
            with atomic_write(path) as temporary:
                shard, table = write_shard(temporary, first, iter(chosen), suffixes)
            shards.append(shard._replace(name=path.name))
            about = json.dumps([shards[-1], suffixes]).encode()
            _write(path.with_suffix(ROWS), about + b"\n" + table.to_bytes())
            tables.append(table)
            first, rest = first + len(table), chosen.rest
    _write(folder / f"{dataset.split}.npz", SampleTable.joined(tables).to_bytes())
    return SplitIndex(len(dataset), dataset.identity(), tuple(suffixes), tuple(shards))


def _finished(rows: Path) -> tuple[Shard, SampleTable, list[str]] | None:
    """Read what was written behind a finished shard; None if there is no such shard, or it is not whole."""
    try:
        about, _, data = rows.read_bytes().partition(b"\n")
        values, suffixes = json.loads(about)
        shard, table = Shard(*values), SampleTable.from_bytes(data, printable(str(rows)))
        return (shard, table, suffixes) if rows.with_suffix(".tar").stat().st_size == shard.size else None
    except (OSError, TypeError, ValueError):
        return None


class _Chosen:
    """The samples of one shard.

    Args:
        first: The first of them.
        waiting: The following samples of the split.
        limit: Bytes of the samples together, at most.
        on_sample: Called with 1 for every sample.

    Attributes:
        rest: The first sample of the next shard, after an iteration; None if there is no more.
    """

    def __init__(
        self, first: SampleFiles, waiting: Iterator[SampleFiles], limit: int, on_sample: Callable[[int], None]
    ) -> None:
        self.rest: SampleFiles | None = first
        self.waiting, self.limit, self.on_sample = waiting, limit, on_sample

    def __iter__(self) -> Iterator[SampleFiles]:
        size = 0
        while self.rest is not None and (not size or size + self.rest.size <= self.limit):
            size += self.rest.size
            yield self.rest
            self.on_sample(1)
            self.rest = next(self.waiting, None)


class _Packed(Dataset["SampleFiles | ResNeStSegError"]):
    """Files by index. An error is returned as a value: raised in a loader process it would become a traceback."""

    def __init__(self, dataset: SegmentationDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, index: int) -> SampleFiles | ResNeStSegError:
        try:
            suffix, photo, mask = _files_of(self.dataset, index)
            return SampleFiles(self.dataset.sample_name(index), self.dataset.group(index), suffix, photo, mask)
        except ResNeStSegError as error:
            return error


def _the_only_one(batch: Sequence[SampleFiles]) -> SampleFiles:
    return batch[0]


def _files_of(view: SegmentationDataset, position: int) -> tuple[str, bytes, bytes]:
    """The suffix and content of a photo, and the content of its mask."""
    dataset, index = view, position
    while isinstance(dataset, DatasetView):
        index, dataset = dataset.inner_index(index), dataset.inner
    if not isinstance(dataset, PairedFiles):
        sample = view[position]
        suffix, photo = _image_file(sample.image)
        return suffix, photo, _png(sample.labels)
    photo_name, mask_name = dataset.pairs[index]
    photo, suffix = dataset.source.read(photo_name), PurePosixPath(photo_name).suffix.lower()
    if view.label_space != dataset.label_space:  # of another task
        return suffix, photo, _png(view[position].labels)
    image = dataset.decode(photo, dataset.source.locate(photo_name)).pixels  # a damaged one is found now
    if mask_name is None:
        return suffix, photo, b""
    raw = dataset.read_mask(mask_name)
    if raw.shape[:2] != image.shape[:2]:
        raise DatasetError(dataset.size_problem(index, image, raw))
    return suffix, photo, _png(dataset.encode(mask_name, raw))


def _image_file(image: NDArray[Any]) -> tuple[str, bytes]:
    """Suffix and content of a file that holds an image [H, W, C] exactly."""
    if image.dtype == np.uint8 and image.shape[2] == 3:
        return ".png", _png(image[..., ::-1])
    buffer = io.BytesIO()
    np.save(buffer, image, allow_pickle=False)
    return ".npy", buffer.getvalue()


def _png(pixels: NDArray[Any]) -> bytes:
    done, data = cv2.imencode(".png", np.ascontiguousarray(pixels), (cv2.IMWRITE_PNG_COMPRESSION, 6))
    assert done
    return data.tobytes()


def _write(path: Path, data: bytes) -> None:
    with atomic_write(path) as temporary:
        temporary.write_bytes(data)
