"""Reading and refusing `--member-weights`."""

from __future__ import annotations

import pytest

from ensexport.errors import UsageError
from ensexport.weighting import MemberWeights, parse_member_weights


@pytest.mark.parametrize(
    ("given", "values"),
    [
        pytest.param("input", None, id="input"),
        pytest.param("0.5,0.3, 0.2", (0.5, 0.3, 0.2), id="list"),
        pytest.param([1, 0], (1.0, 0.0), id="python"),
    ],
)
def test_reading(given, values):
    assert parse_member_weights(given).values == values


@pytest.mark.parametrize("text", ["[1, 2.5,\n 3]\n", "1\n2.5\n3\n", "1, 2.5, 3"], ids=["json", "lines", "commas"])
def test_reading_a_file(tmp_path, text):
    path = tmp_path / "weights.txt"
    path.write_text(text)
    assert parse_member_weights(str(path)).values == (1.0, 2.5, 3.0)


def test_what_is_no_weights(tmp_path):
    with pytest.raises(UsageError, match="cannot read --member-weights 'uniform': expected `input`, numbers"):
        parse_member_weights("uniform")
    path = tmp_path / "weights.txt"
    path.write_text("one two")
    with pytest.raises(UsageError, match="the file holds 'one two'"):
        parse_member_weights(str(path))


def test_what_is_no_weight_is_refused_when_it_is_read():
    with pytest.raises(UsageError, match="the weight of member 1 is -1: expected a finite number, 0 or more"):
        parse_member_weights("1,-1")
    with pytest.raises(UsageError, match="all member weights are 0"):
        parse_member_weights([0, 0])


@pytest.mark.parametrize(
    ("values", "fact"),
    [
        pytest.param((1.0, 2.0), "2 member weights are given: expected 3", id="length"),
        pytest.param(
            (1.0, -2.0, 3.0), "the weight of member 1 is -2: expected a finite number, 0 or more", id="negative"
        ),
        pytest.param((1.0, 2.0, float("nan")), "the weight of member 2 is nan", id="nan"),
        pytest.param((0.0, 0.0, 0.0), "all member weights are 0", id="all-zero"),
    ],
)
def test_weights_that_do_not_fit(values, fact):
    with pytest.raises(UsageError, match=fact):
        MemberWeights(values).check(3)


def test_what_the_metadata_says_is_read_back():
    for weights in (MemberWeights(), MemberWeights((1.0, 0.5))):
        assert MemberWeights.from_json(weights.to_json()) == weights
    assert MemberWeights.from_json(None) is None
