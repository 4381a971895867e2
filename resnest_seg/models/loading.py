"""Loading checkpoints of every known format: as a whole model, for fine-tuning, or as encoder weights."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils import convert_conv2d_weight_memory_format

from resnest_seg.config import CUSTOM, AnyConfig, ClassifierConfig, DataConfig, ModelConfig, PretrainConfig, RunConfig
from resnest_seg.config_reading import kinds_of
from resnest_seg.config_types import Kind, Range
from resnest_seg.errors import CheckpointError, ConfigError, DownloadError, command, unknown_name
from resnest_seg.labels import LabelSpace
from resnest_seg.models.checkpoint import Checkpoint, find_checkpoint, is_ours, local_weights
from resnest_seg.models.conversion import CLASSIFIER, encoder_of_name, label_space, recognise, rename
from resnest_seg.models.published_weights import check_encoder_weights, imagenet_checkpoint, published, published_names
from resnest_seg.models.resnest import ResNeSt, adapt_first_convolution
from resnest_seg.models.segmenter import (
    CANNOT_SEGMENT,
    NO_CLASSIFIER,
    Classifier,
    LoadReport,
    PixelModel,
    Segmenter,
    encoder_for,
    fresh_classifier,
    fresh_segmenter,
    load_own_weights,
    load_weights,
    misfits,
)
from resnest_seg.models.weight_files import check_finite, naming_file, read_weights


def build_segmenter(
    encoder: str = "resnest50",
    head: str = "deeplabv3",
    num_classes: int = 150,
    *,
    output_stride: int = 8,
    dilation: str = "encoding",
    aux_head: bool = True,
    family: str = "encoding",
    in_channels: int = 3,
    encoder_weights: str | Path | None = None,
    drop_block: float = 0.0,
    drop_path: float = 0.0,
    zero_gamma: bool = False,
    rectify: str = "none",
    checkpointing: bool = False,
    task: str = "multiclass",
    pixel_decoder: str = "deformable",
) -> Segmenter:
    """Build a model in training mode and channels-last memory; without `encoder_weights`, with fresh weights.

    Args:
        encoder: A name of `resnest_seg.models.resnest.SPECS`, or "smp:" and an encoder of segmentation-models-pytorch.
        head: "fcn", "deeplabv3", in family "mmseg" also "pspnet", "deeplabv3plus", "mask2former"; or "smp:" and SMP's.
        num_classes: K, at least 1.
        output_stride: 8, 16 or 32 input pixels per step of the last features.
        dilation: The dilated network that is meant, see `resnest_seg.models.resnest`; SMP's encoders have their own.
        aux_head: Add an FCN head on the third stage for training.
        family: "encoding" or "mmseg": whose form the heads have, and whether logits are resized with aligned corners.
        in_channels: Channels of the images.
        encoder_weights: "imagenet", a file, a run folder, or the name of a published checkpoint; None asks no network.
        drop_block: Share of pixels that DropBlock clears in the last two stages while training.
        drop_path: Share of images that skip the last residual block while training (stochastic depth).
        zero_gamma: Start with a zero weight in the last norm of every residual branch.
        rectify: "none", "rectify" or "rectify_avg", see `resnest_seg.models.resnest`.
        checkpointing: Keep only the blocks' inputs for the backward pass and compute the rest twice.
        task: "multiclass", "binary" (one logit: num_classes=1) or "multilabel".
        pixel_decoder: Of head "mask2former" (output stride 32, no auxiliary head): "deformable" or "fpn".

    Raises:
        ConfigError: Unknown name (the nearest is named), a wrong type or value, or parts that do not fit together.
        DownloadError, CheckpointError: The weights cannot be fetched, or do not fit the encoder.
    """
    check_encoder_weights(encoder_weights)
    file = str(encoder_weights) if isinstance(encoder_weights, Path) else encoder_weights
    model = ModelConfig(
        encoder=encoder, head=head, family=family, output_stride=output_stride, dilation=dilation, aux_head=aux_head,
        in_channels=in_channels, encoder_weights=file, drop_block=drop_block, drop_path=drop_path,
        zero_gamma=zero_gamma, rectify=rectify, checkpointing=checkpointing, task=task, pixel_decoder=pixel_decoder,
    )  # fmt: skip
    _check_types(model, num_classes)
    return segmenter_for(RunConfig(model=model), None, num_classes=num_classes)


def build_encoder(
    encoder: str = "resnest50",
    *,
    output_stride: int = 8,
    dilation: str = "encoding",
    in_channels: int = 3,
    encoder_weights: str | None = None,
) -> nn.Module:
    """Build an encoder for a `Segmenter` with a head of one's own; see `build_segmenter` for arguments and errors.

    Returns:
        Normalised images [N, in_channels, H, W] -> features, the last four being c1, c2, c3, c4, with their channels in
        `.channels`, at strides 4, 8 and, for c3 and c4, min(16, output_stride) and output_stride.
    """
    model = ModelConfig(
        encoder=encoder,
        output_stride=output_stride,
        dilation=dilation,
        in_channels=in_channels,
        encoder_weights=encoder_weights,
    )
    built = encoder_for(model, pretrained=True)
    if encoder_weights is not None and isinstance(built, ResNeSt):
        load_encoder(built, model)
    return built


def _check_types(model: ModelConfig, num_classes: object) -> None:
    """Check the options of `build_segmenter` under their own names, which have no `model.`."""
    for option, kind in kinds_of(ModelConfig).items():
        kind.check(option, getattr(model, option))
    Kind(int, False, Range(1, math.inf)).check("num_classes", num_classes)


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


Network = Segmenter | Callable[[int], Segmenter]
"""A network that weights are loaded into: the model, or a function that builds it for K classes."""


def load_checkpoint(
    path: str | Path, *, into: Network | None = None, output_stride: int | None = None, dilation: str | None = None
) -> Segmenter:
    """Load a segmentation model for inference.

    Recognised by their keys are our own files and run folders (the best checkpoint, else the last), PyTorch-Encoding's
    segmentation files (in their zip or out of it) and mmsegmentation's.

    Args:
        path: A file, a run folder, or the name of a published checkpoint, which is downloaded once.
        into: The network, for a checkpoint with an encoder or head of the user's own: a model, which is changed, or a
            function from the number of classes to one. None builds the network that the file describes.
        output_stride: For files of others, which do not tell it: the network's. None assumes 8.
        dilation: For files of others: the dilation variant. None takes that of the code the file comes from.

    Returns:
        The model in eval mode on the CPU; `.label_space` names its classes, `.config` says what it is, `.load_report`
        what was loaded.

    Raises:
        CheckpointError: There is no such file or name, it is damaged, wants to run code, or does not fit; it is an
            image classifier; or its network is not known and `into` is None.
        DownloadError: A published file cannot be fetched.
        ConfigError: An output stride or dilation that does not exist; `into` gives no `Segmenter`.
    """
    source = _open(path, output_stride, dilation)
    with naming_file(source.path):
        segmenter, kept = _build(source) if into is None else _fill(built_network(into, source), source)
    segmenter.load_report = _report(source, segmenter, kept)
    return segmenter


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
    source = _open(path, output_stride, dilation)
    with naming_file(source.path):
        config = _known(source).config
        if not isinstance(config, PretrainConfig):
            raise CheckpointError(NO_CLASSIFIER)
        if source.ours:
            classifier, kept = Classifier.from_checkpoint(_known(source)), list[str]()
        else:
            classifier = fresh_classifier(config, num_classes=_known(source).num_classes)
            kept = load_weights(classifier, source.weights)
    classifier.load_report = _report(source, classifier, kept)
    return classifier.eval()


def checkpoint_file(path: str | Path) -> Path:
    """The file that a checkpoint's path, run folder or published name means; a published one is fetched if it must be.

    Raises:
        CheckpointError: There is no such file, folder or name, or the folder holds no checkpoint.
        DownloadError: The file cannot be fetched.
    """
    if Path(path).exists():
        return find_checkpoint(path)
    entry = published(str(path))
    if entry is None:
        raise CheckpointError(
            f"no checkpoint {path}: there is no such file or run folder, and no published checkpoint of that name. "
            f"`{command('zoo')}` lists the names."
        )
    return entry.fetch()


def _open(path: str | Path, output_stride: int | None, dilation: str | None) -> Source:
    """Locate and read a file, a run folder or a published name."""
    entry = None if Path(path).exists() else published(str(path))
    hint = "" if entry is None else entry.encoder
    if dilation is None and entry is not None and entry.source == "timm":
        dilation = "timm"
    return read(checkpoint_file(path), hint=hint, output_stride=output_stride, dilation=dilation)


def _report(source: Source, model: PixelModel, kept: list[str]) -> LoadReport:
    return LoadReport(
        path=source.path,
        format=source.format,
        network=model.description + source.data,
        loaded=len(source.weights),
        skipped=source.skipped,
        kept=tuple(kept),
        assumed=source.assumed,
    )


@dataclasses.dataclass(frozen=True)
class Source:
    """A checkpoint file of any format: what it is, and its weights under our names.

    Attributes:
        path: The file.
        ours: It is a checkpoint of this package, whose metadata tell everything.
        format: Whose names its keys have, a key of `conversion.RENAMES`.
        weights: Our name -> tensor.
        checkpoint: The weights with their network and classes; None where the keys and shapes are of a network that is
            not known here.
        unknown: Why it is not known, then.
        data: For reports, the classes of a file of others.
        skipped: (name in the file, why) of what is not used.
        assumed: What the file does not tell, one sentence each.
    """

    path: Path
    ours: bool
    format: str
    weights: Mapping[str, Tensor]
    checkpoint: Checkpoint | None
    unknown: str = ""
    data: str = ""
    skipped: tuple[tuple[str, str], ...] = ()
    assumed: tuple[str, ...] = ()

    @property
    def model(self) -> ModelConfig | None:
        """The network, where it is known."""
        return None if self.checkpoint is None else self.checkpoint.network

    @property
    def told(self) -> Mapping[str, str | None]:
        """Keys of `ModelConfig` that keys and shapes do not tell, but the file's config does, or its name."""
        if self.ours and self.model is not None:
            return {"encoder": self.model.encoder, "rectify": self.model.rectify}
        # detectron2-ResNeSt pools after split attention: of two encoders with equal keys, it is this one
        return {"encoder": "resnest50" if self.format == "detectron2" else encoder_of_name(self.path.name)}


