"""Backends: an exported file predicts and counts what the same network in torch does; options and errors."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from support import small_onnx
from support.small_models import small_segmenter
from support.small_networks import photo

from resnest_seg.config import DataConfig
from resnest_seg.errors import CheckpointError, ConfigError
from resnest_seg.evaluation.evaluator import Measures, evaluate
from resnest_seg.inference.backends import Block, FileBackend, RunOptions, _Bands
from resnest_seg.inference.exported import ExportInfo
from resnest_seg.inference.predictor import Predictor, open_backend
from resnest_seg.inference.protocols import Protocol, Setting, protocol, with_tiles
from resnest_seg.inference.torch_backend import TorchBackend, setting_of
from resnest_seg.inference.torch_engine import Runner, labels, probabilities, scores
from resnest_seg.io.images import read_image
from resnest_seg.io.masks import decode_mask
from resnest_seg.io.visualize import write_png
from resnest_seg.models.loading import build_segmenter

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


def in_torch():
    """The same network, as a checkpoint's."""
    backend = TorchBackend(small_segmenter(small_onnx.SPACE), RunOptions("cpu", fuse=False))
    backend.run, backend.setting = Runner(small_onnx.convolution), SETTING
    return backend


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
        shape = (131, 200, 3)

        def __getitem__(self, window):
            read.append((window[0].start, window[1]))
            return np.zeros((window[0].stop - window[0].start, 200, 3), np.uint8)

    bands = _Bands(File())
    for top, left in [(0, 0), (0, 48), (48, 0), (67, 0), (48, 48), (67, 48)]:
        assert bands[:, top : top + 64, left : left + 64].shape == (3, 64, 64)
    assert read == [(0, slice(None)), (48, slice(None)), (67, slice(None))]


def test_what_is_decided_by_the_export_is_refused(files, tmp_path):
    for options in ({"precision": "bf16"}, {"compile": True}):
        with pytest.raises(ConfigError, match=r"runs as it was exported: leave --(precision bf16|compile)"):
            open_backend(files[".onnx"], RunOptions(**options))
    with pytest.raises(ConfigError, match="at least 1 image"):
        RunOptions(batch=0)
    with pytest.raises(ConfigError, match="device 'abacus'"):
        open_backend(files[".onnx"], RunOptions("abacus"))
    with pytest.raises(CheckpointError, match="there is no such file"):
        open_backend(tmp_path / "gone.onnx")
    with pytest.raises(ConfigError, match="are for open_backend"):
        Predictor(FileBackend(files[".onnx"]), precision="bf16")
    with pytest.raises(CheckpointError, match="4 channels"):
        Predictor(FileBackend(small_onnx.write(tmp_path / "four.onnx", mean=(0.0,) * 4, std=(1.0,) * 4))).check_photos()


@pytest.fixture
def dataset(small_dataset):
    class Known(type(small_dataset)):
        label_space = small_onnx.SPACE

    return Known()


@pytest.mark.parametrize("name", ["whole", "encoding"])
def test_evaluation_counts_what_torch_counts(files, dataset, name):
    measures = Measures(boundaries=True, calibration=True)
    ours = evaluate(FileBackend(files[".onnx"]), dataset, protocols=(name,), measures=measures)
    theirs = evaluate(in_torch(), dataset, protocols=(name,), measures=measures)
    assert ours.scores[name].class_iou == pytest.approx(theirs.scores[name].class_iou, abs=1e-3)
    assert ours.boundaries[name].mean_boundary_iou == pytest.approx(theirs.boundaries[name].mean_boundary_iou, abs=1e-3)
    expected, found = (r.calibration[name].expected_calibration_error for r in (theirs, ours))
    assert found == pytest.approx(expected, abs=1e-4)
    assert "a convolution, exported in float32, by onnxruntime" in ours.model


