"""Load a model from any checkpoint there is: ours, PyTorch-Encoding's, mmsegmentation's, ImageNet classifiers."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from torch.nn.utils import convert_conv2d_weight_memory_format

from resnest_seg.checkpoint import FORMAT, Checkpoint, find_checkpoint
from resnest_seg.config import DataConfig, ModelConfig, RunConfig
from resnest_seg.conversion import label_space, recognise
from resnest_seg.errors import CheckpointError, ConfigError
from resnest_seg.labels import LabelSpace
from resnest_seg.parts import load_encoder
from resnest_seg.published import PublishedCheckpoint, published
from resnest_seg.resnest import ResNeSt
from resnest_seg.segmenter import LoadReport, Segmenter, fresh_segmenter, load_weights
from resnest_seg.weights import WeightFile, naming_file, read_weights


def build_segmenter(
    encoder: str = "resnest50",
    *,
    head: str = "deeplabv3",
    num_classes: int = 150,
    output_stride: int = 8,
    dilation: str = "encoding",
    aux_head: bool = True,
    family: str = "encoding",
    in_channels: int = 3,
    encoder_weights: str | None = None,
    drop_block: float = 0.0,
    drop_path: float = 0.0,
    zero_gamma: bool = False,
    rectify: str = "none",
    checkpointing: bool = False,
) -> Segmenter:
    """Build a model in training mode and channels-last memory; without `encoder_weights`, with fresh weights.

    Args:
        encoder: A name of `resnest_seg.blueprints.SPECS`, or "smp:" and an encoder of segmentation-models-pytorch.
        head: "fcn", "deeplabv3" or "classifier" (one answer an image), in family "mmseg" also "pspnet" and
            "deeplabv3plus", or "smp:" and a decoder of segmentation-models-pytorch, see `resnest_seg.smp`.
        num_classes: K, at least 1.
        output_stride: 8, 16 or 32 input pixels per step of the last features.
        dilation: The dilated network that is meant, see `resnest_seg.blueprints`; SMP's encoders have their own.
        aux_head: Add an FCN head on the third stage for training.
        family: "encoding" or "mmseg": whose form the heads have, and whether logits are resized with aligned corners.
        in_channels: Channels of the images.
        encoder_weights: "imagenet", a weight file, or the name of a published checkpoint; None asks no network.
        drop_block: Share of pixels that DropBlock clears in the last two stages while training.
        drop_path: Share of images that skip the last residual block while training (stochastic depth).
        zero_gamma: Start with a zero weight in the last norm of every residual branch.
        rectify: "none", "rectify" or "rectify_avg", see `resnest_seg.rectify`.
        checkpointing: Keep only the blocks' inputs for the backward pass and compute the rest twice.

    Raises:
        ConfigError: Unknown name (the nearest is named), a value out of range, or parts that do not fit together.
        DownloadError: The weights cannot be fetched.
        CheckpointError: The weights do not fit the encoder.
    """
    model = ModelConfig(
        encoder=encoder,
        head=head,
        family=family,
        output_stride=output_stride,
        dilation=dilation,
        aux_head=aux_head,
        in_channels=in_channels,
        encoder_weights=encoder_weights,
        drop_block=drop_block,
        drop_path=drop_path,
        zero_gamma=zero_gamma,
        rectify=rectify,
        checkpointing=checkpointing,
    )
    return segmenter_for(RunConfig(model=model), None, num_classes=num_classes)


def segmenter_for(
    config: RunConfig, label_space: LabelSpace | None, *, num_classes: int | None = None, pretrained: bool = True
) -> Segmenter:
    """The model that a config describes; see `build_segmenter`, also for the errors.

    Args:
        config: The run; its `model` counts.
        label_space: The classes, where they are known.
        num_classes: K, where the label space is None.
        pretrained: Load `config.model.encoder_weights`; False leaves fresh weights, for those of a checkpoint to come.
    """
    segmenter = fresh_segmenter(config, label_space, num_classes=num_classes, smp_weights=pretrained)
    if pretrained and config.model.encoder_weights is not None and isinstance(segmenter.encoder, ResNeSt):
        load_encoder(segmenter.encoder, config.model)
        convert_conv2d_weight_memory_format(segmenter, torch.channels_last)
    return segmenter


def load_checkpoint(path: str | Path, *, output_stride: int | None = None, dilation: str | None = None) -> Segmenter:
    """Load a model for inference.

    Recognised by their keys are our own files and run folders (the best checkpoint, else the last), PyTorch-Encoding's
    segmentation files (in their zip or out of it), mmsegmentation's, and ImageNet classifiers of the ResNeSt
    repository, timm and torchvision, which become a `Segmenter` with one answer for the whole image.

    Args:
        path: A file, a run folder, or the name of a published checkpoint, which is downloaded once.
        output_stride: For files of others, which do not tell it: the network's. None assumes 8, and 32 for classifiers.
        dilation: For files of others: the dilation variant. None takes that of the code the file comes from.

    Returns:
        The model in eval mode on the CPU; `.label_space` names its classes, `.config` says what it is, `.load_report`
        what was loaded.

    Raises:
        CheckpointError: There is no such file or name, it is damaged, it wants to run code, or it does not fit.
        DownloadError: A published file cannot be fetched.
        ConfigError: An output stride or dilation that does not exist.
    """
    entry = None if Path(path).exists() else published(str(path))
    if entry is None and not Path(path).exists():
        raise CheckpointError(
            f"no checkpoint {path}: there is no such file or run folder, and no published checkpoint of that name. "
            "tools/zoo_seg.py lists the names."
        )
    found = find_checkpoint(path) if entry is None else entry.fetch()
    with naming_file(found):
        file = read_weights(found)
        if file.metadata.get("format") == FORMAT:
            return _own(found, output_stride, dilation)
        return _foreign(found, file, entry, output_stride, dilation)


def _own(path: Path, output_stride: int | None, dilation: str | None) -> Segmenter:
    checkpoint = Checkpoint.load(path)
    if output_stride is not None or dilation is not None:
        raise ConfigError(f"{path} says itself which output stride and dilation its network has: give neither.")
    try:
        segmenter = Segmenter.from_checkpoint(checkpoint)
    except ConfigError as error:
        raise CheckpointError(f"{path} needs what this version does not have: {error}") from None
    segmenter.load_report = LoadReport(path, "resnest_seg", segmenter.description, len(checkpoint.weights))
    return segmenter


def _foreign(
    path: Path, file: WeightFile, entry: PublishedCheckpoint | None, output_stride: int | None, dilation: str | None
) -> Segmenter:
    hint = path.name if entry is None else entry.encoder
    if dilation is None and entry is not None and entry.source == "timm":
        dilation = "timm"
    known = recognise(file.tensors, hint=hint, output_stride=output_stride, dilation=dilation)
    unknown = "imagenet" if known.model.head == "classifier" else "custom"
    data = DataConfig(dataset=known.dataset or unknown)
    if data.dataset == "cityscapes":  # PyTorch-Encoding's sizes, which its evaluator takes
        data = dataclasses.replace(data, base_size=2048, crop_size=768)
    config = RunConfig(model=known.model, data=data)
    segmenter = segmenter_for(config, label_space(known, file.metadata), num_classes=known.num_classes)
    kept = load_weights(segmenter, known.weights)
    beside = tuple((name, "it is no part of the model") for name in file.skipped)
    segmenter.load_report = LoadReport(
        path=path,
        format=known.format,
        network=f"{segmenter.description}, {known.num_classes} classes ({known.dataset or 'data set unknown'})",
        loaded=len(known.weights),
        skipped=known.skipped + beside,
        kept=tuple(kept),
        assumed=known.assumed,
    )
    return segmenter.eval()
