"""Our model, loss and metric in a LightningModule; needs `pip install lightning`.

python examples/lightning_loop.py
"""

import lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader

import resnest_seg

Batch = tuple[Tensor, Tensor]


def collate(samples: list[resnest_seg.Sample]) -> Batch:
    """Samples of one size -> images uint8 [N, 3, H, W] and labels int64 [N, H, W]."""
    images = torch.stack([torch.from_numpy(sample.image.copy()).permute(2, 0, 1) for sample in samples])
    return images, torch.stack([torch.from_numpy(sample.labels).long() for sample in samples])


class Module(lightning.LightningModule):
    """A `Segmenter` that is trained by cross-entropy and validated by mean IoU."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.segmenter = resnest_seg.build_segmenter("resnest14_tiny", head="fcn", num_classes=num_classes)
        self.matrix = resnest_seg.ConfusionMatrix(num_classes)

    def training_step(self, batch: Batch, index: int) -> Tensor:
        images, labels = batch
        logits = self.segmenter(images).logits
        return torch.nn.functional.cross_entropy(logits, labels, ignore_index=resnest_seg.IGNORE_LABEL)

    def validation_step(self, batch: Batch, index: int) -> None:
        images, labels = batch
        self.matrix.update(labels.cpu(), self.segmenter(images).logits.argmax(dim=1).cpu())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def main(steps: int = 10) -> float:
    """Train for some steps on drawn street scenes; returns the mean IoU on others, 0..1."""
    lightning.seed_everything(0)
    train, val = (resnest_seg.Synthetic(split, size=(96, 128)) for split in ("train", "val"))
    module = Module(len(train.label_space))
    trainer = lightning.Trainer(max_steps=steps, limit_val_batches=4, logger=False, enable_checkpointing=False,
                                num_sanity_val_steps=0, enable_progress_bar=False, accelerator="cpu")  # fmt: skip
    trainer.fit(module, DataLoader(train, batch_size=4, collate_fn=collate))
    trainer.validate(module, DataLoader(val, batch_size=4, collate_fn=collate), verbose=False)
    return module.matrix.scores().mean_iou


if __name__ == "__main__":
    print(f"mIoU {100 * main():.1f}")
