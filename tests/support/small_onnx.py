"""Small ONNX files as the export writes them, made by hand: a convolution of 5 x 5 pixels whose logits are known."""

import dataclasses

import numpy as np
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper, save

from resnest_seg.inference.exported import EXTRA_FILE, KEY, ExportInfo
from resnest_seg.inference.protocols import Setting
from resnest_seg.labels import LabelSpace

SPACE = LabelSpace("tiny", ("sky", "road", "car"), ((10, 20, 200), (90, 90, 90), (200, 30, 30)), (1, 5, 7), (0, 9))

INFO = ExportInfo(
    label_space=SPACE,
    mean=(0.0, 0.0, 0.0),
    std=(1.0, 1.0, 1.0),
    description="a convolution",
    encoder="none",
    head="none",
    family="encoding",
    dilation="encoding",
    output_stride=8,
    align_corners=True,
    size_divisor=1,
    min_size=1,
    smallest=1,
    setting=Setting("synthetic", "encoding", 64, (48, 48), 128),
    pixels="float32",
    layout="nchw",
    output="logits",
    precision="float32",
    source="",
    source_sha256="0" * 64,
    version="0.1.0",
)

_random = np.random.default_rng(0)
WEIGHTS = (_random.standard_normal((3, 3, 5, 5)) / 100).astype(np.float32)


def convolution(images):
    """The network: images [N, 3, H, W], a tensor -> logits [N, 3, H, W]."""
    return F.conv2d(images.float(), torch.from_numpy(WEIGHTS), padding=2)


def channels(images):
    """Another: the strongest of red, green and blue."""
    return images.float()


def write(path, *, weights=WEIGHTS, **changes):
    """Write the file; `changes` are of its `ExportInfo`. None for the weights gives `channels`."""
    info = dataclasses.replace(INFO, **changes)
    if weights is None:
        weights = np.zeros((3, 3, 1, 1), np.float32)
        weights[[0, 1, 2], [0, 1, 2]] = 1
    pad = weights.shape[2] // 2
    kind = TensorProto.UINT8 if info.pixels == "uint8" else TensorProto.FLOAT
    nodes = [helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT)]
    if info.layout == "nhwc":
        nodes.append(helper.make_node("Transpose", ["floats"], ["nchw"], perm=[0, 3, 1, 2]))
    conv = {"logits": "logits"}.get(info.output, "scores")
    nodes.append(
        helper.make_node("Conv", ["nchw" if info.layout == "nhwc" else "floats", "weights"], [conv], pads=[pad] * 4)
    )
    if info.output == "softmax":
        nodes.append(helper.make_node("Softmax", [conv], ["softmax"], axis=1))
    if info.output == "labels":
        nodes.append(helper.make_node("ArgMax", [conv], ["best"], axis=1, keepdims=0))
        nodes.append(helper.make_node("Cast", ["best"], ["labels"], to=TensorProto.UINT8))
    labels = info.output == "labels"
    shape = ["n", "h", "w"] if labels else ["n", "k", "h", "w"]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("images", kind, ["n", "a", "b", "c"])],
        [helper.make_tensor_value_info(info.output, TensorProto.UINT8 if labels else TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(weights, "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, {KEY: info.to_json()})
    save(model, path)
    return path


class _Convolution(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 3, 5, padding=2, bias=False)
        self.conv.weight.data = torch.from_numpy(WEIGHTS)

    def forward(self, images):
        return self.conv(images.float())


def write_torch(path):
    """The same logits of the same pixels as a .pt2 archive."""
    from torch.export import Dim, export
    from torch.export import save as save_program

    sizes = ({0: Dim("n", min=1), 2: Dim("h", min=1), 3: Dim("w", min=1)},)
    program = export(_Convolution(), (torch.zeros(2, 3, 8, 9),), dynamic_shapes=sizes)
    save_program(program, path, extra_files={EXTRA_FILE: INFO.to_json()})
    return path


def write_openvino(path):
    """And as an OpenVINO model."""
    import openvino

    model = openvino.convert_model(write(path.with_suffix(".onnx")))
    model.set_rt_info(INFO.to_json(), KEY)
    openvino.save_model(model, path, compress_to_fp16=False)
    return path
