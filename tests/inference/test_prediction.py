"""A prediction in a notebook and as a plot."""

import sys

import cv2
import numpy as np
import pytest
from support.small_models import noise

from resnest_seg.errors import ConfigError
from resnest_seg.inference.prediction import Prediction
from resnest_seg.io.visualize import overlay


def prediction(space, height=40, width=60):
    labels = noise(height, width, seed=1) % 3
    labels[:, : width // 2] = 1
    return Prediction(noise(height, width, 3), labels, space, lambda: None)


def decoded(data):
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)


def test_a_notebook_shows_the_overlay_with_its_legend(tiny_space):
    one = prediction(tiny_space)
    assert np.array_equal(decoded(one._repr_png_()), one.overlay())


def test_a_large_one_is_shown_small_with_the_shares_of_the_whole(tiny_space):
    large = prediction(tiny_space, 300, 2500)
    shown = decoded(large._repr_png_())
    assert shown.shape[1] == 1024
    height = round(300 * 1024 / 2500)
    legend = large.overlay()[300:]
    assert np.array_equal(shown[height:, :400], legend[:, :400])
    thin = Prediction(noise(1, 5000, 3), noise(1, 5000) % 3, tiny_space, lambda: None)
    assert decoded(thin._repr_png_()).shape[1] == 1024


def test_a_plot_shows_overlay_and_shares(tiny_space, pyplot, tmp_path):
    one = prediction(tiny_space)
    ax = one.plot(alpha=0.25)
    assert np.array_equal(ax.images[0].get_array(), overlay(one.image, one.labels, tiny_space, alpha=0.25))
    counts = np.bincount(one.labels.ravel(), minlength=3)
    order = np.argsort(-counts, kind="stable")
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert texts == [f"{tiny_space.names[label]} {100 * counts[label] / one.labels.size:.1f}%" for label in order]
    assert pyplot.get_fignums() == [ax.figure.number]
    ax.figure.savefig(tmp_path / "plot.png")
    _, mine = pyplot.subplots()
    assert prediction(tiny_space, 30, 3000).plot(ax=mine) is mine
    assert mine.images[0].get_array().shape == (20, 2048, 3)
    assert (mine.get_xlim(), mine.get_ylim()) == ((-0.5, 2999.5), (29.5, -0.5))  # in pixels of the photo


def test_all_ignored_is_a_plot_without_classes(tiny_space, pyplot):
    empty = Prediction(noise(8, 9, 3), np.full((8, 9), 255, np.uint8), tiny_space, lambda: None)
    assert empty.plot().get_legend().get_texts() == []
    assert empty._repr_png_()


def test_a_plot_without_matplotlib_names_the_extra(tiny_space, monkeypatch):
    for name in ("matplotlib", "matplotlib.pyplot", "matplotlib.patches"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=r"needs matplotlib, .* pip install 'resnest-seg\[plot\]'"):
        prediction(tiny_space).plot()
