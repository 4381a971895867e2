"""Rasters of any bands and bits: TIFF (by rasterio), PNG and .npy files as arrays of their own type, with their mask.

Unlike photos, values are not converted to 8-bit RGB: what a file holds is what the model gets, and the model normalises
by the statistics of its training data. Imports no torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import tokenize
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from resnest_seg.errors import ConfigError, DatasetError, printable, unknown_name
from resnest_seg.io.georeference import all_valid, warn_once
from resnest_seg.io.images import (
    MOST_PIXELS,
    NODATA_TAG,
    PNG,
    TIFF,
    TURNED_TAG,
    _as_array,
    _seen,
    decode_image,
    is_file,
    is_tensor,
    refuse_too_large,
    tiff_tags,
)
from resnest_seg.io.large_images import CACHE, gdal, gdal_errors, load_rasterio
from resnest_seg.labels import ignore_value

NPY = b"\x93NUMPY"
"""First bytes of a .npy file."""

RASTER_SUFFIXES = (".tif", ".tiff", ".png", ".npy")
"""Suffixes of files that hold more than photos."""

KEPT = ("uint8", "uint16", "int16", "float32")
"""Types of values that stay as they are."""

EXACT = 1 << 24
"""Whole numbers up to this size are exact in float32."""


class Raster(NamedTuple):
    """An image with its missing values.

    Attributes:
        pixels: [H, W, C] of one of the types `KEPT`.
        valid: False where a band has no data, bool [H, W, C]; None if all have.
        undeclared: There is NaN, and neither the file nor `nodata` says that it means no data.
    """

    pixels: NDArray[Any]
    valid: NDArray[np.bool_] | None = None
    undeclared: bool = False


@dataclasses.dataclass(frozen=True)
class BandReader:
    """How the bands of rasters are read.

    Attributes:
        bands: Numbers from 1 or names of the bands, in the order of the channels; None takes all.
        nodata: A value that means no data, besides what the file itself says.
        fill: Values that pixels without data get, one a band: the means of the training data, by which files of other
            units are told. None leaves them.
        of_model: A data set has it from a model, not from its user: the next model's takes its place.
    """

    bands: tuple[int | str, ...] | None = None
    nodata: float | None = None
    fill: tuple[float, ...] | None = None
    of_model: bool = dataclasses.field(default=False, compare=False, repr=False)

    def read(self, path: str | Path) -> Raster:
        """Read a file; see `decode`."""
        try:
            return self.decode(Path(path).read_bytes(), printable(str(path)))
        except (OSError, ValueError) as error:
            if isinstance(error, DatasetError | ConfigError):
                raise
            reason = error.strerror if isinstance(error, OSError) else error
            raise DatasetError(f"cannot read {printable(str(path))}: {reason}.") from None

    def decode(self, data: bytes, name: str) -> Raster:
        """Decode a TIFF (tiled, BigTIFF, compressed as well), PNG or .npy file [H, W, C]; others are photos, RGB.

        float64 is read as float32, and 32- and 64-bit whole numbers likewise if they are at most 2 ** 24.

        Args:
            data: The file's content.
            name: Its name in messages.

        Raises:
            DatasetError: It is damaged, of another type (complex numbers, a palette), has no such band, holds
                infinity, or 8 bits where the bands have more.
            ConfigError: rasterio is not installed, which TIFF files need.
        """
        if data[:4] in TIFF:
            return self._tiff(data, name)
        if data[:6] == NPY:
            pixels = _array_file(data, name)
        elif data[:8] == PNG:
            pixels = _png(data, name)
        else:
            pixels = decode_image(data, name)
        names = ("red", "green", "blue")[: pixels.shape[2]] if data[:6] != NPY and pixels.shape[2] in (3, 4) else ()
        chosen = self.numbers(pixels.shape[2], names, name)
        if pixels.shape[2] == 4 and data[:8] == PNG and 4 not in chosen:  # opacity
            valid = np.broadcast_to(pixels[..., 3:] > 0, (*pixels.shape[:2], len(chosen)))
        else:
            valid = None
        if chosen != list(range(1, pixels.shape[2] + 1)):
            pixels = np.ascontiguousarray(pixels[..., [number - 1 for number in chosen]])
        return self.checked(pixels, name, valid)

    def _tiff(self, data: bytes, name: str) -> Raster:
        rasterio = load_rasterio("TIFF files of many bands")
        refuse_too_large(data, name)
        with contextlib.ExitStack() as opened:
            opened.enter_context(gdal(CACHE))
            try:
                memory = opened.enter_context(rasterio.MemoryFile(data))
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # that a picture is not where on earth
                    source = opened.enter_context(memory.open(driver="GTiff"))
            except rasterio.errors.RasterioError:
                raise DatasetError(f"cannot read {name}: a damaged TIFF file of {len(data)} bytes.") from None
            return self.window_of(source, name)

    def window_of(self, source: Any, name: str, window: Any = None) -> Raster:
        """Read a window of an opened rasterio data set, or all of it; see `decode` for the errors."""
        errors = load_rasterio().errors
        _check_source(source, name)
        chosen = self.numbers(source.count, [text or "" for text in source.descriptions], name)
        height, width = (source.height, source.width) if window is None else (int(window.height), int(window.width))
        if height * width * len(chosen) > 4 * MOST_PIXELS:
            raise DatasetError(
                f"cannot read {name}: {height} x {width} pixels of {len(chosen)} bands are too many to be read at "
                "once. Cut it into tiles."
            )
        try:
            pixels = source.read(chosen, window=window).transpose(1, 2, 0)
            valid = _valid(source, chosen, window)
        except (errors.RasterioError, MemoryError) as error:
            raise DatasetError(
                f"cannot read {name}: damaged, or not complete ({str(error.__cause__ or error).rstrip('.')})."
            ) from None
        nan = any(value is not None and np.isnan(value) for value in source.nodatavals)
        return self.checked(np.ascontiguousarray(pixels), name, valid, declared=nan)

    def mask_of(
        self, source: Any, name: str, window: Any = None, *, size: tuple[int, int] | None = None
    ) -> NDArray[np.bool_] | None:
        """The mask of an opened rasterio data set, bool [H, W, C], without `nodata`; None if all is data.

        With `size`, it is that of the nearest pixels, of which there are so many rows and columns.

        Raises:
            DatasetError: A band does not exist.
        """
        chosen = self.numbers(source.count, [text or "" for text in source.descriptions], name)
        return _valid(source, chosen, window, size)

    def numbers(self, count: int, names: Sequence[str], name: str) -> list[int]:
        """Find the numbers, from 1, of the bands in a file that has `count` bands of these names.

        Raises:
            DatasetError: A band does not exist; the message lists those that do.
        """
        if self.bands is None:
            return list(range(1, count + 1))
        known = {text.casefold(): number for number, text in reversed(list(enumerate(names, start=1))) if text}
        found = []
        for band in self.bands:
            number = band if isinstance(band, int) else known.get(band.casefold(), 0)
            if isinstance(band, str) and not number:
                if not known:
                    raise DatasetError(
                        f"{name} has {count} band{'s' * (count > 1)} without names, and data.bands asks for "
                        f"{band!r}: give numbers, 1 to {count}."
                    )
                raise DatasetError(
                    str(unknown_name(f"band in data.bands for {name}:", band, list(filter(None, names))))
                )
            if number > count:
                raise DatasetError(
                    f"{name} has {count} band{'s' * (count > 1)}, and data.bands asks for band {number}: give numbers "
                    f"from 1 to {count}, or remove the file."
                )
            found.append(number)
        return found

    def checked(
        self, pixels: NDArray[Any], name: str, valid: NDArray[np.bool_] | None = None, *, declared: bool = False
    ) -> Raster:
        """Bring an array [H, W, C] to one of the types `KEPT`, mark its values without data, and fill them.

        Args:
            pixels: The array.
            name: Its name in messages.
            valid: False where it is known to have no data.
            declared: NaN is known to mean no data.

        Raises:
            DatasetError: Another type, fewer bits than the means in `fill` need, or infinity; names the band.
            ConfigError: Another number of bands than `fill` has.
        """
        if not pixels.size:
            raise DatasetError(f"{name} has no pixels: its shape is {list(pixels.shape)}.")
        if self.fill is not None and pixels.shape[2] != len(self.fill):
            raise ConfigError(
                f"model.in_channels is {len(self.fill)}, and {name} has {pixels.shape[2]} bands: data.bands says which "
                "bands of the files are read."
            )
        if self.fill is not None and has_fewer_bits(pixels, self.fill):
            raise DatasetError(
                f"{name} holds 8-bit values, and the bands of the training data have means up to {max(self.fill):.5g} "
                "(data.pixel_mean): give the file as it was before it was scaled to 8 bits. If its values are in these "
                "units, save them with their bits: gdal_translate -ot UInt16 IN OUT"
            )
        if self.nodata is not None and not np.isnan(self.nodata):
            given = pixels != self.nodata
            valid = given if valid is None else valid & given
        pixels = _kept_type(pixels, name, valid)
        undeclared = False
        if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
            nan = np.isnan(pixels)
            bad = np.isinf(pixels) if valid is None else np.isinf(pixels) & valid
            if bad.any():
                band = self.label(int(np.flatnonzero(bad.any(axis=(0, 1)))[0]))
                raise DatasetError(
                    f"{name} holds infinity in band {band}: {int(bad.sum())} of its values. Replace them by a number, "
                    "or by NaN, which means no data."
                )
            undeclared = bool((nan if valid is None else nan & valid).any()) and not declared and self.nodata is None
            valid = ~nan if valid is None else valid & ~nan
        if valid is not None and valid.all():
            valid = None
        if self.fill is not None:
            _warn_of_units(pixels, valid, self.fill)
            if valid is not None:
                pixels = self.filled(pixels, valid)
        return Raster(pixels, valid, undeclared)

    def filled(self, pixels: NDArray[Any], valid: NDArray[np.bool_]) -> NDArray[Any]:
        """Put `fill`, rounded to the type of the pixels, where no data is."""
        assert self.fill is not None
        values = np.asarray(self.fill)
        if pixels.dtype.kind != "f":
            limits = np.iinfo(pixels.dtype)
            values = values.round().clip(limits.min, limits.max)
        return np.where(valid, pixels, values.astype(pixels.dtype))

    def label(self, channel: int) -> str:
        """Name the band of a channel, counted from 0, in messages."""
        return str(channel + 1 if self.bands is None else self.bands[channel])

    def channels(self, bands: Sequence[int | str]) -> list[int]:
        """Find the channels, from 0, of bands that are named as in `bands`.

        Raises:
            ConfigError: The model does not read such a band.
        """
        known = [str(band).casefold() for band in self.bands or ()]
        for band in bands:
            if str(band).casefold() not in known:
                shown = ", ".join(str(known) for known in self.bands or ())
                raise ConfigError(f"there is no band {band} among those of the model: {shown}.")
        return [known.index(str(band).casefold()) for band in bands]


_WITH_NODATA: dict[str, str] = {}
"""The first file of which is said that its no-data value is passed over."""


def decode_photo(data: bytes, name: str) -> Raster:
    """Decode a photo, RGB, as `decode_image` does; of a TIFF with the mask of what has data in some band, [H, W, 1].

    No data is where the file has its no-data value in all bands, or where its mask or alpha band says so: the same
    pixels as of its windows. A file that its orientation tag turns has no mask. Without rasterio, a `UserWarning` says
    once in a process that no-data values are passed over.

    Raises:
        DatasetError: It cannot be decoded, or its mask cannot.
    """
    pixels = decode_image(data, name)
    if data[:4] not in TIFF:
        return Raster(pixels)
    tags = tiff_tags(data)
    if tags.get(TURNED_TAG, (1,)) != (1,):
        return Raster(pixels)
    try:
        return Raster(pixels, _data_mask(data, name))
    except ConfigError as error:  # rasterio is missing
        if NODATA_TAG in tags:
            first = _WITH_NODATA.setdefault("first", name)  # a name of its own for each file would warn of all
            warn_once(f"TIFF files such as {first} have a no-data value, whose pixels count as all others do: {error}")
        return Raster(pixels)


def _data_mask(data: bytes, name: str) -> NDArray[np.bool_] | None:
    """Which pixels of a TIFF have data in some band, bool [H, W, 1]; None where all have, or GDAL does not know it."""
    with contextlib.ExitStack() as opened, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a picture is not where on earth
        opened.enter_context(gdal(CACHE))
        try:
            source = opened.enter_context(opened.enter_context(load_rasterio().MemoryFile(data)).open(driver="GTiff"))
        except gdal_errors():
            return None
        if all_valid(source):
            return None
        try:
            found: NDArray[np.bool_] = source.dataset_mask()[..., None] > 0
        except gdal_errors() as error:
            raise DatasetError(
                f"cannot read {name}: damaged, or not complete ({str(error.__cause__ or error).rstrip('.')})."
            ) from None
    return None if found.all() else found


def as_raster(image: Any, reader: BandReader, mean: Sequence[float]) -> Raster:
    """Convert one image to the bands that a model takes, [H, W, C].

    Accepted are files (see `BandReader.decode`), arrays [H, W, C] and tensors [C, H, W], and [H, W] for one band, of
    the values that the files of the training data hold. NaN means no data.

    Args:
        image: The image.
        reader: How bands are read.
        mean: Of each band in training, C values.

    Raises:
        DatasetError: A file cannot be read, or has 8 bits where the bands have more; or values are infinite.
        ConfigError: Another type or number of bands; an array of uint8 where the bands have more bits.
    """
    if is_file(image):
        return reader.read(image)
    pixels, count, seen = _as_array(image), len(mean), _seen(image)
    if pixels is not None and pixels.ndim == 2:
        pixels = pixels[..., None]
    elif pixels is not None and pixels.ndim == 3 and is_tensor(image):
        pixels = pixels.transpose(1, 2, 0)
    if pixels is None or pixels.ndim != 3 or pixels.shape[2] != count or not pixels.size:
        shown = "" if reader.bands is None else f" ({', '.join(map(str, reader.bands))})"
        raise ConfigError(
            f"the model takes images of {count} bands{shown}: a file, an array [H, W, {count}] or a tensor [{count}, "
            f"H, W], with the values of the files as they are; or a batch or list of such; not {seen}."
        )
    if has_fewer_bits(pixels, mean):
        raise ConfigError(
            f"{seen} holds 8-bit values, and the bands of the model have means up to {max(mean):.5g}: pass the values "
            "of the files as they are."
        )
    found = reader.checked(pixels, seen)
    return found._replace(pixels=np.require(found.pixels, requirements=["C", "W"]))


def has_fewer_bits(pixels: NDArray[Any], mean: Sequence[float]) -> bool:
    """True for 8-bit values of bands whose means in training, C values, lie beyond 255: they have other units."""
    return pixels.dtype == np.uint8 and max(mean) > 255


def _warn_of_units(pixels: NDArray[Any], valid: NDArray[np.bool_] | None, mean: Sequence[float]) -> None:
    """Warn, once in a process, of 16-bit values far above what bands of 8 bits, or of reflectance in 0..1, had.

    It is no error: a scene of snow may be that bright. So the mean of an image must be ten times the largest of the
    training data.
    """
    largest = max(*np.abs(mean), 1.0)
    if pixels.dtype.itemsize != 2 or largest > 255:
        return
    known = pixels if valid is None else pixels[np.broadcast_to(valid, pixels.shape)]
    if known.size and known.mean(dtype=np.float64) > 10 * largest:
        warn_once(
            f"images hold 16-bit values, and the bands of the training data have means up to {max(mean):.5g} "
            "(data.pixel_mean): results are wrong unless both have the same units. Give files in the units of the "
            "training data, such as scaled to 8 bits in the same way."
        )


def without_labels(labels: NDArray[Any], valid: NDArray[np.bool_] | None) -> NDArray[Any]:
    """Labels [H, W] that are ignored where no band has data; the array itself where all pixels have some."""
    if valid is None:
        return labels
    empty, ignored = ~valid.any(axis=2), ignore_value(labels)
    return np.where(empty, labels.dtype.type(ignored), labels) if empty.any() else labels


def _check_source(source: Any, name: str) -> None:
    """Refuse a TIFF whose values are no measurements, or of another type."""
    kinds = {str(kind) for kind in source.dtypes}
    if any("complex" in kind for kind in kinds):
        raise DatasetError(
            f"{name} holds complex numbers ({', '.join(sorted(kinds))}): save their amplitude, for instance by "
            "gdal_calc.py -A IN --outfile=OUT --calc='abs(A)' --type=Float32"
        )
    if source.colorinterp[0].name == "palette":
        raise DatasetError(
            f"{name} is a palette picture, whose values are numbers of colours: gdal_translate -expand rgb IN OUT"
        )


def _valid(
    source: Any, chosen: Sequence[int], window: Any, size: tuple[int, int] | None = None
) -> NDArray[np.bool_] | None:
    """The file's own mask of the chosen bands, bool [H, W, C]: nodata value, mask or alpha band; None without one.

    GDAL tags a fourth band of 8 bits as alpha unless it is told what it is: a chosen one is data.
    """
    flags = {flag.name for number in chosen for flag in source.mask_flag_enums[number - 1]}
    kinds = [kind.name for kind in source.colorinterp]
    if flags == {"all_valid"} or ("alpha" in flags and "alpha" in (kinds[number - 1] for number in chosen)):
        return None
    shape = None if size is None else (len(chosen), *size)
    masks: NDArray[np.uint8] = source.read_masks(list(chosen), window=window, out_shape=shape)
    return None if masks.all() else np.ascontiguousarray(masks.transpose(1, 2, 0) > 0)


def _kept_type(pixels: NDArray[Any], name: str, valid: NDArray[np.bool_] | None) -> NDArray[Any]:
    kind = pixels.dtype
    if kind.name in KEPT:
        return pixels.astype(kind.newbyteorder("="), copy=False)
    if kind in (np.int8, np.bool_):
        return pixels.astype(np.int16)
    if kind.kind == "f":  # float16 is exact, float64 is rounded to 7 digits
        with np.errstate(over="ignore"):
            return pixels.astype(np.float32)
    if kind.kind in "iu":
        known = pixels if valid is None else np.where(valid, pixels, pixels.dtype.type(0))
        low, high = int(known.min()), int(known.max())
        if -EXACT <= low <= high <= EXACT:
            return pixels.astype(np.float32)
        raise DatasetError(
            f"{name} holds {kind} from {low} to {high}, which float32 cannot hold exactly: scale it to 16 bits, "
            f"such as gdal_translate -ot UInt16 -scale {low} {high} 0 65535 IN OUT"
        )
    raise DatasetError(f"{name} holds {kind} values: save {', '.join(KEPT)}.")


_BROKEN_ARRAY = (ValueError, EOFError, OSError, MemoryError, TypeError, OverflowError, SyntaxError, RecursionError,
                 tokenize.TokenError)  # fmt: skip
"""What NumPy raises of an .npy file that is damaged: its header is a Python literal."""


def _array_file(data: bytes, name: str) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(io.BytesIO(data), allow_pickle=False)
    except _BROKEN_ARRAY as error:
        raise DatasetError(f"cannot read {name}: {' '.join(str(error).split())}") from None
    if array.ndim not in (2, 3):
        raise DatasetError(f"{name} has the shape {list(array.shape)}, not [H, W, C].")
    if array.ndim == 3 and array.shape[0] < min(array.shape[1:]) and array.shape[2] > 64 >= array.shape[0]:
        raise DatasetError(f"{name} has the shape {list(array.shape)}, with its bands first: save it as [H, W, C].")
    return array[..., None] if array.ndim == 2 else array


def _png(data: bytes, name: str) -> NDArray[Any]:
    refuse_too_large(data, name)
    depth, kind = (*data[24:26], 0, 0)[:2]
    if kind == 3:
        raise DatasetError(
            f"{name} is a palette picture, whose values are numbers of colours: gdal_translate -expand rgb IN OUT"
        )
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except (cv2.error, MemoryError):
        image = None
    if image is None:
        raise DatasetError(f"cannot read {name}: {len(data)} bytes that are not an image, or a corrupt one.")
    if kind == 0 and depth in (1, 2, 4):  # scaled to 0..255 by the decoder, and in a TIFF they are what is stored
        image = image // np.uint8(255 // (2**depth - 1))
    if image.ndim == 2:
        return image[..., None]
    order = [2, 1, 0, 3][: image.shape[2]] if image.shape[2] >= 3 else list(range(image.shape[2]))
    return np.ascontiguousarray(image[..., order])


@dataclasses.dataclass(frozen=True)
class BandStatistics:
    """Count, mean and sum of squared deviations of each band, float64 [C], of any number of pixels.

    Sums are merged as Chan, Golub and LeVeque do (https://doi.org/10.1080/00031305.1983.10483115), in float64, without
    the cancellation of a sum of squares.
    """

    count: NDArray[np.float64]
    mean: NDArray[np.float64]
    squares: NDArray[np.float64]

    @classmethod
    def of(cls, raster: Raster) -> BandStatistics:
        """Those of one raster, without the values that are no data."""
        bands = raster.pixels.shape[2]
        flat = raster.pixels.reshape(-1, bands)
        valid = None if raster.valid is None else raster.valid.reshape(-1, bands)
        found = cls(np.zeros(bands), np.zeros(bands), np.zeros(bands))
        step = max((1 << 20) // bands, 1)
        for first in range(0, len(flat), step):
            part = flat[first : first + step].astype(np.float64)
            if valid is None:
                count = np.full(bands, float(len(part)))
                mean = part.mean(axis=0)
                squares = ((part - mean) ** 2).sum(axis=0)
            else:
                known = valid[first : first + step]
                count = known.sum(axis=0).astype(np.float64)
                mean = np.where(known, part, 0).sum(axis=0) / np.maximum(count, 1)
                squares = (np.where(known, part - mean, 0) ** 2).sum(axis=0)
            found = found.merged(cls(count, mean, squares))
        return found

    def merged(self, other: BandStatistics) -> BandStatistics:
        """Those of the pixels of both."""
        count = self.count + other.count
        share = other.count / np.maximum(count, 1)
        apart = other.mean - self.mean
        return BandStatistics(
            count, self.mean + apart * share, self.squares + other.squares + apart**2 * self.count * share
        )

    @property
    def deviation(self) -> NDArray[np.float64]:
        """Standard deviation of each band, as of `numpy.std`."""
        found: NDArray[np.float64] = np.sqrt(self.squares / np.maximum(self.count, 1))
        return found
