"""Optimisers: parameter groups, freezing, learning-rate schedules, and the moving average of the weights.

The learning rate is a pure function of the step, so a resumed run needs no scheduler state.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from resnest_seg.config import AnyConfig, LoopConfig, OptimConfig
from resnest_seg.errors import ConfigError, unknown_name
from resnest_seg.models.resnest import ResNeSt

M = TypeVar("M", bound=nn.Module)

STAGES = ("stem", "layer1", "layer2", "layer3", "layer4")
"""The stages of our encoders, from the input on."""

FREEZABLE = (*STAGES, "encoder", "bn", "head_bn")
"""Names that `optim.freeze` takes."""

NO_DECAY = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.Embedding)
"""Modules whose parameters have no weight decay where transformers are trained."""

DECAYS: dict[str, Callable[[nn.Module, nn.Parameter], bool]] = {
    # name -> True if weight decay applies to a module's parameter; norms and biases have one dimension
    "all": lambda module, parameter: True,
    "weights": lambda module, parameter: parameter.ndim > 1,
    "no_norms": lambda module, parameter: not isinstance(module, NO_DECAY),
}

BETA2 = 0.999
"""AdamW's second beta, the usual value."""

Groups = list[dict[str, Any]]

OPTIMIZERS: dict[str, Callable[[Groups, OptimConfig], torch.optim.Optimizer]] = {
    "sgd": lambda groups, config: torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum),
    "adamw": lambda groups, config: torch.optim.AdamW(groups, lr=config.lr, betas=(config.momentum, BETA2)),
}


OwnOptimizer = torch.optim.Optimizer | Callable[[Groups], torch.optim.Optimizer]
"""An optimiser of the user's own over the parameters of the model, or a function from parameter groups to one."""


def adopt_optimizer(
    model: nn.Module, config: OptimConfig, own: OwnOptimizer, *, factor: float = 1.0
) -> torch.optim.Optimizer:
    """Take an optimiser of the user's own in place of the config's; the config's schedule sets its rates.

    A function gets the groups of `parameter_groups`, which hold each group's `lr_factor` and `weight_decay`. The rates
    of an optimiser that exists already become the highest rates of its groups.

    Args:
        model: The model, after `freeze`.
        config: Rate, factors and decay.
        own: The optimiser or the function.
        factor: By which the schedule multiplies the config's rate for the batch, see `batch_factor`.

    Raises:
        ConfigError: It is no optimiser, or has other parameters than trained ones of the model.
    """
    optimizer = own if isinstance(own, torch.optim.Optimizer) else own(parameter_groups(model, config))
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ConfigError(f"optimizer must be or return a torch.optim.Optimizer, not a {type(optimizer).__name__}.")
    trained = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    for group in optimizer.param_groups:
        if any(id(parameter) not in trained for parameter in group["params"]):
            raise ConfigError("the optimiser has parameters that are frozen, or not the model's: build it over these.")
        group.setdefault("lr_factor", group["lr"] / (config.lr * factor))
    return optimizer


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Build the optimiser of a config over all parameters that require gradients.

    Parameters with equal rate and decay form a group; each group has an `lr_factor`, by which `set_lr` multiplies the
    scheduled rate. By default there are two groups, encoder.* and the rest, as in the authors' training.

    Args:
        model: A model with the parameter names of a `Segmenter`, after `freeze`.
        config: Optimiser, factors and decay.

    Raises:
        ConfigError: Unknown optimiser or decay; all parameters are frozen; `layer_decay` for an encoder that is not
            ours.
    """
    groups = parameter_groups(model, config)
    if config.optimizer not in OPTIMIZERS:
        raise unknown_name("optim.optimizer", config.optimizer, OPTIMIZERS)
    return OPTIMIZERS[config.optimizer](groups, config)


def parameter_groups(model: nn.Module, config: OptimConfig) -> Groups:
    """Group the trained parameters, in the model's order, by rate and decay; see `build_optimizer`."""
    if config.decay not in DECAYS:
        raise unknown_name("optim.decay", config.decay, DECAYS)
    if config.layer_decay != 1 and not isinstance(getattr(model, "encoder", None), ResNeSt):
        raise ConfigError("optim.layer_decay needs an encoder with known stages, one of ours: set it to 1.")
    decays = DECAYS[config.decay]
    owners = {id(parameter): module for module in model.modules() for parameter in module.parameters(recurse=False)}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decay = config.weight_decay if decays(owners[id(parameter)], parameter) else 0.0
            groups.setdefault((lr_factor(name, config), decay), []).append(parameter)
    if not groups:
        raise ConfigError(f"optim.freeze {config.freeze!r} leaves nothing to train.")
    return [
        {"params": parameters, "lr_factor": factor, "weight_decay": decay}
        for (factor, decay), parameters in groups.items()
    ]


def lr_factor(name: str, config: OptimConfig) -> float:
    """Return the factor of a parameter's learning rate relative to the schedule.

    With a layer decay d it is d for layer4, d ** 2 for layer3, ..., d ** 5 for the stem; `head_lr_factor` for heads.
    """
    if not name.startswith("encoder."):
        return config.head_lr_factor
    return float(config.layer_decay ** (len(STAGES) - STAGES.index(stage_of(name)))) if config.layer_decay != 1 else 1.0


