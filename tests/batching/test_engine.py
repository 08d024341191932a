"""The engine's own promises: what stays shared, the ladder's order, its report, and its last step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ensexport.batching.engine import batch_graph
from ensexport.errors import ExportError
from ensexport.stacking.state import named_tensors
from tests.batching.runs import assert_equals_loop, batched, capture, fx_run, onnx_run, torchscript_run
from tests.batching.table import TABLE, make_member

aten = torch.ops.aten


def _targets(graph: object) -> list[str]:
    return [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]  # type: ignore[attr-defined]


def _members(name: str, n_members: int) -> list[nn.Module]:
    return [make_member(TABLE[name], seed) for seed in range(n_members)]


def test_shared_input_meets_one_wide_gemm_then_batched_matmuls() -> None:
    graph, _ = batched(_members("mlp", 3), *TABLE["mlp"].inputs)
    targets = _targets(graph)
    assert targets.count("aten.linear.default") == 1
    assert targets.count("aten.bmm.default") == 2
    assert targets.count("aten.permute.default") == 1
    assert not [target for target in targets if "expand" in target]
    shapes = {weight.name: weight.shape(3) for weight in graph.weights.packed}
    assert shapes["0.weight"] == (48, 8)
    assert shapes["2.weight"] == (3, 16, 16)


def test_convnet_stays_in_channels_from_stem_to_head() -> None:
    graph, _ = batched(_members("residual", 3), *TABLE["residual"].inputs)
    targets = _targets(graph)
    assert not [target for target in targets if "expand" in target]
    assert targets.index("aten.permute.default") == len(targets) - 1, "one transpose, at the very end"
    groups = [node.args[6] for node in graph.graph.nodes if node.target is aten.conv2d.default]
    assert groups == [1, 3, 3, 3, 3]


def test_one_member_is_the_plain_model() -> None:
    graph, _ = batched(_members("mlp", 1), *TABLE["mlp"].inputs)
    assert _targets(graph).count("aten.linear.default") == 3
    assert "aten.bmm.default" not in _targets(graph)


def test_equal_backbone_is_stored_once_and_runs_once() -> None:
    members = [nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).eval() for _ in range(3)]
    for member in members[1:]:
        member[0].load_state_dict(members[0][0].state_dict())
    member, example = capture(members[0], "x:float32[batch,8]")
    graph = batch_graph(member, 3, shared_state={"0.weight", "0.bias"})
    kinds = {weight.name: weight.kind for weight in graph.weights.packed}
    assert kinds["0.weight"] == "shared"
    assert kinds["2.weight"] == "folded"
    weights = graph.weights.pack([named_tensors(module) for module in members], 3)
    assert weights["0.weight"].shape == (8, 8)
    assert_equals_loop([fx_run(graph, weights)], members, graph, example)


def test_members_are_contiguous_ranges_of_each_initializer() -> None:
    members = _members("mlp", 3)
    graph, weights = batched(members, *TABLE["mlp"].inputs)
    for index, member in enumerate(members):
        alone = dict(graph.weights.pieces(named_tensors(member)))
        for weight in graph.weights.packed:
            piece = alone[weight.piece]
            own = weights[weight.name].flatten()[index * piece.numel() : (index + 1) * piece.numel()]
            assert torch.equal(own, piece.flatten()), weight.name


def test_weights_only_subgraph_is_computed_when_packing() -> None:
    graph, _ = batched(_members("weight-norm", 3), *TABLE["weight-norm"].inputs)
    assert _targets(graph) == ["aten.linear.default", "aten.unflatten.int", "aten.permute.default"]


class _Odd(nn.Module):
    """Uses an op without a rule that vmap has none for either."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.searchsorted(self.scale.sort()[0], x)


def test_op_without_a_rule_goes_down_the_ladder_and_is_named() -> None:
    members = [_Odd().eval() for _ in range(3)]
    member, example = capture(members[0], "x:float32[batch,4,5]")
    graph = batch_graph(member, 3)
    (fallback,) = graph.plan.fallbacks
    assert fallback.op == "aten.searchsorted.Tensor"
    assert fallback.step == "unroll_op"
    assert fallback.source.startswith("test_engine.py:")
    assert fallback.source.endswith("in forward")
    weights = graph.weights.pack([named_tensors(module) for module in members], 3)
    assert_equals_loop([fx_run(graph, weights)], members, graph, example)


