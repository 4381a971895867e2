"""How cost grows: the benchmark's series at small sizes, and the model on paper beside calculations by hand."""

import argparse
import dataclasses
import importlib.util
import itertools
import json
import re
import sys

import numpy as np
import pytest
import torch
from conftest import PROJECT

from resnest_seg.cli import predict, train
from resnest_seg.cli.benchmark import bulk, scale
from resnest_seg.cli.datasets import pack
from resnest_seg.errors import ConfigError
from resnest_seg.storage.tar_shards import ROW, SampleTable, Texts


@pytest.fixture(scope="module")
def model():
    """The script docs/scale_model.py."""
    spec = importlib.util.spec_from_file_location("scale_model", PROJECT / "docs" / "scale_model.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["scale_model"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["scale_model"]


def test_the_tables_of_the_page_are_those_of_the_model(model):
    page = model.PAGE.read_text(encoding="utf-8")
    assert model.written(page) == page, "python docs/scale_model.py --write"
    assert len(page.splitlines()) <= 250
    changed = page.replace("| 1,000 ", "| 1,001 ")
    assert changed != page
    assert model.written(changed) == page


def test_the_commands_of_the_page_have_options_that_there_are(model, capsys):
    """Of predict, train and pack, by their help."""
    for parse, word in ((predict.parse, "--help"), (train.parse, "--help-all"), (pack.parse, "--help")):
        with pytest.raises(SystemExit):
            parse([word])
    known = set(re.findall(r"--[\w.-]+\w", capsys.readouterr().out))
    page = model.PAGE.read_text(encoding="utf-8")
    ours = [line for line in page.splitlines() if re.match(r"resnest-seg (predict|train|pack) ", line)]
    assert len(ours) >= 5
    assert set(re.findall(r"(?<= )--[\w.-]+\w", " ".join(ours))) - known == set()


def by_hand(model, **changed):
    measured = model.Measured(
        decode_pixel=1e-6, encode_pixel=2e-6, disk_file=0.004, job_photo=0.001, list_file=0.001, list_bytes=1000
    )
    scene = model.Scene("x", 1000, 10_000, 1_000, 0.002, cores=2)
    return dataclasses.replace(scene, **changed), measured


def test_the_rate_is_that_of_processes_taking_turns(model):
    """1 + 2 (network) + 2 + 4 + 1 = 10 ms; k processes do k in that time, until the network or the cores are full."""
    for processes, rate in ((1, 100), (4, 400), (6, 500), (100, 500)):  # the network does 500 a second
        scene, measured = by_hand(model, processes=processes)
        assert model.rate(scene, measured) == pytest.approx(rate)
    scene, measured = by_hand(model, processes=100, network=0.0001)  # 2 cores do 1 / (1 + 2 + 1) ms each
    assert model.rate(scene, measured) == pytest.approx(500)
    assert model.bottleneck(by_hand(model)[0], measured) == "waiting for the disk"
    assert model.bottleneck(by_hand(model, processes=6)[0], measured) == "network"
    assert model.bottleneck(by_hand(model, network=0.005)[0], measured) == "network"


def test_a_bill_is_the_sum_of_its_parts(model):
    scene, measured = by_hand(model)
    prices = model.Prices(gpu_hour=36, list_million=1e6, put_million=2e6, get_million=3e6, outside_gigabyte=5)
    made = model.bill(scene, 6400, 4, rows=100, listings=3, measured=measured, prices=prices)
    seconds = 6400 / (100 * 4)
    assert made.hours == pytest.approx(seconds / 3600)
    assert made.gpu_hours == pytest.approx(4 * seconds / 3600)
    assert (made.lists, made.gets, made.puts) == (3 * 7, 6400, 64 + 100)
    gpus, requests, traffic = (each * 6400 / 1e6 for each in made.units)
    assert gpus == pytest.approx(36 * 4 * seconds / 3600)
    assert requests == pytest.approx(21 * 1 + 6400 * 3 + 164 * 2)
    assert traffic == pytest.approx(6400 * 11_000 / 1e9 * 5)
    assert (made.list_hours, made.list_gigabytes) == (pytest.approx(6.4 / 3600), pytest.approx(0.0064))
    twice = model.bill(scene, 6400, 8, rows=100, listings=3, measured=measured, prices=prices)
    assert (twice.hours, twice.units) == (pytest.approx(made.hours / 2), pytest.approx(made.units))


def test_the_memory_of_an_index_is_that_of_its_arrays(model):
    names = Texts.of([f"images/train/{index:012d}.jpg" for index in range(100)])
    table = SampleTable(np.zeros(100, ROW), names, Texts.of([]))
    assert (table.rows.nbytes + names.data.nbytes + names.ends.nbytes) / 100 == model.MEASURED.index_memory


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.0660, "0.0660"), (1.9, "1.90"), (37.2, "37.2"), (999.6, "1,000"), (7466.7, "7,470")],
)
def test_numbers_are_shown_with_three_digits(model, value, text):
    assert model.shown(value) == text


def test_the_exponent_is_the_slope_of_logarithms():
    work, random = np.array([10, 100, 1000, 5000]), np.random.default_rng(0)
    for power in (0, 0.5, 1, 2):
        cost = work**power * random.uniform(0.9, 1.1, 4)
        assert bulk.exponent(list(work), list(cost)) == pytest.approx(np.polyfit(np.log(work), np.log(cost), 1)[0])
    assert bulk.series("x", (5,), (1.0,))[0]["exponent"] is None
    rows = bulk.series("x", (1, 10, 100), (0.001, 5, 50), least=1)  # the first is lost in what varies
    assert [row["exponent"] for row in rows] == [pytest.approx(1)] * 3
    assert bulk.series("x", (1, 10), (0.001, 5), least=1)[0]["exponent"] is None