def read(path: Path, *, hint: str = "", output_stride: int | None = None, dilation: str | None = None) -> Source:
    """Tell what a file is, ours or of others, without reading more of it than that takes.

    Args:
        path: The file.
        hint: The name of its encoder, where that is known better than by the file's name.
        output_stride: See `load_checkpoint`.
        dilation: See `load_checkpoint`.

    Raises:
        CheckpointError: It is damaged, wants to run code, is of another version, or of no known network.
        ConfigError: An output stride or dilation for a file of ours, or one that does not exist.
    """
    file = read_weights(path)
    with naming_file(path):
        if is_ours(file):
            checkpoint = Checkpoint.from_file(file, training=False)
            if output_stride is not None or dilation is not None:
                raise ConfigError(f"{path} says itself which output stride and dilation its network has: give neither.")
            return Source(path, True, "resnest_seg", checkpoint.weights, checkpoint)
        form, weights, skipped = rename(file.tensors)
        skipped += [(name, "it is no part of the model") for name in file.skipped]
        try:
            known = recognise(file.tensors, hint=hint or path.name, output_stride=output_stride, dilation=dilation)
        except CheckpointError as error:
            return Source(path, False, form, weights, None, unknown=str(error), skipped=tuple(skipped))
    data = DataConfig(dataset=known.dataset or "custom")
    if data.dataset == "cityscapes":  # PyTorch-Encoding's sizes, which its evaluator takes
        data = dataclasses.replace(data, base_size=2048, crop_size=768)
    config: AnyConfig = RunConfig(model=known.model, data=data)
    if known.classifies:
        network = known.model
        config = PretrainConfig(ClassifierConfig(network.encoder, network.output_stride, network.dilation))
    return Source(
        path=path,
        ours=False,
        format=form,
        weights=weights,
        checkpoint=Checkpoint(config, label_space(known, file.metadata), weights, num_classes=known.num_classes),
        data=f", {known.num_classes} classes ({known.dataset or 'data set unknown'})",
        skipped=tuple(skipped),
        assumed=known.assumed,
    )


