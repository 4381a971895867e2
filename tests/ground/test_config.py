"""Configs: files, overrides, and mistakes in both."""

import dataclasses
import json
import math
import re
from pathlib import Path

import pytest
import yaml
from support import config_keys_file

from resnest_seg.config import (
    ModelConfig,
    OptimConfig,
    PretrainConfig,
    RunConfig,
    config_from_dict,
    config_keys,
    load_run_config,
)
from resnest_seg.config_reading import check_values, flatten, kinds_of, to_yaml
from resnest_seg.errors import ConfigError

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
CONFIGS = [path for path in CONFIGS if "_classifier_" not in path.stem]  # see test_pretraining.py


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_config_is_whole_and_says_what_it_is(path):
    text = path.read_text(encoding="utf-8")
    tree = yaml.safe_load(text)
    given = [f"{group}.{key}" if isinstance(values, dict) else group
             for group, values in tree.items() for key in (values if isinstance(values, dict) else [None])]  # fmt: skip
    assert given == config_keys()
    config = load_run_config(path)
    suffix = "_mmseg" if config.model.family == "mmseg" and config.model.head != "mask2former" else ""
    assert path.stem == f"{config.data.dataset}_{config.model.head}_{config.model.encoder}{suffix}".replace("smp:", "")
    header = [line for line in text.splitlines() if line.startswith("#")]
    for word in ("What for:", "Expect:", "Takes:", "Command:"):
        assert any(word in line for line in header), f"{path.name} has no line {word}"
    assert header[0].startswith(f"# {TITLES[config.model.head]} on ")
    commands = [line for line in header if f"resnest-seg train --config {path.stem}" in line]
    assert commands or path.stem in SHORT, f"{path.name} does not say how to train it"


TITLES = {"fcn": "FCN", "deeplabv3": "DeepLabV3", "pspnet": "PSPNet", "deeplabv3plus": "DeepLabV3+",
          "mask2former": "Mask2Former", "smp:deeplabv3plus": "DeepLabV3+", "smp:pan": "PAN",
          "smp:linknet": "LinkNet"}  # fmt: skip

SHORT = ("ade20k_deeplabv3_resnest50", "cityscapes_deeplabv3_resnest50", "camvid_deeplabv3_resnest50",
         "folder_deeplabv3_resnest50", "synthetic_fcn_resnest14_tiny")  # fmt: skip
"""Trained with --dataset NAME alone."""


@pytest.mark.long
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_network_of_a_shipped_config_can_be_built(path):
    """Without memory or weights; the names are those of the published file where there is one."""
    import torch

    from resnest_seg.models.loading import segmenter_for
    from resnest_seg.models.published_weights import PUBLISHED

    config = load_run_config(path)
    with torch.device("meta"):
        segmenter = segmenter_for(config, None, num_classes=NUM_CLASSES[config.data.dataset], pretrained=False)
    source = {"mmseg": "mmseg", "encoding": "encoding"}[config.model.family]
    network = (source, config.model.encoder, config.model.head, config.data.dataset)
    for entry in PUBLISHED:
        if (entry.source, entry.encoder, entry.head, entry.dataset) == network:
            millions = sum(parameter.numel() for parameter in segmenter.parameters()) / 1e6
            assert millions == pytest.approx(entry.millions, abs=0.01)


@pytest.mark.long
@pytest.mark.parametrize("path", [path for path in CONFIGS if "a small model" in path.read_text(encoding="utf-8")],
                         ids=lambda path: path.stem)  # fmt: skip
