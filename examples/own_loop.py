"""The plain PyTorch loop with our model, data and metric, and nothing else of ours: no trainer, no config.

python examples/own_loop.py
"""

import torch
from torch.utils.data import DataLoader

import resnest_seg


def collate(samples: list[resnest_seg.Sample]) -> tuple[torch.Tensor, torch.Tensor]:
    """Samples of one size -> images uint8 [N, 3, H, W] and labels int64 [N, H, W]."""
    images = torch.stack([torch.from_numpy(sample.image.copy()).permute(2, 0, 1) for sample in samples])
    return images, torch.stack([torch.from_numpy(sample.labels).long() for sample in samples])


def main(steps: int = 20) -> float:
    """Train for some steps on drawn street scenes; returns the mean IoU on eight others, 0..1."""
    torch.manual_seed(0)
    model = resnest_seg.build_segmenter("resnest14_tiny", head="fcn", num_classes=10)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loader = DataLoader(resnest_seg.Synthetic("train", size=(96, 128)), batch_size=4, shuffle=True, collate_fn=collate)
    for _, (images, labels) in zip(range(steps), loader, strict=False):
        output = model(images)  # 0..255: the model normalises
        losses = [
            torch.nn.functional.cross_entropy(logits, labels, ignore_index=resnest_seg.IGNORE_LABEL)
            for logits in (output.logits, output.aux_logits)
        ]
        optimizer.zero_grad()
        (losses[0] + 0.2 * losses[1]).backward()
        optimizer.step()

    model.eval()
    matrix = resnest_seg.ConfusionMatrix(10)
    with torch.inference_mode():
        for index in range(8):
            image, labels, _ = resnest_seg.Synthetic("val", size=(96, 128))[index]
            logits = model(torch.from_numpy(image).permute(2, 0, 1)[None]).logits
            matrix.update(torch.from_numpy(labels), logits[0].argmax(dim=0))
    return matrix.scores().mean_iou


if __name__ == "__main__":
    print(f"mIoU {100 * main():.1f}")
