"""Our encoders under the detectors of torchvision: an encoder at output stride 32 and a feature pyramid.

Papers: Lin et al., "Feature Pyramid Networks for Object Detection", https://arxiv.org/abs/1612.03144; for what ResNeSt
gives a detector, table 5 of https://arxiv.org/abs/2004.08955. Detectors, their losses and anchors are torchvision's.
"""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork, FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool, LastLevelP6P7

from resnest_seg.config import ModelConfig
from resnest_seg.config_types import Kind, Range
from resnest_seg.errors import ConfigError, unknown_name
from resnest_seg.models.checkpoint import local_weights
from resnest_seg.models.loading import Source, load_encoder
from resnest_seg.models.published_weights import check_encoder_weights
from resnest_seg.models.resnest import SMP, ResNeSt
from resnest_seg.models.segmenter import PIXEL_MEAN, PIXEL_STD, LoadReport, check_names, encoder_for, misfits

OUTPUT_STRIDE = 32
"""Anchors and pooling of torchvision's detectors are for features at strides 4, 8, 16 and 32."""

DETECTRON2_PIXELS = (123.68, 116.779, 103.939), (58.393, 57.12, 57.375)
"""Mean and standard deviation of R, G and B, 0..255, in the configs of detectron2-ResNeSt."""

EXTRA_BLOCKS = ("pool", "p6p7")
"""What continues the pyramid: a max pool (Faster R-CNN, Mask R-CNN) or two strided convolutions (RetinaNet)."""


class DetectionBackbone(nn.Module):
    """Normalised images [N, 3, H, W] -> `OrderedDict` of features [N, out_channels, h, w], the finest first.

    Keys and levels are those of torchvision's backbones: "0", "1", ... at the strides of the returned stages (4, 8, 16,
    32), rounded up, and the extra block's: "pool", or "p6" and "p7". Build one by `detection_backbone`.

    Attributes:
        out_channels: Channels of every level; torchvision's detectors read it.
        image_mean: Mean of R, G and B, 0..1, that the weights want: for `image_mean=` of a detector.
        image_std: Standard deviation likewise, for `image_std=`.
        load_report: What was loaded, if a file was.
    """

    def __init__(
        self,
        encoder: nn.Module,
        pyramid: FeaturePyramidNetwork,
        *,
        stages: Sequence[int],
        out_channels: int,
        image_mean: tuple[float, ...],
        image_std: tuple[float, ...],
        load_report: LoadReport | None = None,
    ) -> None:
        super().__init__()
        self.encoder, self.pyramid = encoder, pyramid
        self.stages, self.out_channels = tuple(stages), out_channels
        self.image_mean, self.image_std, self.load_report = image_mean, image_std, load_report

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.encoder(images)[-4:]
        chosen = OrderedDict((str(place), features[stage - 1]) for place, stage in enumerate(self.stages))
        levels: dict[str, Tensor] = self.pyramid(chosen)
        return levels


