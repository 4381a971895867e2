"""What an exported file says about itself, and running files that were made by hand."""

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import openvino
import openvino.opset8 as graph
import pytest
import torch
from onnx import TensorProto, helper
from support import small_onnx
from torch import nn

from resnest_seg.errors import CheckpointError, ConfigError
from resnest_seg.inference.exported import EXTRA_FILE, KEY, ExportInfo, choose_device, is_exported, open_exported
from resnest_seg.inference.protocols import Setting

pytestmark = pytest.mark.slow

INFO = dataclasses.replace(
    small_onnx.INFO,
    mean=(123.5, 116.25, 103.5),
    std=(58.0, 57.0, 57.375),
    description="resnest14_tiny fcn, output stride 8, dilation encoding",
    encoder="resnest14_tiny",
    setting=Setting("camvid", "mmseg", 512, (480, 640), 1024),
    pixels="uint8",
    source="best.safetensors",
)
"""Of a model whose logits are the pixels, doubled."""


class Double(nn.Module):
    def forward(self, images):
        return images.float() * 2


def write_onnx(path, text, pixels="uint8"):
    kind = TensorProto.UINT8 if pixels == "uint8" else TensorProto.FLOAT
    value = helper.make_tensor_value_info
    model = helper.make_model(
        helper.make_graph(
            [
                helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
                helper.make_node("Add", ["floats", "floats"], ["logits"]),
            ],
            "double",
            [value("images", kind, ["n", "c", "h", "w"])],
            [value("logits", TensorProto.FLOAT, ["n", "c", "h", "w"])],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    if text is not None:
        helper.set_model_props(model, {KEY: text})
    onnx.save(model, path)


def write_torch(path, text, pixels="uint8"):
    images = torch.zeros(2, 3, 8, 9, dtype=getattr(torch, pixels))
    sizes = ({0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO},)
    program = torch.export.export(Double(), (images,), dynamic_shapes=sizes)
    torch.export.save(program, path, extra_files={} if text is None else {EXTRA_FILE: text})


def write_openvino(path, text, pixels="uint8"):
    images = graph.parameter([-1, -1, -1, -1], getattr(np, pixels), name="images")
    floats = graph.convert(images, "f32")
    model = openvino.Model([graph.add(floats, floats)], [images])
    if text is not None:
        model.set_rt_info(text, KEY)
    openvino.save_model(model, path, compress_to_fp16=False)


WRITERS = {"model.onnx": write_onnx, "model.pt2": write_torch, "model.xml": write_openvino}


@pytest.fixture(params=WRITERS)
def write(request, tmp_path):
    """Write a file of each kind that doubles its images."""

    def make(text, pixels="uint8"):
        WRITERS[request.param](tmp_path / request.param, text, pixels)
        return tmp_path / request.param

    return make


def test_a_description_comes_back_as_it_was():
    assert ExportInfo.from_json(INFO.to_json()) == INFO
    assert "\n" not in INFO.to_json()
    assert INFO.channels == 3


def damaged(**changes):
    return json.dumps(json.loads(INFO.to_json()) | changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is damaged"),
        ("[1, 2]", "is damaged"),
        ("{}", r"format None \(written by an unknown version\)"),
        (damaged(format=7, version="3.1"), r"format 7 \(written by 3.1\), this version reads 1"),
        (json.dumps({"format": 1, "version": "0.1.0"}), "lacks label_space, mean"),
        (damaged(output_stride="8"), "output_stride is '8', no int"),
        (damaged(mean=[1.0]), "mean and std have different lengths"),
        (damaged(setting={"epochs": 3}), "damaged"),
        (damaged(setting={"base_size": "large"}), "damaged"),
        (damaged(label_space={"name": "x"}), "'names' is missing"),
        (damaged(output="label"), "Did you mean 'labels'"),
    ],
)
def test_a_damaged_description_is_refused(text, message):
    with pytest.raises(CheckpointError, match=message):
        ExportInfo.from_json(text)


@pytest.mark.parametrize("pixels", ["uint8", "float32"])
def test_every_runtime_runs_any_size(write, pixels):
    info = dataclasses.replace(INFO, pixels=pixels)
    model = open_exported(write(info.to_json(), pixels), threads=1)
    assert model.info == info
    random = np.random.default_rng(0)
    for shape in ((1, 3, 5, 7), (2, 3, 40, 31), (3, 3, 1, 1)):
        images = random.integers(0, 256, shape, dtype=np.uint8)
        result = model(images)
        assert result.dtype == np.float32
        assert np.array_equal(result, 2.0 * images)
        flipped = np.asarray(images, pixels)[:, :, ::-1]  # no layout that a runtime takes as it is
        assert np.array_equal(model(flipped), 2.0 * flipped)


def test_images_that_do_not_fit_are_refused(write):
    model = open_exported(write(INFO.to_json()))
    for images in (np.zeros((3, 8, 8), np.uint8), np.zeros((1, 8, 8, 3), np.uint8), np.zeros((1, 3, 0, 8), np.uint8)):
        with pytest.raises(ConfigError, match=r"takes images of the shape \[N, 3, H, W\], not \["):
            model(images)
    for kind in (np.float32, np.int64, bool):
        with pytest.raises(ConfigError, match="takes uint8 pixels"):
            model(np.zeros((1, 3, 8, 8), kind))
    small = open_exported(write(dataclasses.replace(INFO, smallest=9).to_json()))
    assert small(np.zeros((1, 3, 9, 9), np.uint8)).shape == (1, 3, 9, 9)
    for size in ((8, 9), (9, 8)):
        with pytest.raises(ConfigError, match="at least 9 x 9 pixels, not"):
            small(np.zeros((1, 3, *size), np.uint8))
    nhwc = open_exported(write(dataclasses.replace(INFO, layout="nhwc", smallest=4).to_json()))
    with pytest.raises(ConfigError, match="at least 4 x 4 pixels, not"):
        nhwc(np.ones((1, 3, 4, 3), np.uint8))
    with pytest.raises(ConfigError, match=r"shape \[N, H, W, 3\], not \[1, 3, 4, 5\]"):
        nhwc(np.ones((1, 3, 4, 5), np.uint8))


def test_files_of_others_and_damaged_ones_are_refused(write):
    path = write(None)
    with pytest.raises(CheckpointError, match="was not exported by this package"):
        open_exported(path)
    with pytest.raises(CheckpointError, match="format 9"):
        open_exported(write(damaged(format=9)))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CheckpointError, match="is no model, or a damaged one"):
        open_exported(path)
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="is no model, or a damaged one"):
        open_exported(path)


