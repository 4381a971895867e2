"""The fill rule of the golden files in tests/golden: weights of any shape from their names alone.

The golden numbers were made by running PyTorch-Encoding on CPU in float32 with weights filled by this rule, keyed by
its own names, so that no weight file is needed to compare with it.
"""

import math
import zlib

import numpy as np
import torch

from resnest_seg.segmenter import Segmenter

PYTORCH_ENCODING_PREFIXES = {"encoder.": "pretrained.", "aux_head.": "auxlayer.", "head.": "head."}


def original_key(key: str) -> str:
    """Our state-dict key -> PyTorch-Encoding's."""
    ours = next(prefix for prefix in PYTORCH_ENCODING_PREFIXES if key.startswith(prefix))
    return PYTORCH_ENCODING_PREFIXES[ours] + key.removeprefix(ours)


def filled(key: str, shape: tuple[int, ...]) -> torch.Tensor:
    random = np.random.RandomState(zlib.crc32(key.encode()))
    if key.endswith("num_batches_tracked"):
        return torch.tensor(0)
    if len(shape) >= 2:
        values = random.standard_normal(shape) * math.sqrt(2 / np.prod(shape[1:]))
    elif key.endswith("running_var"):
        values = 0.8 + 0.4 * random.random_sample(shape)
    elif key.endswith(("running_mean", ".bias")):
        values = 0.1 * random.standard_normal(shape)
    else:
        values = (0.8 + 0.4 * random.random_sample(shape)) * (0.2 if key.endswith("bn3.weight") else 1)
    return torch.from_numpy(np.asarray(values, np.float32))


def fill(segmenter: Segmenter) -> Segmenter:
    """Fill a model by the rule, under PyTorch-Encoding's names, and put it into eval mode."""
    state = segmenter.state_dict()
    for key, value in state.items():
        if not key.startswith("pixel_"):
            state[key] = filled(original_key(key), tuple(value.shape))
    segmenter.load_state_dict(state)
    return segmenter.eval()


def golden_images(segmenter: Segmenter, seed: int, height: int, width: int) -> torch.Tensor:
    """The rule's normalised images, with the model's own normalisation undone: [1, 3, H, W], 0..255 and beyond."""
    values = np.random.RandomState(seed).standard_normal((1, 3, height, width)).astype(np.float32)
    return torch.from_numpy(values) * segmenter.pixel_std + segmenter.pixel_mean
