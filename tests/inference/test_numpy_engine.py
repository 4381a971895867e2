"""The engine in NumPy: how views are merged, and what waits in memory. Laws of both engines: test_engines.py."""

import numpy as np
import pytest
from support.small_networks import full_size, network, photo
from test_engines import assert_close, in_numpy, in_torch

from resnest_seg.errors import ConfigError
from resnest_seg.inference import numpy_engine
from resnest_seg.inference.numpy_engine import Network, score_blocks
from resnest_seg.inference.protocols import Setting, protocol, with_options


@pytest.mark.parametrize("name", ["encoding", "mmseg", "paddle"])
def test_both_ways_of_merging_views_are_the_same(name, monkeypatch):
    """In pixels of the views, where the image is large, or in those of the image; and in slabs of any height."""
    fn, image = full_size(network(), align_corners=True), photo(150, 190)
    method = protocol(name, setting=Setting(base_size=64, crop=(48, 48)))
    for some in (method, with_options(method, scales=[0.25, 0.5])):
        theirs = in_torch(fn, image, some)
        for slab in (1, 5000, 1 << 24):
            monkeypatch.setattr(numpy_engine, "_SLAB", slab)
            assert_close(in_numpy(fn, image, some), theirs, 1e-4)


@pytest.mark.parametrize("size", [(400, 60), (65, 900), (260, 900)])
def test_only_overlaps_wait(size, monkeypatch):
    """The last row and column of windows lie almost on top of the one before, and wait no longer for that."""
    method = with_options(protocol("whole"), window=64, overlap=8)
    layer = numpy_engine._layers(size, method, 8)[0]
    waiting, most = {}, 0
    for _, cells in numpy_engine._plan(layer):
        for rows, columns, begins, ends in cells:
            assert ((rows.start, columns.start) not in waiting) == begins
            waiting[rows.start, columns.start] = (rows.stop - rows.start) * (columns.stop - columns.start)
            if ends:
                del waiting[rows.start, columns.start]
        most = max(most, sum(waiting.values()))
    assert not waiting
    assert most <= 8 * size[1] + 3 * 64 * 64
    need = numpy_engine._need([layer], size, method, Network(lambda images: images, 5, batch=1), streamed=True)
    assert need == 5 * 4 * (2 * 64 * 64 + most)
    image = photo(*size)
    fn = full_size(network(), align_corners=True)
    assert_close(in_numpy(fn, image, method, batch=1, memory=need), in_torch(fn, image, method), 1e-4)
    with pytest.raises(ConfigError, match=r"give a smaller tile, or allow more"):
        in_numpy(fn, image, method, batch=1, memory=need - 1)


def test_what_does_not_fit_is_refused_before_anything_is_run():
    def never(images):
        raise AssertionError

    for method, help_ in ((protocol("whole"), "give a tile, such as"), (protocol("mmseg"), "use one scale and a tile")):
        with pytest.raises(ConfigError, match=rf"logits of an image of 800 x 900 .* {help_}"):
            score_blocks(Network(never, 150), np.zeros((3, 800, 900), np.uint8), method, memory=100 << 20)