def test_the_size_of_a_small_model_is_what_its_config_says(path):
    """Multiply-adds of every convolution, counted by its definition while a photo without memory passes."""
    import torch

    from resnest_seg.models.loading import segmenter_for

    with torch.device("meta"):
        segmenter = segmenter_for(load_run_config(path), None, num_classes=11, pretrained=False).eval()
        counts = []

        def count(conv, images, output):
            places = (
                images[0] if isinstance(conv, torch.nn.ConvTranspose2d) else output
            )  # where the whole kernel is used
            counts.append(places[0, 0].numel() * conv.weight.numel())

        for module in segmenter.modules():
            if isinstance(module, torch.nn.Conv2d | torch.nn.ConvTranspose2d):
                module.register_forward_hook(count)
        segmenter(torch.zeros(1, 3, 360, 480))
    millions = sum(parameter.numel() for parameter in segmenter.parameters()) / 1e6
    assert millions < 10 or not segmenter.config.model.encoder.startswith("smp:")
    said = f"# Size:       {millions:.2f} M parameters, {sum(counts) / 1e9:.2f} GMAC for a photo of 360 x 480."
    assert said in path.read_text(encoding="utf-8"), said


NUM_CLASSES = {"ade20k": 150, "cityscapes": 19, "camvid": 11, "synthetic": 10, "folder": 2}

FIGURES = {
    # The published figures, as the sources print them: name -> single scale and several, or several and pixel accuracy
    "ade20k_fcn_resnest50": "42.94 mIoU and 80.18 pixel accuracy",
    "ade20k_deeplabv3_resnest50": "45.12 mIoU and 81.17 pixel accuracy",
    "ade20k_deeplabv3_resnest101": "46.91 mIoU and 82.07 pixel accuracy",
    "ade20k_deeplabv3_resnest200": "48.36 mIoU and 82.45 pixel accuracy",
    "ade20k_deeplabv3_resnest269": "47.60 mIoU and 82.62 pixel accuracy",
    "ade20k_fcn_resnest101_mmseg": "45.62 mIoU (single scale) and 46.16",
    "ade20k_pspnet_resnest101_mmseg": "45.44 mIoU (single scale) and 46.28",
    "ade20k_deeplabv3_resnest101_mmseg": "45.71 mIoU (single scale) and 46.59",
    "ade20k_deeplabv3plus_resnest101_mmseg": "46.47 mIoU (single scale) and 47.27",
    "cityscapes_fcn_resnest101_mmseg": "77.56 mIoU (single scale) and 78.98",
    "cityscapes_pspnet_resnest101_mmseg": "78.57 mIoU (single scale) and 79.19",
    "cityscapes_deeplabv3_resnest101_mmseg": "79.67 mIoU (single scale) and 80.51",
    "cityscapes_deeplabv3plus_resnest101_mmseg": "79.62 mIoU (single scale) and 80.27",
}

ENCODING = {"optim.optimizer": "sgd", "optim.momentum": 0.9, "optim.lr": 0.01, "optim.reference_batch": 16,
            "train.batch_size": 16, "optim.weight_decay": 1e-4, "optim.decay": "all", "optim.head_lr_factor": 10,
            "optim.schedule": "poly", "optim.power": 0.9, "optim.min_lr": 0, "optim.warmup": 0, "train.aux_weight": 0.2,
            "data.base_size": 520, "data.crop_size": 480, "data.recipe": "encoding", "data.flip": 0.5,
            "data.scale_min": 0.5, "data.scale_max": 2, "data.blur": 0, "train.sync_bn": True,
            "model.dilation": "encoding", "model.output_stride": 8, "model.encoder_weights": "imagenet"}  # fmt: skip
"""PyTorch-Encoding on ADE20K."""

MMSEG = ENCODING | {"optim.weight_decay": 5e-4, "optim.head_lr_factor": 1, "optim.min_lr": 1e-4,
                    "train.aux_weight": 0.4, "data.base_size": 512, "data.long_edge": 2048, "data.crop_size": 512,
                    "data.recipe": "mmseg", "train.epochs": None, "train.iterations": 160_000,
                    "model.dilation": "mmseg"}  # fmt: skip
"""mmsegmentation on ADE20K."""

CITYSCAPES = {"data.base_size": 1024, "data.crop_width": 1024, "train.iterations": 80_000, "train.batch_size": 8,
              "optim.reference_batch": 8}  # fmt: skip
"""What is different there on Cityscapes."""