@pytest.mark.parametrize("output", ["logits", "labels"])
def test_images_of_masks_are_padded_by_the_graph_alone(tmp_path, output):
    """As by the model in torch; older files of Mask2Former do not say so."""
    for masks, size in ((True, (13, 21)), (False, (16, 24))):
        seen = []
        backend = FileBackend(small_onnx.write(tmp_path / "a.onnx", output=output, predicts_masks=masks))
        run = backend.file._run
        backend.file._run = lambda images, run=run, seen=seen: seen.append(images.shape[2:]) or run(images)
        list(backend.blocks(np.zeros((13, 21, 3), np.uint8), backend.protocol("whole")))
        assert seen == [size]
    info = backend.file.info
    for head, masks in (("mask2former", True), ("fcn", False)):
        old = json.loads(dataclasses.replace(info, head=head).to_json())
        del old["predicts_masks"]
        assert ExportInfo.from_json(json.dumps(old)).predicts_masks is masks


def test_labels_alone_are_evaluated_but_not_calibrated(files, dataset):
    ours = evaluate(FileBackend(files["labels"]), dataset)
    theirs = evaluate(in_torch(), dataset)
    assert ours.scores["whole"].class_iou == pytest.approx(theirs.scores["whole"].class_iou, abs=1e-3)
    with pytest.raises(ConfigError, match="calibration needs scores"):
        evaluate(FileBackend(files["labels"]), dataset, measures=Measures(calibration=True))
    with pytest.raises(ConfigError, match="gives labels only, and protocol mmseg"):
        evaluate(FileBackend(files["labels"]), dataset, protocols=("whole", "mmseg"))


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


# Models in torch


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build_segmenter("resnest14_tiny", num_classes=5)


@pytest.fixture
def image():
    return torch.randint(0, 256, (3, 40, 56), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def backend(segmenter, **options):
    return TorchBackend(segmenter, RunOptions("cpu", fuse=False, **options))


@torch.inference_mode()
def test_coarse_logits_resized_by_rows_are_the_models_own(model, image):
    model.train()
    own = backend(model)
    assert not model.training
    ours = scores(own.run, image, own.protocol("whole"))
    assert torch.allclose(ours, model(image[None]).logits[0], atol=1e-5)


@torch.inference_mode()
def test_half_precision_is_near_and_accumulated_in_float32(model, image):
    exact = scores(backend(model).run, image, protocol("mmseg"))
    half = scores(backend(model, precision="bf16").run, image, protocol("mmseg"))
    assert half.dtype == torch.float32
    assert 0 < (half - exact).abs().max() < 0.1


def test_precisions_that_are_not_there(model):
    with pytest.raises(ConfigError, match="Did you mean 'bf16'"):
        RunOptions(precision="bf61")
    with pytest.raises(ConfigError, match="fp16 needs a GPU"):
        backend(model, precision="fp16")


def test_protocols_take_the_sizes_of_the_run(model):
    data = DataConfig(dataset="cityscapes", recipe="mmseg", base_size=1024, crop_size=512, crop_width=1024)
    config = dataclasses.replace(model.config, data=data)
    other = build_segmenter("resnest14_tiny", num_classes=5)
    other.config = config
    assert setting_of(other) == Setting("cityscapes", "mmseg", 1024, (512, 1024), 2048)
    assert backend(other).protocol("slide").window == (512, 1024)
    own = Protocol("own", scales=(2.0,))
    assert backend(other).protocol(own) is own


def test_predictions_keep_no_graph_and_leave_gradients_alone(model, image):
    """Outside of `inference_mode`, and in the middle of a block, too."""
    own = backend(model)
    for block in own.blocks(image.permute(1, 2, 0).numpy(), own.protocol("whole")):
        assert not block.scores.requires_grad
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()


def test_blocks_of_tensors_and_of_arrays_have_the_same_labels_and_probabilities():
    scores = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(0))
    place = slice(0, 5), slice(0, 6)
    tensor, array = Block(*place, scores), Block(*place, scores.numpy())
    assert tensor.labels().dtype == array.labels().dtype == np.uint8
    assert np.array_equal(tensor.labels(), array.labels())
    for merge in ("logits", "exp"):
        pair = [block._replace(scores=abs(block.scores)).probabilities(merge) for block in (tensor, array)]
        assert all(found.dtype == np.float32 for found in pair)
        assert np.allclose(*pair, atol=1e-6)
    given = Block(*place, None, array.labels())
    assert given.labels() is given.given
