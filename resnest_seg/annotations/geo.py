"""GeoJSON and GeoPackage over GeoTIFFs: areas on the map, drawn into every raster that they touch.

Vectors are transformed to the raster's coordinate reference system, and by its transform to pixels. GeoJSON is
OGC:CRS84 (RFC 7946) unless it has the older member `crs`. Features that come later are on top.
"""

from __future__ import annotations

import contextlib
import shlex
import sqlite3
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from resnest_seg.annotations.objects import AnnotatedImage, AnnotatedObject, AnnotatedSet, ReadOptions, Ring, Rings
from resnest_seg.annotations.reading import Item, read_bytes, read_json, shown, split_in, walk
from resnest_seg.errors import DatasetError, load_extra, printable

SUFFIXES = (".geojson", ".gpkg", ".json")
"""Vectors in a folder; of JSON, only GeoJSON."""

FIELDS = ("class", "label", "class_name", "classname", "category", "name", "type", "fclass", "landuse", "building")
"""Properties that hold a feature's class, in lower case; the first that exists counts."""

FARTHEST_ON_MAP = 1e9
"""Largest coordinate on the map, in units of its reference system: Gauss-Krueger zone 39 begins at 39e6 metres."""

DEEPEST = 8
"""Geometries in each other, at most."""


class _Feature(NamedTuple):
    properties: Mapping[str, Any]
    polygons: Sequence[Sequence[Ring]]
    box: tuple[float, float, float, float]
    place: str
    kind: str


class _Layer(NamedTuple):
    features: Sequence[_Feature]
    crs: Any
    place: str


def is_geojson(value: Any) -> bool:
    """True for the content of a GeoJSON file."""
    return isinstance(value, Mapping) and value.get("type") == "FeatureCollection" and "features" in value


def read(source: Path, options: ReadOptions) -> AnnotatedSet:
    """Read a GeoJSON or GeoPackage file, or a folder of them; rasters are looked for in the folder or in `photos`.

    Raises:
        DatasetError: A file is damaged, or holds a value that cannot be; a raster has no reference system.
        ConfigError: rasterio is not installed.
    """
    files = [source] if source.is_file() else [path for path in walk(source, SUFFIXES) if _holds_vectors(path)]
    if not files:
        raise DatasetError(f"{printable(str(source))} holds no vectors ({', '.join(SUFFIXES)}).")
    home = options.photos or (source.parent if source.is_file() else source)
    rasters = walk(home, (".tif", ".tiff")) if home.is_dir() else [home]
    if not rasters:
        raise DatasetError(
            f"{printable(str(home))} holds no raster (.tif) for {printable(str(files[0]))}: say where they are with "
            "--photos FOLDER."
        )
    layers = [
        layer for file in files for layer in (_geopackage(file) if file.suffix.lower() == ".gpkg" else _geojson(file))
    ]
    if not any(layer.features for layer in layers):
        raise DatasetError(f"{printable(str(files[0]))} holds no feature.")
    field = {layer.place: _field(layer, options.field) for layer in layers if layer.features}
    labels = sorted({_label(one, field[layer.place], layer) for layer in layers for one in layer.features})
    images = []
    for raster in rasters:
        below = raster.relative_to(home) if home.is_dir() else Path(raster.name)
        split = split_in(below.parts[0]) if len(below.parts) > 1 else None
        inner = Path(*below.parts[1:]) if split else below

        def objects(height: int, width: int, raster: Path = raster) -> Iterator[AnnotatedObject]:
            for layer in layers:
                yield from _objects(layer, field.get(layer.place), raster)

        images.append(AnnotatedImage(inner.as_posix(), raster, printable(str(raster)), objects, None, split))
    return AnnotatedSet(dict.fromkeys(labels), images, "list", "background", files)


def _holds_vectors(path: Path) -> bool:
    """False for JSON of other kinds, which need not even be valid: other programs have theirs beside the vectors."""
    if path.suffix.lower() != ".json":
        return True
    return b"FeatureCollection" in read_bytes(path) and is_geojson(read_json(path).value)


