"""What a config says without any effect, in words. Such a config is valid: it is told, and not refused."""

from __future__ import annotations

import dataclasses

from resnest_seg.config import AnyConfig, ModelConfig, RunConfig, loss_names
from resnest_seg.config_reading import flatten

OF_ANY_NETWORK = ("weights", "task", "in_channels")
"""Keys of `model` that count for a network of the user's own, too."""


def without_effect(config: AnyConfig) -> list[str]:
    """Say which keys of a run have another value than their default, and are read by nothing that the run does.

    Args:
        config: The run; of a network of the user's own, `model` is what that network says of itself.

    Returns:
        A sentence for each.
    """
    values, defaults = flatten(config), flatten(type(config)())
    rules = {"optim.power": (config.optim.schedule == "cosine", "it is for optim.schedule poly, and that is cosine")}
    found: list[str] = []
    if isinstance(config, RunConfig):
        rules |= _of_segmentation(config)
    else:
        frozen = {name.strip() for name in (config.optim.freeze or "").split(",")}
        if "head_bn" in frozen and not frozen & {"bn", "encoder"}:  # with these, it allows batches of one image
            found = ["optim.freeze head_bn has no effect: the head of a classifier has no batch norm."]
    return found + [
        f"{key} {values[key]} has no effect: {why}."
        for key, (idle, why) in rules.items()
        if idle and values[key] != defaults[key]
    ]


def _of_segmentation(config: RunConfig) -> dict[str, tuple[bool, str]]:
    """Key -> whether nothing reads it, and why."""
    model, train, distill = config.model, config.train, config.distill
    no_ohem = ("ohem" not in loss_names(train.loss), f"it is for ohem, and train.loss is {train.loss}")
    method = f"and distill.method is {distill.method}"
    return {
        "model.dilation": (model.encoder.startswith("smp:"), f"encoder {model.encoder} has a dilation of its own"),
        "data.window_overlap": (config.data.window is None, "data.window is not set, so that whole images are read"),
        "train.ohem_threshold": no_ohem,
        "train.ohem_min_kept": no_ohem,
        "train.aux_weight": (
            not model.aux_head and model.head != "mask2former",  # which never has one, and whose configs copy it
            "the network has no auxiliary head, see model.aux_head",
        ),
        "semi.feature_dropout": (config.semi.method == "fixmatch", "it is for unimatch, and semi.method is fixmatch"),
        "distill.cwd_weight": (distill.method == "kl" and distill.cwd_weight > 0, f"it is for cwd, {method}"),
        "distill.kl_weight": (distill.method == "cwd" and distill.kl_weight > 0, f"it is for kl, {method}"),
    }


def unread_keys(asked: ModelConfig, built: ModelConfig) -> list[str]:
    """Say which keys of the network were set for one of the user's own, whose function alone decides them.

    Args:
        asked: `model` of the config.
        built: `model` of the network itself.

    Returns:
        A sentence, or none.
    """
    values, defaults, found = (dataclasses.asdict(each) for each in (asked, ModelConfig(), built))
    known = {*OF_ANY_NETWORK, "head", "family"}  # whoever brings a head does not expect that of the config
    keys = [key for key, value in values.items() if value not in (defaults[key], found[key]) and key not in known]
    said = ", ".join(f"model.{key} {values[key]}" for key in keys)
    said = f"{said} in the config has no effect, because the network is your own: set it where you build that."
    return [said] * bool(keys)