MASK2FORMER = {"optim.optimizer": "adamw", "optim.lr": 1e-5, "optim.head_lr_factor": 10, "optim.weight_decay": 0.05,
               "optim.decay": "no_norms", "optim.clip_norm": 0.01, "optim.min_lr": 0, "model.output_stride": 32,
               "model.aux_head": False, "train.batch_size": 16, "optim.reference_batch": 16}  # fmt: skip
"""What is different in Mask2Former's recipe, on Cityscapes also 90,000 iterations."""

GLUON = {"data.base_size": 2048, "data.crop_size": 768, "train.batch_size": 16, "train.epochs": 240}
"""GluonCV on Cityscapes."""


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_recipes_are_the_published_ones(path):
    config, text = load_run_config(path), path.read_text(encoding="utf-8")
    header, flat = " ".join(text.partition("model:")[0].split()), flatten(config)
    if path.stem in FIGURES:
        assert f"the recipe behind {'the' if path.stem[-6:] != '_mmseg' else 'mmsegmentation'}" in header
        assert FIGURES[path.stem] in header
    else:
        assert "the recipe behind" not in header
    if config.data.dataset not in ("ade20k", "cityscapes"):
        return
    expected = MMSEG if config.model.family == "mmseg" else ENCODING
    if config.data.dataset == "cityscapes":
        expected = expected | (CITYSCAPES if config.model.family == "mmseg" else GLUON)
    elif config.model.family == "encoding":
        expected = expected | {"train.epochs": 180 if config.model.encoder in ("resnest101", "resnest200") else 120}
    if config.model.head == "mask2former":
        length = 90_000 if config.data.dataset == "cityscapes" else 160_000
        expected = expected | MASK2FORMER | {"train.iterations": length}
    assert {key: flat[key] for key in expected} == expected
    photos = {"ade20k": 20_210, "cityscapes": 2_975}[config.data.dataset]
    steps = config.train.iterations or config.train.epochs * (photos // config.train.batch_size)
    assert f"{steps:,} steps of {config.train.batch_size} images" in header


def test_there_is_a_recipe_for_every_published_pair():
    stems = {path.stem for path in CONFIGS}
    assert set(FIGURES) <= stems
    assert {f"ade20k_{head}_resnest{depth}" for head in ("fcn", "deeplabv3") for depth in (50, 101, 200, 269)} <= stems
    assert {f"cityscapes_deeplabv3_resnest{depth}" for depth in (50, 101)} <= stems


def test_a_config_survives_the_way_through_its_file(tmp_path):
    config = RunConfig(model=ModelConfig(encoder="resnest14", aux_head=False), seed=7, output="runs/x")
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert load_run_config(tmp_path / "config.yaml") == config
    assert config_from_dict(dataclasses.asdict(config)) == config
    assert list(flatten(config)) == config_keys()


def test_overrides_win_over_the_file_and_the_file_over_the_defaults(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("optim: {lr: 0.5, power: 2}\ndata:\n  dataset: camvid\n")
    config = load_run_config(path, overrides=["--optim.lr", "0.25", "--eval.limit=3", "--model.aux_head=false"])
    assert (config.optim.lr, config.optim.power, config.data.dataset) == (0.25, 2, "camvid")
    assert (config.eval.limit, config.model.aux_head, config.optim.momentum) == (3, False, 0.9)


LAUGHS = "train: {loss: [&a0 [x], " + ", ".join(f"&a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)) + "]}"
"""A list of 9 ** 29 letters."""


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("optim:\n  lrr: 1", "unknown key in {path}: 'optim.lrr'. Did you mean 'optim.lr'?"),
        (
            "train:\n  epochs: 120\n  iterations: 9",
            "exactly one of train.epochs (120) and train.iterations (9) must be",
        ),
        ("train:\n  epochs: null", "exactly one of train.epochs (None) and train.iterations (None)"),
        ("optim:\n  layer_decay: 0", "optim.layer_decay must be a number above 0 and at most 1, not 0"),
        ("optim:\n  min_lr: 1", "optim.min_lr (1.0) is above optim.lr (0.01)"),
        ("optim:\n  reference_batch: 0", "optim.reference_batch must be a whole number from 1 to 65536 or null, not 0"),
        ("optims:\n  lr: 1", "unknown key in {path}: 'optims.lr'. Did you mean 'optim.lr'?"),
        ("optim:\n  lr: fast", "optim.lr must be a number, not 'fast'."),
        ("optim:\n  lr: null", "optim.lr must be a number, not None."),
        ("train:\n  epochs: 2.5", "train.epochs must be a whole number, not 2.5."),
        ("train:\n  epochs: five", "train.epochs must be a whole number, not 'five'."),
        ("train:\n  epochs: '5'", "train.epochs must be a whole number, not '5'."),
        ("train:\n  epochs: yes", "train.epochs must be a whole number, not True."),
        ("train:\n  sync_bn: maybe", "train.sync_bn must be true or false, not 'maybe'."),
        ("output: 3", "output must be text, not 3."),
        ("optim.lr: 1\noptim: {lr: 1}", "{path} gives optim.lr twice, nested and dotted"),
        ("train:\n  epochs: 0", "train.epochs must be a whole number from 1 to 1000000000 or null, not 0"),
        ("data:\n  flip: 1.5", "data.flip must be a number from 0 to 1, not 1.5"),
        ("data:\n  scale_min: 3", "data.scale_max (2.0) is below data.scale_min (3.0)"),
        ("model:\n  output_stride: 7", "model.output_stride must be 8, 16 or 32, not 7"),
        ("optim:\n  lr: .inf", "optim.lr must be a number above 0 and at most 100, not inf"),
        ("seed: 99999999999999999999999", "seed must be a whole number from 0 to below 9223372036854775808, not 99"),
        ("model:", "model in {path} must be a mapping of its keys, not None"),
        ("eval:\n  limit: 0", "eval.limit must be a whole number from 1"),
        ("train:\n  loss: cross_entropi", "unknown loss in train.loss: 'cross_entropi'. Did you mean 'cross_entropy'?"),
        ("train:\n  loss: dice+", "unknown loss in train.loss: ''"),
        ("train:\n  loss: dice+dice", "train.loss names dice twice"),
        ("train:\n  class_weights: frequency", "Did you mean 'median_frequency'?"),
        ("train:\n  label_smoothing: 1.5", "train.label_smoothing must be a number from 0 to below 1, not 1.5"),
        ("train:\n  ohem_threshold: -1", "train.ohem_threshold must be a number from 0 to 1, not -1"),
        ("train:\n  ohem_min_kept: -1", "train.ohem_min_kept must be a whole number from 0"),
        ("train: {loss: dice, label_smoothing: 0.1}", "train.label_smoothing belongs to cross_entropy and ohem"),
        (
            "model: {task: binary}\ntrain: {loss: dice, class_weights: balanced}",
            "train.class_weights balanced belongs to cross_entropy and focal, and train.loss is dice",
        ),
        ("train: {loss: dice, class_weights: median_frequency}", "train.class_weights belongs to cross_entropy"),
        ("- a\n- b", "{path} must hold a mapping"),
        ("optim: [1, 2", "{path} is not valid YAML"),
        ("optim:\n  lr: 1\noptim:\n  power: 2", "duplicate key 'optim' on lines 1 and 3"),
        ("optim: {lr: 1, lr: 2}", "duplicate key 'lr' on lines 1 and 1"),
        ("data:\n  root: " + 9999 * "[", "{path} is not valid YAML: line 2 is nested more than 50 levels deep"),
        (LAUGHS, "train.loss in {path} must be one value, not a list"),
        ("optim: &a {lr: *a}", "optim.lr in {path} must be one value"),
        ("data:\n  crop_size: 1000000", "data.crop_size must be a whole number from 1 to 16384, not 1000000"),
        ("data:\n  color_jitter: 1e9", "data.color_jitter must be a number from 0 to 2, not 1000000000.0"),
        ("data:\n  root: ''", "data.root is empty: is a shell variable not set? Leave it out, or give null."),
        ('data:\n  root: "a\\0b"', "data.root holds a zero byte"),
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
        (["--optim.lr", "fast"], "optim.lr must be a number, not 'fast'."),
        (["--train.epochs", "five"], "train.epochs must be a whole number, not 'five'."),
        (["--train.epochs=5e1"], "train.epochs must be a whole number, not '5e1'."),
        (["--optim.lr", "null"], "optim.lr must be a number, not 'null'."),
        (["--train.sync_bn", "maybe"], "train.sync_bn must be true or false, not 'maybe'."),
        (["--data.root", ""], "data.root is empty: is a shell variable not set?"),
        (["--optim.lr"], "--optim.lr needs a value: a number above 0 and at most 100."),
        (["--optim.lr", "--seed", "1"], "--optim.lr needs a value"),
        (["--data.workers", "-1"], "data.workers must be a whole number from 0 to 256, not -1"),
        (["loose"], "loose"),
    ],
)
def test_mistakes_on_the_command_line(tmp_path, words, says):
    path = tmp_path / "run.yaml"
    path.write_text("seed: 1")
    with pytest.raises(ConfigError) as error:
        load_run_config(path, overrides=words)
    assert says in str(error.value)


