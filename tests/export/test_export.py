"""Exports of every kind: proven, described, and never in the way of a good file."""

import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from support import exported_once
from support.small_models import logits_of, noise, small_segmenter, used

from resnest_seg.errors import CheckpointError, ConfigError, ExportError
from resnest_seg.export import export
from resnest_seg.export import graph as exportable
from resnest_seg.export.export import SUFFIXES, export_onnx, export_openvino, export_torch, report_path
from resnest_seg.export.verify import SIZES, Evidence
from resnest_seg.inference.exported import open_exported
from resnest_seg.models.loading import build_segmenter

pytestmark = pytest.mark.slow

EXPORTERS = {"onnx": export_onnx, "torch": export_torch, "openvino": export_openvino}


@pytest.fixture(scope="module")
def done():
    """What has been computed in this module: programs and ONNX files."""
    return {}


@pytest.fixture
def kept(done, monkeypatch):
    """Tracing takes longest."""
    exported_once.keep(monkeypatch, done)


@pytest.fixture(scope="module")
def network(tiny_space):
    """ResNeSt-14, narrow; test_exportable.py has graphs of every kind."""
    segmenter = used(build_segmenter("resnest14_tiny", head="deeplabv3", num_classes=3, output_stride=16))
    segmenter.label_space = tiny_space
    return segmenter


