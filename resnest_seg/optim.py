"""What is trained, by which optimiser and how fast: parameter groups, frozen stages, frozen statistics."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from resnest_seg.config import OptimConfig
from resnest_seg.errors import ConfigError, unknown_name
from resnest_seg.resnest import ResNeSt

STAGES = ("stem", "layer1", "layer2", "layer3", "layer4")
"""The parts of an encoder of ours, from the image on."""

FREEZABLE = (*STAGES, "encoder", "bn", "head_bn")
"""What `optim.freeze` can name."""

DECAYS: dict[str, Callable[[nn.Parameter], bool]] = {
    # name -> whether weight decay applies to a parameter; norms and biases have one dimension
    "all": lambda parameter: True,
    "weights": lambda parameter: parameter.ndim > 1,
}

BETA2 = 0.999
"""AdamW's second beta, everywhere in the field."""

Groups = list[dict[str, Any]]

OPTIMIZERS: dict[str, Callable[[Groups, OptimConfig], torch.optim.Optimizer]] = {
    "sgd": lambda groups, config: torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum),
    "adamw": lambda groups, config: torch.optim.AdamW(groups, lr=config.lr, betas=(config.momentum, BETA2)),
}


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """The optimiser of a config, over all parameters that require gradients.

    Parameters of one rate and one decay form a group; each group carries `lr_factor`, with which `set_lr` multiplies
    the schedule. In the simplest case there are two groups, what is named encoder.* and the rest, as the authors train.

    Args:
        model: With the names of a `Segmenter`, after `freeze`.
        config: Optimiser, factors and decay.

    Raises:
        ConfigError: Unknown optimiser or decay; everything is frozen; `layer_decay` for an encoder without our stages.
    """
    groups = parameter_groups(model, config)
    if config.optimizer not in OPTIMIZERS:
        raise unknown_name("optim.optimizer", config.optimizer, OPTIMIZERS)
    return OPTIMIZERS[config.optimizer](groups, config)


def parameter_groups(model: nn.Module, config: OptimConfig) -> Groups:
    """The trained parameters in the model's order, grouped by rate and decay; see `build_optimizer`."""
    if config.decay not in DECAYS:
        raise unknown_name("optim.decay", config.decay, DECAYS)
    if config.layer_decay != 1 and not isinstance(getattr(model, "encoder", None), ResNeSt):
        raise ConfigError("optim.layer_decay needs an encoder whose stages are known, one of ours: set it to 1.")
    decays = DECAYS[config.decay]
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decay = config.weight_decay if decays(parameter) else 0.0
            groups.setdefault((lr_factor(name, config), decay), []).append(parameter)
    if not groups:
        raise ConfigError(f"optim.freeze {config.freeze!r} leaves nothing to train.")
    return [
        {"params": parameters, "lr_factor": factor, "weight_decay": decay}
        for (factor, decay), parameters in groups.items()
    ]


def lr_factor(name: str, config: OptimConfig) -> float:
    """The rate of a parameter of a `Segmenter`, times that of the schedule.

    With a layer decay d: d for layer4, d ** 2 for layer3, ..., d ** 5 for the stem, and `head_lr_factor` for the heads.
    """
    if not name.startswith("encoder."):
        return config.head_lr_factor
    return float(config.layer_decay ** (len(STAGES) - STAGES.index(stage_of(name)))) if config.layer_decay != 1 else 1.0


def stage_of(name: str) -> str:
    """The stage that a parameter of an encoder of ours lies in, by its name in a `Segmenter`."""
    part = name.split(".")[1]
    return part if part in STAGES else "stem"


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every parameter group to `lr` times the group's own factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]


def frozen_names(config: OptimConfig) -> tuple[str, ...]:
    """What `optim.freeze` names, in the order of `FREEZABLE`.

    Raises:
        ConfigError: Unknown name.
    """
    names = [name.strip() for name in (config.freeze or "").split(",") if name.strip()]
    for name in names:
        if name not in FREEZABLE:
            raise unknown_name("part in optim.freeze", name, FREEZABLE)
    return tuple(name for name in FREEZABLE if name in names)


def freeze(model: nn.Module, config: OptimConfig) -> None:
    """Take the gradients from the parameters of the stages that `optim.freeze` names. Call it before `build_optimizer`.

    `hold_frozen` does the rest in every step.

    Raises:
        ConfigError: Unknown name, or a stage of an encoder that is not ours.
    """
    for part in _frozen_parts(model, frozen_names(config)):
        part.requires_grad_(False)


def hold_frozen(model: nn.Module, config: OptimConfig) -> None:
    """Put what is frozen into eval mode. Call it after every `model.train()`, which puts all of it into training mode.

    A frozen stage computes what it computes in an evaluation: fixed statistics, no DropBlock. Of "bn" and "head_bn",
    the norms of the encoder or the heads keep their statistics, while their weights and biases are trained.
    """
    names = frozen_names(config)
    for part in _frozen_parts(model, names):
        part.eval()
    for name, module in model.named_modules():
        kind = "bn" if name.startswith("encoder.") else "head_bn"
        if kind in names and isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def _frozen_parts(model: nn.Module, names: Iterable[str]) -> list[nn.Module]:
    """The modules of the frozen stages."""
    encoder, parts = model.get_submodule("encoder"), list[nn.Module]()
    for name in names:
        if name == "encoder":
            parts.append(encoder)
        elif name in STAGES:
            if not isinstance(encoder, ResNeSt):
                raise ConfigError(f"optim.freeze {name}: the stages of this encoder are not known. Use encoder or bn.")
            parts += [encoder.conv1, encoder.bn1] if name == "stem" else [encoder.get_submodule(name)]
    return parts
