"""Polygons on the map, read again by other libraries: GDAL's of pyogrio, and rasterio's rasteriser."""

import contextlib
import itertools
import json
import sqlite3

import numpy as np
import pyogrio
import pytest
import rasterio
import rasterio.features
import rasterio.warp
from rasterio.crs import CRS

from resnest_seg.errors import ConfigError, DatasetError
from resnest_seg.io.georeference import Georeference, signed_area
from resnest_seg.io.map_polygons import polygons_on_map, write_map_polygons
from resnest_seg.labels import LabelSpace

SPACE = LabelSpace("three", ("sea", "straße", "a'b"), ((0, 0, 200), (90, 90, 90), (1, 2, 3)), (3, 7, 9), (0,))
PLACES = {
    "utm": ("EPSG:32633", (10.0, 0.0, 500000.0, 0.0, -10.0, 5300000.0)),
    "turned": ("EPSG:32633", (7.0, 7.0, 500000.0, 7.0, -7.0, 5300000.0)),
    "sheared": ("EPSG:32633", (10.0, 3.0, 500000.0, 0.0, -10.0, 5300000.0)),
    "south up": ("EPSG:32633", (10.0, 0.0, 500000.0, 0.0, 10.0, 5300000.0)),
    "degrees": ("EPSG:4326", (1e-4, 0.0, 10.0, 0.0, -1e-4, 48.0)),
    "web": ("EPSG:3857", (10.0, 0.0, 1e6, 0.0, -10.0, 6.5e6)),
    "coarse": ("EPSG:32633", (3000.0, 0.0, 300000.0, 0.0, -3000.0, 5300000.0)),  # straight lines are curves elsewhere
    "drone": ("EPSG:32633", (0.01, 0.0, 500000.0, 0.0, -0.01, 5300000.0)),
}


def labels():
    """Classes with holes, a corner where a region touches itself, and ignored pixels."""
    found = np.zeros((90, 130), np.uint8)
    found[10:60, 20:120] = 1
    found[20:30, 30:40] = 2
    found[22:25, 33:36] = 1
    found[30:35, 40:45] = 0
    found[:, :5] = 255
    return found


def place(name):
    crs, transform = PLACES[name]
    return Georeference(CRS.from_string(crs).to_wkt(), transform)


def drawn(geometries, values, where, shape, crs=None):
    """Labels again, from the pixels' centres, in the raster's own CRS."""
    if crs is not None:
        geometries = rasterio.warp.transform_geom(crs, where.crs, geometries)
    shapes = zip(geometries, values, strict=True)
    return rasterio.features.rasterize(shapes, shape, fill=255, transform=where.affine, dtype="uint8")


@pytest.mark.parametrize("name", PLACES)
def test_geojson_is_the_labels_again(name, tmp_path):
    where, path = place(name), tmp_path / "a [1] 50%.geojson"
    write_map_polygons(path, labels(), SPACE, where)
    collection = json.loads(path.read_text(encoding="utf-8"))
    assert set(collection) == {"type", "features"}, "RFC 7946 has no member crs"
    features = collection["features"]
    assert np.array_equal(
        drawn([each["geometry"] for each in features], [each["properties"]["train_id"] for each in features], where,
              labels().shape, "OGC:CRS84"),
        labels(),
    )  # fmt: skip
    for feature in features:
        exterior, *holes = feature["geometry"]["coordinates"]
        assert signed_area(np.array(exterior[:-1])) > 0, "exteriors run anticlockwise"
        assert all(signed_area(np.array(hole[:-1])) < 0 for hole in holes)
        assert exterior[0] == exterior[-1]
        if name != "drone":
            text = str(exterior[0][0])
            assert len(text.partition(".")[2]) <= 7
    meta, _, shapes, _ = pyogrio.raw.read(path)
    assert meta["crs"] in ("EPSG:4326", "OGC:CRS84")
    assert len(shapes) == len(features)


@pytest.mark.parametrize("name", PLACES)
def test_a_geopackage_opens_elsewhere_and_is_the_labels_again(name, tmp_path):
    where, path = place(name), tmp_path / "ä [1] 50%?.gpkg"
    write_map_polygons(path, labels(), SPACE, where)
    assert [file.name for file in tmp_path.iterdir()] == [path.name], "no journal beside it"
    meta, _, shapes, columns = pyogrio.raw.read(path)
    fields = dict(zip(meta["fields"], columns, strict=True))
    assert CRS.from_string(meta["crs"]) == where.crs
    assert meta["geometry_type"] == "Polygon"
    assert set(fields["name"]) == set(SPACE.names)
    assert set(zip(fields["train_id"], fields["raw_id"], strict=True)) == {(0, 3), (1, 7), (2, 9)}
    pyogrio.raw.read(path, sql="SELECT ST_Area(geom) FROM labels")  # a second SQL engine reads its geometry
    geometries = [_polygon(shape) for shape in shapes]
    assert np.array_equal(drawn(geometries, fields["train_id"], where, labels().shape), labels())
    with contextlib.closing(sqlite3.connect(path)) as file:
        assert file.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        extent = file.execute("SELECT min_x, min_y, max_x, max_y FROM gpkg_contents").fetchone()
    assert extent == pytest.approx(pyogrio.read_bounds(path)[1].T[:, :2].min(axis=0).tolist()
                                   + pyogrio.read_bounds(path)[1].T[:, 2:].max(axis=0).tolist())  # fmt: skip
    assert pyogrio.read_info(path)["features"] == len(shapes)
    said = "SELECT ST_MinX(geom) a, ST_MinY(geom) b, ST_MaxX(geom) c, ST_MaxY(geom) d FROM labels"  # by the headers
    assert np.allclose(pyogrio.raw.read(path, sql=said)[3], pyogrio.read_bounds(path)[1], rtol=1e-12)