def test_op_that_vmap_batches_is_named_too() -> None:
    graph, _ = batched(_members("einsum-diagonal", 3), *TABLE["einsum-diagonal"].inputs)
    assert [(fallback.op, fallback.step) for fallback in graph.plan.fallbacks] == [("aten.einsum.default", "vmap")]


@pytest.mark.parametrize("name", ["mlp", "residual", "lstm", "two-inputs"])
@pytest.mark.parametrize("n_members", [1, 3])
def test_unrolled_strategy_equals_the_loop(name: str, n_members: int) -> None:
    members = _members(name, n_members)
    member, example = capture(members[0], *TABLE[name].inputs)
    graph = batch_graph(member, n_members, strategy="unrolled")
    assert graph.plan.strategy == "unrolled"
    weights = graph.weights.pack([named_tensors(module) for module in members], n_members)
    assert_equals_loop([fx_run(graph, weights)], members, graph, example)


def test_whole_graph_is_unrolled_when_an_op_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    from ensexport.batching import ladder

    monkeypatch.setattr(ladder, "STEPS", ())
    members = _members("mlp", 2)
    member, example = capture(members[0], *TABLE["mlp"].inputs)
    graph = batch_graph(member, 2)
    assert [fallback.step for fallback in graph.plan.fallbacks] == ["unroll_graph"]
    assert graph.plan.strategy == "unrolled"
    weights = graph.weights.pack([named_tensors(module) for module in members], 2)
    assert_equals_loop([fx_run(graph, weights)], members, graph, example)
    with pytest.raises(ExportError, match="cannot batch aten"):
        batch_graph(member, 2, strategy="stacked")


@pytest.mark.parametrize("member_axis", [0, 1])
def test_member_axis(member_axis: int) -> None:
    members = _members("mlp", 3)
    graph, weights = batched(members, *TABLE["mlp"].inputs, member_axis=member_axis)
    (result,) = fx_run(graph, weights)([torch.zeros(5, 8)])
    assert result.shape == ((3, 5, 3) if member_axis == 0 else (5, 3, 3))


def test_per_member_input_may_be_mixed_with_shared_ones() -> None:
    members = _members("two-inputs", 3)
    member, example = capture(members[0], *TABLE["two-inputs"].inputs)
    graph = batch_graph(member, 3, per_member=("image",))
    weights = graph.weights.pack([named_tensors(module) for module in members], 3)
    assert_equals_loop([fx_run(graph, weights)], members, graph, example)


def test_graph_does_not_grow_with_the_number_of_members() -> None:
    member, _ = capture(_members("residual", 1)[0], *TABLE["residual"].inputs)
    few, many = batch_graph(member, 4), batch_graph(member, 64)
    assert len(few.graph.nodes) == len(many.graph.nodes)


def test_non_persistent_buffers_that_differ_are_not_shared() -> None:
    class Scaled(nn.Module):
        def __init__(self, scale: float) -> None:
            super().__init__()
            self.register_buffer("scale", torch.full((4,), scale), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            return x * self.scale

    members = [Scaled(float(k)).eval() for k in range(3)]
    member, example = capture(members[0], "x:float32[batch,4]")
    graph = batch_graph(member, 3)
    weights = graph.weights.pack([named_tensors(module) for module in members], 3)
    assert_equals_loop([fx_run(graph, weights)], members, graph, example)


class _Experts(nn.Module):
    """Each row goes to one expert: how many rows an expert gets differs between members."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(4, 2)
        self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        choice, out = self.gate(x).argmax(-1), torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            (rows,) = torch.where(choice == number)
            out.index_add_(0, rows, expert(x[rows]))
        return out


def test_values_that_choose_how_many_rows_unroll_the_graph(tmp_path: Path) -> None:
    members = [_Experts().eval() for _ in range(3)]
    graph, weights = batched(members, "x:float32[batch,4]")
    assert graph.plan.strategy == "unrolled"
    assert [fallback.step for fallback in graph.plan.fallbacks] == ["unroll_graph"]
    _, example = capture(members[0], "x:float32[batch,4]")
    runs = [onnx_run(graph, weights, tmp_path), torchscript_run(graph, weights)]
    assert_equals_loop(runs, members, graph, example)
