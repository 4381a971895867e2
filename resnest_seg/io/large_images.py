"""Images that do not fit into memory: read by windows with GDAL (through rasterio), labels written by rows.

JPEG, and most PNG and TIFF files, can be decoded from the top down only. So an image is held as one band of whole rows
that moves down with the windows asked for: memory is that of a band, whatever the height of the picture.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import mmap
import struct
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, Self

import cv2
import numpy as np
from numpy.typing import NDArray

from resnest_seg.errors import ConfigError, DatasetError, require_utf8
from resnest_seg.files import atomic_write
from resnest_seg.io.images import (
    BROKEN_EXIF,
    EXTRA_TAG,
    TIFF,
    PalettePng,
    refuse_low_values,
    refuse_odd_opacity,
    tiff_tags,
)
from resnest_seg.labels import IGNORE_LABEL, LabelSpace

CACHE = 16 << 20
"""Bytes of decoded blocks that GDAL keeps, where two rows of tiles or strips do not need more."""

LIMIT = 512 << 20
"""Bytes that a row of tiles or strips may have; an image with more cannot be read in bands."""

_READ = 1 << 20  # pixels that are decoded at once
_BEGINNINGS = {b"\xff\xd8\xff": "JPEG", b"\x89PNG": "PNG", b"II*\0": "GTiff", b"MM\0*": "GTiff", b"II+\0": "GTiff",
               b"MM\0+": "GTiff"}  # fmt: skip
_ORIENTATION = 0x0112


class LargeImage:
    """The pixels of a JPEG, PNG or TIFF file by windows; a context manager.

    Pixels are what `resnest_seg.io.images.decode_image` makes of them: grey becomes RGB, a palette its colours, CMYK is
    converted, 16 bits become 8, and transparent pixels lie on white (masks inside TIFF files and nodata values of
    maps are not looked at). Bands that are neither colours nor opacity are refused at once; 16 bits of which few are
    used, and opacity that is none, with the last row, when the values of all are known. Two things differ: GDAL
    enlarges a JPEG's colours, where they have half the resolution, in a plainer way (on a smooth picture by 0.8 of 255
    on average, 12 at most); and a photo that its EXIF data turns is refused, because its upright rows would be stored
    columns.

    Windows should be asked for from the top down. The rows of the last one are kept at their whole width, so that the
    others beside it, and the overlap with those below, are not decoded again; going up again is possible, and decodes
    from the top. Memory: 3 W h bytes for windows of h rows, two rows of the file's tiles, and some 50 MB.

    Attributes:
        path: The file.
        shape: (H, W, 3), as of an array.

    Raises:
        DatasetError: No JPEG, PNG or TIFF file, a damaged one, or one that cannot be read in bands.
        ConfigError: rasterio is not installed.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._stack = contextlib.ExitStack()
        self._top = 0
        with contextlib.ExitStack() as opened:
            self._open(opened)
            self._band = np.empty((3, 0, self.shape[1]), np.uint8)
            self._stack = opened.pop_all()

    def _open(self, opened: contextlib.ExitStack) -> None:
        rasterio = load_rasterio()
        require_utf8(self.path.absolute())
        try:
            with open(self.path, "rb") as file:
                start = file.read(4)
        except OSError as error:
            raise DatasetError(f"cannot read {self.path}: {error.strerror}.") from None
        # GDAL reads much more than photos, such as texts that name other files: it is told what this is.
        driver = next((driver for beginning, driver in _BEGINNINGS.items() if start.startswith(beginning)), None)
        opened.enter_context(gdal(CACHE))
        try:
            if driver is None:
                raise rasterio.errors.RasterioIOError("no beginning of an image")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that a photo is not where on earth
                source = opened.enter_context(rasterio.open(self.path.absolute(), driver=driver))
        except rasterio.errors.RasterioError:
            raise DatasetError(f"cannot read {self.path}: no JPEG, PNG or TIFF image, or a damaged one.") from None
        self._source = source
        self.shape = (int(source.height), int(source.width), 3)
        tall = source.block_shapes[0][0]
        row = tall * source.width * source.count * np.dtype(source.dtypes[0]).itemsize
        if row > LIMIT or (
            source.driver == "PNG" and _is_interlaced(self.path) and row // tall * source.height > LIMIT
        ):
            raise DatasetError(
                f"cannot read {self.path} in bands: its parts are {source.height if tall == 1 else tall} rows tall. "
                f"Save it as a tiled TIFF: rio convert {self.path.name} tiled.tif --co TILED=YES --co BIGTIFF=IF_SAFER"
            )
        # The next read finds the rest of the tiles it needs in the cache, and the next channel what the first decoded.
        opened.enter_context(gdal(max(CACHE, 2 * row)))
        turned = orientation_in_header(self.path, source.driver)
        if turned != 1:
            raise DatasetError(
                f"cannot read {self.path} in bands: its EXIF orientation is {turned}, not 1. Turn its pixels, for "
                f"instance with ImageMagick: convert {self.path.name} -auto-orient upright{self.path.suffix}"
            )
        self._choose_channels()

    def _choose_channels(self) -> None:
        """Which channels are colours and which is opacity, and how their values become 8 bits."""
        source = self._source
        kinds = [kind.name for kind in source.colorinterp]
        if set(source.dtypes) not in ({"uint8"}, {"uint16"}):
            raise DatasetError(f"{self.path} is no photo: its pixels are {source.dtypes[0]}, not 8 or 16 bits.")
        colors = [kind for kind in kinds if kind != "alpha"]
        if sorted(colors) == ["blue", "green", "red"]:
            self._channels = [kinds.index(name) + 1 for name in ("red", "green", "blue")]
        elif len(colors) == 1:  # grey, whichever way round, or a palette
            self._channels = [kinds.index(colors[0]) + 1]
        else:
            raise DatasetError(
                f"{self.path} is no photo: its bands are {', '.join(kinds)}. Only photos can be read; save their red, "
                "green and blue: gdal_translate -co PHOTOMETRIC=RGB -b 1 -b 2 -b 3 IN OUT"
            )
        if colors == ["palette"] and source.dtypes[0] == "uint16":
            raise DatasetError(
                f"{self.path} is no photo that can be read: its palette has 16 bits. Save its colours: gdal_translate "
                "-expand rgb IN OUT"
            )
        self._opacity = kinds.index("alpha") + 1 if "alpha" in kinds else None
        self._premultiplied = self._opacity is not None and _is_premultiplied(self.path)
        # A PNG may name one colour that is transparent; a TIFF's nodata value is a convention of maps.
        self._clear = source.nodatavals if source.driver == "PNG" and source.nodatavals[0] is not None else None
        self._bits = int(source.tags(1, ns="IMAGE_STRUCTURE").get("NBITS", 8 * np.dtype(source.dtypes[0]).itemsize))
        self._judged, self._peak, self._partly = 0, 0, 0
        self._colors: NDArray[np.uint8] | None = None
        if source.count == 1 and source.dtypes[0] == "uint8":
            with contextlib.suppress(ValueError):  # it has none
                table = source.colormap(1)
                self._colors = np.array([table.get(index, (0, 0, 0, 255)) for index in range(256)], np.uint8)
        self._white_first = self._colors is None and source.tags(ns="IMAGE_STRUCTURE").get("MINISWHITE") == "YES"

    def read(self, top: int, left: int, height: int, width: int) -> NDArray[np.uint8]:
        """The window of `height` rows from `top` and `width` columns from `left`: RGB, uint8 [height, width, 3].

        Raises:
            DatasetError: The file is damaged or ends too early.
        """
        assert 0 <= top <= top + height <= self.shape[0], (top, height, self.shape)
        assert 0 <= left <= left + width <= self.shape[1], (left, width, self.shape)
        self._hold(top, top + height)
        planes = self._band[:, top - self._top :][:, :height, left : left + width].copy()
        return planes.transpose(1, 2, 0)

    def __getitem__(self, window: tuple[slice, slice]) -> NDArray[np.uint8]:
        """`image[top:bottom, left:right]`, as of an array; steps are 1."""
        (top, bottom, one), (left, right, step) = (
            part.indices(size) for part, size in zip(window, self.shape[:2], strict=True)
        )
        assert one == step == 1, "a window has no gaps"
        return self.read(top, left, max(bottom - top, 0), max(right - left, 0))

    def close(self) -> None:
        """Close the file."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _hold(self, top: int, bottom: int) -> None:
        """Make the band hold these rows; of what it held, the overlap is kept and not read again."""
        old, held = self._top, self._band.shape[1]
        if old <= top and bottom <= old + held:
            return
        kept = self._band[:, top - old :].copy() if old <= top < old + held else self._band[:, :0]
        self._band = self._band[:, :0].copy()  # a new one while the old is there would be twice the memory
        band = np.empty((3, bottom - top, self.shape[1]), np.uint8)
        band[:, : kept.shape[1]] = kept
        first = top + kept.shape[1]
        while first < bottom:
            last = min(bottom, first + max(_READ // self.shape[1], 1))
            band[:, first - top : last - top] = self._decode(first, last)
            first = last
        self._top, self._band = top, band

    def _decode(self, first: int, last: int) -> NDArray[np.uint8]:
        """Rows from the file: RGB, uint8 [3, last - first, W]."""
        errors = load_rasterio().errors
        raw: NDArray[Any]
        try:
            raw = self._source.read(window=((first, last), (0, self.shape[1])))
        except (errors.RasterioError, MemoryError) as error:
            raise DatasetError(
                f"cannot read rows {first} to {last - 1} of {self.path}: damaged, or not complete "
                f"({str(error.__cause__ or error).rstrip('.')})."
            ) from None
        if self._colors is not None:
            color, opacity = np.split(self._colors[raw[0]].transpose(2, 0, 1), [3])
            return _on_white(color, opacity[0])
        deep = raw[[channel - 1 for channel in self._channels]]
        if first == self._judged:  # each row once
            self._judge(deep, None if self._opacity is None else raw[self._opacity - 1], last)
        color = self._eight_bits(2**self._bits - 1 - deep if self._white_first else deep)
        if len(color) == 1:
            color = color.repeat(3, axis=0)
        if self._opacity is not None:
            return _on_white(color, self._eight_bits(raw[self._opacity - 1]), premultiplied=self._premultiplied)
        if self._clear is not None:
            color[:, (raw == np.array(self._clear)[:, None, None]).all(axis=0)] = 255
        return color

    def _judge(self, color: NDArray[Any], opacity: NDArray[Any] | None, last: int) -> None:
        """Refuse, once all rows up to `last` were read, what their values say is no photo; rows come in order."""
        self._judged = last
        if self._bits == 16:
            self._peak = max(self._peak, int(color.max()))
        if opacity is not None and self._source.driver == "GTiff":
            eight = self._eight_bits(opacity)
            self._partly += int(((eight > 0) & (eight < 255)).sum())
        if last == self.shape[0]:
            if self._bits == 16:
                refuse_low_values(self._peak, str(self.path))
            refuse_odd_opacity(self._partly, self.shape[0] * self.shape[1], str(self.path))

    def _eight_bits(self, values: NDArray[Any]) -> NDArray[np.uint8]:
        if self._bits == 8:
            return values
        narrow = self._bits < 8
        eight: NDArray[Any] = values * (255 // (2**self._bits - 1)) if narrow else values >> (self._bits - 8)
        return eight.astype(np.uint8)


def preview(path: str | Path, *, longest: int = 2048) -> NDArray[np.uint8]:
    """A JPEG, PNG or TIFF file in small, RGB, uint8 [h, w, 3]: its longer side has at most `longest` pixels.

    Pixels are averages. The file is read once, in bands; see `LargeImage` for what is read and for the errors.
    """
    with LargeImage(path) as image:
        height, width, _ = image.shape
        scale = min(longest / max(height, width), 1.0)
        size = [max(round(side * scale), 1) for side in (height, width)]
        small = np.empty((*size, 3), np.uint8)
        borders = np.linspace(0, height, size[0] + 1).round().astype(int)
        rows = max(int(128 * scale), 1)
        for first in range(0, size[0], rows):
            last = min(first + rows, size[0])
            band = image.read(borders[first], 0, borders[last] - borders[first], width)
            small[first:last] = cv2.resize(band, (size[1], last - first), interpolation=cv2.INTER_AREA)
    return small


def load_rasterio(what: str = "maps and large images") -> Any:
    """The library, imported when it is needed, because it is an extra.

    Args:
        what: What needs it, in the message.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        import rasterio
        import rasterio.errors
    except ImportError:
        raise ConfigError(f"{what} need rasterio: pip install 'resnest-seg[large]'.") from None
    return rasterio


