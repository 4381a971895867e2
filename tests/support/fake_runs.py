"""Run folders as a training leaves them, made in a second: an untrained network, drawn labels, lines by hand."""

import json

import numpy as np

from resnest_seg.config import RunConfig
from resnest_seg.config_reading import to_yaml
from resnest_seg.data.datasets import Sample, SegmentationDataset
from resnest_seg.evaluation.evaluator import Measures, evaluate
from resnest_seg.labels import LabelSpace
from resnest_seg.models.checkpoint import Checkpoint

HOSTILE = ("</script><img src=x onerror=alert(1)>", '" onload="alert(2)', "b&w ü [1] %s {x} ' `${1}`")
"""Class names that would be HTML, or a script, if they were not escaped."""


class Blocks(SegmentationDataset):
    """Pictures whose halves and stripes have classes; photos are the classes' colours with some noise."""

    split = "val"

    def __init__(self, space, *, count=8, size=(48, 64)):
        self.label_space, self.count, self.size = space, count, size

    def __len__(self):
        return self.count

    def sample_name(self, index):
        return f"street <{index}> & 'co'"

    def __getitem__(self, index):
        random = np.random.default_rng(index)
        height, width = self.size
        labels = np.zeros(self.size, np.uint8)
        labels[:, width // 2 :] = 1
        labels[height // 3 : height // 3 + 4 + index] = len(self.label_space) - 1
        labels[:3] = 255
        image = np.full((*self.size, 3), 120, np.uint8)
        image[labels < 255] = self.label_space.palette[labels[labels < 255]]
        image = np.clip(image.astype(int) + random.integers(-20, 21, image.shape), 0, 255).astype(np.uint8)
        if self.label_space.task == "multilabel":
            labels = np.where(labels == 255, 1 << 15, 1 << labels.astype(np.uint16)).astype(np.uint16)
        elif self.label_space.task == "binary":
            labels[labels == 2] = 1
        return Sample(image, labels, f"/photos/{index}.png")


def space(names=("sky", "road", "car"), task="multiclass"):
    colors = ((10, 20, 200), (90, 90, 90), (200, 30, 30))
    return LabelSpace("blocks", tuple(names), colors[: len(names)], tuple(range(len(names)))).for_task(
        task, **({"positive": names[1:]} if task == "binary" else {})
    )


def write_lines(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def fake_run(folder, segmenter, dataset, *, steps=40, scores=(0.2, 0.5, 0.4), seed=0, save=False, **groups):
    """A run of 10 steps an epoch with an evaluation of the whole data set, by `segmenter`."""
    folder.mkdir(parents=True)
    train = {"epochs": 4, "batch_size": 4} | groups.pop("train", {})
    config = RunConfig.from_dict(
        {"seed": seed, "train": train, "data": {"dataset": "synthetic"}, "eval": {"sheet": 2}, **groups}
    )
    (folder / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    (folder / "last.safetensors").touch()  # damaged, so that lines alone say how far the run is
    names = dataset.label_space.score_names
    lines = [
        {"kind": "train", "step": step, "epoch": step / 10, "loss": 2 / step, "grad_norm": 1 + step % 3, "lr": 0.01}
        for step in range(1, steps + 1)
    ]
    for epoch, score in enumerate(scores, 1):
        by_class = [None if label == epoch - 1 else score + label / 100 for label in range(len(names))]
        lines.append({"kind": "validation", "step": 10 * epoch, "epoch": epoch, "mean_iou": score,
                      "pixel_accuracy": score + 0.1, "val_loss": 2 - score, "class_iou": by_class})  # fmt: skip
    write_lines(folder / "metrics.jsonl", lines)
    start = {"kind": "start", "step": 0, "epoch": 0, "id": "x", "steps": 40, "images": 40, "data": "0123456789ab",
             "host": "<b>host</b>", "processes": 1, "device": "cpu", "precision": "bf16", "version": "0.1.0",
             "torch": "2.11.0", "python": "3.11.7", "changes": []}  # fmt: skip
    speed = {"kind": "speed", "step": 10, "epoch": 1, "images_per_second": 3.5, "data_wait": 0.1, "memory_mib": 700}
    write_lines(folder / "machine.jsonl", [start, speed])
    multiclass = dataset.label_space.task == "multiclass"
    measures = Measures(calibration=multiclass, boundaries=multiclass)
    report = evaluate(segmenter, dataset, measures=measures, images=folder / "val_images.jsonl")
    report.save(folder / "val_report.json")
    if save:
        Checkpoint(config, dataset.label_space, segmenter.state_dict()).save(folder / "best.safetensors")
    return folder
