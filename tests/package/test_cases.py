"""Which samples a package gets, and what it says should come out."""

import math

import ml_dtypes
import numpy as np
import pytest
import torch

from ensexport.emission import OutputEmission
from ensexport.package.cases import is_within, make_cases
from ensexport.probes import Probe
from ensexport.references import Reference
from ensexport.spec import Check

FLOAT32_ROUNDING = float(np.finfo(np.float32).eps) / 2


def probe(batch, seed=0, *, is_extreme=False):
    feed = {"x": torch.arange(batch * 2, dtype=torch.float32).reshape(batch, 2) / 8}
    return Probe({"batch": batch}, batch, seed, feed, is_extreme)


def outputs_of(feed, *, axis=0):
    """Two members: y = x and y = 3 x."""
    return np.stack([feed, 3 * feed], axis)


def references(probes):
    made = []
    for factor in (1, 3):
        row = [factor * p.feed["x"].numpy().astype(np.float64) for p in probes]
        made.append([Reference({"y": value}, {"y": 0.0}, {"y": "float32"}, {"y": "float32"}) for value in row])
    return made


def check(batch, bound, *, seed=0, output="y"):
    return Check("e.onnx", "CPU", batch, 0, output, 0.0, 0.0, bound, True, seed=seed)


PROBES = [probe(1), probe(2), probe(3), probe(7), probe(7, seed=1), probe(9, is_extreme=True)]
KEYWORDS = {"emitted": [OutputEmission("y")], "n_members": 2, "member_axis": 0}


def run(feed):
    return {"y": outputs_of(feed["x"])}


def test_a_small_batch_of_several_rows_comes_first_and_the_largest_second():
    cases = make_cases(run, PROBES, references(PROBES), [check(2, 1e-3), check(7, 1e-2)], **KEYWORDS)
    assert [(case.batch, case.source, case.expected_from) for case in cases] == [
        (2, "seed 0", "loop"),
        (7, "seed 0", "loop"),
    ]
    first = cases[0]
    np.testing.assert_array_equal(first.inputs["x"], PROBES[1].feed["x"].numpy())
    np.testing.assert_array_equal(first.outputs["y"], outputs_of(first.inputs["x"]))
    assert first.outputs["y"].dtype == np.float32
    assert first.axes == {"y": 0}
    assert first.bounds["y"] == pytest.approx(1e-3 + FLOAT32_ROUNDING)
    assert cases[1].bounds["y"] == pytest.approx(1e-2 + FLOAT32_ROUNDING)


def test_one_batch_size_gives_one_case():
    only = [probe(1)]
    (case,) = make_cases(run, only, references(only), [check(1, 1e-5)], **KEYWORDS)
    assert case.batch == 1


def test_a_second_case_of_many_bytes_is_left_out(monkeypatch):
    monkeypatch.setattr("ensexport.package.cases._MAX_BYTES", 100)
    (case,) = make_cases(run, PROBES, references(PROBES), [check(2, 1e-5)], **KEYWORDS)
    assert case.batch == 2


def test_the_members_axis_is_where_the_file_has_it():
    def batch_first(feed):
        return {"y": outputs_of(feed["x"], axis=1)}

    keywords = {**KEYWORDS, "member_axis": 1}
    case = make_cases(batch_first, PROBES, references(PROBES), [check(2, 1e-5)], **keywords)[0]
    assert (case.expected_from, case.axes, case.outputs["y"].shape) == ("loop", {"y": 1}, (2, 2, 2))


def test_combined_outputs_follow_their_formula():
    def run_mean(feed):
        return {"y.mean": 2 * feed["x"], "y": outputs_of(feed["x"])}

    keywords = {**KEYWORDS, "emitted": [OutputEmission("y", ("mean",))]}
    case = make_cases(run_mean, PROBES, references(PROBES), [check(2, 1e-4, output="y.mean")], **keywords)[0]
    assert (case.expected_from, list(case.outputs), case.axes) == ("loop", ["y.mean"], {"y.mean": None})
    np.testing.assert_array_equal(case.outputs["y.mean"], 2 * case.inputs["x"])


def test_where_not_all_members_were_compared_the_file_itself_is_the_answer():
    case = make_cases(run, PROBES, references(PROBES)[:1], [check(2, 1e-5)], **KEYWORDS)[0]
    assert case.expected_from == "file"
    np.testing.assert_array_equal(case.outputs["y"], outputs_of(case.inputs["x"]))


def test_integers_that_rounding_decided_are_the_file_s_own():
    def run_argmax(feed):
        return {"y": np.ones((2, len(feed["x"])), np.int64)}

    made = [
        [Reference({"y": np.full(p.batch, k)}, {"y": 0.0}, {"y": "int64"}, {"y": "int64"}) for p in PROBES]
        for k in range(2)
    ]
    case = make_cases(run_argmax, PROBES, made, [check(2, 0.0)], **KEYWORDS)[0]
    assert (case.expected_from, case.bounds) == ("file", {"y": 0.0})
    assert case.outputs["y"].tolist() == [[1, 1], [1, 1]]


def test_what_has_no_bound_of_its_own_gets_the_floor_of_its_dtype():
    def run_half(feed):
        return {"y": outputs_of(feed["x"]).astype(ml_dtypes.bfloat16)}

    case = make_cases(run_half, PROBES, [], [check(2, math.inf)], **KEYWORDS)[0]
    assert case.bounds["y"] == pytest.approx(2e-2 + 2.0**-8)
    assert case.outputs["y"].dtype == ml_dtypes.bfloat16


BASE = np.array([[1.0, 2.0], [100.0, 200.0]], np.float32)
WITHIN = {
    "equal": (BASE, True, True),
    "small-member-off": (BASE + np.array([[0.1, 0], [0, 0]]), False, True),
    "large-member-off": (BASE + np.array([[0, 0], [0.1, 0]]), True, True),
    "both-off": (BASE + np.array([[0, 0], [10, 0]]), False, False),
    "nan": (BASE + np.array([[0, 0], [np.nan, 0]]), False, False),
}


@pytest.mark.parametrize(("actual", "by_member", "as_a_whole"), WITHIN.values(), ids=WITHIN)
def test_members_are_judged_one_by_one(actual, by_member, as_a_whole):
    actual = actual.astype(np.float32)
    assert is_within(BASE, actual, bound=1e-2, axis=0) is by_member
    assert is_within(BASE, actual, bound=1e-2, axis=None) is as_a_whole
    assert not is_within(BASE, actual[:1], bound=1e-2, axis=0)
    assert not is_within(BASE, actual.astype(np.float64), bound=1e-2, axis=0)
