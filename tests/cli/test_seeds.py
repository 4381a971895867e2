"""train --seed 0,1,2: one run per seed, each that of its seed alone."""

import numpy as np
import pytest
from conftest import TINY
from safetensors import safe_open

from resnest_seg.cli import train
from resnest_seg.errors import CheckpointError, ConfigError, run_tool
from resnest_seg.reports.run_table import read_run

SYNTHETIC = ("--dataset", "synthetic", *TINY, "--train.epochs=null", "--train.iterations=2", "--eval.sheet=0")
NAME = "runs/synthetic_fcn_resnest14_tiny"


def orders(*words):
    words = [*map(str, words)]
    return train.parse_seeds(words, train.seeds_in(words))


def folders(found):
    return [order.output for order in found]


@pytest.mark.parametrize(
    ("words", "seeds"),
    [
        (("--seed", "0,1,2"), [0, 1, 2]),
        (("--seed=3, 1,",), [3, 1]),
        (("--seed", "5"), []),
        (("--epochs", "5"), []),
    ],
)
def test_seeds_of_a_command_line(words, seeds):
    assert train.seeds_in(words) == seeds


@pytest.mark.parametrize(
    ("text", "says"),
    [("0,0", "--seed 0,0 names 0 twice"), ("0,x", "every value of --seed must be a whole number, not 'x'"),
     ("1,-1", "every value of --seed must be a whole number from 0")],
)  # fmt: skip
def test_wrong_seeds_are_named(text, says):
    with pytest.raises(ConfigError, match=says):
        train.seeds_in(["--seed", text])


def test_the_folders_of_seeds(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fresh = orders(*SYNTHETIC, "--seed", "0,4")
    assert folders(fresh) == [f"{NAME}_seed0", f"{NAME}_seed4"]
    assert [order.config.seed for order in fresh] == [0, 4]
    assert [order.config for order in fresh] == [train.parse([*SYNTHETIC, f"--seed={seed}"]).config for seed in (0, 4)]
    (tmp_path / f"{NAME}_seed4").mkdir(parents=True)
    assert folders(orders(*SYNTHETIC, "--seed=0,4")) == [f"{NAME}-2_seed0", f"{NAME}-2_seed4"]
    assert folders(orders(*SYNTHETIC, "--seed=0,4", "--resume", "auto")) == [f"{NAME}_seed0", f"{NAME}_seed4"]
    named = orders(*SYNTHETIC, "--seed=0,1", "--output", "my run [1]")
    assert folders(named) == [order.config.output for order in named] == ["my run [1]_seed0", "my run [1]_seed1"]


def test_resuming_needs_a_folder_and_says_which(tmp_path, monkeypatch, tool, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="x_seed1 is not a run folder that can be resumed"):
        orders("--resume", "x", "--seed", "1,2")
    (tmp_path / "x_seed1").mkdir()
    assert tool("train_seg")("--resume", "x") == 2
    assert "For x_seed1 and its fellows, give their --seed 0,1,2 as well." in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(
        ConfigError, match="With torchrun, start one seed at a time: --seed 1 --output NAME_seed1, then"
    ):
        orders(*SYNTHETIC, "--seed", "1,2")


@pytest.mark.slow
def test_each_seed_gives_the_bits_of_its_run_alone_and_all_are_resumed_together(tool, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    learn = tool("train_seg")
    assert learn(*SYNTHETIC, "--seed", "0", "--output", "mine_seed0") == 0  # as if stopped before the second
    assert learn(*SYNTHETIC, "--seed", "1", "--output", "alone") == 0
    before = (tmp_path / "mine_seed0" / "machine.jsonl").read_bytes()
    capsys.readouterr()
    assert learn("--resume", "mine", "--seed", "0,1") == 0
    out = capsys.readouterr().out
    assert "seed 0 of 0,1: mine_seed0 is finished" in out
    assert (tmp_path / "mine_seed0" / "machine.jsonl").read_bytes() == before
    for name in ("last", "best"):
        files = [safe_open(f"{run}/{name}.safetensors", "numpy") for run in ("mine_seed1", "alone")]
        assert set(files[0].keys()) == set(files[1].keys())
        assert all(np.array_equal(*(file.get_tensor(key) for file in files)) for key in files[0].keys())  # noqa: SIM118
    assert (tmp_path / "mine_seed1" / "metrics.jsonl").read_bytes() == (
        tmp_path / "alone" / "metrics.jsonl"
    ).read_bytes()
    scores = [100 * read_run(f"mine_seed{seed}").score for seed in (0, 1)]
    assert f"{np.mean(scores):.2f} +- {np.std(scores, ddof=1):.2f}" in out
    assert learn(*SYNTHETIC, "--seed", "2,1", "--output", "mine") == 2  # before seed 2 is trained
    assert "mine_seed1 already exists" in capsys.readouterr().err
    assert not (tmp_path / "mine_seed2").exists()


def test_the_first_run_that_stops_ends_all(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    trained = []
    monkeypatch.setattr(train, "train", lambda order, parts, again: trained.append((order.output, again)) or 130)
    assert run_tool(lambda: train.main([*SYNTHETIC, "--seed", "0,1"])) == 130
    assert [output for output, _ in trained] == [f"{NAME}_seed0"]
    assert trained[0][1].endswith(f"--resume {NAME} --seed 0,1")
