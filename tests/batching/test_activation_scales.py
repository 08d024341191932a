"""Scales inside of activations: which move into the layers beside them, which must not, and the numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ensexport.batching.activation_scales import activation_scales
from tests.batching.runs import assert_equals_loop, batched, capture, fx_run, onnx_run, torchscript_run

Forward = Callable[[nn.Module, torch.Tensor], torch.Tensor]
ROWS = "x:float32[batch,6]"
IMAGE = "x:float32[batch,6,5,4]"


class Layers(nn.Module):
    """Linear layers and convolutions of width 6, put together as the test says."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6, bias=False), nn.Linear(6, 6)
        self.conv, self.wide = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1, groups=2)
        self.flow = forward

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.flow(self, x)


def members_of(forward: Forward) -> list[nn.Module]:
    return [Layers(forward).eval() for _ in range(3)]


def arguments(forward: Forward, spec: str) -> list[tuple[str, tuple[object, ...]]]:
    """The activations of the batched graph, which equals the loop, with their arguments behind the first."""
    members = members_of(forward)
    graph, weights = batched(members, spec)
    _, example = capture(members[0], spec)
    assert_equals_loop([fx_run(graph, weights)], members, graph, example)
    assert not graph.plan.fallbacks
    names = ("elu", "celu", "softplus")
    nodes = [node for node in graph.graph.nodes if getattr(node.target, "__name__", "").split(".")[0] in names]
    return [(node.target.__name__.split(".")[0], node.args[1:]) for node in nodes]


MOVED: dict[str, tuple[Forward, str]] = {
    "linear": (lambda m, x: m.c(F.celu(m.a(x), 0.1)), ROWS),
    "chain": (lambda m, x: m.c(F.celu(m.b(F.celu(m.a(x), 0.1)), 0.3)), ROWS),
    "no-bias": (lambda m, x: m.c(F.celu(m.b(x), 0.1)), ROWS),
    "two-readers": (lambda m, x: m.b(y := F.celu(m.a(x), 2.5)) + m.c(y), ROWS),
    "rearranged": (lambda m, x: m.c(F.celu(m.a(x), 0.1).view(-1, 2, 3).transpose(1, 2).flatten(1)), ROWS),
    "dropout": (lambda m, x: m.c(F.dropout(F.celu(m.a(x), 0.1), training=m.training)), ROWS),
    "convolutions": (lambda m, x: m.wide(F.celu(m.conv(x), 0.1)), IMAGE),
    "grouped": (lambda m, x: m.conv(F.celu(m.wide(x), 0.1)), IMAGE),
}


@pytest.mark.parametrize("name", MOVED)
def test_a_celu_between_layers_is_an_elu(name: str) -> None:
    forward, spec = MOVED[name]
    found = arguments(forward, spec)
    assert found
    assert set(found) == {("elu", ())}


def test_a_softplus_between_layers_has_no_beta() -> None:
    assert arguments(lambda m, x: m.c(F.softplus(m.a(8 * x), 3.0, 2.0)), ROWS) == [("softplus", (1.0, 2.0))]
    assert arguments(lambda m, x: m.c(F.softplus(m.a(8 * x), 3.0)), ROWS) == [("softplus", (1.0, 20.0))]


KEPT: dict[str, Forward] = {
    "given-back": lambda m, x: F.celu(m.a(x), 0.1),
    "of-the-input": lambda m, x: m.a(F.celu(x, 0.1)),
    "argument-read-elsewhere": lambda m, x: m.c(F.celu(y := m.a(x), 0.1)) + y,
    "result-read-elsewhere": lambda m, x: m.c(y := F.celu(m.a(x), 0.1)) + y,
    "weight-read-elsewhere": lambda m, x: m.a(F.celu(m.a(x), 0.1)),
    "shifted": lambda m, x: m.c(F.celu(m.a(x), 0.1) + 1),
}


@pytest.mark.parametrize("name", KEPT)
def test_where_something_else_reads_or_writes_it_stays(name: str) -> None:
    assert {op for op, _ in arguments(KEPT[name], ROWS)} == {"celu"}


@pytest.mark.parametrize("forward", [lambda m, x: m.c(F.celu(m.a(x))), lambda m, x: m.c(F.celu(m.a(x), -0.5))])
def test_an_alpha_of_one_or_below_zero_stays(forward: Forward) -> None:
    member, _ = capture(Layers(forward).eval(), ROWS)
    assert activation_scales(member) is member


def test_weights_are_scaled_in_float64_and_only_where_it_changes_them() -> None:
    members = members_of(MOVED["chain"][0])
    graph, weights = batched(members, ROWS)
    first, last = members[2].a, members[2].c
    factor = torch.tensor(1 / 0.1, dtype=torch.float64)
    assert torch.equal(weights["a.weight_mul"][12:], (first.weight.double() * factor).float())
    assert torch.equal(weights["a.bias_mul"][12:], (first.bias.double() * factor).float())
    assert torch.equal(weights["c.bias"][2].flatten(), last.bias)
    graph, _ = batched(members_of(lambda m, x: m.c(F.celu(m.b(F.celu(m.a(x), 0.1)), 0.1))), ROWS)
    assert [weight.name for weight in graph.weights.packed if weight.name.startswith("b.")] == ["b.weight"]


@pytest.mark.parametrize("strategy", ["auto", "unrolled"])
def test_files_equal_the_loop(strategy: str, tmp_path: Path) -> None:
    members = members_of(MOVED["chain"][0])
    graph, weights = batched(members, ROWS, strategy=strategy)
    _, example = capture(members[0], ROWS)
    assert_equals_loop([onnx_run(graph, weights, tmp_path), torchscript_run(graph, weights)], members, graph, example)
    assert Counter(str(node.target) for node in graph.graph.nodes)["aten.celu.default"] == 0


def test_member_graph_is_not_changed() -> None:
    member, _ = capture(Layers(MOVED["chain"][0]).eval(), ROWS)
    before = str(member.graph)
    assert activation_scales(member) is not member
    assert str(member.graph) == before