def detection_backbone(
    encoder: str = "resnest50",
    *,
    weights: str | Path | None = None,
    trainable_stages: int | None = None,
    frozen_norms: bool | None = None,
    returned_stages: Sequence[int] = (1, 2, 3, 4),
    channels: int = 256,
    pyramid_norms: bool = False,
    extra_block: str | ExtraFPNBlock | None = "pool",
) -> DetectionBackbone:
    """Build a backbone for `FasterRCNN`, `MaskRCNN`, `RetinaNet` and the other detectors of `torchvision.models`.

    >>> backbone = detection_backbone("resnest50", weights="imagenet")
    >>> detector = FasterRCNN(backbone, 91, image_mean=backbone.image_mean, image_std=backbone.image_std)

    The encoder has output stride 32 and no dilation, where all variants of a ResNeSt are the same network. Images are
    RGB; the detector normalises them, pads them to multiples of 32 and resizes them, to 800 x 1333 by default.

    Args:
        encoder: A name of `resnest_seg.models.resnest.SPECS`, or "smp:" and an encoder of segmentation-models-pytorch.
        weights: "imagenet", a weight file, a run folder, or the name of a published checkpoint. Files are those that
            `encoder_weights` of a config takes: ImageNet classifiers, segmentation checkpoints, and backbones and
            detectors of detectron2-ResNeSt, whose pyramid is loaded as well where it fits. None asks no network.
        trainable_stages: How many stages are trained, from the last: 3 are layer2, layer3 and layer4, 5 are all with
            the stem. None is 3 with weights and 5 without. Norms of the others are frozen whatever `frozen_norms` says.
        frozen_norms: Replace batch norms by frozen ones, for batches of a few images; their statistics and weights stay
            as they are, also after `train()`. None is True with weights and False without; a ResNeSt with norms that
            are trained needs two images at a time.
        returned_stages: Stages that levels of the pyramid are made of, ascending in 1..4; torchvision's RetinaNet takes
            (2, 3, 4). Later stages are left out.
        channels: Channels of the pyramid.
        pyramid_norms: Put batch norms into the pyramid, as detectron2-ResNeSt and the second version of torchvision's
            detectors do; never frozen.
        extra_block: "pool", "p6p7" (on the pyramid's last level, for RetinaNet), a module of torchvision's class
            `ExtraFPNBlock`, or None.

    Raises:
        ConfigError: Unknown name (the nearest is named), a value out of range, or an encoder without such stages.
        DownloadError: The weights cannot be fetched.
        CheckpointError: The weights do not fit, are not finite, or the file cannot be read.
    """
    check_encoder_weights(weights)
    stages = _checked_stages(returned_stages)
    trained = trainable_stages if trainable_stages is not None else 3 if weights is not None else 5
    Kind(int, False, Range(0, 5)).check("trainable_stages", trained)
    Kind(int, False, Range(1, math.inf)).check("channels", channels)
    extra = _extra_block(extra_block, channels)
    body, source = _encoder(encoder, weights)
    assert isinstance(body.channels, tuple)
    widths = [body.channels[stage - 1] for stage in stages]
    pyramid = FeaturePyramidNetwork(widths, channels, extra, nn.BatchNorm2d if pyramid_norms else None)
    skipped = _load_pyramid(pyramid, source, stages)
    mean, std = _pixel_statistics(body, source)
    freeze = (weights is not None) if frozen_norms is None else frozen_norms
    _freeze(body, trained=trained, last=stages[-1], norms=freeze)
    report = None if source is None else _report(source, encoder, skipped)
    return DetectionBackbone(
        body, pyramid, stages=stages, out_channels=channels, image_mean=mean, image_std=std, load_report=report
    )


def _checked_stages(stages: Sequence[int]) -> tuple[int, ...]:
    found = tuple(stages)
    if not found or any(type(stage) is not int for stage in found) or list(found) != sorted({*found} & {1, 2, 3, 4}):
        raise ConfigError(f"returned_stages must be some of 1, 2, 3, 4, ascending, not {found}.")
    return found


def _extra_block(extra: str | ExtraFPNBlock | None, channels: int) -> ExtraFPNBlock | None:
    if extra is None or isinstance(extra, ExtraFPNBlock):
        return extra
    if extra not in EXTRA_BLOCKS:
        raise unknown_name("extra_block", str(extra), EXTRA_BLOCKS)
    return LastLevelMaxPool() if extra == "pool" else LastLevelP6P7(channels, channels)


def _encoder(name: str, weights: str | Path | None) -> tuple[nn.Module, Source | None]:
    """The encoder with its weights, and the file that they are from; None where there is none, or SMP fetched it."""
    from_file = weights is not None and local_weights(weights) is not None
    model = ModelConfig(
        encoder=name, output_stride=OUTPUT_STRIDE, encoder_weights=None if weights is None else str(weights)
    )
    check_names(model)
    if name.startswith(SMP) and not from_file:
        return encoder_for(model, pretrained=True), None
    encoder = encoder_for(model)
    return encoder, None if weights is None else load_encoder(encoder, model)


