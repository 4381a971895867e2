"""Loading checkpoints of every known format: as a whole model, for fine-tuning, or as encoder weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils import convert_conv2d_weight_memory_format

from resnest_seg.config import ClassifierConfig, DataConfig, ModelConfig, PretrainConfig, RunConfig
from resnest_seg.errors import CheckpointError, ConfigError, DownloadError, unknown_name
from resnest_seg.labels import LabelSpace
from resnest_seg.models.checkpoint import FORMAT, Checkpoint, find_checkpoint
from resnest_seg.models.classifier import NO_CLASSIFIER, Classifier, fresh_classifier
from resnest_seg.models.conversion import (
    CLASSIFIER,
    Recognised,
    encoder_of_name,
    encoder_weights,
    label_space,
    recognise,
    rename,
)
from resnest_seg.models.published import PublishedCheckpoint, imagenet_checkpoint, published, published_names
from resnest_seg.models.resnest import ResNeSt, adapt_first_convolution
from resnest_seg.models.segmenter import CANNOT_SEGMENT, LoadReport, Segmenter, fresh_segmenter, load_weights, misfits
from resnest_seg.models.weight_files import WeightFile, check_finite, naming_file, read_weights


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
        encoder: A name of `resnest_seg.models.resnest.SPECS`, or "smp:" and an encoder of segmentation-models-pytorch.
        head: "fcn" or "deeplabv3", in family "mmseg" also "pspnet" and "deeplabv3plus", or "smp:" and a decoder of
            segmentation-models-pytorch, see `resnest_seg.models.smp`.
        num_classes: K, at least 1.
        output_stride: 8, 16 or 32 input pixels per step of the last features.
        dilation: The dilated network that is meant, see `resnest_seg.models.resnest`; SMP's encoders have their own.
        aux_head: Add an FCN head on the third stage for training.
        family: "encoding" or "mmseg": whose form the heads have, and whether logits are resized with aligned corners.
        in_channels: Channels of the images.
        encoder_weights: "imagenet", a weight file, or the name of a published checkpoint; None asks no network.
        drop_block: Share of pixels that DropBlock clears in the last two stages while training.
        drop_path: Share of images that skip the last residual block while training (stochastic depth).
        zero_gamma: Start with a zero weight in the last norm of every residual branch.
        rectify: "none", "rectify" or "rectify_avg", see `resnest_seg.models.resnest`.
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


def classifier_for(config: PretrainConfig, *, num_classes: int, pretrained: bool = True) -> Classifier:
    """The classifier that a config describes, in training mode; arguments and errors are those of `segmenter_for`."""
    classifier = fresh_classifier(config, num_classes=num_classes, smp_weights=pretrained)
    if pretrained and config.model.encoder_weights is not None and isinstance(classifier.encoder, ResNeSt):
        load_encoder(classifier.encoder, config.model.network)
        convert_conv2d_weight_memory_format(classifier, torch.channels_last)
    return classifier


def load_checkpoint(path: str | Path, *, output_stride: int | None = None, dilation: str | None = None) -> Segmenter:
    """Load a segmentation model for inference.

    Recognised by their keys are our own files and run folders (the best checkpoint, else the last), PyTorch-Encoding's
    segmentation files (in their zip or out of it) and mmsegmentation's.

    Args:
        path: A file, a run folder, or the name of a published checkpoint, which is downloaded once.
        output_stride: For files of others, which do not tell it: the network's. None assumes 8.
        dilation: For files of others: the dilation variant. None takes that of the code the file comes from.

    Returns:
        The model in eval mode on the CPU; `.label_space` names its classes, `.config` says what it is, `.load_report`
        what was loaded.

    Raises:
        CheckpointError: There is no such file or name, it is damaged, wants to run code, or does not fit; or it is an
            image classifier.
        DownloadError: A published file cannot be fetched.
        ConfigError: An output stride or dilation that does not exist.
    """
    found, entry = _locate(path)
    with naming_file(found):
        file = read_weights(found)
        if file.metadata.get("format") == FORMAT:
            return _own(found, output_stride, dilation)
        return _foreign(found, file, entry, output_stride, dilation)


def load_classifier(path: str | Path, *, output_stride: int | None = None, dilation: str | None = None) -> Classifier:
    """Load an image classifier: one of ours, or an ImageNet classifier of the ResNeSt repository, timm or torchvision.

    Args:
        path: A file, a run folder, or the name of a published checkpoint, which is downloaded once.
        output_stride: For files of others: that of the network to build; None takes 32.
        dilation: For files of others, at an output stride below 32: the dilation variant.

    Returns:
        The model in eval mode on the CPU, with its `.load_report`.

    Raises:
        CheckpointError: See `load_checkpoint`; or it is a segmentation model.
        DownloadError: A published file cannot be fetched.
        ConfigError: An output stride or dilation that does not exist.
    """
    found, entry = _locate(path)
    with naming_file(found):
        file = read_weights(found)
        if file.metadata.get("format") == FORMAT:
            classifier = Classifier.from_checkpoint(Checkpoint.load(found))
            report = LoadReport(found, "resnest_seg", "", len(classifier.state_dict()))
        else:
            known = _recognise(found, file, entry, output_stride, dilation)
            if not known.classifies:
                raise CheckpointError(NO_CLASSIFIER)
            theirs = known.model
            model = ClassifierConfig(
                encoder=theirs.encoder, output_stride=theirs.output_stride, dilation=theirs.dilation
            )
            classifier = fresh_classifier(PretrainConfig(model=model), num_classes=known.num_classes)
            load_weights(classifier, known.weights)
            report = LoadReport(found, known.format, "", len(known.weights), known.skipped, assumed=known.assumed)
    network = f"{classifier.description}, {classifier.num_classes} classes"
    classifier.load_report = dataclasses.replace(report, network=network)
    return classifier.eval()


def _locate(path: str | Path) -> tuple[Path, PublishedCheckpoint | None]:
    """The file that is meant, and its entry in the table of published files where it is named."""
    entry = None if Path(path).exists() else published(str(path))
    if entry is None and not Path(path).exists():
        raise CheckpointError(
            f"no checkpoint {path}: there is no such file or run folder, and no published checkpoint of that name. "
            "tools/zoo_seg.py lists the names."
        )
    return find_checkpoint(path) if entry is None else entry.fetch(), entry


def _recognise(
    path: Path, file: WeightFile, entry: PublishedCheckpoint | None, output_stride: int | None, dilation: str | None
) -> Recognised:
    if dilation is None and entry is not None and entry.source == "timm":
        dilation = "timm"
    hint = path.name if entry is None else entry.encoder
    return recognise(file.tensors, hint=hint, output_stride=output_stride, dilation=dilation)


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
    known = _recognise(path, file, entry, output_stride, dilation)
    if known.classifies:
        raise CheckpointError(CANNOT_SEGMENT)
    data = DataConfig(dataset=known.dataset or "custom")
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


OTHER_CLASSES = "it decides between other classes: left fresh"


@dataclasses.dataclass(frozen=True)
class _Source:
    """What a file holds: its weights under our names, its network and its classes where they are known."""

    form: str
    weights: dict[str, Tensor]
    skipped: tuple[tuple[str, str], ...]
    model: ModelConfig | None
    classes: LabelSpace | None


def load_fitting(segmenter: Segmenter, source: str | Path) -> LoadReport:
    """Load what fits of any checkpoint into a model that may have other classes or another head.

    The encoder must fit as a whole, because half of one is worth less than none. Of the heads, everything of the same
    name and shape is loaded. The last layer of a head stays fresh where the classes are others, even as many others.
    The first convolution is adapted to the channels of the images.

    Args:
        segmenter: The model; it is changed.
        source: A run folder, a file of any known format, or the name of a published checkpoint.

    Returns:
        What was loaded, what was not and why, and what stayed fresh.

    Raises:
        CheckpointError: No such file, a damaged one, weights that are not finite, or those of another encoder; names
            the first that differs.
        ConfigError: Neither a file nor the name of a published checkpoint.
        DownloadError: A published file cannot be fetched.
    """
    path = _find(str(source))
    file = read_weights(path)
    with naming_file(path):
        found = _read(path, file)
    own, weights, skipped = segmenter.state_dict(), found.weights, list(found.skipped)
    stem = next((key for key in own if key.startswith("encoder.conv1.")), "")
    if stem in weights and weights[stem].shape[1] == 3:
        weights[stem] = adapt_first_convolution(weights[stem], own[stem].shape[1])
    _check_encoder(path, weights, own, segmenter.config.model, found.model)
    fresh = () if _same_classes(segmenter, found) else _classifiers(segmenter)
    fitting: dict[str, Tensor] = {}
    for key, value in weights.items():
        if key.startswith(fresh):
            skipped.append((key, OTHER_CLASSES))
        elif key not in own:
            skipped.append((key, "this model has no such part"))
        elif value.shape != own[key].shape:
            skipped.append((key, f"shape {list(value.shape)}, and this model has {list(own[key].shape)}"))
        else:
            fitting[key] = value
    with naming_file(path):
        check_finite(fitting, own)
    segmenter.load_state_dict(fitting, strict=False)
    kept = [key for key in own if key not in fitting and not key.startswith("pixel_")]
    return LoadReport(
        path=path,
        format=found.form,
        network=segmenter.description,
        loaded=len(fitting),
        skipped=tuple(skipped),
        kept=tuple(key for key in kept if not key.endswith("num_batches_tracked")),
        assumed=_differences(segmenter.config.model, found.model),
    )


def _find(source: str) -> Path:
    if Path(source).exists():
        return find_checkpoint(source)
    entry = published(source)
    if entry is None:
        raise unknown_name("model.weights: no such file, run folder or name", source, published_names())
    return entry.fetch()


def _read(path: Path, file: WeightFile) -> _Source:
    if file.metadata.get("format") == FORMAT:
        checkpoint = Checkpoint.load(path)
        return _Source("resnest_seg", dict(checkpoint.weights), (), checkpoint.network, checkpoint.label_space)
    form, weights, skipped = rename(file.tensors)
    try:
        known = recognise(file.tensors, hint=path.name)
    except CheckpointError:  # a head or an encoder that we do not have: what fits will be loaded all the same
        return _Source(form, weights, tuple(skipped), None, None)
    model = known.model
    if encoder_of_name(path.name) is None:  # it was assumed
        model = dataclasses.replace(model, encoder="")
    return _Source(form, weights, tuple(skipped), model, label_space(known, file.metadata))


def _check_encoder(
    path: Path, weights: Mapping[str, Tensor], own: Mapping[str, Tensor], ours: ModelConfig, theirs: ModelConfig | None
) -> None:
    """Refuse another encoder, also one whose keys and shapes are the same."""
    problems = [
        f"{key} {'is missing' if key not in weights else f'has the shape {list(weights[key].shape)}'}"
        for key, value in own.items()
        if key.startswith("encoder.") and not key.endswith("num_batches_tracked")
        if key not in weights or weights[key].shape != value.shape
    ]
    if problems:
        raise CheckpointError(
            f"{path} does not hold the weights of encoder {ours.encoder!r}: {problems[0]} ({len(problems)} problems)."
        )
    if theirs is None:
        return
    twins = ("resnest50", "resnest50_fast_2s1x64d")  # the only ones of the family that shapes do not tell apart
    if ours.encoder in twins and theirs.encoder in twins and ours.encoder != theirs.encoder:
        raise CheckpointError(
            f"{path} holds weights of encoder {theirs.encoder!r}, and this model has {ours.encoder!r}."
        )


def _same_classes(segmenter: Segmenter, found: _Source) -> bool:
    """Whether the file's classes are the model's, as far as both are known by name."""
    return (
        segmenter.label_space is not None
        and found.classes is not None
        and found.classes.names == segmenter.label_space.names
    )


def _classifiers(segmenter: Segmenter) -> tuple[str, ...]:
    """Prefixes of the layers that give one number a class: the last ones of the heads."""
    prefixes: list[str] = []
    for part in ("head", "aux_head"):
        head = getattr(segmenter, part)
        if head is None:
            continue
        names = [
            name
            for name, module in head.named_modules()
            if getattr(module, "out_channels" if isinstance(module, nn.Conv2d) else "out_features", None)
            == segmenter.num_classes
        ]
        # mmsegmentation's heads name theirs, and define it first
        prefixes += [f"{part}.{name}." for name in ("conv_seg",) if name in names] or [f"{part}.{names[-1]}."]
    return tuple(prefixes)


def _differences(ours: ModelConfig, theirs: ModelConfig | None) -> tuple[str, ...]:
    """What decides the numbers and has no weights: a network may be trained on as another one, but not unawares."""
    if theirs is None or theirs.head == CLASSIFIER:
        return ()
    return tuple(
        f"{key} {getattr(ours, key)} is meant, where the file's network has {getattr(theirs, key)}"
        for key in ("dilation", "rectify")
        if getattr(ours, key) != getattr(theirs, key)
    )


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
        theirs = Checkpoint.load(path).network
    elif model.encoder not in ("resnest50", "resnest50_fast_2s1x64d"):
        return
    for key, ours, other in (("encoder", model.encoder, theirs.encoder), ("rectify", model.rectify, theirs.rectify)):
        if ours != other:
            raise CheckpointError(f"{path} holds weights of {key} {other!r}, and this model has {key} {ours!r}.")
