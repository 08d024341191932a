"""LSTM, GRU and RNN layers with a dynamic time dimension.

`torch.export` (2.13) runs its shape function of `aten.lstm` step by step, which fixes the sequence length. While a
member is exported, an operator of our own with a symbolic shape function stands in for it; afterwards the captured
nodes become the plain `aten` ops again, with shapes that are still symbolic. So the batched graph, TorchScript and
`.pt2` hold only torch's own ops; the ONNX target writes one LSTM, GRU or RNN node a layer and member for them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload
from torch.nn.modules import rnn as _rnn_module

from ensexport.batching.context import Context
from ensexport.batching.ladder import branched
from ensexport.batching.registry import rule
from ensexport.batching.source import source_line
from ensexport.errors import ExportError

aten = torch.ops.aten

_library: Any = torch.library
_LIBRARY = _library.Library("ensexport", "DEF")
_ARGUMENTS = "Tensor[] weights, bool has_biases, int num_layers, bool bidirectional, bool batch_first"
_LIBRARY.define(f"lstm(Tensor x, Tensor[] hx, {_ARGUMENTS}) -> (Tensor, Tensor, Tensor)")
for _kind in ("gru", "rnn_tanh", "rnn_relu"):
    _LIBRARY.define(f"{_kind}(Tensor x, Tensor hx, {_ARGUMENTS}) -> (Tensor, Tensor)")

ATEN_OF: dict[OpOverload, OpOverload] = {
    torch.ops.ensexport.lstm.default: aten.lstm.input,
    torch.ops.ensexport.gru.default: aten.gru.input,
    torch.ops.ensexport.rnn_tanh.default: aten.rnn_tanh.input,
    torch.ops.ensexport.rnn_relu.default: aten.rnn_relu.input,
}
STAND_IN_OF = {aten_op: own for own, aten_op in ATEN_OF.items()}


def _shape_of(x: torch.Tensor, hidden: torch.Tensor, num_directions: int) -> torch.Tensor:
    return x.new_empty((x.shape[0], x.shape[1], num_directions * hidden.shape[2]))


def _lstm_shapes(
    x: torch.Tensor,
    hx: list[torch.Tensor],
    weights: list[torch.Tensor],
    has_biases: bool,
    num_layers: int,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    output = _shape_of(x, hx[0], 2 if bidirectional else 1)
    return output, torch.empty_like(hx[0]), torch.empty_like(hx[1])


def _one_state_shapes(
    x: torch.Tensor,
    hx: torch.Tensor,
    weights: list[torch.Tensor],
    has_biases: bool,
    num_layers: int,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    return _shape_of(x, hx, 2 if bidirectional else 1), torch.empty_like(hx)


_library.register_fake("ensexport::lstm", _lstm_shapes)
for _kind in ("gru", "rnn_tanh", "rnn_relu"):
    _library.register_fake(f"ensexport::{_kind}", _one_state_shapes)


@contextlib.contextmanager
def symbolic_time() -> Iterator[None]:
    """Let `nn.LSTM`, `nn.GRU` and `nn.RNN` call our stand-ins while a member is exported.

    Packed sequences keep torch's own path.
    """
    functions: Any = vars(_rnn_module)["_VF"]
    replaced = {kind: getattr(functions, kind) for kind in ("lstm", "gru", "rnn_tanh", "rnn_relu")}
    for kind, original in replaced.items():
        setattr(functions, kind, _stand_in(kind, original))
    try:
        yield
    finally:
        for kind, original in replaced.items():
            setattr(functions, kind, original)


def _stand_in(kind: str, original: Callable[..., Any]) -> Callable[..., Any]:
    own = getattr(torch.ops.ensexport, kind).default

    def call(*args: Any) -> Any:
        is_packed = len(args) != 9 or not isinstance(args[3], bool)
        if is_packed:
            return original(*args)
        x, hx, weights, has_biases, num_layers, _dropout, _train, bidirectional, batch_first = args
        state = list(hx) if kind == "lstm" else hx
        return own(x, state, list(weights), has_biases, num_layers, bidirectional, batch_first)

    return call


def restore_aten(graph: fx.Graph) -> None:
    """Turn captured stand-ins into torch's own ops.

    After it, no node of the `ensexport` namespace is left; every fake value is as it was.
    """
    for node in graph.nodes:
        if node.target in ATEN_OF:
            x, hx, weights, has_biases, num_layers, bidirectional, batch_first = node.args
            node.target = ATEN_OF[node.target]
            node.args = (x, hx, weights, has_biases, num_layers, 0.0, False, bidirectional, batch_first)


def use_stand_ins(graph: fx.Graph) -> None:
    """The inverse of `restore_aten`: for a target that has layers as single nodes."""
    for node in graph.nodes:
        if node.target in STAND_IN_OF:
            x, hx, weights, has_biases, num_layers, _dropout, _train, bidirectional, batch_first = node.args
            per_layer = len(weights) // (num_layers * (2 if bidirectional else 1))
            if per_layer != (4 if has_biases else 2):
                line = source_line(node)
                raise ExportError(
                    f"cannot write ONNX: it has no form for an LSTM with proj_size{f' ({line})' if line else ''}.",
                    hint="Ship .ts or .pt2 for this model.",
                )
            node.target = STAND_IN_OF[node.target]
            node.args = (x, hx, weights, has_biases, num_layers, bidirectional, batch_first)


def _one_layer_a_member(op: OpOverload) -> Any:
    def batched(ctx: Context, *args: Any, **kwargs: Any) -> Any:
        return branched(ctx, op, args, kwargs)

    return batched


for _op in STAND_IN_OF:
    rule(_op)(_one_layer_a_member(_op))