def stage_of(name: str) -> str:
    """Return the stage of an encoder's parameter by its name in a `Segmenter`; for our encoders."""
    part = name.split(".")[1]
    return part if part in STAGES else "stem"


def clip_gradients(parameters: Iterable[nn.Parameter], *, norm: float, limit: float) -> None:
    """Scale gradients whose norm together exceeds the limit, as `torch.nn.utils.clip_grad_norm_` does.

    Args:
        parameters: All parameters that the norm is of.
        norm: Of their gradients together.
        limit: The largest norm; 0 does not clip.
    """
    scale = limit / (norm + 1e-6)
    if limit and scale < 1:
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(scale)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every parameter group to `lr` times the group's `lr_factor`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]


def frozen_names(config: OptimConfig) -> tuple[str, ...]:
    """Parse `optim.freeze`: its names in the order of `FREEZABLE`.

    Raises:
        ConfigError: Unknown name.
    """
    names = [name.strip() for name in (config.freeze or "").split(",") if name.strip()]
    for name in names:
        if name not in FREEZABLE:
            raise unknown_name("part in optim.freeze", name, FREEZABLE)
    return tuple(name for name in FREEZABLE if name in names)


def freeze(model: nn.Module, config: OptimConfig) -> None:
    """Disable the gradients of the stages that `optim.freeze` names. Call it before `build_optimizer`.

    `hold_frozen` keeps them in eval mode at every step.

    Raises:
        ConfigError: Unknown name, or a stage of an encoder that is not ours.
    """
    for part in _frozen_parts(model, frozen_names(config)):
        part.requires_grad_(False)


def hold_frozen(model: nn.Module, config: OptimConfig) -> None:
    """Put frozen modules into eval mode. Call it after every `model.train()`, which sets training mode everywhere.

    A frozen stage runs as in evaluation: fixed statistics, no DropBlock. "bn" and "head_bn" fix the statistics of the
    encoder's or the heads' norms, while their weights and biases are trained.
    """
    names = frozen_names(config)
    for part in _frozen_parts(model, names):
        part.eval()
    for name, module in model.named_modules():
        kind = "bn" if name.startswith("encoder.") else "head_bn"
        if kind in names and isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def _frozen_parts(model: nn.Module, names: Iterable[str]) -> list[nn.Module]:
    """Yield the modules of the frozen stages."""
    encoder, parts = model.get_submodule("encoder"), list[nn.Module]()
    for name in names:
        if name == "encoder":
            parts.append(encoder)
        elif name in STAGES:
            if not isinstance(encoder, ResNeSt):
                raise ConfigError(f"optim.freeze {name}: the stages of this encoder are not known. Use encoder or bn.")
            parts += [encoder.conv1, encoder.bn1] if name == "stem" else [encoder.get_submodule(name)]
    return parts


WARMUP_START = 1e-3
"""Learning rate at the start of a warm-up, as a share of the full rate."""


def poly(progress: float, *, power: float) -> float:
    """Return (1 - progress) ** power, from 1 to 0. Liu et al., https://arxiv.org/abs/1506.04579."""
    return math.pow(1 - progress, power)


def cosine(progress: float) -> float:
    """Return (1 + cos(pi progress)) / 2, from 1 to 0. Loshchilov and Hutter, https://arxiv.org/abs/1608.03983."""
    return (1 + math.cos(math.pi * progress)) / 2


CURVES: dict[str, Callable[[float, float], float]] = {
    # name -> function of (progress 0..1, power): 1 is the full rate, 0 the minimum rate
    "poly": lambda progress, power: poly(progress, power=power),
    "cosine": lambda progress, power: cosine(progress),
}


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then a curve from `lr` down to `min_lr`; equals torch's SequentialLR of LinearLR and the curve.

    Attributes:
        steps: Optimiser steps of the run; afterwards the rate is `min_lr`.
        lr: Full rate, reached at the end of the warm-up.
        curve: A key of `CURVES`.
        power: Exponent of poly.
        min_lr: Rate at the end; poly is mmsegmentation's (lr - min_lr) * (1 - t) ** power + min_lr.
        warmup_steps: Steps of the warm-up, which starts at `lr * WARMUP_START`; the curve takes the rest.
    """

    steps: int
    lr: float
    curve: str = "poly"
    power: float = 0.9
    min_lr: float = 0.0
    warmup_steps: int = 0

    @classmethod
    def from_config(cls, config: AnyConfig, *, steps_per_epoch: int) -> Schedule:
        """Build the schedule of a run, with rates scaled to its batch size.

        Raises:
            ConfigError: Unknown schedule, or a warm-up as long as the run.
        """
        optim, factor = config.optim, batch_factor(config)
        if optim.schedule not in CURVES:
            raise unknown_name("optim.schedule", optim.schedule, CURVES)
        steps = run_steps(config.train, steps_per_epoch=steps_per_epoch)
        unit = 1 if config.train.epochs is None else steps_per_epoch
        warmup_steps = round(optim.warmup * unit)
        if warmup_steps >= steps:
            raise ConfigError(
                f"optim.warmup ({optim.warmup}) takes {warmup_steps} of the run's {steps} steps: lower it."
            )
        return cls(
            steps,
            optim.lr * factor,
            optim.schedule,
            optim.power,
            min_lr=optim.min_lr * factor,
            warmup_steps=warmup_steps,
        )

    def __call__(self, step: int) -> float:
        """Return the learning rate of step 0, 1, 2, ..."""
        if step < self.warmup_steps:
            return self.lr * (WARMUP_START + (1 - WARMUP_START) * step / self.warmup_steps)
        progress = min((step - self.warmup_steps) / (self.steps - self.warmup_steps), 1.0)
        return self.min_lr + (self.lr - self.min_lr) * CURVES[self.curve](progress, self.power)


def run_steps(train: LoopConfig, *, steps_per_epoch: int) -> int:
    """Return the number of optimiser steps of a run: its iterations, or its epochs' steps."""
    if train.iterations is not None:
        return train.iterations
    assert train.epochs is not None  # the config holds one of the two
    return train.epochs * steps_per_epoch


