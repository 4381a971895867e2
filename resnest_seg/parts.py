"""The parts of a `Segmenter` by name: encoders of ours or of SMP, fresh or pre-trained, and heads of either family."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from resnest_seg.blueprints import DILATIONS, SMP
from resnest_seg.checkpoint import FORMAT, Checkpoint
from resnest_seg.config import ModelConfig
from resnest_seg.conversion import encoder_of_name, encoder_weights
from resnest_seg.errors import CheckpointError, ConfigError, DownloadError, unknown_name
from resnest_seg.heads import ClassifierHead, DeepLabV3Head, FCNHead, aspp_rates
from resnest_seg.heads_mmseg import (
    MMSegAuxHead,
    MMSegDeepLabV3Head,
    MMSegDeepLabV3PlusHead,
    MMSegFCNHead,
    MMSegPSPHead,
)
from resnest_seg.published import imagenet_checkpoint, published, published_names
from resnest_seg.resnest import ResNeSt, adapt_first_convolution
from resnest_seg.weights import WeightFile, check_finite, naming_file, read_weights

HeadBuilder = Callable[[tuple[int, ...], int, int], nn.Module]
"""(channels of c1..c4, K, output stride) -> head."""

HEADS: dict[str, dict[str, HeadBuilder]] = {
    # family -> name -> head
    "encoding": {
        "fcn": lambda channels, classes, stride: FCNHead(channels[3], classes),
        "deeplabv3": lambda channels, classes, stride: DeepLabV3Head(channels[3], classes, output_stride=stride),
        "classifier": lambda channels, classes, stride: ClassifierHead(channels[3], classes),
    },
    "mmseg": {
        "fcn": lambda channels, classes, stride: MMSegFCNHead(channels[3], classes),
        "pspnet": lambda channels, classes, stride: MMSegPSPHead(channels[3], classes),
        "deeplabv3": lambda channels, classes, stride: MMSegDeepLabV3Head(
            channels[3], classes, rates=aspp_rates(stride)
        ),
        "deeplabv3plus": lambda channels, classes, stride: MMSegDeepLabV3PlusHead(
            channels[3], classes, low_channels=channels[0], rates=aspp_rates(stride)
        ),
    },
}

AUX_HEADS: dict[str, HeadBuilder] = {
    "encoding": lambda channels, classes, stride: FCNHead(channels[2], classes, stage=-2),
    "mmseg": lambda channels, classes, stride: MMSegAuxHead(channels[2], classes),
}


def build_encoder(model: ModelConfig, *, pretrained: bool = False) -> nn.Module:
    """The encoder that a config describes, as a feature extractor; ours has fresh weights, see `load_encoder`.

    Args:
        model: The network.
        pretrained: Let an encoder of SMP load `model.encoder_weights`.

    Returns:
        Normalised images [N, C, H, W] -> features, the last four being c1, c2, c3, c4, with their channels in
        `.channels`.

    Raises:
        ConfigError: Unknown name (the nearest is named), or an encoder that cannot be dilated.
        DownloadError: The weights cannot be fetched.
        CheckpointError: The weights do not fit.
    """
    if model.encoder.startswith(SMP):
        from resnest_seg.smp import SMPEncoder

        weights = model.encoder_weights if pretrained else None
        if any((model.drop_block, model.drop_path, model.zero_gamma, model.checkpointing, model.rectify != "none")):
            raise ConfigError(
                f"encoder {model.encoder} is not ours: drop_block, drop_path, zero_gamma, rectify and checkpointing do "
                "not go with it."
            )
        name = model.encoder.removeprefix(SMP)
        return SMPEncoder(name, output_stride=model.output_stride, in_channels=model.in_channels, weights=weights)
    if model.head.startswith(SMP):
        from resnest_seg.smp import ResNeStSMPEncoder

        return ResNeStSMPEncoder(model)
    return ResNeSt(model)


def check_names(model: ModelConfig) -> None:
    """Refuse names that nothing would look up, and options that do not go together.

    Raises:
        ConfigError: Says which.
    """
    if model.family not in HEADS:
        raise unknown_name("family", model.family, HEADS)
    if model.dilation not in DILATIONS:
        raise unknown_name("dilation", model.dilation, DILATIONS)
    if model.zero_gamma and model.encoder_weights is not None:
        raise ConfigError(
            "zero_gamma is a way to start from fresh weights, and encoder_weights brings its own: set one of the two."
        )


def head_for(model: ModelConfig, encoder: nn.Module, num_classes: int) -> nn.Module:
    """The main head that a config describes, for what an encoder returns.

    Raises:
        ConfigError: Unknown name, or a head that does not exist in this family or at this output stride.
    """
    if model.head.startswith(SMP):
        from resnest_seg.smp import build_smp_head

        assert isinstance(encoder.out_channels, list)
        name = model.head.removeprefix(SMP)
        return build_smp_head(name, encoder.out_channels, num_classes, output_stride=model.output_stride)
    if model.head not in HEADS[model.family]:
        elsewhere = [family for family in HEADS if model.head in HEADS[family]]
        if elsewhere:
            raise ConfigError(f"head {model.head!r} exists in family {elsewhere[0]!r} only: set family to it.")
        known = dict.fromkeys(name for heads in HEADS.values() for name in heads)
        raise unknown_name("head", model.head, [*known, f"{SMP}NAME"])
    return HEADS[model.family][model.head](_channels(encoder), num_classes, model.output_stride)


def aux_head_for(model: ModelConfig, encoder: nn.Module, num_classes: int) -> nn.Module | None:
    """The auxiliary head on c3 that a config describes; None without one, and for image classifiers."""
    if not model.aux_head or model.head == "classifier":
        return None
    return AUX_HEADS[model.family](_channels(encoder), num_classes, model.output_stride)


def freeze_unread(encoder: nn.Module, heads: Sequence[nn.Module], *, in_channels: int) -> None:
    """Take the gradients from parameters that no head's output depends on, found by a small image of zeros.

    Encoders of SMP have such: parts of a classifier's last layers, and in HRNet the branches to levels that a head does
    not read. They would get no gradient, so no state of the optimiser that a run could be resumed with, and
    DistributedDataParallel would stop at the second step.

    Args:
        encoder: Normalised images [1, in_channels, S, S] -> features.
        heads: Features -> logits, each.
        in_channels: Channels of the images.
    """
    parts = [encoder, *heads]
    modes = [(module, module.training) for part in parts for module in part.modules()]
    parameters = [parameter for part in parts for parameter in part.parameters()]
    side = max(64, *(getattr(head, "min_size", 1) for head in heads))
    with torch.enable_grad():
        for part in parts:
            part.eval()
        features = encoder(parameters[0].new_zeros(1, in_channels, side, side))
        total = torch.stack([head(features).float().sum() for head in heads]).sum()
        if total.requires_grad:  # not in inference mode, where nothing is trained
            gradients = torch.autograd.grad(total, parameters, allow_unused=True)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.requires_grad_(gradient is not None)
    for module, training in modes:
        module.training = training


def pretrained_file(encoder: str, weights: str) -> Path:
    """The file that `encoder_weights` means: "imagenet", the name of a published checkpoint, or a path.

    Raises:
        ConfigError: No ImageNet weights were published for the encoder, it is neither a name nor a file, or the name of
            another encoder's.
        DownloadError: It cannot be fetched.
    """
    if weights == "imagenet":
        return imagenet_checkpoint(encoder).fetch()
    if Path(weights).is_file():
        return Path(weights)
    entry = published(weights)
    if entry is None:
        raise unknown_name("encoder_weights: no such file or name", weights, ["imagenet", *published_names()])
    if entry.encoder != encoder:
        raise ConfigError(
            f"encoder_weights {weights!r} is for encoder {entry.encoder!r}, and the encoder is {encoder!r}."
        )
    return entry.fetch()


def load_encoder(encoder: ResNeSt, model: ModelConfig) -> None:
    """Load what `model.encoder_weights` means into an encoder; the first convolution is adapted to the images.

    Raises:
        ConfigError: See `pretrained_file`.
        DownloadError: The file cannot be fetched.
        CheckpointError: It cannot be read, is not finite, or its encoder is another one; names the first keys.
    """
    assert model.encoder_weights is not None
    try:
        path = pretrained_file(model.encoder, model.encoder_weights)
    except DownloadError as error:
        raise DownloadError(f"{error} Or start from fresh weights, with encoder_weights null.") from None
    file = read_weights(path)
    _refuse_another_network(path, file, model)
    with naming_file(path):
        weights, own = encoder_weights(file.tensors), encoder.state_dict()
    stem = next(key for key in own if key.startswith("conv1."))
    if stem in weights and weights[stem].shape[1] == 3:
        weights[stem] = adapt_first_convolution(weights[stem], model.in_channels)
    counters = "num_batches_tracked"  # old files lack them, and they decide nothing
    problems = [
        *(f"missing {key}" for key in own if key not in weights and not key.endswith(counters)),
        *(f"unexpected {key}" for key in weights if key not in own),
        *misfits(weights, own),
    ]
    if problems:
        raise CheckpointError(
            f"{path} does not hold the weights of this encoder: {problems[0]} ({len(problems)} problems)."
        )
    with naming_file(path):
        check_finite(weights, own)
    encoder.load_state_dict(weights, strict=False)


def _refuse_another_network(path: Path, file: WeightFile, model: ModelConfig) -> None:
    """Weights that fit by their keys and shapes, of a network that computes something else.

    Raises:
        CheckpointError: The file says, or its name does, that it is of another encoder or rectification.
    """
    theirs = ModelConfig(encoder=encoder_of_name(path.name) or model.encoder, rectify=model.rectify)
    if file.metadata.get("format") == FORMAT:
        theirs = Checkpoint.load(path).config.model
    elif model.encoder not in ("resnest50", "resnest50_fast_2s1x64d"):
        return
    for key, ours, other in (("encoder", model.encoder, theirs.encoder), ("rectify", model.rectify, theirs.rectify)):
        if ours != other:
            raise CheckpointError(f"{path} holds weights of {key} {other!r}, and this model has {key} {ours!r}.")


def misfits(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    """The keys that both have with different shapes, and these shapes."""
    return [
        f"{key} {list(weights[key].shape)} instead of {list(value.shape)}"
        for key, value in own.items()
        if key in weights and weights[key].shape != value.shape
    ]


def _channels(encoder: nn.Module) -> tuple[int, ...]:
    assert isinstance(encoder.channels, tuple)
    return encoder.channels
