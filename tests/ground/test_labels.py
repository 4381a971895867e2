"""Label spaces: the shipped tables against the official lists, and the mapping there and back."""

import csv
import sys
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resnest_seg.errors import ConfigError, DatasetError
from resnest_seg.labels import IGNORE_LABEL, MAX_LABELS, LabelSpace, bits_to_labels, labels_to_bits

CITYSCAPES_TRAIN_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)


@pytest.mark.parametrize(
    ("name", "classes"),
    [("ade20k", 150), ("camvid", 11), ("cityscapes", 19), ("pascal_context", 59), ("synthetic", 10)],
)
def test_shipped_tables(name, classes):
    space = LabelSpace.of(name)
    assert len(space) == classes
    assert len(set(space.names)) == classes
    assert len(set(space.colors)) >= classes - 1  # the official ADE20K colours hold one pair of twins
    assert LabelSpace.from_dict(space.to_dict()) == space


def test_ade20k_shifts_by_one_and_ignores_zero():
    raw = np.arange(151, dtype=np.uint8)[None]
    assert LabelSpace.of("ade20k").encode(raw)[0].tolist() == [IGNORE_LABEL, *range(150)]


def test_cityscapes_keeps_the_19_official_ids():
    raw = np.arange(34, dtype=np.uint8)[None]
    labels = LabelSpace.of("cityscapes").encode(raw)[0]
    for raw_id in range(34):
        expected = CITYSCAPES_TRAIN_IDS.index(raw_id) if raw_id in CITYSCAPES_TRAIN_IDS else IGNORE_LABEL
        assert labels[raw_id] == expected


def test_ade20k_names_and_colours_are_the_official_ones(real_data):
    space = LabelSpace.of("ade20k")
    with open(real_data / "ade20k_sample" / "ADEChallengeData2016" / "objectInfo150.txt", encoding="utf-8") as file:
        names = [row[-1].split(",")[0].strip() for row in list(csv.reader(file, delimiter="\t"))[1:]]
    with open(real_data / "ade20k_sample" / "objectInfo150_colors.csv", newline="", encoding="utf-8") as file:
        colors = [(int(row["R"]), int(row["G"]), int(row["B"])) for row in csv.DictReader(file)]
    assert list(space.names) == names
    assert list(space.colors) == colors


def test_decode_undoes_encode(tiny_space):
    raw = np.array([[1, 5, 7], [7, 1, 5]], np.uint8)
    assert np.array_equal(tiny_space.decode(tiny_space.encode(raw)), raw)
    assert tiny_space.decode(np.array([[IGNORE_LABEL]], np.uint8)).tolist() == [[0]]


def test_ignored_pixels_never_become_a_class():
    for raw, ignored, written in (((0, 255), (), 254), ((254, 255), (), 253), ((0, 255), (7,), 7), ((0, 1), (), 255)):
        space = LabelSpace("object", ("rest", "object"), ((0, 0, 0), (1, 2, 3)), raw, ignored)
        assert space.decode(np.array([[0, 1, 255]], np.uint8)).tolist() == [[*raw, written]]


def test_a_raw_id_that_nobody_knows_is_named(tiny_space):
    with pytest.raises(DatasetError, match=r"raw id 2, 6 is not in label space 'tiny'"):
        tiny_space.encode(np.array([[1, 6, 2, 9]], np.uint8))


def test_an_unknown_label_space_names_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean 'cityscapes'"):
        LabelSpace.of("cityscape")


def test_palette(tiny_space):
    assert tiny_space.palette[1].tolist() == [90, 90, 90]
    assert tiny_space.palette[IGNORE_LABEL].tolist() == [0, 0, 0]


def test_pascal_contexts_classes_are_alphabetical_with_vocs_colours():
    space = LabelSpace.of("pascal_context")
    assert list(space.names) == sorted(space.names)
    assert (space.names[0], space.names[58], space.raw_ids) == ("aeroplane", "wood", tuple(range(1, 60)))
    assert space.colors[:3] == ((128, 0, 0), (0, 128, 0), (128, 128, 0))
    assert space.colors == LabelSpace.numbered(59).colors


def test_numbered_label_spaces():
    space = LabelSpace.numbered(22)
    assert space.names[21] == "class 21"
    assert space.colors[14] == (192, 128, 128)  # Pascal VOC's person
    assert len(set(LabelSpace.numbered(253).colors)) == 253
    assert space.encode(np.array([[3, IGNORE_LABEL]], np.uint8)).tolist() == [[3, IGNORE_LABEL]]
    named = LabelSpace.numbered(2, names=["a", "b"], colors=[[1, 2, 3], [4, 5, 6]])
    assert (named.names, named.colors) == (("a", "b"), ((1, 2, 3), (4, 5, 6)))
    for count in (0, 254):
        with pytest.raises(ConfigError, match=f"1..253 classes, not {count}"):
            LabelSpace.numbered(count)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"names": ("sky",)}, "not 1 names, 2 colours and 2 raw ids"),
        ({"names": (), "colors": (), "raw_ids": ()}, "1..253 classes"),
        ({"names": ("sky", "sky")}, "class name 'sky' is listed twice"),
        ({"names": ("sky\0", "road")}, r"class name 'sky\\x00'"),
        ({"names": (" ", "road")}, "class name ' ' is empty"),
        ({"raw_ids": (1, 1)}, "raw id 1 is listed twice"),
        ({"raw_ids": (1, 9)}, "raw id 9 is listed twice"),
        ({"raw_ids": (1, 300)}, "raw ids must lie in 0..255, not 300"),
        ({"colors": ((1, 2, 3), (4, 5, 256))}, "colours must lie in 0..255, not 256"),
    ],
)
def test_a_label_space_that_is_none_is_refused(changed, says):
    fields = {"names": ("sky", "road"), "colors": ((1, 2, 3), (4, 5, 6)), "raw_ids": (0, 1)} | changed
    with pytest.raises(ConfigError, match=says):
        LabelSpace(name="mine", ignored_raw_ids=(9,), **fields)