def _field(layer: _Layer, wanted: str | None) -> str | None:
    """Choose the property that holds the class; None for one class, named after the file."""
    names = dict.fromkeys(name for one in layer.features for name in one.properties)
    if wanted == "" or (wanted is None and not names):
        return None
    lower = {name.lower(): name for name in reversed(list(names))}
    found = wanted if wanted in names else None
    if wanted is None:
        found = next((lower[name] for name in FIELDS if name in lower), None)
    if found is None:
        raise DatasetError(
            f"{layer.place}: {'no property ' + shown(wanted) if wanted else 'it is not clear which property'} holds "
            f"the class; there are {shown(list(names))}. Name it with --field NAME, or give --field '' for one class."
        )
    return found


def _label(one: _Feature, field: str | None, layer: _Layer) -> str:
    if field is None:
        return Path(layer.place.partition(": ")[0]).stem
    value = one.properties.get(field)
    if not isinstance(value, str | int | float) or not str(value).strip():
        raise DatasetError(f"{one.place}: the property {field!r} must be a class, not {shown(value)}.")
    return str(value).strip()


def _objects(layer: _Layer, field: str | None, raster: Path) -> Iterator[AnnotatedObject]:
    rasterio, warp = load_extra("rasterio", "large"), load_extra("rasterio.warp", "large")
    where = printable(str(raster))
    try:
        with rasterio.open(raster) as opened:
            crs, back, bounds = opened.crs, ~opened.transform, opened.bounds
    except rasterio.errors.RasterioError as error:
        raise DatasetError(f"cannot read {where}: {error}.") from None
    if not crs:
        raise DatasetError(f"{where} has no coordinate reference system, so that nothing says where it lies: gdal_edit "
                           "-a_srs EPSG:CODE adds it.")  # fmt: skip
    (west, east), (south, north) = sorted((bounds.left, bounds.right)), sorted((bounds.bottom, bounds.top))
    middle = (west + east) / 2 if crs.is_geographic else None
    turns = (-360, 0, 360) if layer.crs.is_geographic else (0,)  # longitudes beyond 180 degrees are those of the west
    try:
        west, south, east, north = warp.transform_bounds(crs, layer.crs, west, south, east, north, densify_pts=21)
    except _gdal_errors() as error:
        raise DatasetError(f"{layer.place} cannot be laid over {where}: {error}.") from None
    east += 360 if west > east else 0  # the raster lies over the 180th meridian
    for one in layer.features:
        left, bottom, right, top = one.box
        if all(left + turn > east or right + turn < west for turn in turns) or bottom > north or top < south:
            continue
        parts = [Rings(tuple(_in_pixels(ring, one, layer.crs, crs, back, where, middle) for ring in polygon))
                 for polygon in one.polygons]  # fmt: skip
        reason = "" if parts else f"a {one.kind}"
        yield AnnotatedObject(_label(one, field, layer), tuple(parts), one.place, dropped=reason)


def _in_pixels(ring: Ring, one: _Feature, its: Any, crs: Any, back: Any, where: str, middle: float | None) -> Ring:
    """Transform positions of a system to another, and by `back` to pixels of the raster.

    If these are longitudes, they are turned about the earth to where the ring is nearest to that of `middle`.
    """
    try:
        xs, ys = load_extra("rasterio.warp", "large").transform(its, crs, *ring.T.tolist())
    except _gdal_errors() as error:
        raise DatasetError(f"{one.place}: a position is not on the map of {where}: {error}.") from None
    x, y = np.array(xs), np.array(ys)
    if middle is not None and np.isfinite(x).all():
        x = x + 360 * np.round((middle - (x.min() + x.max()) / 2) / 360)
    points: Ring = np.stack([back.a * x + back.b * y + back.c, back.d * x + back.e * y + back.f], axis=1)
    if not np.isfinite(points).all():
        far = ring[~np.isfinite(points).all(axis=1)][0].tolist()
        raise DatasetError(f"{one.place}: the position ({far[0]:g}, {far[1]:g}) is not on the map of {where}.")
    return points


def _gdal_errors() -> tuple[type[Exception], ...]:
    """The exceptions of rasterio, and those of GDAL and PROJ that it lets through."""
    return load_extra("rasterio.errors", "large").RasterioError, load_extra("rasterio._err", "large").CPLE_BaseError