NUMBERS = {key: kind for owner in (PretrainConfig, RunConfig) for key, kind in kinds_of(owner).items()
           if kind.type in (int, float) and not kind.listed and key != "data.nodata"}  # fmt: skip  # any value of files


def with_value(key, value):
    """A whole config with one value changed, as a checkpoint's metadata would bring it."""
    tree = dataclasses.asdict(PretrainConfig() if key.startswith("classify.") else RunConfig())
    group, _, name = key.rpartition(".")
    (tree[group] if group else tree)[name] = value
    kinds = kinds_of(PretrainConfig if key.startswith("classify.") else RunConfig)
    groups = {group: values for group, values in tree.items() if isinstance(values, dict)}
    check_values(
        {key: value for key, value in tree.items() if key not in groups}
        | {f"{group}.{name}": value for group, values in groups.items() for name, value in values.items()},
        kinds,
    )


@pytest.mark.parametrize("key", NUMBERS)
def test_no_number_is_without_bounds(key):
    for value in (math.nan, math.inf, -math.inf, 1e30, -1e30, -1, 10**30, "1", [1], True, "nan"):
        with pytest.raises(ConfigError) as error:
            with_value(key, value)
        assert str(error.value).startswith(f"{key} must be ")
        assert f"not {'a list' if isinstance(value, list) else repr(value)}." in str(error.value)


