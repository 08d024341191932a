"""Judging combined outputs: what is right passes, every usual mistake fails, rounding on a tie is named."""

from __future__ import annotations

import numpy as np
import pytest

from ensexport.combined_checks import Judged, judge_combined, weightings
from ensexport.combined_reference import combine
from ensexport.emission import QUANTITIES, OutputEmission
from ensexport.spec import Tolerance
from ensexport.weighting import MemberWeights

MEMBERS = np.random.default_rng(0).normal(size=(5, 8, 4)) * 3
NAMES = tuple(name for name in QUANTITIES if name != "members")


def judge(name, actual, members=MEMBERS, *, dtype="float32", slack=1e-5, weights=None) -> Judged:
    entry = OutputEmission("y", (name,))
    (judged,) = judge_combined(
        entry,
        {f"y.{name}": actual},
        list(members),
        dtype=dtype,
        slack=slack,
        tolerance=Tolerance(),
        weights=weights,
    )
    return judged


def softmax(values):
    return np.exp(values) / np.exp(values).sum(-1, keepdims=True)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("name", NAMES)
def test_what_members_within_their_slack_give_passes(name, dtype):
    slack = {"float32": 1e-4, "float16": 2e-2}[dtype]
    for seed in range(20):
        off = np.random.default_rng(seed).uniform(-slack, slack, MEMBERS.shape)
        judged = judge(name, combine(name, MEMBERS + off).astype(dtype), dtype=dtype, slack=slack)
        assert judged.passed, judged


MISTAKES = {
    "bessel": ("var", MEMBERS.var(0, ddof=1)),
    "bessel-std": ("std", MEMBERS.std(0, ddof=1)),
    "lower-median": ("median", np.sort(MEMBERS, 0)[1]),
    "logits-averaged": ("probs", softmax(MEMBERS.mean(0))),
    "mean-of-logs": ("logprobs", np.log(softmax(MEMBERS)).mean(0)),
    "mean-of-entropies": ("entropy", combine("expected_entropy", MEMBERS)),
    "entropy-of-mean": ("expected_entropy", combine("entropy", MEMBERS)),
    "in-bits": ("mutual_information", combine("mutual_information", MEMBERS) / np.log(2)),
    "one-missing": ("mean", MEMBERS[:4].mean(0)),
    "vote-of-the-mean": ("vote", np.eye(4)[MEMBERS.mean(0).argmax(-1)]),
}


@pytest.mark.parametrize(("name", "wrong"), MISTAKES.values(), ids=MISTAKES)
def test_the_usual_mistakes_fail(name, wrong):
    assert judge(name, combine(name, MEMBERS).astype(np.float32)).passed
    judged = judge(name, wrong.astype(np.float32))
    assert not judged.passed
    assert not judged.problem


def test_dtype_and_shape_come_before_values():
    right = combine("mean", MEMBERS)
    assert judge("mean", right).problem == "expected dtype float32, got float64"
    assert judge("mean", right.astype(np.float32)[:, :2]).problem == "expected shape (8, 4), got (8, 2)"


def test_a_vote_may_go_either_way_on_a_tie_alone():
    members = np.array([[[1.0, 1.0 - 1e-6, 0.0]], [[0.0, 2.0, 1.0]]])
    near = np.array([[0.0, 1.0, 0.0]], np.float32)
    judged = judge("vote", near, members)
    assert judged.passed
    assert judged.note.startswith("2 of 3 shares of votes differ where two classes are equal but for rounding")
    assert judge("vote", np.array([[0.5, 0.5, 0.0]], np.float32), members).note == ""
    assert not judge("vote", np.array([[0.5, 0.0, 0.5]], np.float32), members).passed


def test_what_float16_cannot_hold_is_infinite():
    members = np.array([[300.0], [-300.0]])
    assert judge("var", np.array([np.inf], np.float16), members, dtype="float16").passed
    assert not judge("std", np.array([np.inf], np.float16), members, dtype="float16").passed


def test_integers_agree_exactly():
    members = np.array([[1, 5], [2, 4]])
    assert judge("max", np.array([2, 5]), members, dtype="int64").passed
    assert not judge("max", np.array([2, 4]), members, dtype="int64").passed


def test_weights_that_a_file_takes_are_tried():
    assert [w.values for w in weightings(None, 3, 0, has_default=True)] == [None]
    assert [w.values for w in weightings(MemberWeights((1.0, 2.0)), 2, 0, has_default=True)] == [(1.0, 2.0)]
    default, drawn = weightings(MemberWeights(), 3, 0, has_default=True)
    assert (default.values, default.feed) == (None, {})
    assert drawn.values is not None
    assert drawn.values[0] == 0
    assert min(drawn.values[1:]) > 0
    np.testing.assert_array_equal(drawn.feed["member_weights"], np.array(drawn.values, np.float32))
    (given,) = weightings(MemberWeights(), 3, 2, has_default=False)
    assert given.feed["member_weights"].tolist() == [1, 1, 1]