def _polygon(data):
    """A well-known binary polygon as GeoJSON's."""
    count, at, rings = int.from_bytes(data[5:9], "little"), 9, []
    for _ in range(count):
        points = int.from_bytes(data[at : at + 4], "little")
        rings.append(np.frombuffer(data, "<f8", 2 * points, at + 4).reshape(-1, 2).tolist())
        at += 4 + 16 * points
    assert at == len(data)
    return {"type": "Polygon", "coordinates": rings}


@pytest.mark.parametrize("name", ["utm", "turned", "sheared", "south up"])
def test_areas_are_square_metres(name, tmp_path):
    where = place(name)
    write_map_polygons(tmp_path / "a.gpkg", labels(), SPACE, where)
    _, _, shapes, columns = pyogrio.raw.read(tmp_path / "a.gpkg", columns=["train_id", "pixels", "area_m2", "area_by"])
    train_id, pixels, area, by = columns
    assert set(by) == {"plane"}
    for label in range(3):
        assert pixels[train_id == label].sum() == (labels() == label).sum()
    for shape, stated in zip(shapes, area, strict=True):
        rings = [np.array(ring[:-1]) for ring in _polygon(shape)["coordinates"]]
        assert abs(sum(map(signed_area, rings))) == pytest.approx(stated)
    simple = polygons_on_map(labels(), SPACE, where, simplify=3)["features"]
    assert sorted(each["properties"]["area_m2"] for each in simple) == pytest.approx(sorted(area))


def test_long_straight_lines_stay_where_they_are():
    """Pixels of 3 km: their centres, in longitude and latitude, lie in the polygons of their classes there."""
    where = place("coarse")
    rows, columns = np.mgrid[: labels().shape[0], : labels().shape[1]]
    centres = np.stack([columns, rows], axis=-1).reshape(-1, 2) + 0.5
    x, y = where.projected(centres, "OGC:CRS84").T
    for feature in polygons_on_map(labels(), SPACE, where)["features"]:
        crossings = np.zeros(len(x), int)  # of a ray to the east with the sides
        for ring in feature["geometry"]["coordinates"]:
            for (x0, y0), (x1, y1) in itertools.pairwise(ring):
                if y0 != y1:
                    crossings += ((y0 > y) != (y1 > y)) & (x < x0 + (y - y0) / (y1 - y0) * (x1 - x0))
        assert (crossings % 2).sum() == feature["properties"]["pixels"]
        assert (labels().ravel()[crossings % 2 == 1] == feature["properties"]["train_id"]).all()


def test_the_antimeridian_cuts():
    """A raster of UTM zone 60 whose right half lies beyond 180 degrees."""
    where = Georeference(CRS.from_epsg(32660).to_wkt(), (100.0, 0.0, 810000.0, 0.0, -100.0, 2e6))
    found = np.zeros((50, 200), np.uint8)
    (feature,) = polygons_on_map(found, SPACE, where)["features"]
    assert feature["geometry"]["type"] == "MultiPolygon"
    longitudes = [np.array(part[0])[:, 0] for part in feature["geometry"]["coordinates"]]
    assert sorted(np.sign(each.mean()) for each in longitudes) == [-1, 1]
    assert all(np.ptp(each) < 1 for each in longitudes), "no part spans the world"
    assert all(signed_area(np.array(part[0][:-1])) > 0 for part in feature["geometry"]["coordinates"])


def test_a_crs_without_a_code(tmp_path):
    own = CRS.from_proj4("+proj=laea +lat_0=47.123 +lon_0=11.5 +datum=WGS84 +units=m")
    where = Georeference(own.to_wkt(), (10.0, 0.0, 0.0, 0.0, -10.0, 0.0))
    write_map_polygons(tmp_path / "a.gpkg", labels(), SPACE, where)
    meta, _, _, _ = pyogrio.raw.read(tmp_path / "a.gpkg")
    assert CRS.from_wkt(meta["crs"]) == own


def test_nothing_to_draw(tmp_path):
    nothing = np.full((4, 5), 255, np.uint8)
    write_map_polygons(tmp_path / "a.gpkg", nothing, SPACE, place("utm"))
    assert pyogrio.read_info(tmp_path / "a.gpkg")["features"] == 0
    assert polygons_on_map(nothing, SPACE, place("utm"))["features"] == []
    small = polygons_on_map(labels(), SPACE, place("utm"), min_area=50)["features"]
    assert min(each["properties"]["pixels"] for each in small) >= 50


def test_bad_requests(tmp_path):
    with pytest.raises(ConfigError, match=r"saved as .geojson, .json or .gpkg, not as .*a.shp"):
        write_map_polygons(tmp_path / "a.shp", labels(), SPACE, place("utm"))
    with pytest.raises(ConfigError, match="simplify, in pixels, must be from 0 to"):
        polygons_on_map(labels(), SPACE, place("utm"), simplify=-1)
    with pytest.raises(DatasetError, match=r"label out of range: \[7\]"):
        polygons_on_map(np.full((2, 2), 7, np.uint8), SPACE, place("utm"))
    local = CRS.from_wkt('LOCAL_CS["site",UNIT["metre",1]]')
    with pytest.raises(DatasetError, match="site cannot be converted to longitude and latitude"):
        polygons_on_map(labels(), SPACE, Georeference(local.to_wkt(), (1.0, 0.0, 0.0, 0.0, -1.0, 0.0)))


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.gpkg"
    path.write_bytes(b"old")

    def full(path):
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(sqlite3, "connect", full)
    with pytest.raises(OSError, match="full") as caught:
        write_map_polygons(path, labels(), SPACE, place("utm"))
    assert caught.value.errno == 28
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