def batch_factor(config: AnyConfig) -> float:
    """Return the factor of learning rates for a batch size other than `optim.reference_batch`.

    This is the linear scaling rule: Goyal et al., https://arxiv.org/abs/1706.02677.
    """
    reference = config.optim.reference_batch
    return 1.0 if reference is None else config.train.batch_size / reference


def describe_lr(config: AnyConfig) -> str:
    """Describe the full learning rate, and how it was scaled if the batch size is not the reference."""
    optim, batch = config.optim, config.train.batch_size
    lr = f"{optim.lr * batch_factor(config):.4g}"
    if batch_factor(config) == 1:
        return f"lr {lr}"
    return (
        f"lr {lr} ({optim.lr:g} is for {optim.reference_batch} images a step, and this run has {batch}; "
        "optim.reference_batch null would keep it)"
    )


LENGTHS = 5
"""Minimum length of a run, in time constants 1 / (1 - decay) of the average."""


def decay_of(update: int, decay: float) -> float:
    """Return the decay of update t = 0, 1, 2, ...: min(decay, (1 + t) / (10 + t)), which forgets the initial weights.

    After T updates of the warm-up these have the weight 1 / C(T + 9, 9): a tenth after the first, a ten-millionth after
    20. The formula is that of TensorFlow's ExponentialMovingAverage with `num_updates`, used by EfficientNet.
    """
    return min(decay, (1 + update) / (10 + update))


def too_short(decay: float, steps: int) -> str | None:
    """Describe the problem if a run of `steps` is too short for a decay; None if it is long enough."""
    if decay == 0 or decay <= round(fitting := 1 - LENGTHS / steps, 9):
        return None
    down = math.floor(10_000 * fitting) / 10_000
    advice = f"train.ema {down:g} or less would fit" if fitting > 0.1 else "train.ema 0 keeps none"
    return (
        f"train.ema {decay:g} averages over about {1 / (1 - decay):.0f} steps, and the run has {steps}, fewer than "
        f"{LENGTHS} times as many: its decay still warms up at the end ({decay_of(steps, decay):.3g}). {advice}."
    )


class WeightAverage:
    """Exponential moving average of weights and batch norm's statistics: average <- d * average + (1 - d) * weights.

    It starts with the given weights; d is `decay_of` the update. Integers (batch counters) are copied. With weights
    sharded over processes, each process averages its shard.

    Args:
        model: The model whose weights are averaged.
        decay: 0..1, reached after about 9 / (1 - decay) updates.

    Attributes:
        updates: Number of updates.
    """

    def __init__(self, model: nn.Module, *, decay: float) -> None:
        self.model, self.decay, self.updates = model, decay, 0
        self.values: dict[str, Tensor] = {key: value.detach().clone() for key, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self) -> None:
        """Update the average with the model's weights."""
        now = {key: _local(value) for key, value in self.model.state_dict().items()}
        floats = [key for key, value in now.items() if value.is_floating_point()]
        mix = get_ema_multi_avg_fn(decay_of(self.updates, self.decay))
        mix([_local(self.values[key]) for key in floats], [now[key] for key in floats], 0)
        for key in now.keys() - set(floats):
            _local(self.values[key]).copy_(now[key])
        self.updates += 1

    def show_in(self, model: M) -> M:
        """Make a copy of the model show the average from now on: its weights are these tensors; it is in eval mode."""
        model.load_state_dict(self.values, assign=True)
        return model.eval().requires_grad_(False)

    @torch.no_grad()
    def load(self, values: Mapping[str, Tensor], *, updates: int) -> None:
        """Restore saved values and their number of updates.

        Raises:
            KeyError: A value is missing.
        """
        for key, average in self.values.items():
            average.copy_(values[key])
        self.updates = updates


def _local(value: Tensor) -> Tensor:
    """Return this process's shard of a DTensor, sharing its memory; other tensors unchanged."""
    return value.to_local() if hasattr(value, "to_local") else value