@pytest.mark.parametrize("key", [key for key, kind in kinds_of(RunConfig).items() if kind.type in (str, bool)])
def test_text_and_switches_are_of_their_type(key):
    for value in (3, 0.5, [], {1}, b"x"):
        with pytest.raises(ConfigError, match=f"^{re.escape(key)} must be "):
            with_value(key, value)
    if kinds_of(RunConfig)[key].type is str:
        for value in ("", "  ", "a\0b"):
            with pytest.raises(ConfigError, match=f"^{re.escape(key)} "):
                with_value(key, value)


def test_words_of_the_command_line_become_values_of_the_keys_types(tmp_path):
    (tmp_path / "run.yaml").write_text("optim: {weight_decay: 1e-3, min_lr: 0}\noptim.power: 2\n")
    words = ["--optim.lr=1e-3", "--train.epochs", "null", "--train.iterations=7", "--model.aux_head", "False",
             "--output", "3", "--data.root=null", "--seed=1", "--seed", "2", "--optim.freeze", "stem,bn"]  # fmt: skip
    config = load_run_config(tmp_path / "run.yaml", overrides=words)
    found = (config.optim.lr, config.train.epochs, config.train.iterations, config.model.aux_head, config.output)
    assert found == (0.001, None, 7, False, "3")
    assert (config.data.root, config.seed, config.optim.freeze) == (None, 2, "stem,bn")
    assert (config.optim.weight_decay, config.optim.min_lr, config.optim.power) == (0.001, 0.0, 2.0)
    kinds = kinds_of(RunConfig)
    for key, value in flatten(config).items():  # a float key holds a float, so that files of equal configs are equal
        assert type(value) in (kinds[key].type, type(None)), key


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_all_keys_as_options_turn_one_config_into_another(path):
    config = load_run_config(path)
    words = [f"--{key}={'null' if value is None else value}" for key, value in flatten(config).items()]
    assert load_run_config(CONFIGS[0], overrides=words) == config


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_nested_dictionaries_are_what_a_file_is(path):
    config, tree = load_run_config(path), yaml.safe_load(path.read_text(encoding="utf-8"))
    assert RunConfig.from_dict(tree) == config
    assert RunConfig.from_dict(config.to_dict()) == config
    assert RunConfig.from_dict(flatten(config)) == config
    assert config.to_dict() == tree


