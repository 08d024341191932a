import pytest
import torch

from ensexport.errors import StackError
from ensexport.members.agreement import check_states_agree

A, B, C = "member 0 (runs/s0.pt)", "member 1 (runs/s1.pt)", "member 2 (runs/s2.pt)"


def state(**changes):
    return {"w": torch.zeros(10, 64), "b": torch.zeros(10)} | changes


def message(*members):
    with pytest.raises(StackError) as caught:
        check_states_agree(members)
    assert caught.value.exit_code == 4
    return caught.value


def test_equal_names_shapes_and_dtypes_agree():
    check_states_agree([])
    check_states_agree([(A, state())])
    check_states_agree([(A, state()), (B, dict(reversed(state().items())))])


def test_a_shape_names_both_members_and_both_values():
    error = message((A, state()), (B, state()), (C, state(w=torch.zeros(10, 128))))
    assert str(error) == (
        "cannot stack 'w': expected shape (10, 64) as in member 0 (runs/s0.pt), got (10, 128) in "
        "member 2 (runs/s2.pt). Stack only members trained with the same config."
    )
    assert error.details["differences"][0]["key"] == "w"


def test_a_dtype_names_both_values():
    error = message((A, state()), (B, state(b=torch.zeros(10, dtype=torch.float16))))
    assert f"'b': expected dtype float32 as in {A}, got float16 in {B}" in str(error)
    assert "one dtype" in error.hint


def test_a_missing_and_an_unexpected_name_say_what_is_where():
    other = state(extra=torch.zeros(2))
    del other["b"]
    error = message((A, state()), (B, other))
    assert f"'b': expected shape (10,) of float32 as in {A}, missing in {B}" in str(error)
    assert f"'extra': missing in {A}, got shape (2,) of float32 in {B}" in str(error)
    assert "one architecture" in error.hint


def test_five_differences_are_shown_and_the_others_counted():
    many = {str(n): torch.zeros(1) for n in range(8)}
    error = message((A, many), (B, {name: torch.zeros(2) for name in many}))
    assert str(error).count("expected shape") == 5
    assert "; and 3 more differences." in str(error)
    assert error.details["n_differences"] == 8
    six = {name: torch.zeros(2) for name in list(many)[:6]}
    assert "; and 1 more difference." in str(message((A, {n: many[n] for n in six}), (B, six)))
