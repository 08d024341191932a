from __future__ import annotations

import pytest
from torch import fx

from ensexport.batching.engine import batch_graph
from ensexport.batching.member_graph import MemberGraph
from ensexport.batching.placement import HEAVY, Placement
from ensexport.stacking.state import named_tensors
from tests.batching.runs import assert_equals_loop, capture, fx_run
from tests.batching.table import FIXED, TABLE, make_member


def every_second(member: MemberGraph, n_members: int) -> frozenset[fx.Node]:
    """The first, third, ... heavy op runs apart: a switch at each."""
    return frozenset([node for node in member.graph.nodes if node.target in HEAVY][::2])


def all_apart(member: MemberGraph, n_members: int) -> frozenset[fx.Node]:
    return frozenset(node for node in member.graph.nodes if node.target in HEAVY)


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
