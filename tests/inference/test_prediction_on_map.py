"""A georeferenced image keeps its place in what is predicted from it."""

import numpy as np
import pyogrio
import pytest
import rasterio
import torch
from PIL import Image
from rasterio.crs import CRS

from resnest_seg.config import ModelConfig, RunConfig
from resnest_seg.errors import ConfigError
from resnest_seg.inference.predictor import Predictor
from resnest_seg.models.checkpoint import Checkpoint
from resnest_seg.models.loading import build_segmenter

pytestmark = pytest.mark.slow

TRANSFORM = rasterio.Affine(10.0, 0.0, 500000.0, 0.0, -10.0, 5300000.0)


@pytest.fixture(scope="module")
def predictor(tmp_path_factory, tiny_space):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("run") / "best.safetensors"
    config = RunConfig(model=ModelConfig(encoder="resnest14_tiny"))
    Checkpoint(config, tiny_space, build_segmenter("resnest14_tiny", num_classes=3).state_dict()).save(path)
    return Predictor.from_checkpoint(path.parent, device="cpu", tile=64)


def write_map(path, size=(90, 130), crs="EPSG:32633", empty=20):
    pixels = np.random.default_rng(0).integers(1, 256, (3, *size), dtype=np.uint8)
    pixels[:, :, :empty] = 0
    with rasterio.open(
        path, "w", driver="GTiff", height=size[0], width=size[1], count=3, dtype="uint8", crs=crs, transform=TRANSFORM,
        nodata=0, photometric="RGB", tiled=True, blockxsize=64, blockysize=64,
    ) as file:  # fmt: skip
        file.write(pixels)
    return path


def test_a_prediction_knows_its_place(predictor, tmp_path):
    path = write_map(tmp_path / "map.tif")
    prediction = predictor(path)
    alone = predictor(np.array(Image.open(path)))
    assert alone.place is None
    assert prediction.place.name == "EPSG:32633"
    assert (prediction.labels[:, :20] == 255).all(), "no data"
    assert np.array_equal(prediction.labels[:, 20:], alone.labels[:, 20:])
    prediction.save(tmp_path / "labels.tif", ids="train", cog=True)
    with rasterio.open(tmp_path / "labels.tif") as file:
        assert (file.crs, file.transform) == (CRS.from_epsg(32633), TRANSFORM)
        assert np.array_equal(file.read(1), prediction.labels)
    prediction.save(tmp_path / "labels.png", ids="train")
    assert np.array_equal(np.array(Image.open(tmp_path / "labels.png")), prediction.labels)
    prediction.save_polygons(tmp_path / "a.gpkg")
    _, _, _, (area,) = pyogrio.raw.read(tmp_path / "a.gpkg", columns=["area_m2"])
    assert area.sum() == pytest.approx(90 * 110 * 100)
    features = prediction.polygons()["features"]
    longitude, latitude = features[0]["geometry"]["coordinates"][0][0]
    assert (longitude, latitude) == pytest.approx((15, 47.85), abs=0.1)


def test_files_in_a_list_and_from_an_iterator(predictor, tmp_path):
    paths = [write_map(tmp_path / "a.tif"), tmp_path / "b.png", write_map(tmp_path / "c.tif", empty=5)]
    Image.fromarray(np.zeros((90, 130, 3), np.uint8)).save(paths[1])
    for given in (paths, tuple(map(str, paths)), iter(paths)):
        one, two, three = predictor(given)
        assert (one.place is None, two.place is None, three.place is None) == (False, True, False)
        assert [(each.labels == 255).sum() for each in (one, two, three)] == [90 * 20, 0, 90 * 5]


def test_a_photo_has_no_geopackage(predictor, tmp_path):
    prediction = predictor(np.zeros((40, 40, 3), np.uint8))
    with pytest.raises(ConfigError, match="a GeoPackage needs a place on the map"):
        prediction.save_polygons(tmp_path / "a.gpkg")
    prediction.save_polygons(tmp_path / "a.geojson")
    assert not (tmp_path / "a.gpkg").exists()


@pytest.mark.parametrize("cog", [False, True])
def test_a_mosaic_by_windows_is_the_map_at_once(cog, predictor, tmp_path):
    path = write_map(tmp_path / "map.tif", size=(200, 300))
    predictor.segment_file(path, tmp_path / "large.tif", overlay_path=tmp_path / "over.png", cog=cog)
    predictor(path).save(tmp_path / "small.tif", cog=cog)
    with rasterio.open(tmp_path / "large.tif") as large, rasterio.open(tmp_path / "small.tif") as small:
        assert (large.profile, large.tags(1)) == (small.profile, small.tags(1))
        assert np.array_equal(large.read(1), small.read(1))
        assert (large.read(1)[:, :20] == 255).all()
        assert large.crs == CRS.from_epsg(32633)
    predictor.segment_file(path, tmp_path / "large.png", ids="train")
    assert np.array_equal(np.array(Image.open(tmp_path / "large.png")), predictor(path).labels)
