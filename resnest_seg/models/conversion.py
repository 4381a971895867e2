"""Conversion of other projects' state dicts: the network is recognised by keys and shapes, and keys are renamed.

Supported are segmentation checkpoints of PyTorch-Encoding and mmsegmentation, ImageNet classifiers of the ResNeSt
repository, timm and torchvision, and bare state dicts of our `Segmenter`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from resnest_seg.config import ModelConfig
from resnest_seg.errors import CheckpointError
from resnest_seg.labels import LabelSpace
from resnest_seg.models.resnest import EXPANSION, SPECS, EncoderSpec

RENAMES: dict[str, tuple[tuple[str, str], ...]] = {
    # format -> (their prefix, our prefix); the first that matches a key is used
    "resnest_seg": (
        ("model.", ""),  # in a checkpoint file, beside the optimiser's state
        ("encoder.", "encoder."),
        ("head.", "head."),
        ("aux_head.", "aux_head."),
        ("pixel_", "pixel_"),
    ),
    "mmsegmentation": (
        ("backbone.stem.7.", "encoder.bn1."),
        ("backbone.stem.", "encoder.conv1."),
        ("backbone.", "encoder."),
        ("decode_head.", "head."),
        ("auxiliary_head.", "aux_head."),
    ),
    "PyTorch-Encoding": (("pretrained.", "encoder."), ("head.", "head."), ("auxlayer.", "aux_head.")),
    "ImageNet classifier": (("fc.", "head.fc."), ("", "encoder.")),
}

SIGNS: tuple[tuple[str, str], ...] = (
    # prefix of a key -> the format
    ("model.encoder.", "resnest_seg"),
    ("encoder.", "resnest_seg"),
    ("backbone.", "mmsegmentation"),
    ("pretrained.", "PyTorch-Encoding"),
    ("layer1.0.", "ImageNet classifier"),
)

EXPECTED: tuple[tuple[str, str], ...] = (
    # tensors that may be in a file and are not used: prefix of our name -> reason
    ("encoder.fc.", "the ImageNet classifier of the pre-trained encoder"),
    ("optimizer.", "training state"),
    ("average.", "training state"),
)

CLASSIFIER = "classifier"
"""In place of a decoder's name: there is none, but one linear layer."""

HEADS_BY_KEY: tuple[tuple[str, str, str, str], ...] = (
    # our key -> (head, family, the key whose first dimension is the number of classes)
    ("head.conv5.0.weight", "fcn", "encoding", "head.conv5.4.weight"),
    ("head.aspp.b0.0.weight", "deeplabv3", "encoding", "head.block.4.weight"),
    ("head.c1_bottleneck.conv.weight", "deeplabv3plus", "mmseg", "head.conv_seg.weight"),
    ("head.aspp_modules.0.conv.weight", "deeplabv3", "mmseg", "head.conv_seg.weight"),
    ("head.psp_modules.0.1.conv.weight", "pspnet", "mmseg", "head.conv_seg.weight"),
    ("head.conv_cat.conv.weight", "fcn", "mmseg", "head.conv_seg.weight"),
    ("head.fc.weight", CLASSIFIER, "encoding", "head.fc.weight"),
)

DATASETS_BY_CLASSES = {150: "ade20k", 19: "cityscapes", 59: "pascal_context"}
"""Number of classes -> the data set whose published checkpoints have this number."""


@dataclasses.dataclass(frozen=True)
class Recognised:
    """The network recognised in a state dict.

    Attributes:
        format: The format of the names, a key of `RENAMES`.
        model: The config of the network.
        num_classes: K.
        dataset: The data set that K implies, or None.
        weights: Our name -> tensor.
        skipped: (their name, reason) of tensors that are not used.
        assumed: Assumptions about properties that the keys do not determine, one phrase each.
    """

    format: str
    model: ModelConfig
    num_classes: int
    dataset: str | None
    weights: Mapping[str, Tensor]
    skipped: tuple[tuple[str, str], ...]
    assumed: tuple[str, ...]

    @property
    def classifies(self) -> bool:
        """True for an image classifier, which has no decoder."""
        return self.model.head == CLASSIFIER


