"""What an ONNX file of ours holds, read by the onnx package."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
from support import exported_once
from support.small_models import logits_of, noise, small_segmenter

from resnest_seg.errors import ExportError
from resnest_seg.export import onnx as onnx_file
from resnest_seg.export.graph import ExportOptions, info_of
from resnest_seg.export.onnx import OPSET, write_onnx
from resnest_seg.inference.exported import KEY, ExportInfo

pytestmark = pytest.mark.slow


def written(segmenter, folder, calibration=(), **options):
    info = info_of(segmenter, ExportOptions(**options))
    write_onnx(segmenter, info, folder / "model.onnx", calibration)
    return folder / "model.onnx", info


def shape(value):
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_a_file_names_its_sizes_and_its_classes(tiny_space, tmp_path, layout):
    path, info = written(small_segmenter(tiny_space), tmp_path, layout=layout, output="labels")
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    (images,), (labels,) = model.graph.input, model.graph.output
    assert (images.name, labels.name) == ("images", "labels")
    assert shape(images) == (["batch", 3, "height", "width"] if layout == "nchw" else ["batch", "height", "width", 3])
    assert shape(labels) == ["batch", "height", "width"]
    assert labels.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert {entry.domain: entry.version for entry in model.opset_import}[""] == OPSET
    values = {entry.key: entry.value for entry in model.metadata_props}
    assert ExportInfo.from_json(values[KEY]) == info
    assert json.loads(values["names"]) == ["sky", "road", "car"]
    assert json.loads(values["raw_ids"]) == [1, 5, 7]
    assert json.loads(values["colors"])[0] == [10, 20, 200]


def test_a_file_has_no_norms_no_auxiliary_head_and_no_paths(tmp_path):
    path, _ = written(small_segmenter(), tmp_path)
    model = onnx.load(path)
    assert [node.op_type for node in model.graph.node].count("Conv") == 3
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}
    content = path.read_bytes()
    for part in (b"site-packages", b".py", b"stack_trace", str(tmp_path).encode()):
        assert part not in content


def test_8_bits_keep_the_description_and_take_the_middle_of_photos(tiny_space, tmp_path):
    segmenter = small_segmenter(tiny_space)
    seen = []
    photos = [noise(40, 60, 3), noise(100, 30, 3, seed=1)]
    original = onnx_file.quantize
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            onnx_file,
            "quantize",
            lambda source, target, images: (seen.extend(images), original(source, target, images)),
        )
        path, info = written(segmenter, tmp_path, photos, precision="int8", pixels="float32")
    assert [image.shape for image in seen] == [(1, 3, 40, 48), (1, 3, 48, 30)]
    assert np.array_equal(seen[0][0].transpose(1, 2, 0), photos[0][:, 6:54])
    assert seen[0].dtype == np.float32
    values = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert ExportInfo.from_json(values[KEY]) == info
    session = onnxruntime.InferenceSession(path)
    images = noise(2, 3, 33, 47)
    found = session.run(None, {"images": images.astype(np.float32)})[0]
    expected = logits_of(segmenter, images)
    assert 0 < np.abs(found - expected).max() < 0.15 * np.abs(expected).max()


def test_what_is_too_large_or_not_valid_is_refused(tmp_path, monkeypatch):
    exported_once.keep(monkeypatch, {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_file, "LARGEST", 1000)
        with pytest.raises(ExportError, match=r"GB, and one ONNX file holds 2"):
            written(small_segmenter(), tmp_path)
    monkeypatch.setattr(onnx_file, "_describe", lambda model, info: model.graph.node.reverse())
    with pytest.raises(ExportError, match="the ONNX file is not valid"):
        written(small_segmenter(), tmp_path)
