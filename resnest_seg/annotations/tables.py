"""Hugging Face `datasets`: Parquet files, a folder saved to disk, or an imagefolder with metadata.

Rows hold a photo and a mask of class numbers; 255 is ignored. Names are those of id2label.json beside the data. Reading
Parquet and Arrow needs pyarrow alone, not `datasets`.
"""

from __future__ import annotations

import csv
import functools
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnest_seg.annotations.objects import AnnotatedImage, AnnotatedObject, AnnotatedSet, ReadOptions
from resnest_seg.annotations.reading import Item, Photos, read_bytes, read_json, read_text, shown, split_in, walk
from resnest_seg.annotations.voc import objects_of_ids
from resnest_seg.errors import DatasetError, load_extra, printable
from resnest_seg.io.masks import decode_mask
from resnest_seg.labels import IGNORE_LABEL

PHOTO_COLUMNS = ("image", "pixel_values", "img", "photo", "jpg")
"""Names of a column of photos, the first that exists counts."""

MASK_COLUMNS = ("annotation", "mask", "label", "labels", "segmentation", "semantic_segmentation", "seg", "annotations")
"""Names of a column of masks, the first that exists counts."""

_MAGIC = {b"\xff\xd8": ".jpg", b"\x89PNG": ".png", b"RIFF": ".webp", b"II*\0": ".tif", b"MM\0*": ".tif", b"BM": ".bmp"}


def tables_in(folder: Path) -> list[Path]:
    """List the table files of a folder: Parquet, Arrow, or metadata of an imagefolder."""
    columns = [path for path in walk(folder, (".parquet", ".arrow")) if not path.name.startswith("cache-")]
    plain = [path for path in columns if path.stem != "metadata"]
    return plain or [path for path in walk(folder, (".csv", ".jsonl", ".parquet")) if path.stem == "metadata"]


def read(source: Path, options: ReadOptions) -> AnnotatedSet:
    """Read a table file, or a folder of them; splits are those in the names of files and folders.

    Raises:
        DatasetError: A file is damaged, a column is missing or holds something else, or a number has no name.
        ConfigError: pyarrow is not installed.
    """
    files = [source] if source.is_file() else tables_in(source)
    if not files:
        raise DatasetError(f"{printable(str(source))} holds no table (.parquet, .arrow, metadata.csv, metadata.jsonl).")
    base = source.parent if source.is_file() else source
    listing, numbers = _id2label(base, fill=not options.numbers)
    if not numbers:
        numbers = options.numbers
        if options.reduce_labels and numbers.get(0) is None:  # its ids are those in the files, from 1
            numbers = {number - 1: name for number, name in numbers.items() if number}
    rows: list[tuple[_Rows, int]] = []
    for file in files:
        table = _open(file, options)
        rows += [(table, row) for row in range(len(table))]
    if not rows:
        raise DatasetError(f"{printable(str(files[0]))} has no rows.")
    if not numbers:
        numbers = _numbered(rows, options.reduce_labels)
    named_by = "--classes FILE" if listing is None else printable(str(listing))
    images = []
    for count, (table, row) in enumerate(rows):

        def objects(height: int, width: int, table: _Rows = table, row: int = row) -> Iterator[AnnotatedObject]:
            ids = _ids(table, row, reduce=options.reduce_labels)
            if ids.shape != (height, width):
                raise DatasetError(
                    f"{table.place(row)}: the mask has {ids.shape[1]} x {ids.shape[0]} pixels, and the photo has "
                    f"{width} x {height}."
                )
            return objects_of_ids(ids, numbers, table.place(row), listing=named_by)

        split = split_in(table.path.stem) or (split_in(table.path.parent.name) if table.path.parent != base else None)
        images.append(
            AnnotatedImage(
                table.name(row, count), table.photo(row), table.place(row), objects, None, split, table.mask_file(row)
            )
        )
    classes = dict.fromkeys(name for name in numbers.values() if name is not None)
    return AnnotatedSet(classes, images, "list", "ignore", files if listing is None else [listing, *files])


def _id2label(base: Path, *, fill: bool) -> tuple[Path | None, Mapping[int, str | None]]:
    """Return the file of names beside tables, or None, and class names by number; `fill` gives one to gaps, too."""
    file = next((path for path in (base / "id2label.json", base / "data" / "id2label.json") if path.is_file()), None)
    if file is None:
        return None, {}
    document = read_json(file)
    numbered: dict[int, str] = {}
    for key, name in document.pairs():
        if not key.isdecimal() or int(key[:4]) > 254:
            raise name.wrong(f"{shown(key)} is no class number, 0..254")
        numbered[int(key)] = name.text().strip()
    every = range(max(numbered, default=-1) + 1) if fill else sorted(numbered)
    names = {number: numbered.get(number, f"class {number}") for number in every}
    if len(set(names.values())) < len(names) or not names:
        raise document.wrong("there is no name" if not names else "two classes have the same name")
    return file, names


