"""Subsets and folds of data sets."""

import numpy as np
import pytest

import resnest_seg
from resnest_seg.data.datasets import Subset, TaskView, assign_folds, behind_views
from resnest_seg.errors import ConfigError


class Named(resnest_seg.PairDataset):
    """Samples that are told apart by their first pixel, with names of one's own."""

    def __init__(self, names):
        images = [np.full((2, 3, 3), number % 256, np.uint8) for number in range(len(names))]
        super().__init__([(image, image[..., 0] % 3) for image in images], ["a", "b", "c"])
        self.names = names

    def sample_name(self, index):
        return self.names[index]


def videos(count=7, frames=(3, 9, 4, 1, 6, 2, 5)):
    return Named([f"video{video}/frame_{frame:03}.png" for video in range(count) for frame in range(frames[video])])


def test_a_subset_shows_the_samples_that_it_names():
    whole = Named([f"{number}.png" for number in range(6)])
    part = Subset(whole, [4, 0, 4])
    assert [int(part[index].image[0, 0, 0]) for index in range(len(part))] == [4, 0, 4]
    assert [part.sample_name(index) for index in range(3)] == ["4.png", "0.png", "4.png"]
    assert part.label_space is whole.label_space
    assert part.draw(1, seed=3).image[0, 0, 0] == part.raster(1).pixels[0, 0, 0] == 0
    for index in (-1, 3):
        with pytest.raises(IndexError):
            part[index]
    assert len({whole.identity(), part.identity(), Subset(whole, [0, 4]).identity()}) == 3


def test_views_can_be_stacked():
    whole = Named([f"{number}.png" for number in range(6)])
    for view in (Subset(TaskView(whole, "binary", ["c"]), [5, 1]), TaskView(Subset(whole, [5, 1]), "binary", ["c"])):
        assert [int(view[index].labels[0, 0]) for index in range(2)] == [1, 0]
        assert view.sample_name(0) == "5.png"
        assert behind_views(view) is whole


@pytest.mark.parametrize(("count", "folds"), [(10, 2), (23, 5), (7, 7)])
def test_folds_are_of_equal_size_and_depend_on_names_alone(count, folds):
    names = [f"photo {number}.jpg" for number in range(count)]
    fold_of = assign_folds(Named(names), folds)
    sizes = np.bincount(fold_of, minlength=folds)
    assert sizes.sum() == count
    assert sizes.max() - sizes.min() <= 1
    order = np.random.default_rng(0).permutation(count)
    np.testing.assert_array_equal(assign_folds(Named([names[index] for index in order]), folds), fold_of[order])
    assert not np.array_equal(fold_of, np.arange(count) % folds)  # neighbours do not take turns


@pytest.mark.parametrize("pattern", [r"^[^/]+", r"video(\d)/(frame)"])
def test_groups_stay_together_and_parts_are_as_equal_as_groups_allow(pattern):
    whole = videos()
    fold_of = assign_folds(whole, 3, group_by=pattern)
    folds_of_video = {}
    for name, fold in zip(whole.names, fold_of, strict=True):
        folds_of_video.setdefault(name.split("/")[0], set()).add(int(fold))
    assert all(len(folds) == 1 for folds in folds_of_video.values())
    assert sorted(np.bincount(fold_of).tolist()) == [9, 10, 11]  # 5 + 4, 6 + 3 + 1, 9 + 2
    assert len(set(assign_folds(whole, 3)[:9].tolist())) > 1  # without groups, frames of a video are spread


def test_what_cannot_be_divided_is_refused_with_the_number_that_can():
    whole = videos()
    for folds, pattern, words in (
        (1, None, "from 2 to 30"),
        (31, None, "30 groups"),
        (8, r"^[^/]+", "7 groups by"),
        (2, "(", "no regular expression"),
        (2, "video[0-5]", "video6/frame_000.png"),
    ):
        with pytest.raises(ConfigError, match=words):
            assign_folds(whole, folds, group_by=pattern)


def test_names_that_are_no_utf8_are_divided_too():
    assert set(assign_folds(Named(["caf\udce9.png", "b.png"]), 2).tolist()) == {0, 1}
