"""Configs: files, overrides, and mistakes in both."""

import dataclasses
from pathlib import Path

import pytest
import yaml

from resnest_seg.config import (
    ModelConfig,
    RunConfig,
    config_keys,
    flatten,
    load_run_config,
    run_config_from_dict,
    to_yaml,
)
from resnest_seg.errors import ConfigError

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_config_is_whole_and_says_what_it_is(path):
    text = path.read_text(encoding="utf-8")
    tree = yaml.safe_load(text)
    given = [f"{group}.{key}" if isinstance(values, dict) else group
             for group, values in tree.items() for key in (values if isinstance(values, dict) else [None])]  # fmt: skip
    assert given == config_keys()
    config = load_run_config(path)
    assert path.stem == f"{config.data.dataset}_{config.model.head}_{config.model.encoder}"
    header = [line for line in text.splitlines() if line.startswith("#")]
    for word in ("What for:", "Expect:", "Takes:", "Command:"):
        assert any(word in line for line in header), f"{path.name} has no line {word}"


def test_a_config_survives_the_way_through_its_file(tmp_path):
    config = RunConfig(model=ModelConfig(encoder="resnest14", aux_head=False), seed=7, output="runs/x")
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert load_run_config(tmp_path / "config.yaml") == config
    assert run_config_from_dict(dataclasses.asdict(config)) == config
    assert list(flatten(config)) == config_keys()


def test_overrides_win_over_the_file_and_the_file_over_the_defaults(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("optim: {lr: 0.5, power: 2}\ndata:\n  dataset: camvid\n")
    config = load_run_config(path, overrides=["--optim.lr", "0.25", "--eval.limit=3", "--model.aux_head=false"])
    assert (config.optim.lr, config.optim.power, config.data.dataset) == (0.25, 2, "camvid")
    assert (config.eval.limit, config.model.aux_head, config.optim.momentum) == (3, False, 0.9)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("optim:\n  lrr: 1", "unknown key in {path}: 'optim.lrr'. Did you mean 'optim.lr'?"),
        ("optims:\n  lr: 1", "unknown key in {path}: 'optims'."),
        ("optim:\n  lr: fast", 'Parser key "optim.lr"'),
        ("train:\n  epochs: 2.5", 'Parser key "train.epochs"'),
        ("train:\n  epochs: 0", "train.epochs must be greater than 0, not 0"),
        ("data:\n  flip: 1.5", "data.flip must lie in 0..1"),
        ("data:\n  scale_min: 3", "data.scale_max (2.0) is below data.scale_min (3.0)"),
        ("model:\n  output_stride: 7", "model.output_stride must be 8, 16 or 32, not 7"),
        ("optim:\n  lr: .inf", "optim.lr must be a finite number, not inf"),
        ("seed: 99999999999999999999999", "seed must be below 2 ** 63"),
        ("model:", "model in {path} must be a mapping of its keys, not None"),
        ("eval:\n  limit: 0", "eval.limit must be at least 1 or null"),
        ("train:\n  loss: cross_entropi", "unknown loss in train.loss: 'cross_entropi'. Did you mean 'cross_entropy'?"),
        ("train:\n  loss: dice+", "unknown loss in train.loss: ''"),
        ("train:\n  loss: dice+dice", "train.loss names dice twice"),
        ("train:\n  class_weights: frequency", "Did you mean 'median_frequency'?"),
        ("train:\n  label_smoothing: 1.5", "train.label_smoothing must lie in 0..1"),
        ("train:\n  ohem_threshold: -1", "train.ohem_threshold must lie in 0..1"),
        ("train:\n  ohem_min_kept: -1", "train.ohem_min_kept must not be negative"),
        ("train: {loss: dice, label_smoothing: 0.1}", "train.label_smoothing belongs to cross_entropy and ohem"),
        ("train: {loss: dice, class_weights: median_frequency}", "train.class_weights belongs to cross_entropy"),
        ("- a\n- b", "{path} must hold a mapping"),
        ("optim: [1, 2", "{path} is not valid YAML"),
    ],
)
def test_mistakes_in_a_file(tmp_path, text, says):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        load_run_config(path)
    assert says.format(path=path) in str(error.value)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--optim.lrr", "1"], "unknown option '--optim.lrr'. Did you mean '--optim.lr'?"),
        (["--optim.lr", "fast"], 'Parser key "optim.lr"'),
        (["--data.workers", "-1"], "data.workers must not be negative"),
        (["loose"], "loose"),
    ],
)
def test_mistakes_on_the_command_line(tmp_path, words, says):
    path = tmp_path / "run.yaml"
    path.write_text("seed: 1")
    with pytest.raises(ConfigError) as error:
        load_run_config(path, overrides=words)
    assert says in str(error.value)


def test_a_missing_file():
    with pytest.raises(ConfigError, match=r"no config file nowhere.yaml"):
        load_run_config("nowhere.yaml")


def test_configs_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        RunConfig().seed = 3
