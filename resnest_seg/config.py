"""The configuration of a run: frozen dataclasses, one YAML file per run, dotted overrides on the command line.

The dataclasses are the only list of keys: `--help`, the YAML reader, the file in the run folder and the checkpoint are
derived from them, and the range of a key is declared with it. `PretrainConfig` is the configuration of a run that
trains an image classifier. This module imports no torch, so that `--help` is fast.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from resnest_seg.config_reading import NestedConfig, kinds_of, load_config
from resnest_seg.config_types import within
from resnest_seg.errors import ConfigError, unknown_name
from resnest_seg.labels import TASKS

LOSSES = ("cross_entropy", "ohem", "dice", "focal", "lovasz", "tversky")
"""Names in `train.loss`."""

LABEL_LOSSES = tuple(name for name in LOSSES if name != "ohem")
"""Names in `train.loss` of binary and multi-label tasks; cross_entropy is the binary one of every label."""

CLASS_WEIGHTS = ("none", "median_frequency", "effective_number", "balanced")
"""Values of `train.class_weights`."""

SEMI_METHODS = ("fixmatch", "unimatch")
"""Values of `semi.method`."""

SEMI_TEACHERS = ("self", "ema")
"""Values of `semi.teacher`."""

DISTILL_METHODS = ("kl", "cwd", "both")
"""Values of `distill.method`."""

CUSTOM = "custom"
"""Value of `data.dataset`, `model.encoder` or `model.head` for a part of the user's own, which no name builds."""

COUNT = 10**9
"""Maximum of keys that count epochs, steps or samples, beyond any real run."""


def _check_bands(model: ModelConfig, data: DataConfig) -> None:
    """Check the bands and their statistics against each other and the channels of the model."""
    bands = data.bands or ()
    for band in bands:
        if isinstance(band, int) and band < 1:
            raise ConfigError(f"data.bands counts bands from 1, not {band}.")
        if bands.count(band) > 1:
            raise ConfigError(f"data.bands names {band} twice.")
    if data.bands is not None and len(bands) != model.in_channels:
        raise ConfigError(
            f"model.in_channels is {model.in_channels}, and data.bands names {len(bands)} bands: leave "
            "model.in_channels out, it follows."
        )
    if data.nodata is not None and data.bands is None:
        raise ConfigError("data.nodata belongs to data.bands: name the bands of the files as well, such as [1, 2, 3].")
    if (data.pixel_mean is None) != (data.pixel_std is None):
        raise ConfigError("data.pixel_mean and data.pixel_std go together: give both, or neither.")
    for key, values in (("data.pixel_mean", data.pixel_mean), ("data.pixel_std", data.pixel_std)):
        if values is not None and len(values) != model.in_channels:
            channels = "data.bands" if data.bands is not None else "model.in_channels"
            raise ConfigError(f"{key} has {len(values)} values, for the {model.in_channels} channels of {channels}.")


def _check_shard_window(data: DataConfig) -> None:
    """Refuse options that read samples from anywhere, which a window of shards is to avoid."""
    if data.shard_window is None:
        return
    for key, given in (("rare_class", data.rare_class is not None), ("class_mix", data.class_mix > 0)):
        if given:
            raise ConfigError(
                f"data.{key} takes samples from anywhere, and data.shard_window {data.shard_window} reads few shards "
                "at a time: leave one of them out."
            )


def _check_loss(train: TrainConfig) -> None:
    names, weights = loss_names(train.loss), train.class_weights
    if weights not in CLASS_WEIGHTS:
        raise unknown_name("train.class_weights", weights, CLASS_WEIGHTS)
    if train.pos_weight != 1 and not {"cross_entropy", "focal"} & set(names):
        raise ConfigError(f"train.pos_weight belongs to cross_entropy and focal, and train.loss is {train.loss}.")
    for key, given, losses in (
        ("class_weights", weights not in ("none", "balanced"), ("cross_entropy", "ohem")),
        ("class_weights balanced", weights == "balanced", ("cross_entropy", "focal")),
        ("label_smoothing", train.label_smoothing > 0, ("cross_entropy", "ohem")),
    ):
        if given and not {*losses} & {*names}:
            raise ConfigError(f"train.{key} belongs to {' and '.join(losses)}, and train.loss is {train.loss}.")


