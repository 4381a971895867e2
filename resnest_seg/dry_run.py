"""Try a run out before it takes a night: everything it does, in two steps, and nothing left behind."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from pathlib import Path

import torch

from resnest_seg.catalog import DATASETS, data_root, dataset_for
from resnest_seg.checkpoint import BEST
from resnest_seg.classes_file import read_classes
from resnest_seg.config import DataConfig, RunConfig
from resnest_seg.datasets import Synthetic
from resnest_seg.doctor import balance
from resnest_seg.errors import ConfigError, unknown_name
from resnest_seg.evaluation import evaluate
from resnest_seg.labels import LabelSpace
from resnest_seg.run_folder import MACHINE
from resnest_seg.samples import Sample, SegmentationDataset
from resnest_seg.segmenter import segmenter_for
from resnest_seg.training import Trainer
from resnest_seg.zoo import load_checkpoint

IMAGES = 2
"""How many images a dry run validates on and evaluates."""


class StandIn(SegmentationDataset):
    """Synthetic street scenes with the classes of another data set, for when that is not there.

    Every class of the space occurs in the data set, in places that mean nothing.

    Args:
        space: The classes.
        split: "train" or "val".
        size: (H, W) of the pictures.
    """

    def __init__(self, space: LabelSpace, split: str, *, size: tuple[int, int]) -> None:
        self.label_space, self.split, self.scenes = space, split, Synthetic(split, size=size)

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> Sample:
        image, labels, _ = self.scenes[index]
        known = labels < len(self.scenes.label_space)
        other = (labels.astype(int) + index * len(self.scenes.label_space)) % len(self.label_space)
        labels[known] = other[known]
        return Sample(image, labels, f"stand-in {self.split} scene {index}")


class FirstOf(SegmentationDataset):
    """The first `count` samples of a data set, over again if it has fewer."""

    def __init__(self, dataset: SegmentationDataset, count: int) -> None:
        self.dataset, self.count = dataset, count
        self.label_space, self.split = dataset.label_space, dataset.split

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self.count:
            raise IndexError(index)
        return self.dataset[index % len(self.dataset)]


def dry_run(config: RunConfig) -> str:
    """Build the run, take a step, save, resume, take another, validate, and evaluate what was saved as best.

    The model, the sizes and the batch are the run's own, so memory and time are, too; its published weights are not
    fetched. The data is the run's if it is there, else street scenes with its classes. All files lie in a temporary
    folder, which is removed.

    Returns:
        What was done, in a few lines.

    Raises:
        ConfigError: The config cannot be run, or there are several processes.
        ResNeStSegError: Whatever else would stop the run.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("a dry run takes one process: start it without torchrun.")
    real = {split: data_or_stand_in(config, split) for split in ("train", config.eval.split)}
    train = FirstOf(real["train"], 2 * config.train.batch_size)
    validation = FirstOf(real[config.eval.split], IMAGES)
    short = dataclasses.replace(config.train, epochs=1, iterations=None, validate_every=1, log_every=1)
    short = dataclasses.replace(short, validate_every_steps=0, trackers="none")
    optim = dataclasses.replace(config.optim, warmup=0.0)  # it may be longer than two steps
    config = dataclasses.replace(config, train=short, optim=optim)
    weights = balance(
        train, dataclasses.replace(config, data=dataclasses.replace(config.data, workers=0))
    ).class_weights
    with tempfile.TemporaryDirectory(prefix="resnest_seg_dry_run_") as folder:
        output = Path(folder) / "run"
        for resume in (False, True):
            torch.manual_seed(config.seed)
            segmenter = segmenter_for(config, train.label_space, pretrained=False)
            trainer = Trainer(
                config,
                segmenter=segmenter,
                train=train,
                validation=validation,
                output=output,
                resume=resume,
                class_weights=weights,
            )
            trainer.fit(until=None if resume else 1)
            if trainer.stopped_by is not None:
                raise KeyboardInterrupt
        segmenter = load_checkpoint(output / BEST).to(trainer.engine.device)
        report = evaluate(segmenter, validation, protocols=(config.eval.protocol,))
        entries = [json.loads(line) for line in (output / MACHINE).read_text(encoding="utf-8").splitlines()]
    speed = [entry for entry in entries if entry["kind"] == "speed"][-1]
    memory = f"{speed['memory_mib']} MiB" + (f", {speed['cuda_peak_mib']} MiB GPU" if "cuda_peak_mib" in speed else "")
    stand_in = isinstance(real["train"], StandIn)
    return "\n".join(
        (
            f"dry run of {segmenter.description} passed: trained, saved, resumed, validated, evaluated.",
            f"  data     {'not found, so street scenes with the classes of' if stand_in else 'read from'} "
            f"{config.data.dataset}, {len(train.label_space)} classes",
            f"  step     {config.train.batch_size / speed['images_per_second']:.2f} s for {config.train.batch_size} "
            f"images, memory {memory}",
            f"  scores   of {report.images} images, protocol {config.eval.protocol}; they mean nothing after two steps",
        )
    )


def data_or_stand_in(config: RunConfig, split: str) -> SegmentationDataset:
    """A split of the run's data, or what stands in for it.

    Raises:
        ConfigError: Unknown data set, or a wrong file of classes.
    """
    data = config.data
    if data.dataset not in DATASETS:
        raise unknown_name("data set", data.dataset, DATASETS)
    if data.dataset == "synthetic" or data_root(data.dataset, data.root).exists():
        return dataset_for(data, split)
    size = (data.crop_size, data.crop_width or data.crop_size)
    return StandIn(_space(data), "train" if split == "train" else "val", size=size)


def _space(data: DataConfig) -> LabelSpace:
    """The classes of data that is not there."""
    if data.classes is not None:
        return read_classes(data.classes)
    return LabelSpace.of("synthetic" if data.dataset == "folder" else data.dataset)