def test_a_partial_dictionary_keeps_the_other_defaults():
    assert RunConfig.from_dict({}) == RunConfig()
    config = RunConfig.from_dict({"model": {"encoder": "resnest14"}, "optim.lr": 1, "seed": 3})
    expected = RunConfig(model=ModelConfig(encoder="resnest14"), optim=OptimConfig(lr=1.0), seed=3)
    assert config == expected
    classifier = PretrainConfig.from_dict({"train": {"batch_size": 8}})  # whose epochs are not those of LoopConfig
    assert classifier.train == dataclasses.replace(PretrainConfig().train, batch_size=8)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"optim": {"lrr": 1}}, "unknown key in config: 'optim.lrr'. Did you mean 'optim.lr'?"),
        ({"modell": {"encoder": "x"}}, "Did you mean 'model.encoder'?"),
        ({5: 1}, "unknown key in config: '5'"),
        ({"epochs": 3}, "Did you mean 'train.epochs'?"),
        ({"train": {"epochs": "five"}}, "train.epochs must be a whole number, not 'five'."),
        ({"train": {"epochs": 5.0}}, "train.epochs must be a whole number, not 5.0."),
        ({"optim": {"lr": "0.1"}}, "optim.lr must be a number, not '0.1'."),
        ({"optim": {"lr": [0.1]}}, "optim.lr in config must be one value, not a list."),
        ({"optim": 0.1}, "optim in config must be a mapping of its keys, not 0.1."),
        ({"optim": {"lr": 1}, "optim.lr": 2}, "config gives optim.lr twice"),
        ({"classify": {"mixup": 0.1}}, "unknown key in config: 'classify.mixup'"),
        ([("seed", 1)], "a config is built from nested dictionaries, not from a list."),
    ],
)
def test_mistakes_in_a_dictionary(values, says):
    with pytest.raises(ConfigError) as error:
        RunConfig.from_dict(values)
    assert says in str(error.value)


def test_an_empty_group_of_an_unknown_name_is_rejected():
    with pytest.raises(ConfigError, match=r"'trian'\. Did you mean 'train"):
        RunConfig.from_dict({"trian": {}})
    assert RunConfig.from_dict({"train": {}}) == RunConfig()


def test_a_group_that_is_a_dictionary_is_told_of_from_dict():
    with pytest.raises(ConfigError, match=r"model must be a ModelConfig, not a dict. RunConfig.from_dict takes nested"):
        RunConfig(model={"encoder": "resnest14"})
    with pytest.raises(ConfigError, match=r"train must be a LoopConfig, not None. PretrainConfig.from_dict"):
        PretrainConfig(train=None)


def test_a_missing_file():
    with pytest.raises(ConfigError, match=r"no config file nowhere.yaml"):
        load_run_config("nowhere.yaml")


def test_configs_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        RunConfig().seed = 3


def test_keys_and_defaults_change_only_on_purpose():
    """`make golden` rewrites the file, whose difference a reader of the change then sees."""
    assert config_keys_file.FILE.read_text(encoding="utf-8") == config_keys_file.lines()


