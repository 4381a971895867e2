"""Labels of a georeferenced raster as polygons on the map: GeoJSON in OGC:CRS84, GeoPackage in the raster's CRS.

Every region of `resnest_seg.io.outlines.polygons` is one feature with its class and its area in square metres (see
`resnest_seg.io.georeference.Areas`), which is that of its pixels, also where its outline is simplified. GeoPackage is
OGC 12-128r18 (version 1.3), an SQLite file: the standard library writes it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import math
import sqlite3
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnest_seg.errors import ConfigError, DatasetError
from resnest_seg.files import atomic_write
from resnest_seg.io.georeference import Areas, Georeference, divided, signed_area, warp
from resnest_seg.io.large_images import gdal_errors, load_rasterio
from resnest_seg.io.outlines import check_polygon_options, regions_of, simplified
from resnest_seg.labels import LabelSpace

DIGITS = 7
"""Digits behind the point of longitudes and latitudes, 11 mm; more where a pixel would have fewer than ten steps."""

TABLE = "labels"
"""Name of the layer in a GeoPackage."""

_APPLICATION, _VERSION = 0x47504B47, 10300  # "GPKG", 1.3.0
_OWN_CRS = 100_000  # srs_id of a CRS without an EPSG code
_METRES_PER_DEGREE = 111_320.0


@dataclasses.dataclass(frozen=True)
class Region:
    """A region of pixels of one class.

    Attributes:
        properties: name, train_id, raw_id, color, pixels, area_m2 and area_by ("plane" or "ellipsoid").
        rings: Its outline and holes: corners (x, y) in pixels, [N, 2], not closed.
    """

    properties: dict[str, Any]
    rings: list[NDArray[Any]]


def regions_on_map(
    labels: NDArray[np.uint8], space: LabelSpace, place: Georeference, *, simplify: float = 0.0, min_area: int = 0
) -> Iterator[Region]:
    """Yield the regions of train ids [H, W], by class; see `resnest_seg.io.outlines.polygons` for options and errors.

    Raises:
        DatasetError: The raster has no longitudes and latitudes.
    """
    check_polygon_options(labels, space, simplify=simplify, min_area=min_area)
    areas = Areas(place, *labels.shape)
    found = sorted(regions_of(labels, space), key=lambda region: region[0])
    for label, pixels, rings in found:
        if pixels >= min_area:
            properties = {
                "name": space.names[label],
                "train_id": label,
                "raw_id": space.raw_ids[label],
                "color": "#{:02x}{:02x}{:02x}".format(*space.colors[label]),
                "pixels": pixels,
                "area_m2": areas.of(pixels, rings),
                "area_by": areas.method,
            }
            yield Region(properties, [simplified(ring, simplify) for ring in rings])


def polygons_on_map(
    labels: NDArray[np.uint8], space: LabelSpace, place: Georeference, *, simplify: float = 0.0, min_area: int = 0
) -> dict[str, Any]:
    """Convert labels to a GeoJSON FeatureCollection by RFC 7946: longitude and latitude (OGC:CRS84), no member crs.

    One Feature a region: a Polygon, or a MultiPolygon where the antimeridian cuts it. Exteriors run anticlockwise.

    Args:
        labels: Train ids [H, W]; ignored pixels are in no polygon.
        space: Their label space.
        place: Where they lie.
        simplify: See `resnest_seg.io.outlines.polygons`.
        min_area: In pixels, see `resnest_seg.io.outlines.polygons`.

    Raises:
        DatasetError: A label out of range, or a raster that has no longitudes and latitudes.
        ConfigError: An option is out of range.
    """
    found = list(regions_on_map(labels, space, place, simplify=simplify, min_area=min_area))
    flat = [
        {"type": "Polygon", "coordinates": [_closed(place.coordinates(divided(ring))) for ring in region.rings]}
        for region in found
    ]
    try:
        moved = warp().transform_geom(place.crs, "OGC:CRS84", flat) if flat else []
    except gdal_errors() as error:
        raise DatasetError(f"{place.name} cannot be converted to longitude and latitude: {error}.") from None
    digits = _digits(place)
    features = [
        {"type": "Feature", "properties": region.properties, "geometry": _rfc7946(geometry, digits)}
        for region, geometry in zip(found, moved, strict=True)
    ]
    return {"type": "FeatureCollection", "features": features}


def write_map_polygons(
    path: str | Path,
    labels: NDArray[np.uint8],
    space: LabelSpace,
    place: Georeference,
    *,
    simplify: float = 0.0,
    min_area: int = 0,
) -> None:
    """Write labels as polygons on the map, atomically: .geojson or .json in OGC:CRS84, .gpkg in the raster's CRS.

    Args:
        path: The file; a GeoPackage has one layer, `TABLE`, with a column for each of a `Region`'s properties.
        labels: See `polygons_on_map`, as for the others and the errors.
        space: See `polygons_on_map`.
        place: See `polygons_on_map`.
        simplify: See `polygons_on_map`.
        min_area: See `polygons_on_map`.

    Raises:
        ConfigError: Another ending.
    """
    suffix = Path(path).suffix.lower()
    if suffix == ".gpkg":
        found = list(regions_on_map(labels, space, place, simplify=simplify, min_area=min_area))
        with atomic_write(path) as temporary:
            _write_geopackage(temporary, found, place)
    elif suffix in (".geojson", ".json"):
        collection = polygons_on_map(labels, space, place, simplify=simplify, min_area=min_area)
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(collection, separators=(",", ":"), ensure_ascii=False), encoding="utf-8")
    else:
        raise ConfigError(f"polygons on the map are saved as .geojson, .json or .gpkg, not as {path}.")


def _closed(ring: NDArray[np.float64]) -> list[list[float]]:
    positions: list[list[float]] = ring.tolist()
    return [*positions, positions[0]]


def _digits(place: Georeference) -> int:
    """Digits of longitudes and latitudes that a pixel needs."""
    a, b, _, d, e, _ = place.transform
    side = min(math.hypot(a, d), math.hypot(b, e)) * place.crs.units_factor[1]
    degrees = math.degrees(side) if place.crs.is_geographic else side / _METRES_PER_DEGREE
    return max(DIGITS, 1 - math.floor(math.log10(degrees)))


def _rfc7946(geometry: dict[str, Any], digits: int) -> dict[str, Any]:
    """Round a Polygon or MultiPolygon, and turn its exteriors anticlockwise and its holes clockwise."""

    def turned(rings: Sequence[Any]) -> list[list[list[float]]]:
        result = []
        for index, ring in enumerate(rings):
            points = np.array(ring, np.float64)[:, :2]
            if (signed_area(points[:-1]) > 0) != (index == 0):
                points = points[::-1]
            rounded = points.round(digits)
            fresh = np.append(True, (np.diff(rounded, axis=0) != 0).any(axis=1))
            result.append(rounded[fresh].tolist())
        return result

    if geometry["type"] == "Polygon":
        return {"type": "Polygon", "coordinates": turned(geometry["coordinates"])}
    return {"type": "MultiPolygon", "coordinates": [turned(rings) for rings in geometry["coordinates"]]}


_SCHEMA = f"""
PRAGMA application_id = {_APPLICATION};
PRAGMA user_version = {_VERSION};
CREATE TABLE gpkg_spatial_ref_sys (srs_name TEXT NOT NULL, srs_id INTEGER NOT NULL PRIMARY KEY,
    organization TEXT NOT NULL, organization_coordsys_id INTEGER NOT NULL, definition TEXT NOT NULL, description TEXT);
