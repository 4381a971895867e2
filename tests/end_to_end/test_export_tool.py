"""tools/export_seg.py as a user calls it."""

import importlib
import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from support import exported_once
from support.small_models import logits_of, noise, small_segmenter, used

from resnest_seg.cli import export
from resnest_seg.config import DataConfig, ModelConfig, RunConfig
from resnest_seg.data.synthetic import Synthetic
from resnest_seg.export import graph as exportable
from resnest_seg.inference.exported import open_exported
from resnest_seg.io.visualize import write_png
from resnest_seg.models.loading import segmenter_for
from resnest_seg.models.segmenter import LoadReport

pytestmark = pytest.mark.slow


@pytest.fixture
def small(monkeypatch, tmp_path, tool):
    """The tool, with a checkpoint of a small model of the synthetic scenes."""
    monkeypatch.chdir(tmp_path)
    space = Synthetic("val").label_space
    segmenter = small_segmenter(space, classes=len(space), data="synthetic")
    Path("best.safetensors").write_bytes(b"weights")
    segmenter.load_report = LoadReport(Path("best.safetensors"), "resnest_seg", segmenter.description, 3)
    monkeypatch.setattr("resnest_seg.models.loading.load_checkpoint", lambda path, into=None: segmenter)
    run = tool("export_seg")
    return lambda *words: run("--checkpoint", "best.safetensors", *words)


def test_a_checkpoint_becomes_a_file_that_carries_everything(tool, tmp_path, capsys):
    config = RunConfig(
        model=ModelConfig(encoder="resnest14_tiny", head="deeplabv3", output_stride=16),
        data=DataConfig(dataset="synthetic", base_size=96, crop_size=64),
    )
    segmenter = used(segmenter_for(config, Synthetic("val").label_space))
    segmenter.to_checkpoint().save(tmp_path / "best.safetensors")
    assert tool("export_seg")("--checkpoint", tmp_path, "--result", "labels", "--layout", "nhwc") == 0
    output = capsys.readouterr()
    assert "512 x 683" in output.out
    assert "model.onnx: " in output.out
    assert "best.safetensors: resnest_seg, resnest14_tiny deeplabv3" in output.err
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    images = noise(2, 40, 51, 3)
    labels = session.run(None, {"images": images})[0]
    assert labels.dtype == np.uint8
    assert (labels == logits_of(segmenter, images.transpose(0, 3, 1, 2).copy()).argmax(1)).mean() > 0.999
    info = open_exported(tmp_path / "model.onnx").info
    assert info.label_space == segmenter.label_space
    assert (info.source, info.head, info.setting.crop) == ("best.safetensors", "deeplabv3", (64, 64))


@pytest.mark.long
def test_a_run_is_served_after_one_export(tool, tmp_path, monkeypatch, capfd):
    """The exported file is used again as long as the checkpoint is the same; it takes every protocol."""
    server = importlib.import_module("resnest_seg.inference.http_server")
    monkeypatch.setattr(server, "run", lambda server, listening: listening.close() or 0)
    model = ModelConfig(encoder="resnest14_tiny", head="fcn", output_stride=32)
    config = RunConfig(model=model, data=DataConfig(dataset="synthetic"))
    segmenter = used(segmenter_for(config, Synthetic("val").label_space))
    segmenter.to_checkpoint().save(tmp_path / "best.safetensors")
    serve = tool("serve_seg")
    cached = tmp_path / "best.serve.onnx"
    assert serve("--checkpoint", tmp_path, "--port", 0, "--protocol", "encoding", "--memory", "512MiB") == 0
    said = capfd.readouterr().err
    assert "protocol encoding: http://127.0.0.1:" in said
    assert f"exporting {tmp_path / 'best.safetensors'} to {cached}" in said

    asked = []  # whether it is exported again, in this process, without the seconds that each export takes
    monkeypatch.setattr(export, "main", lambda words: asked.append(words) or 0)
    assert (export.for_serving(str(tmp_path)), asked) == (0, [])
    assert capfd.readouterr() == (f"{cached}\n", "")
    whole = cached.read_bytes()
    cached.write_bytes(whole[:999])
    assert (export.for_serving(str(tmp_path)), len(asked)) == (0, 1)
    cached.write_bytes(whole)
    segmenter.head.requires_grad_(False)
    next(iter(segmenter.head.parameters())).mul_(2)
    segmenter.to_checkpoint().save(tmp_path / "best.safetensors")
    assert (export.for_serving(str(tmp_path)), len(asked)) == (0, 2)
    assert asked[1][:5] == ["--checkpoint", str(tmp_path / "best.safetensors"), "--output", str(cached), "--overwrite"]
    capfd.readouterr()
    with pytest.raises(SystemExit) as stop:
        serve("--checkpoint", tmp_path / "nothing")
    assert stop.value.code == 2
    assert f"no checkpoint {tmp_path / 'nothing'}" in capfd.readouterr().err


