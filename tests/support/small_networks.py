"""Small networks behind a `logits_fn`, and pictures for them."""

import cv2
import numpy as np
import torch
import torch.nn.functional as F

MEAN, STD = (255 * torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


def photo(height, width, seed=0):
    """A smooth random picture [3, H, W], uint8."""
    random = np.random.default_rng(seed)
    small = random.integers(0, 256, (height // 6 + 2, width // 6 + 2, 3), dtype=np.uint8)
    return torch.from_numpy(cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)).permute(2, 0, 1)


def network(*, classes=5, stride=8, seed=0, gain=1.0):
    """A small random network of two layers that sees where the black padding is: images -> coarse logits."""
    random = torch.Generator().manual_seed(seed)
    first = torch.randn(6, 3, 9, 9, generator=random) * 0.05
    second = torch.randn(classes, 6, 1, 1, generator=random)

    def logits_fn(images):
        x = F.conv2d((images.float() - MEAN) / STD, first, stride=stride, padding=4).relu()
        return gain * F.conv2d(x + x.mean(dim=(2, 3), keepdim=True), second)

    return logits_fn


def full_size(logits_fn, *, align_corners):
    """The same network with its logits resized to the images' size."""
    return lambda images: F.interpolate(
        logits_fn(images), size=images.shape[2:], mode="bilinear", align_corners=align_corners
    )


def identity(images):
    """The pixels themselves, 3 classes."""
    return images.float()


def local(images):
    """A function of each pixel alone, 3 classes."""
    return images.float() * torch.tensor([1.0, 2.0, -1.0]).view(1, 3, 1, 1)
