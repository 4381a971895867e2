"""What the named protocols are, by the facts of the field, and options that make no sense."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resnest_seg.errors import ConfigError
from resnest_seg.inference.protocols import PROTOCOLS, Protocol, Setting, Window, protocol, with_options, with_tiles

SIX = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)


@pytest.mark.parametrize(
    ("name", "scales", "flip", "merge", "absent"),
    [
        ("whole", (1.0,), False, "logits", "skipped"),
        ("slide", (1.0,), False, "logits", "skipped"),
        ("encoding", SIX, True, "exp", "zero"),
        ("mmseg", SIX, True, "softmax", "skipped"),
        ("mmseg0", SIX, True, "softmax", "skipped"),
        ("paddle", (0.75, 1.0, 1.25), True, "logits", "zero"),
    ],
)
def test_the_facts(name, scales, flip, merge, absent):
    method = protocol(name)
    assert (method.scales, method.flip, method.merge, method.absent) == (scales, flip, merge, absent)
    assert method.name == name
    assert name in method.description


def test_cityscapes_has_scales_and_a_canvas_of_its_own():
    setting = Setting(dataset="cityscapes", base_size=2048, crop=(768, 768))
    assert protocol("encoding", setting=setting).scales == (0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.25)
    assert protocol("mmseg0", setting=setting).canvas == (2048, 1024)
    assert protocol("mmseg0").canvas == (2048, 512)
    of_mmseg = Setting(dataset="cityscapes", recipe="mmseg", base_size=1024, crop=(512, 1024), long_edge=2048)
    assert protocol("mmseg0", setting=of_mmseg).canvas == (2048, 1024)
    assert protocol("encoding", setting=of_mmseg).base_size == 2048
    assert protocol("encoding", setting=Setting(recipe="mmseg", base_size=512, crop=(512, 512))).base_size == 520


def test_sizes_round_as_the_originals_round():
    assert [protocol("encoding").size(512, 683, scale) for scale in (0.5, 1.0, 1.75)] == [
        (195, 260),
        (390, 520),
        (682, 910),
    ]
    assert protocol("encoding").size(683, 512, 0.75) == (390, 292)
    assert protocol("mmseg").size(33, 47, 1.25) == (41, 59)  # 41.25 and 58.75
    assert protocol("mmseg0").size(512, 683, 0.5) == (256, 342)  # short edge 256: 341.5 rounded up
    assert protocol("mmseg0").size(400, 2000, 1.0) == (410, 2048)  # the long edge is what limits
    assert protocol("whole").size(7, 9, 1.0) == (7, 9)
    assert protocol("mmseg").size(1, 1, 0.5) == (1, 1)


def test_windows_are_cut_or_shifted():
    encoding = protocol("encoding", setting=Setting(crop=(480, 480)))
    assert encoding.step == (320, 320)
    assert encoding.windows(682, 910, stride=8) == [
        Window(top, left, 480, 480) for top in (0, 320) for left in (0, 320, 640)
    ]
    assert encoding.windows(195, 260, stride=8) == [Window(0, 0, 480, 480)]  # filled up with black
    slide = protocol("slide", setting=Setting(crop=(480, 480)))
    assert slide.windows(512, 683, stride=8) == [Window(top, left, 480, 480) for top in (0, 32) for left in (0, 203)]
    assert slide.windows(100, 683, stride=8) == [Window(0, left, 100, 480) for left in (0, 203)]
    assert protocol("whole").windows(33, 47, stride=8) == [Window(0, 0, 40, 48)]
    assert protocol("mmseg").windows(33, 47, stride=8) == [Window(0, 0, 33, 47)]


@given(
    length=st.integers(1, 3000), window=st.integers(16, 900), share=st.floats(0, 0.95), unit=st.sampled_from([1, 8, 32])
)
def test_tiles_are_as_small_as_their_number_and_overlap_allow(length, window, share, unit):
    overlap = int(window * share)
    tiles = with_tiles(protocol("whole"), window, overlap)
    shifted = with_options(protocol("whole"), window=window, overlap=overlap)
    found, others = tiles.windows(window, length, stride=unit), shifted.windows(window, length, stride=unit)
    assert len(found) == len(others)
    assert len({tile.width for tile in found}) == 1
    width = found[0].width
    assert width <= others[0].width
    assert (found[0].left, found[-1].left) == (0, max(length - width, 0))
    assert found[-1].left + width >= length
    gaps = [after.left - before.left for before, after in itertools.pairwise(found)]
    assert all(0 < gap <= width - overlap for gap in gaps)
    if len(found) > 1 and width < window:  # one unit less would not do
        assert (width - unit) * len(found) - overlap * (len(found) - 1) < length
        assert width % unit == 0


def test_two_tiles_and_a_bit_are_three_of_less():
    tiles = with_tiles(protocol("whole"), 512, None).windows(1024, 600, stride=8)
    assert {(tile.height, tile.width) for tile in tiles} == {(384, 336)}
    assert sorted({tile.top for tile in tiles}) == [0, 320, 640]
    assert sorted({tile.left for tile in tiles}) == [0, 264]


def test_every_ingredient_is_an_option():
    base = protocol("whole")
    changed = with_options(base, scales=[0.75, 1.25], flip=True, window=64, overlap=16, merge="softmax", blend="hann")
    assert (changed.scales, changed.flip, changed.window, changed.step) == ((0.75, 1.25), True, (64, 64), (48, 48))
    assert (changed.merge, changed.blend) == ("softmax", "hann")
    assert changed.name == "whole (scales, flip, merge, blend, window changed)"
    assert with_options(base) is base
    assert with_options(base, scales=[1.0], flip=False).name == "whole"
    assert with_options(protocol("slide"), window=0).window is None
    assert with_options(base, window=64).step == (56, 56)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scales": []}, "scales must be 1 to 64 numbers from 0.01 to 16.0, not"),
        ({"scales": [0.0]}, "scales must be 1 to 64 numbers from 0.01 to 16.0, not"),
        ({"scales": [float("nan")]}, "scales must be 1 to 64 numbers from 0.01 to 16.0, not"),
        ({"merge": "exps"}, "Did you mean 'exp'"),
        ({"blend": "han"}, "Did you mean 'hann'"),
        ({"window": -1}, "at least 1 pixel"),
        ({"window": 64, "overlap": 64}, "below the window's 64 pixels, not 64"),
        ({"window": 64, "overlap": -1}, "not -1"),
        ({"overlap": 8}, "has no windows"),
    ],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(ConfigError, match=message):
        with_options(protocol("whole"), **options)


def test_unknown_names_and_gaps():
    with pytest.raises(ConfigError, match="Did you mean 'encoding'"):
        protocol("encodin")
    with pytest.raises(ConfigError, match="leave gaps"):
        Protocol(window=(10, 10), step=(11, 10))
    assert set(PROTOCOLS) == {"whole", "slide", "encoding", "mmseg", "mmseg0", "paddle"}