def recognise(
    tensors: Mapping[str, Tensor], *, hint: str = "", output_stride: int | None = None, dilation: str | None = None
) -> Recognised:
    """Recognise the network of a state dict.

    Args:
        tensors: Their name -> tensor; a leading "module." (DataParallel) is ignored.
        hint: The file's name, or our name of the encoder if it is known; decides between encoders with equal keys and
            shapes.
        output_stride: Output stride in training; None assumes 8, or 32 for an ImageNet classifier.
        dilation: Dilation variant in training; None assumes that of the format.

    Raises:
        CheckpointError: The format of the keys is unknown, or no encoder or head of ours has these shapes.
    """
    form, weights, skipped = rename(tensors)
    if any(key.startswith("model.encoder.") for key in tensors):
        raise CheckpointError(
            "its tensors are those of a resnest_seg checkpoint, but the metadata that name the network are missing: "
            "was it saved again by another program?"
        )
    spec = encoder_spec(weights)
    names = [name for name, known in SPECS.items() if dataclasses.replace(known, pool_first=spec.pool_first) == spec]
    if not names:
        raise CheckpointError(f"none of our encoders has these shapes: {spec}.")
    encoder, assumed = names[0], []
    if len(names) > 1:
        encoder = encoder_of_name(hint) or names[0]
        others = ", ".join(name for name in names if name != encoder)
        if encoder_of_name(hint) is None:
            assumed.append(
                f"encoder {encoder}: {others} has the same keys and shapes, and the file's name matches neither"
            )
    head, family, num_classes = _head(weights)
    if output_stride is None:
        output_stride = 32 if head == CLASSIFIER else 8
        if head != CLASSIFIER:
            assumed.append(f"output stride {output_stride}: no key determines it")
    if dilation is None:
        dilation = "mmseg" if family == "mmseg" else "encoding"
        if output_stride < 32:
            assumed.append(f"dilation {dilation}: no key determines it")
    if form == "resnest_seg":
        assumed.append("rectify none: no key determines it, nor the rest of the run's config")
    dataset = None if head == CLASSIFIER else DATASETS_BY_CLASSES.get(num_classes)
    if dataset is not None:
        assumed.append(f"data set {dataset}: it also has {num_classes} classes")
    model = ModelConfig(
        encoder=encoder,
        head=head,
        family=family,
        output_stride=output_stride,
        dilation=dilation,
        aux_head=any(key.startswith("aux_head.") for key in weights),
        in_channels=weights[_stem_key(weights)].shape[1],
    )
    return Recognised(form, model, num_classes, dataset, weights, tuple(skipped), tuple(assumed))


def rename(tensors: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor], list[tuple[str, str]]]:
    """Translate names: returns the format, our name -> tensor, and (their name, reason) of unused tensors.

    Raises:
        CheckpointError: The format of the keys is unknown, or a key does not belong to it.
    """
    plain = {_unwrapped(key): value for key, value in tensors.items()}
    form = next((form for sign, form in SIGNS if any(key.startswith(sign) for key in plain)), None)
    if form is None:
        raise CheckpointError(
            f"the keys do not match a known network, the first are {', '.join(list(plain)[:4])}. Known: "
            f"{', '.join(RENAMES)}."
        )
    weights: dict[str, Tensor] = {}
    skipped: list[tuple[str, str]] = []
    strangers: list[str] = []
    for key, value in plain.items():
        theirs, ours = next(((a, b) for a, b in RENAMES[form] if key.startswith(a)), (None, ""))
        name = key if theirs is None else ours + key.removeprefix(theirs)
        reason = next((why for prefix, why in EXPECTED if name.startswith(prefix)), None)
        if reason is not None:
            skipped.append((key, reason))
        elif theirs is None:
            strangers.append(key)
        else:
            weights[name] = value
    if strangers:
        raise CheckpointError(
            f"{len(strangers)} keys match no part of a known {form} network, the first is {strangers[0]}."
        )
    return form, weights, skipped