@pytest.mark.parametrize("changed", [{"names": None}, {"colors": [1, 2]}])
def test_values_that_are_no_label_space_are_refused(changed, tiny_space):
    with pytest.raises(ConfigError, match="these are not the values of a label space"):
        LabelSpace.from_dict(tiny_space.to_dict() | changed)
    with pytest.raises(ConfigError, match="'name' is missing"):
        LabelSpace.from_dict({})


ODD = LabelSpace(
    "my $\\frac$ <b>", ("_sky", "$\\frac$ & <i>b</i>", "café"), ((255, 0, 0), (1, 2, 3), (9, 99, 255)), (7, 0, 3)
)
"""Names that HTML and matplotlib would read as something else."""


def test_a_notebook_shows_every_class_with_its_color():
    for space in (ODD, LabelSpace.of("ade20k")):
        page = ElementTree.fromstring(space._repr_html_())  # raises where a name is not escaped
        assert page.find(".//caption").text == f"{space.name}: {len(space)} classes"
        rows = [[cell.text for cell in row] for row in page.iterfind(".//tbody/tr")]
        expected = zip(range(len(space)), space.raw_ids, space.names, strict=True)
        assert [(row[0], row[1], row[3]) for row in rows] == [(str(i), str(raw), name) for i, raw, name in expected]
        colors = [row[2].get("style") for row in page.iterfind(".//tbody/tr")]
        assert all(f"rgb{color}" in style for color, style in zip(space.colors, colors, strict=True))


def test_a_plot_shows_every_class_with_its_color(pyplot, tmp_path):
    for space in (ODD, LabelSpace.of("ade20k")):
        ax = space.plot()
        legend = ax.get_legend()
        texts = [text.get_text() for text in legend.get_texts()]
        assert texts == [f"{label}  {name}" for label, name in enumerate(space.names)]
        shown = [tuple(round(255 * part) for part in patch.get_facecolor()[:3]) for patch in legend.get_patches()]
        assert shown == list(space.colors)
        ax.figure.savefig(tmp_path / "plot.png")  # as formulas, the names would be errors
    _, mine = pyplot.subplots()
    count = len(pyplot.get_fignums())
    assert ODD.plot(ax=mine) is mine
    assert len(pyplot.get_fignums()) == count


def test_a_plot_without_matplotlib_names_the_extra(monkeypatch):
    for name in ("matplotlib", "matplotlib.pyplot", "matplotlib.patches"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=r"pip install 'resnest-seg\[plot\]'"):
        ODD.plot()
    assert ODD._repr_html_()


@given(st.integers(1, MAX_LABELS), st.integers(0, 2**32 - 1))
def test_multi_label_masks_are_packed_and_unpacked(labels, seed):
    random = np.random.default_rng(seed)
    present, valid = random.random((labels, 5, 7)) < 0.5, random.random((5, 7)) < 0.8
    bits = labels_to_bits(present, valid)
    for y, x in np.ndindex(5, 7):
        expected = sum(2**label for label in range(labels) if present[label, y, x])
        assert bits[y, x] == (expected if valid[y, x] else 32768)
    assert bits.dtype == np.uint16
    back = bits_to_labels(bits, labels)
    assert np.array_equal(back.present, present & valid)
    assert np.array_equal(back.valid, valid)
    assert np.array_equal(labels_to_bits(*back), bits)
    assert np.array_equal(labels_to_bits(present), labels_to_bits(present, np.ones_like(valid)))


@pytest.mark.parametrize("dtype", [np.uint8, ">u2", np.int16, np.int64])
def test_multi_label_masks_of_other_types(dtype):
    present, valid = bits_to_labels(np.array([[0, 1, 6]], dtype), 3)
    assert present.astype(int).tolist() == [[[0, 1, 0]], [[0, 0, 1]], [[0, 0, 1]]]
    assert valid.all()


def test_mistakes_in_multi_label_masks():
    for value in (8, 32769, 65535, 255):
        mask = np.zeros((4, 5), np.uint16)
        mask[2, 3:] = value
        with pytest.raises(
            DatasetError, match=rf"value {value} in row 2, column 3 \(2 such pixel\(s\)\) .* 0\.\.7, and"
        ):
            bits_to_labels(mask, 3)
    with pytest.raises(DatasetError, match="the value -32768 in row 0"):
        bits_to_labels(np.full((1, 1), 32768, np.uint16).astype(np.int16), 3)
    for mask in (np.zeros((2, 2)), np.zeros((1, 2, 2), np.uint16)):
        with pytest.raises(ConfigError, match=r"\[H, W\] of whole numbers, not"):
            bits_to_labels(mask, 3)
    for count in (0, 16):
        with pytest.raises(ConfigError, match=rf"1\.\.15 labels, not {count}"):
            bits_to_labels(np.zeros((2, 2), np.uint16), count)
        with pytest.raises(ConfigError, match=rf"1\.\.15 labels, not {count}"):
            labels_to_bits(np.zeros((count, 2, 2), bool))
    for present, valid in (
        (np.zeros((2, 2), bool), None),
        (np.zeros((1, 2, 2)), None),
        (np.zeros((1, 2, 2), bool), np.ones((2, 3), bool)),
        (np.zeros((1, 2, 2), bool), np.ones((2, 2), np.uint8)),
    ):
        with pytest.raises(ConfigError, match=r"bool \[K, H, W\] and valid bool"):
            labels_to_bits(present, valid)
