"""Protocols in NumPy against those in torch, which are tested against the originals; laws; what waits in memory."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_inference import full_size, network, photo

from resnest_seg.errors import ConfigError
from resnest_seg.inference import numpy_engine as composition
from resnest_seg.inference.numpy_engine import Network, probabilities, score_blocks
from resnest_seg.inference.protocols import Protocol, Setting, protocol, with_options
from resnest_seg.inference.torch_engine import Runner, scores
from resnest_seg.inference.torch_engine import probabilities as torch_probabilities

MEMORY = 1 << 30


def composed(fn, image, method, *, classes=5, align_corners=True, batch=None, memory=MEMORY):
    """All scores [K, H, W], of `exp` as probabilities; every pixel is given once."""

    def logits_fn(images):
        return fn(torch.from_numpy(images)).numpy()

    own = Network(logits_fn, classes, align_corners=align_corners, batch=batch)
    found = np.full((classes, *image.shape[1:]), np.nan)
    for rows, columns, part in score_blocks(own, image.numpy(), method, memory=memory):
        assert np.isnan(found[:, rows, columns]).all()
        found[:, rows, columns] = part
    assert not np.isnan(found).any()
    return probabilities(found, "exp") if method.merge == "exp" else found


def in_torch(fn, image, method, *, align_corners=True):
    """The same by `resnest_seg.inference.torch_engine`."""
    found = scores(Runner(fn, align_corners=align_corners), image, method)
    return torch_probabilities(found, "exp") if method.merge == "exp" else found


def assert_close(ours, theirs, tolerance=1e-4):
    assert ours.shape == tuple(theirs.shape)
    assert np.abs(ours - theirs.numpy()).max() <= tolerance * float(theirs.abs().max())


SETTINGS = {
    "encoding": Setting(base_size=64, crop=(48, 48)),
    "mmseg0": Setting(recipe="mmseg", base_size=64, long_edge=128),
}
TILES = [
    {"window": 24, "overlap": 8, "blend": "hann"},
    {"window": 24, "overlap": 20, "blend": "distance", "flip": True},
    {"window": 32, "merge": "softmax"},
    {"window": 24, "merge": "exp", "flip": True},
    {"window": 40, "scales": [0.5, 1.0, 1.5], "flip": True, "merge": "logits"},
]


@pytest.mark.parametrize("size", [(50, 70), (70, 50), (24, 25), (9, 100), (1, 9)])
@pytest.mark.parametrize("name", ["whole", "slide", "encoding", "mmseg", "mmseg0", "paddle"])
def test_named_protocols_are_those_of_torch(name, size):
    method = protocol(name, setting=SETTINGS.get(name, Setting(crop=(40, 48))))
    corners = name in ("whole", "slide", "encoding")
    fn, image = full_size(network(), align_corners=corners), photo(*size)
    theirs = in_torch(fn, image, method, align_corners=corners)
    assert_close(composed(fn, image, method, align_corners=corners), theirs)


@pytest.mark.parametrize("size", [(50, 70), (24, 100), (25, 23), (97, 26)])
@pytest.mark.parametrize("options", TILES, ids=str)
def test_options_are_those_of_torch(options, size):
    method = with_options(protocol("whole"), **options)
    fn, image = full_size(network(), align_corners=True), photo(*size)
    theirs = in_torch(fn, image, method)
    assert_close(composed(fn, image, method), theirs)
    assert_close(composed(fn, image, method, batch=3), theirs)


@pytest.mark.parametrize("name", ["encoding", "mmseg", "paddle"])
def test_both_ways_of_merging_views_are_the_same(name, monkeypatch):
    """In pixels of the views, where the image is large, or in those of the image; and in slabs of any height."""
    fn, method = full_size(network(), align_corners=True), protocol(name, setting=SETTINGS["encoding"])
    small = with_options(method, scales=[0.25, 0.5])
    for some in (method, small):
        image = photo(150, 190)
        theirs = in_torch(fn, image, some)
        for slab in (1, 5000, 1 << 24):
            monkeypatch.setattr(composition, "_SLAB", slab)
            assert_close(composed(fn, image, some), theirs)


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    window=st.integers(1, 50),
    share=st.floats(0, 0.95),
    placement=st.sampled_from(["inward", "cut", "even"]),
    padding=st.sampled_from(["none", "stride", "window"]),
    blend=st.sampled_from(["none", "hann", "distance"]),
    flip=st.booleans(),
)
def test_windows_over_the_identity_give_the_image_back(height, width, window, share, placement, padding, blend, flip):
    image, step = photo(height, width), max(window - int(window * share), 1)
    method = Protocol(
        window=(window, window), step=(step, step), placement=placement, padding=padding, blend=blend, flip=flip
    )
    found = composed(lambda images: images.float(), image, method, classes=3, batch=1000)
    assert np.allclose(found, image.numpy(), atol=1e-2, rtol=1e-4)


@pytest.mark.parametrize("gain", [1, 30, 100, 20000])
@pytest.mark.parametrize("offset", [0, -5000, 5000])
def test_exponentials_neither_overflow_nor_vanish(gain, offset):
    fn, image = full_size(network(gain=gain), align_corners=True), photo(50, 70)
    method = protocol("encoding", setting=SETTINGS["encoding"])
    found = composed(lambda images: (fn(images).double() + offset).float(), image, method)
    plain = in_torch(lambda images: fn(images).double() + (offset if gain == 20000 else 0), image, method).numpy()
    assert (found.argmax(axis=0) == plain.argmax(axis=0)).mean() > 0.99
    if gain < 20000:  # exponents up to 1400 apart
        assert np.allclose(found.sum(axis=0), 1, atol=1e-5)
        assert np.abs(found - plain).mean() < 0.01  # float32 keeps 5e-4 of 5000


@pytest.mark.parametrize("merge", ["logits", "softmax", "exp"])
def test_probabilities_sum_up_to_one(merge):
    method = with_options(protocol("whole"), merge=merge, flip=True)
    found = composed(full_size(network(), align_corners=True), photo(20, 30), method)
    found = found if merge == "exp" else probabilities(found, merge)
    assert found.dtype == np.float32
    assert np.allclose(found.sum(axis=0), 1, atol=1e-5)


@pytest.mark.parametrize("size", [(400, 60), (65, 900), (260, 900)])
def test_only_overlaps_wait(size, monkeypatch):
    """The last row and column of windows lie almost on top of the one before, and wait no longer for that."""
    method = with_options(protocol("whole"), window=64, overlap=8)
    layer = composition._layers(size, method, 8)[0]
    waiting, most = {}, 0
    for _, cells in composition._plan(layer):
        for rows, columns, begins, ends in cells:
            assert ((rows.start, columns.start) not in waiting) == begins
            waiting[rows.start, columns.start] = (rows.stop - rows.start) * (columns.stop - columns.start)
            if ends:
                del waiting[rows.start, columns.start]
        most = max(most, sum(waiting.values()))
    assert not waiting
    assert most <= 8 * size[1] + 3 * 64 * 64
    need = composition._need([layer], size, method, Network(lambda images: images, 5, batch=1), streamed=True)
    assert need == 5 * 4 * (2 * 64 * 64 + most)
    image = photo(*size)
    fn = full_size(network(), align_corners=True)
    assert_close(composed(fn, image, method, batch=1, memory=need), in_torch(fn, image, method))
    with pytest.raises(ConfigError, match=r"give a smaller tile, or allow more"):
        composed(fn, image, method, batch=1, memory=need - 1)


def test_what_does_not_fit_is_refused_before_anything_is_run():
    def never(images):
        raise AssertionError

    for method, help_ in ((protocol("whole"), "give a tile, such as"), (protocol("mmseg"), "use one scale and a tile")):
        with pytest.raises(ConfigError, match=rf"logits of an image of 800 x 900 .* {help_}"):
            score_blocks(Network(never, 150), np.zeros((3, 800, 900), np.uint8), method, memory=100 << 20)


@pytest.mark.parametrize(("batch", "sizes"), [(1, [1] * 6), (4, [4, 2]), (100, [6])])
def test_windows_share_calls(batch, sizes):
    calls = []

    def fn(images):
        calls.append(len(images))
        return images.float()

    method = Protocol(window=(40, 40), step=(30, 30))
    composed(fn, photo(100, 60), method, classes=3, batch=batch)
    assert calls == sizes
