"""Scales and shifts that move into weights: which do, which must not, and that the numbers stay."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import nn

from tests.batching.runs import batched, ops

aten = torch.ops.aten


class Flow(nn.Module):
    """Layers `a` and `b`, a norm and a scale, joined as the test says."""

    def __init__(self, forward: Callable[[nn.Module, torch.Tensor], torch.Tensor], bias: bool = True) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(6)
        self.a, self.b = nn.Linear(6, 6, bias=bias), nn.Linear(6, 4, bias=bias)
        self.conv = nn.Conv2d(6, 5, 2)
        self.padded = nn.Conv2d(6, 5, 3, padding=1)
        self.gamma = nn.Parameter(torch.rand(6) + 0.5)
        self.flow = forward
        with torch.no_grad():
            self.norm.weight.add_(torch.rand(6))
            self.norm.bias.add_(torch.rand(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.flow(self, x)


def flow(forward: Callable[[nn.Module, torch.Tensor], torch.Tensor], spec: str, **options: bool) -> Counter[str]:
    members = [Flow(forward, **options).eval() for _ in range(3)]
    return ops(members, spec)


def two_readers(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    y = m.norm(x.sin())
    return m.a(y)[..., :4] + m.b(y)


def channels_last_norm(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return m.norm((x * x.sin()).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: m.b(m.norm(m.a(x))),
        two_readers,
        lambda m, x: m.b(m.norm(x)[:, 0]),
        lambda m, x: m.b(m.norm(x).reshape(x.shape[0], 2, 2, 6).transpose(1, 2)),
        lambda m, x: m.b(m.norm(x[:, 0, None, None]).permute(0, 3, 1, 2).flatten(1)),
        lambda m, x: m.b(m.gamma * x.sin()),
        lambda m, x: m.b(x.sin() * m.gamma.view(1, 1, 6)),
        lambda m, x: m.a(x.sin()) * m.gamma,
        lambda m, x: m.gamma.view(1, 6) * m.a(x.sin()),
    ],
    ids=[
        "linear",
        "several",
        "select",
        "windows",
        "flatten",
        "scale_before",
        "view_before",
        "scale_behind",
        "view_behind",
    ],
)
def test_scale_and_shift_cost_nothing(forward: Callable[[nn.Module, torch.Tensor], torch.Tensor], bias: bool) -> None:
    with_scales = flow(forward, "x:float32[batch,4,6]", bias=bias)
    assert "mul.Tensor" not in with_scales


def test_norm_between_convolutions_is_folded_through_its_permutes() -> None:
    counted = flow(lambda m, x: m.conv(channels_last_norm(m, x)), "x:float32[batch,6,5,5]")
    assert counted["mul.Tensor"] == 1  # x * sin(x)
    assert counted["add.Tensor"] == 0


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: m.norm(x) + m.a(m.norm(x)),
        lambda m, x: m.norm(x),
        lambda m, x: m.b(m.norm(x).relu()),
    ],
    ids=["residual", "output", "activation"],
)
def test_scale_stays_where_something_else_reads_it(forward: Callable[[nn.Module, torch.Tensor], torch.Tensor]) -> None:
    assert flow(forward, "x:float32[batch,4,6]")["mul.Tensor"] == 1


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: (y := m.norm(x.sin())) + m.a(y.relu() * 0 + 1),
        lambda m, x: (y := m.norm(x)) + y,
        lambda m, x: (y := m.norm(x.sin())) + m.a(y).relu(),
        lambda m, x: torch.add(y := m.norm(x.sin()), m.a(y), alpha=2),
        lambda m, x: (y := m.norm(x.sin())) + m.a(y[:, :1]),
        lambda m, x: ((y := m.norm(x.sin())) + m.a(y), y),
        lambda m, x: ((y := m.norm(x.sin())) + (z := m.a(y)), z),
        lambda m, x: m.b((y := m.norm(x.sin())) + m.a(y)) + m.b(y),
    ],
    ids=["activation", "itself", "activated", "alpha", "broadcast", "output", "other-is-output", "layer-used-twice"],
)
def test_shift_stays_where_no_layer_takes_it(forward: Callable[[nn.Module, torch.Tensor], torch.Tensor]) -> None:
    """The norm's shift is one of its two nodes; the others are the layer's bias and what the flow itself adds."""
    members = [Flow(forward).eval() for _ in range(3)]
    graph, _ = batched(members, "x:float32[batch,4,6]")
    assert not any(weight.name.startswith("a.bias_") for weight in graph.packed.values())
    flow(forward, "x:float32[batch,4,6]")


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: ((y := m.norm(x.sin())) + m.a(y)).relu(),
        lambda m, x: m.b(m.a(y := m.norm(x.sin())) + y),
    ],
    ids=["sum", "other-order"],
)
def test_shift_moves_into_the_layer_that_a_residual_sum_adds(
    forward: Callable[[nn.Module, torch.Tensor], torch.Tensor],
) -> None:
    members = [Flow(forward).eval() for _ in range(3)]
    graph, _ = batched(members, "x:float32[batch,4,6]")
    assert any(weight.name.startswith("a.bias_") for weight in graph.packed.values())
    flow(forward, "x:float32[batch,4,6]")


def test_shift_is_not_moved_behind_a_padded_border() -> None:
    """Zeros around the image come after the shift: `W @ shift` would be added there too."""
    counted = flow(lambda m, x: m.padded(channels_last_norm(m, x)), "x:float32[batch,6,5,5]")
    assert counted["mul.Tensor"] == 2
    assert counted["add.Tensor"] == 1


def test_shared_layer_stays_shared() -> None:
    """A layer equal in all members is kept once: a scale of their own does not go into it."""
    members = [Flow(lambda m, x: m.b(m.norm(x))).eval() for _ in range(3)]
    for member in members:
        member.b.load_state_dict(members[0].b.state_dict())
    shared = {"b.weight", "b.bias"}
    graph, _ = batched(members, "x:float32[batch,4,6]", shared_state=shared)
    assert {weight.name: weight.kind for weight in graph.packed.values()}["b.weight"] == "shared"
    assert ops(members, "x:float32[batch,4,6]", shared_state=shared)["mul.Tensor"] == 1


def test_folded_weights_are_named_and_computed_in_float64() -> None:
    members = [Flow(lambda m, x: m.b(m.norm(x))).eval() for _ in range(2)]
    graph, weights = batched(members, "x:float32[batch,4,6]")
    with torch.no_grad():
        exact = [(m.b.weight.double() * m.norm.weight.double()).float() for m in members]
    name = next(weight.name for weight in graph.packed.values() if weight.name.startswith("b.weight"))
    assert torch.equal(weights[name], torch.cat(exact))  # the norm of a shared input is shared: one wide layer


class Block(nn.Module):
    """A transformer block before and after which tokens stay tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(8), nn.LayerNorm(8)
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
        self.wide, self.narrow = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, _ = x.shape
        q, k, v = self.qkv(self.first(x)).reshape(batch, length, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        attended = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, length, 8)
        x = x + self.out(attended)
        return x + self.narrow(nn.functional.gelu(self.wide(self.second(x))))


def test_transformer_block_stays_in_rows() -> None:
    """Reshapes only where heads are split off and joined, and at the graph's ends."""
    members = [nn.Sequential(nn.Linear(8, 8), Block(), Block()).eval() for _ in range(3)]
    for member in members:
        for parameter in member.parameters():
            nn.init.uniform_(parameter, -0.5, 0.5)
    counted = ops(members, "x:float32[batch,seq,8]")
    assert counted["flatten.using_ints"] == 0
    assert counted["unflatten.int"] == 1  # the output
    assert counted["reshape.default"] <= 1 + 2 * 3  # into rows; heads split, joined, back to rows
    assert counted["mul.Tensor"] == 0