def test_devices_and_threads_that_do_not_exist_are_refused(write):
    path = write(INFO.to_json())
    with pytest.raises(ConfigError, match="device 'abacus'"):
        open_exported(path, device="abacus")
    with pytest.raises(ConfigError, match="threads must be at least 1"):
        open_exported(path, threads=0)
    assert open_exported(path, device="auto")(np.ones((1, 3, 2, 2), np.uint8)).max() == 2


@pytest.fixture
def gpus(monkeypatch):
    """A function that lets torch and onnxruntime find so many GPUs; onnxruntime's last options are in `.providers`."""
    session = onnxruntime.InferenceSession

    def found(count):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch, "zeros", lambda *size, device: torch.ones(*size))  # there is none to allocate on

    def opened(path, options, providers):
        found.providers = providers
        return session(path, options, providers=["CPUExecutionProvider"])

    names = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)
    monkeypatch.setattr(onnxruntime, "InferenceSession", opened)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    return found


def device_ids(path, device, gpus):
    """Where onnxruntime is told to run a file, by provider."""
    open_exported(path, device=device)
    return {name: settings["device_id"] for name, settings in gpus.providers[:-1]}


def test_each_process_of_torchrun_takes_a_gpu_of_its_own(tmp_path, monkeypatch, gpus, capsys):
    write_onnx(tmp_path / "m.onnx", INFO.to_json())
    gpus(4)
    assert [str(choose_device(name)) for name in ("auto", "cuda", "cuda:1")] == ["cuda", "cuda", "cuda:1"]
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert [str(choose_device(name)) for name in ("auto", "cuda", "cuda:1")] == ["cuda:2", "cuda:2", "cuda:1"]
    for name, number in (("auto", "2"), ("cuda", "2"), ("cuda:1", "1")):
        assert device_ids(tmp_path / "m.onnx", name, gpus) == {"CUDAExecutionProvider": number}
    assert set(device_ids(tmp_path / "m.onnx", "tensorrt", gpus).values()) == {"2"}
    gpus(1)  # each process sees its own
    assert str(choose_device("auto")) == "cuda:0"
    assert device_ids(tmp_path / "m.onnx", "auto", gpus) == {"CUDAExecutionProvider": "0"}
    gpus(0)
    assert str(choose_device("auto")) == "cpu"
    assert not capsys.readouterr().err


