"""The verb pack: which data set, into which folder, and what it says."""

import json
import shutil

import numpy as np
import pytest
import yaml
from PIL import Image

from resnest_seg.cli.datasets.pack import shard_bytes
from resnest_seg.errors import ConfigError


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A folder of nine photos in train and three in val, in the current folder."""
    monkeypatch.chdir(tmp_path)
    for index in range(12):
        random = np.random.default_rng(index)
        for kind, shape, values in (("images", (40, 48, 3), 256), ("masks", (40, 48), 3)):
            path = tmp_path / "mine" / kind / ("train" if index < 9 else "val") / f"{index} ü.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, values, shape, dtype=np.uint8)).save(path)
    return tmp_path / "mine"


def test_a_folder_is_packed_and_checked(mine, tool, capsys):
    pack = tool("pack_dataset")
    words = ["--dataset", "folder", "--data.root", "mine", "--output", "a b/shards", "--workers", "0"]
    assert pack(*words, "--shard-size", "30KB") == 0
    done = capsys.readouterr()
    assert "packed 9 train, 3 val: 4 shards, " in done.out
    assert "Next: python " in done.out
    assert "--dataset shards --data.root 'a b/shards'" in done.out
    assert "the test split is left out: the test split of folder is empty" in done.err
    assert tool("check_dataset")("--dataset", "shards", "--data.root", "a b/shards", "--workers", "0") == 0
    assert "9 train, 3 val" in capsys.readouterr().out

    assert pack(*words) == 2
    assert "a b/shards holds a packed data set already: choose another --output" in capsys.readouterr().err
    assert pack(*words, "--overwrite", "--split", "val") == 0
    assert list(json.loads((mine.parent / "a b/shards/index.json").read_text())["splits"]) == ["val"]


def test_a_config_names_the_data_set(mine, tool, capsys):
    data = {"dataset": "folder", "root": "mine", "images": "images/{split}/*.png", "masks": "masks/{split}/*.png"}
    (mine.parent / "run.yaml").write_text(yaml.safe_dump({"data": data}))
    pack = tool("pack_dataset")
    assert pack("--config", "run.yaml", "--output", "shards", "--split", "train", "--workers", "0") == 0
    assert "packed 9 train" in capsys.readouterr().out
    shutil.rmtree(mine / "images" / "val")
    shutil.rmtree(mine / "masks" / "val")
    assert pack("--config", "run.yaml", "--output", "other") == 2
    assert "split of folder is empty" in (said := capsys.readouterr().err)
    assert said.endswith("To pack without the val split: --split train\n")
    (mine.parent / "run.yaml").write_text(yaml.safe_dump({"data": {**data, "window": 64}}))
    assert pack("--config", "run.yaml", "--output", "other") == 2
    assert "windows of rasters cannot be packed" in capsys.readouterr().err
    assert not (mine.parent / "other").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--dataset", "folder"), "--output is missing: folder of the shards"),
        (("--output", "x"), "--dataset is missing: folder, ade20k, cityscapes, camvid or synthetic; or --config FILE"),
        (("--dataset", "holder", "--output", "x"), "unknown data set 'holder'. Did you mean 'folder'?"),
        (("--dataset", "folder", "--data.root", "mine", "--output", "mine/images/x"), "mine/images/x lies within mine"),
        (("--dataset", "folder", "--data.root", "mine", "--output", "mine"), "mine holds the data set that is to be"),
        (("--dataset", "folder", "--data.root", "mine", "--output", "s3://b/x"), "s3://b/x must be a folder"),
        (("--dataset", "folder", "--data.root", "mine", "--output", "x", "--shard-size", "3"), "--shard-size must be"),
        (("--dataset", "folder", "--data.root", "none", "--output", "x"), "no images found: none/images is missing"),
        (("--dataset", "folder", "--output", "x", "--data.positive", "car"), "--data.positive chooses among the"),
        (("--dataset", "folder", "--output", "x", "--data.window", "64"), "windows of rasters cannot be packed"),
        (("--dataset", "folder", "--output", "x", "--split", "val", "val"), "--split names a split twice: val val"),
        (
            ("--dataset", "folder", "--data.root", "mine", "--output", "x", "--split", "test"),
            "the test split of folder is empty",
        ),
    ],
)
def test_words_that_cannot_be_meant(words, message, mine, tool, capsys):
    assert tool("pack_dataset")(*words) == 2
    assert message in capsys.readouterr().err
    assert not (mine.parent / "x").exists()


def test_sizes_of_shards():
    assert [shard_bytes(word) for word in ("256MB", "1GiB", "0.5 GB", "64KB")] == [256e6, 1 << 30, 5e8, 64_000]
    for word in ("256", "MB", "-1MB", "1TB", "9KB", "2000GB", "1e3MB"):
        with pytest.raises(ConfigError, match=r"--shard-size must be"):
            shard_bytes(word)


def test_other_bands_than_those_of_training_may_be_named(mine, tool, capsys):
    data = {"dataset": "folder", "root": "mine", "bands": [1], "pixel_mean": [9.0], "pixel_std": [1.0]}
    (mine.parent / "run.yaml").write_text(yaml.safe_dump({"data": data, "model": {"in_channels": 1}}))
    words = ["--config", "run.yaml", "--output", "shards", "--split", "train", "--workers", "0"]
    assert tool("pack_dataset")(*words, "--data.bands", "3,1") == 0
    assert "--data.bands 3,1" in capsys.readouterr().out
