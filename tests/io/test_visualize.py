"""Pictures: the right pixels have the right colours, and saved ids come back."""

import numpy as np
import pytest
from PIL import Image

from resnest_seg.errors import ConfigError
from resnest_seg.io.visualize import colourise, contact_sheet, error_map, overlay, with_legend, write_labels, write_png

LABELS = np.array([[0, 1], [2, 255]], np.uint8)


def test_colourise(tiny_space):
    assert colourise(LABELS, tiny_space).tolist() == [[[10, 20, 200], [90, 90, 90]], [[200, 30, 30], [0, 0, 0]]]


def test_overlay_blends_and_leaves_ignored_pixels(tiny_space):
    image = np.full((2, 2, 3), 100, np.uint8)
    picture = overlay(image, LABELS, tiny_space, alpha=0.25)
    assert picture[0, 0].tolist() == [round(75 + 0.25 * c) for c in (10, 20, 200)]
    assert picture[1, 1].tolist() == [100, 100, 100]
    assert np.array_equal(overlay(image, LABELS, tiny_space, alpha=0.0), image)
    assert np.array_equal(overlay(image, LABELS, tiny_space, alpha=1.0)[0], colourise(LABELS, tiny_space)[0])


def test_error_map():
    picture = error_map(LABELS, np.array([[0, 2], [2, 0]], np.uint8))
    right, wrong, ignored = picture[0, 0], picture[0, 1], picture[1, 1]
    assert right.min() > 200
    assert wrong[0] > 200 > wrong[1]
    assert len(set(ignored.tolist())) == 1
    assert ignored[0] < 200


def test_the_legend_names_what_occurs_and_keeps_the_picture(tiny_space):
    picture = np.random.default_rng(0).integers(0, 256, (30, 400, 3), dtype=np.uint8)
    labels = np.zeros((30, 400), np.uint8)
    labels[:5] = 2
    shown = with_legend(picture, labels, tiny_space)
    assert np.array_equal(shown[:30, :400], picture)
    legend = shown[30:].reshape(-1, 3).tolist()
    assert [10, 20, 200] in legend
    assert [200, 30, 30] in legend
    assert [90, 90, 90] not in legend


def test_the_legend_of_nothing_but_ignored_pixels(tiny_space):
    picture = np.zeros((4, 4, 3), np.uint8)
    assert with_legend(picture, np.full((4, 4), 255, np.uint8), tiny_space).shape[2] == 3


def test_a_contact_sheet_takes_photos_of_different_shapes(tiny_space):
    samples = [
        (np.zeros((h, w, 3), np.uint8), np.zeros((h, w), np.uint8), np.ones((h, w), np.uint8))
        for h, w in ((40, 60), (90, 30))
    ]
    sheet = contact_sheet(samples, tiny_space, width=50, title="tiny")
    assert sheet.dtype == np.uint8
    assert sheet.shape[1] >= 4 * 54
    assert sheet.shape[0] > 33 + 150


@pytest.mark.parametrize("ids", ["raw", "train"])
def test_saved_labels_come_back_and_show_their_colours(tmp_path, tiny_space, ids):
    write_labels(tmp_path / "labels.png", LABELS, tiny_space, ids=ids)
    picture = Image.open(tmp_path / "labels.png")
    expected = [[1, 5], [7, 0]] if ids == "raw" else LABELS.tolist()
    assert np.array(picture).tolist() == expected
    assert np.array_equal(np.array(picture.convert("RGB")), colourise(LABELS, tiny_space))


def test_labels_are_not_saved_as_jpeg(tmp_path, tiny_space):
    with pytest.raises(ConfigError, match=r"saved as .png"):
        write_labels(tmp_path / "labels.jpg", LABELS, tiny_space, ids="raw")
    with pytest.raises(ConfigError, match="ids must be"):
        write_labels(tmp_path / "labels.png", LABELS, tiny_space, ids="other")


def test_pictures_are_written_as_rgb(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    write_png(tmp_path / "picture.png", picture)
    assert np.array_equal(np.array(Image.open(tmp_path / "picture.png")), picture)
