"""The place of a raster on the map: CRS and transform of a GeoTIFF, pixels without data, areas in square metres.

A `Georeference` is plain values, so it can be compared and sent to other processes; rasterio (extra `large`) computes
with it. Only what is inside a TIFF file counts: world files (.tfw), .aux.xml and .msk beside it are not read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from resnest_seg.errors import ConfigError, DatasetError, printable, require_utf8
from resnest_seg.io.images import TIFF
from resnest_seg.io.large_images import CACHE, gdal, gdal_errors, load_rasterio, orientation_in_header

MOST_DISTORTED = 0.01
"""Share by which areas in the plane of a CRS may differ from those on the ellipsoid and still be given."""

STRAIGHT = 64
"""Longest side, in pixels, of a polygon that is projected: lines that are straight in one CRS are curves in another."""

_KEYS = 34735  # the GeoKeyDirectory of a TIFF


@dataclasses.dataclass(frozen=True)
class Georeference:
    """Position of a raster on the map.

    Attributes:
        wkt: Its coordinate reference system, as WKT.
        transform: (a, b, c, d, e, f) of x = a column + b row + c, y = d column + e row + f, in units of the CRS, from
            the upper left corner of the upper left pixel; also rotated, sheared and south-up.
    """

    wkt: str
    transform: tuple[float, float, float, float, float, float]

    @property
    def crs(self) -> Any:
        """rasterio's CRS."""
        return _crs(self.wkt)

    @property
    def affine(self) -> Any:
        """rasterio's transform."""
        return load_rasterio().Affine(*self.transform)

    @property
    def name(self) -> str:
        """A short name of the CRS, such as EPSG:32633, or its own name."""
        authority = self.crs.to_authority()
        return ":".join(authority) if authority else self.wkt.partition('"')[2].partition('"')[0]

    @property
    def pixel(self) -> str:
        """Size of a pixel in words, such as "10 x 10 metre"."""
        a, b, _, d, e, _ = self.transform
        return f"{np.hypot(a, d):.6g} x {np.hypot(b, e):.6g} {self.crs.units_factor[0]}"

    def coordinates(self, points: NDArray[Any]) -> NDArray[np.float64]:
        """Map pixel corners (x, y) [N, 2] to coordinates in the CRS, float64 [N, 2]."""
        a, b, c, d, e, f = self.transform
        found: NDArray[np.float64] = np.asarray(points, np.float64) @ np.array([[a, d], [b, e]]) + (c, f)
        return found

    def projected(self, points: NDArray[Any], target: str) -> NDArray[np.float64]:
        """Map pixel corners (x, y) [N, 2] to another CRS, x (or longitude) first, float64 [N, 2].

        Raises:
            DatasetError: They lie outside of what the CRS can describe.
        """
        rasterio = load_rasterio()
        x, y = self.coordinates(points).T
        try:
            found = np.array(warp().transform(self.crs, rasterio.crs.CRS.from_string(target), x, y)).T
        except gdal_errors() as error:
            raise DatasetError(f"{self.name} cannot be converted to longitude and latitude: {error}.") from None
        if not np.isfinite(found).all():
            raise DatasetError(f"{self.name} at {x[0]:g}, {y[0]:g} ... has no longitude and latitude: is it the CRS "
                               "of these coordinates? gdalinfo shows both, gdal_edit.py -a_srs sets it.")  # fmt: skip
        return found

    def differs(self, other: Georeference) -> str | None:
        """Say how another place of a raster of the same size differs by more than a hundredth of a pixel; or None."""
        if self.crs != other.crs:
            return f"another CRS, {other.name} and not {self.name}"
        if np.allclose(self.transform, other.transform, rtol=0, atol=1e-9):
            return None
        corners = np.array([[0, 0], [4096, 0], [0, 4096]])
        a, b, _, d, e, _ = self.transform
        side = np.sqrt(abs(a * e - b * d))
        apart = np.abs(self.coordinates(corners) - other.coordinates(corners)).max() / side
        if apart <= 0.01:
            return None
        if other.pixel != self.pixel:
            return f"another resolution, {other.pixel} and not {self.pixel}"
        return f"another place, {apart:.4g} pixels away (transform {other.transform} and not {self.transform})"


