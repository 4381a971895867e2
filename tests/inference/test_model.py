"""Exported files where checkpoints go: what is predicted and counted is what the same network in torch gives."""

import json

import numpy as np
import pytest
import torch
from support import small_onnx
from test_inference import photo

from resnest_seg.errors import CheckpointError, ConfigError
from resnest_seg.evaluation.evaluate import Measures, evaluate
from resnest_seg.inference.backends import TorchModel, _Bands, file_model, open_model
from resnest_seg.inference.predictor import Predictor
from resnest_seg.inference.protocols import protocol, with_tiles
from resnest_seg.inference.torch_engine import MEMORY, Runner, labels, probabilities, scores
from resnest_seg.io.images import read_image
from resnest_seg.io.masks import decode_mask
from resnest_seg.io.visualize import write_png

SETTING = small_onnx.INFO.setting


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    return {
        ".onnx": small_onnx.write(folder / "a.onnx"),
        ".pt2": small_onnx.write_torch(folder / "a.pt2"),
        ".xml": small_onnx.write_openvino(folder / "b.xml"),
        "labels": small_onnx.write(folder / "labels.onnx", output="labels"),
    }


def in_torch(fn=small_onnx.convolution, **changes):
    """The same network, as a checkpoint's."""
    values = {"description": "a", "label_space": small_onnx.SPACE, "head": "none", "channels": 3, "setting": SETTING,
              "device": torch.device("cpu"), "memory": MEMORY, "run": Runner(fn)}  # fmt: skip
    return TorchModel(**(values | changes))


@pytest.mark.parametrize("ending", [".onnx", ".pt2", ".xml"])
@pytest.mark.parametrize(("name", "tile"), [("whole", None), ("whole", 24), ("encoding", None), ("mmseg", None)])
def test_every_runtime_predicts_what_torch_predicts(files, ending, name, tile):
    pixels = photo(50, 70).permute(1, 2, 0).numpy()
    predictor = Predictor.from_checkpoint(files[ending], protocol=name, tile=tile)
    assert predictor.protocol == with_tiles(protocol(name, setting=SETTING), tile, None)
    found, theirs = predictor(pixels), Predictor(in_torch(), protocol=name, tile=tile)(pixels)
    assert (found.labels == theirs.labels).mean() >= 0.9999
    assert np.abs(found.scores() - theirs.scores()).max() < 1e-4
    assert found.label_space == small_onnx.SPACE


def test_a_list_and_labels_alone(files):
    photos = [photo(*size).permute(1, 2, 0).numpy() for size in ((37, 51), (20, 30), (37, 51))]
    predictor = Predictor.from_checkpoint(files["labels"])
    for pixels, prediction in zip(photos, predictor(photos), strict=True):
        image = torch.from_numpy(pixels).permute(2, 0, 1)
        assert np.array_equal(
            prediction.labels, labels(Runner(small_onnx.convolution), image, protocol("whole")).numpy()
        )
    with pytest.raises(ConfigError, match="gives labels only, no scores"):
        prediction.scores()
    for options in ({"protocol": "encoding"}, {"tile": 16}):
        with pytest.raises(ConfigError, match="gives labels only, and protocol"):
            Predictor.from_checkpoint(files["labels"], **options)


@pytest.mark.parametrize("size", [(130, 200), (300, 70), (131, 65)])
def test_a_large_image_by_windows(files, size, tmp_path):
    pixels = photo(*size).permute(1, 2, 0).numpy()
    write_png(tmp_path / "a.png", pixels)
    predictor = Predictor.from_checkpoint(files[".onnx"], tile=64, overlap=16)
    predictor.segment_file(tmp_path / "a.png", tmp_path / "labels.png", ids="train", overlay_path=tmp_path / "o.png")
    found = decode_mask((tmp_path / "labels.png").read_bytes(), "labels")
    assert np.array_equal(found, predictor(pixels).labels)
    assert read_image(tmp_path / "o.png").shape[1] >= size[1]


def test_rows_of_a_large_image_are_read_once():
    """The last two rows of windows come column by column, and going up again would decode the file again."""
    read = []

    class File:
        shape = (3, 131, 200)

        def __getitem__(self, window):
            read.append((window[1].start, window[2]))
            return torch.zeros(3, window[1].stop - window[1].start, 200, dtype=torch.uint8)

    bands = _Bands(File())
    for top, left in [(0, 0), (0, 48), (48, 0), (67, 0), (48, 48), (67, 48)]:
        assert bands[:, top : top + 64, left : left + 64].shape == (3, 64, 64)
    assert read == [(0, slice(None)), (48, slice(None)), (67, slice(None))]