CREATE TABLE gpkg_contents (table_name TEXT NOT NULL PRIMARY KEY, data_type TEXT NOT NULL, identifier TEXT UNIQUE,
    description TEXT DEFAULT '', last_change DATETIME NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ','now')),
    min_x DOUBLE, min_y DOUBLE, max_x DOUBLE, max_y DOUBLE, srs_id INTEGER,
    CONSTRAINT fk_gc_r_srs_id FOREIGN KEY (srs_id) REFERENCES gpkg_spatial_ref_sys(srs_id));
CREATE TABLE gpkg_geometry_columns (table_name TEXT NOT NULL, column_name TEXT NOT NULL,
    geometry_type_name TEXT NOT NULL, srs_id INTEGER NOT NULL, z TINYINT NOT NULL, m TINYINT NOT NULL,
    CONSTRAINT pk_geom_cols PRIMARY KEY (table_name, column_name), CONSTRAINT uk_gc_table_name UNIQUE (table_name),
    CONSTRAINT fk_gc_tn FOREIGN KEY (table_name) REFERENCES gpkg_contents(table_name),
    CONSTRAINT fk_gc_srs FOREIGN KEY (srs_id) REFERENCES gpkg_spatial_ref_sys (srs_id));
CREATE TABLE {TABLE} (fid INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, geom POLYGON, name TEXT, train_id INTEGER,
    raw_id INTEGER, color TEXT, pixels INTEGER, area_m2 DOUBLE, area_by TEXT);
