"""The configuration of a classifier's run."""

import dataclasses
from pathlib import Path

import pytest
import yaml

from resnest_seg.config import PretrainConfig, RunConfig, config_from_dict, config_keys
from resnest_seg.config_reading import load_config, to_yaml
from resnest_seg.errors import ConfigError

CONFIG = Path(__file__).parents[2] / "configs" / "imagenet_classifier_resnest50.yaml"


def test_the_shipped_config_is_whole_and_the_authors_command():
    text = CONFIG.read_text(encoding="utf-8")
    tree = yaml.safe_load(text)
    given = [f"{group}.{key}" if isinstance(values, dict) else group
             for group, values in tree.items() for key in (values if isinstance(values, dict) else [None])]  # fmt: skip
    assert given == config_keys(PretrainConfig)
    config = load_config(CONFIG, PretrainConfig)
    assert CONFIG.stem == f"{config.data.dataset}_classifier_{config.model.encoder}"
    for word in ("What for:", "Expect:", "Takes:", "Command:", "81.03 top-1"):
        assert word in text.partition("model:")[0]
    # 64 GPUs, each with 128 images and lr 0.05, which is multiplied by the GPUs
    assert config.train.batch_size == 64 * 128
    assert config.optim.lr * config.train.batch_size / config.optim.reference_batch == pytest.approx(64 * 0.05)
    assert (config.train.epochs, config.optim.warmup, config.optim.schedule) == (270, 5, "cosine")
    assert (config.optim.decay, config.model.zero_gamma, config.data.crop_size) == ("weights", True, 224)
    assert (config.classify.label_smoothing, config.classify.augment) == (0.1, "auto")
    assert f"{1_281_167 // 8192 * 270:,} steps of 8192 images" in text


def test_it_survives_the_way_through_its_file_and_through_a_checkpoint(tmp_path):
    config = load_config(CONFIG, PretrainConfig, overrides=["--classify.mixup=0", "--optim.lr", "0.3"])
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert load_config(tmp_path / "config.yaml", PretrainConfig) == config
    assert (config.classify.mixup, config.optim.lr) == (0, 0.3)
    assert config_from_dict(dataclasses.asdict(config)) == config
    assert type(config_from_dict(dataclasses.asdict(RunConfig()))) is RunConfig


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--model.head", "fcn"], "unknown option '--model.head'"),
        (["--classify.augment", "rnad"], "unknown classify.augment 'rnad'. Did you mean 'rand'?"),
        (["--classify.mixup", "-1"], "classify.mixup must be a number from 0 to 100, not -1"),
        (["--classify.dropout", "1"], "classify.dropout must be a number from 0 to below 1, not 1"),
        (["--classify.area_min", "0"], "classify.area_min must be a number above 0 and at most 1"),
        (["--classify.cutmi", "1"], "unknown option '--classify.cutmi'. Did you mean '--classify.cutmix'?"),
        (["--optim.lr", "0"], "optim.lr must be a number above 0"),
    ],
)
def test_mistakes(words, says):
    with pytest.raises(ConfigError) as error:
        load_config(CONFIG, PretrainConfig, overrides=words)
    assert says in str(error.value)