def _pixel_statistics(encoder: nn.Module, source: Source | None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of R, G and B, 0..1, that an encoder was trained with."""
    mean, std = getattr(encoder, "pixel_mean", None) or PIXEL_MEAN, getattr(encoder, "pixel_std", None) or PIXEL_STD
    if source is not None and {"pixel_mean", "pixel_std"} <= set(source.weights):
        mean, std = (source.weights[key].flatten().tolist() for key in ("pixel_mean", "pixel_std"))
    elif source is not None and source.format == "detectron2":
        mean, std = DETECTRON2_PIXELS
    return tuple(value / 255 for value in mean), tuple(value / 255 for value in std)


def _load_pyramid(
    pyramid: FeaturePyramidNetwork, source: Source | None, stages: Sequence[int]
) -> tuple[tuple[str, str], ...]:
    """Load the pyramid of a detector's file if it fits as a whole; returns (name, why) of what was not used."""
    theirs = [] if source is None else [key for key in source.weights if key.startswith("pyramid.")]
    if source is None or not theirs:
        return ()
    weights: dict[str, Tensor] = {}
    for key in theirs:
        parts = re.fullmatch(r"pyramid\.(lateral|output)(\d)\.(norm\.)?(\w+)", key)
        level = 0 if parts is None else int(parts[2]) - 1
        if parts is not None and level in stages:
            blocks = "inner_blocks" if parts[1] == "lateral" else "layer_blocks"
            weights[f"{blocks}.{stages.index(level)}.{1 if parts[3] else 0}.{parts[4]}"] = source.weights[key]
    own = {
        key: value
        for key, value in pyramid.state_dict().items()
        if not key.startswith("extra_blocks.") and not key.endswith("num_batches_tracked")
    }
    usual = {key for key in weights if not key.endswith("num_batches_tracked")}
    if usual != set(own) or misfits(weights, own):
        has = "with" if any(".norm." in key for key in theirs) else "without"
        return tuple((key, f"the file's pyramid, {has} norms, is another than this one") for key in theirs)
    pyramid.load_state_dict(weights, strict=False)
    return ()


def _report(source: Source, encoder: str, skipped: tuple[tuple[str, str], ...]) -> LoadReport:
    """What was loaded of a file."""
    unused = {key for key, _ in skipped}
    parts = ("encoder.", "pyramid.")
    others = [key for key in source.weights if not key.startswith((*parts, "pixel_"))]
    return LoadReport(
        path=source.path,
        format=source.format,
        network=f"{encoder}, output stride {OUTPUT_STRIDE}",
        loaded=sum(key.startswith(parts) and key not in unused for key in source.weights),
        skipped=(*source.skipped, *skipped, *((key, "a detector has no such part") for key in others)),
    )


def _freeze(encoder: nn.Module, *, trained: int, last: int, norms: bool) -> None:
    """Leave out or freeze stages, and replace batch norms by frozen ones, in place.

    Args:
        encoder: The encoder.
        trained: Number of stages that are trained, from the fourth; 5 includes the stem.
        last: The last stage that is read.
        norms: Freeze all batch norms, not only those of the frozen stages.
    """
    if isinstance(encoder, ResNeSt):
        for stage in range(last + 1, 5):
            setattr(encoder, f"layer{stage}", nn.Sequential())
    stages = dict(_stages_of_parameters(encoder))
    for name, parameter in encoder.named_parameters():
        parameter.requires_grad_(4 - trained < stages.get(name, last + 1) <= last)
    for name, module in list(encoder.named_modules()):
        batch_norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
        if batch_norm and (norms or not all(parameter.requires_grad for parameter in module.parameters())):
            place, _, own = name.rpartition(".")
            setattr(encoder.get_submodule(place), own, _frozen(module))


def _stages_of_parameters(encoder: nn.Module) -> Iterator[tuple[str, int]]:
    """(name, stage) of every parameter that features depend on: 0 is the stem, 1 to 4 the stages.

    Of encoders that are not ours, a parameter belongs to the first of the features, at stride 2, 4, 8, 16 and 32, that
    depends on it.
    """
    if isinstance(encoder, ResNeSt):
        for name, _ in encoder.named_parameters():
            part = name.partition(".")[0]
            yield name, int(part.removeprefix("layer")) if part.startswith("layer") else 0
        return
    named, modes = dict(encoder.named_parameters()), [(module, module.training) for module in encoder.modules()]
    encoder.eval()
    with torch.enable_grad():
        features = encoder(next(iter(named.values())).new_zeros(1, 3, 64, 64))[-5:]
        for stage, feature in enumerate(features):
            left = list(named)
            if not left or not feature.requires_grad:  # only pooled; an encoder without features at stride 2
                continue
            gradients = torch.autograd.grad(
                feature.sum(), [named[name] for name in left], allow_unused=True, retain_graph=True
            )
            for name, gradient in zip(left, gradients, strict=True):
                if gradient is not None:
                    del named[name]
                    yield name, stage
    for module, training in modes:
        module.training = training


def _frozen(norm: nn.Module) -> nn.Module:
    """A norm with the same outputs as a batch norm in eval mode, and nothing to train."""
    if type(norm) is not nn.BatchNorm2d:  # timm's have an activation
        from timm.layers import norm_act

        module: nn.Module = norm_act.freeze_batch_norm_2d(norm)  # type: ignore[no-untyped-call]
        return module
    frozen: nn.Module = FrozenBatchNorm2d(norm.num_features, eps=norm.eps)
    frozen.load_state_dict(norm.state_dict())
    return frozen
