"""Rasters larger than memory as a data set of windows, by GDAL; see `WindowDataset`."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnest_seg.data.datasets import DatasetView, PairedFiles, Sample, SegmentationDataset, behind_views
from resnest_seg.errors import ConfigError, DatasetError, printable
from resnest_seg.io.bands import BandReader, Raster, without_labels
from resnest_seg.io.georeference import georeference_of
from resnest_seg.io.raster_windows import RasterWindows, Window, palette_of
from resnest_seg.labels import ignored_pixels

MOST_TRIES = 10
"""Random windows that are tried, for one with a label, before the cell of the grid itself is taken."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """A cell of the grid of a raster.

    Attributes:
        pair: Number of the raster.
        height: H of the raster.
        width: W of the raster.
        core: The cell: the cells of a raster cover each of its pixels once.
    """

    pair: int
    height: int
    width: int
    core: Window


class WindowDataset(SegmentationDataset):
    """Windows of pairs of rasters, which are never read whole.

    Each raster is divided into equal cells of at most `window` pixels a side. A sample is a cell with `overlap` pixels
    of context around it, whose labels are ignored: so every pixel of a raster counts exactly once in a metric, is
    predicted with context, and scores are those of whole rasters. In training, `draw` takes a window of `window` pixels
    at random around the cell instead: everywhere with equal probability, and an epoch is as long as there are cells.

    Cells without a labelled pixel (the no-data value of the labels counts as ignored unless it is a class), or without
    data in the image (its no-data value, mask, or alpha band that is not chosen), are left out. To know them, all
    labels are read once when the data set is opened, by windows; `read_as` may leave out other ones.

    Args:
        files: Pairs of TIFF files, image and labels on the same grid, in a folder, or at an address with a cache: GDAL
            reads the copies there, without files beside them (.tfw, .ovr).
        window: Height and width of windows in pixels.
        overlap: Pixels of context around a cell, at least; None is an eighth of the window.

    Attributes:
        files: The pairs.
        cells: The cells with data, in the order of the samples.

    Raises:
        DatasetError: Files that cannot be read by windows, an image and labels of different size, CRS, resolution or
            place, labels out of range, or no window with data.
        ConfigError: rasterio is not installed; an overlap that is no less than the window.
    """

    def __init__(self, files: PairedFiles, window: int, *, overlap: int | None = None) -> None:
        self.files, self.window = files, window
        self.overlap = window // 8 if overlap is None else overlap
        if self.overlap >= window:
            raise ConfigError(f"data.window_overlap ({self.overlap}) must be less than data.window ({window}).")
        self.label_space, self.split = files.label_space, files.split
        self.rasters, self._copies = RasterWindows(), dict[str, str]()
        self._labelled, self.cells = list[Cell](), list[Cell]()
        try:
            with self._addresses():
                for cell in itertools.chain.from_iterable(map(self._cells, range(len(files.pairs)))):
                    labelled = self._labelled_pixels(cell)
                    if labelled.any():
                        self._labelled.append(cell)
                        self.cells += [cell] * self._has_data(cell, labelled)
        finally:
            self.rasters.close()  # no handle goes into another process
        self._require_cells()

    def _require_cells(self) -> None:
        if not self.cells:
            raise DatasetError(
                f"no window of the {self.split} split has a labelled pixel with data: all {len(self.files.pairs)} "
                "rasters are ignored or without data. The first: "
                f"{self.files.source.locate(self.files.pairs[0][0])} (gdalinfo -stats)."
            )

    def __len__(self) -> int:
        return len(self.cells)

    def identity(self) -> str:
        """Return a hash of the files, their sizes, and the windows with data."""
        cells = [(cell.pair, cell.height, cell.width, *cell.core) for cell in self.cells]
        text = f"{self.files.identity()} {self.window} {self.overlap} {cells}"
        return hashlib.sha256(text.encode()).hexdigest()

    def sample_name(self, index: int) -> str:
        """The raster's path below the root, with the first row and column of the cell."""
        cell = self.cells[index]
        path = PurePosixPath(self.files.pairs[cell.pair][0])
        return str(path.with_name(f"{path.stem}_r{cell.core.top}_c{cell.core.left}{path.suffix}"))

    def group(self, index: int) -> str:
        """The raster's path below the root: its windows share pixels."""
        return self.files.sample_name(self.cells[index].pair)

    def __getitem__(self, index: int) -> Sample:
        cell, window = self.cells[index], self._with_context(index)
        labels = self.files.nothing_labelled((window.height, window.width))
        with self._addresses():
            labels[self.cell_within(index)] = self._labels(cell.pair, cell.core)
            return self._sample(cell, window, labels)

    def cell_within(self, index: int) -> tuple[slice, slice]:
        """Rows and columns of a sample that are its cell: the others are context."""
        core, window = self.cells[index].core, self._with_context(index)
        top, left = core.top - window.top, core.left - window.left
        return slice(top, top + core.height), slice(left, left + core.width)

    def _with_context(self, index: int) -> Window:
        cell = self.cells[index]
        return _around(cell, self.window + 2 * self.overlap) if self.overlap else cell.core

    def draw(self, index: int, *, seed: int) -> Sample:
        """Read a window at a random place around a cell, up to half a window away, that has a labelled pixel."""
        with self._addresses():
            return self._drawn(self.cells[index], np.random.default_rng([seed, 1]))

    def _drawn(self, cell: Cell, random: np.random.Generator) -> Sample:
        middle = _around(cell, self.window)
        for _ in range(MOST_TRIES):
            top = _nearby(random, middle.top, self.window // 2, cell.height - middle.height)
            left = _nearby(random, middle.left, self.window // 2, cell.width - middle.width)
            window = middle._replace(top=top, left=left)
            labels = self._labels(cell.pair, window)
            if not ignored_pixels(labels).all():
                return self._sample(cell, window, labels)
        return self._sample(cell, middle, self._labels(cell.pair, middle))

    def raster(self, index: int) -> Raster:
        """Read the image of a cell without context: so every pixel counts once in statistics."""
        cell = self.cells[index]
        with self._addresses():
            return self._image(cell.pair, cell.core)

    def read_as(self, bands: BandReader | None) -> None:
        """Set how bands are read; cells in which these have no data are left out, and all others are there.

        After an error, such as a band that no raster has, all is as before.
        """
        before = self.bands, self.cells
        choices = [None if reader is None else (reader.bands, reader.nodata) for reader in (self.bands, bands)]
        self.bands = bands
        if choices[0] == choices[1]:
            return
        try:
            with self._addresses():
                self.cells = [cell for cell in self._labelled if self._has_data(cell)]
            self._require_cells()
        except BaseException:
            self.bands, self.cells = before
            raise
        finally:
            self.rasters.close()

    def _sample(self, cell: Cell, window: Window, labels: NDArray[Any]) -> Sample:
        image, valid, _ = self._image(cell.pair, window)
        name = f"{self.files.source.locate(self.files.pairs[cell.pair][0])}, {window}"
        return Sample(image, without_labels(labels, valid), name)

    def _path(self, name: str) -> Path:
        """The file that GDAL reads: of a raster at an address, its copy in the cache."""
        path, where = self.files.source.local(name), self.files.source.locate(name)
        if str(path) != where:
            self._copies[str(path)] = where
        return path

    @contextlib.contextmanager
    def _addresses(self) -> Iterator[None]:
        """Have errors name the address of a raster instead of its copy."""
        try:
            yield
        except DatasetError as error:
            text = str(error)
            for path, where in self._copies.items():
                text = text.replace(path, where)
            raise DatasetError(text) from None

    def _image(self, pair: int, window: Window) -> Raster:
        """A window of an image: of a photo, or the bands that `bands` names."""
        path = self._path(self.files.pairs[pair][0])
        if self.bands is None:
            valid = self.rasters.valid(path, window)
            return Raster(_photo(self.rasters, path, window), None if valid is None else valid[..., None])
        with self.rasters.reading(path, window) as source:
            return self.bands.window_of(source, f"{window} of {printable(str(path))}", window.as_rasterio())

    def _labels(self, pair: int, window: Window) -> NDArray[Any]:
        """Labels of a window [h, w]."""
        name = self.files.pairs[pair][1]
        if name is None:
            return self.files.nothing_labelled((window.height, window.width))
        path = self._path(name)
        raw = self.rasters.bands(path, window)
        source = self.rasters.source(path)
        if raw.shape[2] not in (1, 3, 4) or raw.dtype.kind not in "iu":
            raise DatasetError(
                f"{self.files.source.locate(name)} is no label raster: it has {raw.shape[2]} bands of {raw.dtype}, and "
                "one of whole numbers is needed, or the classes' colours."
            )
        if raw.shape[2] >= 3:
            return self._of_colors(name, raw[..., :3], source.nodatavals)
        ids, none = raw[..., 0], source.nodatavals[0]
        missing, several = None, self.label_space.task == "multilabel"
        if none is not None and none not in ((0,) if several else self.files.encoding.raw_ids):
            missing = ids == none
            ids = np.where(missing, ids.dtype.type(self.files.encoding.raw_ids[0]), ids)
        if not several and (ids.min() < 0 or ids.max() > 255):
            raise DatasetError(
                f"{self.files.source.locate(name)} holds {ids.min()} to {ids.max()} in {window}: only 0..255 can be "
                "labels. Give other values as no data: gdal_edit.py -a_nodata VALUE FILE."
            )
        try:
            meant = ids if several else self.files.meant(ids.astype(np.uint8), palette_of(source))
            labels = self.files.encode(name, meant)
        except DatasetError as error:
            raise DatasetError(f"{str(error).rstrip('.')}, in {window}.") from None
        if missing is not None:
            labels[missing] = self.label_space.ignore_value
        return labels

    def _of_colors(self, name: str, raw: NDArray[Any], nodata: Sequence[float | None]) -> NDArray[Any]:
        """Labels of colours [h, w, 3], of which the file's no-data colour is ignored unless a class has it."""
        if raw.dtype != np.uint8:
            raise DatasetError(
                f"{self.files.source.locate(name)} is not a mask: its colours are {raw.dtype}. Save masks with 8 bits "
                "a channel: gdal_translate -ot Byte."
            )
        colors = [*self.files.encoding.colors, *self.files.encoding.ignored_colors]
        if None in nodata[:3] or tuple(nodata[:3]) in colors:
            return self.files.encode(name, raw)
        missing = (raw == np.array(nodata[:3])).all(2)
        labels = self.files.encode(name, np.where(missing[..., None], np.array(colors[0], np.uint8), raw))
        labels[missing] = self.label_space.ignore_value
        return labels

    def _cells(self, pair: int) -> Iterator[Cell]:
        """The grid of a raster, after a look at whether image and labels fit each other."""
        names = [name for name in self.files.pairs[pair] if name is not None]
        sources = [self.rasters.source(self._path(name)) for name in names]
        height, width = int(sources[0].height), int(sources[0].width)
        image = self.files.source.locate(names[0])
        if len(sources) == 2:
            labels = self.files.source.locate(names[1])
            sizes = [f"{source.width} x {source.height}" for source in sources]
            if sizes[0] != sizes[1]:
                raise DatasetError(
                    f"labels of another size: {labels} has {sizes[1]} pixels (width x height), and {image} {sizes[0]}. "
                    f"{_WARP}"
                )
            places = [georeference_of(source) for source in sources]
            if places[0] is not None and places[1] is not None:
                difference = places[0].differs(places[1])
                if difference is not None:
                    raise DatasetError(f"labels do not lie on their image: {labels} has {difference}, as {image} has. "
                                       f"{_WARP}")  # fmt: skip
        rows, columns = _borders(height, self.window), _borders(width, self.window)
        for top, bottom in itertools.pairwise(rows):
            for left, right in itertools.pairwise(columns):
                yield Cell(pair, height, width, Window(top, left, bottom - top, right - left))

    def _labelled_pixels(self, cell: Cell) -> NDArray[np.bool_]:
        """True where a cell has a label, [h, w], and everywhere in a split for predictions alone."""
        if self.files.pairs[cell.pair][1] is None:
            return np.ones((cell.core.height, cell.core.width), np.bool_)
        return ~ignored_pixels(self._labels(cell.pair, cell.core))

    def _has_data(self, cell: Cell, labelled: NDArray[np.bool_] | None = None) -> bool:
        """True if a labelled pixel of a cell has data; labels that are not given are read where it matters."""
        valid = self._valid(cell)
        if valid is None:
            return True
        return bool((valid & (self._labelled_pixels(cell) if labelled is None else labelled)).any())

    def _valid(self, cell: Cell) -> NDArray[np.bool_] | None:
        """Which pixels of a cell have data in some band, [h, w]; None where all have."""
        path = self._path(self.files.pairs[cell.pair][0])
        if self.bands is None:
            return self.rasters.valid(path, cell.core)
        valid: NDArray[np.bool_] | None
        if self.bands.nodata is not None:
            valid = self._image(cell.pair, cell.core).valid
        else:  # no pixel of an image is read whose file marks none
            with self.rasters.reading(path, cell.core) as source:
                valid = self.bands.mask_of(source, f"{cell.core} of {printable(str(path))}", cell.core.as_rasterio())
        return None if valid is None else np.asarray(valid.any(axis=2))


_WARP = (
    "Bring the labels onto the grid of the image: gdalwarp -r near -t_srs CRS -te XMIN YMIN XMAX YMAX -ts WIDTH HEIGHT "
    "LABELS OUT, with the values that gdalinfo shows of the image; labels that are polygons: resnest-seg import."
)


def paired_files(dataset: SegmentationDataset) -> SegmentationDataset:
    """The data set of files that a data set of windows, or a view, is made of; any other data set itself."""
    dataset = behind_views(dataset)
    return dataset.files if isinstance(dataset, WindowDataset) else dataset


def scored_part(dataset: SegmentationDataset, index: int) -> tuple[slice, slice]:
    """Rows and columns of a sample that count in scores: all, or of a window those of its cell."""
    while isinstance(dataset, DatasetView):
        index, dataset = dataset.inner_index(index), dataset.inner
    return dataset.cell_within(index) if isinstance(dataset, WindowDataset) else (slice(None), slice(None))


def _borders(size: int, window: int) -> list[int]:
    """Borders of equal parts of at most `window` pixels."""
    parts = -(-size // window)
    return [round(part * size / parts) for part in range(parts + 1)]


def _around(cell: Cell, side: int) -> Window:
    """A window of `side` pixels around a cell, moved into the raster, or as large as that."""
    height, width = min(side, cell.height), min(side, cell.width)
    top = cell.core.top + (cell.core.height - height) // 2
    left = cell.core.left + (cell.core.width - width) // 2
    return Window(min(max(top, 0), cell.height - height), min(max(left, 0), cell.width - width), height, width)


def _nearby(random: np.random.Generator, start: int, most: int, last: int) -> int:
    """A whole number in 0..last, at most `most` from `start`."""
    return int(random.integers(max(start - most, 0), min(start + most, last) + 1))


def _photo(rasters: RasterWindows, path: Path, window: Window) -> NDArray[np.uint8]:
    """A window of a photo, RGB, uint8 [h, w, 3]."""
    source = rasters.source(path)
    palette = palette_of(source)
    pixels = rasters.bands(path, window)
    if palette is not None:
        colored: NDArray[np.uint8] = palette[pixels[..., 0]]
        return colored
    kinds = [kind.name for kind in source.colorinterp]
    colors = [kinds.index(name) for name in ("red", "green", "blue") if name in kinds]
    if pixels.dtype != np.uint8 or (len(colors) != 3 and pixels.shape[2] not in (1, 3)):
        raise DatasetError(
            f"{path} is no photo: it has {pixels.shape[2]} bands of {pixels.dtype} ({', '.join(kinds)}). Name the "
            "bands that the model shall read, such as data.bands [1, 2, 3]."
        )
    if pixels.shape[2] == 1:
        return np.repeat(pixels, 3, axis=2)
    return np.ascontiguousarray(pixels[..., colors if len(colors) == 3 else [0, 1, 2]])