def _box(polygons: Sequence[Sequence[Ring]]) -> tuple[float, float, float, float]:
    if not polygons:
        return -np.inf, -np.inf, np.inf, np.inf
    every = np.concatenate([ring for polygon in polygons for ring in polygon])
    (left, bottom), (right, top) = every.min(axis=0), every.max(axis=0)
    return float(left), float(bottom), float(right), float(top)


def _geojson(file: Path) -> list[_Layer]:
    rasterio = load_extra("rasterio", "large")
    document = read_json(file)
    name, member = "OGC:CRS84", document.get("crs")
    if member is not None:
        name = member["properties"]["name"].text()
    try:
        crs = rasterio.crs.CRS.from_user_input(name)
    except (rasterio.errors.CRSError, ValueError) as error:
        raise DatasetError(f"{document.place}: unknown reference system {shown(name)}: {str(error)[:100]}.") from None
    features = []
    for one in document["features"].items():
        geometry, properties = one.get("geometry"), one.get("properties")
        found = [] if geometry is None else list(_polygons(geometry, 0))
        if properties is not None and not isinstance(properties.value, Mapping):
            raise properties.error("a mapping")
        kind = "feature without geometry" if geometry is None else geometry["type"].text()
        features.append(_Feature({} if properties is None else properties.value, found, _box(found), one.place, kind))
    return [_Layer(features, crs, document.place)]


def _polygons(geometry: Item, depth: int) -> Iterator[list[Ring]]:
    kind = geometry["type"].text()
    if depth > DEEPEST:
        raise geometry.wrong(f"more than {DEEPEST} geometries in each other")
    if kind == "GeometryCollection":
        for inner in geometry["geometries"].items():
            yield from _polygons(inner, depth + 1)
    elif kind == "Polygon":
        yield from _polygon(geometry["coordinates"])
    elif kind == "MultiPolygon":
        for polygon in geometry["coordinates"].items():
            yield from _polygon(polygon)
    elif kind not in ("Point", "MultiPoint", "LineString", "MultiLineString"):
        raise geometry["type"].error("a geometry of GeoJSON")


def _polygon(coordinates: Item) -> Iterator[list[Ring]]:
    rings = [_positions(ring) for ring in coordinates.items()]
    if rings:  # else it is GeoJSON's empty polygon
        yield rings


def _positions(ring: Item) -> Ring:
    found = ring.numbers(FARTHEST_ON_MAP, "units of the reference system")
    if found.ndim != 2 or found.shape[1] not in (2, 3) or len(found) < 4:
        raise ring.error("a ring of at least 4 positions [x, y]")
    return found[:, :2]


def _geopackage(file: Path) -> list[_Layer]:
    """Read the tables of features; nothing is executed but queries of plain tables."""
    where = printable(str(file))
    if not file.is_file():
        raise DatasetError(f"cannot read {where}: no such file.")
    log = file.with_name(f"{file.name}-wal")
    if log.is_file() and log.stat().st_size:
        raise DatasetError(
            f"{where} has changes that are in {printable(log.name)} only: another program has it open, or ended too "
            f"soon. Close it there, or run: sqlite3 {shlex.quote(str(file))} 'PRAGMA wal_checkpoint(TRUNCATE)'"
        )
    try:
        with contextlib.closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro&immutable=1", uri=True)) as base:
            base.execute("PRAGMA trusted_schema = OFF")
            tables = base.execute("SELECT table_name, column_name, srs_id FROM gpkg_geometry_columns").fetchall()
            return [_layer(base, where, *row) for row in tables]
    except (sqlite3.Error, UnicodeDecodeError, OverflowError) as error:
        raise DatasetError(f"{where} is not a GeoPackage, or a damaged one: {error}.") from None