def _check_task(config: RunConfig) -> None:
    """Refuse options that the task cannot have."""
    task, data, train = config.model.task, config.data, config.train
    if task not in TASKS:
        raise unknown_name("model.task", task, TASKS)
    if data.positive is not None and task != "binary":
        raise ConfigError(f"data.positive names the object of a binary task, and model.task is {task}.")
    if task == "multiclass":
        if train.class_weights == "balanced" or train.pos_weight != 1:
            key = "class_weights balanced" if train.class_weights == "balanced" else "pos_weight"
            raise ConfigError(f"train.{key} is for model.task binary and multilabel, not {task}.")
        return
    if "ohem" in loss_names(train.loss) or train.label_smoothing:
        key = "label_smoothing" if train.label_smoothing else "loss ohem"
        raise ConfigError(f"train.{key} is for model.task multiclass, not {task}.")
    if train.class_weights not in ("none", "balanced"):
        raise ConfigError(f"train.class_weights {train.class_weights} is for model.task multiclass: use balanced.")
    if task == "multilabel":
        for key, given in (("class_mix", data.class_mix), ("rare_class", data.rare_class)):
            if given:
                raise ConfigError(f"data.{key} needs one class a pixel, and model.task is multilabel: leave it out.")


def _check_semi(config: RunConfig) -> None:
    """Refuse what does not go together in learning from unlabelled photos, or is set and would do nothing."""
    semi, train = config.semi, config.train
    for key, value, known in (("method", semi.method, SEMI_METHODS), ("teacher", semi.teacher, SEMI_TEACHERS)):
        if value not in known:
            raise unknown_name(f"semi.{key}", value, known)
    if train.unlabelled is None:
        for field in dataclasses.fields(semi):
            if getattr(semi, field.name) != field.default:
                raise ConfigError(f"semi.{field.name} is for unlabelled photos, and train.unlabelled names none.")
        return
    if config.model.head == "mask2former":
        raise ConfigError(
            "train.unlabelled does not go with head mask2former, which predicts masks and not pixels: choose another "
            "head, such as deeplabv3plus of family mmseg."
        )
    if config.data.window is not None:
        raise ConfigError(
            "train.unlabelled reads whole photos and data.window windows of rasters: leave one of them out."
        )
    if semi.teacher == "ema" and not train.ema:
        raise ConfigError("semi.teacher ema is the moving average of the weights: set train.ema as well, such as 0.99.")
    if semi.teacher == "ema" and train.parallel == "fsdp":
        raise ConfigError("semi.teacher ema does not go with train.parallel fsdp: take ddp, or semi.teacher self.")


def _check_distill(distill: DistillConfig) -> None:
    for key, value, known in (
        ("method", distill.method, DISTILL_METHODS),
        ("precision", distill.precision, ("auto", "fp32", "bf16", "fp16")),
    ):
        if value not in known:
            raise unknown_name(f"distill.{key}", value, known)
    if distill.teacher is None:
        for field in dataclasses.fields(distill):
            if getattr(distill, field.name) != field.default:
                raise ConfigError(f"distill.{field.name} is for a teacher, and distill.teacher names none.")
        return
    weights = {"kl": distill.kl_weight, "cwd": distill.cwd_weight}
    for name, weight in weights.items():
        if distill.method == name and not weight:
            raise ConfigError(f"distill.{name}_weight is 0, and distill.method is {name}: nothing would be taught.")
    if not any(weights.values()):
        raise ConfigError("distill.kl_weight and distill.cwd_weight are both 0: nothing would be taught.")
    twins = [name for place, name in enumerate(distill.teacher) if name in distill.teacher[:place]]
    if twins:
        raise ConfigError(f"distill.teacher names {twins[0]} twice.")