def _build(source: Source) -> tuple[Segmenter, list[str]]:
    """The model of a file in eval mode, and the names in it that the file does not have and need not."""
    checkpoint = _known(source)
    if not source.ours and isinstance(checkpoint.config, RunConfig):
        segmenter = segmenter_for(checkpoint.config, checkpoint.label_space, num_classes=checkpoint.num_classes)
        kept = load_weights(segmenter, checkpoint.weights)
        return segmenter.eval(), kept
    try:
        return Segmenter.from_checkpoint(checkpoint), []
    except ConfigError as error:
        raise CheckpointError(f"{source.path} needs what this version does not have: {error}") from None


def built_network(network: Network, source: Source | int) -> Segmenter:
    """The model of `into=` or `--model`, for the classes of a file or for so many.

    Raises:
        ConfigError: The function gives no `Segmenter`.
    """
    if isinstance(network, Segmenter):
        return network
    built = network(source if isinstance(source, int) else _known(source).num_classes)
    if not isinstance(built, Segmenter):
        raise ConfigError(f"{_name_of(network)} must return a resnest_seg.Segmenter, not a {type(built).__name__}.")
    return built


def _name_of(network: Callable[[int], object]) -> str:
    return str(getattr(network, "__qualname__", type(network).__name__))


def _fill(segmenter: Segmenter, source: Source) -> tuple[Segmenter, list[str]]:
    """Load a file into a network of the user's own, in eval mode; see `_build`."""
    checkpoint = _known(source)
    if not isinstance(checkpoint.config, RunConfig):
        raise CheckpointError(CANNOT_SEGMENT)
    ours, theirs = segmenter.config.model, checkpoint.config.model
    for key in ("encoder", "head", "dilation", "output_stride", "rectify", "family"):
        mine, its = getattr(ours, key), getattr(theirs, key)
        if mine != its and CUSTOM not in (mine, its):
            hint = " (encoding aligns corners, mmseg does not: see align_corners)" if key == "family" else ""
            raise CheckpointError(
                f"the checkpoint's network has {key} {its!r}, and the one that it is loaded into has {mine!r}{hint}: "
                "the weights would mean something else."
            )
    if source.ours:
        kept = list[str]()
        ours = dataclasses.replace(ours, task=theirs.task)
        segmenter.take_task(theirs.task)
        load_own_weights(segmenter, checkpoint.weights)
        segmenter.config = dataclasses.replace(checkpoint.config, model=ours)
    else:
        kept = load_weights(segmenter, checkpoint.weights)
    segmenter.label_space = checkpoint.label_space
    return segmenter.eval(), kept