def encoder_spec(weights: Mapping[str, Tensor]) -> EncoderSpec:
    """Infer the encoder's architecture from the shapes of its weights, under our names.

    `pool_first` has no weights; it stays False.

    Raises:
        CheckpointError: A weight of every encoder of the family is missing.
    """
    try:
        stem = weights[_stem_key(weights)]
        conv1, conv3 = weights["encoder.layer1.0.conv1.weight"], weights["encoder.layer1.0.conv3.weight"]
        radix, width, planes = 0, conv1.shape[0], conv3.shape[0] // EXPANSION
        conv2 = weights.get("encoder.layer1.0.conv2.weight")
        if conv2 is None:
            conv2 = weights["encoder.layer1.0.conv2.conv.weight"]
            radix = conv2.shape[0] // width
        cardinality = width // (conv2.shape[1] * max(radix, 1))
        deep = "encoder.conv1.0.weight" in weights
        return EncoderSpec(
            depths=_depths(weights),
            deep_stem=deep,
            stem_width=stem.shape[0] if deep else 64,
            radix=radix,
            cardinality=cardinality,
            bottleneck_width=width // cardinality * 64 // planes,
            planes=planes,
            avg_down=weights["encoder.layer1.0.downsample.1.weight"].dim() == 4,
        )
    except (KeyError, ZeroDivisionError, IndexError) as error:
        raise CheckpointError(
            f"the encoder does not belong to the ResNeSt or ResNet family: no fitting weight {error}."
        ) from None


def encoder_of_name(hint: str) -> str | None:
    """Choose among encoders with equal keys and shapes by a file's name; None if it matches none."""
    if "fast_2s1x64d" in hint:
        return "resnest50_fast_2s1x64d"
    return "resnest50" if "resnest50" in hint or "s50" in hint else None


def label_space(recognised: Recognised, metadata: Mapping[str, Any]) -> LabelSpace | None:
    """Return the classes of a recognised file: those it lists, else those of its data set, else numbered ones.

    None for a classifier, whose classes are not segmentation classes.

    Args:
        recognised: The network.
        metadata: The file's metadata: mmsegmentation's CLASSES and PALETTE, or its dataset_meta.
    """
    if recognised.classifies:
        return None
    count = recognised.num_classes
    inner = metadata.get("dataset_meta")
    listed = inner if isinstance(inner, Mapping) else metadata
    names = listed.get("CLASSES", listed.get("classes"))
    colors = listed.get("PALETTE", listed.get("palette"))
    known = None if recognised.dataset is None else LabelSpace.of(recognised.dataset)
    if not isinstance(names, list | tuple) or len(names) != count:
        return known or LabelSpace.numbered(count)
    names = tuple(str(name) for name in names)
    if known is not None and [_plain(name) for name in names] == [_plain(name) for name in known.names]:
        return known
    return LabelSpace.numbered(count, names=names, colors=colors if _is_palette(colors, count) else None)


def _plain(name: str) -> str:
    """Normalise a class name to compare toolkits' spellings."""
    return "".join(letter for letter in name.lower().partition(";")[0] if letter.isalnum())


def _is_palette(colors: object, count: int) -> bool:
    """True for a list of `count` colours."""
    if not isinstance(colors, list | tuple) or len(colors) != count:
        return False
    triples = all(isinstance(color, list | tuple) and len(color) == 3 for color in colors)
    return triples and all(isinstance(value, int) and 0 <= value <= 255 for color in colors for value in color)


def _stem_key(weights: Mapping[str, Tensor]) -> str:
    deep = "encoder.conv1.0.weight"
    return deep if deep in weights else "encoder.conv1.weight"


def _unwrapped(key: str) -> str:
    """Remove the prefixes of DataParallel and torch.compile from a key."""
    for prefix in ("module.", "_orig_mod."):
        key = key.removeprefix(prefix)
    return key


def _depths(weights: Mapping[str, Tensor]) -> tuple[int, int, int, int]:
    blocks = [{key.split(".")[2] for key in weights if key.startswith(f"encoder.layer{n}.")} for n in (1, 2, 3, 4)]
    first, second, third, fourth = (len(stage) for stage in blocks)
    return first, second, third, fourth


def _head(weights: Mapping[str, Tensor]) -> tuple[str, str, int]:
    """Recognise the head: its name, family and number of classes."""
    for sign, head, family, last in HEADS_BY_KEY:
        if sign in weights and last in weights:
            return head, family, weights[last].shape[0]
    head_keys = [key for key in weights if key.startswith("head.")]
    heads = f"its head has keys such as {head_keys[0]}" if head_keys else "it has no head"
    raise CheckpointError(
        f"it has an encoder, but no known head ({heads}). To start from its encoder, pass the file as encoder_weights."
    )
