"""Batched graphs in another dtype: what runs in 16 bits, what stays in float32, and that the values are right."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn

from ensexport.batching.converting import convert, dtype_of
from ensexport.batching.engine import BatchedGraph, batch_graph
from ensexport.batching.examples import random_feed
from ensexport.dtypes import Conversion
from ensexport.errors import WeightRangeError
from ensexport.stacking.baseline import run_member
from ensexport.stacking.state import named_tensors
from tests.batching.runs import capture, fx_run, onnx_run, torchscript_run
from tests.batching.table import TABLE, make_member

QUICK = (
    *("mlp", "conv2d", "lstm", "attention", "embedding", "avgpool3d", "groupnorm-rows", "weight-norm"),
    *("localresponsenorm", "adaptive-avgpool3d-any-size"),
)
ERRORS = {"float16": 6e-3, "bfloat16": 5e-2}


def converted(
    modules: Sequence[nn.Module], spec: str, inside: str = "float16", io: str = "float32", members: str = "float32"
) -> tuple[BatchedGraph, dict[str, Tensor]]:
    member, _ = capture(modules[0], spec)
    graph = convert(batch_graph(member, len(modules)), Conversion(members, inside, io))
    return graph, graph.weights.pack([named_tensors(module) for module in modules], len(modules))


def nodes_of(graph: BatchedGraph, name: str) -> list[fx.Node]:
    return [node for node in graph.graph.nodes if f"aten.{name}." in str(node.target)]


def dtypes_of(graph: BatchedGraph, name: str) -> set[torch.dtype]:
    """What the operands of an op are."""
    return {arg.meta["val"].dtype for node in nodes_of(graph, name) for arg in node.all_input_nodes}


def _cases() -> list[object]:
    return [
        pytest.param(name, dtype, marks=() if name in QUICK and dtype == "float16" else (pytest.mark.slow,))
        for name in TABLE
        for dtype in ERRORS
    ]


@pytest.mark.parametrize(("name", "dtype"), _cases())
def test_row_is_within_the_dtypes_rounding(name: str, dtype: str, tmp_path: Path) -> None:
    row = TABLE[name]
    modules = [make_member(row, seed) for seed in range(2)]
    member, example = capture(modules[0], *row.inputs)
    graph = convert(batch_graph(member, 2), Conversion("float32", dtype, "float32"))
    weights = graph.weights.pack([named_tensors(module) for module in modules], 2)
    feed = random_feed(member.specs, {**example.sizes} | ({"batch": 3} if "batch" in example.sizes else {}), 0)
    expected = [run_member(module, feed) for module in modules]
    runs = [fx_run(graph, weights), torchscript_run(graph, weights)]
    for run in [*runs, onnx_run(graph, weights, tmp_path)] if dtype == "float16" else runs:
        with torch.no_grad():
            results = run(list(feed.values()))
        for output, result in zip(example.outputs, results, strict=True):
            reference = torch.stack([outputs[output] for outputs in expected])
            assert (result.dtype, result.shape) == (reference.dtype, reference.shape)
            if reference.is_floating_point() and reference.numel():
                assert torch.equal(result.isfinite(), reference.isfinite())
                finite = reference.isfinite()
                error = (result - reference)[finite].abs().max() if finite.any() else torch.zeros(())
                assert error <= ERRORS[dtype] * max(float(reference[finite].abs().max()), 1e-30)


def _net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 5), nn.Softmax(-1)
    ).eval()


def test_products_are_in_16_bits_norms_and_softmax_in_32() -> None:
    graph, weights = converted([_net(), _net()], "x:float32[batch,3,8,8]")
    assert dtypes_of(graph, "conv2d") == {torch.float16}
    assert dtypes_of(graph, "group_norm") == {torch.float32}
    assert dtypes_of(graph, "softmax") | dtypes_of(graph, "_softmax") == {torch.float32}
    assert dtypes_of(graph, "relu") == {torch.float16}
    kinds = {name: tensor.dtype for name, tensor in weights.items()}
    assert kinds["0.weight"] == kinds["4.weight"] == torch.float16
    assert kinds["1.weight"] == torch.float32
    assert [node.meta["val"].dtype for node in (*graph.inputs, *graph.outputs)] == [torch.float32] * 2


def test_inputs_and_outputs_have_the_dtype_asked_for(tmp_path: Path) -> None:
    graph, weights = converted([_net(), _net()], "x:float32[batch,3,8,8]", io="float16")
    assert [node.meta["val"].dtype for node in (*graph.inputs, *graph.outputs)] == [torch.float16] * 2
    x = torch.randn(2, 3, 8, 8).half()
    for run in (fx_run(graph, weights), torchscript_run(graph, weights), onnx_run(graph, weights, tmp_path)):
        assert run([x])[0].dtype == torch.float16


class _Rotary(nn.Module):
    """Turns queries by angles made of positions: in float16 those of position 1000 would be off by half a radian."""

    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Linear(4, 4)
        self.register_buffer("frequencies", torch.tensor([1.0, 0.1]))

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        angles = positions.float().unsqueeze(-1) @ self.frequencies.unsqueeze(0)
        a, b = self.q(x).chunk(2, -1)
        return torch.cat([a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos()], -1)


def test_angles_of_a_rotary_embedding_stay_in_float32() -> None:
    modules = [_Rotary(), _Rotary()]
    member, _ = capture(modules[0], "x:float32[batch,4]", "positions:int64[batch]")
    graph = convert(batch_graph(member, 2, shared_state={"frequencies"}), Conversion("float32", "float16", "float32"))
    weights = graph.weights.pack([named_tensors(module) for module in modules], 2)
    x, positions = torch.randn(3, 4), torch.tensor([0, 500, 1000])
    expected = torch.stack([module(x, positions) for module in modules])
    assert (fx_run(graph, weights)([x, positions])[0] - expected).abs().max() < 4e-3
    assert dtypes_of(graph, "cos") == {torch.float32}


class _Masked(nn.Module):
    """Attention under a mask of large finite numbers, where one query sees nothing: torch returns the average."""

    def __init__(self, *, spelled_out: bool) -> None:
        super().__init__()
        self.v = nn.Linear(4, 4)
        self.spelled_out = spelled_out

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        bias = (1.0 - mask.to(x.dtype)) * torch.finfo(torch.float32).min
        v = self.v(x)
        if self.spelled_out:
            return torch.softmax(v @ v.transpose(1, 2) + bias[:, None], -1) @ v
        return nn.functional.scaled_dot_product_attention(v, v, v, attn_mask=bias[:, None].expand(-1, 3, -1))


@pytest.mark.parametrize("spelled_out", [True, False])
def test_masks_beyond_float16_neither_overflow_nor_make_nan(spelled_out: bool, tmp_path: Path) -> None:
    modules = [_Masked(spelled_out=spelled_out) for _ in range(2)]
    member, _ = capture(modules[0], "x:float32[batch,3,4]", "mask:int64[batch,3]")
    graph = convert(batch_graph(member, 2), Conversion("float32", "float16", "float32"))
    weights = graph.weights.pack([named_tensors(module) for module in modules], 2)
    x, mask = torch.randn(2, 3, 4), torch.tensor([[1, 1, 0], [0, 0, 0]])
    expected = torch.stack([module(x, mask) for module in modules])
    for run in (fx_run(graph, weights), torchscript_run(graph, weights), onnx_run(graph, weights, tmp_path)):
        result = run([x, mask])[0]
        assert (result - expected).abs().max() < 6e-3


def test_small_numbers_added_to_denominators_are_not_lost() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(4))

        def forward(self, x: Tensor) -> Tensor:
            y = x * self.w
            return y / (y.abs() + 1e-8)

    modules = [Scaled(), Scaled()]
    graph, weights = converted(modules, "x:float32[batch,4]", io="float16")
    assert not fx_run(graph, weights)([torch.zeros(1, 4).half()])[0].isnan().any()


def test_weights_are_rounded_once_from_what_they_are() -> None:
    module = nn.Linear(2, 1, bias=False).double()
    # Float32 would round this to 1 + 2^-11, halfway between two float16, and float16 then down to 1.
    module.weight.data = torch.tensor([[1 + 2**-11 + 2**-40, 1.0]], dtype=torch.float64)
    graph, weights = converted([module, module], "x:float64[batch,2]", io="float64", members="float64")
    assert graph.graph.find_nodes(op="output")
    assert weights["weight"].flatten()[0].item() == 1 + 2**-10


def test_a_weight_beyond_the_range_is_refused_by_member_and_name() -> None:
    modules = [nn.Linear(2, 1), nn.Linear(2, 1)]
    modules[1].weight.data[0, 1] = 7e4
    expected = r"member 1: 'weight' holds 70000, beyond the largest float16, 65504 \(1 of 2 numbers\)"
    with pytest.raises(WeightRangeError, match=expected):
        converted(modules, "x:float32[batch,2]")
    graph, weights = converted(modules, "x:float32[batch,2]", "bfloat16")
    assert weights["weight"].isfinite().all()
    assert graph.n_members == 2


def test_the_members_dtype_is_that_of_most_numbers() -> None:
    half, single = torch.zeros(10, dtype=torch.float16), torch.zeros(3)
    assert dtype_of([half, single, torch.zeros(99, dtype=torch.int64)], []) == torch.float16
    assert dtype_of([], [torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.float64)]) == torch.float64
    assert dtype_of([], []) == torch.float32


def test_sizes_that_torch_would_look_at_stay_dynamic() -> None:
    """Torch chooses the kernel of a float32 convolution by its sizes."""
    modules = [nn.Conv2d(1, 8, 1) for _ in range(2)]
    graph, weights = converted(modules, "x:float32[batch,1,h,w]", "float32")
    run = fx_run(graph, weights)
    for size in (5, 33):
        x = torch.randn(2, 1, size, size + 1)
        expected = torch.stack([module(x) for module in modules])
        torch.testing.assert_close(run([x])[0], expected)
