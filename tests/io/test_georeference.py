"""Places on the map against GDAL's own arithmetic, and areas against the closed form of the ellipsoid."""

import math
import pickle
import shutil
import struct

import numpy as np
import pytest
import rasterio
import rasterio.transform
from rasterio.crs import CRS

from resnest_seg.errors import DatasetError
from resnest_seg.io import georeference
from resnest_seg.io.georeference import Areas, DataMask, Georeference, divided, read_georeference, signed_area

UTM = (10.0, 0.0, 500000.0, 0.0, -10.0, 5300000.0)
TURNED = (7.0, 7.0, 500000.0, 7.0, -7.0, 5300000.0)
SHEARED = (10.0, 3.0, 500000.0, 0.0, -10.0, 5300000.0)
SOUTH_UP = (10.0, 0.0, 500000.0, 0.0, 10.0, 5300000.0)


def place(crs="EPSG:32633", transform=UTM):
    return Georeference(CRS.from_string(crs).to_wkt(), transform)


def write(path, pixels, crs=None, transform=None, **options):
    """A GeoTIFF of an array [H, W] or [H, W, C]."""
    bands = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    how = {} if transform is None else {"transform": rasterio.Affine(*transform)}
    with rasterio.open(
        path, "w", driver="GTiff", height=bands.shape[1], width=bands.shape[2], count=len(bands), dtype=bands.dtype,
        crs=crs, **how, **options,
    ) as file:  # fmt: skip
        file.write(bands)
    return path


def cell(south, north, degrees):
    """Area on WGS 84 between two parallels and `degrees` of longitude: the closed form, by the authalic latitude."""
    a, f = 6378137.0, 1 / 298.257223563
    e = math.sqrt(f * (2 - f))

    def zone(latitude):
        s = math.sin(math.radians(latitude))
        return a * a * (1 - e * e) / 2 * (s / (1 - (e * s) ** 2) + math.atanh(e * s) / e)

    return math.radians(degrees) * (zone(north) - zone(south))


@pytest.mark.parametrize("transform", [UTM, TURNED, SHEARED, SOUTH_UP])
def test_the_place_of_a_file_is_that_of_gdal(transform, tmp_path):
    path = write(tmp_path / "ä [1] 50%.tif", np.zeros((5, 7), np.uint8), "EPSG:32633", transform)
    found = read_georeference(path)
    assert found == pickle.loads(pickle.dumps(found))
    assert found.name == "EPSG:32633"
    with rasterio.open(path) as file:
        assert found.crs == file.crs
        assert found.affine == file.transform
        points = np.array([[0, 0], [7, 5], [3, 4]])
        for (x, y), other in zip(found.coordinates(points), points, strict=True):
            assert (x, y) == pytest.approx(file.transform @ tuple(other))


def test_what_has_no_place(tmp_path):
    pixels = np.zeros((5, 7), np.uint8)
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning):
        assert read_georeference(write(tmp_path / "plain.tif", pixels)) is None
    assert read_georeference(write(tmp_path / "local.tif", pixels, None, UTM)) is None
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning):
        assert read_georeference(write(tmp_path / "nowhere.tif", pixels, "EPSG:32633")) is None
    (tmp_path / "text.tif").write_bytes(b"II*\0 and no more")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    for name in ("text.tif", "a.png", "missing.tif", "."):
        assert read_georeference(tmp_path / name) is None


def test_a_turned_file_has_no_place(tmp_path):
    """Readers of photos turn its pixels, GDAL does not."""
    path = write(tmp_path / "a.tif", np.zeros((5, 7), np.uint8), "EPSG:32633", UTM)
    data = bytearray(path.read_bytes())
    (count,) = struct.unpack_from("<H", data, 8)
    assert data[:4] == b"II*\0"
    tags = [struct.unpack_from("<H", data, 10 + 12 * entry)[0] for entry in range(count)]
    entry = tags.index(284)  # the planar configuration of a single band means nothing: its entry becomes another
    struct.pack_into("<HHIHH", data, 10 + 12 * entry, 274, 3, 1, 6, 0)
    path.write_bytes(data)
    with rasterio.open(path) as file:
        assert file.crs is not None
    assert read_georeference(path) is None


def test_a_world_file_beside_an_image_is_not_read(tmp_path):
    path = write(tmp_path / "a.tif", np.zeros((5, 7), np.uint8), "EPSG:32633", UTM)
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning):
        plain = write(tmp_path / "b.tif", np.zeros((5, 7), np.uint8))
    (tmp_path / "b.tfw").write_text("1\n0\n0\n-1\n5\n5\n")
    assert read_georeference(plain) is None
    assert read_georeference(path) is not None


def test_without_rasterio_a_map_is_warned_of(tmp_path, monkeypatch):
    path = write(tmp_path / "a.tif", np.zeros((5, 7), np.uint8), "EPSG:32633", UTM)
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning):
        plain = write(tmp_path / "plain.tif", np.zeros((5, 7), np.uint8))
    monkeypatch.setitem(__import__("sys").modules, "rasterio", None)
    with pytest.warns(UserWarning, match=r"a.tif lies on the map, and its results will not: .*resnest-seg\[large\]"):
        assert read_georeference(path) is None
    assert read_georeference(plain) is None


