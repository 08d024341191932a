"""Which tensors are the same in all members."""

import torch

from ensexport.members.equality import EqualTensors


def names(*states):
    equal = EqualTensors()
    for state in states:
        equal.add(state)
    return equal.names


def test_only_what_is_bit_equal_in_all_is_equal():
    one = {"w": torch.ones(3), "b": torch.zeros(2), "n": torch.tensor(5), "nan": torch.tensor([torch.nan])}
    assert names() == frozenset()
    assert names(one) == frozenset(one)
    assert names(one, one | {"b": torch.tensor([0.0, 1e-30])}) == {"w", "n", "nan"}
    assert names(one, one, one | {"n": torch.tensor(6)}) == {"w", "b", "nan"}
    assert names(one, one | {"b": torch.tensor([0.0, -0.0])}) == {"w", "n", "nan"}
    assert names(one, {"w": torch.ones(3)}) == {"w"}
    assert names(one, one | {"w": torch.ones(3, dtype=torch.float64)}) == {"b", "n", "nan"}
    assert names(one, one | {"w": torch.ones(3, 1)}) == {"b", "n", "nan"}


def test_a_difference_at_the_end_of_a_large_tensor_is_found():
    large = torch.zeros(1_000_000)
    other = large.clone()
    other[-1] = 1
    assert names({"w": large}, {"w": large.clone()}) == {"w"}
    assert names({"w": large}, {"w": other}) == frozenset()
    assert names({"w": large.reshape(1000, 1000).t()}, {"w": other.reshape(1000, 1000).t()}) == frozenset()
