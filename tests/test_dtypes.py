"""Reading `--dtype` and `--io-dtype`, and what a file says of them."""

from __future__ import annotations

import re

import pytest

from ensexport.dtypes import Conversion, DtypeChoice
from ensexport.errors import ArtifactError, UsageError


def test_nothing_asked_for_converts_nothing() -> None:
    assert DtypeChoice().resolve("float32") is None


@pytest.mark.parametrize(
    ("choice", "members", "expected"),
    [
        (DtypeChoice("float16"), "float32", Conversion("float32", "float16", "float32")),
        (DtypeChoice("float16", "float16"), "float32", Conversion("float32", "float16", "float16")),
        (DtypeChoice(None, "float32"), "float16", Conversion("float16", "float16", "float32")),
        (DtypeChoice("float32"), "float64", Conversion("float64", "float32", "float64")),
    ],
    ids=["inside", "both", "io", "narrower"],
)
def test_what_is_left_out_is_as_the_members_have_it(choice: DtypeChoice, members: str, expected: Conversion) -> None:
    assert choice.resolve(members) == expected
    assert Conversion.from_json(expected.to_json()) == expected


def test_the_coarsest_dtype_sets_the_bound() -> None:
    assert Conversion("float32", "float16", "float32").coarsest == "float16"
    assert Conversion("float32", "float16", "bfloat16").coarsest == "bfloat16"
    assert Conversion("float16", "float32", "float32").coarsest == "float16"


def test_only_what_the_members_compute_in_changes() -> None:
    conversion = Conversion("float32", "float16", "bfloat16")
    assert [conversion.io_dtype(name) for name in ("float32", "int64", "float64")] == ["bfloat16", "int64", "float64"]


@pytest.mark.parametrize(("option", "arguments"), [("--dtype", ("int8",)), ("--io-dtype", (None, "half"))])
def test_unknown_dtypes_are_refused(option: str, arguments: tuple[str, ...]) -> None:
    with pytest.raises(
        UsageError, match=re.escape(f"unknown {option} {arguments[-1]!r}: expected one of float32, float16, bf")
    ):
        DtypeChoice(*arguments)


@pytest.mark.parametrize("value", [{"members": "float32"}, {"members": "a", "inside": "b", "io": "c"}])
def test_metadata_of_another_form_is_refused(value: dict[str, str]) -> None:
    with pytest.raises(ArtifactError, match="dtypes"):
        Conversion.from_json(value)