"""


def _write_geopackage(path: Path, found: Sequence[Region], place: Georeference) -> None:
    number, organization, code = _OWN_CRS, "NONE", _OWN_CRS
    if epsg := place.crs.to_epsg(confidence_threshold=100):
        number, organization, code = int(epsg), "EPSG", int(epsg)
    systems = {
        -1: ("Undefined Cartesian SRS", "NONE", -1, "undefined"),
        0: ("Undefined geographic SRS", "NONE", 0, "undefined"),
        4326: ("WGS 84 geodetic", "EPSG", 4326, load_rasterio().crs.CRS.from_epsg(4326).to_wkt()),
    }
    systems.setdefault(number, (place.name, organization, code, place.wkt))
    rings = [[place.coordinates(ring) for ring in region.rings] for region in found]
    corners = np.concatenate([ring for group in rings for ring in group]) if rings else np.zeros((0, 2))
    extent = [*corners.min(axis=0).tolist(), *corners.max(axis=0).tolist()] if len(corners) else [None] * 4
    rows = ((_geometry(group, number), *region.properties.values()) for group, region in zip(rings, found, strict=True))
    try:
        with contextlib.closing(sqlite3.connect(path)) as file:
            # The file is a temporary one that is renamed once it is whole: no journal beside it.
            file.executescript("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;" + _SCHEMA)
            file.executemany(
                "INSERT INTO gpkg_spatial_ref_sys VALUES (?, ?, ?, ?, ?, NULL)",
                [(name, key, owner, own, text) for key, (name, owner, own, text) in systems.items()],
            )
            file.execute(
                "INSERT INTO gpkg_contents (table_name, data_type, identifier, min_x, min_y, max_x, max_y, srs_id) "
                "VALUES (?, 'features', ?, ?, ?, ?, ?, ?)", (TABLE, TABLE, *extent, number)
            )  # fmt: skip
            file.execute("INSERT INTO gpkg_geometry_columns VALUES (?, 'geom', 'POLYGON', ?, 0, 0)", (TABLE, number))
            file.executemany(f"INSERT INTO {TABLE} VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
            file.commit()
    except sqlite3.OperationalError as error:
        code = errno.ENOSPC if "full" in str(error) else errno.EIO
        raise OSError(code, str(error), str(path)) from None


def _geometry(rings: Sequence[NDArray[np.float64]], number: int) -> bytes:
    """A polygon as GeoPackage's header, with its extent, and well-known binary."""
    low, high = rings[0].min(axis=0), rings[0].max(axis=0)
    header = struct.pack("<2sBBi4d", b"GP", 0, 0b011, number, low[0], high[0], low[1], high[1])
    parts = [header, struct.pack("<BII", 1, 3, len(rings))]
    for ring in rings:
        closed = np.concatenate([ring, ring[:1]]).astype("<f8")
        parts += [struct.pack("<I", len(closed)), closed.tobytes()]
    return b"".join(parts)
