"""A data set of your own in three ways: a class, a torch `Dataset` of pairs, a table of Hugging Face `datasets`.

python examples/own_dataset.py runs/own_dataset
"""

import sys

import numpy as np
import torch

import resnest_seg


class Discs(resnest_seg.SegmentationDataset):
    """A disc of a random place and colour on noise; all that a data set needs is these four members."""

    def __init__(self, split: str, count: int) -> None:
        self.split, self.count = split, count
        self.label_space = resnest_seg.LabelSpace.numbered(2, names=["ground", "disc"], name="discs")

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> resnest_seg.Sample:
        random = np.random.default_rng([index, self.split == "train"])
        rows, columns = np.mgrid[:96, :128]
        center = random.integers([96, 128])
        labels = (np.hypot(rows - center[0], columns - center[1]) < 30).astype(np.uint8)
        image = random.integers(0, 120, (96, 128, 3), dtype=np.uint8) + labels[..., None] * np.uint8(80)
        return resnest_seg.Sample(image, labels, f"{self.split} {index}")


class Pairs(torch.utils.data.Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """A plain torch data set: uint8 images [3, H, W] and masks [H, W], 0..K-1 or 255 where nothing is labelled."""

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image, labels, _ = Discs("val", len(self))[index]
        return torch.from_numpy(image).permute(2, 0, 1), torch.from_numpy(labels)


def main(output: str) -> None:
    """Train on the class, and validate on the pairs."""
    config = {
        "model": {"encoder": "resnest14_tiny", "head": "fcn"},
        "data": {"base_size": 128, "crop_size": 96},
        "train": {"epochs": None, "iterations": 10, "batch_size": 4},
    }
    validation = resnest_seg.PairDataset(Pairs(), ["ground", "disc"], split="val")
    # A table: PairDataset(datasets.load_dataset(...)["validation"], names, keys=("image", "annotation"), ignore=(0,))
    result = resnest_seg.fit(config, train=Discs("train", 64), validation=validation, output=output)
    print(f"mIoU {100 * result.best_score:.1f} after {result.step} steps; weights in {result.best}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "runs/own_dataset")
