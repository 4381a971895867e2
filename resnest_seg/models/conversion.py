"""Conversion of other projects' state dicts: the network is recognised by keys and shapes, and keys are renamed.

Supported are segmentation checkpoints of PyTorch-Encoding and mmsegmentation, ImageNet classifiers of the ResNeSt
repository, timm and torchvision, ResNeSts of detectron2-ResNeSt's backbones and detectors, and bare state dicts of our
`Segmenter`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from resnest_seg.config import ModelConfig
from resnest_seg.errors import CheckpointError
from resnest_seg.labels import LabelSpace
from resnest_seg.models.mask2former import MASK2FORMER
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
    "Mask2Former": (("encoder.", "encoder."), ("head.", "head.")),
    "detectron2": (("encoder.", "encoder."), ("pyramid.", "pyramid."), ("pixel_", "pixel_")),
    "PyTorch-Encoding": (("pretrained.", "encoder."), ("head.", "head."), ("auxlayer.", "aux_head.")),
    "ImageNet classifier": (("fc.", "head.fc."), ("", "encoder.")),
}

SIGNS: tuple[tuple[str, str], ...] = (
    # prefix of a key -> the format
    ("model.encoder.", "resnest_seg"),
    ("encoder.", "resnest_seg"),
    ("backbone.bottom_up.", "detectron2"),
    ("bottom_up.", "detectron2"),
    ("stem.conv1", "detectron2"),
    ("sem_seg_head.", "Mask2Former"),
    ("model.pixel_level_module.", "Mask2Former"),
    ("backbone.", "mmsegmentation"),
    ("pretrained.", "PyTorch-Encoding"),
    ("layer1.0.", "ImageNet classifier"),
)

EXPECTED: tuple[tuple[str, str], ...] = (
    # tensors that may be in a file and are not used: prefix of our name -> reason
    ("encoder.fc.", "the ImageNet classifier of the pre-trained encoder"),
    ("optimizer.", "training state"),
    ("average.", "training state"),
    ("criterion.", "part of the loss"),
    ("proposal_generator.", "part of the detector"),
    ("roi_heads.", "part of the detector"),
    ("sem_seg_head.", "part of the detector"),
    ("pyramid.top_block.", "part of the detector"),
    ("linear.", "the ImageNet classifier of the pre-trained encoder"),
)

DETECTRON2_NAMES: tuple[tuple[str, str], ...] = (
    # pattern of detectron2-ResNeSt's key, without the path to the backbone -> our key
    (r"(?:backbone\.)?fpn_(lateral|output)([2-5])\.", r"pyramid.\1\2."),
    (r"(?:backbone\.)?top_block\.", "pyramid.top_block."),
    (r"stem\.conv1_3\.norm\.", "encoder.bn1."),
    *((rf"stem\.conv1_{n + 1}\.norm\.", f"encoder.conv1.{3 * n + 1}.") for n in (0, 1)),
    *((rf"stem\.conv1_{n + 1}\.", f"encoder.conv1.{3 * n}.") for n in (0, 1, 2)),
    *(
        (rf"res{stage + 1}\.(\d+)\.{theirs}", rf"encoder.layer{stage}.\1.{ours}")
        for stage in (1, 2, 3, 4)
        for theirs, ours in (
            (r"conv([13])\.norm\.", r"bn\2."),
            (r"conv([123])\.", r"conv\2."),  # the second is split attention, whose names are ours
            (r"shortcut\.norm\.", "downsample.2."),
            (r"shortcut\.", "downsample.1."),
        )
    ),
)
"""Names of zhanghang1989/detectron2-ResNeSt. A level of the pyramid has the number of its stage there, from 2 to 5."""

_D2, _HF = "sem_seg_head.predictor.transformer_", "model.transformer_module.decoder.layers.#."
_PIXELS = "model.pixel_level_module."

MASK2FORMER_NAMES: tuple[tuple[str, str, str], ...] = (
    # start of our key, of detectron2's, of transformers'; # stands for a number
    ("encoder.conv1.weight", "backbone.stem.conv1.weight", f"{_PIXELS}encoder.embedder.embedder.convolution.weight"),
    ("encoder.bn1.", "backbone.stem.conv1.norm.", f"{_PIXELS}encoder.embedder.embedder.normalization."),
    *(
        (
            f"encoder.layer{stage}.#.{ours}.",
            f"backbone.res{stage + 1}.#.{detectron2}.",
            f"{_PIXELS}encoder.encoder.stages.{stage - 1}.layers.#.{transformers}.",
        )
        for stage in (1, 2, 3, 4)
        for ours, detectron2, transformers in (
            *((f"bn{n}", f"conv{n}.norm", f"layer.{n - 1}.normalization") for n in (1, 2, 3)),
            *((f"conv{n}", f"conv{n}", f"layer.{n - 1}.convolution") for n in (1, 2, 3)),
            ("downsample.1", "shortcut.norm", "shortcut.normalization"),
            ("downsample.0", "shortcut", "shortcut.convolution"),
        )
    ),
    *(
        (
            f"head.pixel_decoder.{ours}",
            f"sem_seg_head.pixel_decoder.{detectron2}",
            f"{_PIXELS}decoder.{transformers}",
        )
        for ours, detectron2, transformers in (
            ("input_convs.#.conv.", "input_proj.#.0.", "input_projections.#.0."),
            ("input_convs.#.gn.", "input_proj.#.1.", "input_projections.#.1."),
            *(
                (f"encoder.layers.#.{a}", f"transformer.encoder.layers.#.{b}", f"encoder.layers.#.{c}")
                for a, b, c in (
                    ("self_attn.", "self_attn.", "self_attn."),
                    ("norms.0.", "norm1.", "self_attn_layer_norm."),
                    ("ffn.layers.0.0.", "linear1.", "fc1."),
                    ("ffn.layers.1.", "linear2.", "fc2."),
                    ("norms.1.", "norm2.", "final_layer_norm."),
                )
            ),
            ("level_encoding.weight", "transformer.level_embed", "level_embed"),
            ("lateral_convs.0.gn.", "adapter_1.norm.", "adapter_1.1."),
            ("lateral_convs.0.conv.", "adapter_1.", "adapter_1.0."),
            ("output_convs.0.gn.", "layer_1.norm.", "layer_1.1."),
            ("output_convs.0.conv.", "layer_1.", "layer_1.0."),
            ("mask_feature.", "mask_features.", "mask_projection."),
        )
    ),
    *(
        (f"head.transformer_decoder.layers.#.{ours}", f"{_D2}{detectron2}", f"{_HF}{transformers}")
        for ours, detectron2, transformers in (
            ("cross_attn.attn.", "cross_attention_layers.#.multihead_attn.", "cross_attn."),
            ("norms.0.", "cross_attention_layers.#.norm.", "cross_attn_layer_norm."),
            ("self_attn.attn.", "self_attention_layers.#.self_attn.", "self_attn."),
            ("norms.1.", "self_attention_layers.#.norm.", "self_attn_layer_norm."),
            ("ffn.layers.0.0.", "ffn_layers.#.linear1.", "fc1."),
            ("ffn.layers.1.", "ffn_layers.#.linear2.", "fc2."),
            ("norms.2.", "ffn_layers.#.norm.", "final_layer_norm."),
        )
    ),
    *(
        (f"head.{ours}", f"sem_seg_head.predictor.{detectron2}", transformers)
        for ours, detectron2, transformers in (
            ("transformer_decoder.post_norm.", "decoder_norm.", "model.transformer_module.decoder.layernorm."),
            ("query_feat.", "query_feat.", "model.transformer_module.queries_features."),
            ("query_embed.", "query_embed.", "model.transformer_module.queries_embedder."),
            ("level_embed.", "level_embed.", "model.transformer_module.level_embed."),
            ("cls_embed.", "class_embed.", "class_predictor."),
            *(
                (
                    f"mask_embed.{2 * n}.",
                    f"mask_embed.layers.{n}.",
                    f"model.transformer_module.decoder.mask_predictor.mask_embedder.{n}.0.",
                )
                for n in (0, 1, 2)
            ),
        )
    ),
)
"""Names of Mask2Former on ResNet; mmsegmentation's differ from ours by the prefixes of `RENAMES` alone."""

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
    ("head.query_feat.weight", MASK2FORMER, "mmseg", "head.cls_embed.weight"),
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
        output_stride = 32 if head in (CLASSIFIER, MASK2FORMER) else 8
        if output_stride == 8:
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
    if form == "Mask2Former":
        theirs_are = "transformers" if any(key.startswith("model.") for key in plain) else "detectron2"
        plain = from_mask2former(plain, theirs_are)
    if form == "detectron2":
        plain = from_detectron2(plain)
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