def gdal_errors() -> tuple[type[Exception], ...]:
    """Exceptions of rasterio, and those of GDAL that it lets through, about files and coordinates."""
    return (*_refusals_of_gdal(), ValueError, MemoryError)


def _refusals_of_gdal() -> tuple[type[Exception], ...]:
    return load_rasterio().errors.RasterioError, importlib.import_module("rasterio._err").CPLE_BaseError


def gdal(cache: int) -> Any:
    """GDAL's settings: a small cache, no files beside images read or written, JPEGs that end early are errors."""
    return load_rasterio().Env(
        GDAL_CACHEMAX=cache,
        GDAL_PAM_ENABLED="NO",
        GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR",
        GDAL_ERROR_ON_LIBJPEG_WARNING="YES",
        GDAL_PNG_WHOLE_IMAGE_OPTIM="NO",  # which takes a small PNG that ends early for a black one
    )


def _on_white(
    color: NDArray[np.uint8], opacity: NDArray[np.uint8], *, premultiplied: bool = False
) -> NDArray[np.uint8]:
    """Colours [3, h, w] of an opacity [h, w] of 0..255 over white; `premultiplied` ones were multiplied by it."""
    clear = 255 - opacity.astype(np.uint16)
    own = color if premultiplied else (color * opacity.astype(np.uint16) + 127) // 255
    blended: NDArray[np.uint8] = np.minimum(own + clear, 255).astype(np.uint8)
    return blended