def test_a_series_of_one_is_valid_json(tool, tmp_path, monkeypatch, capsys):
    """It has no exponent, which is null: NaN is not JSON. What fails beside it costs no figures."""

    def failing(options):
        raise ConfigError("no room")

    monkeypatch.setitem(bulk.GROWING, "listing", lambda options: bulk.series("x", (5,), (1.0,)))
    monkeypatch.setitem(bulk.GROWING, "files", failing)
    words = ["scale", "--rounds", 2, "--json", tmp_path / "scale.json", "--series", "files"]
    assert tool("benchmark_seg")(*words, "listing") == 0
    assert "series files is not measured: no room" in capsys.readouterr().err

    def refuse(word):
        raise ValueError(word)

    found = json.loads((tmp_path / "scale.json").read_text(), parse_constant=refuse)
    assert found["measurements"] == [{"name": "x", "work": 5, "cost": 1.0, "per_unit": 0.2, "exponent": None}]
    assert tool("benchmark_seg")(*words) == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith("no room")


def test_a_gpu_is_used_and_has_one_process(monkeypatch, capsys):
    """On a machine that says it has one GPU."""
    trained, opened = [], []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(scale, "training_speed", lambda processes, options: trained.append(processes) or 0.5)
    monkeypatch.setattr("resnest_seg.evaluation.evaluator.evaluate", lambda *_, **__: None)
    monkeypatch.setattr("resnest_seg.inference.torch_backend.TorchBackend", lambda model, run: opened.append(run))
    options = argparse.Namespace(device="cuda", precision="fp32", encoder="resnest14_tiny", head="fcn")
    assert [(row["work"], row["exponent"]) for row in scale.growing_training(options)] == [(1, None)]
    assert trained == [1]
    assert "this machine has 1 GPU: trainings of 1 process only" in capsys.readouterr().err
    scale.evaluation_peak(options, 2)
    assert [(run.device, run.precision) for run in opened] == [("cuda", "fp32")]


@pytest.mark.slow
def test_growing_series_count_what_they_say(tool, tmp_path):
    """Not the times: those are for people. An index has its bytes a sample, a list its items; samples are equal."""
    words = ["scale", "--series", "listing", "index", "shards", "files", "--files", 20, 80, "--samples", 500, 5000,
             "--pairs", 4, 8, "--sides", 64, 128, "--rounds", 2, "--json", tmp_path / "scale.json"]  # fmt: skip
    assert tool("benchmark_seg")(*words) == 0
    rows = json.loads((tmp_path / "scale.json").read_text())["measurements"]
    names = [name for name, _ in itertools.groupby(row["name"] for row in rows)]
    assert len(rows) == 2 * len(names)
    assert all(row["cost"] > 0 for row in rows)
    index = [row for row in rows if row["name"] == "bytes of an index by samples"]
    assert all(15 < row["per_unit"] < 30 for row in index)
    assert index[0]["exponent"] == pytest.approx(1, abs=0.1)


@pytest.mark.long
@pytest.mark.slow
def test_a_job_is_measured_beside_its_start(tmp_path, monkeypatch, capsys):
    """One photo by a real command; then both engines with costs that are known: 5 s and 0.1 s a photo."""
    real, asked = bulk._job, []

    def job(folder, count, engine, device):
        if not asked:
            seconds, mebibytes = real(folder, count, "plain", device)
            assert seconds > 0.5
            assert mebibytes > 20
            assert len(list((folder / "plain1").glob("**/*_labels.png"))) == 1
        asked.append((engine, count))
        assert len(list((folder / str(count)).glob("*.jpg"))) == count
        return (5 if engine == "plain" else 20) + 0.1 * count, 100.0

    monkeypatch.setattr(bulk, "_job", job)
    monkeypatch.setattr(bulk.importlib.util, "find_spec", lambda name: name)
    options = argparse.Namespace(photos=(7, 14), engines=("plain", "ray"), device="cpu")
    rows = list(bulk.growing_jobs(options))
    assert asked == [(engine, count) for engine in ("plain", "ray") for count in (1, 1, 7, 14)]
    costs = {(row["name"], row["work"]): row["cost"] for row in rows}
    assert costs["ray: seconds of the start-up", 1] == pytest.approx(20.1)
    assert costs["plain: seconds by photos, without it", 14] == pytest.approx(1.3)
    assert {row["exponent"] for row in rows if "MiB" in row["name"]} == {0}


@pytest.mark.slow
def test_a_job_that_fails_says_why(tmp_path):
    with pytest.raises(ConfigError, match=r"the job of 1 photos by plian failed: .*invalid choice: 'plian'"):
        bulk._job(tmp_path, 1, "plian", "cpu")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--photos", 0], "--photos must be from 1 to"),
        (["--samples", 10**9], "--samples must be from 1 to"),
        (["--engines", "spark"], "unknown --engines 'spark'"),
    ],
)
def test_what_cannot_be_measured_is_refused(tool, capsys, words, says):
    assert tool("benchmark_seg")("scale", "--series", "index", *words) == 2
    assert says in capsys.readouterr().err