def _layer(base: sqlite3.Connection, where: str, table: Any, column: Any, srs: Any) -> _Layer:
    rasterio = load_extra("rasterio", "large")
    kinds = base.execute("SELECT type, sql FROM sqlite_master WHERE name = ?", (table,)).fetchall()
    if len(kinds) != 1 or kinds[0][0] != "table" or "virtual" in str(kinds[0][1]).lower()[:20]:
        raise DatasetError(f"{where}: {shown(table)} is not a plain table of features.")
    found = base.execute("SELECT organization, organization_coordsys_id, definition FROM gpkg_spatial_ref_sys "
                         "WHERE srs_id = ?", (srs,)).fetchone()  # fmt: skip
    if found is None:
        raise DatasetError(f"{where}: the table {shown(table)} has the unknown reference system {shown(srs)}.")
    try:
        is_code = str(found[0]).upper() == "EPSG"
        crs = rasterio.crs.CRS.from_user_input(f"EPSG:{found[1]}" if is_code else str(found[2]))
    except (rasterio.errors.CRSError, ValueError) as error:
        raise DatasetError(f"{where}: unknown reference system {shown(found[1])}: {str(error)[:100]}.") from None
    quoted = '"' + str(table).replace('"', '""') + '"'
    features = []
    cursor = base.execute(f"SELECT * FROM {quoted}")
    names = [one[0] for one in cursor.description]
    if column not in names:
        raise DatasetError(f"{where}: the table {shown(table)} has no column {shown(column)}.")
    keys = [row[1] for row in base.execute(f"PRAGMA table_info({quoted})") if row[5]]
    for number, row in enumerate(cursor):
        values = dict(zip(names, row, strict=True))
        place, blob = f"{where}: {printable(str(table))}, row {number}", values.pop(column)
        polygons = _of_blob(blob, place) if blob is not None else []
        properties = {key: value for key, value in values.items() if key not in keys}
        features.append(_Feature(properties, polygons, _box(polygons), place, "feature without area"))
    return _Layer(features, crs, f"{where}: {printable(str(table))}")


def _of_blob(blob: Any, place: str) -> list[list[Ring]]:
    """Parse GeoPackage's binary geometry: a header, an envelope, and well-known binary."""
    if not isinstance(blob, bytes) or blob[:2] != b"GP" or len(blob) < 8:
        raise DatasetError(f"{place}: no geometry of a GeoPackage: {shown(blob)}.")
    envelope = (0, 32, 48, 48, 64, 0, 0, 0)[blob[3] >> 1 & 7]
    try:
        polygons, _ = _wkb(blob, 8 + envelope, 0)
    except (struct.error, ValueError) as error:
        raise DatasetError(f"{place}: a damaged geometry of {len(blob)} bytes: {error}.") from None
    return polygons


def _wkb(data: bytes, at: int, depth: int) -> tuple[list[list[Ring]], int]:
    """Return the polygons of a well-known binary geometry, and where it ends."""
    if depth > DEEPEST:
        raise ValueError(f"more than {DEEPEST} geometries in each other")
    order = "<" if data[at : at + 1] == b"\x01" else ">"
    (code,) = struct.unpack_from(f"{order}I", data, at + 1)
    kind, axes = code & 0xFFFF, 2 + bool(code & 0x80000000) + bool(code & 0x40000000)
    if kind >= 1000:
        axes, kind = 2 + (1 if kind < 3000 else 2), kind % 1000
    at += 5 + (4 if code & 0x20000000 else 0)

    def line(at: int) -> tuple[Ring, int]:
        (count,) = struct.unpack_from(f"{order}I", data, at)
        if at + 4 + count * axes * 8 > len(data):
            raise ValueError(f"{count} points are announced")
        points = np.frombuffer(data, f"{order}f8", count * axes, at + 4).reshape(count, axes)[:, :2].astype(np.float64)
        if not np.isfinite(points).all():
            raise ValueError("a coordinate is not finite")
        return points, at + 4 + count * axes * 8

    if kind == 1:
        return [], at + axes * 8
    if kind == 2:
        return [], line(at)[1]
    if kind not in (3, 4, 5, 6, 7):
        raise ValueError(f"unknown kind {kind}")
    (count,) = struct.unpack_from(f"{order}I", data, at)
    at += 4
    if count > len(data):
        raise ValueError(f"{count} parts are announced")
    found: list[list[Ring]] = []
    if kind == 3:
        rings = []
        for _ in range(count):
            ring, at = line(at)
            if len(ring) < 3:
                raise ValueError(f"a ring of {len(ring)} points")
            rings.append(ring)
        return ([rings] if rings else []), at
    for _ in range(count):
        inner, at = _wkb(data, at, depth + 1)
        found += inner
    return found, at
