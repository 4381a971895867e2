"""What pages of the site find in their folder: drawn photos and masks, a trained run."""

import shutil

from PIL import Image

from resnest_seg.cli.main import main

TRAIN = ("train", "--config", "synthetic_fcn_resnest14_tiny", "--data.dataset", "folder", "--data.root", "mine")


def photos(folder):
    """mine/ with 24 drawn photos and masks, photos/ with three without masks, photo.jpg."""
    for words in (("train", 24, "mine"), ("test", 3, "drawn")):
        split, count, name = words
        assert not main(["prepare", "synthetic", "--split", split, "--count", str(count), "--output", name])
    (folder / "drawn" / "images").rename(folder / "photos")
    shutil.rmtree(folder / "drawn")
    with Image.open(folder / "photos" / "test_0000.png") as image:
        image.save(folder / "photo.jpg", quality=95)


def run(folder):
    """The photos, and a run of two epochs on them, runs/my_run."""
    photos(folder)
    assert not main([*TRAIN, "--epochs", "2", "--eval.limit", "4", "--eval.sheet", "2", "--output", "runs/my_run"])


def model(folder):
    """The same, and the run as an exported file, model.onnx."""
    run(folder)
    assert not main(["export", "--checkpoint", "runs/my_run", "--output", "model.onnx"])


SETUPS = {"photos": photos, "run": run, "model": model}
"""Name -> what prepares the current folder, which is its argument."""
