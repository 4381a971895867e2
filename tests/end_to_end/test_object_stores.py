"""Data sets in an object store through the tools as a user calls them, while the store fails now and then."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from accelerate.state import AcceleratorState
from conftest import TINY
from safetensors.torch import load_file
from support import fake_data, rasters
from support.object_store import KEY, SECRET

from resnest_seg.labels import LabelSpace

pytestmark = pytest.mark.slow

RUN = [
    "--dataset=folder",
    *(word for word in TINY if not word.startswith(("--train.epochs", "--train.batch_size"))),
    "--model.encoder=resnest14_tiny",
    "--model.head=fcn",
    "--model.output_stride=32",
    "--train.batch_size=4",
    "--train.epochs=2",
    "--train.save_every=1",
]


@pytest.fixture(autouse=True)
def _fresh_engine():
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root, space = tmp_path_factory.mktemp("data") / "mine [1]", LabelSpace.numbered(4)
    for split, count in (("train", 12), ("val", 3)):
        for index in range(count):
            photo, mask = fake_data.picture_and_mask(space, index + 100 * len(split))
            fake_data.write(root / "images" / split / f"ü {index}.jpg", photo)
            fake_data.write(root / "masks" / split / f"ü {index}.png", mask)
    (root / "classes.csv").write_text("name,id\nzero,0\none,1\ntwo,2\nthree,3\n")
    return root


@pytest.fixture
def address(object_store, folder):
    address = object_store.put_folder("data", folder, "mine [1]/")
    object_store.heal()
    yield address
    object_store.heal()


@pytest.fixture(scope="module")
def from_the_folder(folder, tmp_path_factory):
    """A run that read the folder and was not stopped."""
    from resnest_seg.cli.train import main

    AcceleratorState._reset_state(reset_partial_state=True)
    output = tmp_path_factory.mktemp("runs") / "folder"
    assert main([*RUN, "--data.root", str(folder), "--output", str(output)]) == 0
    return output


def same(one, other):
    """Equal bits of weights, average and optimiser, and of all losses and scores."""
    assert (one / "metrics.jsonl").read_text() == (other / "metrics.jsonl").read_text()
    ours, theirs = (load_file(path / "last.safetensors") for path in (one, other))
    assert ours.keys() == theirs.keys()
    return all(torch.equal(value, theirs[name]) for name, value in ours.items())


@pytest.mark.long
def test_a_killed_run_on_a_failing_store_goes_on_to_the_bits_of_one_on_the_folder(
    from_the_folder, address, object_store, tool, tmp_path
):
    run, photos = tmp_path / "run", r"GET .*\.(jpg|png)"
    for kind in ("503", "cut", "500"):
        object_store.trouble(kind, match=photos)
    object_store.trouble("slow", times=9999, match=photos, seconds=0.1)  # so that it is killed on its way
    words = [*RUN, "--data.root", address, "--output", str(run)]
    process = subprocess.Popen([sys.executable, "-m", "resnest_seg", "train", *words], start_new_session=True)
    while not (run / "last.safetensors").exists():
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    object_store.heal()
    for kind in ("503", "cut"):
        object_store.trouble(kind, match=photos)
    assert tool("train_seg")("--resume", run, "--data.workers=1", "--data.cache", tmp_path / "cache") == 0
    assert same(from_the_folder, run)
    for path in [*run.rglob("*"), *(tmp_path / "cache").rglob("*")]:
        assert path.is_dir() or not any(word.encode() in path.read_bytes() for word in (SECRET, KEY))


@pytest.mark.long
def test_every_tool_reads_a_store(from_the_folder, address, object_store, tool, tmp_path, capfd):
    words = ["--dataset", "folder", "--data.root", address, "--data.cache", tmp_path / "cache"]
    assert tool("check_dataset")(*words, "--workers", 2, "--output", tmp_path / "check.json") == 0
    assert json.loads((tmp_path / "check.json").read_text())["samples"] == {"train": 12, "val": 3}
    assert object_store.count("list-type=2") == 1  # for all splits
    assert tool("train_seg")(*RUN, *words[2:], "--dry-run", "--output", tmp_path / "none") == 0
    before = object_store.count("GET .*jpg")
    run = ["--checkpoint", from_the_folder, *words[2:], "--data.cache_size", "10MiB", "--workers", 0]
    assert tool("eval_seg")(*run, "--output", tmp_path / "eval.json") == 0
    assert tool("eval_seg")("--checkpoint", from_the_folder, "--workers", 0, "--output", tmp_path / "own.json") == 0
    ours, theirs = (json.loads((tmp_path / name).read_text()) for name in ("own.json", "eval.json"))
    assert ours["scores"] == theirs["scores"]
    assert tool("audit_labels")(*run, "--split", "val", "--output", tmp_path / "audit") == 0
    assert object_store.count("GET .*jpg") == before  # all copied by the check
    capfd.readouterr()
    assert tool("eval_seg")(*run, "--data.root", "s3://nowhere/mine", "--output", tmp_path / "no.json") == 2
    assert "cannot list s3://nowhere/mine: there is no such bucket (404 NoSuchBucket" in capfd.readouterr().err
    assert tool("eval_seg")(*run, "--data.cache_size", "much", "--output", tmp_path / "no.json") == 2
    assert "--data.cache_size must be a number" in capfd.readouterr().err


def test_a_classifier_reads_a_store(object_store, tool, tmp_path):
    for split in ("train", "val"):
        for name in ("bee", "ant"):
            for index in range(3):
                photo, _ = fake_data.picture_and_mask(LabelSpace.numbered(4), index + len(name + split))
                fake_data.write(tmp_path / "classes" / split / name / f"{index}.png", photo)
    address = object_store.put_folder("data", tmp_path / "classes", "classes/")
    words = ["--config", "imagenet_classifier_resnest50", "--model.encoder=resnest14_tiny", "--data.crop_size=32"]
    words += [
        "--data.workers=0",
        "--train.epochs=1",
        "--train.batch_size=4",
        "--optim.reference_batch=null",
        "--optim.warmup=0",
    ]
    assert tool("pretrain_cls")(*words, "--data.root", address, "--output", tmp_path / "run") == 0
    assert tool("pretrain_cls")(*words, "--data.root", address, "--dry-run") == 0


def test_windows_need_a_cache(object_store, tool, tmp_path, capfd):
    pytest.importorskip("rasterio")
    for split in ("train", "val"):
        photo, mask = fake_data.picture_and_mask(LabelSpace.numbered(3), len(split))
        rasters.write_raster(tmp_path / "maps" / "images" / split / "a.tif", photo)
        rasters.write_raster(tmp_path / "maps" / "masks" / split / "a.tif", mask[..., None])
    address = object_store.put_folder("data", tmp_path / "maps", "maps/")
    words = ["--dataset", "folder", "--data.root", address, "--data.window", 32, "--workers", 0]
    assert tool("check_dataset")(*words) == 2
    assert "maps/images/train/a.tif must be read from a file on this machine: say where" in capfd.readouterr().err
    assert tool("check_dataset")(*words, "--data.cache", tmp_path / "cache") in (0, 1)
    assert tool("check_dataset")(*words, "--data.cache", tmp_path / "cache", "--data.cache_size", "0.002MiB") == 2
