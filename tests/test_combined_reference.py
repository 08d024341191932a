"""The oracle of combined outputs, proven by hand and by NumPy's own words for the same things."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ensexport.combined_reference import combine
from ensexport.emission import QUANTITIES

LOG3 = math.log(3)
# Two members, two classes: probabilities (1/4, 3/4) and (3/4, 1/4).
SCORES = np.array([[[0.0, LOG3]], [[LOG3, 0.0]]])
H_ONE = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mean", [[LOG3 / 2, LOG3 / 2]]),
        ("var", [[LOG3**2 / 4, LOG3**2 / 4]]),
        ("std", [[LOG3 / 2, LOG3 / 2]]),
        ("min", [[0, 0]]),
        ("max", [[LOG3, LOG3]]),
        ("median", [[LOG3 / 2, LOG3 / 2]]),
        ("probs", [[0.5, 0.5]]),
        ("logprobs", [[-math.log(2), -math.log(2)]]),
        ("vote", [[0.5, 0.5]]),
        ("entropy", [math.log(2)]),
        ("expected_entropy", [H_ONE]),
        ("mutual_information", [math.log(2) - H_ONE]),
    ],
)
def test_two_members_by_hand(name, expected):
    np.testing.assert_allclose(combine(name, SCORES), expected, rtol=1e-14)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mean", 0.75 * 1 + 0.25 * 5),
        ("var", 0.75 * 1 + 0.25 * 9),
        ("min", 1),
        ("max", 5),
        ("median", 1),
    ],
)
def test_weights_by_hand(name, expected):
    """Values 1, 5 and 9, the last one left out: mean 2, distances -1 and 3."""
    members = [np.array([1.0]), np.array([5.0]), np.array([np.nan])]
    np.testing.assert_allclose(combine(name, members, weights=[3, 1, 0]), [expected])


@pytest.mark.parametrize("unit", [1e-300, 1e307], ids=["tiny", "huge"])
def test_only_the_ratio_of_weights_counts(unit):
    members = np.array([[1.0], [5.0], [9.0]])
    np.testing.assert_allclose(combine("mean", members, weights=[9 * unit, 9 * unit, 0]), [3])


def test_weights_of_classes_by_hand():
    np.testing.assert_allclose(combine("probs", SCORES, weights=[3, 1]), [[0.25 * 0.75 + 0.75 * 0.25, 0.625]])
    np.testing.assert_allclose(combine("vote", SCORES, weights=[3, 1]), [[0.25, 0.75]])
    np.testing.assert_allclose(combine("expected_entropy", SCORES, weights=[3, 1]), [H_ONE])


def test_the_median_of_an_even_number_is_the_middle_of_two():
    members = np.random.default_rng(0).normal(size=(6, 4, 3))
    np.testing.assert_array_equal(combine("median", members), np.median(members, axis=0))
    repeated = combine("median", members[:3], weights=[1, 2, 3])
    np.testing.assert_allclose(repeated, np.median(members[[0, 1, 1, 2, 2, 2]], axis=0))


@pytest.mark.parametrize("n_members", [1, 2, 5, 11])
def test_quantiles_are_those_of_numpy(n_members):
    members = np.random.default_rng(3).normal(size=(n_members, 4, 3))
    for percent in (1, 10, 25, 50, 90, 99):
        expected = np.quantile(members, percent / 100, axis=0)
        np.testing.assert_allclose(combine(f"q{percent}", members), expected, rtol=1e-12)
    members[:] = -np.inf
    assert (combine("q10", members) == -np.inf).all()


@pytest.mark.parametrize("name", [name for name in QUANTITIES if name != "members"])
def test_zero_leaves_out_and_whole_numbers_repeat(name):
    members = np.random.default_rng(1).normal(size=(3, 4, 5)) * 3
    repeated = combine(name, members[[0, 0, 2]])
    np.testing.assert_allclose(combine(name, members, weights=[2, 0, 1]), repeated, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["probs", "logprobs", "vote", "entropy", "mutual_information"])
@pytest.mark.parametrize("axis", [0, 1, -2])
def test_the_class_axis(name, axis):
    members = np.random.default_rng(2).normal(size=(3, 4, 5, 6))
    moved = combine(name, np.moveaxis(members, axis if axis < 0 else axis + 1, -1))
    moved = np.moveaxis(moved, -1, axis) if moved.ndim == 3 else moved
    np.testing.assert_allclose(combine(name, members, class_axis=axis), moved)


def test_far_apart_scores_neither_overflow_nor_give_nan():
    scores = np.array([[[1e4, -1e4, 0.0]], [[-1e4, 1e4, 0.0]]])
    np.testing.assert_allclose(combine("logprobs", scores), [[-math.log(2), -math.log(2), -1e4]])
    np.testing.assert_allclose(combine("mutual_information", scores), [math.log(2)])
    np.testing.assert_allclose(combine("mutual_information", np.repeat(scores[:1], 3, 0)), [0], atol=1e-15)


def test_integers_stay_integers():
    members = [np.array([2**53, 1]), np.array([2**53 + 1, 0])]
    assert combine("max", members).tolist() == [2**53 + 1, 1]
    assert combine("min", members).dtype == np.int64
