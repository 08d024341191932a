from __future__ import annotations

from collections.abc import Sequence

import pytest
from torch import Tensor, fx

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