class Areas:
    """Areas in square metres of regions of a raster, by one method for all of it.

    In a projected CRS a region's area is its number of pixels times a pixel's, exactly, in the CRS's plane. Where that
    plane is far from true to area (geographic CRS; Web Mercator away from the equator), it is the area on the WGS 84
    ellipsoid, by an equal-area projection (cylindrical, around the raster's middle).

    Args:
        place: Where the raster lies.
        height: H.
        width: W.

    Attributes:
        method: "plane" or "ellipsoid".
    """

    def __init__(self, place: Georeference, height: int, width: int) -> None:
        self._place = place
        a, b, _, d, e, _ = place.transform
        unit = place.crs.units_factor[1]
        self._pixel = abs(a * e - b * d) * unit**2
        self.method = "plane"
        if place.crs.is_geographic or place.crs.is_projected:
            middle = place.projected(np.array([[width / 2, height / 2]]), "OGC:CRS84")[0, 0]
            self._equal = f"+proj=cea +lon_0={middle:.6f} +datum=WGS84 +units=m +no_defs"
            frame = np.array([[0, 0], [width, 0], [width, height], [0, height]])
            plane = self._pixel * height * width
            true = self._on_ellipsoid([frame])  # of degrees, the plane is nothing like it
            if abs(plane / max(true, 1e-12) - 1) > MOST_DISTORTED:
                self.method = "ellipsoid"

    def of(self, pixels: int, rings: Sequence[NDArray[Any]]) -> float:
        """Area of a region of so many pixels, whose outline and holes are `rings` of corners [N, 2], not closed."""
        return self._pixel * pixels if self.method == "plane" else self._on_ellipsoid(rings)

    def _on_ellipsoid(self, rings: Sequence[NDArray[Any]]) -> float:
        return abs(sum(signed_area(self._place.projected(divided(ring), self._equal)) for ring in rings))


def signed_area(ring: NDArray[Any]) -> float:
    """Signed area of corners (x, y) [N, 2]: positive if x turns towards y, so anticlockwise where y points up."""
    x, y = (ring - ring[0]).astype(np.float64).T  # large coordinates would cancel
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum()) / 2


def divided(ring: NDArray[Any]) -> NDArray[np.float64]:
    """Corners [N, 2] of a ring with others between them, at most `STRAIGHT` pixels apart."""
    following = np.roll(ring, -1, axis=0).astype(np.float64)
    counts = np.maximum(np.ceil(np.abs(following - ring).max(axis=1) / STRAIGHT).astype(int), 1)
    first = np.repeat(np.arange(len(ring)), counts)
    within = np.arange(len(first)) - np.repeat(np.cumsum(counts) - counts, counts)
    share = (within / counts[first])[:, None]
    points: NDArray[np.float64] = ring[first] * (1 - share) + following[first] * share
    return points


def is_tiff(path: str | Path) -> bool:
    """True if a file begins as a TIFF does; False for files that cannot be read, which others report."""
    try:
        with open(path, "rb") as file:
            return file.read(4) in TIFF
    except (OSError, ValueError):
        return False


def read_georeference(path: str | Path) -> Georeference | None:
    """Read where a TIFF lies; None for other files, and for one without CRS, or without a place in it.

    None, too, for one whose orientation tag turns its pixels: the transform is for those that are stored.
    A TIFF that cannot be opened has none either: whoever reads its pixels says what is wrong. Without rasterio, a
    `UserWarning` says, once a file, that the place of a georeferenced one is lost.
    """
    if not is_tiff(path):
        return None
    try:
        with opened(path) as source:
            place = georeference_of(source)
    except DatasetError:
        return None
    except ConfigError as error:  # rasterio is missing
        if _has_keys(path):
            warn_once(f"{printable(str(path))} lies on the map, and its results will not: {error}")
        return None
    return place if orientation_in_header(path, "GTiff") == 1 else None


