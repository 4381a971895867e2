"""Checkpoints side by side: which of them are worth having, and whose accuracy a row shows."""

import json
import re
import runpy
import shutil
from argparse import Namespace

import pytest
import torch
from conftest import PROJECT
from hypothesis import given, settings
from hypothesis import strategies as st

import resnest_seg
from resnest_seg.cli.benchmark.models import INT8, Entry, Subject, accuracies, marked, pareto, stored
from resnest_seg.data.synthetic import Synthetic
from resnest_seg.labels import LabelSpace
from resnest_seg.models.loading import load_checkpoint


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(1, 6)), max_size=12))
def test_the_front_holds_what_nothing_beats(points):
    """Small whole numbers, so that ties in one value and in both are frequent."""

    def beats(other, point):
        return other[0] >= point[0] and other[1] <= point[1] and other != point

    assert pareto(points) == [not any(beats(other, point) for other in points) for point in points]


def row(evaluation, mean_iou, milliseconds):
    return {"name": "x", "runtime": "torch", "evaluation": evaluation, "mean_iou": mean_iou,
            "milliseconds": milliseconds}  # fmt: skip


def test_only_rows_of_one_evaluation_are_compared():
    rows = marked([row("val", 50.0, 10.0), row("val", 40.0, 20.0), row("test", 40.0, 20.0), row("", None, 1.0)])
    assert [each["pareto_front"] for each in rows] == [True, False, True, None]
    assert list(rows[0])[:5] == ["name", "runtime", "mean_iou", "milliseconds", "pareto_front"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint that was never trained, with an evaluation beside it."""
    torch.manual_seed(0)
    model = resnest_seg.build_segmenter("resnest14_tiny", "fcn", 10, output_stride=32).eval()
    model.label_space = LabelSpace.of("synthetic")
    path = tmp_path_factory.mktemp("runs") / "a run [1] ü"
    path.mkdir()
    model.to_checkpoint().save(path / "best.safetensors")
    report = resnest_seg.evaluate(
        model, Synthetic("val", size=(64, 64)), indices=range(2), checkpoint="best.safetensors"
    )
    report.save(path / "eval_synthetic_val_first2.json")
    return path


def test_the_accuracy_is_that_of_the_newest_evaluation_of_the_file(folder, tmp_path):
    report = resnest_seg.EvalReport.load(folder / "eval_synthetic_val_first2.json")
    score, of = stored(Subject(str(folder), config=False))
    assert score == pytest.approx(100 * report.scores["whole"].mean_iou)
    assert of == "synthetic val, whole, 2"
    assert stored(Subject(str(folder / "best.safetensors"), config=False)) == (score, of)
    load_checkpoint(folder).to_checkpoint().save(tmp_path / "other.safetensors")
    (tmp_path / "eval_x.json").write_bytes((folder / "eval_synthetic_val_first2.json").read_bytes())
    (tmp_path / "eval_y.json").write_text("{}")
    assert stored(Subject(str(tmp_path / "other.safetensors"), config=False)) == (None, "")
    assert stored(Subject("synthetic_fcn_resnest14_tiny", config=True)) == (None, "")


def test_eight_bits_have_no_accuracy_without_an_evaluation_of_theirs(folder):
    subject = Subject(str(folder), config=False)
    found = [Entry(subject, runtime, lambda: None, folder / "x.onnx") for runtime in ("torch", INT8, "OpenVINO")]
    known = stored(subject)
    assert accuracies(found, Namespace(dataset=None)) == [known, (None, ""), known]


def test_networks_of_configs_and_checkpoints_are_counted(folder, tool, tmp_path, capsys):
    output = tmp_path / "models.json"
    words = ["models", "--checkpoint", folder, "--config", "synthetic_fcn_resnest14_tiny", "--size", 64, 64,
             "--rounds", 2, "--json", output, "--runtimes", "torch", "--no-memory"]  # fmt: skip
    assert tool("benchmark_seg")(*words) == 0
    rows = json.loads(output.read_text())["measurements"]
    assert [each["pareto_front"] for each in rows] == [True, None]
    model = load_checkpoint(folder)
    used = sum(value.numel() for name, value in model.named_parameters() if not name.startswith("aux_head."))
    assert rows[0]["parameters_m"] == used / 1e6
    assert rows[1]["gmacs"] > 1.5 * rows[0]["gmacs"]  # output stride 8, not 32
    assert "front" in capsys.readouterr().out


@pytest.mark.slow
def test_eight_bits_are_evaluated_themselves(folder, tool, tmp_path):
    pytest.importorskip("onnxruntime")
    output = tmp_path / "models.json"
    words = ["models", "--checkpoint", folder, "--size", 72, 80, "--rounds", 2, "--json", output, "--runtimes", "torch",
             "onnxruntime", "int8", "--no-memory", "--dataset", "synthetic", "--limit", 2]  # fmt: skip
    assert tool("benchmark_seg")(*words) == 0
    rows = json.loads(output.read_text())["measurements"]
    assert [each["runtime"] for each in rows] == ["torch", "onnxruntime", "int8"]  # equal labels, also of odd sizes
    assert [each["evaluation"] for each in rows] == ["synthetic val, whole, 2"] * 3
    indices = range(2)
    expected = resnest_seg.evaluate(load_checkpoint(folder), Synthetic("val"), indices=indices).mean_iou("whole")
    assert rows[0]["mean_iou"] == pytest.approx(100 * expected)
    assert rows[0]["mean_iou"] == rows[1]["mean_iou"] != rows[2]["mean_iou"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "this benchmark needs --checkpoint RUN"),
        (("--config", "no_such"), "no_such"),
        (("--checkpoint", "no_such"), "no checkpoint no_such"),
        (("--config", "imagenet_classifier_resnest50"), "unknown key"),
        (("--config", "synthetic_fcn_resnest14_tiny", "--runtimes", "onxruntime"), "Did you mean 'onnxruntime'"),
        (("--config", "synthetic_fcn_resnest14_tiny", "--size", "16", "64"), "--size must be at least 32 32"),
        (("--config", "synthetic_fcn_resnest14_tiny", "--threads", "0"), "--threads must be at least 1, not 0"),
        (("--config", "synthetic_fcn_resnest14_tiny", "--device", "gpu"), "unknown --device 'gpu'"),
    ],
)
def test_what_cannot_be_measured_is_refused(words, says, tool, capsys):
    assert tool("benchmark_seg")("models", *words) == 2
    error = capsys.readouterr().err
    assert says in error
    assert "Traceback" not in error


def page_rows(page):
    """Name -> figures of docs/small_models.md."""
    return {name: figures.split(" | ") for name, figures in re.findall(r"^\| `(\S+)` \| (.*) \|$", page, re.M)}


def test_the_page_of_small_models_and_the_headers_of_their_configs_say_the_same():
    page = (PROJECT / "docs" / "small_models.md").read_text(encoding="utf-8")
    (where,) = re.findall(r"^Measured on: (.*)\.$", page, re.M)
    rows = page_rows(page)
    assert list(rows) == runpy.run_path(str(PROJECT / "docs" / "small_models.py"))["small_models"]()
    for name, (parameters, gmacs, *speeds) in rows.items():
        header = (PROJECT / "configs" / f"{name}.yaml").read_text(encoding="utf-8").partition("model:")[0]
        header = " ".join(header.replace("#", " ").split())
        assert f"Size: {parameters} M parameters, {gmacs} GMAC" in header
        times, memory = speeds[:4], speeds[4:]
        assert "{} ms in torch, {} in onnxruntime, {} there in 8 bits, {} in OpenVINO".format(*times) in header
        assert "memory above the opened model {}, {}, {} and {} MiB ({})".format(*memory, where) in header


def test_one_command_writes_measurements_into_page_and_headers(tmp_path):
    for folder in ("docs", "configs"):
        shutil.copytree(PROJECT / folder, tmp_path / folder)
    script = runpy.run_path(str(tmp_path / "docs" / "small_models.py"))
    names = script["small_models"]()
    rows = [{"name": name, "runtime": runtime, "milliseconds": 10 * place + 0.4, "peak_mebibytes": 7.0,
             "parameters_m": 1.234, "gmacs": 5.678} for name in names
            for place, runtime in enumerate(("torch", "onnxruntime", "int8"))]  # fmt: skip
    (tmp_path / "x.json").write_text(json.dumps({"measurements": rows}))
    for _ in range(2):  # the second time replaces the first
        script["main"](str(tmp_path / "x.json"), "an abacus")
    found = page_rows((tmp_path / "docs" / "small_models.md").read_text(encoding="utf-8"))
    assert found == {name: ["1.23", "5.68", "0", "10", "20", "-", "7", "7", "7", "-"] for name in names}
    header = (tmp_path / "configs" / f"{names[0]}.yaml").read_text(encoding="utf-8")
    assert header.count("# Speed:      0 ms in torch, 10 in onnxruntime, 20 there in 8 bits, - in OpenVINO;") == 1
    assert "(an abacus)" in header
    assert all(len(line) <= 120 for line in header.splitlines())
