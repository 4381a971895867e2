"""Load a model from any checkpoint there is: ours, PyTorch-Encoding's, mmsegmentation's, ImageNet classifiers."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from resnest_seg.checkpoint import FORMAT, Checkpoint, find_checkpoint
from resnest_seg.config import DataConfig, RunConfig
from resnest_seg.conversion import label_space, recognise
from resnest_seg.errors import CheckpointError, ConfigError
from resnest_seg.published import PublishedCheckpoint, published
from resnest_seg.segmenter import LoadReport, Segmenter, load_weights, segmenter_for
from resnest_seg.weights import WeightFile, naming_file, read_weights


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