@pytest.mark.long
def test_several_formats_with_a_mean_iou(small, tmp_path, monkeypatch, capsys):
    exported_once.keep(monkeypatch, {})
    words = ["--format", "onnx", "torch", "openvino", "onnx", "--output", "out/m.onnx", "--half"]
    assert small(*words, "--dataset", "synthetic", "--limit", "2", "--split", "test") == 0
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["m.bin", "m.onnx", "m.pt2", "m.report.json", "m.xml"]
    files = json.loads((tmp_path / "out" / "m.report.json").read_text())["files"]
    assert set(files) == {"m.onnx", "m.pt2", "m.xml"}
    assert {values["scored"] for values in files.values()} == {"on 2 images of synthetic (test)"}
    assert capsys.readouterr().out.count("mean IoU on 2 images") == 3
    assert small(*words) == 2
    assert "m.onnx already exists" in capsys.readouterr().err


def test_photos_of_ones_own(small, tmp_path, capsys):
    for index in range(2):
        write_png(tmp_path / "photos" / f"{index}.png", noise(50, 61, 3, seed=index))
    assert small("--format", "torch", "--images", "photos", "--pixels", "float32") == 0
    output = capsys.readouterr().out
    assert "compared on 2 given photos" in output
    assert "50 x 61" in output
    assert open_exported("model.pt2").info.pixels == "float32"
    assert small("--format", "torch", "--images", "nothing", "--overwrite") == 2
    assert "nothing" in capsys.readouterr().err


def test_8_bits_are_calibrated_on_the_data_trained_on(small, monkeypatch, capsys):
    seen = []
    monkeypatch.setattr("resnest_seg.export.onnx.quantize", lambda source, target, images: seen.extend(images))
    monkeypatch.setattr("resnest_seg.export.onnx._save_onnx", lambda model, path: path.write_bytes(b""))
    small("--int8", "--calibration-images", "3", "--limit", "1")
    train = Synthetic("train")
    assert len(seen) == 3
    top, left = (train[0].image.shape[0] - 48) // 2, (train[0].image.shape[1] - 48) // 2
    for image, index in zip(seen, (0, len(train) // 3, 2 * len(train) // 3), strict=True):
        assert np.array_equal(image[0].transpose(1, 2, 0), train[index].image[top : top + 48, left : left + 48])


def test_an_export_that_differs_leaves_the_others_and_exit_code_1(small, tmp_path, monkeypatch, capsys):
    original = exportable.ExportGraph.__init__
    calls = []

    def wrong(self, *arguments):
        original(self, *arguments)
        calls.append(1)
        if len(calls) == 1:
            self.mean += 20

    monkeypatch.setattr(exportable.ExportGraph, "__init__", wrong)
    assert small("--format", "onnx", "torch", "--output", "m") == 1
    output = capsys.readouterr()
    assert "error: m.onnx (float32, onnxruntime" in output.err
    assert "is not kept" in output.err
    assert "m.pt2: " in output.out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.safetensors", "m.pt2", "m.report.json"]
    assert list(json.loads((tmp_path / "m.report.json").read_text())["files"]) == ["m.pt2"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--half", "--int8"], "two precisions: choose one"),
        (["--int8", "--format", "torch"], "not for torch"),
        (["--aoti"], "add --format torch"),
        (["--limit", "0"], "--limit must be from 1 to"),
        (["--calibration-images", "0"], "--calibration-images must be from 1 to"),
        (["--output", "model.tflite"], "no suffix of a format: .onnx, .pt2, .xml"),
        (["--dataset", "camvit"], "Did you mean 'camvid'"),
    ],
)
def test_options_that_make_no_sense(small, tmp_path, capsys, words, message):
    assert small(*words) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["best.safetensors"]


def test_a_file_that_does_not_run_is_one_message_and_not_written(small, tmp_path, monkeypatch, capsys):
    def fails(*arguments, **options):
        raise RuntimeError("Runtime assertion failed for expression s14 <= s54")

    monkeypatch.setattr("resnest_seg.export.export.prove", fails)
    assert small("--output", tmp_path / "m.onnx") == 1
    assert "its runtime cannot run it (Runtime assertion failed" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.onnx*"))
