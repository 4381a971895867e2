"""Start a model from any checkpoint, of other classes too: what fits is loaded, and a report says what was not."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from resnest_seg.checkpoint import FORMAT, Checkpoint, find_checkpoint
from resnest_seg.config import ModelConfig
from resnest_seg.conversion import encoder_of_name, label_space, recognise, rename
from resnest_seg.errors import CheckpointError, unknown_name
from resnest_seg.labels import LabelSpace
from resnest_seg.published import published, published_names
from resnest_seg.resnest import adapt_first_convolution
from resnest_seg.segmenter import LoadReport, Segmenter
from resnest_seg.weights import WeightFile, check_finite, naming_file, read_weights

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
        return _Source("resnest_seg", dict(checkpoint.weights), (), checkpoint.config.model, checkpoint.label_space)
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
    if theirs is None or theirs.head == "classifier":
        return ()
    return tuple(
        f"{key} {getattr(ours, key)} is meant, where the file's network has {getattr(theirs, key)}"
        for key in ("dilation", "rectify")
        if getattr(ours, key) != getattr(theirs, key)
    )