def from_detectron2(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A ResNeSt of detectron2-ResNeSt under our names, with its pyramid; keys that are of neither keep theirs.

    Raises:
        CheckpointError: It has deformable convolutions, or is a plain ResNet, of which detectron2 has two forms with
            the same keys and shapes.
    """
    deformable = next((key for key in tensors if ".conv2_offset." in key), None)
    if deformable is not None:
        raise CheckpointError(f"its network has deformable convolutions ({deformable}), which ours do not have.")
    if not any(".conv2.fc1." in key for key in tensors):
        raise CheckpointError(
            "this is a plain ResNet of detectron2, which strides either in the first or in the second convolution of a "
            "block, and reads either BGR or RGB: its keys do not say. Take the ImageNet weights of torchvision "
            "(`imagenet`) instead; ResNeSts of detectron2-ResNeSt load."
        )
    found = {}
    for key, value in tensors.items():
        name = key.removeprefix("backbone.bottom_up.").removeprefix("bottom_up.")
        theirs, ours = next((pair for pair in DETECTRON2_NAMES if re.match(pair[0], name)), ("", ""))
        found[re.sub(f"^{theirs}", ours, name, count=1)] = value
    return found


def from_mask2former(tensors: Mapping[str, Tensor], form: str) -> dict[str, Tensor]:
    """Mask2Former on ResNet under our names; keys that are not in `MASK2FORMER_NAMES` keep theirs.

    Args:
        tensors: Name -> tensor.
        form: "detectron2" or "transformers".
    """
    column = _MASK2FORMER_FORMS.index(form) + 1
    found: dict[str, Tensor] = {}
    split: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name = _translated(key, column, 0)
        part = _SPLIT.fullmatch(name)
        if part is None:
            found[name] = value
        else:
            split.setdefault(f"{part[1]}.in_proj_{part[3]}", {})[part[2]] = value
    for name, parts in split.items():
        if len(parts) == 3:
            found[name] = torch.cat([parts[letter] for letter in "qkv"])
    return found


def to_mask2former(weights: Mapping[str, Tensor], form: str) -> dict[str, Tensor]:
    """The converse of `from_mask2former`: weights of a `Segmenter` under the names of another project."""
    column = _MASK2FORMER_FORMS.index(form) + 1
    found: dict[str, Tensor] = {}
    for key, value in weights.items():
        name = _translated(key, 0, column)
        if form == "transformers" and ".self_attn.attn.in_proj_" in key:
            start, _, kind = name.rpartition(".in_proj_")
            for letter, part in zip("qkv", value.chunk(3), strict=True):
                found[f"{start}.{letter}_proj.{kind}"] = part
        elif not key.startswith("pixel_"):
            found[name] = value
    return found


_MASK2FORMER_FORMS = ("detectron2", "transformers")

_SPLIT = re.compile(r"(head\.transformer_decoder\.layers\.\d+\.self_attn\.attn)\.([qkv])_proj\.(weight|bias)")


def _translated(key: str, start: int, end: int) -> str:
    """A key in another column of `MASK2FORMER_NAMES`; itself if it is in none."""
    for names in MASK2FORMER_NAMES:
        match = re.match(re.escape(names[start]).replace("\\#", r"(\d+)"), key)
        if match is not None:
            number = match[1] if match.groups() else ""
            return names[end].replace("#", number) + key[match.end() :]
    return key


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
    """Remove the prefixes of DataParallel and torch.compile from a key, which wrap a model in any order."""
    return re.sub(r"^(module\.|_orig_mod\.)+", "", key)


def _depths(weights: Mapping[str, Tensor]) -> tuple[int, int, int, int]:
    blocks = [{key.split(".")[2] for key in weights if key.startswith(f"encoder.layer{n}.")} for n in (1, 2, 3, 4)]
    first, second, third, fourth = (len(stage) for stage in blocks)
    return first, second, third, fourth


def _head(weights: Mapping[str, Tensor]) -> tuple[str, str, int]:
    """Recognise the head: its name, family and number of classes."""
    for sign, head, family, last in HEADS_BY_KEY:
        if sign in weights and last in weights:
            return head, family, weights[last].shape[0] - (head == MASK2FORMER)  # which has a score of no object
    head_keys = [key for key in weights if key.startswith("head.")]
    heads = f"its head has keys such as {head_keys[0]}" if head_keys else "it has no head"
    raise CheckpointError(
        f"it has an encoder, but no known head ({heads}). To start from its encoder, pass the file as encoder_weights."
    )