def test_lists_are_given_in_every_form(tmp_path):
    """YAML, the command line, nested dictionaries and JSON give equal configs, of tuples."""
    values = {"data": {"bands": [4, "NIR", 2], "pixel_mean": [1, 2.5, 1e-4], "pixel_std": [1, 1, 3], "nodata": -9999}}
    config = RunConfig.from_dict(values)
    assert config.data.bands == (4, "NIR", 2)
    assert config.data.pixel_mean == (1.0, 2.5, 1e-4)
    file = tmp_path / "run.yaml"
    file.write_text(
        "data:\n  bands: [4, NIR, 2]\n  pixel_mean: [1, 2.5, 1e-4]\n  pixel_std: [1, 1, 3]\n  nodata: -9999\n",
        encoding="utf-8",
    )
    assert load_run_config(file) == config
    assert RunConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    file.write_text(to_yaml(config), encoding="utf-8")
    assert load_run_config(file) == config
    for bands in ("4,NIR,2", "[4, NIR, 2]", "[4,'NIR',2]"):
        words = [
            "--data.bands",
            bands,
            "--data.pixel_mean=1,2.5,1e-4",
            "--data.pixel_std",
            "1,1,3",
            "--data.nodata=-9999",
        ]
        file.write_text("{}\n", encoding="utf-8")
        assert load_run_config(file, overrides=words) == config
    assert load_run_config(file, overrides=["--data.bands", "null"]).data.bands is None


@pytest.mark.parametrize("value", [3, "3", [], [[1]], [True], [1.5], [""], {"1": 2}, [0], [1, 1]])
def test_bands_that_make_no_sense_are_refused(value):
    with pytest.raises(ConfigError, match=r"data\.bands"):
        RunConfig.from_dict({"data": {"bands": value}})


@pytest.mark.parametrize(("given", "other"), [("epochs", "iterations"), ("iterations", "epochs")])
def test_a_source_that_gives_one_length_of_a_run_replaces_the_other(given, other, tmp_path):
    """On the command line over a file, in a file over the defaults, and in dictionaries."""
    path = tmp_path / "run.yaml"
    path.write_text(f"train:\n  {other}: 7\n")
    for config in (
        load_run_config(path, overrides=[f"--train.{given}", "3"]),
        RunConfig.from_dict({"train": {given: 3}}),
        RunConfig.from_dict({f"train.{given}": 3}),
    ):
        assert (getattr(config.train, given), getattr(config.train, other)) == (3, None)
    with pytest.raises(ConfigError, match="exactly one of"):
        load_run_config(path, overrides=["--train.epochs", "3", "--train.iterations", "5"])


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ("runs/large", ("runs/large",)),
        ("a.onnx,b ä", ("a.onnx", "b ä")),
        ("[a.onnx, b]", ("a.onnx", "b")),
        ("[old] run/best.pt", ("[old] run/best.pt",)),
        ("null", None),
    ],
)
def test_teachers_are_a_list_of_which_one_needs_no_brackets(given, names, tmp_path):
    config = load_run_config("synthetic_fcn_resnest14_tiny", overrides=["--distill.teacher", given])
    assert config.distill.teacher == names
    written = tmp_path / "config.yaml"
    written.write_text(to_yaml(config), encoding="utf-8")
    assert load_run_config(written) == config
    assert RunConfig.from_dict({"distill.teacher": "runs/large"}).distill.teacher == ("runs/large",)


@pytest.mark.parametrize(
    ("distill", "words"),
    [
        ({"method": "cwd"}, r"distill\.method is for a teacher, and distill\.teacher names none"),
        ({"teacher": "a", "method": "cdw"}, r"unknown distill\.method 'cdw'. Did you mean 'cwd'"),
        ({"teacher": "a", "precision": "int8"}, r"unknown distill\.precision 'int8'"),
        ({"teacher": ["a", "a"]}, r"distill\.teacher names a twice"),
        ({"teacher": "a", "kl_weight": 0}, r"distill\.kl_weight is 0, and distill\.method is kl"),
        ({"teacher": "a", "method": "both", "kl_weight": 0, "cwd_weight": 0}, "nothing would be taught"),
        ({"teacher": []}, "not an empty list"),
        ({"teacher": "a", "temperature": 0}, r"distill\.temperature must be .*not 0"),
    ],
)
def test_distillation_that_makes_no_sense_is_refused(distill, words):
    with pytest.raises(ConfigError, match=words):
        RunConfig.from_dict({"distill": distill})