def raster_size(path: str | Path) -> tuple[int, int]:
    """(H, W) of a TIFF of any bands from its header; (0, 0) if it cannot be opened, which its reader explains."""
    try:
        with opened(path) as source:
            return int(source.height), int(source.width)
    except (DatasetError, ConfigError):
        return 0, 0


def georeference_of(source: Any) -> Georeference | None:
    """The place of an open rasterio data set; None if it has no CRS, or ground control points in place of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        crs, transform = source.crs, source.transform
    if not crs or transform.is_identity or transform.is_degenerate:
        return None
    return Georeference(crs.to_wkt(), tuple(transform)[:6])


def open_tiff(path: str | Path) -> Any:
    """Open a TIFF with rasterio; to be called, and read, within `resnest_seg.io.large_images.gdal`.

    Raises:
        DatasetError: No TIFF, or a damaged one.
        ConfigError: rasterio is not installed.
    """
    rasterio = load_rasterio()
    require_utf8(Path(path).absolute())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of files that lie on no map
            return rasterio.open(Path(path).absolute(), driver="GTiff")
    except gdal_errors() as error:
        why = str(error.__cause__ or error).rstrip(".").replace(str(Path(path).absolute()), "it")
        raise DatasetError(f"cannot read {printable(str(path))}: no TIFF image, or a damaged one ({why}).") from None


@contextlib.contextmanager
def opened(path: str | Path, *, cache: int = CACHE) -> Iterator[Any]:
    """Open a TIFF as `open_tiff` does, within GDAL's settings."""
    with gdal(cache), open_tiff(path) as source:
        yield source


class DataMask:
    """Which pixels of a georeferenced raster have no data, by rows; a context manager.

    Pixels without are those where every band has the file's no-data value, or that its mask or alpha band leaves out.

    Attributes:
        everywhere: All pixels have data, as far as the file says.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._stack = contextlib.ExitStack()
        self._source = self._stack.enter_context(opened(path, cache=4 * CACHE))
        self.everywhere = all_valid(self._source)

    def without_data(self, first: int, count: int) -> NDArray[np.bool_] | None:
        """Mask of pixels without data in rows from `first`: bool [count, W]; None if all pixels have some.

        Raises:
            DatasetError: The file is damaged.
        """
        if self.everywhere:
            return None
        try:
            found: NDArray[np.bool_] = (
                self._source.dataset_mask(window=((first, first + count), (0, self._source.width))) == 0
            )
        except gdal_errors() as error:
            raise DatasetError(
                f"cannot read rows {first} to {first + count - 1} of {printable(str(self.path))}: damaged, or not "
                f"complete ({str(error.__cause__ or error).rstrip('.')})."
            ) from None
        return found if found.any() else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()


def all_valid(source: Any) -> bool:
    """True if an open rasterio data set marks no pixel as one without data."""
    return all("all_valid" in {flag.name for flag in flags} for flags in source.mask_flag_enums)


@functools.lru_cache(maxsize=1024)
def warn_once(message: str) -> None:
    """Give a `UserWarning`, the same one once in a process."""
    warnings.warn(message, stacklevel=3)


def _has_keys(path: str | Path) -> bool:
    """True for a TIFF with geographic keys; no pixel is decoded."""
    from PIL import Image

    try:
        with warnings.catch_warnings(), Image.open(path) as picture:
            warnings.simplefilter("ignore")
            return _KEYS in getattr(picture, "tag_v2", {})
    except (OSError, ValueError, SyntaxError, TypeError, KeyError, Image.DecompressionBombError):
        return False


@functools.lru_cache(maxsize=64)
def _crs(wkt: str) -> Any:
    return load_rasterio().crs.CRS.from_wkt(wkt)


def warp() -> Any:
    """rasterio's module of projections."""
    load_rasterio()
    return importlib.import_module("rasterio.warp")