def _known(source: Source) -> Checkpoint:
    """The weights with their network; a `CheckpointError` where it is not known here."""
    if source.checkpoint is None:
        raise CheckpointError(source.unknown)
    return source.checkpoint


TWINS = ("resnest50", "resnest50_fast_2s1x64d")
"""The only encoders of the family that keys and shapes do not tell apart."""

OTHER_CLASSES = "it decides between other classes: left fresh"


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
    found = read(_find(str(source)))
    path, model = found.path, segmenter.config.model
    own, weights, skipped = segmenter.state_dict(), dict(found.weights), list(found.skipped)
    adapted = _adapt_stem(weights, own, "encoder.conv1.")
    trained = None if found.checkpoint is None else found.checkpoint.config
    of_bands = isinstance(trained, RunConfig) and trained.data.bands is not None
    if segmenter.config.data.pixel_mean is not None or of_bands:  # the pixels are those of this data
        weights = {key: value for key, value in weights.items() if not key.startswith("pixel_")}
    _check_encoder(path, weights, own, model)
    _refuse_another_network(found, model, "encoder")
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
        format=found.format,
        network=segmenter.description,
        loaded=len(fitting),
        skipped=tuple(skipped),
        kept=tuple(key for key in kept if not key.endswith("num_batches_tracked")),
        assumed=adapted + _differences(model, found.model),
    )


def _find(source: str) -> Path:
    if Path(source).exists():
        return find_checkpoint(source)
    entry = published(source)
    if entry is None:
        raise unknown_name("model.weights: no such file, run folder or name", source, published_names())
    return entry.fetch()


def _adapt_stem(weights: dict[str, Tensor], own: Mapping[str, Tensor], prefix: str) -> tuple[str, ...]:
    """Adapt a first convolution for RGB, whose name begins with `prefix`, to the channels of the model's, in place.

    Returns:
        What was done, in a sentence for the report; nothing where the channels are the same.
    """
    stem = next((key for key in own if key.startswith(prefix)), "")
    channels = own[stem].shape[1] if stem else 3
    if stem not in weights or weights[stem].shape[1] != 3 or channels == 3:
        return ()
    weights[stem] = adapt_first_convolution(weights[stem], channels)
    rule = "the sum of R, G and B" if channels == 1 else f"R, G, B repeated, times 3 / {channels}"
    return (f"the first convolution, which is for RGB, fits {channels} bands as {rule}",)


