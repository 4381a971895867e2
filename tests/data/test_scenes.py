"""The synthetic scenes: the same everywhere, different from each other, and complete."""

import zlib

import numpy as np

from resnest_seg.data.synthetic import BORDER, render_scene

CHECKSUMS = {
    (1, 0): (2183805808, 2646551820),
    (2, 63): (998313172, 796708538),
    (3, 7): (1653155433, 443596712),
}
"""(seed, index) -> CRC-32 of photo and ids at 160 x 240: the same bytes on every machine."""


def test_a_scene_depends_on_seed_and_index_alone():
    first, again = render_scene(3, 5, height=96, width=144), render_scene(3, 5, height=96, width=144)
    assert np.array_equal(first[0], again[0])
    assert np.array_equal(first[1], again[1])


def test_the_bytes_are_the_same_on_every_machine():
    for (seed, index), expected in CHECKSUMS.items():
        photo, ids = render_scene(seed, index, height=160, width=240)
        assert (zlib.crc32(photo.tobytes()), zlib.crc32(ids.tobytes())) == expected


def test_every_index_and_seed_is_another_picture():
    scenes = [render_scene(seed, index, height=64, width=96) for seed in (1, 2) for index in range(12)]
    assert len({photo.tobytes() for photo, _ in scenes}) == len({ids.tobytes() for _, ids in scenes}) == 24


def test_all_ten_classes_occur_and_only_the_frame_is_ignored():
    counts = np.zeros(256, np.int64)
    for index in range(16):
        photo, ids = render_scene(1, index, height=160, width=240)
        assert photo.shape == (160, 240, 3)
        assert ids.shape == (160, 240)
        counts += np.bincount(ids.ravel(), minlength=256)
        inner = ids[2:-2, 2:-2]
        assert (inner < 10).all()
        frame = ids.copy()
        frame[2:-2, 2:-2] = BORDER
        assert (frame == BORDER).all()
    shares = counts[:10] / counts.sum()
    assert (shares > 0.01).all(), shares
    assert counts[10:BORDER].sum() == 0


def test_things_hide_what_is_behind_them_in_the_photo_too():
    """Photo and ids are painted together: where the ids of two scenes agree least, so do the photos."""
    photo, ids = render_scene(1, 0, height=160, width=240)
    horizontal = np.abs(np.diff(photo.astype(int), axis=1)).sum(axis=2)
    edges = np.diff(ids.astype(int), axis=1) != 0
    assert horizontal[edges].mean() > 2 * horizontal[~edges].mean()


def test_odd_sizes():
    photo, ids = render_scene(1, 0, height=37, width=51)
    assert photo.shape == (37, 51, 3)
    assert ids.shape == (37, 51)
