"""Linear layers over one activation, merged: which are, which must not be, and that the numbers stay."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ensexport.batching.merging import merge_linears
from tests.batching.runs import assert_equals_loop, batched, capture, fx_run
from tests.batching.runs import ops as compared

Forward = Callable[[nn.Module, Tensor], Tensor]
TOKENS = "x:float32[batch,seq,6]"


class Flow(nn.Module):
    """Linear layers of several widths, joined as the test says."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.bare, self.wide = nn.Linear(6, 6, bias=False), nn.Linear(6, 12)
        self.narrow, self.norm = nn.Linear(6, 3), nn.LayerNorm(6)
        self.batch_norm = nn.BatchNorm1d(6)
        with torch.no_grad():
            self.norm.weight.add_(torch.rand(6))
            self.norm.bias.add_(torch.rand(6))
        self.flow = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.flow(self, x)


def heads(x: Tensor) -> Tensor:
    return x.view(*x.shape[:2], -1, 3).transpose(1, 2)


def attention(m: nn.Module, x: Tensor) -> Tensor:
    q, k, v = (heads(layer(x)) for layer in (m.q, m.k, m.v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def tied(m: nn.Module, x: Tensor) -> Tensor:
    return m.q(x).sin() + m.v(x) + F.linear(x, m.q.weight, m.q.bias).cos()


def members(forward: Forward, n_members: int = 3) -> list[nn.Module]:
    return [Flow(forward).eval() for _ in range(n_members)]


def ops(
    forward: Forward, spec: str = TOKENS, n_members: int = 3, folder: Path | None = None, **options: object
) -> Counter[str]:
    modules = members(forward, n_members)
    return compared(modules, spec, folder=folder, merges=True, **options)


def layers(counted: Counter[str]) -> int:
    return counted["linear.default"] + counted["bmm.default"]


MERGED: dict[str, Forward] = {
    "heads": attention,
    "later-heads": lambda m, x: attention(m, m.bare(x).relu()),
    "plain": lambda m, x: m.q(x).sin() * m.k(x) + m.v(x),
    "gate": lambda m, x: F.silu(m.q(y := m.norm(x))) * m.k(y),
    "no-bias-in-one": lambda m, x: m.q(x) * m.bare(x).sin(),
    "other-widths": lambda m, x: torch.cat([m.wide(x).sin(), m.narrow(x), m.q(x)], -1),
    "heads-of-other-counts": lambda m, x: heads(m.wide(x))[:, :2] @ heads(m.q(x)).transpose(-2, -1),
    "heads-of-other-orders": lambda m, x: heads(m.q(x)) @ m.k(x).view(*x.shape[:2], -1, 3).permute(0, 2, 3, 1),
    "tied": tied,
    "output": lambda m, x: (m.q(x), m.k(x)),
    "scaled": lambda m, x: ((heads(m.q(x)) * 0.3) @ heads(m.k(x)).transpose(-2, -1)).softmax(-1),
}


@pytest.mark.parametrize("case", ["one", "shared", "own"])
@pytest.mark.parametrize("name", MERGED)
def test_layers_over_one_activation_are_one(name: str, case: str, tmp_path: Path) -> None:
    per_member = ("x",) if case == "own" else ()
    folder = tmp_path if case != "one" else None
    counted = ops(MERGED[name], n_members=1 if case == "one" else 3, per_member=per_member, folder=folder)
    assert layers(counted) == (2 if name == "later-heads" else 1)


def test_heads_are_taken_after_one_permute() -> None:
    counted = ops(attention, per_member=("x",))
    assert counted["unbind.int"] == 1
    assert counted["split_with_sizes.default"] == 0
    assert counted["permute.default"] + counted["transpose.int"] <= 3  # to heads, from heads, to rows


def test_one_wide_layer_for_a_shared_input() -> None:
    counted = ops(MERGED["plain"])
    assert (counted["linear.default"], counted["bmm.default"]) == (1, 0)


def test_rows_without_a_batch() -> None:
    assert layers(ops(MERGED["plain"], "x:float32[6]")) == 1


def test_norm_before_moves_into_the_merged_layer() -> None:
    counted = ops(lambda m, x: attention(m, m.norm(x.sin())), per_member=("x",))
    assert (counted["mul.Tensor"], layers(counted)) == (0, 1)


def test_weights_of_each_member_are_the_layers_side_by_side() -> None:
    modules = members(attention)
    graph, weights = batched(modules, TOKENS, merges=True)
    (name,) = [weight.name for weight in graph.packed.values() if len(weight.piece_shape) == 2]
    with torch.no_grad():
        expected = torch.cat([torch.cat([m.q.weight, m.k.weight, m.v.weight]) for m in modules])
    assert torch.equal(weights[name], expected)


KEPT: dict[str, tuple[Forward, int]] = {
    "other-activations": (lambda m, x: m.q(x) + m.k(x.sin()), 2),
    "weight-read-elsewhere": (lambda m, x: m.q(x) + m.k(x) + F.linear(x.sin(), m.k.weight), 3),
    "in-a-row": (lambda m, x: m.q(m.k(x)), 2),
    "folded-norms": (lambda m, x: m.batch_norm(m.q(x[:, 0])).sin() + m.k(x[:, 0]), 2),
}


@pytest.mark.parametrize("name", KEPT)
def test_layers_stay_apart(name: str) -> None:
    forward, count = KEPT[name]
    assert layers(ops(forward, per_member=("x",))) == count


def test_shared_layer_is_not_joined_to_layers_of_each_member() -> None:
    modules = members(MERGED["plain"])
    for module in modules:
        module.q.load_state_dict(modules[0].q.state_dict())
    graph, weights = batched(modules, TOKENS, merges=True, shared_state={"q.weight", "q.bias"})
    kinds = {weight.name: weight.kind for weight in graph.packed.values()}
    assert kinds["q.weight"] == "shared"
    assert sum(len(weight.piece_shape) == 2 for weight in graph.packed.values()) == 2
    _, example = capture(modules[0], TOKENS)
    assert_equals_loop([fx_run(graph, weights)], modules, graph, example)


def test_graph_without_such_layers_is_returned_itself() -> None:
    member, _ = capture(members(KEPT["in-a-row"][0])[0], TOKENS)
    assert merge_linears(member, lambda _name: False) is member


def test_member_graph_is_not_changed_and_layers_are_merged_on_demand_only() -> None:
    modules = members(attention)
    member, _ = capture(modules[0], TOKENS)
    before = str(member.graph)
    assert merge_linears(member, lambda _name: False) is not member
    assert str(member.graph) == before
    graph, _ = batched(modules, TOKENS)
    assert sum(node.target is torch.ops.aten.linear.default for node in graph.graph.nodes) == 3