def _is_premultiplied(path: Path) -> bool:
    """True for a TIFF whose colours are said to be multiplied by its opacity, which GDAL does not tell."""
    with open(path, "rb") as file:
        if file.read(4) not in TIFF:
            return False
        try:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:  # tags may lie behind the pixels
                return tiff_tags(data).get(EXTRA_TAG) == (1,)
        except (struct.error, IndexError, OverflowError):
            return False


def _is_interlaced(path: Path) -> bool:
    """True for an interlaced PNG, which GDAL keeps in memory whole."""
    with open(path, "rb") as file:
        return file.read(29)[28:] == b"\x01"


def orientation_in_header(path: str | Path, driver: str) -> int:
    """The EXIF orientation in an image's header, 1 if there is none; no pixel is decoded."""
    from PIL import Image, JpegImagePlugin, PngImagePlugin, TiffImagePlugin

    parsers: dict[str, Any] = {
        "JPEG": JpegImagePlugin.JpegImageFile,
        "PNG": PngImagePlugin.PngImageFile,
        "GTiff": TiffImagePlugin.TiffImageFile,
    }
    try:
        with warnings.catch_warnings(), open(path, "rb") as file:
            warnings.simplefilter("ignore")
            image = parsers[driver](file)
            exif = Image.Exif() if driver == "PNG" else image.getexif()  # a PNG's getexif() may decode it
            if data := driver == "PNG" and image.info.get("exif"):
                exif.load(data)
            turned = exif.get(_ORIENTATION, 1)
    except BROKEN_EXIF:
        return 1  # kinds of TIFF that Pillow does not know
    return turned if turned in range(2, 9) else 1