def _numbered(rows: Sequence[tuple[_Rows, int]], reduce: bool) -> dict[int, str | None]:
    highest = -1
    for table, row in rows:
        ids = _ids(table, row, reduce=reduce)
        highest = max(highest, int(ids[ids != IGNORE_LABEL].max(initial=0)))
    return {number: f"class {number}" for number in range(highest + 1)}


def _ids(table: _Rows, row: int, *, reduce: bool) -> NDArray[np.uint8]:
    pixels = decode_mask(table.mask(row), f"{table.place(row)}, column {table.columns[1]}")
    if pixels.ndim == 3:
        if (pixels != pixels[..., :1]).any():
            raise DatasetError(f"{table.place(row)}: the mask is of colours (RGB), and numbers of classes are needed.")
        pixels = pixels[..., 0]
    if not reduce:
        return pixels
    return np.where(pixels == IGNORE_LABEL, pixels, pixels - np.uint8(1))  # 0 becomes 255 as well


class _Rows:
    """Rows of one file with a photo and a mask."""

    path: Path
    columns: tuple[str, str]

    def __len__(self) -> int:
        raise NotImplementedError

    def place(self, row: int) -> str:
        """Return the row's place for messages."""
        return f"{printable(str(self.path))}, row {row}"

    def name(self, row: int, count: int) -> str:
        """Return the name of the row's photo."""
        raise NotImplementedError

    def photo(self, row: int) -> Any:
        """Return the photo's file, or a function that returns its content."""
        raise NotImplementedError

    def mask(self, row: int) -> bytes:
        """Return the content of the row's mask."""
        raise NotImplementedError

    def mask_file(self, row: int) -> Path | None:
        """Return the file of the row's mask, if it is not in the table."""
        return None


def _open(file: Path, options: ReadOptions) -> _Rows:
    if file.suffix.lower() in (".csv", ".jsonl") or file.stem == "metadata":
        return _Metadata(file, options)
    return _Columns(file, options)


class _Columns(_Rows):
    """Rows of a Parquet or Arrow file, whose pictures are structures of bytes and path."""

    def __init__(self, path: Path, options: ReadOptions) -> None:
        self.path, self._photos = path, _photos_of(path, options)
        arrow = load_extra("pyarrow", "import")
        try:
            if path.suffix.lower() == ".parquet":
                self._file = load_extra("pyarrow.parquet", "import").ParquetFile(path)
                schema, groups = self._file.schema_arrow, range(self._file.num_row_groups)
                self._sizes = [self._file.metadata.row_group(group).num_rows for group in groups]
            else:
                self._file, self._memory = None, _arrow_table(arrow, path)
                schema, self._sizes = self._memory.schema, [self._memory.num_rows]
        except (arrow.ArrowException, OSError, ValueError) as error:
            if isinstance(error, DatasetError):
                raise
            why = " ".join(str(error).split())[:200]
            raise DatasetError(f"cannot read {printable(str(path))}: {why}.") from None
        self.columns = _chosen(schema.names, path)
        for column in self.columns:
            kind = schema.field(column).type
            if not arrow.types.is_struct(kind) or {"bytes", "path"} - {field.name for field in kind}:
                raise DatasetError(
                    f"{printable(str(path))}: the column {column} holds {shown(str(kind))}, not pictures."
                )

    def __len__(self) -> int:
        return sum(self._sizes)

    @functools.lru_cache(maxsize=1)  # noqa: B019, one row group; the reader lives as long as the import
    def _group(self, group: int) -> Any:
        if self._file is None:
            return self._memory.select(list(self.columns))
        arrow = load_extra("pyarrow", "import")
        try:
            return self._file.read_row_group(group, columns=list(self.columns))
        except (arrow.ArrowException, OSError, ValueError) as error:
            raise DatasetError(
                f"cannot read {printable(str(self.path))}, rows {group}: {' '.join(str(error).split())[:200]}."
            ) from None

    def _cell(self, row: int, column: str) -> Mapping[str, Any]:
        group, index = 0, row
        while index >= self._sizes[group]:
            index, group = index - self._sizes[group], group + 1
        cell = self._group(group).column(column)[index].as_py()
        if not isinstance(cell, Mapping):
            raise DatasetError(f"{self.place(row)}: the column {column} is empty.")
        return cell

    def _content(self, row: int, column: str) -> bytes:
        cell = self._cell(row, column)
        if isinstance(cell["bytes"], bytes):
            return cell["bytes"]
        if not isinstance(cell["path"], str):
            raise DatasetError(f"{self.place(row)}: the column {column} has neither bytes nor a path: {shown(cell)}.")
        path, _ = self._photos.find(cell["path"], self.place(row))
        return read_bytes(path)

    def name(self, row: int, count: int) -> str:
        """Return the name in the table, or the row's number."""
        cell = self._cell(row, self.columns[0])
        stem = Path(str(cell["path"]).replace("\\", "/")).name if cell["path"] else f"{count:06d}"
        data = cell["bytes"] or b""
        suffix = next(
            (suffix for magic, suffix in _MAGIC.items() if data.startswith(magic)), Path(stem).suffix or ".png"
        )
        return f"{stem.removesuffix(Path(stem).suffix)}{suffix}"

    def photo(self, row: int) -> Any:
        """Return a function that returns the photo's content."""
        return lambda: self._content(row, self.columns[0])

    def mask(self, row: int) -> bytes:
        """Return the content of the row's mask."""
        return self._content(row, self.columns[1])