def test_processes_that_may_share_a_gpu_are_told_once(monkeypatch, gpus, capsys):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "5")
    gpus(2)
    for rank in ("0", "1", "4", "0"):
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert choose_device("auto").index == int(rank) % 2
    said = capsys.readouterr().err
    assert said.count("note: 5 processes were started on this machine, and they see 2 GPUs") == 1
    assert "--nproc-per-node 2" in said


def test_names_that_are_none(tmp_path):
    assert [is_exported(name) for name in ("a/b.onnx", "b.pt2", "c.xml", "d.safetensors", "runs/x")] == [True] * 3 + [
        False
    ] * 2
    with pytest.raises(CheckpointError, match=r"names end with .onnx, .pt2, .xml"):
        open_exported(tmp_path / "model.bin")
    with pytest.raises(CheckpointError, match="there is no such file"):
        open_exported(tmp_path / "model.onnx")


@pytest.mark.parametrize("package", ["onnxruntime", "torch", "openvino"])
def test_a_runtime_that_is_not_installed_is_named(package, tmp_path, monkeypatch):
    name, writer = list(WRITERS.items())[["onnxruntime", "torch", "openvino"].index(package)]
    writer(tmp_path / name, INFO.to_json())
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=f"needs {package}, which is not installed: pip install {package}"):
        open_exported(tmp_path / name)


def test_running_a_file_imports_only_its_own_runtime(tmp_path):
    write_onnx(tmp_path / "model.onnx", INFO.to_json())
    code = (
        "import sys, numpy, resnest_seg.inference.exported as e; m = e.open_exported('model.onnx');"
        "m(numpy.zeros((1, 3, 2, 2), 'uint8'));"
        "print([n for n in ('torch', 'PIL', 'yaml', 'rich', 'openvino', 'onnx') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.strip() == "[]"


def test_signals_are_handled_after_openvino_models_have_come_and_gone(tmp_path):
    write_openvino(tmp_path / "model.xml", INFO.to_json())
    code = (
        "import gc, signal, resnest_seg.inference.exported as e\n"
        "signal.signal(signal.SIGUSR1, lambda *_: print('handled'));"
        "first, second = (e.open_exported('model.xml') for _ in range(2));"
        "del first; gc.collect(); del second; gc.collect(); signal.raise_signal(signal.SIGUSR1)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout.strip()) == (0, "handled"), done.stderr


def test_openvino_writes_nothing_home_and_has_no_telemetry(tmp_path):
    """Its import writes an identifier to ~/intel and reports to a server, except where CI=true."""
    code = (
        "import sys; from resnest_seg.inference.exported import openvino_core; openvino_core();"
        "print(sys.modules['openvino_telemetry'])"
    )
    home = {name: value for name, value in os.environ.items() if name != "CI"} | {"HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=home)
    assert done.stdout == "None\n"
    assert list(tmp_path.iterdir()) == []
