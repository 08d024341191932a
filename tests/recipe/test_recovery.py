"""Weights out of a file's pieces: of every row of the table, however it is batched."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import nn

from ensexport.batching.engine import BatchedGraph, member_form
from ensexport.batching.weights import WeightProgram
from ensexport.errors import ArtifactError
from ensexport.recipe.member import why_lost
from ensexport.recipe.recovery import PIECE, Recovered, piece_number, recover_state, recover_weights
from ensexport.stacking.state import named_tensors
from tests.batching.runs import batched
from tests.batching.table import TABLE

FORMS = {"auto": {}, "unrolled": {"strategy": "unrolled"}, "chunks": {"chunks": 2}, "merges": {"merges": True}}
TOKENS = "x:float32[batch,seq,8]"
ROWS = "x:float32[batch,8]"


def make(build: object, *inputs: str, n_members: int = 3, **options: object) -> tuple[BatchedGraph, nn.Module]:
    """A batched graph, and a member whose tensors are not those that modules begin with."""
    members = []
    for seed in range(n_members):
        torch.manual_seed(seed)
        member = build().eval()  # type: ignore[operator]
        for parameter in member.parameters():
            nn.init.normal_(parameter, std=0.5)
        members.append(member)
    graph, _ = batched(members, *inputs, **options)
    return graph, members[-1]


def pieces_of(graph: BatchedGraph, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A member's pieces, rounded as a file holds them."""
    dtypes = {weight.piece: weight.dtype for weight in graph.weights.packed}
    return {PIECE.format(index): piece.to(dtypes[index]) for index, piece in graph.weights.pieces(state)}


def values(program: WeightProgram, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    weights = {weight.piece: weight for weight in program.packed}
    return {weights[index].name: piece.to(weights[index].dtype) for index, piece in program.pieces(state)}


def weights_of(graph: BatchedGraph, *, is_plain: bool = True) -> tuple[BatchedGraph, Recovered]:
    one = member_form(graph, is_plain=is_plain)
    return one, recover_weights(one.weights, graph.weights, graph.member.fake_mode)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if i % 8 == 0 else pytest.mark.slow)
                                  for i, n in enumerate(TABLE)])  # fmt: skip
def test_every_weight_of_a_member_is_found(name: str, form: dict[str, object]) -> None:
    row = TABLE[name]
    graph, member = make(row.build, *row.inputs, **form)
    one, found = weights_of(graph)
    if found.lost:
        one, found = weights_of(graph, is_plain=False)
    assert not found.lost
    state = named_tensors(member)
    pieces = pieces_of(graph, state)
    expected, got = values(one.weights, state), values(found.program, pieces)
    assert expected.keys() == got.keys()
    for key, value in expected.items():
        torch.testing.assert_close(got[key], value, rtol=0, atol=0, equal_nan=True)
    own = recover_state(tuple(member.state_dict()), graph.weights, graph.member.fake_mode)
    for key, value in values(own.program, pieces).items():
        torch.testing.assert_close(value, state[key], rtol=0, atol=0, equal_nan=True)


def test_a_joined_weight_gives_its_parts() -> None:
    """Query, key and value are one layer's weight in a merged graph."""
    graph, member = make(_Three, TOKENS, merges=True)
    names = tuple(member.state_dict())
    own = recover_state(names, graph.weights, graph.member.fake_mode)
    assert len(graph.weights.packed) < len(names)
    assert not own.lost
    state = named_tensors(member)
    assert all(torch.equal(v, state[k]) for k, v in values(own.program, pieces_of(graph, state)).items())


class _Three(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(8, 8) for _ in "qkv")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.q(x)) * self.k(x) + torch.sigmoid(self.v(x))


class _Cut(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(24, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.weight.chunk(3)
        return torch.tanh(x @ q.t()) * (x @ k.t()) + torch.sigmoid(x @ v.t())


class _Sliced(_Cut):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x @ self.weight[:8].t()) * (x @ self.weight[8:].t())[..., :8]


@pytest.mark.parametrize("build", [_Cut, _Sliced])
def test_a_weight_that_is_cut_into_parts_is_put_together(build: type[nn.Module]) -> None:
    graph, member = make(build, ROWS)
    own = recover_state(("weight",), graph.weights, graph.member.fake_mode)
    assert not own.lost
    state = named_tensors(member)
    assert torch.equal(values(own.program, pieces_of(graph, state))["weight"], state["weight"])


def _folded() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2))


def test_what_is_lost_is_said_with_the_reason() -> None:
    graph, member = make(_folded, ROWS)
    names = tuple(member.state_dict())
    lost = recover_state(names, graph.weights, graph.member.fake_mode).lost
    assert lost == tuple(name for name in names if not name.startswith("3."))
    assert why_lost("1.num_batches_tracked", graph.weights) == "nothing in the graph reads it"
    why = why_lost("0.bias", graph.weights)
    assert why.startswith("it is folded into '0.bias")


def test_equal_tensors_are_kept_once_and_given_back() -> None:
    graph, _ = make(_folded, ROWS, shared_state=("3.weight", "3.bias"))
    own = recover_state(("3.weight", "3.bias"), graph.weights, graph.member.fake_mode)
    assert not own.lost


@pytest.mark.parametrize("name", ["piece_", "piece_x", "leaf_1", "piece_1_2", "piece_-1"])
def test_a_leaf_that_is_no_piece_is_refused(name: str) -> None:
    with pytest.raises(ArtifactError, match=rf"'{name}' is no piece"):
        piece_number(name)


def test_a_piece_has_its_number() -> None:
    assert piece_number(PIECE.format(12)) == 12
