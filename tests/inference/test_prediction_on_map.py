"""A georeferenced image keeps its place in what is predicted from it."""

from collections import deque

import numpy as np
import pyogrio
import pytest
import rasterio
import torch
from PIL import Image
from rasterio.crs import CRS

from resnest_seg.config import DataConfig, ModelConfig, RunConfig
from resnest_seg.errors import ConfigError
from resnest_seg.inference.predictor import Predictor
from resnest_seg.labels import LabelSpace
from resnest_seg.models.checkpoint import Checkpoint
from resnest_seg.models.loading import build_segmenter, segmenter_for

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
    names = np.array(list(map(str, paths)))
    for given in (paths, tuple(map(str, paths)), iter(paths), names, deque(paths)):
        one, two, three = predictor(given)
        assert (one.place is None, two.place is None, three.place is None) == (False, True, False)
        assert [(each.labels == 255).sum() for each in (one, two, three)] == [90 * 20, 0, 90 * 5]
    batch = np.zeros((2, 90, 130, 3), np.uint8)
    assert [each.place is None for each in predictor([batch, paths[0], [paths[2]]])] == [True, True, False, False]


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


BANDS = (4, 1, 3, 5, 2)


@pytest.fixture(scope="module")
def of_bands(tmp_path_factory, tiny_space):
    """A model of five bands of 16 bits."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("run") / "best.safetensors"
    mean, std = (4000.0, 1000.0, 3000.0, 5000.0, 2000.0), (900.0,) * 5
    data = DataConfig(bands=BANDS, pixel_mean=mean, pixel_std=std)
    config = RunConfig(model=ModelConfig(encoder="resnest14_tiny", in_channels=5, encoder_weights=None), data=data)
    segmenter = segmenter_for(config, tiny_space, pretrained=False).eval()
    with torch.no_grad():  # so that no class wins everywhere
        bias = next(value for name, value in segmenter.head.named_parameters() if value.shape == (3,))
        bias -= segmenter(torch.rand(1, 5, 128, 128) * 30000).logits.mean(dim=(0, 2, 3))
    Checkpoint(config, tiny_space, segmenter.state_dict()).save(path)
    return Predictor.from_checkpoint(path.parent, device="cpu", tile=64)


def test_a_mosaic_of_bands_by_windows_is_the_one_at_once(of_bands, tmp_path):
    size, path = (150, 220), tmp_path / "bands.tif"
    random = np.random.default_rng(0)
    levels = random.integers(1, 30000, (5, 5, 7)).repeat(32, axis=1).repeat(32, axis=2)[:, : size[0], : size[1]]
    pixels = (levels + random.integers(0, 500, (5, *size))).astype(np.uint16)
    pixels[:, :, :30] = 0
    pixels[2, :40] = 0  # one band alone
    with rasterio.open(
        path, "w", driver="GTiff", height=size[0], width=size[1], count=5, dtype="uint16", crs="EPSG:32633", nodata=0,
        transform=TRANSFORM, tiled=True, blockxsize=64, blockysize=64,
    ) as file:  # fmt: skip
        file.write(pixels)
    of_bands.segment_file(path, tmp_path / "large.tif", ids="train", overlay_path=tmp_path / "over.png")
    prediction = of_bands(path)
    with rasterio.open(tmp_path / "large.tif") as file:
        assert np.array_equal(file.read(1), prediction.labels)
        assert np.array_equal(file.read(1) == 255, (pixels == 0).all(axis=0))
        assert (file.crs, file.transform) == (CRS.from_epsg(32633), TRANSFORM)
    assert prediction.place.name == "EPSG:32633"
    assert np.array(Image.open(tmp_path / "over.png")).shape[1] >= 220
    assert len(np.unique(prediction.labels)) > 2


def test_a_multi_label_map_by_windows_is_the_one_at_once(tmp_path):
    torch.manual_seed(3)
    space = LabelSpace.numbered(3).for_task("multilabel")
    segmenter = build_segmenter("resnest14_tiny", "fcn", 3, aux_head=False, task="multilabel").eval()
    segmenter.label_space = space
    path = write_map(tmp_path / "map.tif", size=(150, 200))
    predictor = Predictor(segmenter, device="cpu", tile=64)
    prediction = predictor(path)
    middle = np.median(prediction.scores().reshape(3, -1), axis=1)
    segmenter.thresholds.copy_((torch.from_numpy(middle) * 1000).round() / 1000)
    predictor = Predictor(segmenter, device="cpu", tile=64)
    predictor(path).save(tmp_path / "small.tif")
    predictor.segment_file(path, tmp_path / "large.tif", overlay_path=tmp_path / "over.png")
    with rasterio.open(tmp_path / "large.tif") as large, rasterio.open(tmp_path / "small.tif") as small:
        assert np.array_equal(large.read(1), small.read(1))
        assert (large.read(1)[:, :20] == 32768).all()
        assert len(np.unique(large.read(1))) > 4
    predictor(path).save_polygons(tmp_path / "a.gpkg")
    _, _, _, (name,) = pyogrio.raw.read(tmp_path / "a.gpkg", columns=["name"])
    assert set(name) == set(space.names)
