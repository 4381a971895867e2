"""Checkpoints side by side: which of them are worth having, and whose accuracy a row shows."""

import argparse
import json
import re
import runpy
import shutil
from argparse import Namespace

import numpy as np
import pytest
import torch
from conftest import PROJECT
from hypothesis import given, settings
from hypothesis import strategies as st

import resnest_seg
from resnest_seg.cli.benchmark import export, infer, parse
from resnest_seg.cli.benchmark.export import exported, padded
from resnest_seg.cli.benchmark.models import (
    INT8,
    Entry,
    Subject,
    accuracies,
    check,
    entries,
    in_torch,
    marked,
    pareto,
    photos,
    stored,
)
from resnest_seg.cli.parsing.options import DATASET_OPTIONS, add_dataset
from resnest_seg.config import RunConfig
from resnest_seg.data.synthetic import Synthetic
from resnest_seg.errors import ConfigError
from resnest_seg.labels import LabelSpace
from resnest_seg.models.loading import load_checkpoint, segmenter_for


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


def of_bands(folder):
    """A model of four bands of 16 bits, whose values 8 bits cannot hold; returns its file."""
    torch.manual_seed(0)
    data = {"bands": [1, 2, 3, 4], "pixel_mean": [900.0, 800.0, 700.0, 2500.0], "pixel_std": [100.0] * 4}
    model = {"encoder": "resnest14_tiny", "head": "fcn", "in_channels": 4, "output_stride": 32, "encoder_weights": None}
    space = LabelSpace.numbered(3)
    segmenter = segmenter_for(RunConfig.from_dict({"data": data, "model": model}), space, pretrained=False)
    segmenter.eval().to_checkpoint().save(folder / "bands.safetensors")
    return folder / "bands.safetensors"


def options_of(*words):
    return parse(["models", *map(str, words)])


def test_files_of_bands_take_pixels_that_hold_them(tmp_path, monkeypatch):
    written, model = [], load_checkpoint(of_bands(tmp_path))
    monkeypatch.setattr("resnest_seg.export.onnx.write_onnx", lambda model, info, path, _: written.append(info))
    exported(model, ["onnxruntime"], tmp_path, calibration=[])
    assert [info.pixels for info in written] == ["float32"]


def test_photos_are_in_the_units_of_the_bands_and_grow_by_their_means(tmp_path):
    """As the model in torch takes and pads them, so that a file that gets them gives the same labels."""
    model = load_checkpoint(of_bands(tmp_path))
    (image,) = photos(model, (64, 70), 1)
    scene = Synthetic("train", size=(64, 70))[0].image.astype(float)
    means = np.array(model.config.data.pixel_mean)
    np.testing.assert_allclose((image - means) / 100, (scene[..., [0, 1, 2, 0]] - 115) / 58, atol=1e-4)
    (grown,) = padded([image], model)
    assert grown.shape == (64, 96, 4)
    np.testing.assert_array_equal(grown[:, :70], image)
    assert (grown[:, 70:] == means).all()
    assert in_torch(model, [image], options_of("--device", "cpu"))().shape == (1, 64, 70)


def test_a_runtime_that_a_model_cannot_have_is_left_out(folder, monkeypatch, capsys):
    def refuse(*arguments, **options):
        raise ConfigError("no such file")

    monkeypatch.setattr("resnest_seg.cli.benchmark.models.exported", refuse)
    options = options_of("--checkpoint", folder, "--runtimes", "torch", "onnxruntime", "--size", 64, 64)
    found = list(entries(Subject(str(folder), config=False), options, folder))
    assert [entry.runtime for entry in found] == ["torch"]
    assert "is not measured in onnxruntime: no such file" in capsys.readouterr().err


def test_what_is_said_of_a_data_set_needs_one(folder):
    """Else the accuracies would be those of other evaluations than asked for."""
    for key, option in (DATASET_OPTIONS | {"limit": "--limit"}).items():
        options = options_of("--checkpoint", folder, "--runtimes", "torch")
        check(options)
        setattr(options, key, 1)
        with pytest.raises(ConfigError, match=f"^{option} is for the evaluation of --dataset"):
            check(options)
    known = {key for key, value in vars(options_of()).items() if value is None}
    assert set(DATASET_OPTIONS) <= known
    added = argparse.ArgumentParser()
    add_dataset(added, default="none")
    assert {action.dest: action.option_strings[0] for action in added._actions[2:]} == DATASET_OPTIONS


def test_times_and_operations_are_those_of_one_image(folder, tool, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("resnest_seg.cli.benchmark.models.interleave", lambda calls, rounds: [[0.6] * 3 for _ in calls])
    found = []
    for batch in (1, 3):
        words = ["--checkpoint", folder, "--size", 64, 64, "--rounds", 2, "--json", tmp_path / "models.json"]
        words += ["--runtimes", "torch", "--no-memory", "--batch", batch]
        assert tool("benchmark_seg")("models", *words) == 0
        found += json.loads((tmp_path / "models.json").read_text())["measurements"]
    assert [row["milliseconds"] for row in found] == pytest.approx([600, 200])
    assert found[0]["gmacs"] == pytest.approx(found[1]["gmacs"])
    assert {"ms/image", "GMAC/image"} <= set(capsys.readouterr().out.split())


def test_a_batch_may_be_larger_than_the_number_of_scenes(monkeypatch):
    monkeypatch.setattr(Synthetic, "__len__", lambda self: 2)
    found = infer.photos(argparse.Namespace(size=(64, 64), batch=5))
    assert [np.array_equal(image, found[0]) for image in found] == [True, False, True, False, True]


@pytest.mark.parametrize("size", [(64, 70), (33, 64)])
def test_a_file_gets_photos_of_any_size_as_torch_does(size, monkeypatch):
    """A file that needs multiples of the stride gets them padded; the labels of the padding are not compared."""
    given = []

    def open_file(path, images, *, device):
        given.append(np.stack(images))
        labels = export.in_torch(options)["torch, eager"]()
        grown = ((0, 0), (0, images[0].shape[0] - size[0]), (0, images[0].shape[1] - size[1]))
        return lambda: np.pad(labels, grown, constant_values=255)

    monkeypatch.setattr(export, "exported", lambda *_, **__: {"onnxruntime": "x.onnx"})
    monkeypatch.setattr(export, "opened", open_file)
    words = ["--encoder", "resnest14_tiny", "--head", "fcn", "--rounds", "2", "--peers", "onnxruntime"]
    options = parse(["export", *words, "--size", *map(str, size)])
    assert [row["same_labels"] for row in export.run(options)] == [1, 1, 1]
    (images,) = given
    assert [side % 8 for side in images.shape[1:3]] == [0, 0]
    np.testing.assert_array_equal(images[:, : size[0], : size[1]], np.stack(export.photos(options)))


@pytest.mark.long
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
