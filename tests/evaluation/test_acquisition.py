"""Uncertainty against plain softmax and sorting, k-centre against brute force."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.small_models import logits_of, noise, small_segmenter

from resnest_seg.errors import CheckpointError, ConfigError
from resnest_seg.evaluation.acquisition import (
    BINS,
    FEATURE_SIDE,
    MEASURES,
    Uncertainty,
    choose,
    entropy,
    image_uncertainty,
    k_centre,
    margin,
    pooled_features,
)
from resnest_seg.inference.backends import Decision, RunOptions
from resnest_seg.inference.torch_backend import TorchBackend


def softmax(logits):
    """In float64, over the first axis."""
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=0))
    return powers / powers.sum(axis=0)


def plain(p, measure):
    """A measure of [K, n], pixel by pixel."""
    if measure == "entropy":
        return np.array([-sum(q * math.log(q) for q in pixel if q > 0) / math.log(len(pixel)) for pixel in p.T])
    return np.array([1 - (sorted(pixel)[-1] - sorted(pixel)[-2]) for pixel in p.T])


@pytest.fixture(scope="module")
def segmenter():
    return small_segmenter(classes=5)


@pytest.fixture(scope="module")
def backend(segmenter):
    return TorchBackend(segmenter, RunOptions("cpu", fuse=False))


@pytest.mark.parametrize("measure", MEASURES)
def test_measures_of_classes(measure):
    logits = np.random.default_rng(0).normal(0, 3, (7, 200)).astype(np.float32)
    p = torch.from_numpy(logits).softmax(dim=0)
    found = MEASURES[measure](p).numpy()
    assert np.allclose(found, plain(softmax(logits), measure), atol=1e-6)
    sure, guess = torch.eye(4)[:, :1], torch.full((4, 1), 0.25)
    assert MEASURES[measure](sure).item() == 0
    assert MEASURES[measure](guess).item() == pytest.approx(1)
    assert MEASURES[measure](torch.ones(1, 1)).item() == 0  # a single class


def test_measures_of_labels():
    p = torch.tensor([[0.5, 1.0, 0.9], [0.5, 0.0, 0.5]])
    two = -(0.9 * math.log2(0.9) + 0.1 * math.log2(0.1))
    assert entropy(p, of_labels=True).tolist() == pytest.approx([1, 0, (two + 1) / 2], abs=1e-6)
    assert margin(p, of_labels=True).tolist() == pytest.approx([1, 0, (0.2 + 1) / 2], abs=1e-6)


@pytest.mark.parametrize("top_share", [1.0, 0.25, 0.013])
@pytest.mark.parametrize("measure", MEASURES)
def test_the_mean_of_the_most_uncertain_pixels_is_that_of_sorting_them(measure, top_share):
    random = np.random.default_rng(1)
    p = softmax(random.normal(0, 2, (4, 30, 40)))
    valid = random.random((30, 40)) < 0.8
    meter = Uncertainty(measure, top_share=top_share)
    for first in range(0, 30, 7):
        rows = slice(first, first + 7)
        meter.update(torch.from_numpy(p[:, rows]), valid[rows])
    values = np.sort(plain(p[:, valid], measure))[::-1]
    left = top_share * len(values)
    weights = np.clip(left - np.arange(len(values)), 0, 1)
    exact = (values * weights).sum() / left
    assert meter.value() == pytest.approx(exact, abs=1e-6 if top_share == 1 else 1 / BINS)
    assert top_share == 1 or meter.value() > values.mean() + 0.05


def test_a_meter_without_pixels_and_wrong_options():
    assert Uncertainty().value() == 0
    with pytest.raises(ConfigError, match=r"unknown measure of uncertainty 'margn'\. Did you mean 'margin'"):
        Uncertainty("margn")
    with pytest.raises(ConfigError, match="top_share must be above 0 and at most 1, not 0"):
        Uncertainty(top_share=0)


@pytest.mark.parametrize("memory", [None, 20_000])
@pytest.mark.parametrize("measure", MEASURES)
def test_an_images_score_is_the_mean_over_its_full_size_logits(measure, memory, segmenter, backend):
    image = noise(56, 72, 3)  # multiples of the stride, to which the protocol pads
    logits = logits_of(segmenter, image.transpose(2, 0, 1)[None])[0]
    exact = plain(softmax(logits).reshape(5, -1), measure).mean()
    score = image_uncertainty(backend, image, backend.protocol("whole"), measure=measure, memory=memory)
    assert score == pytest.approx(exact, abs=1e-5)
    half = np.zeros((56, 72), bool)
    half[:20] = True
    exact = plain(softmax(logits)[:, :20].reshape(5, -1), measure).mean()
    score = image_uncertainty(backend, image, backend.protocol("whole"), measure=measure, valid=half, memory=memory)
    assert score == pytest.approx(exact, abs=1e-5)


def test_labels_are_scored_by_their_sigmoids(backend):
    class Labels(TorchBackend):
        decision, setting = Decision("binary", (0.5,)), backend.setting

        def __init__(self):
            pass

        def blocks(self, image, protocol, *, memory=None):
            for block in backend.blocks(image, backend.protocol("whole")):
                yield block._replace(scores=block.scores[:1].sigmoid())

    image, two = noise(20, 20, 3), Labels()
    score = image_uncertainty(two, image, two.protocol("whole"), measure="entropy")
    p = np.concatenate([block.scores.numpy()[0].ravel() for block in two.blocks(image, None)]).astype(np.float64)
    assert score == pytest.approx(np.mean(-(p * np.log2(p) + (1 - p) * np.log2(1 - p))), abs=1e-5)


def test_damaged_weights_are_named(backend):
    class Broken(TorchBackend):
        decision = backend.decision

        def __init__(self):
            pass

        def blocks(self, image, protocol, *, memory=None):
            for block in backend.blocks(image, protocol):
                yield block._replace(scores=block.scores * float("nan"))

    with pytest.raises(CheckpointError, match="not finite: its weights are damaged"):
        image_uncertainty(Broken(), noise(20, 20, 3), backend.protocol("whole"))


def test_features_are_the_mean_of_the_last_stage_of_length_1(segmenter):
    image = noise(40, 56, 3)
    with torch.inference_mode():
        c4 = segmenter.features(torch.from_numpy(image.transpose(2, 0, 1)[None])).c4.numpy()[0]
    mean = c4.reshape(len(c4), -1).mean(axis=1)
    found = pooled_features(segmenter, image)
    assert np.allclose(found, mean / np.linalg.norm(mean), atol=1e-6)
    assert np.array_equal(found, pooled_features(segmenter, image))


def test_a_large_image_is_reduced_first(segmenter, monkeypatch):
    sizes = []
    features = segmenter.features
    monkeypatch.setattr(segmenter, "features", lambda images: sizes.append(tuple(images.shape)) or features(images))
    pooled_features(segmenter, noise(300, 2 * FEATURE_SIDE, 3))
    pooled_features(segmenter, np.full((1, 5000, 3), 7, np.uint8))
    assert sizes == [(1, 3, 150, FEATURE_SIDE), (1, 3, 1, FEATURE_SIDE)]


def greedy(features, count, centres=()):
    """k-centre by the whole matrix of distances, in plain loops."""
    chosen, known = [], [features[0] * 0 + centre for centre in centres]
    while len(chosen) < min(count, len(features)):
        far = []
        for row, feature in enumerate(features):
            near = min((math.dist(feature, other) for other in known), default=math.inf)
            far.append(-1.0 if row in chosen else near)
        best = max(range(len(far)), key=lambda row: (far[row], -row))
        chosen.append(best)
        known.append(features[best])
    return chosen


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(1, 14), st.integers(0, 3), st.integers(0, 1000))
def test_k_centre_is_the_greedy_choice(rows, count, labelled, seed):
    random = np.random.default_rng(seed)
    features = random.integers(0, 3, (rows, 2)).astype(np.float64)  # many ties and equal rows
    centres = random.integers(0, 3, (labelled, 2)).astype(np.float64)
    chosen, distances = k_centre(features, count, centres=centres if labelled else None)
    assert chosen == greedy(features, count, centres)
    assert len(set(chosen)) == len(chosen) == min(count, rows)
    assert all(one >= other for one, other in itertools.pairwise(distances))  # of farthest-first
    assert math.isinf(distances[0]) == (labelled == 0)


def test_of_frames_that_repeat_one_each_is_chosen():
    random = np.random.default_rng(2)
    scenes = random.normal(0, 1, (4, 16))
    frames = np.repeat(scenes, 10, axis=0) + random.normal(0, 0.01, (40, 16))
    scores = list(np.repeat([0.9, 0.8, 0.7, 0.6], 10) + random.random(40) / 100)
    alone = choose(scores, 4)
    assert {choice.place // 10 for choice in alone} == {0}
    assert [choice.place for choice in alone] == sorted(range(40), key=lambda place: -scores[place])[:4]

    def features(places):
        return places, frames[list(places)]

    different = choose(scores, 4, features=features)
    assert {choice.place // 10 for choice in different} == {0, 1, 2, 3}
    assert different[0] == (alone[0].place, alone[0].score, None)
    few = choose(scores, 4, features=features, factor=1)
    assert {choice.place // 10 for choice in few} == {0}  # there is nothing else to choose from
    labelled = choose(scores, 3, features=features, centres=scenes[:1], factor=14)
    assert {choice.place // 10 for choice in labelled} == {1, 2, 3}


def test_images_without_features_are_left_out_and_few_are_all_chosen():
    def features(places):
        kept = [place for place in places if place != 1]
        return kept, np.eye(3)[kept]

    assert [choice.place for choice in choose([0.1, 0.9, 0.5], 3, features=features)] == [2, 0]
    assert [choice.place for choice in choose([0.5, 0.5, 0.9], 9)] == [2, 0, 1]
    with pytest.raises(ConfigError, match="count and factor must be at least 1, not 0"):
        choose([0.1], 0)
