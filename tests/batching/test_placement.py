from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, fx, nn

from ensexport.batching.engine import batch_graph
from ensexport.batching.placement import Placement, Site
from ensexport.stacking.state import named_tensors
from tests.batching.runs import assert_equals_loop, capture, fx_run
from tests.batching.table import FIXED, TABLE, make_member


def every_second(site: Site) -> frozenset[fx.Node]:
    """The first, third, ... heavy op runs apart: a switch at each."""
    return frozenset(site.heavy[::2])


def all_apart(site: Site) -> frozenset[fx.Node]:
    return frozenset(site.heavy)


ROWS = ("linear-3d", "baddbmm", "conv2d-groups", "conv2d-dynamic-size", "conv-transpose2d", "conv2d-channels-last-mlp",
        "unet3d", "attention-rotary", "window-attention", "lstm", "matmul-twice", "spatial-transformer")  # fmt: skip


@pytest.mark.parametrize("placement", [every_second, all_apart])
@pytest.mark.parametrize("name", ROWS)
def test_ops_may_run_once_a_member(name: str, placement: Placement) -> None:
    row = TABLE[name]
    members = [make_member(row, seed) for seed in range(3)]
    member, example = capture(members[0], *row.inputs)
    graph = batch_graph(member, 3, placement=placement)
    weights = graph.weights.pack([named_tensors(module) for module in members], 3)
    assert_equals_loop([fx_run(graph, weights)], members, graph, example, fixed=FIXED.get(name, ()))


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("per_member", [False, True])
@pytest.mark.parametrize(("name", "chunks"), [("linear-3d", 2), ("unet3d", 3), ("attention-rotary", 2), ("lstm", 5)])
def test_members_may_run_in_chunks(name: str, chunks: int, per_member: bool, axis: int) -> None:
    row = TABLE[name]
    members = [make_member(row, seed) for seed in range(5)]
    member, example = capture(members[0], *row.inputs)
    names = [text.partition(":")[0] for text in row.inputs if per_member]
    graph = batch_graph(member, 5, per_member=names, member_axis=axis, chunks=chunks)
    weights = graph.weights.pack([named_tensors(module) for module in members], 5)
    run = fx_run(graph, weights)
    moved = [value.dim() for value in member.output_values]

    def members_first(tensors: Sequence[Tensor]) -> list[Tensor]:
        return [value.movedim(min(axis, rank), 0) for value, rank in zip(run(tensors), moved, strict=True)]

    assert_equals_loop([members_first], members, graph, example, fixed=FIXED.get(name, ()))


def test_chunks_split_the_weights_by_member() -> None:
    row = TABLE["linear-3d"]
    member, _ = capture(make_member(row, 0), *row.inputs)
    weights = batch_graph(member, 5, chunks=2).weights.packed
    assert {weight.members for weight in weights} == {(0, 2), (2, 5)}


def test_layers_that_run_apart_keep_their_results_apart() -> None:
    row = TABLE["lstm"]
    member, _ = capture(make_member(row, 0), *row.inputs)
    targets = [str(node.target) for node in batch_graph(member, 3).graph.nodes]
    assert targets.count("aten.stack.default") <= 1


class Residual(nn.Module):
    """Tokens of an image with one more in front, and two residual sums, as a ViT has them."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.token = nn.Conv2d(3, 8, 2, 2), nn.Parameter(torch.randn(1, 1, 8))
        self.norms = nn.ModuleList(nn.LayerNorm(8) for _ in range(2))
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = x + layer(norm(x))
        return x.mean(1)


def test_residual_sums_follow_the_layers_behind_them() -> None:
    members = [Residual().eval() for _ in range(3)]
    member, example = capture(members[0], "x:float32[batch,3,8,8]")
    graph = batch_graph(member, 3, placement=all_apart)
    weights = graph.weights.pack([named_tensors(module) for module in members], 3)
    assert_equals_loop([fx_run(graph, weights)], members, graph, example)
    targets = [str(node.target) for node in graph.graph.nodes]
    joins = sum(targets.count(f"aten.{name}.default") for name in ("stack", "cat"))
    assert joins == 3 + 1, "the members' tokens in front, and the outputs"


def test_one_member_is_the_plain_model_also_on_an_input_of_its_own() -> None:
    row = TABLE["linear-3d"]
    member, _ = capture(make_member(row, 0), *row.inputs)
    graph = batch_graph(member, 1, per_member=[text.partition(":")[0] for text in row.inputs])
    targets = {str(node.target) for node in graph.graph.nodes}
    assert "aten.linear.default" in targets
    assert "aten.bmm.default" not in targets
