"""Data sets in layouts and places of their own, through the tools as a user calls them."""

import csv
import json
import shutil
from pathlib import Path

import fsspec
import numpy as np
import pytest
from accelerate.state import AcceleratorState
from conftest import TINY
from support import fake_data

from resnest_seg.config import load_run_config
from resnest_seg.labels import LabelSpace

pytestmark = pytest.mark.slow

PATTERNS = ["--data.images", "leftImg8bit/{split}/**/*_image.jpg", "--data.masks", "gtFine/{split}/**/*_label.png"]
TWO_STEPS = [
    *TINY,
    "--model.encoder=resnest14_tiny",
    "--model.head=fcn",
    "--model.output_stride=32",
    "--train.batch_size=8",
]
SPACE = LabelSpace.numbered(7)


@pytest.fixture(autouse=True)
def _fresh_engine():
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def idd(tmp_path):
    """Indian Driving Dataset Lite: ids 0..6 and 255; 16 photos for training, 4 for validation, 2 without labels."""
    root = tmp_path / "idd lite [1]"
    places = [("train", "0", 16), ("val", "119", 4), ("test", "5", 2)]
    for split, drive, count in places:
        for index in range(count):
            photo, mask = fake_data.picture_and_mask(SPACE, index + 100 * len(split))
            fake_data.write(root / f"leftImg8bit/{split}/{drive}/{index:06d}_image.jpg", photo)
            if split != "test":
                fake_data.write(root / f"gtFine/{split}/{drive}/{index:06d}_label.png", mask)
                fake_data.write(root / f"gtFine/{split}/{drive}/{index:06d}_inst_label.png", mask // 2)
    return root


@pytest.mark.parametrize("options", [[], PATTERNS], ids=["as it is", "with the patterns"])
def test_idd_lite_is_checked_trained_and_evaluated(options, idd, tool, tmp_path, capfd):
    words = ["--dataset", "folder", "--data.root", idd, *options]
    assert tool("check_dataset")(*words, "--workers", 0, "--output", tmp_path / "check.json") == 0
    report = json.loads((tmp_path / "check.json").read_text())
    assert report["samples"] == {"train": 16, "val": 4, "test": 2}
    assert set(report["histogram"]["train"]) == {"0", "1", "2", "3", "4", "5", "6", "255"}
    assert len(report["classes"]) == 7
    assert tool("train_seg")(*words, *TWO_STEPS, "--dry-run", "--output", tmp_path / "none") == 0
    assert not (tmp_path / "none").exists()
    assert tool("train_seg")(*words, *TWO_STEPS, "--output", tmp_path / "run") == 0
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["step"] == 2
    trained = load_run_config(tmp_path / "run" / "config.yaml").data
    assert [trained.images, trained.masks] == (options[1::2] if options else [None, None])
    capfd.readouterr()
    assert tool("eval_seg")("--checkpoint", tmp_path / "run", "--workers", 0) == 0
    shown = capfd.readouterr().err
    assert shown.count("layout:") == 1
    assert ("the patterns given" if options else "Indian Driving Dataset Lite") in shown
    (scores,) = tmp_path.glob("run/eval*.json")
    assert json.loads(scores.read_text())["classes"] == [f"class {number}" for number in range(7)]


def test_a_data_set_at_an_address_trains(idd, tool, tmp_path):
    system = fsspec.filesystem("memory")
    system.pipe({f"/bucket/idd [1]/{path.relative_to(idd)}": path.read_bytes() for path in idd.rglob("*.*")})
    try:
        words = ["--dataset", "folder", "--data.root", "memory://bucket/idd [1]"]
        assert tool("train_seg")(*words, *TWO_STEPS, "--output", tmp_path / "run") == 0
        assert tool("eval_seg")("--checkpoint", tmp_path / "run", "--workers", 0) == 0
        # loader processes started by fork have the same memory
        assert tool("check_dataset")(*words, "--workers", 2, "--output", tmp_path / "check.json") == 0
    finally:
        system.store.clear()
    assert json.loads((tmp_path / "check.json").read_text())["samples"] == {"train": 16, "val": 4, "test": 2}


@pytest.mark.parametrize("kind", ["ids", "colours", "black and white"])
def test_a_class_list_is_drafted_and_used(kind, idd, tool, tmp_path, capfd):
    counts = np.zeros(256, np.int64)
    for path in sorted(idd.glob("gtFine/*/*/*[0-9]_label.png")):
        raw = fake_data.read(path)
        if kind == "colours":
            fake_data.write(path, SPACE.palette[np.minimum(raw, 6)])
        if kind == "black and white":
            raw = np.where(raw > 2, 255, 0).astype(np.uint8)
            fake_data.write(path, raw)
        counts += np.bincount(raw.ravel(), minlength=256)
    words = ["--dataset", "folder", "--data.root", idd]
    assert tool("check_dataset")(*words, "--write-classes") == 0
    shown = capfd.readouterr().out
    assert "20 masks" in shown
    assert f"--data.root '{idd}'" in shown
    with open(idd / "classes.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if kind == "colours":
        assert {(int(row["red"]), int(row["green"]), int(row["blue"])) for row in rows} == set(SPACE.colors)
        assert sum(int(row["pixels"]) for row in rows) == counts.sum()
    else:
        assert {int(row["id"]): int(row["pixels"]) for row in rows} == {
            value: count for value, count in enumerate(counts.tolist()) if count
        }
        assert [row["ignore"] for row in rows if row["id"] == "255"] == ["yes" if kind == "ids" else ""]
    before = (idd / "classes.csv").read_text()
    assert tool("check_dataset")(*words, "--write-classes") == 2
    assert "already exists. Choose another --write-classes, or pass --overwrite" in capfd.readouterr().err
    (idd / "classes.csv").write_text(before.replace("class 1,", "road,"))
    assert tool("check_dataset")(*words, "--workers", 0, "--output", tmp_path / "report.json") == 0
    classes = json.loads((tmp_path / "report.json").read_text())["classes"]
    assert classes == (["background", "object 1"] if kind == "black and white" else ["class 0", "road", *(
        f"class {number}" for number in range(2, 7))])  # fmt: skip


def test_a_class_list_goes_elsewhere_if_the_data_is_packed(idd, tool, tmp_path, monkeypatch, capfd):
    packed = shutil.make_archive(tmp_path / "packed", "zip", idd)
    monkeypatch.chdir(tmp_path)
    words = ["--dataset", "folder", "--data.root", packed]
    assert tool("check_dataset")(*words, "--write-classes") == 0
    assert "--data.classes classes.csv" in capfd.readouterr().out
    assert (tmp_path / "classes.csv").is_file()
    mask = next(idd.glob("gtFine/val/*/*_label.png"))
    for root, path in ((packed, packed), (idd, mask)):
        before = Path(path).read_bytes()
        words = ["--dataset", "folder", "--data.root", root, "--write-classes", path, "--overwrite"]
        assert tool("check_dataset")(*words) == 2
        assert f"{Path(path).name}' must end with .csv" in capfd.readouterr().err
        assert Path(path).read_bytes() == before
    assert tool("check_dataset")("--dataset", "camvid", "--write-classes") == 2
    assert "--write-classes is for --dataset folder: camvid has its own" in capfd.readouterr().err