@pytest.mark.long
@pytest.mark.parametrize("kind", SUFFIXES)
def test_every_format_is_its_source_at_odd_sizes_and_batches(kind, network, kept, tmp_path):
    path = tmp_path / f"model{SUFFIXES[kind]}"
    proof = EXPORTERS[kind](network, path)
    assert [((row.height, row.width), row.batch) for row in proof.comparisons] == list(SIZES)
    assert proof.agreement >= 0.9999
    assert proof.relative_error < 1e-4
    model = open_exported(path)
    images = noise(2, 3, 45, 66)
    expected = logits_of(network, images)
    assert np.abs(model(images) - expected).max() < 1e-3 * np.abs(expected).max()
    report = json.loads((tmp_path / "model.report.json").read_text())["files"][path.name]
    assert report["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert report["agrees"]
    assert len(report["comparisons"]) == len(SIZES)


@pytest.fixture
def segmenter(tiny_space):
    return small_segmenter(tiny_space)


def listing(folder):
    return sorted(path.name for path in folder.iterdir())


right_mean = exportable.ExportGraph.__init__


def wrong_mean(self, *arguments):
    """A graph whose files predict something else."""
    right_mean(self, *arguments)
    self.mean += 20


@pytest.mark.long
@pytest.mark.parametrize("kind", SUFFIXES)
def test_an_export_with_a_wrong_mean_is_caught_and_older_files_stay(kind, segmenter, kept, tmp_path, monkeypatch):
    monkeypatch.setattr(exportable.ExportGraph, "__init__", wrong_mean)
    for before in ([], ["model.onnx", "model.pt2", "model.xml", "model.bin", "model.report.json"]):
        for name in before:
            (tmp_path / name).write_text(f"an older {name}")
        with pytest.raises(ExportError, match="does not predict what its source predicts, so it is not kept"):
            EXPORTERS[kind](segmenter, tmp_path / f"model{SUFFIXES[kind]}")
        found = {path.name: path.read_text() for path in tmp_path.iterdir()}
        assert found == {name: f"an older {name}" for name in before}


@pytest.mark.parametrize("kind", SUFFIXES)
def test_a_good_export_replaces_an_older_one(kind, segmenter, kept, tmp_path):
    path = tmp_path / f"model{SUFFIXES[kind]}"
    for file in (path, path.with_suffix(".bin")):
        file.write_text("older")
    EXPORTERS[kind](segmenter, path)
    assert open_exported(path).info.label_space == segmenter.label_space
    assert listing(tmp_path) == sorted(["model.bin", path.name, "model.report.json"])
    assert ((tmp_path / "model.bin").read_bytes() == b"older") == (kind != "openvino")


@pytest.mark.long
def test_formats_of_one_name_share_a_report(segmenter, kept, tmp_path):
    export_onnx(segmenter, tmp_path / "m.onnx", output="labels", layout="nhwc")
    export_torch(segmenter, tmp_path / "m.pt2", output="softmax", pixels="float32")
    path = report_path(tmp_path / "m.pt2")
    files = json.loads(path.read_text())["files"]
    assert {name: values["info"]["output"] for name, values in files.items()} == {
        "m.onnx": "labels",
        "m.pt2": "softmax",
    }
    (tmp_path / "m.onnx").unlink()
    path.with_name("m.onnx.report.json").write_text("of somebody else")
    export_torch(segmenter, tmp_path / "m.pt2")
    assert list(json.loads(path.read_text())["files"]) == ["m.pt2"]  # the other file is gone
    path.write_text("[]")
    export_torch(segmenter, tmp_path / "m.pt2")
    assert list(json.loads(path.read_text())["files"]) == ["m.pt2"]
    labels = open_exported(tmp_path / "m.pt2").info.label_space
    assert labels == segmenter.label_space


def test_the_source_stays_as_it_is(segmenter, tmp_path):
    segmenter.train()
    before = {key: value.clone() for key, value in segmenter.state_dict().items()}
    export_torch(segmenter, tmp_path / "m.pt2", precision="half")
    assert segmenter.training
    assert not segmenter.fused
    assert all(torch.equal(value, before[key]) for key, value in segmenter.state_dict().items())
    assert all(parameter.requires_grad for parameter in segmenter.parameters())


@pytest.mark.long
@pytest.mark.parametrize("kind", SUFFIXES)
def test_half_precision(kind, segmenter, kept, tmp_path):
    sizes = []
    for precision in ("float32", "half"):
        path = tmp_path / f"{precision}{SUFFIXES[kind]}"
        proof = EXPORTERS[kind](segmenter, path, precision=precision)
        assert proof.agreement > 0.995
        assert open_exported(path).info.precision == precision
        if kind != "torch":
            sizes.append((path.with_suffix(".bin") if kind == "openvino" else path).stat().st_size)
    assert 1e-6 < proof.relative_error < 0.01
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_8_bits_with_a_data_set(kind, segmenter, kept, small_dataset, tmp_path):
    path = tmp_path / f"model{SUFFIXES[kind]}"
    images = [small_dataset[index].image for index in range(3)]
    evidence = Evidence(dataset=small_dataset)
    proof = EXPORTERS[kind](segmenter, path, precision="int8", calibration=images, evidence=evidence)
    assert abs(proof.source_mean_iou - proof.mean_iou) <= 0.01
    assert 1e-4 < proof.relative_error < 0.5
    assert open_exported(path).info.precision == "int8"


@pytest.mark.long
def test_torch_loads_a_program_without_this_package(segmenter, kept, tmp_path):
    export_torch(segmenter, tmp_path / "m.pt2")
    images = noise(1, 3, 33, 47)
    np.save(tmp_path / "images.npy", images)
    code = (
        "import sys, warnings; warnings.simplefilter('ignore'); sys.modules['resnest_seg'] = None\n"
        "import numpy, torch\n"
        "model = torch.export.load('m.pt2').module()\n"
        "numpy.save('logits.npy', model(torch.from_numpy(numpy.load('images.npy'))).numpy())"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    assert np.allclose(np.load(tmp_path / "logits.npy"), logits_of(segmenter, images), atol=1e-4)


@pytest.mark.skipif("RESNEST_SEG_SLOW_TESTS" not in os.environ, reason="a minute in the C++ compiler")
def test_machine_code_by_aotinductor(segmenter, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    proof = export_torch(segmenter, tmp_path / "m.pt2", aoti=True, output="labels")
    assert proof.runtime.startswith("AOTInductor")
    model = open_exported(tmp_path / "m.pt2", device="auto")
    images = noise(2, 3, 21, 34)
    assert (model(images) == logits_of(segmenter, images).argmax(1)).mean() > 0.999
    with pytest.raises(ConfigError, match="compiled for the CPU"):
        open_exported(tmp_path / "m.pt2", device="cuda")


def test_without_a_compiler_there_is_no_machine_code(segmenter, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
    with pytest.raises(ExportError, match=r"AOTInductor needs a C\+\+ compiler, and there is none here"):
        export_torch(segmenter, tmp_path / "m.pt2", aoti=True)
    assert listing(tmp_path) == []


@pytest.mark.parametrize(
    ("kind", "name", "options", "message"),
    [
        ("onnx", "m.pt2", {}, "format onnx writes files whose names end with .onnx, not m.pt2"),
        ("openvino", "m.bin", {}, "end with .xml"),
        ("torch", "m.pt2", {"precision": "int8"}, "format torch has no int8 here"),
        ("onnx", "m.onnx", {"precision": "int8"}, "int8 needs training images to calibrate with"),
        ("onnx", "m.onnx", {"precision": "fp16"}, "unknown export option precision 'fp16'"),
        ("torch", "m.pt2", {"layout": "hwc"}, "Did you mean 'nhwc'"),
    ],
)
def test_options_that_make_no_sense(kind, name, options, message, segmenter, tmp_path):
    with pytest.raises(ConfigError, match=message):
        EXPORTERS[kind](segmenter, tmp_path / name, **options)
    assert listing(tmp_path) == []


def test_packages_that_are_not_installed_are_named(segmenter, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ConfigError, match=r"pip install 'resnest-seg\[export,openvino\]'"):
        export_openvino(segmenter, tmp_path / "m.xml")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(
        ConfigError, match=r"needs onnxscript, which is not installed: pip install 'resnest-seg\[export\]'"
    ):
        export_onnx(segmenter, tmp_path / "m.onnx")


def test_a_data_set_of_other_classes_leaves_no_file(segmenter, tmp_path):
    from resnest_seg.data.synthetic import Synthetic

    with pytest.raises(CheckpointError, match="wrong classes"):
        export_torch(segmenter, tmp_path / "m.pt2", evidence=Evidence(dataset=Synthetic("test")))
    assert listing(tmp_path) == []


def test_exports_by_name():
    assert {"onnx": export_onnx, "torch": export_torch, "openvino": export_openvino} == export.EXPORTERS
    assert export.EXPORTERS.keys() == SUFFIXES.keys()
