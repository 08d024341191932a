"""Capturing one member: what is refused, with the user's line, and which dims come out dynamic."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ensexport.errors import (
    ControlFlowError,
    EnsexportError,
    FrozenDimError,
    ModelInputError,
    ModelOutputError,
    MutationError,
    RandomModelError,
)
from tests.batching.runs import capture


class _Model(nn.Module):
    def __init__(self, function: Callable[[nn.Module, Tensor], object]) -> None:
        super().__init__()
        self.function = function
        self.layer = nn.Linear(4, 4)
        self.register_buffer("count", torch.zeros(()))
        self.eval()

    def forward(self, x: Tensor) -> object:
        return self.function(self, x)


def _count(module: nn.Module, x: Tensor) -> Tensor:
    module.count += 1
    return x * 1


def _branch(module: nn.Module, x: Tensor) -> Tensor:
    if x.sum() > 0:
        return module.layer(x)
    return x


@pytest.mark.parametrize(
    ("function", "error", "facts"),
    [
        pytest.param(lambda m, x: x + torch.rand(4), RandomModelError, ["differs between two runs"], id="random"),
        pytest.param(
            lambda m, x: F.dropout(m.layer(x), 0.5), RandomModelError, ["differs between two runs"], id="dropout-on"
        ),
        pytest.param(
            lambda m, x: x + 0 * torch.rand(4), RandomModelError, ["aten.rand", "test_member_graph.py:"], id="hidden"
        ),
        pytest.param(_branch, ControlFlowError, ["test_member_graph.py:", "in _branch"], id="branch"),
        pytest.param(
            lambda m, x: x * int(x.abs().max()), ControlFlowError, ["test_member_graph.py:"], id="value-as-int"
        ),
        pytest.param(
            lambda m, x: m.layer(x).reshape(3, -1), FrozenDimError, ["'batch' (fixed at 3)"], id="frozen-batch"
        ),
        pytest.param(_count, MutationError, ["'count'"], id="writes-buffer"),
        pytest.param(lambda m, x: None, ModelOutputError, ["no tensor"], id="nothing"),
        pytest.param(lambda m, x: (x, "text"), ModelOutputError, ["str", "'text'"], id="text-output"),
        pytest.param(
            lambda m, x: m.layer(x[:, :3]), ModelInputError, ["does not accept", "test_member_graph.py:"], id="shape"
        ),
    ],
)
def test_refused(
    function: Callable[[nn.Module, Tensor], object], error: type[EnsexportError], facts: list[str]
) -> None:
    with pytest.raises(error) as caught:
        capture(_Model(function), "x:float32[batch,4]")
    for fact in facts:
        assert fact in str(caught.value), str(caught.value)


def test_named_dims_are_dynamic_and_their_bounds_reported() -> None:
    member, _ = capture(nn.Conv2d(3, 4, 3).eval(), "x:float32[batch,3,height,width]")
    assert set(member.dim_ranges) == {"batch", "height", "width"}
    assert member.dim_ranges["batch"] == (1, None)
    assert set(member.symbols.values()) == {"batch", "height", "width"}


def test_bound_of_a_position_table_is_taken_over() -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.rand(20, 4))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.table[: x.shape[1]]

    member, _ = capture(Positions().eval(), "x:float32[batch,seq,4]")
    assert member.dim_ranges["seq"][1] == 20


def test_equal_names_in_two_inputs_are_one_dim() -> None:
    class Sum(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return a + b

    member, _ = capture(Sum().eval(), "a:float32[batch,4]", "b:float32[batch,4]")
    assert set(member.symbols.values()) == {"batch"}


@pytest.mark.parametrize(
    "inplace",
    [
        pytest.param(lambda x: x.mul(2).relu_().add_(1), id="chain"),
        pytest.param(lambda x: x.mul(2).flatten(1).relu_(), id="through-view"),
        pytest.param(lambda x: F.relu(x.clone(), inplace=True), id="clone"),
    ],
)
def test_in_place_ops_are_taken_out(inplace: Callable[[Tensor], Tensor]) -> None:
    member, _ = capture(_Model(lambda m, x: inplace(x)), "x:float32[batch,4]")
    for node in member.graph.nodes:
        if node.op == "call_function":
            assert not getattr(node.target, "_schema", None) or not node.target._schema.is_mutable, node


def test_in_place_write_through_a_view_keeps_its_meaning() -> None:
    def write(module: nn.Module, x: Tensor) -> Tensor:
        y = x * 2
        y[:, 1:3].add_(10)
        return y

    member, example = capture(_Model(write), "x:float32[batch,4]")
    (result,) = member.program.module()(*example.feed.values())
    assert torch.equal(result, example.outputs["output"])


def test_recurrent_layers_come_back_as_torch_ops_with_dynamic_time() -> None:
    member, _ = capture(nn.LSTM(3, 4, batch_first=True).eval(), "x:float32[batch,time,3]")
    targets = [str(node.target) for node in member.graph.nodes if node.op == "call_function"]
    assert "aten.lstm.input" in targets
    assert not [target for target in targets if target.startswith("ensexport")]
    assert set(member.symbols.values()) == {"batch", "time"}


def test_no_grad_and_autocast_off_regions_are_flat() -> None:
    def regions(module: nn.Module, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = module.layer(x)
        with torch.autocast("cpu", enabled=False):
            return y.float() * 2

    member, example = capture(_Model(regions), "x:float32[batch,4]")
    assert not [node for node in member.graph.nodes if node.op == "get_attr"]
    (result,) = member.program.module()(*example.feed.values())
    assert torch.equal(result, example.outputs["output"])


def test_equations_are_spelled_out() -> None:
    class Net(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return torch.einsum("...ib,ib->...i", x, x[0]), torch.einsum("z...,...", x, x[0]), torch.einsum("ijk", x)

    member, _ = capture(Net(), "x:float32[batch,4,6]")
    equations = [node.args[0] for node in member.graph.nodes if "einsum" in str(node.target)]
    assert equations == ["aib,ib->ai", "zba,ba->baz", "ijk"]


def test_bound_that_is_no_whole_number_of_steps_is_no_obstacle() -> None:
    """Three tokens a step and 128 places: torch.export with a named dim fails on `3 * steps <= 128`.

    Without a name it captures the member, and leaves the bound to the run.
    """

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.places = nn.Parameter(torch.randn(1, 128))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = torch.stack([x, x, x], 2).flatten(1)
            return y + self.places[:, : y.shape[1]]

    member, _ = capture(Net(), "x:float32[batch,steps]")
    assert member.dim_ranges["steps"][0] == 1
    assert isinstance(member.output_values[0].shape[1], torch.SymInt)
