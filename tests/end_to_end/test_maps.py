"""Maps through the tools: predicted where they lie, beside photos that lie nowhere."""

import json
import os
import sys

import numpy as np
import pyogrio
import pytest
import rasterio
import torch
from PIL import Image
from rasterio.crs import CRS
from support import local_server

from resnest_seg.config import ModelConfig, RunConfig
from resnest_seg.labels import LabelSpace
from resnest_seg.models.checkpoint import Checkpoint
from resnest_seg.models.loading import build_segmenter

pytestmark = pytest.mark.slow

TRANSFORM = rasterio.Affine(10.0, 0.0, 500000.0, 0.0, -10.0, 5300000.0)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("run") / "best.safetensors"
    config = RunConfig(model=ModelConfig(encoder="resnest14_tiny", head="fcn"))
    weights = build_segmenter("resnest14_tiny", head="fcn", num_classes=3).state_dict()
    Checkpoint(config, LabelSpace.numbered(3), weights).save(path)
    return path


@pytest.fixture
def predict(checkpoint, tool, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda *words: tool("predict_seg")("--checkpoint", checkpoint, "--device", "cpu", *words)


def write_map(path, crs="EPSG:32633", transform=TRANSFORM, size=(40, 60)):
    path.parent.mkdir(exist_ok=True)
    pixels = np.random.default_rng(0).integers(1, 256, (3, *size), dtype=np.uint8)
    with rasterio.open(
        path, "w", driver="GTiff", height=size[0], width=size[1], count=3, dtype="uint8", crs=crs, transform=transform,
        photometric="RGB",
    ) as file:  # fmt: skip
        file.write(pixels)
    return path


def test_maps_and_photos_in_one_folder(predict, tmp_path, capsys):
    write_map(tmp_path / "in" / "ä [1] 50%.tif")
    write_map(tmp_path / "in" / "degrees.tif", "EPSG:4326", rasterio.Affine(1e-4, 0, 10, 0, -1e-4, 48))
    write_map(tmp_path / "in" / "plain.tif", None)  # a transform without a CRS is no place
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(tmp_path / "in" / "photo.png")
    assert predict("in", "--cog", "--write", "labels", "polygons", "geopackage") == 0
    assert sorted(path.name for path in (tmp_path / "predictions").iterdir()) == sorted(
        [*(f"{name}{end}" for name in ("ä [1] 50%", "degrees") for end in ("_labels.tif", ".geojson", ".gpkg")),
         *(f"{name}{end}" for name in ("plain", "photo") for end in ("_labels.png", ".geojson"))]
    )  # fmt: skip
    note = capsys.readouterr().err
    assert "note: 2 of 4 inputs have no CRS or no place in it: their labels are PNG" in note
    with rasterio.open(tmp_path / "predictions" / "ä [1] 50%_labels.tif") as file:
        assert (file.crs, file.transform, file.nodata) == (CRS.from_epsg(32633), TRANSFORM, 255)
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
    pixels = json.loads((tmp_path / "predictions" / "plain.geojson").read_text())
    assert pixels["bbox"] == [0, 0, 60, 40]
    _, _, _, (area,) = pyogrio.raw.read(tmp_path / "predictions" / "ä [1] 50%.gpkg", columns=["area_m2"])
    assert area.sum() == pytest.approx(40 * 60 * 100)
    assert predict("in", "--output", "predictions", "--write", "labels") == 2
    assert "exists" in capsys.readouterr().err


def test_the_place_of_a_map_at_an_address_is_kept_in_a_job_and_its_loss_told(predict, tmp_path, capsys):
    data = write_map(tmp_path / "in" / "map.tif").read_bytes()
    with local_server.serve({"/map.tif?sig=4711": data}) as site:
        address = f"{site.url}/map.tif?sig=4711"
        assert predict(address, "--write", "labels", "--output", "plain") == 0
        note = capsys.readouterr().err
        assert "note: 1 of 1 inputs are TIFFs at addresses, whose place on the map is not kept" in note
        assert "add --shard 0/1" in note
        assert (tmp_path / "plain" / "map_labels.png").is_file()
        assert predict(address, "--cog", "--output", "other") == 2
        error = capsys.readouterr().err
        assert "--cog is for images on the map" in error
        assert "add --shard 0/1" in error
        assert predict(address, "--write", "labels", "--cog", "--output", "job", "--shard", "0/1") == 0
    (labels,) = (tmp_path / "job").rglob("*_labels.tif")
    with rasterio.open(labels) as file:
        assert (file.crs, file.transform) == (CRS.from_epsg(32633), TRANSFORM)
    assert "4711" not in note + error


def test_photos_alone_are_as_before(predict, tmp_path, capsys):
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(tmp_path / "photo.png")
    assert predict("photo.png", "--write", "labels") == 0
    assert "note" not in capsys.readouterr().err
    for options in (("--cog",), ("--write", "geopackage")):
        assert predict("photo.png", *options, "--output", "other") == 2
        wrong = capsys.readouterr().err
        assert (
            f"{' '.join(options)} is for images on the map, and none of the inputs is one, such as photo.png" in wrong
        )
    for options in (("--cog",), ("--write", "labels", "geopackage")):
        assert predict("photo.png", *options, "--output", "other", "--shard", "0/1") == 2
        said = f"{' '.join(options).replace(' labels', '')} is for images on the map, and none of the inputs is one"
        assert said in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
    write_map(tmp_path / "in" / "a.tif")
    assert predict("photo.png", "in", "--cog", "--write", "labels", "--output", "other", "--shard", "0/1") == 0
    assert sorted(path.name for path in tmp_path.glob("other/*_labels.*")) == ["a_labels.tif", "photo_labels.png"]


def test_without_rasterio_one_message_names_the_extra(predict, tmp_path, capsys, monkeypatch, recwarn):
    for name in "ab":
        write_map(tmp_path / "in" / f"{name}.tif")
    monkeypatch.setitem(sys.modules, "rasterio", None)
    for options in (("--cog",), ("--write", "geopackage")):
        assert predict("in", *options) == 2
        assert capsys.readouterr().err == "error: --cog and --write geopackage need rasterio: pip install " \
                                          "'resnest-seg[large]'.\n"  # fmt: skip
    assert predict("in", "--write", "labels") == 0
    said = capsys.readouterr().err
    assert said.count("lies on the map, and its results will not") == 1
    assert "(and 1 more)" in said
    assert not recwarn.list


def test_a_map_is_not_overwritten_by_its_own_labels(predict, tmp_path, capsys):
    """`a_labels.tif` beside `a.tif`, both inputs, into their own folder."""
    write_map(tmp_path / "in" / "a.tif")
    write_map(tmp_path / "in" / "a_labels.tif")
    before = (tmp_path / "in" / "a_labels.tif").read_bytes()
    assert predict("in/a.tif", "in/a_labels.tif", "--output", "in", "--overwrite") == 2
    assert "is an input file" in capsys.readouterr().err
    assert (tmp_path / "in" / "a_labels.tif").read_bytes() == before


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(predict, tmp_path, capsys):
    write_map(tmp_path / "a.tif")
    (tmp_path / "out").mkdir(mode=0o500)
    assert predict("a.tif", "--output", "out") == 2
    assert "no permission" in capsys.readouterr().err


def test_a_damaged_map_is_named_and_the_others_are_segmented(predict, tmp_path, capsys):
    write_map(tmp_path / "in" / "a.tif")
    broken = write_map(tmp_path / "in" / "b.tif", size=(400, 400))
    broken.write_bytes(broken.read_bytes()[:200_000])
    assert predict("in", "--write", "labels") == 1
    assert "b.tif" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "predictions").iterdir()] == ["a_labels.tif"]