def test_another_place_is_described():
    assert place().differs(place()) is None
    assert place().differs(place(transform=(10.0, 0, 500000.0 + 1e-6, 0, -10.0, 5300000.0))) is None
    assert place().differs(place("EPSG:32634")) == "another CRS, EPSG:32634 and not EPSG:32633"
    finer = place().differs(place(transform=(5.0, 0, 500000, 0, -5.0, 5300000)))
    assert finer == "another resolution, 5 x 5 metre and not 10 x 10 metre"
    moved = place().differs(place(transform=(10.0, 0, 500030, 0, -10.0, 5300000)))
    assert moved.startswith("another place, 3 pixels away")


@pytest.mark.parametrize("transform", [UTM, TURNED, SHEARED, SOUTH_UP])
def test_areas_in_a_plane_are_those_of_its_pixels(transform):
    areas = Areas(place(transform=transform), 100, 200)
    a, b, _, d, e, _ = transform
    assert areas.method == "plane"
    assert areas.of(12, []) == pytest.approx(12 * abs(a * e - b * d))
    feet = Areas(place("EPSG:2263", (10.0, 0, 1e6, 0, -10.0, 2e5)), 100, 100)
    assert feet.of(1, []) == pytest.approx((10 * 1200 / 3937) ** 2)


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:4269"])
@pytest.mark.parametrize(
    ("west", "north", "side"), [(10, 48, 1e-4), (-180, 89, 0.5), (0, 0.5, 0.01), (179.9, -60, 0.01)]
)
def test_areas_of_degrees_are_those_of_the_ellipsoid(crs, west, north, side):
    areas = Areas(place(crs, (side, 0, west, 0, -side, north)), 60, 80)
    assert areas.method == "ellipsoid"
    square = np.array([[10, 20], [30, 20], [30, 50], [10, 50]])
    hole = np.array([[12, 22], [12, 23], [14, 23], [14, 22]])
    true = cell(north - 50 * side, north - 20 * side, 20 * side) - cell(north - 23 * side, north - 22 * side, 2 * side)
    assert areas.of(0, [square, hole]) == pytest.approx(true, rel=2e-5)


def test_areas_of_web_mercator_are_not_those_of_its_plane():
    """At 60 degrees north, its metres are half a metre, and its square metres a quarter of one."""
    y = 6378137 * math.log(math.tan(math.pi / 4 + math.radians(60) / 2))
    areas = Areas(place("EPSG:3857", (10.0, 0, 1e6, 0, -10.0, y)), 10, 10)
    square = np.array([[0, 0], [10, 0], [10, 10], [0, 10]])
    assert areas.method == "ellipsoid"
    assert areas.of(100, [square]) == pytest.approx(2500, rel=0.01)
    assert Areas(place("EPSG:3857", (10.0, 0, 1e6, 0, -10.0, 50.0)), 10, 10).method == "plane"


def test_coordinates_that_are_not_of_the_crs():
    with pytest.raises(DatasetError, match=r"EPSG:32633 .*longitude and latitude"):
        Areas(place(transform=(10.0, 0, 1e30, 0, -10.0, 1e30)), 10, 10)


def test_long_sides_are_divided_and_areas_stay():
    ring = np.array([[0, 0], [200, 0], [200, 63], [0, 63]])
    points = divided(ring)
    assert len(points) == 4 + 1 + 4 + 1
    assert np.abs(np.diff(points, axis=0)).max() <= 64
    assert signed_area(points) == signed_area(ring) == 200 * 63
    assert signed_area(ring[::-1] + 1e7) == -200 * 63


def test_pixels_without_data(tmp_path):
    pixels = np.full((40, 30, 2), 9, np.uint16)
    pixels[:10] = 0
    pixels[10:20, :, 0] = 0  # one band has data
    path = write(tmp_path / "a.tif", pixels, "EPSG:32633", UTM, nodata=0)
    with DataMask(path) as mask:
        assert not mask.everywhere
        assert np.array_equal(mask.without_data(5, 20), (pixels[5:25] == 0).all(axis=2))
        assert mask.without_data(12, 20) is None
    with DataMask(write(tmp_path / "b.tif", pixels, "EPSG:32633", UTM)) as mask:
        assert mask.everywhere
        assert mask.without_data(3, 2) is None


def test_a_mask_of_a_damaged_file(tmp_path):
    noise = np.random.default_rng(0).integers(0, 99, (400, 400)).astype(np.uint8)
    tiles = {"tiled": True, "blockxsize": 128, "blockysize": 128, "compress": "deflate"}
    path = write(tmp_path / "a.tif", noise, "EPSG:32633", UTM, nodata=0, **tiles)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 5000] = np.random.default_rng(1).bytes(5000)
    path.write_bytes(data)
    with DataMask(path) as mask, pytest.raises(DatasetError, match=r"cannot read rows 0 to 399 of .*a.tif: damaged"):
        mask.without_data(0, 400)


def test_an_unreadable_file_is_named(tmp_path):
    source = write(tmp_path / "a.tif", np.zeros((5, 7), np.uint8), "EPSG:32633", UTM)
    shutil.copy(source, tmp_path / "b.tif")
    (tmp_path / "b.tif").write_bytes(source.read_bytes()[:20])
    with (
        pytest.raises(DatasetError, match=r"cannot read .*b.tif: no TIFF image, or a damaged one"),
        georeference.opened(tmp_path / "b.tif"),
    ):
        pass
