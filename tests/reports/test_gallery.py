"""Pictures of images on a page: what is in them is read back with Pillow."""

import base64
import io

import numpy as np
import pytest
from PIL import Image
from support.fake_runs import HOSTILE, Blocks, space

from resnest_seg.io.visualize import colourise
from resnest_seg.labels import LabelSpace
from resnest_seg.reports.gallery import SIDE, Card, gallery, mask_png, shown_classes, thumbnail
from resnest_seg.reports.page import markup


def decoded(content):
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)


def read_back(content, key):
    """Labels of a mask, as the script reads them: by colour."""
    pixels = decoded(content)
    codes = pixels[..., 0] << 16 | pixels[..., 1] << 8 | pixels[..., 2]
    return np.vectorize(key.get)(codes)


@pytest.mark.parametrize("task", ["multiclass", "binary", "multilabel"])
def test_labels_can_be_read_back_from_the_colours_of_a_mask(task):
    dataset = Blocks(space(task=task))
    labels = dataset[3].labels
    content, key = mask_png(labels, dataset.label_space)
    np.testing.assert_array_equal(read_back(content, key), labels)
    painted = colourise(labels, dataset.label_space).astype(int)
    assert np.abs(decoded(content) - painted).max() <= 2  # what no script has touched has the classes' colours


def test_classes_of_one_colour_are_told_apart():
    same = LabelSpace("same", ("a", "b", "c"), ((255, 255, 255),) * 3, (0, 1, 2))
    labels = np.array([[0, 1], [2, 255]], np.uint8)
    content, key = mask_png(labels, same)
    np.testing.assert_array_equal(read_back(content, key), labels)
    assert len(key) == 4


def test_a_mask_of_more_sets_of_labels_than_a_palette_holds_keeps_the_most_frequent():
    labels = np.arange(300, dtype=np.uint16).repeat(4).reshape(30, 40)
    labels[:, :2] = 7
    colors = tuple((k, k, k) for k in range(9))
    many = LabelSpace("many", tuple("abcdefghi"), colors, tuple(range(9)), task="multilabel")
    content, key = mask_png(labels, many)
    back = read_back(content, key)
    assert len(key) <= 256
    assert (back[:, :2] == 7).all()
    assert set(np.unique(back[back != labels])) == {many.ignore_value}


def test_thumbnails_are_small_and_nothing_is_enlarged():
    photo = np.random.default_rng(0).integers(0, 255, (900, 1600, 3), np.uint8)
    assert Image.open(io.BytesIO(thumbnail(photo))).size == (SIDE, 180)
    assert Image.open(io.BytesIO(thumbnail(photo[:20, :30]))).size == (30, 20)
    assert Image.open(io.BytesIO(thumbnail(photo[:1, :1000]))).size == (SIDE, 1)
    content, _ = mask_png(np.zeros((900, 1600), np.uint8), space())
    assert Image.open(io.BytesIO(content)).size == (SIDE, 180)


def cards(count, *, size=(240, 320)):
    """Photos as large as thumbnails get, of noise that JPEG cannot shrink by much."""
    for place in range(count):
        random = np.random.default_rng(place)
        photo = np.repeat(np.repeat(random.integers(0, 256, (size[0] // 4, size[1] // 4, 3), np.uint8), 4, 0), 4, 1)
        labels = np.repeat(np.repeat(random.integers(0, 3, (size[0] // 8, size[1] // 8), np.uint8), 8, 0), 8, 1)
        yield Card(f"{place}", "", photo, labels, labels, {"score": float(place)}, ("worst",))


def test_a_page_stays_small_whatever_is_shown():
    section = gallery(cards(260), space(), limit=2_000_000)
    text = "".join(map(markup, section.body))
    assert 1_500_000 < len(text) < 2_300_000
    assert "more images would make this page too large" in text
    assert len(section.data["values"]) == text.count("<article") < 260


def test_scores_and_tags_go_to_the_script_with_what_is_missing():
    photo, labels = np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), np.uint8)
    found = gallery(
        [
            Card("a", "", photo, labels, labels, {"x": 0.5, "y": None}, ("worst",)),
            Card("b", "", photo, None, None, {"x": float("nan"), "z": 2.0}, ()),
        ],
        space(HOSTILE),
        sort="z",
    )
    assert found.data["scores"] == ["x", "y", "z"]
    assert found.data["values"] == [[0.5, None, None], [None, None, 2.0]]
    assert found.data["tags"] == [["worst"], []]
    text = "".join(map(markup, found.body))
    assert text.count("<img") == 4  # of the second image, the photo alone
    assert '<option value="2" selected="">z</option>' in text
    assert "onerror=alert" in text
    assert "<img src=x" not in text


def test_the_object_of_a_binary_task_is_all_that_is_painted():
    names, colors = shown_classes(space(task="binary"))
    assert len(names) == len(colors) == 1
    dataset = Blocks(space(task="binary"))
    section = gallery([Card("a", "", dataset[0].image, dataset[0].labels, None)], dataset.label_space)
    (key,) = [img.get("data-key") for part in section.body for img in part.iter("img") if img.get("data-key")]
    assert sorted(part.split(":")[1] for part in key.split()) == ["", "-", "0"]  # background, ignored, the object


def test_an_empty_gallery_says_so():
    assert "There is no image to show." in "".join(map(markup, gallery([], space()).body))


def test_pictures_are_inside_the_page():
    (card,) = cards(1)
    section = gallery([card], space())
    for part in section.body:
        for img in part.iter("img"):
            kind, _, content = img.get("src").partition(",")
            assert kind in ("data:image/jpeg;base64", "data:image/png;base64")
            Image.open(io.BytesIO(base64.b64decode(content))).verify()
