"""Reading `--emit`, `OUTPUT=LIST` and `--class-axis`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ensexport.emission import (
    QUANTILE,
    QUANTILE_NAMES,
    QUANTITIES,
    Emission,
    OutputEmission,
    formulas,
    from_json,
    help_text,
    parse_emission,
    to_json,
)
from ensexport.errors import ArtifactError, UsageError

NAMES = (
    "members", "mean", "var", "std", "min", "max", "median",
    "probs", "logprobs", "vote", "entropy", "expected_entropy", "mutual_information",
)  # fmt: skip


def test_the_names_are_those_of_the_contract():
    assert tuple(QUANTITIES) == NAMES
    classes = [name for name, quantity in QUANTITIES.items() if quantity.needs_classes]
    assert classes == ["probs", "logprobs", "vote", "entropy", "expected_entropy", "mutual_information"]


def test_nothing_said_means_members():
    assert parse_emission() == Emission()
    assert parse_emission().resolve(["y"]) == (OutputEmission("y", ("members",)),)


@pytest.mark.parametrize(
    ("emit", "expected"),
    [
        pytest.param("probs, entropy", [("probs", "entropy"), ("probs", "entropy")], id="one-text"),
        pytest.param(["probs", "entropy", "probs"], [("probs", "entropy"), ("probs", "entropy")], id="list"),
        pytest.param(["b=mean,var"], [("members",), ("mean", "var")], id="one-output"),
        pytest.param(["probs", "b = mean"], [("probs",), ("mean",)], id="one-output-and-the-rest"),
    ],
)
def test_lists_for_all_and_for_one_output(emit, expected):
    emitted = parse_emission(emit).resolve(["a", "b"])
    assert [entry.names for entry in emitted] == expected


def test_members_keep_the_outputs_name_and_the_rest_add_theirs():
    (entry,) = parse_emission("probs,members").resolve(["logits"])
    assert entry.file_names == ("logits.probs", "logits")
    assert entry.combined == (("probs", "logits.probs"),)
    assert not entry.is_hidden
    assert formulas([entry])["logits.probs"] == "p = sum_k w_k p_k"


def test_class_axes():
    emitted = parse_emission("probs", [1, "b=-2"]).resolve(["a", "b"])
    assert [entry.class_axis for entry in emitted] == [1, -2]
    assert parse_emission("probs", "0").class_axis == 0


@pytest.mark.parametrize(
    ("emit", "axis", "fact"),
    [
        pytest.param("prob", (), r"unknown name 'prob' .* members, mean, var, .* Did you mean 'probs'", id="close"),
        pytest.param("a=b=mean,x", (), "unknown name 'x'", id="in-a-list"),
        pytest.param("mean,", (), "unknown name ''", id="empty"),
        pytest.param(["a=mean", "a=var"], (), "says twice what the output 'a' becomes", id="twice"),
        pytest.param("probs", "last", "cannot read --class-axis 'last'", id="axis"),
    ],
)
def test_bad_lists(emit, axis, fact):
    with pytest.raises(UsageError, match=fact):
        parse_emission(emit, axis)


@pytest.mark.parametrize(
    ("emission", "outputs", "fact"),
    [
        pytest.param(
            parse_emission("c=mean"), ["a", "b"], "--emit names the output 'c': expected one of a, b", id="emit"
        ),
        pytest.param(parse_emission((), "c=1"), ["a"], "--class-axis names the output 'c'", id="axis"),
        pytest.param(parse_emission("mean"), ["a", "a.mean"], "would be called 'a.mean'", id="clash"),
    ],
)
def test_outputs_that_are_not_there(emission, outputs, fact):
    with pytest.raises(UsageError, match=fact):
        emission.resolve(outputs)


def test_the_formulas_are_those_of_the_documentation():
    text = (Path(__file__).parent.parent / "docs" / "outputs.md").read_text()
    rows = re.findall(r"^\| `y(?:\.(\w+))?` \| `(.+)` \| `(.+)` \|$", text, re.MULTILINE)
    assert [(name or "members", formula, shape) for name, formula, shape in rows] == [
        (name, quantity.formula, quantity.shape) for name, quantity in QUANTITIES.items()
    ]


def test_quantiles():
    (entry,) = parse_emission("q5,q10,median").resolve(["y"])
    assert entry.file_names == ("y.q5", "y.q10", "y.median")
    assert "on both sides of place 5 (N - 1) / 100," in formulas([entry])["y.q5"]
    assert from_json(to_json([entry]), entry.file_names) == (entry,)
    text = (Path(__file__).parent.parent / "docs" / "outputs.md").read_text()
    assert f"| `y.q1` to `y.q99` | `{QUANTILE.formula}` | `{QUANTILE.shape}` |" in text
    assert f"  {QUANTILE_NAMES} " in help_text()
    for name in ("q0", "q100", "q05", "q1.5", "q"):
        with pytest.raises(UsageError, match=f"unknown name '{name}' .* q1 to q99"):
            parse_emission(name)


@pytest.mark.parametrize("emit", [None, ["members"]], ids=["nothing", "members"])
def test_metadata_of_older_files_means_members(emit):
    assert from_json(emit, ["a", "b"]) == (OutputEmission("a"), OutputEmission("b"))


def test_metadata_is_read_back():
    emitted = parse_emission(["a=probs,members", "mean"], "a=1").resolve(["a", "b"])
    names = ["a.probs", "a", "b.mean"]
    assert from_json(to_json(emitted), names) == emitted
    with pytest.raises(ArtifactError, match=r"says of its outputs a[.]probs, a that they are"):
        from_json(to_json(emitted), names[:2])
    with pytest.raises(ArtifactError, match="cannot read 'emit'"):
        from_json([{"output": "a"}], names)
