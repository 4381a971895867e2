"""TIFF files read by windows, at random, in whichever process asks: few open files, little memory, no shared handle."""

from __future__ import annotations

import collections
import contextlib
import importlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from resnest_seg.errors import DatasetError, printable
from resnest_seg.io.bands import BandReader, Raster
from resnest_seg.io.georeference import all_valid, is_tiff, open_tiff
from resnest_seg.io.large_images import LIMIT, gdal, gdal_errors

MOST_OPEN = 16
"""Files that a process keeps open."""

BLOCKS = 64 << 20
"""Bytes of decoded tiles and strips that GDAL keeps in a process."""


class Window(NamedTuple):
    """A part of a raster, in pixels."""

    top: int
    left: int
    height: int
    width: int

    def __str__(self) -> str:
        last = self.top + self.height - 1, self.left + self.width - 1
        return f"rows {self.top} to {last[0]}, columns {self.left} to {last[1]}"

    @property
    def ranges(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Rows and columns as rasterio takes them."""
        return (self.top, self.top + self.height), (self.left, self.left + self.width)

    def as_rasterio(self) -> Any:
        """Convert to rasterio's own type."""
        return importlib.import_module("rasterio.windows").Window(self.left, self.top, self.width, self.height)


class RasterWindows:
    """Opens TIFF files for reading by windows, and keeps the last `MOST_OPEN` open.

    It can be sent to other processes, and used after a fork: every process opens the files again.
    """

    def __init__(self) -> None:
        self._owner = os.getpid()
        self._open: collections.OrderedDict[str, Any] = collections.OrderedDict()

    def source(self, path: str | Path) -> Any:
        """The rasterio data set of a file, open until others are.

        Raises:
            DatasetError: No TIFF, a damaged one, or one whose parts are too large to be read alone.
            ConfigError: rasterio is not installed.
        """
        if self._owner != os.getpid():
            self._owner, self._open = os.getpid(), collections.OrderedDict()
        key = str(path)
        if key not in self._open:
            if not is_tiff(path):
                _refuse(path)
            while len(self._open) >= MOST_OPEN:
                self._open.popitem(last=False)[1].close()
            with gdal(BLOCKS):
                source = open_tiff(path)
            tall, wide = source.block_shapes[0]
            if tall * wide * np.dtype(source.dtypes[0]).itemsize * source.count > LIMIT:
                source.close()
                raise DatasetError(
                    f"cannot read {printable(key)} by windows: its parts are {tall} x {wide} pixels. {_tiled(path)}"
                )
            self._open[key] = source
        self._open.move_to_end(key)
        return self._open[key]

    def close(self) -> None:
        """Close all files; the next window opens its own again."""
        if self._owner == os.getpid():
            for source in self._open.values():
                source.close()
        self._open.clear()

    @contextlib.contextmanager
    def reading(self, path: str | Path, window: Window) -> Iterator[Any]:
        """The data set of a file, to read a window of it; what GDAL cannot decode becomes a `DatasetError`."""
        source = self.source(path)
        try:
            with gdal(BLOCKS):
                yield source
        except gdal_errors() as error:
            if isinstance(error, DatasetError):
                raise
            raise DatasetError(
                f"cannot read {window} of {printable(str(path))}: damaged, or not complete "
                f"({str(error.__cause__ or error).rstrip('.')})."
            ) from None

    def bands(self, path: str | Path, window: Window) -> NDArray[Any]:
        """All bands of a window, as they are stored: [h, w, C].

        Raises:
            DatasetError: The window cannot be decoded; names it and the file.
        """
        with self.reading(path, window) as source:
            planes: NDArray[Any] = source.read(window=window.ranges)
        return np.ascontiguousarray(planes.transpose(1, 2, 0))

    def valid(self, path: str | Path, window: Window) -> NDArray[np.bool_] | None:
        """Which pixels of a window have data in some band, by the file's own no-data value, mask or alpha: [h, w].

        None where all have. See `bands` for the errors.
        """
        with self.reading(path, window) as source:
            if all_valid(source):
                return None
            found: NDArray[np.bool_] = source.dataset_mask(window=window.ranges) > 0
        return None if found.all() else found

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]


