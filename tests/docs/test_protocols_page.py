"""What the page on protocols says is what `resnest_seg.inference.protocols` does."""

import re

import numpy as np
import pytest
from conftest import PROJECT
from support.pages import MarkdownIt

from resnest_seg import ConfusionMatrix
from resnest_seg.inference.protocols import CITYSCAPES_SCALES, PROTOCOLS, SCALES, Setting, protocol

TEXT = (PROJECT / "docs" / "protocols.md").read_text(encoding="utf-8")
FLAT = " ".join(TEXT.split())
MERGED = {"-": "logits", "mean logits": "logits", "exp of summed logits": "exp", "mean softmax": "softmax"}
SIZES = {
    "the image, padded to the stride": "image",
    "the image": "image",
    "sizes of the long edge": "long_edge",
    "sizes of the image": "image",
    "sizes of a canvas": "canvas",
    "sizes": "tensor",
}


def rows():
    """Protocol -> the cells of its row in the table."""
    tokens = MarkdownIt().enable("table").parse(TEXT)
    cells = [token.content for token in tokens if token.type == "inline" and token.level == 4]
    table = [cells[start : start + 6] for start in range(0, 6 * (len(PROTOCOLS) + 1), 6)]
    return {row[0].strip("`"): row[2:] for row in table[1:]}


def test_the_table_has_every_protocol_in_order():
    assert list(rows()) == list(PROTOCOLS)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_row_is_true(name):
    views, windows, merged, absent = rows()[name]
    plan = protocol(name)
    number = re.match(r"(\d+) ", views)
    assert len(plan.scales) == (int(number[1]) if number else 1)
    assert plan.flip == views.endswith(", flipped")
    assert SIZES[re.sub(r"^\d+ |, flipped$", "", views)] == plan.resize
    assert (plan.padding == "stride") == ("padded" in views)
    assert (plan.window is None) == (windows == "-")
    if plan.window:
        assert ("inward" in windows, "cut" in windows) == (plan.placement == "inward", plan.placement == "cut")
        assert plan.step == tuple(int(edge * 2 / 3) for edge in plan.window)
    assert MERGED[merged] == plan.merge
    assert absent == {"skipped": "skipped", "zero": "count as 0"}[plan.absent]


def test_the_sizes_of_the_text_are_true():
    plans = {name: protocol(name) for name in PROTOCOLS}
    assert "(crop 480, long edge 520)" in FLAT
    assert (plans["slide"].window, plans["encoding"].base_size) == ((480, 480), 520)
    assert "a long edge of 520 pixels" in FLAT
    assert plans["encoding"].size(3000, 4000, 1.0) == (390, 520)
    assert "within 2048 x 512 (2048 x 1024 for Cityscapes)" in FLAT
    cityscapes = Setting(dataset="cityscapes")
    assert plans["mmseg0"].canvas == (2048, 512)
    assert protocol("mmseg0", setting=cityscapes).canvas == (2048, 1024)
    assert "0.75 to 2.25 in seven steps" in FLAT
    scales = protocol("encoding", setting=cityscapes).scales
    assert (scales, scales[0], scales[-1], len(scales)) == (CITYSCAPES_SCALES, 0.75, 2.25, 7)
    assert "here 0.75, 1 and 1.25" in FLAT
    assert plans["paddle"].scales == (0.75, 1.0, 1.25)
    assert "from 0.5 to 1.75" in FLAT
    assert plans["mmseg"].scales == SCALES == tuple(np.arange(0.5, 1.8, 0.25))
    assert "For a photo of 512 x 683 `mmseg` and `mmseg0` have the same views, but for rounding" in FLAT
    for scale in SCALES:
        assert (
            np.abs(np.subtract(plans["mmseg"].size(512, 683, scale), plans["mmseg0"].size(512, 683, scale))).max() <= 1
        )
    assert plans["mmseg"].size(600, 800, 1.0) != plans["mmseg0"].size(600, 800, 1.0)
    assert "17 times the pixels of `whole`" in FLAT
    assert round(2 * sum(scale**2 for scale in SCALES)) == 17


def test_an_absent_class_does_what_the_picture_shows():
    """Three classes that are predicted rightly, and a fourth that is nowhere; the picture's numbers by hand."""
    labels = np.arange(90).reshape(9, 10) % 3
    scores = ConfusionMatrix(4).update(labels, labels).scores()
    assert (scores.mean_iou_by("skipped"), scores.mean_iou_by("zero")) == (1.0, 0.75)
    assert "76.7 if it is skipped, 57.5 if it counts as 0" in FLAT
    assert (round(230 / 3, 1), 230 / 4) == (76.7, 57.5)
