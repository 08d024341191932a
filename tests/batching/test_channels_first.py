"""Linear layers between two permutes of an image: which become convolutions, which must not, and the numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import nn

from ensexport.batching.channels_first import channels_first
from tests.batching.runs import assert_equals_loop, batched, capture, fx_run

Forward = Callable[[nn.Module, torch.Tensor], torch.Tensor]


class Block(nn.Module):
    """A convolution, then what the test says, over images of 2 or 3 dims."""

    def __init__(self, forward: Forward, rank: int = 4) -> None:
        super().__init__()
        conv = nn.Conv2d if rank == 4 else nn.Conv3d
        self.conv, self.end = conv(3, 6, 3, padding=1), conv(6, 2, 1)
        self.norm = nn.LayerNorm(6)
        self.up, self.down, self.own = nn.Linear(6, 8), nn.Linear(8, 6), nn.Linear(6, 6, bias=False)
        self.gamma = nn.Parameter(torch.rand(6) + 0.5)
        self.place = nn.Parameter(torch.rand(5, 4, 6))
        self.flow = forward
        with torch.no_grad():
            self.norm.weight.add_(torch.rand(6))
            self.norm.bias.add_(torch.rand(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.flow(self, x)


def last(x: torch.Tensor) -> torch.Tensor:
    return x.permute(0, *range(2, x.dim()), 1)


def first(x: torch.Tensor) -> torch.Tensor:
    return x.permute(0, -1, *range(1, x.dim() - 1))


def mlp(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return m.down(torch.nn.functional.gelu(m.up(x)))


def ops(forward: Forward, spec: str, rank: int = 4) -> Counter[str]:
    members: list[nn.Module] = [Block(forward, rank).eval() for _ in range(3)]
    graph, weights = batched(members, spec)
    _, example = capture(members[0], spec)
    assert_equals_loop([fx_run(graph, weights)], members, graph, example)
    assert not graph.plan.fallbacks
    return Counter(node.target.__name__ for node in graph.graph.nodes if node.op == "call_function")


REWRITTEN: dict[str, Forward] = {
    "convnext": lambda m, x: first(m.gamma * mlp(m, m.norm(last(m.conv(x))))) + m.conv(x),
    "no-norm": lambda m, x: m.end(first(mlp(m, last(m.conv(x))))),
    "norm-behind": lambda m, x: m.end(first(m.norm(mlp(m, last(m.conv(x)))))),
    "sum-inside": lambda m, x: m.end(first((y := m.norm(last(m.conv(x)))) + mlp(m, y))),
    "two-begins": lambda m, x: m.end(first(m.own(last(m.conv(x)) + last(m.conv(x).sin())))),
    "two-ends": lambda m, x: m.end(first(y := mlp(m, last(m.conv(x))))) * m.end(first(y.sin())),
    "scalar": lambda m, x: m.end(first(mlp(m, last(m.conv(x))) * 0.5 + m.gamma.clamp(max=1.0))),
    "output": lambda m, x: first(mlp(m, last(m.conv(x)))),
    "of-the-input": lambda m, x: m.end(first(m.own(last(torch.cat([x, x.sin()], 1))))),
}


@pytest.mark.parametrize("name", REWRITTEN)
def test_linear_layers_are_convolutions(name: str) -> None:
    counted = ops(REWRITTEN[name], "x:float32[batch,3,5,4]")
    assert counted["bmm.default"] + counted["linear.default"] == 0


def test_sizes_of_images_stay_dynamic() -> None:
    counted = ops(REWRITTEN["convnext"], "x:float32[batch,3,height,width]")
    assert counted["bmm.default"] == 0


def test_volumes() -> None:
    counted = ops(REWRITTEN["norm-behind"], "x:float32[batch,3,2,3,4]", rank=5)
    assert counted["conv3d.default"] == 4


KEPT: dict[str, tuple[Forward, int]] = {
    "read-elsewhere": (lambda m, x: first(y := mlp(m, last(m.conv(x)))) + y.mean((1, 2))[:, :, None, None], 2),
    "softmax": (lambda m, x: m.end(first(m.own(last(m.conv(x))).softmax(-1))), 1),
    "each-place": (lambda m, x: m.end(first(m.own(last(m.conv(x))) + m.place)), 1),
    "given-back": (lambda m, x: mlp(m, last(m.conv(x))), 2),
    "other-order": (lambda m, x: m.end(m.own(last(m.conv(x))).permute(0, 3, 2, 1)), 1),
}


@pytest.mark.parametrize("name", KEPT)
def test_where_something_else_reads_or_reorders_they_stay(name: str) -> None:
    forward, count = KEPT[name]
    assert ops(forward, "x:float32[batch,3,5,4]")["bmm.default"] == count


def test_stretch_without_a_linear_layer_stays() -> None:
    member, _ = capture(Block(lambda m, x: m.end(first(m.norm(last(m.conv(x)))))).eval(), "x:float32[batch,3,5,4]")
    assert channels_first(member) is member


def test_member_graph_is_not_changed() -> None:
    member, _ = capture(Block(REWRITTEN["convnext"]).eval(), "x:float32[batch,3,5,4]")
    before = str(member.graph)
    assert channels_first(member) is not member
    assert str(member.graph) == before
