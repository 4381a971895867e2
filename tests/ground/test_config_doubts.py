"""Keys that have no effect: each is told in the combination that does not read it, and in no other."""

import dataclasses
from pathlib import Path

import pytest

from resnest_seg.config import ModelConfig, PretrainConfig, RunConfig
from resnest_seg.config_doubts import unread_keys, without_effect
from resnest_seg.config_reading import load_config

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))

IDLE = [
    ({"optim.schedule": "cosine"}, {"optim.power": 2.0}, "it is for optim.schedule poly, and that is cosine"),
    ({"model.encoder": "smp:resnet18"}, {"model.dilation": "mmseg"}, "encoder smp:resnet18 has a dilation of its own"),
    ({}, {"data.window_overlap": 8}, "data.window is not set"),
    ({"train.loss": "focal"}, {"train.ohem_threshold": 0.5}, "it is for ohem, and train.loss is focal"),
    ({}, {"train.ohem_min_kept": 5}, "it is for ohem, and train.loss is cross_entropy"),
    ({"model.aux_head": False}, {"train.aux_weight": 0.4}, "the network has no auxiliary head, see model.aux_head"),
    ({"train.unlabelled": "photos", "semi.method": "fixmatch"}, {"semi.feature_dropout": 0.1}, "it is for unimatch"),
    ({"distill.teacher": "a"}, {"distill.cwd_weight": 1.0}, "it is for cwd, and distill.method is kl"),
    ({"distill.teacher": "a", "distill.method": "cwd"}, {"distill.kl_weight": 2.0}, "it is for kl, and distill.method"),
]
"""A combination, what nothing reads in it, and why."""

USED = [
    {"optim.power": 2.0},
    {"model.dilation": "mmseg"},
    {"data.window_overlap": 8, "data.window": 64},
    {"train.ohem_threshold": 0.5, "train.ohem_min_kept": 5, "train.loss": "dice+ohem"},
    {"train.aux_weight": 0.4},
    {"train.unlabelled": "photos", "semi.feature_dropout": 0.1},
    {"distill.teacher": "a", "distill.cwd_weight": 1.0, "distill.kl_weight": 2.0, "distill.method": "both"},
    {"distill.teacher": "a", "distill.cwd_weight": 0.0},  # which says the same as the method
]


@pytest.mark.parametrize(("combination", "idle", "why"), IDLE, ids=lambda value: str(value)[:40])
def test_a_key_that_nothing_reads_is_told_if_it_was_set(combination, idle, why):
    assert without_effect(RunConfig.from_dict(combination)) == []
    (said,) = without_effect(RunConfig.from_dict(combination | idle))
    ((key, value),) = idle.items()
    assert said.startswith(f"{key} {value} has no effect: {why}")
    assert said.endswith(".")


@pytest.mark.parametrize("values", USED, ids=str)
def test_keys_that_are_read_are_not_told(values):
    assert without_effect(RunConfig.from_dict(values)) == []


@pytest.mark.parametrize(
    ("freeze", "told"), [("head_bn", True), ("layer1,head_bn", True), ("bn,head_bn", False), ("bn", False)]
)
def test_a_classifier_has_no_norm_in_its_head(freeze, told):
    """But with those of the encoder, it is what allows batches of one image."""
    config = PretrainConfig()
    config = dataclasses.replace(config, optim=dataclasses.replace(config.optim, freeze=freeze))
    said = ["optim.freeze head_bn has no effect: the head of a classifier has no batch norm."]
    assert without_effect(config) == said * told
    optim = dataclasses.replace(config.optim, freeze=None, schedule="cosine", power=2.0)
    assert len(without_effect(dataclasses.replace(config, optim=optim))) == 1


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_all_that_a_shipped_config_sets_has_an_effect(path):
    kind = PretrainConfig if "_classifier_" in path.stem else RunConfig
    assert without_effect(load_config(path, kind)) == []


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({}, ""),
        ({"encoder": "resnest14", "weights": "a.pth", "task": "binary", "in_channels": 4, "head": "fcn"}, ""),
        (
            {"encoder": "resnest101", "encoder_weights": "imagenet"},
            "encoder resnest101, model.encoder_weights imagenet",
        ),
        ({"checkpointing": True}, "checkpointing True"),
    ],
)
def test_keys_of_the_network_that_a_network_of_ones_own_does_not_follow_are_told(asked, told):
    said = unread_keys(ModelConfig(**asked), ModelConfig("resnest14", "custom", output_stride=16))
    assert said == [f"model.{told} in the config has no effect, because the network is your own: set it where you "
                    "build that."] * bool(told)  # fmt: skip
