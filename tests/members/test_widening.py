"""Members of different dtypes: each tensor in the widest, ties kept, digests of the files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from ensexport.errors import StackError
from ensexport.members import load_members
from ensexport.members.widening import as_wide

DTYPES = (torch.float16, torch.float32, torch.bfloat16)


def _net() -> nn.Module:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net[1].weight = net[0].weight
    net.register_buffer("steps", torch.zeros((), dtype=torch.int64))
    return net


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index, dtype in enumerate(DTYPES):
        torch.manual_seed(index)
        torch.save(_net().to(dtype).state_dict(), tmp_path / f"m{index}.pt")
    return tmp_path


def test_members_of_different_dtypes_are_refused_unless_it_is_said(folder: Path) -> None:
    with pytest.raises(
        StackError, match=r"expected dtype float16 as in member 0 .*, got float32 in member 1"
    ) as caught:
        load_members(folder, model=_net)
    assert "--dtype" in str(caught.value.hint)


def test_each_tensor_is_read_in_the_widest_dtype(folder: Path) -> None:
    members = load_members(folder, model=_net, any_float=True)
    plain = [load_members(folder / f"m{index}.pt", model=_net)[0] for index in range(3)]
    for member, own, dtype in zip(members, plain, DTYPES, strict=True):
        state = member.state
        assert {t.dtype for t in state.values()} == {torch.float32, torch.int64}
        assert {t.dtype for t in member.shapes.values()} == {torch.float32, torch.int64}
        assert own.state["0.bias"].dtype == dtype
        assert all(torch.equal(state[name], tensor.to(state[name].dtype)) for name, tensor in own.state.items())
        assert state["0.weight"] is state["1.weight"]
        assert member.weights_sha256 == own.weights_sha256
    assert "member 0: float16 as float32, the dtype of others (--dtype)." in members.warnings
    assert "member 2: bfloat16 as float32, the dtype of others (--dtype)." in members.warnings


def test_half_and_bfloat16_meet_in_float32(folder: Path) -> None:
    members = load_members([folder / "m0.pt", folder / "m2.pt"], model=_net, any_float=True)
    assert {member.state["0.weight"].dtype for member in members} == {torch.float32}


def test_members_of_one_dtype_stay_as_they_are(folder: Path) -> None:
    members = load_members([folder / "m0.pt", folder / "m0.pt"], model=_net, any_float=True)
    assert {member.state["0.weight"].dtype for member in members} == {torch.float16}
    assert not any("as float32" in text for text in members.warnings)


def test_integers_are_not_widened(folder: Path) -> None:
    state = torch.load(folder / "m1.pt")
    state["steps"] = torch.zeros((), dtype=torch.int32)
    torch.save(state, folder / "m1.pt")
    with pytest.raises(StackError, match=r"'steps': expected dtype int64 as in member 0 .*, got int32"):
        load_members(folder, any_float=True)


def test_a_member_is_read_in_the_dtypes_that_others_have_where_those_are_wider(folder: Path) -> None:
    members = load_members(folder / "m0.pt", model=_net)
    dtypes = {"0.weight": torch.float32, "0.bias": torch.float32, "1.bias": torch.bfloat16, "steps": torch.float32}
    wide = as_wide(members, dtypes)
    state, own = wide[0].state, members[0].state
    assert {name: tensor.dtype for name, tensor in state.items()} == {
        "0.weight": torch.float32,
        "0.bias": torch.float32,
        "1.weight": torch.float32,
        "1.bias": torch.float16,
        "steps": torch.int64,
    }
    assert state["0.weight"] is state["1.weight"]
    assert all(torch.equal(state[name], tensor.to(state[name].dtype)) for name, tensor in own.items())
    assert (wide[0].weights_sha256, wide.architecture) == (members[0].weights_sha256, members.architecture)
