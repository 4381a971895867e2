"""ONNX models in 8 bits, against the same arithmetic in float."""

import logging

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from resnest_seg.errors import ConfigError, ExportError
from resnest_seg.export.onnx import quantize

pytestmark = pytest.mark.slow


@pytest.fixture
def model(tmp_path):
    """Two convolutions, whose channels have very different weights, with a shortcut around the second."""
    random = np.random.default_rng(0)
    scale = np.array([0.01, 1, 10, 100], np.float32)[:, None, None, None]
    weights = {
        "w1": (random.standard_normal((4, 3, 3, 3)) * scale).astype(np.float32),
        "w2": random.standard_normal((4, 4, 1, 1)).astype(np.float32),
    }
    node = helper.make_node
    graph = helper.make_graph(
        [
            node("Conv", ["images", "w1"], ["a"], pads=[1, 1, 1, 1]),
            node("Relu", ["a"], ["b"]),
            node("Conv", ["b", "w2"], ["c"]),
            node("Add", ["b", "c"], ["logits"]),
        ],
        "small",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 3, "h", "w"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 4, "h", "w"])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    path = tmp_path / "plain.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def images(count, seed=0):
    return [255 * np.random.default_rng([seed, i]).random((1, 3, 12 + i, 20), np.float32) for i in range(count)]


def run(path, x):
    return onnxruntime.InferenceSession(path).run(None, {"images": x})[0]


def test_an_8_bit_model_is_near_its_source(model, tmp_path):
    quantize(model, tmp_path / "int8.onnx", images(4))
    for x in images(3, seed=1):
        expected, found = run(model, x), run(tmp_path / "int8.onnx", x)
        error = np.abs(found - expected).max() / np.abs(expected).max()
        assert 0 < error < 0.05


def test_weights_are_7_bits_with_a_scale_a_channel(model, tmp_path):
    quantize(model, tmp_path / "int8.onnx", images(2))
    tensors = {t.name: numpy_helper.to_array(t) for t in onnx.load(tmp_path / "int8.onnx").graph.initializer}
    original = {t.name: numpy_helper.to_array(t) for t in onnx.load(model).graph.initializer}
    assert tensors["w1_quantized"].dtype == np.int8
    assert np.abs(tensors["w1_quantized"].astype(int)).max(axis=(1, 2, 3)).tolist() == [64] * 4
    largest = np.abs(original["w1"]).max(axis=(1, 2, 3))
    assert np.allclose(tensors["w1_scale"], largest / 64, rtol=1e-4)


def test_nothing_to_calibrate_with_is_an_error(model, tmp_path):
    with pytest.raises(ConfigError, match="int8 needs images to calibrate with"):
        quantize(model, tmp_path / "int8.onnx", [])


def test_a_failure_says_so_and_leaves_logging_alone(model, tmp_path):
    before = logging.root.manager.disable
    with pytest.raises(ExportError, match="onnxruntime cannot quantise this model"):
        quantize(model, tmp_path / "int8.onnx", [np.zeros((1, 5, 4, 4), np.float32)])
    assert logging.root.manager.disable == before
    assert [path.name for path in tmp_path.iterdir()] == ["plain.onnx"]
