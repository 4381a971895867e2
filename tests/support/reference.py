"""The fill rule of the golden files in tests/golden: weights of any shape from their names alone.

The golden numbers were made by running the originals (PyTorch-Encoding, mmsegmentation) on CPU in float32 with weights
filled by this rule, keyed by their own names, so that no weight file is needed to compare with them.
"""

import functools
import json
import lzma
import math
import zlib
from pathlib import Path

import numpy as np
import torch

GOLDEN = Path(__file__).parents[1] / "golden"


@functools.cache
def original_keys():
    """Entry -> key -> shape of the originals' state dicts."""
    return json.loads(lzma.decompress((GOLDEN / "state_dict_keys.json.xz").read_bytes()))


def filled(key, shape, generator=np.random.RandomState):
    """One tensor by the rule; the golden numbers need its own generator."""
    random = generator(zlib.crc32(key.encode()))
    if key.endswith("num_batches_tracked"):
        return torch.tensor(0)
    if len(shape) >= 2:
        values = random.standard_normal(shape) * math.sqrt(2 / np.prod(shape[1:]))
    elif key.endswith("running_var"):
        values = 0.8 + 0.4 * random.random(shape)
    elif key.endswith(("running_mean", ".bias")):
        values = 0.1 * random.standard_normal(shape)
    else:
        values = (0.8 + 0.4 * random.random(shape)) * (0.2 if key.endswith("bn3.weight") else 1)
    return torch.from_numpy(np.asarray(values, np.float32))


def filled_state(shapes, generator=np.random.RandomState):
    """A state dict by the rule: key -> shape (or tensor) to key -> tensor."""
    return {key: filled(key, tuple(getattr(shape, "shape", shape)), generator) for key, shape in shapes.items()}


def fill(module, generator=np.random.RandomState):
    """Fill a module by the rule, under its own names, and put it into eval mode."""
    module.load_state_dict(filled_state(module.state_dict(), generator))
    return module.eval()


def fill_fast(module):
    """Fill a module as `fill` does, with other numbers of the same spread, for what is compared with a live network.

    numpy's newer generator draws them in a third of the time.
    """
    return fill(module, np.random.default_rng)


def golden_images(segmenter, golden):
    """The rule's normalised images, with the model's own normalisation undone: [1, 3, H, W], 0..255 and beyond."""
    random = np.random.RandomState(int(golden["input_seed"]))
    values = random.standard_normal((1, 3, int(golden["h"]), int(golden["w"]))).astype(np.float32)
    return torch.from_numpy(values) * segmenter.pixel_std + segmenter.pixel_mean


def reference_segmenter(entry):
    """The model of an entry of the golden files, by the rule."""
    from resnest_seg.config import RunConfig
    from resnest_seg.models.conversion import recognise
    from resnest_seg.models.loading import segmenter_for
    from resnest_seg.models.segmenter import load_weights

    known = recognise(filled_state(original_keys()[entry]))
    segmenter = segmenter_for(RunConfig(model=known.model), None, num_classes=known.num_classes).eval()
    load_weights(segmenter, known.weights)
    return segmenter