class LargeBands:
    """Named bands of a TIFF that does not fit into memory, by windows: `LargeImage` for what is no photo.

    Args:
        path: The file.
        bands: Which bands are read, and what means no data; that gets `bands.fill`.

    Attributes:
        shape: (H, W, C), as of an array.

    Raises:
        DatasetError: No TIFF, or one that cannot be read by windows.
        ConfigError: rasterio is not installed.
    """

    def __init__(self, path: str | Path, bands: BandReader) -> None:
        self.path, self.reader, self._rasters = Path(path), bands, RasterWindows()
        source = self._rasters.source(path)
        chosen = bands.numbers(source.count, [text or "" for text in source.descriptions], printable(str(path)))
        self.shape = (int(source.height), int(source.width), len(chosen))

    def read(self, window: Window) -> Raster:
        """A window with its values without data; see `resnest_seg.io.bands.BandReader.decode` for the errors."""
        with self._rasters.reading(self.path, window) as source:
            name = f"{window} of {printable(str(self.path))}"
            return self.reader.window_of(source, name, window.as_rasterio())

    def __getitem__(self, window: tuple[slice, slice]) -> NDArray[Any]:
        """`image[top:bottom, left:right]`, as of an array; steps are 1."""
        (top, bottom, _), (left, right, _) = (
            part.indices(size) for part, size in zip(window, self.shape[:2], strict=True)
        )
        return self.read(Window(top, left, bottom - top, right - left)).pixels

    def without_data(self, first: int, count: int) -> NDArray[np.bool_] | None:
        """Mask of pixels with no data in any band, rows from `first`: bool [count, W]; None if there are none."""
        valid = self.read(Window(first, 0, count, self.shape[1])).valid
        return None if valid is None else np.asarray(~valid.any(axis=2))

    def preview(self, *, longest: int) -> Raster:
        """The raster in small, nearest pixels: its longer side has at most `longest`."""
        height, width, _ = self.shape
        scale = min(longest / max(height, width), 1.0)
        size = max(round(height * scale), 1), max(round(width * scale), 1)
        with self._rasters.reading(self.path, Window(0, 0, height, width)) as source:
            names = [text or "" for text in source.descriptions]
            chosen = self.reader.numbers(source.count, names, printable(str(self.path)))
            pixels = source.read(chosen, out_shape=(len(chosen), *size)).transpose(1, 2, 0)
            valid = self.reader.mask_of(source, printable(str(self.path)), size=size)
            return self.reader.checked(np.ascontiguousarray(pixels), printable(str(self.path)), valid)

    def close(self) -> None:
        """Close the file."""
        self._rasters.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def palette_of(source: Any) -> NDArray[np.uint8] | None:
    """Colours of an open palette raster by value, uint8 [256, 3]; None for others."""
    if source.count != 1 or source.dtypes[0] != "uint8":
        return None
    try:
        table = source.colormap(1)
    except ValueError:
        return None
    return np.array([table.get(index, (0, 0, 0))[:3] for index in range(256)], np.uint8)


def _refuse(path: str | Path) -> None:
    """Say what is wrong with a file that does not begin as a TIFF."""
    try:
        with open(path, "rb"):
            pass
    except OSError as error:
        raise DatasetError(f"cannot read {printable(str(path))}: {error.strerror}.") from None
    raise DatasetError(
        f"cannot read {printable(str(path))} by windows: it is no TIFF, whose parts can be read alone. {_tiled(path)}; "
        "or read whole images (data.window null)."
    )


def _tiled(path: str | Path) -> str:
    name = Path(path).name
    return (
        f"Save it as a tiled TIFF: gdal_translate -co TILED=YES -co COMPRESS=DEFLATE '{printable(name)}' "
        f"'{printable(Path(name).stem)}.tif'"
    )
