"""What pages of the site find in their folder: drawn photos and masks, a trained run."""

import shutil

import numpy as np
from PIL import Image

from resnest_seg.cli.main import main
from support import annotation_samples, rasters, small_onnx

TRAIN = ("train", "--config", "synthetic_fcn_resnest14_tiny", "--data.dataset", "folder", "--data.root", "mine")


def photos(folder):
    """mine/ with drawn photos and masks, photos/ with three without masks, photo.jpg.

    By the hashes of their names eight of mine/ are for training and three for validation.
    """
    for words in (("train", 15, "mine"), ("test", 3, "drawn")):
        split, count, name = words
        assert not main(["prepare", "synthetic", "--split", split, "--count", str(count), "--output", name])
    for index in range(4):
        for kind in ("images", "masks"):
            (folder / "mine" / kind / f"train_{index:04d}.png").unlink()
    (folder / "drawn" / "images").rename(folder / "photos")
    shutil.rmtree(folder / "drawn")
    with Image.open(folder / "photos" / "test_0000.png") as image:
        image.save(folder / "photo.jpg", quality=95)


def run(folder):
    """The photos, and a run of two epochs on them, runs/my_run."""
    photos(folder)
    words = ["--data.crop_size", "96", "--data.base_size", "144", "--epochs", "2", "--eval.limit", "2"]
    assert not main([*TRAIN, *words, "--eval.sheet", "2", "--output", "runs/my_run"])


def model(folder):
    """The photos, and an exported file of one convolution, model.onnx."""
    photos(folder)
    small_onnx.write(folder / "model.onnx", weights=None)


def outlines(folder):
    """labelme_folder/ and coco/ with the labels of drawn photos as outlines."""
    for index in range(16):
        photo = annotation_samples.photo(folder / "labelme_folder" / f"{index}.png", size=(64, 96), seed=index)
        annotation_samples.save(photo.with_suffix(".json"), labelme_page(photo.name, shift=3 * index))
    annotation_samples.coco(folder / "coco")


def labelme_page(name, *, shift):
    """Road, and on it a car."""
    shapes = [
        {
            "label": label,
            "points": annotation_samples.indices(box),
            "shape_type": "polygon",
            "group_id": None,
            "flags": {},
        }
        for label, box in (("road", (0, 32, 96, 64)), ("car", (10 + shift, 24, 40 + shift, 48)))
    ]
    return {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": name, "imageData": None, "imageHeight": 64,
            "imageWidth": 96}  # fmt: skip


def bands(folder):
    """mine/ with GeoTIFF scenes of four bands of 16 bits."""
    rasters.make_scenes(folder / "mine", train=6, val=3)


def binary(folder):
    """cars/ with masks of 0 and 255, the outlines, photo.jpg."""
    photos(folder)
    outlines(folder)
    (folder / "mine").rename(folder / "cars")
    for path in (folder / "cars" / "masks").iterdir():
        with Image.open(path) as image:
            labels = np.asarray(image)
        Image.fromarray(np.where(labels == 8, 255, 0).astype(np.uint8)).save(path)


SETUPS = {"photos": photos, "run": run, "model": model, "outlines": outlines, "bands": bands, "binary": binary}
"""Name -> what prepares the current folder, which is its argument."""
