"""LSTM, GRU and RNN layers as single ONNX nodes.

Gate order differs: torch packs LSTM gates as input, forget, cell, output and GRU gates as reset, update, new; ONNX
wants input, output, forget, cell and update, reset, hidden. The weights are reordered by nodes that ONNX Runtime
folds when the session is made.

Source: https://onnx.ai/onnx/operators/onnx__LSTM.html, onnx__GRU.html, onnx__RNN.html (opset 14).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ensexport.batching import recurrent
from ensexport.targets.onnx_values import op

_GATES = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN": (0,)}


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """The translation table for `torch.onnx.export`."""
    own = torch.ops.ensexport
    assert recurrent.ATEN_OF
    return {
        own.lstm.default: _lstm,
        own.gru.default: _gru,
        own.rnn_tanh.default: _rnn_tanh,
        own.rnn_relu.default: _rnn_relu,
    }


def _lstm(x: Any, hx: Any, w: Any, has_biases: bool, num_layers: int, bidirectional: bool, batch_first: bool) -> Any:
    return _layers("LSTM", "", x, hx, w, has_biases, num_layers, bidirectional, batch_first)


def _gru(x: Any, hx: Any, w: Any, has_biases: bool, num_layers: int, bidirectional: bool, batch_first: bool) -> Any:
    return _layers("GRU", "", x, [hx], w, has_biases, num_layers, bidirectional, batch_first)


def _rnn_tanh(
    x: Any, hx: Any, w: Any, has_biases: bool, num_layers: int, bidirectional: bool, batch_first: bool
) -> Any:
    return _layers("RNN", "Tanh", x, [hx], w, has_biases, num_layers, bidirectional, batch_first)


def _rnn_relu(
    x: Any, hx: Any, w: Any, has_biases: bool, num_layers: int, bidirectional: bool, batch_first: bool
) -> Any:
    return _layers("RNN", "Relu", x, [hx], w, has_biases, num_layers, bidirectional, batch_first)


def _layers(
    kind: str,
    activation: str,
    x: Any,
    states: Sequence[Any],
    weights: Sequence[Any],
    has_biases: bool,
    num_layers: int,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Any, ...]:
    """All layers of one module; each is one node. Returns the output and the final states."""
    directions = 2 if bidirectional else 1
    per_direction = 4 if has_biases else 2
    y = op.Transpose(x, perm=[1, 0, 2]) if batch_first else x
    finals: list[list[Any]] = [[] for _ in states]
    for layer in range(num_layers):
        first = layer * directions
        own = [weights[(first + d) * per_direction : (first + d + 1) * per_direction] for d in range(directions)]
        initial = [_rows(state, first, directions, num_layers * directions) for state in states]
        results = _node(kind, y, initial, own, has_biases, bidirectional, activation)
        # (T, directions, B, H) -> (T, B, directions * H)
        y = op.Reshape(op.Transpose(results[0], perm=[0, 2, 1, 3]), op.Constant(value_ints=[0, 0, -1]))
        for final, result in zip(finals, results[1:], strict=True):
            final.append(result)
    y = op.Transpose(y, perm=[1, 0, 2]) if batch_first else y
    return (y, *(final[0] if len(final) == 1 else op.Concat(*final, axis=0) for final in finals))


def _rows(state: Any, first: int, count: int, total: int) -> Any:
    if count == total:
        return state
    return op.Slice(
        state, op.Constant(value_ints=[first]), op.Constant(value_ints=[first + count]), op.Constant(value_ints=[0])
    )


def _node(
    kind: str,
    x: Any,
    initial: Sequence[Any],
    own: Sequence[Sequence[Any]],
    has_biases: bool,
    bidirectional: bool,
    activation: str,
) -> tuple[Any, ...]:
    w = _joined([_reordered(direction[0], kind) for direction in own])
    r = _joined([_reordered(direction[1], kind) for direction in own])
    b = None
    if has_biases:
        b = _joined([op.Concat(_reordered(d[2], kind), _reordered(d[3], kind), axis=0) for d in own])
    hidden = int(own[0][1].shape[1])
    options: dict[str, Any] = {"hidden_size": hidden, "direction": "bidirectional" if bidirectional else "forward"}
    if kind == "LSTM":
        return tuple(op.LSTM(x, w, r, b, None, initial[0], initial[1], **options))
    if kind == "GRU":
        return tuple(op.GRU(x, w, r, b, None, initial[0], linear_before_reset=1, **options))
    return tuple(op.RNN(x, w, r, b, None, initial[0], activations=[activation] * len(own), **options))


def _reordered(weight: Any, kind: str) -> Any:
    order = _GATES[kind]
    if order == tuple(range(len(order))):
        return weight
    size = int(weight.shape[0]) // len(order)
    gates = [
        op.Slice(
            weight,
            op.Constant(value_ints=[g * size]),
            op.Constant(value_ints=[(g + 1) * size]),
            op.Constant(value_ints=[0]),
        )
        for g in order
    ]
    return op.Concat(*gates, axis=0)


def _joined(parts: Sequence[Any]) -> Any:
    stacked = [op.Unsqueeze(part, op.Constant(value_ints=[0])) for part in parts]
    return stacked[0] if len(stacked) == 1 else op.Concat(*stacked, axis=0)
