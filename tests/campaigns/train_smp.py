"""Trains DeepLabV3 of segmentation-models-pytorch by a plain loop, to compare with a run of ours.

    python tests/campaigns/train_smp.py RUN/config.yaml tu-resnest50d RESULT.json --split test --data.root FOLDER

The data set, the augmented samples, their order, the batch, the number of steps and the learning rates are those that
the config names; the network, its normalisation and the loss, a cross-entropy of full-size logits, are SMP's and
torch's own. The file has the scores of the last weights by the protocol `whole`, seconds and images a second.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from pathlib import Path

import numpy as np
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F

from resnest_seg.config import load_run_config
from resnest_seg.data.build import dataset_for
from resnest_seg.data.datasets import SegmentationDataset
from resnest_seg.data.loader import AugmentedSamples, Division, run_loader, stack_samples
from resnest_seg.data.transforms import TrainTransform
from resnest_seg.evaluation.metrics import ConfusionMatrix
from resnest_seg.training.optim import Schedule

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def main() -> None:
    """Train, evaluate, write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("encoder")
    parser.add_argument("result")
    parser.add_argument("--split", default="test")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    known, overrides = parser.parse_known_args()
    config = load_run_config(known.config, overrides=overrides)
    train, device = config.train, torch.device(known.device)
    data = dataset_for(config.data, "train")
    classes = len(data.label_space)
    schedule = Schedule.from_config(config, steps_per_epoch=len(data) // train.batch_size)
    torch.manual_seed(config.seed)
    stride = config.model.output_stride
    model = smp.DeepLabV3(known.encoder, encoder_weights=None, classes=classes, encoder_output_stride=stride).to(device)
    encoder, head = (
        list(model.encoder.parameters()),
        [*model.decoder.parameters(), *model.segmentation_head.parameters()],
    )
    groups = [{"params": encoder, "factor": 1.0}, {"params": head, "factor": config.optim.head_lr_factor}]
    if config.optim.optimizer == "adamw":
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(groups, weight_decay=config.optim.weight_decay)
    else:
        optimizer = torch.optim.SGD(
            groups, momentum=config.optim.momentum, weight_decay=config.optim.weight_decay, lr=0.01
        )
    mean, std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (MEAN, STD))
    half = torch.autocast(device.type, torch.bfloat16) if device.type == "cuda" else contextlib.nullcontext()
    samples = AugmentedSamples(data, TrainTransform.from_config(config.data), config.seed)
    order = Division(seed=config.seed, batch_size=train.batch_size, steps=range(schedule.steps)).batches(len(data))
    batches = run_loader(samples, order, stack_samples, workers=config.data.workers, pin_memory=device.type == "cuda")
    start = time.perf_counter()
    model.train()
    for step, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = schedule(step) * group["factor"]
        images, labels = batch.images.to(device), batch.labels.to(device).long()
        with half:
            logits = model((images.float() - mean) / std)
        loss = F.cross_entropy(logits.float(), labels, ignore_index=255)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 100 == 0:
            print(step, round(float(loss.detach()), 4), flush=True)
    seconds = time.perf_counter() - start
    scores = evaluate(model, dataset_for(config.data, known.split), classes, (mean, std), stride, half)
    figures = {"encoder": known.encoder, "steps": schedule.steps, "seconds": seconds, "scores": scores}
    figures["images_per_second"] = schedule.steps * train.batch_size / seconds
    Path(known.result).write_text(json.dumps(figures, indent=1), encoding="utf-8")
    print(json.dumps(figures))


@torch.inference_mode()
def evaluate(
    model: torch.nn.Module,
    data: SegmentationDataset,
    classes: int,
    normalisation: tuple[torch.Tensor, ...],
    stride: int,
    half: contextlib.AbstractContextManager[object],
) -> dict[str, object]:
    """One pass over each image at its own size, padded to what the network takes."""
    model.eval()
    mean, std = normalisation
    counts = ConfusionMatrix(classes)
    for index in range(len(data)):
        sample = data[index]
        height, width = sample.labels.shape
        image = torch.from_numpy(np.ascontiguousarray(sample.image)).to(mean.device).permute(2, 0, 1)[None].float()
        padded = F.pad((image - mean) / std, (0, -width % stride, 0, -height % stride))
        with half:
            labels = model(padded)[0, :, :height, :width].argmax(dim=0).to(torch.uint8).cpu()
        counts.update(torch.from_numpy(sample.labels.copy()), labels)
    found = counts.scores()
    return {"mean_iou": found.mean_iou, "pixel_accuracy": found.pixel_accuracy, "class_iou": list(found.class_iou)}


if __name__ == "__main__":
    main()
