"""Detectors of torchvision on our encoders: Faster R-CNN finds the objects of drawn street scenes.

python examples/detection.py                          # ResNeSt-26 and ResNet-26-D, from scratch, minutes each
python examples/detection.py 5 resnest14_tiny         # steps, encoders
"""

import sys

import torch
from scipy import ndimage
from torchmetrics.detection import MeanAveragePrecision
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator

import resnest_seg

SCENES = {split: resnest_seg.Synthetic(split, size=(128, 160)) for split in ("train", "val")}
OBJECTS = {"sign": 1, "car": 2, "person": 3}  # every connected part of these classes is an object


def example(split: str, index: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """A scene [3, H, W] in 0..1, and the boxes (x1, y1, x2, y2) of its objects of 4 pixels a side or more."""
    image, labels, _ = SCENES[split][index % len(SCENES[split])]
    boxes, classes = [], []
    for name, number in OBJECTS.items():
        parts, _ = ndimage.label(labels == SCENES[split].label_space.names.index(name))
        for rows, columns in ndimage.find_objects(parts):
            if min(rows.stop - rows.start, columns.stop - columns.start) >= 4:
                boxes.append([columns.start, rows.start, columns.stop, rows.stop])
                classes.append(number)
    target = {"boxes": torch.tensor(boxes).float().reshape(-1, 4), "labels": torch.tensor(classes, dtype=torch.int64)}
    return torch.from_numpy(image).permute(2, 0, 1) / 255, target


def main(encoder: str, steps: int, seed: int = 0, scenes: int = 32) -> float:
    """Train a detector from scratch; returns the box mAP (IoU 0.5 to 0.95) on some other scenes, 0..1."""
    torch.manual_seed(seed)
    backbone = resnest_seg.detection_backbone(encoder, channels=64)
    anchors = AnchorGenerator(tuple((side,) for side in (8, 16, 32, 64, 128)), ((0.5, 1.0, 2.0),) * 5)
    model = FasterRCNN(backbone, len(OBJECTS) + 1, rpn_anchor_generator=anchors, min_size=128, max_size=160,
                       image_mean=backbone.image_mean, image_std=backbone.image_std)  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)
    for step in range(steps):
        images, targets = zip(*(example("train", 4 * step + index) for index in range(4)), strict=True)
        optimizer.param_groups[0]["lr"] = 5e-4 * min(1, 0.1 + step / 20, 1.1 - step / steps)
        optimizer.zero_grad()
        torch.stack(list(model(list(images), list(targets)).values())).sum().backward()
        optimizer.step()
    metric, model = MeanAveragePrecision(), model.eval()
    for image, target in (example("val", index) for index in range(scenes)):
        with torch.inference_mode():
            metric.update(model([image]), [target])
    return float(metric.compute()["map"])


if __name__ == "__main__":
    for name in sys.argv[2:] or ("resnest26", "smp:tu-resnet26d"):
        print(f"{name}: box mAP {100 * main(name, int((sys.argv[1:] or ['300'])[0])):.1f} on drawn scenes", flush=True)
