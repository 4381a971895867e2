"""Laws that hold in both engines, and agreement of the two: coarse logits in torch, full-size logits in NumPy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.small_networks import full_size, identity, local, network, photo

from resnest_seg.inference import numpy_engine, torch_engine
from resnest_seg.inference.protocols import Protocol, Setting, protocol, with_options

MEMORY = 1 << 30
SETTING = Setting(base_size=64, crop=(40, 48))
SETTINGS = {"encoding": Setting(base_size=64, crop=(48, 48)), "mmseg0": Setting("x", "mmseg", 64, long_edge=128)}
PROTOCOLS = ["whole", "slide", "encoding", "mmseg", "mmseg0", "paddle"]
TILES = [
    {"window": 24, "overlap": 8, "blend": "hann"},
    {"window": 24, "overlap": 20, "blend": "distance", "flip": True},
    {"window": 32, "merge": "softmax"},
    {"window": 24, "merge": "exp", "flip": True},
    {"window": 40, "scales": [0.5, 1.0, 1.5], "flip": True, "merge": "logits"},
    {"window": 24, "overlap": 8, "merge": "sigmoid"},
    {"window": 40, "scales": [0.5, 1.0, 1.5], "flip": True, "merge": "sigmoid"},
]


def in_torch(fn, image, method, *, align_corners=True, batch=None, classes=5):
    """The scores [K, H, W] by `torch_engine`, of `exp` as probabilities."""
    run = torch_engine.Runner(fn, align_corners=align_corners, batch=batch)
    slabs = list(torch_engine.score_rows(run, image, method))
    blocks = [(slice(top, top + slab.shape[1]), slice(None), slab.numpy()) for top, slab in slabs]
    found = covered(blocks, (classes, *image.shape[1:]))
    return torch_engine.probabilities(torch.from_numpy(found), "exp").numpy() if method.merge == "exp" else found


def in_numpy(fn, image, method, *, align_corners=True, batch=None, classes=5, memory=MEMORY):
    """The scores [K, H, W] by `numpy_engine`, of `exp` as probabilities."""
    net = numpy_engine.Network(
        lambda images: fn(torch.from_numpy(images)).numpy(), classes, align_corners=align_corners, batch=batch
    )
    blocks = numpy_engine.score_blocks(net, image.numpy(), method, memory=memory)
    found = covered(blocks, (classes, *image.shape[1:]))
    return numpy_engine.probabilities(found, "exp") if method.merge == "exp" else found


def covered(blocks, shape):
    """The scores of all blocks, which give each pixel once."""
    found = np.full(shape, np.nan)
    for rows, columns, part in blocks:
        assert np.isnan(found[:, rows, columns]).all()
        found[:, rows, columns] = part
    assert not np.isnan(found).any()
    return found


ENGINES = pytest.mark.parametrize("engine", [in_torch, in_numpy])


def named(name):
    return protocol(name, setting=SETTINGS.get(name, SETTING))


def assert_close(ours, theirs, tolerance):
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= tolerance * np.abs(theirs).max()


@pytest.mark.parametrize("size", [(50, 70), (70, 50), (24, 25), (9, 100), (1, 9)])
@pytest.mark.parametrize("name", PROTOCOLS)
def test_both_give_the_same_scores_by_every_named_protocol(name, size):
    corners = name in ("whole", "slide", "encoding")
    coarse, image = network(), photo(*size)
    theirs = in_torch(coarse, image, named(name), align_corners=corners)
    ours = in_numpy(full_size(coarse, align_corners=corners), image, named(name), align_corners=corners)
    assert_close(ours, theirs, 1e-5)


@pytest.mark.parametrize("size", [(50, 70), (24, 100), (25, 23), (97, 26)])
@pytest.mark.parametrize("options", TILES, ids=str)
def test_both_give_the_same_scores_with_any_options(options, size):
    method = with_options(protocol("whole"), **options)
    coarse, image = network(), photo(*size)
    fn = full_size(coarse, align_corners=True)
    theirs = in_torch(coarse, image, method)
    assert_close(in_numpy(fn, image, method), theirs, 1e-5)
    assert_close(in_numpy(fn, image, method, batch=3), theirs, 1e-5)


@pytest.mark.long
@ENGINES
@settings(max_examples=100, deadline=None)
@given(
    height=st.integers(1, 60),
    width=st.integers(1, 60),
    window=st.integers(1, 36),
    share=st.floats(0, 0.95),
    placement=st.sampled_from(["inward", "cut", "even"]),
    padding=st.sampled_from(["none", "stride", "window"]),
    blend=st.sampled_from(["none", "hann", "distance"]),
    flip=st.booleans(),
)
def test_windows_over_the_identity_give_the_image_back(
    engine, height, width, window, share, placement, padding, blend, flip
):
    image, step = photo(height, width), max(window - int(window * share), 1)
    method = Protocol(
        window=(window, window), step=(step, step), placement=placement, padding=padding, blend=blend, flip=flip
    )
    found = engine(identity, image, method, classes=3, batch=1000)
    assert np.allclose(found, image.numpy(), atol=1e-2, rtol=1e-4)


@ENGINES
@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_constant_image_gives_constant_scores(engine, name):
    for value in (3, 120, 250):
        found = engine(local, torch.full((3, 50, 70), value, dtype=torch.uint8), named(name), classes=3)
        assert set(np.unique(found.argmax(axis=0))) == {1}
        if name != "encoding":  # which pads with black, and its resizing mixes that in at the edges
            assert_close(found, np.broadcast_to(found[:, :1, :1], found.shape), 1e-5)


@ENGINES
@pytest.mark.parametrize("name", ["mmseg", "mmseg0", "paddle"])
def test_a_mirrored_image_gives_mirrored_scores(engine, name):
    image, fn = photo(50, 70), full_size(network(), align_corners=False)
    mirrored = engine(fn, image.flip(2), named(name), align_corners=False)
    assert_close(mirrored[..., ::-1], engine(fn, image, named(name), align_corners=False), 1e-6)


@ENGINES
@pytest.mark.parametrize("batch", [2, 3, None])
def test_batches_change_nothing(engine, batch):
    image, fn = photo(90, 120), full_size(network(), align_corners=True)
    method = protocol("encoding", setting=Setting(base_size=128, crop=(48, 48)))
    assert_close(engine(fn, image, method, batch=batch), engine(fn, image, method, batch=1), 1e-5)


@ENGINES
@pytest.mark.parametrize("merge", ["logits", "softmax", "exp"])
def test_probabilities_sum_up_to_one(engine, merge):
    method = with_options(protocol("whole"), merge=merge, flip=True)
    found = engine(full_size(network(), align_corners=True), photo(20, 30), method)
    if merge != "exp":
        of_arrays, of_tensors = numpy_engine.probabilities, torch_engine.probabilities
        tensors = of_tensors(torch.from_numpy(found), merge).numpy()
        found = of_arrays(found, merge)
        assert np.allclose(found, tensors, atol=1e-6)
    assert found.dtype == np.float32
    assert np.allclose(found.sum(axis=0), 1, atol=1e-5)


@pytest.mark.parametrize("gain", [1, 30, 100, 20000])
@pytest.mark.parametrize("offset", [0, -5000, 5000])
def test_exponentials_neither_overflow_nor_vanish(gain, offset):
    fn, image = full_size(network(gain=gain), align_corners=True), photo(50, 70)
    found = in_numpy(lambda images: (fn(images).double() + offset).float(), image, named("encoding"))
    plain = in_torch(lambda images: fn(images).double() + (offset if gain == 20000 else 0), image, named("encoding"))
    assert (found.argmax(axis=0) == plain.argmax(axis=0)).mean() > 0.99
    if gain < 20000:  # exponents up to 1400 apart
        assert np.allclose(found.sum(axis=0), 1, atol=1e-5)
        assert np.abs(found - plain).mean() < 0.01  # float32 keeps 5e-4 of 5000


def test_scores_of_masks_are_added_over_flips_not_multiplied():
    """Their logits are logarithms of scores; a plain sum of exponentials is the original's."""
    image = photo(9, 14)
    shown = np.stack([image.numpy(), image.numpy()[..., ::-1]])
    plain = 1 + shown * np.arange(1, 15, dtype=np.float32)  # not symmetric, so that flips give other scores
    net = numpy_engine.Network(
        lambda images: np.log(1 + images * np.arange(1, images.shape[3] + 1, dtype=np.float32)), 3, log_scores=True
    )
    method = Protocol("flips", flip=True, merge="exp")
    found = covered(numpy_engine.score_blocks(net, image.numpy(), method, memory=MEMORY), (3, 9, 14))
    wanted = plain[0] + plain[1][..., ::-1]
    assert np.allclose(numpy_engine.probabilities(found, "exp"), wanted / wanted.sum(axis=0), atol=1e-5)


@ENGINES
@pytest.mark.parametrize(("batch", "sizes"), [(1, [1] * 6), (4, [4, 2]), (100, [6])])
def test_windows_share_calls(engine, batch, sizes):
    calls = []

    def fn(images):
        calls.append(len(images))
        return images.float()

    engine(fn, photo(100, 60), Protocol(window=(40, 40), step=(30, 30)), classes=3, batch=batch)
    if engine is in_torch:  # which runs a row of windows when its rows are asked for
        assert calls == {1: [1] * 6, 4: [2] * 3, 100: [2] * 3}[batch]
    else:
        assert calls == sizes
