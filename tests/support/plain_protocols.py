"""The originals' multi-scale evaluators written plainly: one window at a time, a flip as a second call.

Slow and obvious, as an oracle; a `logits_fn` maps normalised images [1, 3, H, W] to logits [1, K, H, W].
"""

import math

import cv2
import numpy as np
import torch
import torch.nn.functional as F

MEAN, STD = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


def encoding(logits_fn, image, *, base_size, crop_size, scales, flip):
    """PyTorch-Encoding's: windows over resized images, exp of the logits summed with those of the flipped image.

    Args:
        image: Normalised, [1, 3, H, W].

    Returns:
        Summed scores [1, K, H, W].
    """

    def resize(x, height, width):
        return F.interpolate(x, size=(height, width), mode="bilinear", align_corners=True)

    def pad(x):  # with black
        padded = (-MEAN / STD).repeat(1, 1, max(x.shape[2], crop_size), max(x.shape[3], crop_size))
        padded[:, :, : x.shape[2], : x.shape[3]] = x
        return padded

    def scores_of(x):
        logits = logits_fn(x)
        return (logits + logits_fn(x.flip(3)).flip(3) if flip else logits).exp()

    height, width = image.shape[2:]
    stride, total = int(crop_size * 2.0 / 3.0), 0
    for scale in scales:
        long = math.ceil(base_size * scale)
        if height > width:
            h, w = long, int(1.0 * width * long / height + 0.5)
        else:
            h, w = int(1.0 * height * long / width + 0.5), long
        resized = pad(resize(image, h, w))
        if long <= crop_size:
            scores = scores_of(resized)
        else:
            scores, count = 0, torch.zeros(resized.shape[2:])
            for top in range(0, max(resized.shape[2] - crop_size + stride, 1), stride):
                for left in range(0, max(resized.shape[3] - crop_size + stride, 1), stride):
                    window = resized[:, :, top : top + crop_size, left : left + crop_size]
                    rows, columns = window.shape[2:]
                    part = scores_of(pad(window))[:, :, :rows, :columns]
                    below, right = resized.shape[2] - top - rows, resized.shape[3] - left - columns
                    scores = scores + F.pad(part, (left, right, top, below))
                    count[top : top + rows, left : left + columns] += 1
            scores = scores / count
        total = total + resize(scores[:, :, :h, :w], height, width)
    return total


def mmseg(logits_fn, image, *, scales):
    """mmsegmentation 1.x's test-time augmentation on whole images: the mean of every view's softmax.

    Args:
        image: RGB, uint8 [H, W, 3].

    Returns:
        Mean probabilities [1, K, H, W].
    """
    height, width = image.shape[:2]
    views = []
    for scale in scales:
        resized = cv2.resize(
            image, (int(width * scale + 0.5), int(height * scale + 0.5)), interpolation=cv2.INTER_LINEAR
        )
        x = (torch.from_numpy(np.ascontiguousarray(resized)).permute(2, 0, 1)[None] / 255 - MEAN) / STD
        for logits in (logits_fn(x), logits_fn(x.flip(3)).flip(3)):
            full = F.interpolate(logits, size=(height, width), mode="bilinear", align_corners=False)
            views.append(full.softmax(dim=1))
    return sum(views) / len(views)