def loss_names(text: str) -> tuple[str, ...]:
    """Parse `train.loss`: "cross_entropy+dice" -> ("cross_entropy", "dice").

    Raises:
        ConfigError: A name is unknown (the message suggests the nearest) or repeated.
    """
    names = tuple(name.strip() for name in text.split("+"))
    for name in names:
        if name not in LOSSES:
            raise unknown_name("loss in train.loss:", name, LOSSES)
        if names.count(name) > 1:
            raise ConfigError(f"train.loss names {name} twice: {text!r}.")
    return names


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The network; the number of classes comes from the data set's label space."""

    encoder: str = "resnest50"
    """Encoder: resnest14, 26, 50, 101, 200 or 269, resnest14_tiny, resnest50_fast_1s1x64d (2s1x64d, 4s1x64d, 1s2x40d,
    2s2x40d, 4s2x40d, 1s4x24d), resnet50, 101 or 152, the same with s (deep stem), resnet50c or 101c (mmsegmentation's
    deep stem), resnet50d, resnext50_32x4d, resnext101_32x8d, or smp:NAME, any of segmentation-models-pytorch."""
    head: str = "deeplabv3"
    """Decoder: fcn or deeplabv3, in family mmseg also pspnet, deeplabv3plus and mask2former, or smp:NAME with unet,
    unetplusplus, manet, linknet, fpn, pspnet, deeplabv3, deeplabv3plus, pan, upernet or segformer."""
    pixel_decoder: str = "deformable"
    """For head mask2former: deformable (attention over three strides, as published) or fpn (convolutions alone)."""
    family: str = "encoding"
    """Form of the heads and resizing of logits: encoding (the authors', aligned corners) or mmseg (mmsegmentation's,
    wider heads, corners not aligned)."""
    output_stride: int = 8
    """Input pixels per pixel of the last feature map: 8, 16 or 32."""
    dilation: str = "encoding"
    """Variant of the dilated network (the variants load each other's weights silently): encoding, mmseg or timm."""
    aux_head: bool = True
    """Train an auxiliary FCN head on the third stage."""
    in_channels: int = within(3, 1, 4096)
    """Channels of the images; 3 follows data.bands, where that is given."""
    encoder_weights: str | None = None
    """Initial weights of the encoder: imagenet (published weights, downloaded once), a weight file of any published
    format, a run folder, the name of a published checkpoint (`resnest-seg zoo` lists them), or null for random ones."""
    weights: str | None = None
    """Initial weights of the whole model, in place of encoder_weights: a run folder, a weight file of any known format
    or the name of a published checkpoint. Tensors that do not fit (a classifier of other classes) stay random."""
    drop_block: float = within(0.0, 0, 1, below=True)
    """Share of pixels that DropBlock zeroes in the last two stages during training."""
    drop_path: float = within(0.0, 0, 1, below=True)
    """Stochastic depth: probability that an image skips the last residual block in training, less for earlier ones."""
    zero_gamma: bool = False
    """Initialise the last norm of every residual branch with weight 0, so that blocks start as the identity."""
    rectify: str = "none"
    """Rectification of padded convolutions at the border: none, rectify or rectify_avg; weights have equal shapes."""
    checkpointing: bool = False
    """Activation checkpointing: keep only the blocks' inputs and recompute the rest; less memory, more time."""
    task: str = "multiclass"
    """Task: multiclass (one of K classes a pixel), binary (an object or background: one logit) or multilabel (any of K
    labels a pixel, from 16-bit masks of bits)."""


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The data set and the augmentation of training samples."""

    dataset: str = "ade20k"
    """Data set: synthetic, camvid, ade20k, cityscapes, folder (your own photos and masks) or shards (what `pack`
    wrote)."""
    root: str | None = None
    """Folder, zip file or address (s3://...) of the data set; null for $RESNEST_SEG_DATA/<dataset>, or
    datasets/<dataset> if that is not set."""
    images: str | None = None
    """For folder: the photos below root, a folder or a pattern such as photos/{split}/**/*_rgb.png; null recognises."""
    masks: str | None = None
    """For folder: the masks, with as many wildcards, which match the same text as those of their photo."""
    positive: str | None = None
    """For model.task binary: the classes, separated by commas, that are the object; null where masks are binary."""
    classes: str | None = None
    """For folder: the class list, a CSV or YAML file of names, ids and colours; null takes classes.csv in the folder,
    or infers the classes from the masks."""
    window: int | None = within(None, 32, 16384)
    """For folder: read TIFF files of any size by windows of so many pixels a side; null reads whole images."""
    window_overlap: int | None = within(None, 0, 8192)
    """Pixels of context around each window in validation, whose labels do not count; null is an eighth of window."""
    recipe: str = "encoding"
    """Augmentation recipe: encoding (the authors': random long edge, black padding) or mmseg (mmsegmentation's: canvas
    of long_edge x base_size times a ratio, one class below 75 % of the crop, photometric distortion)."""
    base_size: int = within(520, 1, 16384)
    """Length in pixels of a training image's edge at scale 1: the long edge in recipe encoding, the short in mmseg."""
    long_edge: int = within(2048, 1, 16384)
    """For recipe mmseg: length in pixels of the canvas's long edge at scale 1."""
    crop_size: int = within(480, 1, 16384)
    """Height of the training crop in pixels, and its width if crop_width is null."""
    crop_width: int | None = within(None, 1, 16384)
    """Width of the training crop in pixels; null for a square crop."""
    scale_min: float = within(0.5, 0.01, 16)
    """Smallest random scale."""
    scale_max: float = within(2.0, 0.01, 16)
    """Largest random scale."""
    flip: float = within(0.5, 0, 1)
    """Probability of a horizontal flip."""
    rotate: float = within(0.0, 0, 180)
    """Maximum rotation in degrees."""
    color_jitter: float = within(0.0, 0, 2)
    """Maximum change of brightness, contrast and saturation, as a share; hue changes by up to a quarter of it."""
    blur: float = within(0.0, 0, 1)
    """Probability of a slight Gaussian blur."""
    coarse_dropout: float = within(0.0, 0, 1)
    """Probability of erasing one to four rectangles, whose labels are ignored."""
    class_mix: float = within(0.0, 0, 1)
    """Probability of pasting half of the classes of another sample onto a sample (ClassMix)."""
    rare_class: float | None = within(None, 0.001, 100)
    """Temperature of rare-class sampling (0.01 strong, 1 weak; needs a pass over all masks); null draws every photo
    once per epoch."""
    shard_window: int | None = within(None, 1, COUNT)
    """For packed shards: read so many shards at a time, in a random order, and shuffle samples within these, for
    storage that is slow at random places; null shuffles over everything, as of any data set."""
    bands: tuple[int | str, ...] | None = None
    """Bands of raster files (TIFF, PNG, .npy) in the order of the model's channels: numbers from 1, or the names that a
    GeoTIFF gives them, such as 4,3,2,8. Values are taken as they are, of 8 or 16 bits or float32; null reads photos as
    8-bit RGB."""
    pixel_mean: tuple[float, ...] | None = within(None, -3.5e38, 3.5e38)
    """Mean of each channel in the units of the files, by which the model normalises; null takes ImageNet's for 8-bit
    RGB, and else that of the training split."""
    pixel_std: tuple[float, ...] | None = within(None, 0, 3.5e38, above=True)
    """Standard deviation of each channel, likewise."""
    nodata: float | None = within(None, -3.5e38, 3.5e38)
    """With bands: the value of pixels without data, besides the file's own value, mask or alpha band. They get the
    band's mean, and are ignored where no band has data."""
    check: int = within(64, 0, COUNT)
    """Number of training samples, evenly spread, that are checked before the first step; 0 checks none."""
    workers: int = within(4, 0, 256)
    """Loader processes for each training process; 0 loads in the training process. Results do not depend on it."""
    cache: str | None = None
    """Folder on a local disk for copies of what is read from an address, which later epochs, other processes and other
    runs read there; null keeps none."""
    cache_size: float = within(20.0, 0.001, 1 << 20)
    """Limit of all copies in GiB; what was not read for longest makes room."""
    samples: str | None = None
    """Text file with the names of the samples that are the training split, one a line: photos below root, or their
    names without folder and suffix; null takes all."""


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """The optimiser, the trained parameters, and the schedule."""

    optimizer: str = "sgd"
    """Optimiser: sgd (with momentum) or adamw."""
    lr: float = within(0.01, 0, 100, above=True)
    """Highest learning rate of the encoder, for an effective batch of reference_batch images."""
    reference_batch: int | None = within(16, 1, 65536)
    """Effective batch of lr and min_lr, which are scaled by train.batch_size / reference_batch; null does not scale."""
    head_lr_factor: float = within(10.0, 0, 10000, above=True)
    """Learning rate of the heads, as a multiple of the encoder's."""
    layer_decay: float = within(1.0, 0, 1, above=True)
    """Learning rate of each encoder stage, as a multiple of the next one's: layer4 has lr * layer_decay, layer3 that
    times layer_decay, and so on to the stem; 1 for equal rates."""
    freeze: str | None = None
    """Frozen parts, comma-separated: stem, layer1, layer2, layer3, layer4, encoder (all of these); bn freezes the
    statistics of the encoder's batch norms, head_bn those of the heads'; null freezes nothing."""
    momentum: float = within(0.9, 0, 1, below=True)
    """Momentum of SGD; the first beta of AdamW."""
    weight_decay: float = within(1e-4, 0, 10)
    """L2 penalty of SGD; decoupled decay of AdamW."""
    decay: str = "all"
    """Scope of weight_decay: all parameters; weights, without norms and biases; or no_norms, all but norms and
    embeddings (as transformers are trained)."""
    clip_norm: float = within(0.0, 0, 1e6)
    """Largest norm of the gradient of all parameters together, to which larger ones are scaled; 0 does not clip."""
    schedule: str = "poly"
    """Learning-rate schedule after the warm-up: poly, (1 - t) ** power, or cosine, (1 + cos(pi t)) / 2."""
    power: float = within(0.9, 0, 100, above=True)
    """Exponent of the poly schedule."""
    min_lr: float = within(0.0, 0, 100)
    """Learning rate at the end of the schedule, scaled like lr."""
    warmup: float = within(0.0, 0, COUNT)
    """Length of the linear warm-up from lr / 1000, in epochs if train.epochs is set, else in iterations."""


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """The training loop of segmentation models and classifiers."""

    epochs: int | None = within(120, 1, COUNT)
    """Length of the run in passes over the training split; null if train.iterations is set."""
    iterations: int | None = within(None, 1, COUNT)
    """Length of the run in optimiser steps; null if train.epochs is set."""
    batch_size: int = within(16, 1, 65536)
    """Effective batch: images per optimiser step over all processes and accumulated micro-batches."""
    accumulation: int = within(1, 1, 65536)
    """Micro-batches per optimiser step; raise it if the effective batch does not fit into memory."""
    precision: str = "auto"
    """Precision: fp32, bf16, fp16, or auto (bf16 or fp16 on a GPU that supports it, fp32 elsewhere)."""
    sync_bn: bool = True
    """Synchronise batch norm's statistics over processes (several GPU processes only)."""
    parallel: str = "ddp"
    """Distribution over several processes: ddp (each holds the model) or fsdp (each holds a shard: less memory)."""
    peer_timeout: int = within(600, 5, 86400)
    """Seconds that a process waits for the others of the run, if one of them no longer answers; then the run ends, and
    torchrun starts it again. It must be longer than the machines differ in reading the list of a data set."""
    ema: float = within(0.0, 0, 1, below=True)
    """Decay of a moving average of the weights, after a warm-up: min(ema, (1 + t) / (10 + t)) in update t; for runs of
    5 / (1 - ema) steps or more. Average and weights are both validated, at twice the cost, and the better is kept as
    best. 0 disables it."""
    validate_every: int = within(1, 1, COUNT)
    """Epochs between validations; the end of the run is always validated."""
    validate_every_steps: int = within(0, 0, COUNT)
    """Optimiser steps between validations, instead of validate_every; 0 counts epochs."""
    patience: int = within(0, 0, COUNT)
    """Early stopping: end the run after this many validations without a better mIoU; 0 disables it."""
    save_every: int = within(0, 0, COUNT)
    """Optimiser steps between checkpoints; 0 for one after every epoch. One is also saved before a validation."""
    keep: int = within(2, 1, 1000)
    """Number of newest checkpoints to keep, in case one is corrupt."""
    log_every: int = within(10, 1, COUNT)
    """Optimiser steps between lines in metrics.jsonl, machine.jsonl and the trackers. If the output is no terminal,
    such a step also prints a line of progress, if 30 s and a hundredth of the time so far have passed since the
    last."""
    trackers: str = "tensorboard"
    """Trackers of the curves, separated by commas: tensorboard, and where installed wandb, mlflow, trackio, aim,
    clearml, comet_ml, dvclive, swanlab; or none. The run has the name of its folder there."""
    tags: str | None = None
    """Tags of the run, separated by commas, in trackers that have tags."""


@dataclasses.dataclass(frozen=True)
class TrainConfig(LoopConfig):
    """The training loop of a segmentation model, and its loss."""

    loss: str = "cross_entropy"
    """Loss, or several joined by + and added up: cross_entropy; ohem (cross-entropy of hard pixels); and dice, focal,
    lovasz, tversky, which need the memory of full-size logits. For model.task binary and multilabel, cross_entropy is
    the binary one of every label, and ohem does not exist."""
    class_weights: str = "none"
    """Weights of the classes in cross_entropy and ohem, from the training masks: none, median_frequency or
    effective_number (both need a pass over all masks); for model.task binary and multilabel balanced, which makes the
    pixels with and without a label weigh the same, in cross_entropy and focal."""
    pos_weight: float = within(1.0, 0, 1e6, above=True)
    """For model.task binary and multilabel: weight of the pixels that have a label, in cross_entropy and focal."""
    label_smoothing: float = within(0.0, 0, 1, below=True)
    """Share of the target that cross_entropy and ohem spread over all classes."""
    ohem_threshold: float = within(0.7, 0, 1)
    """For ohem: a pixel counts whose own class has less than this probability."""
    ohem_min_kept: int = within(100_000, 0, COUNT)
    """For ohem: at least so many pixels for each image of a micro-batch count, the hardest of all its images."""
    aux_weight: float = within(0.2, 0, 100)
    """Weight of the auxiliary head's loss."""
    mask_points: int = within(12544, 4, 1_000_000)
    """For model.head mask2former: points at which a mask is compared, three quarters where it is least sure. 12544 is
    published, for crops of 512 x 512 and more; smaller crops need fewer."""
    unlabelled: str | None = None
    """Unlabelled photos to learn from as well, as group semi says: a folder, a pattern such as photos/**/*.jpg, a zip
    file or an address; null takes none."""


@dataclasses.dataclass(frozen=True)
class SemiConfig:
    """Learning from unlabelled photos, if train.unlabelled names some: a model labels a weakly augmented crop of each,
    where it is certain, and strongly augmented views of the crop are trained on these labels."""

    method: str = "unimatch"
    """Method: fixmatch (one strong view) or unimatch (two strong views, and the weak one with perturbed features)."""
    ratio: int = within(1, 1, 64)
    """Unlabelled photos for each labelled one; a batch has train.batch_size labelled ones."""
    threshold: float = within(0.95, 0, 1)
    """Least probability of a predicted class for the pixel to be trained on; UniMatch takes 0 for Cityscapes."""
    weight: float = within(0.5, 0, 1, below=True)
    """Weight of the unlabelled photos' loss; the labelled ones' has the rest."""
    ramp_up: float = within(0.0, 0, COUNT)
    """Length of the rise of that weight from nearly 0, exp(-5 (1 - t)^2), in epochs if train.epochs is set, else in
    iterations; 0 gives it from the start."""
    teacher: str = "self"
    """Labels come from the model itself (self), or from the moving average of its weights (ema, needs train.ema)."""
    cutmix: float = within(0.5, 0, 1)
    """Probability of pasting a rectangle of another unlabelled photo, with its labels, into a strong view."""
    feature_dropout: float = within(0.5, 0, 1, below=True)
    """For unimatch: share of the channels that are zeroed in the perturbed features."""


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Validation during training."""

    split: str = "val"
    """Split to validate on: train, val or test, if the data set has it."""
    protocol: str = "whole"
    """Inference protocol: whole (one pass over the image at its original size), slide, or a slower multi-scale one:
    encoding, mmseg, mmseg0, paddle."""
    limit: int | None = within(None, 1, COUNT)
    """Number of images to validate on, the first ones; null for all."""
    sheet: int = within(6, 0, 256)
    """Number of validation images, evenly spread, on the contact sheet of the run folder; 0 draws none, and report.html
    has no pictures then, either."""
    memory: int = within(1024, 1, 1 << 24)
    """Memory limit of class scores in MiB; a larger image is scored a few rows at a time."""


@dataclasses.dataclass(frozen=True)
class DistillConfig:
    """What other models teach, beside the labels (distillation)."""

    teacher: tuple[str, ...] | None = None
    """Models that teach: run folders, checkpoint files, names of published checkpoints or exported files; of several,
    the mean of what they say is learned. Classes are matched by name. null for labels alone."""
    method: str = "kl"
    """What is compared with the teacher: kl (the classes of each pixel), cwd (channel-wise: the pixels of each class),
    or both."""
    kl_weight: float = within(1.0, 0, 10000)
    """Weight of kl; 1 as published."""
    cwd_weight: float = within(3.0, 0, 10000)
    """Weight of cwd; 3 as published for logits."""
    temperature: float | None = within(None, 0.01, 1000)
    """Temperature of the teacher's and the model's softmax, by whose square the loss is multiplied; null is the
    published one, 1 for kl and 4 for cwd."""
    precision: str = "auto"
    """Precision of teachers that are checkpoints: fp32, bf16, fp16, or auto, that of the training. An exported file
    runs as it was exported."""


@dataclasses.dataclass(frozen=True)
class RunConfig(NestedConfig):
    """The configuration of a run; it determines the result. `RunConfig.from_dict` takes nested dictionaries."""

    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    semi: SemiConfig = dataclasses.field(default_factory=SemiConfig)
    eval: EvalConfig = dataclasses.field(default_factory=EvalConfig)
    distill: DistillConfig = dataclasses.field(default_factory=DistillConfig)
    seed: int = within(0, 0, 2**63, below=True)
    """Seed of the weights, the order of samples and their augmentation."""
    output: str | None = None
    """Run folder, which must not exist; null for runs/<dataset>_<head>_<encoder>, or runs/<name of the file> for a
    config file of your own, with -2, -3 ... behind it if that exists."""

    def __post_init__(self) -> None:
        if isinstance(self.model, ModelConfig) and isinstance(self.data, DataConfig):
            bands, channels = self.data.bands, ModelConfig.in_channels
            if isinstance(bands, tuple) and bands and self.model.in_channels == channels:
                object.__setattr__(self, "model", dataclasses.replace(self.model, in_channels=len(bands)))
        super().__post_init__()
        _check_bands(self.model, self.data)
        _check_shard_window(self.data)
        low, high = self.data.scale_min, self.data.scale_max
        if high < low:
            raise ConfigError(f"data.scale_max ({high}) is below data.scale_min ({low}).")
        _check_loss(self.train)
        _check_task(self)
        _check_semi(self)
        _check_distill(self.distill)


AUGMENTS = ("none", "auto", "rand")
"""Values of `classify.augment`."""


@dataclasses.dataclass(frozen=True)
class ClassifierConfig:
    """The network of a classifier; the number of classes comes from the data."""

    encoder: str = "resnest50"
    """Encoder: any that `model.encoder` of a segmentation model names."""
    output_stride: int = 32
    """Input pixels per step of the last feature map: 8, 16 or 32."""
    dilation: str = "encoding"
    """At an output stride below 32, which network the dilated weights belong to: encoding, mmseg or timm."""
    encoder_weights: str | None = None
    """Initial weights of the encoder: imagenet (published weights, downloaded once), a weight file of any published
    format, a run folder, the name of a published checkpoint (`resnest-seg zoo` lists them), or null for fresh ones."""
    drop_block: float = within(0.0, 0, 1, below=True)
    """Share of pixels that DropBlock clears in the last two stages while training."""
    drop_path: float = within(0.0, 0, 1, below=True)
    """Share of images that skip the last residual block while training, less for earlier ones (stochastic depth)."""
    zero_gamma: bool = False
    """Start with a zero weight in the last norm of every residual branch, so that blocks start as the identity."""
    rectify: str = "none"
    """Correct padded convolutions at the border: none, rectify or rectify_avg. Another network, equal weights."""
    checkpointing: bool = False
    """Keep only the blocks' inputs for the backward pass and compute the rest twice: less memory, more time."""

    @property
    def network(self) -> ModelConfig:
        """The config of a network with this encoder, as the builders of encoders take it."""
        return ModelConfig(**dataclasses.asdict(self), head="classifier", aux_head=False)


@dataclasses.dataclass(frozen=True)
class ClassFolderConfig:
    """The images and the size of their crops; `classify` has the rest of the recipe."""

    dataset: str = "imagenet"
    """Name of the data set, which decides where it is looked for if root is null."""
    root: str | None = None
    """Folder or address (s3://...) with train/<class>/* and val/<class>/*; null looks in $RESNEST_SEG_DATA/<dataset>,
    then in datasets/<dataset>."""
    crop_size: int = within(224, 1, 16384)
    """Height in pixels of the crops of training and validation, and their width where crop_width is null."""
    crop_width: int | None = within(None, 1, 16384)
    """Width in pixels of the crops; null makes them square."""
    flip: float = within(0.5, 0, 1)
    """Probability of a horizontal flip."""
    workers: int = within(4, 0, 256)
    """Loader processes for each training process; 0 loads in the training process. Results do not depend on it."""
    cache: str | None = None
    """Folder on a local disk for copies of what is read from an address, which later epochs, other processes and other
    runs read there; null keeps none."""
    cache_size: float = within(20.0, 0.001, 1 << 20)
    """Limit of all copies in GiB; what was not read for longest makes room."""


@dataclasses.dataclass(frozen=True)
class ClassifyConfig:
    """Augmentation and regularisation of a classifier."""

    augment: str = "auto"
    """Changes of colour and shape after the crop: none, auto (AutoAugment, ImageNet's policy) or rand (RandAugment)."""
    area_min: float = within(0.08, 0, 1, above=True)
    """Smallest share of the image that a training crop shows."""
    mixup: float = within(0.2, 0, 100)
    """Alpha of MixUp, which blends pairs of images and of their labels; 0 turns it off."""
    cutmix: float = within(0.0, 0, 100)
    """Alpha of CutMix, which pastes a rectangle of one image into another; with mixup, a batch gets either one."""
    label_smoothing: float = within(0.1, 0, 1, below=True)
    """Share of the truth that is spread over all classes."""
    dropout: float = within(0.2, 0, 1, below=True)
    """Probability of dropout before the last layer."""
    eval_share: float = within(0.875, 0, 1, above=True)
    """Side of the validation's centre crop, times the short edge of the resized image."""


@dataclasses.dataclass(frozen=True)
class PretrainConfig(NestedConfig):
    """The whole configuration of a classifier's training run."""

    model: ClassifierConfig = dataclasses.field(default_factory=ClassifierConfig)
    data: ClassFolderConfig = dataclasses.field(default_factory=ClassFolderConfig)
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    train: LoopConfig = dataclasses.field(default_factory=lambda: LoopConfig(epochs=270, batch_size=256))
    classify: ClassifyConfig = dataclasses.field(default_factory=ClassifyConfig)
    seed: int = within(0, 0, 2**63, below=True)
    """Seed of the weights, of the order of samples and of their augmentation."""
    output: str | None = None
    """Run folder, which must not exist; null for runs/<dataset>_classifier_<encoder>, or runs/<name of the file> for a
    config file of your own, with -2, -3 ... behind it if that exists."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.classify.augment not in AUGMENTS:
            raise unknown_name("classify.augment", self.classify.augment, AUGMENTS)


AnyConfig = RunConfig | PretrainConfig
"""The config of a run of either kind: the loop reads `optim`, `train`, `seed` and `output`, which both have."""

C = TypeVar("C", RunConfig, PretrainConfig)


def config_keys(owner: type = RunConfig) -> list[str]:
    """List the dotted keys of a run's config, in the order of the dataclasses."""
    return list(kinds_of(owner))


def load_run_config(path: str | Path, *, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run's YAML file and apply dotted overrides; see `load_config`."""
    return load_config(path, RunConfig, overrides=overrides)


def config_from_dict(values: Mapping[str, Any]) -> AnyConfig:
    """Build a config from nested dictionaries, as checkpoints store it; a classifier's has the group `classify`.

    Raises:
        ConfigError: A key does not exist, or a value is invalid.
    """
    return PretrainConfig.from_dict(values) if "classify" in values else RunConfig.from_dict(values)