def test_what_is_decided_by_the_export_is_refused(files, tmp_path):
    for options in ({"precision": "bf16"}, {"compiled": True}):
        with pytest.raises(ConfigError, match=r"runs as it was exported: leave --(precision bf16|compile)"):
            open_model(files[".onnx"], **options)
    with pytest.raises(ConfigError, match="at least 1 image"):
        open_model(files[".onnx"], batch=0)
    with pytest.raises(ConfigError, match="device 'abacus'"):
        open_model(files[".onnx"], device="abacus")
    with pytest.raises(CheckpointError, match="there is no such file"):
        open_model(tmp_path / "gone.onnx")
    with pytest.raises(ConfigError, match="are for open_model"):
        Predictor(file_model(files[".onnx"]), precision="bf16")
    with pytest.raises(CheckpointError, match="4 channels"):
        Predictor(file_model(small_onnx.write(tmp_path / "four.onnx", mean=(0.0,) * 4, std=(1.0,) * 4)))


@pytest.fixture
def dataset(small_dataset):
    class Known(type(small_dataset)):
        label_space = small_onnx.SPACE

    return Known()


@pytest.mark.parametrize("name", ["whole", "encoding"])
def test_evaluation_counts_what_torch_counts(files, dataset, name):
    measures = Measures(boundaries=True, calibration=True)
    ours = evaluate(file_model(files[".onnx"]), dataset, protocols=(name,), measures=measures)
    theirs = evaluate(in_torch(), dataset, protocols=(name,), measures=measures)
    assert ours.scores[name].class_iou == pytest.approx(theirs.scores[name].class_iou, abs=1e-3)
    assert ours.boundaries[name].mean_boundary_iou == pytest.approx(theirs.boundaries[name].mean_boundary_iou, abs=1e-3)
    expected, found = (r.calibration[name].expected_calibration_error for r in (theirs, ours))
    assert found == pytest.approx(expected, abs=1e-4)
    assert "a convolution, exported in float32, by onnxruntime" in ours.model


def test_labels_alone_are_evaluated_but_not_calibrated(files, dataset):
    ours = evaluate(file_model(files["labels"]), dataset)
    theirs = evaluate(in_torch(), dataset)
    assert ours.scores["whole"].class_iou == pytest.approx(theirs.scores["whole"].class_iou, abs=1e-3)
    with pytest.raises(ConfigError, match="calibration needs scores"):
        evaluate(file_model(files["labels"]), dataset, measures=Measures(calibration=True))
    with pytest.raises(ConfigError, match="gives labels only, and protocol mmseg"):
        evaluate(file_model(files["labels"]), dataset, protocols=("whole", "mmseg"))


def test_the_tools_take_exported_files(tool, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    from resnest_seg.data.synthetic import Synthetic

    space = Synthetic("test").label_space
    weights = (np.random.default_rng(0).standard_normal((len(space), 3, 5, 5)) / 100).astype(np.float32)
    path = small_onnx.write(tmp_path / "model.onnx", weights=weights, label_space=space)
    image = Synthetic("test", size=(64, 96))[0].image
    write_png(tmp_path / "a.png", image)
    words = ["--checkpoint", path, "--device", "cpu"]
    assert tool("predict_seg")(*words, "a.png", "--ids", "train", "--tile", "32", "--write", "labels", "scores") == 0

    def fn(images):
        return torch.nn.functional.conv2d(images.float(), torch.from_numpy(weights), padding=2)

    theirs = probabilities(
        scores(Runner(fn), torch.from_numpy(image).permute(2, 0, 1), with_tiles(protocol("whole"), 32, None)), "logits"
    ).numpy()
    found = decode_mask((tmp_path / "predictions" / "a_labels.png").read_bytes(), "a")
    assert (found == theirs.argmax(axis=0)).mean() >= 0.9999
    assert tool("predict_seg")(*words, "a.png", "--compile", "--overwrite") == 2
    assert "leave --compile (compiled) out" in capsys.readouterr().err

    words += ["--split", "test", "--limit", 2, "--workers", 0]
    assert tool("eval_seg")(*words, "--protocols", "whole,encoding", "--calibration") == 0
    report = json.loads((tmp_path / "eval_synthetic_test_first2.json").read_text())
    assert report["checkpoint"] == str(path)
    assert report["precision"] == "float32"
    assert set(report["scores"]) == {"whole", "encoding"}
    assert tool("eval_seg")(*words, "--precision", "bf16", "--output", "b.json") == 2
    assert "runs as it was exported" in capsys.readouterr().err
    assert tool("eval_seg")(*words, "--dataset", "camvid", "--data.root", tmp_path, "--output", "c.json") == 2
