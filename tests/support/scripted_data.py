"""A small data set whose images encode the probabilities that a model gives for them, with hostile names."""

import numpy as np

import resnest_seg

SPACE = resnest_seg.LabelSpace.numbered(
    3,
    names=('sky & "air"', "<script>alert(1)</script>", "car's 100%"),
    colors=((80, 160, 240), (120, 110, 100), (240, 60, 60)),
    name="scripted </title><b>",
)

NAMES = (
    "plain.png",
    "a [1].png",
    "<img src=x onerror=alert(1)>.png",
    "quote\"s'.png",
    "ü/sp ace.png",
    "per%20cent.png",
)


class Scripted(resnest_seg.SegmentationDataset):
    """Pictures of noise in several sizes; channel 0 is the predicted class, channel 1 its probability times 255.

    In sample 2, a square of 10 x 10 pixels is labelled wrongly.
    """

    def __init__(self, count=6):
        self.label_space, self.split, self.count = SPACE, "train", count

    def __len__(self):
        return self.count

    def sample_name(self, index):
        return NAMES[index] if index < len(NAMES) else f"{index}.png"

    def __getitem__(self, index):
        random = np.random.default_rng(index)
        height, width = 30 + 3 * index, 40
        labels = random.integers(0, 3, (height // 6 + 1, width // 5 + 1)).repeat(6, 0).repeat(5, 1)[:height, :width]
        said = np.where(random.random((height, width)) < 0.1, random.integers(0, 3, (height, width)), labels)
        image = np.stack([said, random.integers(90, 256, (height, width)), np.full((height, width), index)], axis=2)
        if index == 2:
            labels[5:15, 5:15] = (labels[5:15, 5:15] + 1) % 3
        labels[:3] = 255
        return resnest_seg.Sample(image.astype(np.uint8), labels.astype(np.uint8), self.sample_name(index))


def said(image):
    """The probabilities [3, H, W] that an image of `Scripted` encodes."""
    sure = image[..., 1] / 255
    others = (1 - sure) / 2
    return np.stack([np.where(image[..., 0] == label, sure, others) for label in range(3)]).astype(np.float32)
