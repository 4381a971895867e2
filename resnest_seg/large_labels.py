"""Labels of images that do not fit into memory, written by rows from the top down."""

from __future__ import annotations

import contextlib
import errno
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from resnest_seg.errors import ConfigError, require_utf8
from resnest_seg.files import atomic_write
from resnest_seg.labels import LabelSpace
from resnest_seg.large import CACHE, gdal, load_rasterio
from resnest_seg.palette_png import PalettePng

TILE = 512
"""Height and width of a TIFF's tiles."""

_AT_ONCE = 4 << 20  # bytes of labels that are mapped and packed at once


class LargeLabels:
    """Writes labels by rows, as `resnest_seg.visualize.write_labels` does at once; a context manager.

    The file is an 8-bit palette image: its values are ids, and viewers show the class colours. It appears, whole, when
    the block ends; if the block raises, nothing is left and a file that was there stays.

    Args:
        path: A .png file, or a .tif or .tiff file, which gets tiles of 512x512 and lossless compression.
        height: H.
        width: W.
        space: The label space of the labels.
        ids: "raw" for the data set's own ids, as in its mask files, or "train" for 0..K-1 and `IGNORE_LABEL`.

    Raises:
        ConfigError: Another ending, another kind of ids, or rasterio is missing (for TIFF).
    """

    def __init__(self, path: str | Path, height: int, width: int, space: LabelSpace, *, ids: str = "raw") -> None:
        self.path, self.height, self.width = Path(path), height, width
        if self.path.suffix.lower() not in (".png", ".tif", ".tiff"):
            raise ConfigError(f"labels are saved as .png or .tif, which keep every id as it is; not as {path}.")
        if ids not in ("raw", "train"):
            raise ConfigError(f"ids must be 'raw' or 'train', not {ids!r}.")
        self._space, self._raw = space, ids == "raw"
        self._palette = space.palette
        if self._raw:
            self._palette = np.zeros_like(space.palette)
            self._palette[list(space.raw_ids)] = space.colors
        self._rows = 0
        self._writing = self._whole_file()

    def write(self, first_row: int, labels: NDArray[np.uint8]) -> None:
        """Add rows of train ids, uint8 [r, W]; `first_row` is the number of rows written so far."""
        assert first_row == self._rows, f"row {self._rows} is next, not {first_row}"
        assert labels.dtype == np.uint8, labels.dtype
        assert labels.shape[1:] == (self.width,), labels.shape
        assert self._rows + len(labels) <= self.height, (self._rows, labels.shape, self.height)
        step = max(_AT_ONCE // self.width, 1)
        for start in range(0, len(labels), step):
            part = labels[start : start + step]
            self._sink.write(self._space.decode(part) if self._raw else part)
        self._rows += len(labels)

    def __enter__(self) -> Self:
        self._writing.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._writing.__exit__(*error)

    @contextlib.contextmanager
    def _whole_file(self) -> Iterator[None]:
        size = (self.height, self.width)
        with contextlib.ExitStack() as opened:
            temporary = opened.enter_context(atomic_write(self.path))
            self._sink: PalettePng | _Tiff
            if self.path.suffix.lower() == ".png":  # GDAL would need the picture before it writes one
                file = opened.enter_context(open(temporary, "wb"))
                self._sink = opened.enter_context(PalettePng(file, *size, self._palette))
            else:
                self._sink = opened.enter_context(_Tiff(temporary, *size, self._palette))
            yield
            assert self._rows == self.height, f"{self._rows} of {self.height} rows were written"


class _Tiff:
    """A palette TIFF by rows."""

    def __init__(self, path: Path, height: int, width: int, palette: NDArray[np.uint8]) -> None:
        self._rows, self._width = 0, width
        self._path = path
        rasterio = load_rasterio()
        require_utf8(path.absolute())
        self._stack = contextlib.ExitStack()
        self._stack.enter_context(gdal(max(CACHE, 2 * TILE * width)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a photo is not where on earth
            self._target = self._stack.enter_context(
                rasterio.open(
                    path.absolute(), "w", driver="GTiff", height=height, width=width, count=1, dtype="uint8",
                    photometric="PALETTE", tiled=True, blockxsize=TILE, blockysize=TILE, compress="DEFLATE",
                    BIGTIFF="IF_SAFER",
                )
            )  # fmt: skip
        self._target.write_colormap(1, {index: tuple(color) for index, color in enumerate(palette.tolist())})

    def write(self, rows: NDArray[np.uint8]) -> None:
        """Add rows."""
        window = ((self._rows, self._rows + len(rows)), (0, self._width))
        if len(rows):
            with self._refusals():
                self._target.write(rows, 1, window=window)
        self._rows += len(rows)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        with self._refusals():
            self._stack.close()

    @contextlib.contextmanager
    def _refusals(self) -> Iterator[None]:
        """A full disk is the system's error, whoever reports it."""
        try:
            yield
        except load_rasterio().errors.RasterioError as error:
            raise OSError(errno.EIO, str(error.__cause__ or error), str(self._path)) from None
