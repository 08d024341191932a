"""ONNX forms of ops that torch's exporter (2.13) has none for, or one that ONNX Runtime (1.31) crashes on.

Each function takes the op's arguments as ONNX values and adds nodes; sizes it needs must be static.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from ensexport.targets import onnx_adaptive, onnx_windows
from ensexport.targets.onnx_values import constant, ints, op

aten = torch.ops.aten


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """The translation table for `torch.onnx.export`."""
    return {
        aten._cdist_forward.default: _cdist,
        **onnx_windows.translations(),
        **onnx_adaptive.translations(),
        aten.embedding_bag.padding_idx: _embedding_bag,
        aten._embedding_bag.default: _embedding_bag,
        aten._embedding_bag_forward_only.default: _embedding_bag,
    }


def _cdist(x1: Any, x2: Any, p: float, compute_mode: int | None = None) -> Any:
    """`x1 (..., P, M)`, `x2 (..., R, M)` -> `(..., P, R)`: the p-norm of each difference."""
    difference = op.Sub(op.Unsqueeze(x1, ints(-2)), op.Unsqueeze(x2, ints(-3)))
    if p == 2:
        return op.ReduceL2(difference, ints(-1), keepdims=0)
    size = op.Abs(difference)
    if p == float("inf"):
        return op.ReduceMax(size, ints(-1), keepdims=0)
    power = op.CastLike(constant(np.array(p, dtype=np.float32)), size)
    return op.Pow(op.ReduceSum(op.Pow(size, power), ints(-1), keepdims=0), op.Reciprocal(power))


def _embedding_bag(
    weight: Any,
    ids: Any,
    offsets: Any,
    scale_grad_by_freq: bool = False,
    mode: int = 0,
    sparse: bool = False,
    per_sample_weights: Any = None,
    include_last_offset: bool = False,
    padding_idx: int | None = -1,
) -> tuple[Any, ...]:
    """`weight (V, D)`, `ids (M,)`, `offsets (B,)` -> `(B, D)`: sum (0), mean (1) or max (2) of each bag's rows.

    A matrix says which id lies in which bag, so bags of any length need no loop. The op's further results, which
    only its gradient reads, are stand-ins.
    """
    zero, one, end = (constant(np.array([value], dtype=np.int64)) for value in (0, 1, 2**62))
    count = op.Shape(ids)
    starts = op.Cast(offsets, to=ir.DataType.INT64)
    if include_last_offset:
        ends = op.Slice(starts, one, end, zero)
        starts = op.Slice(starts, zero, constant(np.array([-1], dtype=np.int64)), zero)
    else:
        ends = op.Concat(op.Slice(starts, one, end, zero), count, axis=0)
    scalar = constant(np.array(0, dtype=np.int64))
    places = op.Range(scalar, op.Squeeze(count), constant(np.array(1, dtype=np.int64)))
    inside = op.And(op.GreaterOrEqual(places, op.Unsqueeze(starts, one)), op.Less(places, op.Unsqueeze(ends, one)))
    if padding_idx is not None and padding_idx >= 0:
        padding = op.CastLike(constant(np.array(padding_idx, dtype=np.int64)), ids)
        inside = op.And(inside, op.Not(op.Equal(ids, padding)))
    rows = op.Gather(weight, ids, axis=0)
    if per_sample_weights is not None:
        rows = op.Mul(rows, op.Unsqueeze(per_sample_weights, one))
    if mode == 2:
        masked = op.Where(op.Unsqueeze(inside, ints(2)), op.Unsqueeze(rows, zero), op.CastLike(_lowest(), rows))
        is_empty = op.Not(op.Cast(op.ReduceMax(op.Cast(inside, to=ir.DataType.INT32), ints(1)), to=ir.DataType.BOOL))
        nothing = op.CastLike(constant(np.array(0, dtype=np.float32)), rows)
        return op.Where(is_empty, nothing, op.ReduceMax(masked, ints(1), keepdims=0)), starts, starts, starts
    member = op.CastLike(inside, rows)
    total = op.MatMul(member, rows)
    if mode == 1:
        counts = op.ReduceSum(member, ints(1), keepdims=1)
        total = op.Div(total, op.Max(counts, op.CastLike(constant(np.array(1, dtype=np.float32)), rows)))
    return total, starts, starts, starts


def _lowest() -> Any:
    return constant(np.array(-np.inf, dtype=np.float32))
