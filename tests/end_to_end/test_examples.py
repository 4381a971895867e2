"""The examples run as a person starts them, and what they train is used by every tool."""

import runpy
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import resnest_seg

pytestmark = [pytest.mark.slow, pytest.mark.long]

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def example(tmp_path, monkeypatch, capsys):
    """Run an example as `__main__` of this process, which has loaded torch already; returns what it printed."""

    def call(name, *words):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, words)])
        with warnings.catch_warnings():
            warnings.simplefilter("default")  # as a user has them
            runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    return call


@pytest.mark.parametrize("name", ["own_augmentation", "own_callback", "own_dataset", "own_loss", "own_optimizer"])
def test_an_example_trains(name, tmp_path, example):
    assert "mIoU" in example(name, tmp_path / "run")
    assert list(tmp_path.rglob("best.safetensors"))


def test_the_plain_loop_runs(tmp_path, example):
    assert "mIoU" in example("own_loop")
    assert not list(tmp_path.iterdir())


def test_a_detector_of_torchvision_trains_on_our_encoder():
    pytest.importorskip("torchmetrics")
    main = runpy.run_path(str(EXAMPLES / "detection.py"))["main"]
    assert -1 <= main("resnest14_tiny", 2, scenes=2) <= 1


def test_the_boxes_of_the_detection_example_are_those_of_its_masks():
    """Every box is the smallest around pixels of its class: its four sides touch one, and it is cut off nowhere."""
    example = runpy.run_path(str(EXAMPLES / "detection.py"))["example"]
    scenes, names = resnest_seg.Synthetic("train", size=(128, 160)), {1: "sign", 2: "car", 3: "person"}
    found = 0
    for index in range(8):
        image, target = example("train", index)
        labels = scenes[index].labels
        assert image.shape == (3, *labels.shape)
        for (left, top, right, bottom), number in zip(target["boxes"].int().tolist(), target["labels"], strict=True):
            of = labels == scenes.label_space.names.index(names[int(number)])
            box = of[top:bottom, left:right]
            assert box[0].any() and box[-1].any() and box[:, 0].any() and box[:, -1].any()  # noqa: PT018
            found += 1
    assert found > 20


def test_the_lightning_loop_runs(example):
    pytest.importorskip("lightning")
    assert "mIoU" in example("lightning_loop")


def test_every_tool_takes_the_network_of_an_example(tmp_path, example, tool, capsys):
    """The example and the tools run in this process, which has loaded torch already."""
    assert "mIoU" in example("own_head", tmp_path / "run [1]")

    def called(name, *words):
        assert tool(name)(*words) == 0
        return capsys.readouterr().out

    checkpoint, model = ("--checkpoint", tmp_path / "run [1]"), ("--model", f"{EXAMPLES / 'own_head.py'}:build")
    scene = tmp_path / "run [1]" / "scene.png"
    shown = called("eval_seg", *checkpoint, *model, "--limit", "4")
    assert "custom head" in shown
    called("predict_seg", *checkpoint, *model, scene, "--output", "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"scene_labels.png", "scene_overlay.png"}
    shown = called("export_seg", *checkpoint, *model, "--output", "own.onnx")
    assert "verified" in shown
    called("predict_seg", "--checkpoint", "own.onnx", scene, "--output", "out_onnx")
    words = ("--dataset", "synthetic", "--data.crop_size", "64", "--train.batch_size", "2", *model)
    assert "dry run of resnest14_tiny custom head" in called("train_seg", *words, "--dry-run")
    for name, words, said in (
        ("eval", checkpoint, "--model FILE.py:FUNCTION"),
        ("predict", (*checkpoint, scene), "--model FILE.py:FUNCTION"),
        ("export", checkpoint, "--model FILE.py:FUNCTION"),
        ("predict", ("--checkpoint", "own.onnx", *model, scene), "leave out"),
        ("demo", ("--checkpoint", "own.onnx", *model), "leave out"),
    ):
        assert tool(f"{name}_seg")(*words) == 2
        error = capsys.readouterr().err
        assert said in error, error
        assert "Traceback" not in error
    # The service exports in a process of its own, whose message is not this one's.
    command = [sys.executable, "-m", "resnest_seg", "serve", *checkpoint, "--model", "gone.py:build"]
    done = subprocess.run(list(map(str, command)), cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "there is no file gone.py" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_examples_are_short():
    for path in EXAMPLES.glob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) < 60, path.name
