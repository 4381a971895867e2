"""A raster larger than a crop, from windows to polygons: trained, resumed, scored, predicted where it lies."""

import cv2
import numpy as np
import pyogrio
import pytest
import rasterio
import torch
from rasterio.crs import CRS
from safetensors.torch import load_file
from torch import nn

import resnest_seg
from resnest_seg.data.folder import FolderDataset
from resnest_seg.data.tiles import WindowDataset
from resnest_seg.inference.predictor import Predictor

pytestmark = pytest.mark.slow

TRANSFORM = rasterio.Affine(0.5, 0.0, 412000.0, 0.0, -0.5, 5652000.0)
COLORS = np.array([[70, 120, 60], [40, 70, 160], [170, 90, 80]])
CLASSES = "name,red,green,blue\nfield,70,120,60\nlake,40,70,160\nroof,170,90,80\n"


class Near(nn.Module):
    """Features of 5 x 5 pixels, at their resolution."""

    channels = (8, 8, 8, 8)

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 5, padding=2, bias=False), nn.BatchNorm2d(8), nn.ReLU())

    def forward(self, x):
        return (self.layers(x),) * 4


class Last(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.layer = nn.Conv2d(8, classes, 1)

    def forward(self, features):
        return self.layer(features[-1])


def network(classes):
    return resnest_seg.Segmenter(Near(), Last(classes), num_classes=classes)


def exact_network(space):
    """A network that tells colors by the mean of 5 x 5 pixels; its numbers have so few bits that all sums are exact.

    Thus the shape of what it is given, by which a library chooses how it adds, does not change the scores.
    """
    made = resnest_seg.Segmenter(Near(), Last(3), num_classes=3, label_space=space).eval()
    conv, norm, _ = made.encoder.layers
    centers = torch.from_numpy((COLORS - 128) / 64).mul(8).round().div(8).float()  # of the mean of scaled pixels
    with torch.no_grad():
        made.pixel_mean.fill_(128)
        made.pixel_std.fill_(64)
        norm.running_var.fill_(1 - norm.eps)
        conv.weight.zero_()
        last = made.head.layer
        last.weight.zero_()
        for channel in range(3):
            for sign, place in ((1, channel), (-1, channel + 3)):  # either one is cut off at 0
                conv.weight[place, channel] = sign / 32  # 25 of them: a bit less than the mean
                last.weight[:, place, 0, 0] = sign * centers[:, channel]
        last.bias.copy_(-(centers.square().sum(1) / 2 * 25 / 32).mul(64).round().div(64))
    return made


def write(root, split, side, shapes, seed=0):
    """A mosaic of a field with lakes (circles) and roofs (squares) of known sizes, its upper rows without data."""
    random = np.random.default_rng(seed)
    labels = np.zeros((side, side), np.uint8)
    for label, x, y, half in shapes:
        if label == 1:
            cv2.circle(labels, (x, y), half, 1, -1)
        else:
            labels[y - half : y + half, x - half : x + half] = 2
    image = np.empty((side, side, 3), np.uint8)
    for top in range(0, side, 500):
        part = COLORS[labels[top : top + 500]]
        image[top : top + 500] = (part + random.integers(-25, 26, part.shape)).clip(1, 255)
    image[: side // 20], labels[: side // 20] = 0, 255
    for folder, bands, none in (("images", image.transpose(2, 0, 1), 0), ("masks", labels[None], 255)):
        path = root / folder / split / "mosaic.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        with rasterio.open(
            path, "w", driver="GTiff", height=side, width=side, count=len(bands), dtype="uint8", crs="EPSG:25832",
            transform=TRANSFORM, nodata=none, tiled=True, compress="deflate",
            photometric="RGB" if len(bands) == 3 else "MINISBLACK",
        ) as file:  # fmt: skip
            file.write(bands)
    (root / "classes.csv").write_text(CLASSES)
    return labels


def config(root, window, crop, **train):
    return {
        "data": {"dataset": "folder", "root": str(root), "window": window, "crop_size": crop, "base_size": window,
                 "scale_min": 0.9, "scale_max": 1.1, "workers": 0, "check": 2},
        "optim": {"optimizer": "adamw", "lr": 0.02, "reference_batch": None, "head_lr_factor": 1.0},
        "train": {"epochs": None, "batch_size": 4, "trackers": "none"} | train,
        "eval": {"limit": 2, "sheet": 0},
    }  # fmt: skip


SMALL = [(1, 150, 200, 60), (2, 330, 300, 70), (1, 350, 120, 40), (2, 120, 380, 50)]


@pytest.mark.long
def test_a_mosaic_is_learnt_by_windows_and_lies_where_it_lay(tmp_path):
    """3600 x 3600 pixels of half a metre: areas of the polygons are those of the shapes, within 1 %."""
    random = np.random.default_rng(5)
    shapes = [
        (1 + (row + column) % 2, 600 + 1200 * column, 900 + 1200 * row, int(random.integers(250, 500)))
        for row in range(2)
        for column in range(3)
    ]
    write(tmp_path, "train", 1500, [(1, 400, 500, 250), (2, 1000, 900, 300)], seed=1)
    truth = write(tmp_path, "val", 3600, shapes)
    result = resnest_seg.fit(config(tmp_path, 256, 96, iterations=40), segmenter=network, output=tmp_path / "run")
    assert result.finished
    predictor = Predictor(result.segmenter, device="cpu", tile=1024, overlap=16)
    source = tmp_path / "images" / "val" / "mosaic.tif"
    prediction = predictor(source)
    prediction.save(tmp_path / "labels.tif", cog=True)
    prediction.save_polygons(tmp_path / "labels.gpkg", min_area=1000)
    with rasterio.open(tmp_path / "labels.tif") as labels, rasterio.open(source) as image:
        assert (labels.crs, labels.transform, labels.shape) == (image.crs, image.transform, image.shape)
        found = labels.read(1)
    assert np.array_equal(found == 255, truth == 255)
    assert (found == truth).mean() > 0.995
    meta, _, _, (name, area) = pyogrio.raw.read(tmp_path / "labels.gpkg", columns=["name", "area_m2"])
    assert CRS.from_string(meta["crs"]) == CRS.from_epsg(25832)
    for label, word in ((1, "lake"), (2, "roof")):
        drawn = sorted(np.pi * half**2 if label == 1 else 4 * half**2 for own, _, _, half in shapes if own == label)
        assert sorted(area[name == word]) == pytest.approx([each * 0.25 for each in drawn], rel=0.01)


def test_scores_of_windows_are_those_of_whole_rasters(tmp_path):
    """A network that sees 5 pixels: with 8 of context, windows are scored as the raster at once, to the pixel.

    Sides are multiples of 32: else protocol whole pads at the lower and right border of the raster.
    """
    for split in ("train", "val"):
        write(tmp_path, split, 512, SMALL)
    files = FolderDataset(tmp_path, "val")
    segmenter = exact_network(files.label_space)
    once = resnest_seg.evaluate(segmenter, files).scores["whole"]
    for window, overlap in ((112, 8), (128, None), (64, 16)):
        parts = resnest_seg.evaluate(segmenter, WindowDataset(files, window, overlap=overlap)).scores["whole"]
        assert np.array_equal(parts.class_iou, once.class_iou)
        assert parts.pixel_accuracy == once.pixel_accuracy
    assert 0.3 < once.pixel_accuracy < 1, "nothing to compare"


def test_a_resumed_run_sees_the_same_windows(tmp_path):
    write(tmp_path, "train", 512, SMALL, seed=1)
    write(tmp_path, "val", 512, SMALL)
    values = config(tmp_path, 128, 64, iterations=8, save_every=1)
    resnest_seg.fit(values, segmenter=network, output=tmp_path / "whole")
    assert not resnest_seg.fit(values, segmenter=network, output=tmp_path / "run", until=5).finished
    assert resnest_seg.fit(values, segmenter=network, output=tmp_path / "run", resume="yes").finished
    one, other = (load_file(tmp_path / name / "last.safetensors") for name in ("whole", "run"))
    assert set(one) == set(other)
    assert all(torch.equal(one[key], other[key]) for key in one)
    changed = {**values, "data": {**values["data"], "window": 96}}
    with pytest.raises(resnest_seg.CheckpointError, match=r"data.window"):
        resnest_seg.fit(changed, segmenter=network, output=tmp_path / "run", resume="yes")


def test_a_run_folder_among_the_rasters_is_refused(tmp_path):
    write(tmp_path, "train", 512, SMALL, seed=1)
    write(tmp_path, "val", 512, SMALL)
    with pytest.raises(resnest_seg.ConfigError, match="lies within"):
        resnest_seg.fit(config(tmp_path, 128, 64, iterations=1), segmenter=network, output=tmp_path / "images" / "run")
