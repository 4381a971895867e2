"""A task that RGB cannot solve: two of three classes differ in the near infrared alone."""

import json

import pytest
from support.rasters import make_scenes

pytestmark = pytest.mark.slow

WORDS = [
    "--dataset", "folder", "--data.color_jitter", "0", "--data.crop_size", "64", "--data.base_size", "64",
    "--data.scale_min", "1", "--data.scale_max", "1", "--data.workers", "0", "--model.encoder", "resnest14_tiny",
    "--model.head", "fcn", "--model.encoder_weights", "null", "--train.epochs", "12", "--train.batch_size", "4",
    "--optim.reference_batch", "null", "--optim.lr", "0.03", "--eval.sheet", "0", "--train.validate_every", "12",
    "--train.save_every", "1000", "--train.trackers", "none",
]  # fmt: skip


@pytest.mark.long
def test_near_infrared_tells_what_rgb_cannot(tool, tmp_path):
    root = make_scenes(tmp_path / "data", train=24, val=6, size=64, block=32)
    scores = {}
    for name, bands in (("rgb", "red,green,blue"), ("nir", "red,green,blue,nir")):
        run = tmp_path / name
        words = [*WORDS, "--data.root", root, "--data.bands", bands, "--output", run]
        assert tool("train_seg")(*words) == 0
        assert tool("eval_seg")("--checkpoint", run, "--output", tmp_path / f"{name}.json") == 0
        report = json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8"))
        scores[name] = report["scores"]["whole"]["mean_iou"]
    assert scores["nir"] > 0.85, scores
    assert scores["rgb"] < 0.65, scores  # one of the two classes is guessed
    out = tmp_path / "out"
    picture = root / "images" / "val" / "0.tif"
    words = ("--checkpoint", tmp_path / "nir", "--overlay-bands", "nir,red,green", "--output", out, picture)
    assert tool("predict_seg")(*words) == 0
    assert {path.name for path in out.iterdir()} == {"0_labels.tif", "0_overlay.png"}  # on the map, as the image is
