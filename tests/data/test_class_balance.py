"""Weights and probabilities against slow obvious versions and laws."""

import numpy as np
import pytest

from resnest_seg.data.class_balance import (
    class_shares,
    effective_number_weights,
    median_frequency_weights,
    rare_class_probabilities,
)

COUNTS = np.array([[900, 100, 0, 0], [400, 0, 600, 0], [1000, 0, 0, 0], [0, 10, 0, 0], [0, 0, 0, 0]])


def test_shares():
    assert class_shares(COUNTS).tolist() == pytest.approx([2300 / 3010, 110 / 3010, 600 / 3010, 0])
    assert class_shares(np.zeros((2, 3), int)).tolist() == [0, 0, 0]


def test_median_frequency_is_its_definition():
    frequency = [2300 / 3000, 110 / 1010, 600 / 1000]
    expected = [np.median(frequency) / value for value in frequency] + [0]
    assert median_frequency_weights(COUNTS).tolist() == pytest.approx(expected)
    assert median_frequency_weights(np.zeros((2, 3), int)).tolist() == [0, 0, 0]


def test_effective_number_is_its_definition():
    beta = 0.999
    raw = [(1 - beta) / (1 - beta**count) for count in (2300, 110, 600)]
    expected = [value / np.mean(raw) for value in raw] + [0]
    assert effective_number_weights(COUNTS, beta=beta).tolist() == pytest.approx(expected)


def test_rare_classes_are_drawn_by_their_preference():
    """Drawing a class first and then a photo that shows it, many times, gives these shares."""
    temperature, random = 0.5, np.random.default_rng(0)
    probabilities = rare_class_probabilities(COUNTS, temperature=temperature)
    assert probabilities.sum() == pytest.approx(1)
    assert probabilities[4] == 0
    preference = np.exp((1 - class_shares(COUNTS)) / temperature) * (COUNTS.sum(axis=0) > 0)
    drawn = np.zeros(5)
    for label in random.choice(4, 20000, p=preference / preference.sum()):
        drawn[random.choice(np.flatnonzero(COUNTS[:, label]))] += 1
    assert np.abs(drawn / 20000 - probabilities).max() < 0.015


def test_the_colder_the_rarer():
    cold, warm = (rare_class_probabilities(COUNTS, temperature=t) for t in (0.01, 100.0))
    assert cold[0] + cold[3] == pytest.approx(1, abs=1e-3)  # the photos with the rarest class
    assert warm[2] > 0.05
    assert rare_class_probabilities(np.zeros((4, 2), int), temperature=1.0).tolist() == [0.25] * 4