class Place(Protocol):
    """Position of a raster, as rasterio takes it: see `resnest_seg.io.georeference.Georeference`."""

    @property
    def crs(self) -> Any:
        """rasterio's CRS."""

    @property
    def affine(self) -> Any:
        """rasterio's transform."""


TILE = 512
"""Height and width of a TIFF's tiles."""

_AT_ONCE = 4 << 20  # bytes of labels that are mapped and packed at once


class LargeLabels:
    """Writes labels by rows, as `resnest_seg.io.visualize.write_labels` does at once; a context manager.

    The file is an 8-bit palette image: its values are ids, and viewers show the class colours. It appears, whole, when
    the block ends; if the block raises, nothing is left and a file that was there stays.

    Args:
        path: A .png file, or a .tif or .tiff file, which gets tiles of 512x512 and lossless compression.
        height: H.
        width: W.
        space: The label space of the labels. Those of a multi-label task, .tif only, are 16-bit values whose bits say
            which labels are present (tags bit_K name them), and 32768 is no data.
        ids: "raw" for the data set's own ids, as in its mask files, or "train" for 0..K-1 and `IGNORE_LABEL`.
        place: Where the labels lie, for .tif: the file is then a GeoTIFF with this CRS and transform, the names of the
            classes as tags of its band (class_ID), and ignored pixels as no data: 255, or where 255 is a class of the
            data set, `LabelSpace.ignored_raw_id`.
        cog: Make it a Cloud Optimized GeoTIFF, with overviews by nearest neighbours; takes twice the disk meanwhile.

    Raises:
        ConfigError: Another ending, another kind of ids, or rasterio is missing (for TIFF).
    """

    def __init__(
        self,
        path: str | Path,
        height: int,
        width: int,
        space: LabelSpace,
        *,
        ids: str = "raw",
        place: Place | None = None,
        cog: bool = False,
    ) -> None:
        self.path, self.height, self.width = Path(path), height, width
        self._place, self._cog = place, cog
        if self.path.suffix.lower() not in (".png", ".tif", ".tiff"):
            raise ConfigError(f"labels are saved as .png or .tif, which keep every id as it is; not as {path}.")
        if ids not in ("raw", "train"):
            raise ConfigError(f"ids must be 'raw' or 'train', not {ids!r}.")
        if (place is not None or cog) and self.path.suffix.lower() == ".png":
            raise ConfigError(f"a PNG has no place on the map: save the labels as .tif, not as {path}.")
        self._several = space.task == "multilabel"
        if self._several and self.path.suffix.lower() == ".png":
            raise ConfigError(f"labels of a multi-label task are saved by rows as .tif, not as {path}.")
        own = space.raw_ids if ids == "raw" and not self._several else range(len(space))
        self._table = np.full(256, IGNORE_LABEL, np.uint8)
        if ids == "raw":
            self._table = space.decode(np.arange(256, dtype=np.uint8))
        if place is not None and IGNORE_LABEL not in own:
            self._table[len(space) :] = IGNORE_LABEL
        self._table[: len(space)] = own
        self._no_data = space.ignore_value if self._several else int(self._table[IGNORE_LABEL])
        self._names = {
            f"{'bit' if self._several else 'class'}_{value}": name for value, name in zip(own, space.names, strict=True)
        }
        self._palette = np.zeros((256, 3), np.uint8)
        self._palette[list(own)] = space.colors
        self._rows = 0
        self._writing = self._whole_file()

    def write(self, first_row: int, labels: NDArray[Any]) -> None:
        """Add rows of train ids, uint8 [r, W], or of bits, uint16; `first_row` is the number of rows written so far."""
        assert first_row == self._rows, f"row {self._rows} is next, not {first_row}"
        assert labels.dtype == (np.uint16 if self._several else np.uint8), labels.dtype
        assert labels.shape[1:] == (self.width,), labels.shape
        assert self._rows + len(labels) <= self.height, (self._rows, labels.shape, self.height)
        step = max(_AT_ONCE // self.width, 1)
        for start in range(0, len(labels), step):
            part = labels[start : start + step]
            self._sink.write(part if self._several else self._table[part])
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
                plain = temporary.with_suffix(".plain") if self._cog else temporary
                if self._cog:
                    opened.callback(plain.unlink, missing_ok=True)
                self._sink = opened.enter_context(_Tiff(plain, *size, None if self._several else self._palette))
                if self._place is not None:
                    self._sink.georeference(self._place, self._no_data, self._names)
            yield
            assert self._rows == self.height, f"{self._rows} of {self.height} rows were written"
            if isinstance(self._sink, _Tiff):
                self._sink.finish(temporary)


class _Tiff:
    """A TIFF by rows: a palette picture, or without a palette one of 16 bits."""

    def __init__(self, path: Path, height: int, width: int, palette: NDArray[np.uint8] | None) -> None:
        self._rows, self._width, self._checksum = 0, width, 0
        self._path = path
        rasterio = load_rasterio()
        require_utf8(path.absolute())
        self._stack = contextlib.ExitStack()
        self._stack.enter_context(gdal(max(CACHE, 4 * TILE * width)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a photo is not where on earth
            self._target = self._stack.enter_context(
                rasterio.open(
                    path.absolute(), "w", driver="GTiff", height=height, width=width, count=1,
                    dtype="uint16" if palette is None else "uint8",
                    photometric="MINISBLACK" if palette is None else "PALETTE",
                    tiled=True, blockxsize=TILE, blockysize=TILE, compress="DEFLATE", BIGTIFF="IF_SAFER",
                )
            )  # fmt: skip
        if palette is not None:
            self._target.write_colormap(1, {index: tuple(color) for index, color in enumerate(palette.tolist())})

    def georeference(self, place: Place, no_data: int, names: dict[str, str]) -> None:
        """Say where the labels lie, which value is no data, and the tags of the band."""
        target = self._target
        target.crs, target.transform, target.nodata = place.crs, place.affine, no_data
        target.update_tags(1, **names)

    def finish(self, path: Path) -> None:
        """End the file; copy it as a Cloud Optimized GeoTIFF if `path` is another; read `path` back."""
        import rasterio.shutil

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a photo is not where on earth
            with self._refusals():
                self._target.close()
                if path != self._path:
                    rasterio.shutil.copy(
                        self._path.absolute(), path.absolute(), driver="COG", compress="DEFLATE", blocksize=TILE,
                        overview_resampling="nearest", BIGTIFF="IF_SAFER",
                    )  # fmt: skip
            whole = self._is_whole(path)
        if not whole:
            raise OSError(errno.EIO, "the file is not whole when it is read back. Is the disk full?")

    def _is_whole(self, path: Path) -> bool:
        """True if a closed file holds the rows; GDAL writes most of them at the end, and tells no errors there."""
        checksum = 0
        try:
            with load_rasterio().open(path.absolute(), driver="GTiff") as written:
                for first in range(0, self._rows, TILE):
                    window = ((first, min(first + TILE, self._rows)), (0, self._width))
                    checksum = zlib.crc32(written.read(1, window=window), checksum)
        except _refusals_of_gdal():
            return False
        return checksum == self._checksum

    def write(self, rows: NDArray[Any]) -> None:
        """Add rows."""
        window = ((self._rows, self._rows + len(rows)), (0, self._width))
        if len(rows):
            with self._refusals():
                self._target.write(rows, 1, window=window)
            self._checksum = zlib.crc32(rows.tobytes(), self._checksum)
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
        except _refusals_of_gdal() as error:
            raise OSError(errno.EIO, f"{str(error.__cause__ or error).rstrip('.')}. Is the disk full?") from None
