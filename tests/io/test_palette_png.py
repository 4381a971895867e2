"""What Pillow reads in a file is what was written, in whatever pieces."""

import io

import numpy as np
import pytest
from PIL import Image

from resnest_seg.io.images import PalettePng


@pytest.mark.parametrize("size", [(1, 1), (9, 530), (700, 3)])
@pytest.mark.parametrize("rows", [1, 4, 1000])
def test_values_and_colours_come_back(size, rows):
    random = np.random.default_rng(0)
    values = random.integers(0, 256, size, dtype=np.uint8)
    palette = random.integers(0, 256, (256, 3), dtype=np.uint8)
    file = io.BytesIO()
    with PalettePng(file, *size, palette) as picture:
        for first in range(0, size[0], rows):
            picture.write(values[first : first + rows])
        picture.write(values[:0])
    opened = Image.open(io.BytesIO(file.getvalue()))
    assert opened.mode == "P"
    assert np.array_equal(np.array(opened), values)
    assert np.array_equal(np.array(opened.convert("RGB")), palette[values])


def test_a_map_of_few_regions_is_small():
    labels = np.zeros((500, 500), np.uint8)
    labels[100:300, 50:400] = 7
    file = io.BytesIO()
    with PalettePng(file, 500, 500, np.zeros((256, 3), np.uint8)) as picture:
        picture.write(labels)
    assert len(file.getvalue()) < 4000