def _check_encoder(path: Path, weights: Mapping[str, Tensor], own: Mapping[str, Tensor], ours: ModelConfig) -> None:
    """Refuse weights of another encoder, recognised by keys and shapes."""
    problems = [
        f"{key} {'is missing' if key not in weights else f'has the shape {list(weights[key].shape)}'}"
        for key, value in own.items()
        if key.startswith("encoder.") and not key.endswith("num_batches_tracked")
        if key not in weights or weights[key].shape != value.shape
    ]
    problems += [f"{key} is no part of it" for key in weights if key.startswith("encoder.") and key not in own]
    if problems:
        stem = next((key for key in own if key.startswith("encoder.")), "")
        bands = weights[stem].shape[1] if stem in weights and weights[stem].dim() == 4 else ours.in_channels
        hint = ""
        if bands != ours.in_channels:
            hint = (
                f" It is for images of {bands} channels, and these have {ours.in_channels}: only RGB fits other bands."
            )
        raise CheckpointError(
            f"{path} does not hold the weights of encoder {ours.encoder!r}: {problems[0]} ({len(problems)} "
            f"problem{'s' * (len(problems) > 1)}).{hint}"
        )


def _same_classes(segmenter: Segmenter, source: Source) -> bool:
    """True where the file's classes are the model's, both being known by name."""
    ours, theirs = segmenter.label_space, None if source.checkpoint is None else source.checkpoint.label_space
    return ours is not None and theirs is not None and (ours.names, ours.task) == (theirs.names, theirs.task)


def _classifiers(segmenter: Segmenter) -> tuple[str, ...]:
    """Prefixes of the layers that give one number a class: the last ones of the heads."""
    prefixes: list[str] = []
    for part in ("head", "aux_head"):
        head = getattr(segmenter, part)
        if head is None:
            continue
        modules = dict(head.named_modules())
        names = [
            name
            for name, module in modules.items()
            if segmenter.num_classes in (getattr(module, "out_channels", None), getattr(module, "out_features", None))
        ]
        # mmsegmentation's heads name theirs, and define it first; Mask2Former's has one more output, for no object.
        # Where a head of one's own ends in none, its shapes decide.
        named = [name for name in ("conv_seg", "cls_embed") if name in modules]
        prefixes += [f"{part}.{name}." for name in named or names[-1:]]
    return tuple(prefixes)


def _differences(ours: ModelConfig, theirs: ModelConfig | None) -> tuple[str, ...]:
    """Differences that change the numbers but no weight: fine-tuning as another network must not go unnoticed."""
    if theirs is None or theirs.head == CLASSIFIER:
        return ()
    return tuple(
        f"{key} {getattr(ours, key)} is meant, where the file's network has {getattr(theirs, key)}"
        for key in ("dilation", "rectify")
        if getattr(ours, key) != getattr(theirs, key)
    )


def pretrained_file(encoder: str, weights: str) -> Path:
    """The file that `encoder_weights` means: "imagenet", the name of a published checkpoint, a file or a run folder.

    Raises:
        ConfigError: No ImageNet weights were published for the encoder, it is neither a name nor a file nor the folder
            of a run that has saved, or the name of another encoder's.
        DownloadError: It cannot be fetched.
    """
    if weights == "imagenet":
        return imagenet_checkpoint(encoder).fetch()
    if (file := local_weights(weights)) is not None:
        return file
    entry = published(weights)
    if entry is None:
        known = ["imagenet", *published_names()]
        raise unknown_name("encoder_weights: no such file, run folder or name", weights, known)
    if entry.encoder != encoder:
        raise ConfigError(
            f"encoder_weights {weights!r} is for encoder {entry.encoder!r}, and the encoder is {encoder!r}."
        )
    return entry.fetch()


def load_encoder(encoder: nn.Module, model: ModelConfig) -> Source:
    """Load what `model.encoder_weights` means into an encoder; the first convolution is adapted to the images.

    Returns:
        The file that was read.

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
    source = read(path)
    _refuse_another_network(source, model, "encoder", "rectify")
    weights = {
        key.removeprefix("encoder."): value for key, value in source.weights.items() if key.startswith("encoder.")
    }
    own = encoder.state_dict()
    _adapt_stem(weights, own, "conv1.")
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
    return source


def _refuse_another_network(source: Source, model: ModelConfig, *keys: str) -> None:
    """Refuse weights that fit by their keys and shapes, of a network that computes something else.

    Args:
        source: The file.
        model: The network that the weights are for.
        keys: Keys of `ModelConfig` in which the two must agree, as far as the file tells.

    Raises:
        CheckpointError: They do not.
    """
    for key in keys:
        ours, theirs = getattr(model, key), source.told.get(key)
        if theirs not in (None, ours) and (key != "encoder" or ours in TWINS):
            raise CheckpointError(
                f"{source.path} holds weights of {key} {theirs!r}, and this model has {key} {ours!r}."
            )
