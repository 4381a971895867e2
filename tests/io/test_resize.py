"""Resizing of images of any number of bands, against the resizing of each band alone."""

import cv2
import numpy as np
import pytest
import torch

from resnest_seg.data.transforms import resize_like_opencv, resize_like_pil
from resnest_seg.inference import numpy_engine, torch_engine
from resnest_seg.inference.protocols import Protocol
from resnest_seg.io.resize import resized_bands

SIZES = [(8, 10), (7, 9), (5, 5), (20, 32), (33, 21)]
"""Of images of 16 x 20: half, less by a fraction and by a whole number, and more."""


def values(kind, bands):
    return (np.random.default_rng(bands).random((16, 20, bands)) * (255 if kind == "uint8" else 3e4)).astype(kind)


@pytest.mark.parametrize("kind", ["uint8", "uint16", "int16", "float32"])
@pytest.mark.parametrize("name", ["INTER_LINEAR", "INTER_LINEAR_EXACT", "INTER_AREA"])
def test_every_band_is_resized_as_if_it_were_alone(kind, name):
    how = getattr(cv2, name)
    for bands in (1, 3, 4, 5, 6, 9, 130):
        image = values(kind, bands)
        for size in SIZES:
            found = resized_bands(image, size, interpolation=how)
            assert (found.shape, found.dtype, found.flags.c_contiguous) == ((*size, bands), image.dtype, True)
            planes = [cv2.resize(np.ascontiguousarray(image[..., band]), size[::-1], interpolation=how)
                      for band in range(bands)]  # fmt: skip
            apart = np.abs(found.astype(np.float64) - np.stack(planes, axis=2)).max()
            assert apart <= (0.02 if kind == "float32" else 0), (bands, size)
            if bands <= 4:
                assert np.array_equal(found.squeeze(), cv2.resize(image, size[::-1], interpolation=how).squeeze())


def test_views_and_augmentations_of_many_bands_do_not_fail():
    image, labels, protocol = values("uint8", 130), np.zeros((16, 20), np.uint8), Protocol(scales=(0.5,))
    half = resized_bands(image, (8, 10), interpolation=cv2.INTER_LINEAR)
    assert np.array_equal(
        numpy_engine.resized_image(image.transpose(2, 0, 1), (8, 10), protocol), half.transpose(2, 0, 1)
    )
    tensor = torch.from_numpy(image).permute(2, 0, 1)
    assert np.array_equal(torch_engine.resized_image(tensor, (8, 10), protocol).numpy(), half.transpose(2, 0, 1))
    assert np.array_equal(resize_like_opencv(image, labels, (8, 10))[0], half)
    assert resize_like_pil(image, labels, (33, 21))[0].shape == (33, 21, 130)
