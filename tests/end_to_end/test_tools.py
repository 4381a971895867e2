"""The tools as a user calls them: every shipped config, the way from training to overlay, and bad input."""

import json
import os
import re
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from campaigns.kill_campaign import STRUCK
from conftest import PROJECT, TINY
from PIL import Image
from support import fake_data
from support.processes import await_stop
from support.reference import filled_state, original_keys

from resnest_seg.config import load_run_config
from resnest_seg.data.synthetic import Synthetic
from resnest_seg.io.images import read_image
from resnest_seg.io.visualize import write_png
from resnest_seg.models.checkpoint import BEST, LAST, Checkpoint
from resnest_seg.models.published_weights import published_names
from resnest_seg.training.run_folder import RunFolder

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _fresh_engine():
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on synthetic scenes, as short as possible, through the real command line."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    words = ["--dataset", "synthetic", "--output", str(folder), *TINY, "--train.batch_size=8", "--data.check=8"]
    words += ["--train.epochs=null", "--train.iterations=8"]
    done = subprocess.run([sys.executable, PROJECT / "tools/train_seg.py", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "val mIoU" in done.stdout
    assert re.search(
        r"^step 1/8  epoch 0.02/0.125  loss .*  lr .*  .* images/s  .* left  memory .* GiB", done.stdout, re.M
    )
    assert f"python tools/eval_seg.py --checkpoint {folder}" in done.stdout
    return folder


def test_a_folder_of_ones_own_trains_and_evaluates(tool, tmp_path):
    """With every data option on, the mmseg recipe and rare-class sampling; masks hold colours."""
    root, output = tmp_path / "mine", tmp_path / "run"
    space = fake_data.LabelSpace.of("camvid")
    for index in range(24):
        photo, mask = fake_data.picture_and_mask(space, index)
        fake_data.write(root / "images" / f"{index}.png", photo)
        fake_data.write(root / "masks" / f"{index}.png", space.palette[space.encode(mask)])
    colors = [f"{name},{r},{g},{b}," for name, (r, g, b) in zip(space.names, space.colors, strict=True)]
    (root / "classes.csv").write_text("\n".join(["name,red,green,blue,ignore", *colors, "void,0,0,0,true"]))
    words = ["--dataset", "folder", "--data.root", root, "--output", output, *TINY]
    words += ["--model.encoder=resnest14_tiny", "--train.epochs=null", "--train.iterations=2"]
    options = {"recipe": "mmseg", "base_size": 72, "long_edge": 300, "crop_width": 80, "rotate": 10}
    options |= {"color_jitter": 0.2, "blur": 0.5, "coarse_dropout": 0.5, "class_mix": 0.5, "rare_class": 0.1}
    assert tool("train_seg")(*words, *(f"--data.{key}={value}" for key, value in options.items())) == 0
    assert tool("eval_seg")("--checkpoint", output, "--limit", 2, "--workers", 0) == 0
    assert json.loads((output / "eval_folder_val_first2.json").read_text())["classes"] == list(space.names)


@pytest.mark.long
def test_a_run_starts_from_another_runs_weights(run, tool, tmp_path, capsys):
    """From ten classes of streets to eleven: the report says which layers stay fresh."""
    root, output = fake_data.make("camvid", tmp_path / "data", count=2), tmp_path / "run"
    words = ["--dataset", "camvid", "--data.root", root, "--output", output, *TINY]
    words += ["--model.encoder=resnest14_tiny", "--model.head=fcn", "--model.weights", run, "--optim.freeze=stem,bn"]
    assert tool("train_seg")(*words) == 0
    assert " and 3 more (it decides between other classes" in capsys.readouterr().out
    first, second = Checkpoint.load(run / BEST).weights, Checkpoint.load(output / LAST).weights
    for key in ("encoder.conv1.0.weight", "encoder.layer4.0.bn3.running_var"):
        assert torch.equal(first[key], second[key]), key
    assert not torch.equal(first["encoder.layer4.0.conv1.weight"], second["encoder.layer4.0.conv1.weight"])


@pytest.mark.parametrize(
    ("name", "encoder"), [("ade20k", "resnest14_tiny"), ("camvid", "resnest50"), ("cityscapes", "resnest14_tiny")]
)
def test_shipped_configs_train_and_evaluate_on_the_real_layout(name, encoder, tool, tmp_path):
    """One with its full network, which all three have in common; besides, only sizes and lengths are smaller."""
    root, output = fake_data.make(name, tmp_path / "data", count=2), tmp_path / "run"
    data = ["--dataset", name, "--data.root", root]
    words = [] if encoder == "resnest50" else ["--model.encoder", encoder]
    assert tool("train_seg")(*data, "--output", output, *TINY, *words) == 0
    assert tool("eval_seg")("--checkpoint", output, "--limit", 1, "--workers", 0) == 0
    report = json.loads((output / f"eval_{name}_val_first1.json").read_text())
    assert report["checkpoint"] == str(output / BEST)
    assert report["images"] == 1
    assert report["dataset"] == name
    assert f"{encoder} deeplabv3, output stride 8, dilation encoding" in report["model"]


def test_evaluate_prints_a_table_and_keeps_what_exists(run, tool, tmp_path, capsys):
    output = tmp_path / "report.json"
    words = ["--checkpoint", run, "--dataset", "synthetic", "--split", "test", "--limit", 3, "--output", output]
    assert tool("eval_seg")(*words) == 0
    text = capsys.readouterr().out
    for part in ("sky", "person", "IoU", "accuracy", "share of pixels", "pixel accuracy", "synthetic test, 3 images"):
        assert part in text
    before = output.read_bytes()
    assert json.loads(before)["split"] == "test"
    assert tool("eval_seg")(*words) == 2
    assert "already exists" in capsys.readouterr().err
    assert tool("eval_seg")(*words, "--overwrite") == 0
    assert output.read_bytes() == before


def test_predict_writes_labels_and_overlays(run, tool, tmp_path, capsys):
    photos = tmp_path / "photos"
    for index, place in enumerate(("a.png", "deep/a.png")):
        write_png(photos / place, Synthetic("test", size=(50, 70))[index].image)
    Image.fromarray(Synthetic("test", size=(50, 70))[2].image).save(photos / "deep" / "b.jpg")
    alone = tmp_path / "alone.png"
    write_png(alone, Synthetic("test")[5].image)
    words = ["--checkpoint", run, alone, photos, "--output", tmp_path / "out"]
    assert tool("predict_seg")(*words) == 0
    out = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.png")}
    stems = ("alone", "a", "deep/a", "deep/b")
    assert out == {f"{stem}_{kind}.png" for stem in stems for kind in ("labels", "overlay")}
    labels = np.array(Image.open(tmp_path / "out" / "alone_labels.png"))
    assert labels.shape == (160, 240)
    assert labels.max() < 10
    assert read_image(tmp_path / "out" / "alone_overlay.png").shape[1] >= 240
    assert tool("predict_seg")(*words) == 2
    assert "already exists" in capsys.readouterr().err


def test_a_bad_photo_does_not_stop_the_others(run, tool, tmp_path, monkeypatch, capsys):
    """And a folder's own results are not taken for photos when it is segmented again."""
    monkeypatch.chdir(tmp_path)
    for index in range(2):
        write_png(tmp_path / f"photo{index}.png", Synthetic("test", size=(40, 60))[index].image)
    (tmp_path / "broken.jpg").write_bytes(b"no photo")
    for extra in ([], ["--overwrite"]):
        assert tool("predict_seg")("--checkpoint", run, ".", *extra) == 1
        printed = capsys.readouterr()
        assert "error: 1 not segmented:\n  cannot read broken.jpg" in printed.err
        assert "2 of 3 inputs segmented" in printed.out
    assert len(list((tmp_path / "predictions").iterdir())) == 4


def test_a_checkpoint_of_other_classes(run, tool, tmp_path, capsys):
    fake_data.make("camvid", tmp_path)
    assert tool("eval_seg")("--checkpoint", run, "--dataset", "camvid", "--data.root", tmp_path) == 2
    assert "the checkpoint has 10 classes (synthetic) and the data set camvid has 11" in capsys.readouterr().err


def test_an_existing_run_folder_is_not_touched(run, tool, capsys):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert tool("train_seg")(*UNCHECKED, "--output", run, *TINY) == 2
    assert "already exists" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_the_zoo_lists_every_checkpoint_and_whether_it_is_here(tool, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "resnest50-528c19ca.pth").write_bytes(bytes(3_000_000))
    assert tool("zoo_seg")() == 0
    rows = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert set(published_names()) <= set(rows)
    assert rows["resnest50"] == ["81.03", "27.5", "3", "yes"]
    assert rows["deeplab_resnest50_ade"] == ["-", "45.12", "81.17", "44.0", "176", "-"]
    assert tool("zoo_seg")("--dataset", "cityscapes", "--json") == 0
    entries = json.loads(capsys.readouterr().out)
    assert [entry["single_scale"] for entry in entries] == [77.56, 78.57, 79.67, 79.62, 80.44, 80.8]
    assert entries[0]["digest"] == "SHA256 f8d155b3..."
    assert entries[0]["cached"] is False
    assert entries[0]["path"].startswith(str(tmp_path))


def test_a_published_checkpoint_is_evaluated_and_predicts(tool, tmp_path, monkeypatch, capsys):
    """From a file in somebody else's format, through the tools: the report says what was loaded and assumed."""
    root = fake_data.make("cityscapes", tmp_path / "data", count=1)
    path = tmp_path / "fcn.pth"
    shapes = dict(original_keys()["fcn_resnet50s"])
    shapes |= {key: [19, *shape[1:]] for key, shape in shapes.items() if ".conv5.4." in key}
    torch.save(filled_state(shapes), path)
    monkeypatch.chdir(tmp_path)
    assert tool("eval_seg")("--checkpoint", path, "--data.root", root, "--workers", 0) == 0
    printed = capsys.readouterr()
    assert "PyTorch-Encoding, resnet50s fcn, output stride 8, dilation encoding, 19 classes (cityscapes)" in printed.err
    assert "assumed output stride 8" in printed.err
    assert json.loads((tmp_path / "eval_cityscapes_val.json").read_text())["model"].startswith("resnet50s fcn")
    photo = next(root.rglob("*_leftImg8bit.png"))
    assert tool("predict_seg")("--checkpoint", path, photo) == 0
    assert len(list((tmp_path / "predictions").iterdir())) == 2


@pytest.mark.long
def test_the_benchmark_counts_the_same_network_twice(tool, tmp_path, capsys):
    """Not the times: those are for people. The same network has the same parameters and operations."""
    words = ["infer", "--encoder", "resnest14", "--size", 64, 64, "--rounds", 2, "--json", tmp_path / "infer.json",
             "--peers", "plain", "smp", "encoders", "--no-memory"]  # fmt: skip
    assert tool("benchmark_seg")(*words) == 0  # checks that all that are ours give the same labels
    rows = {row["name"]: row for row in json.loads((tmp_path / "infer.json").read_text())["measurements"]}
    fused, smp, ours, timm = (rows[f"{name}"] for name in ("ours, fused", "SMP and timm", "encoder alone, ours",
                                                           "encoder alone, timm"))  # fmt: skip
    assert (ours["parameters_m"], ours["gflops"]) == (timm["parameters_m"], timm["gflops"])
    assert ours["parameters_m"] == pytest.approx(8.56, abs=0.01)
    assert fused["gflops"] == pytest.approx(smp["gflops"], rel=0.01)
    assert (
        fused["parameters_m"] == pytest.approx(smp["parameters_m"]) == pytest.approx(rows["plain form"]["parameters_m"])
    )
    assert all(row["seconds"] > 0 and 0 < row["share_of_peak"] < 2 for row in rows.values())
    assert "interleaved" in " ".join(capsys.readouterr().out.split())
    words = ["scale", "--encoder", "resnest14_tiny", "--sides", 64, 128, "--images", 2, 20, "--rounds", 2,
             "--series", "pixels", "images",
             "--json", tmp_path / "scale.json"]  # fmt: skip
    assert tool("benchmark_seg")(*words) == 0
    rows = json.loads((tmp_path / "scale.json").read_text())["measurements"]
    assert [row["work"] for row in rows] == [64**2, 128**2, 64**2, 128**2, 2, 20]
    assert abs(rows[-1]["exponent"]) < 0.05  # memory does not grow with the images
    words = ["data", "--photos", 2, "--rounds", 2, "--json", tmp_path / "data.json"]
    assert tool("benchmark_seg")(*words) == 0  # checks that our samples are PIL's
    names = [row["name"] for row in json.loads((tmp_path / "data.json").read_text())["measurements"]]
    assert names[:2] == ["ours", "PIL, as PyTorch-Encoding"]
    assert tool("benchmark_seg")("infer", "--encoder", "resnet50") == 2
    for words in (("data", "--photos", 0), ("data", "--photos", 513), ("scale", "--images", 10, 0)):
        assert tool("benchmark_seg")(*words) == 2
    assert "unknown encoder of timm 'resnet50'" in capsys.readouterr().err


@pytest.mark.long
def test_the_benchmark_runs_a_network_in_every_runtime(tool, tmp_path):
    pytest.importorskip("onnxruntime")
    words = ["export", "--encoder", "resnest14_tiny", "--head", "fcn", "--size", 64, 64, "--rounds", 2,
             "--json", tmp_path / "export.json"]  # fmt: skip
    assert tool("benchmark_seg")(*words) == 0  # checks that all but the 8-bit file give the same labels
    rows = json.loads((tmp_path / "export.json").read_text())["measurements"]
    assert [row["name"] for row in rows][:4] == ["torch, eager", "torch, fused", "onnxruntime", "onnxruntime, int8"]


@pytest.mark.long
def test_a_run_is_divided_to_fit_and_the_run_folder_says_how(tool, tmp_path, capsys):
    """The same division as the planning tool's, written into the config that a resumed run takes."""
    output, words = tmp_path / "run", [*TINY, "--train.batch_size=64", "--model.checkpointing=true", "--data.check=0"]
    words += ["--train.epochs=null", "--train.iterations=1"]
    assert tool("train_seg")("--dataset", "synthetic", "--output", output, *words, "--budget", "1.07") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "The recipe holds: 64 images a step" in text
    config = load_run_config(output / "config.yaml")
    assert (config.train.batch_size, config.train.accumulation, config.model.checkpointing) == (64, 2, False)
    again = ["--resume", "auto", "--budget", "100"]  # would not divide it, and the run was begun divided
    assert tool("train_seg")("--dataset", "synthetic", "--output", output, *words, *again) == 0
    assert load_run_config(output / "config.yaml") == config
    capsys.readouterr()
    planned = ["--dataset", "synthetic", *words, "--memory", "1.07", "--device", "cpu"]
    assert tool("budget_seg")(*planned) == 0
    assert (
        "train_seg.py --dataset synthetic --train.accumulation=2 --model.checkpointing=false" in capsys.readouterr().out
    )
    assert tool("budget_seg")("--dataset", "synthetic", "--memory", "1.0", "--devices", "2") == 2
    assert "does not fit into 2 x cuda with 1.0 GiB" in capsys.readouterr().err


@pytest.mark.long
def test_the_benchmark_compares_losses_and_training_steps_that_are_equal(tool, tmp_path, capsys):
    """It checks so before it measures; of what it measures, memory is no matter of chance at these sizes."""
    words = ["loss", "--classes", 40, "--batch", 4, "--size", 160, 160, "--rounds", 2, "--json", tmp_path / "loss.json"]
    assert tool("benchmark_seg")(*words) == 0
    lean, plain = json.loads((tmp_path / "loss.json").read_text())["measurements"]
    full = 4 * 40 * 160 * 160 * 4 / 2**20
    assert lean["peak_mebibytes"] < 2 * full < plain["peak_mebibytes"]  # the allocator adds some
    words = ["train", "--encoder", "resnest14_tiny", "--size", 32, 48, "--rounds", 2, "--json", tmp_path / "train.json"]
    assert tool("benchmark_seg")(*words) == 0
    names = [row["name"] for row in json.loads((tmp_path / "train.json").read_text())["measurements"]]
    assert names == ["ours", "plain"]
    assert tool("benchmark_seg")("metrics", "--classes", 9, "--size", 40, 50, "--rounds", 2) == 0
    assert tool("benchmark_seg")("metrics", "--classes", 256) == 2
    assert "--classes must be between 2 and 255" in capsys.readouterr().err
    assert tool("benchmark_seg")("train", "--precision", "fp8") == 2
    assert "unknown --precision 'fp8'" in capsys.readouterr().err
    assert tool("benchmark_seg")("loss", "--size", 8, 8) == 2
    assert "--size must be at least 16 16" in capsys.readouterr().err


TRAIN, EVAL, PREDICT, ZOO = "train_seg", "eval_seg", "predict_seg", "zoo_seg"
UNCHECKED = ["--dataset", "synthetic", "--data.check", "0"]
"""For mistakes that are found behind the check of the data."""


@pytest.mark.parametrize(
    ("name", "words", "says"),
    [
        (TRAIN, [], "give one of --dataset NAME, --config FILE or --resume FOLDER"),
        (TRAIN, ["--dataset"], "--dataset needs a value"),
        (TRAIN, ["--dataset", "camvit"], "unknown data set 'camvit'. Did you mean 'camvid'?"),
        (TRAIN, ["--dataset", "camvid", "--optim.rl", "1"], "unknown option '--optim.rl'. Did you mean '--optim.lr'?"),
        (TRAIN, ["--dataset", "camvid", "--data.root", "{tmp}/no"], "data set camvid not found"),
        (TRAIN, ["--dataset", "synthetic", "--model.encoder", "resnet14"], "unknown encoder 'resnet14'. Did you mean"),
        (TRAIN, ["--dataset", "synthetic", "--eval.split", "vali"], "unknown split 'vali'. Did you mean 'val'?"),
        (TRAIN, ["--config", "{tmp}/no.yaml"], "no config file {tmp}/no.yaml"),
        (TRAIN, ["--resume", "{tmp}/no"], "{tmp}/no is not a run folder that can be resumed"),
        (TRAIN, ["--resume", "{tmp}/no", "--dataset", "camvid"], "--resume FOLDER takes the config in the run folder"),
        (TRAIN, ["--resume", "{run}", "--seed", "1"], "not the config of this run any more: seed (0 -> 1)"),
        (TRAIN, ["--resume", "{run}", "--allow-changes", "sed"], "unknown key to change: 'sed'. Did you mean 'seed'?"),
        (TRAIN, ["--resume", "{run}", "--dry-run"], "it does not go with --resume FOLDER"),
        (
            TRAIN,
            ["--dataset", "synthetic", "--train.parallel", "dp"],
            "unknown train.parallel 'dp'. Did you mean 'ddp'",
        ),
        (TRAIN, ["--dataset", "synthetic", "--train.trackers", "wandb,x"], "unknown train.trackers 'x'"),
        (TRAIN, ["--resume", "{run}", "--budget", "auto"], "the batch was divided when the run began"),
        (
            TRAIN,
            ["--dataset", "synthetic", "--budget", "much"],
            "--budget must be a number from 0.01 to 65536, not 'much'",
        ),
        (TRAIN, [*UNCHECKED, "--model.weights", "{tmp}/no"], "no such file, run folder or name"),
        (
            TRAIN,
            ["--dataset", "synthetic", "--optim.freeze", "laier4"],
            "unknown part in optim.freeze 'laier4'. Did you",
        ),
        (
            TRAIN,
            ["--dataset", "synthetic", "--epochs", "5", "--train.iterations", "9"],
            "exactly one of train.epochs (5) and",
        ),
        ("budget_seg", [], "give one of --dataset NAME"),
        ("budget_seg", ["--dataset", "ade20k", "--device", "tpu"], "--device must be cuda or cpu, not 'tpu'"),
        (EVAL, ["--checkpoint", "{tmp}/no"], "no checkpoint {tmp}/no"),
        (EVAL, ["--checkpoint", "{tmp}"], "is no run folder"),
        (EVAL, ["--checkpoint", "{tmp}/junk.pth"], "{tmp}/junk.pth is no checkpoint, or a damaged one"),
        (TRAIN, ["--dataset", "synthetic", "--model.head", "classifier"], "unknown head 'classifier'"),
        (
            TRAIN,
            [*UNCHECKED, "--model.in_channels", "4"],
            "model.in_channels is 4, and the images of data",
        ),
        (TRAIN, ["--dataset", "synthetic", "--model.head", "pspnet"], "head 'pspnet' exists in family 'mmseg' only"),
        (TRAIN, [*UNCHECKED, "--model.encoder_weights", "imagenet"], "no published ImageNet weights for"),
        (
            TRAIN,
            [*UNCHECKED, "--model.encoder_weights", "{tmp}/junk.pth"],
            "{tmp}/junk.pth is no checkpoint",
        ),
        (ZOO, ["--dataset", "ade"], "unknown data set 'ade'. Did you mean 'ade20k'?"),
        (ZOO, ["--fetch", "resnest51"], "unknown published checkpoint 'resnest51'. Did you mean 'resnest50'?"),
        (EVAL, ["--checkpoint", "{run}", "--limit", "0"], "--limit must be from 1 to 1000000000, not 0"),
        (EVAL, ["--checkpoint", "x", "--boundary-width", "0"], "--boundary-width must be above 0 and at most 1, not 0"),
        (
            EVAL,
            ["--checkpoint", "x", "--boundary-tolerance", "nan"],
            "--boundary-tolerance must be from 0 to 0.05, not",
        ),
        (EVAL, ["--checkpoint", "x", "--workers", "100000"], "--workers must be from 0 to 256, not 100000"),
        (EVAL, ["--checkpoint", "x", "--eval.memory", "99999999"], "--eval.memory must be from 1 to 16777216, not 9"),
        (
            "export_seg",
            ["--checkpoint", "x", "--calibration-images", "-1"],
            "--calibration-images must be from 1 to 65536",
        ),
        ("check_dataset", ["--dataset", "synthetic", "--workers", "-1"], "--workers must be from 0 to 256, not -1"),
        ("budget_seg", ["--dataset", "ade20k", "--devices", "0.5"], "--devices must be from 1 to 65536, not 0.5"),
        ("budget_seg", ["--dataset", "ade20k", "--memory", "nan"], "--memory must be from 0.01 to 65536, not nan"),
        ("budget_seg", ["--dataset", "ade20k", "--classes", "1e9"], "--classes must be from 1 to 255, not 1000000000"),
        (
            "budget_seg",
            ["--dataset", "ade20k", "--memory", "x"],
            "--memory must be a number from 0.01 to 65536, not 'x",
        ),
        (TRAIN, ["--dataset", "synthetic", "--budget", "0.001"], "--budget must be from 0.01 to 65536, not 0.001"),
        (
            TRAIN,
            [*UNCHECKED, "--budget", "0.02"],
            "does not fit into 1 x cpu with 20.5 MiB (nothing usable",
        ),
        (EVAL, ["--checkpoint", "{run}", "--protocols", "hole"], "unknown protocol 'hole'"),
        (EVAL, ["--checkpoint", "{run}", "--device", "cuda:77"], "device 'cuda:77' cannot be used"),
        (TRAIN, [*UNCHECKED, "--output", "{tmp}/junk.jpg/run"], "Not a directory"),
        (
            TRAIN,
            [*UNCHECKED, "--train.accumulation", "4"],
            "leaves one image for each of 4 micro-batches",
        ),
        (
            EVAL,
            ["--checkpoint", "{run}", "--output", "{tmp}/empty"],
            "{tmp}/empty: it is a folder. Choose a file with --output",
        ),
        (PREDICT, ["--checkpoint", "{run}", "{tmp}/junk.jpg", "--alpha", "2"], "--alpha must be from 0 to 1, not 2.0"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(name, words, says, tool, run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for junk in ("junk.pth", "junk.jpg"):
        (tmp_path / junk).write_text("not what it says")
    before = sorted(tmp_path.rglob("*"))
    assert tool(name)(*(word.format(tmp=tmp_path, run=run) for word in words)) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert says.format(tmp=tmp_path) in message
    assert "Traceback" not in message
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--checkpoint", "{run}", ""], "an input is empty"),
        (["--checkpoint", "{run}", "{tmp}/no.jpg"], "no file or folder {tmp}/no.jpg"),
        (["--checkpoint", "{run}", "{tmp}/empty"], "folder {tmp}/empty holds no image"),
        (["--checkpoint", "{run}", "{tmp}/junk.jpg"], "cannot read {tmp}/junk.jpg"),
        (["--checkpoint", "{run}", "{tmp}/junk.jpg", "{tmp}/junk.pth"], "cannot read {tmp}/junk.pth"),
    ],
)
def test_inputs_that_cannot_be_segmented_are_listed_with_exit_code_1(
    words, says, tool, run, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for junk in ("junk.pth", "junk.jpg"):
        (tmp_path / junk).write_text("not what it says")
    before = sorted(tmp_path.rglob("*"))
    assert tool("predict_seg")(*(word.format(tmp=tmp_path, run=run) for word in words)) == 1
    message = capsys.readouterr().err
    assert " not segmented:\n" in message
    assert says.format(tmp=tmp_path) in message
    assert "Traceback" not in message
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("damage", ["mask gone", "mask of another size", "photo unreadable", "label out of range"])
@pytest.mark.parametrize("workers", [0, 1])
def test_damaged_data_stops_training_with_one_message(damage, workers, tool, tmp_path, capsys):
    root = fake_data.make("camvid", tmp_path / "data", count=2)
    mask, photo = root / "trainannot" / "0001TP_000001.png", root / "train" / "0001TP_000001.png"
    match damage:
        case "mask gone":
            mask.unlink()
        case "mask of another size":
            fake_data.write(mask, np.zeros((9, 9), np.uint8))
        case "photo unreadable":
            photo.write_bytes(photo.read_bytes()[:100])
        case "label out of range":
            fake_data.write(mask, np.full(fake_data.SIZE, 77, np.uint8))
    words = ["--dataset", "camvid", "--data.root", root, "--output", tmp_path / "run", *TINY]
    words += ["--model.encoder", "resnest14_tiny", f"--data.workers={workers}"]
    assert tool("train_seg")(*words) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    assert "0001TP_000001.png" in message


def test_a_run_without_a_name_is_resumed_where_it_was_left(tool, tmp_path, monkeypatch, capsys):
    """The second start takes the next name, and auto means the last one, in which it has nothing left to do."""
    monkeypatch.chdir(tmp_path)
    words = ["--dataset", "synthetic", *TINY, *SHORT, "--train.iterations=2", "--eval.sheet=0"]
    words.remove("--train.epochs=1")
    base = Path("runs") / "synthetic_fcn_resnest14_tiny"
    for folder in (base, base.with_name(f"{base.name}-2")):
        AcceleratorState._reset_state(reset_partial_state=True)
        assert tool("train_seg")(*words, "--seed", len(folder.name)) == 0
        assert f"--checkpoint {folder}\n" in capsys.readouterr().out
        assert load_run_config(folder / "config.yaml").seed == len(folder.name)
    before = {path: path.stat().st_mtime_ns for path in base.iterdir()}
    AcceleratorState._reset_state(reset_partial_state=True)
    assert tool("train_seg")(*words, "--seed", len(f"{base.name}-2"), "--resume", "auto") == 0
    assert f"--checkpoint {base}-2\n" in capsys.readouterr().out
    AcceleratorState._reset_state(reset_partial_state=True)
    assert tool("train_seg")(*words, "--seed", 1, "--resume", "auto") == 2  # another run than the last
    assert "seed (30 -> 1)" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in base.iterdir()} == before
    assert len(list(Path("runs").iterdir())) == 2


def stopped_by(number, words):
    """(exit code, messages) of a training whose process group gets a signal in the midst of its third step.

    The process waits there, so that the signal comes before the end on any machine.
    """
    environment = os.environ | {"STRIKE": "0 2 SIGSTOP"}
    process = subprocess.Popen([sys.executable, STRUCK, *words], stderr=subprocess.PIPE, text=True, env=environment,
                               start_new_session=True, stdout=subprocess.DEVNULL)  # fmt: skip
    await_stop(process)
    os.killpg(process.pid, number)
    os.killpg(process.pid, signal.SIGCONT)
    _, message = process.communicate(timeout=120)
    return process.returncode, message


SHORT = ["--train.epochs=null", "--train.iterations=20", "--data.check=0"]
SMALL = ["--data.crop_size=32", "--data.base_size=64", "--model.output_stride=32"]


@pytest.mark.long
def test_sigterm_saves_and_resume_auto_continues(tool, tmp_path):
    """What a scheduler does: the same command, ended by SIGTERM and started again until it is done.

    The signal goes to the whole process group, workers included. The second start is in this process.
    """
    folder = tmp_path / "run"
    words = ["--dataset", "synthetic", *TINY, "--train.batch_size=8", "--output", folder, "--resume", "auto"]
    words += [*SMALL, "--train.log_every=1", "--data.workers=2", *SHORT]
    code, message = stopped_by(signal.SIGTERM, words)
    assert code == 143, message
    assert "stopped and saved" in message
    assert "Traceback" not in message
    assert Checkpoint.load(folder / LAST).training.values["step"] == 3
    assert tool("train_seg")(*words) == 0
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "train"] == list(range(1, 21))
    starts = [json.loads(line) for line in (folder / "machine.jsonl").read_text().splitlines()]
    assert [line["step"] for line in starts if line["kind"] == "start"] == [0, 3]


@pytest.mark.long
@pytest.mark.parametrize("workers", [0, 2])
def test_ctrl_c_saves_and_says_how_to_resume(tool, tmp_path, workers):
    """A real process group gets a real SIGINT, as from a terminal: the loader's workers get it too.

    What the message says is then done in this process.
    """
    folder = tmp_path / "run"
    words = ["--dataset", "synthetic", *TINY, "--train.batch_size=8", "--output", folder, *SHORT]
    words += [*SMALL, f"--data.workers={workers}"]
    code, message = stopped_by(signal.SIGINT, words)
    assert code == 130, message
    assert f"stopped and saved. Continue with: python tools/train_seg.py --resume {folder}" in message
    assert "Traceback" not in message
    assert Checkpoint.load(folder / LAST).training.values["step"] == 3
    assert tool("train_seg")("--resume", folder) == 0
    assert Checkpoint.load(folder / LAST).training.values["step"] == 20
    assert (folder / BEST).exists()


def test_a_folder_that_another_run_trains_into_is_refused(tool, run, capsys):
    with RunFolder(run).held():
        assert tool("train_seg")("--resume", run) == 2
    assert f"error: another run is training into {run}: process {os.getpid()} on" in capsys.readouterr().err
    assert tool("train_seg")("--resume", run) == 0  # is done, and says so


@pytest.mark.long
def test_two_processes_train_one_model(tmp_path):
    """Under torchrun, without a GPU: one run folder, metrics written once, the batch shared."""
    folder = tmp_path / "run"
    words = ["--dataset", "synthetic", *TINY, *SHORT, *SMALL, "--train.iterations=4", "--train.batch_size=4",
             "--output", folder]  # fmt: skip
    words.remove("--train.epochs=1")
    words.remove("--train.batch_size=2")
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([*launch, PROJECT / "tools/train_seg.py", *words], capture_output=True, text=True,
                          env=environment)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [(line["kind"], line["step"]) for line in lines] == [("train", 1), ("validation", 4)]
    checkpoint = Checkpoint.load(folder / LAST)
    assert all(torch.isfinite(value).all() for value in checkpoint.weights.values())
    assert "2 processes" in " ".join(done.stdout.split())


def test_prepare_synthetic_writes_photos_and_masks(tmp_path, monkeypatch):
    """The script runs as `__main__` of this process, which has loaded torch already."""
    script = PROJECT / "datasets/prepare_synthetic.py"
    monkeypatch.setattr(sys, "argv", [str(script), "--split", "test", "--count", "2", "--output", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"^0$"):
        runpy.run_path(str(script), run_name="__main__")
    sample = Synthetic("test")[1]
    assert np.array_equal(np.array(Image.open(tmp_path / "images" / "test_0001.png")), sample.image)
    assert np.array_equal(np.array(Image.open(tmp_path / "masks" / "test_0001.png")), sample.labels)


def test_a_dry_run_refuses_the_data_that_training_would_refuse(tool, tmp_path, capsys):
    """Masks of 0 and 255 whose list names two classes by order, so that 255 would be ignored."""
    random = np.random.default_rng(0)
    for split in ("train", "val"):
        for kind in ("images", "masks"):
            (tmp_path / "data" / kind / split).mkdir(parents=True)
        photo, mask = random.integers(0, 256, (40, 48, 3)), 255 * random.integers(0, 2, (40, 48))
        for kind, picture in (("images", photo), ("masks", mask)):
            Image.fromarray(picture.astype(np.uint8)).save(tmp_path / "data" / kind / split / "0.png")
    (tmp_path / "data" / "classes.csv").write_text("name\nbackground\nobject\n")
    words = ["--dataset", "folder", "--data.root", tmp_path / "data", *TINY, "--model.encoder=resnest14_tiny"]
    assert tool("train_seg")(*words, "--dry-run") == 2
    assert "no mask of train holds object" in capsys.readouterr().err