def _photos_of(path: Path, options: ReadOptions) -> Photos:
    return Photos([options.photos or path.parent], below=options.photos)


def _arrow_table(arrow: Any, path: Path) -> Any:
    ipc = load_extra("pyarrow.ipc", "import")
    try:
        return ipc.open_stream(arrow.memory_map(str(path))).read_all()
    except arrow.ArrowInvalid:
        return ipc.open_file(arrow.memory_map(str(path))).read_all()


def _chosen(names: Sequence[str], path: Path) -> tuple[str, str]:
    """Choose the columns of photos and of masks."""
    photo = next((name for name in PHOTO_COLUMNS if name in names), None)
    mask = next((name for name in MASK_COLUMNS if name in names), None)
    if photo is None or mask is None:
        what, known = ("photos", PHOTO_COLUMNS) if photo is None else ("masks", MASK_COLUMNS)
        raise DatasetError(
            f"{printable(str(path))} has no column of {what} ({', '.join(known)}), only {shown(list(names))}: rename "
            "one."
        )
    return photo, mask


class _Metadata(_Rows):
    """Rows of an imagefolder's metadata: `file_name`, and a mask's name in `mask_file_name` or the like."""

    def __init__(self, path: Path, options: ReadOptions) -> None:
        self.path, self._photos = path, _photos_of(path, options)
        self._masks = Photos([path.parent, *self._photos.roots], below=options.photos)
        self._rows = _plain_rows(path)
        names = list(self._rows[0]) if self._rows else []
        photo = next((name for name in ("file_name", "image_file_name") if name in names), None)
        masks = [name for name in names if name.endswith("_file_name") and name != photo]
        if photo is None or len(masks) != 1:
            raise DatasetError(
                f"{printable(str(path))} must have a column file_name and one such as mask_file_name, not "
                f"{shown(names)}."
            )
        self.columns = photo, masks[0]

    def __len__(self) -> int:
        return len(self._rows)

    def _entry(self, row: int, column: str) -> Item:
        return Item(self._rows[row].get(column), self.place(row), column)

    def _found(self, row: int, column: str) -> tuple[Path, str]:
        return self._photos.find(self._entry(row, column).text(), self.place(row))

    def name(self, row: int, count: int) -> str:
        """Return the photo's name below the folder of the metadata."""
        return self._found(row, self.columns[0])[1]

    def photo(self, row: int) -> Any:
        """Return the photo's file."""
        return self._found(row, self.columns[0])[0]

    def mask_file(self, row: int) -> Path:
        """Return the file of the row's mask, which lies beside the metadata or where the photos are."""
        entry = self._entry(row, self.columns[1])
        path, _ = self._masks.find(entry.text(), self.place(row))
        if path.samefile(photo := self.photo(row)):
            raise entry.wrong(f"{shown(entry.value)} leads to the photo {printable(str(photo))}: there is no such mask")
        return path

    def mask(self, row: int) -> bytes:
        """Return the content of the row's mask."""
        return read_bytes(self.mask_file(row))


def _plain_rows(path: Path) -> list[Mapping[str, Any]]:
    if path.suffix.lower() == ".parquet":
        arrow = load_extra("pyarrow", "import")
        try:
            rows: list[Mapping[str, Any]] = load_extra("pyarrow.parquet", "import").read_table(path).to_pylist()
        except (arrow.ArrowException, OSError, ValueError) as error:
            raise DatasetError(f"cannot read {printable(str(path))}: {' '.join(str(error).split())[:200]}.") from None
        return rows
    text = read_text(path)
    if path.suffix.lower() == ".csv":
        try:
            return list(_rows_of_csv(path, text))
        except csv.Error as error:
            raise DatasetError(f"{printable(str(path))} is not valid CSV: {error}.") from None
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DatasetError(
                f"{printable(str(path))}, line {number} is not valid JSON: {str(error)[:200]}."
            ) from None
        if not isinstance(value, Mapping):
            raise DatasetError(f"{printable(str(path))}, line {number} must be a mapping, not {shown(value)}.")
        rows.append(value)
    return rows


def _rows_of_csv(path: Path, text: str) -> Iterator[Mapping[str, Any]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    for row in reader:
        beyond = row.pop(None, [])
        if any(beyond):  # a comma at the end alone is harmless
            columns = len(reader.fieldnames or ())
            raise DatasetError(
                f"{printable(str(path))}, line {reader.line_num} has {columns + len(beyond)} values, and the header "
                f"{columns} columns: write a value that holds a comma in quotes."
            )
        yield row
