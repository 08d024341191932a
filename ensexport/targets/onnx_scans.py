"""ONNX forms of running maxima, minima, products and log-sums, which torch's exporter (2.13) lacks.

ONNX has one scan only, `CumSum`. Here each place looks back over all before it: quadratic in the length, but
without a loop.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from ensexport.targets.onnx_values import constant, ints, op

aten = torch.ops.aten


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """The translation table for `torch.onnx.export`."""
    return {
        aten.cummax.default: _cummax,
        aten.cummin.default: _cummin,
        aten.cumprod.default: _cumprod,
        aten.logcumsumexp.default: _logcumsumexp,
    }


def _order(rank: int, axis: int) -> tuple[list[int], list[int]]:
    """The permutation that brings an axis last, and the one that brings it back."""
    order = [*(dim for dim in range(rank) if dim != axis), axis]
    return order, [order.index(dim) for dim in range(rank)]


def _past(x: Any, axis: int) -> Any:
    """`(T, T)`: does this place (row) see that one (column)?"""
    zero, one = (constant(np.array(number, dtype=np.int64)) for number in (0, 1))
    places = op.Range(zero, op.Squeeze(op.Shape(x, start=axis, end=axis + 1)), one)
    return op.LessOrEqual(places, op.Unsqueeze(places, ints(1)))


def _extreme(x: Any, dim: int, lowest: Any, *, is_max: bool) -> tuple[Any, Any]:
    """The last of equal ones is taken, and a NaN stays."""
    rank = len(x.shape)
    axis = dim % rank
    order, back = _order(rank, axis)
    key = x
    if x.dtype.is_floating_point():
        key = op.Where(op.IsNaN(x), op.CastLike(constant(np.array(np.inf if is_max else -np.inf)), x), x)
    row, past = op.Unsqueeze(op.Transpose(key, perm=order), ints(-2)), _past(x, axis)
    seen = op.Where(past, row, op.CastLike(constant(lowest), x))
    best = (op.ReduceMax if is_max else op.ReduceMin)(seen, ints(-1), keepdims=1)
    is_best = op.Cast(op.And(past, op.Equal(row, best)), to=ir.DataType.INT32)
    last = op.ArgMax(is_best, axis=-1, keepdims=0, select_last_index=1)
    places = op.Transpose(last, perm=back)
    return op.GatherElements(x, places, axis=axis), places


def _bound(x: Any, *, is_max: bool) -> Any:
    """What is never chosen before a value that is seen."""
    if x.dtype.is_floating_point():
        return np.array(-np.inf if is_max else np.inf, dtype=np.float32)
    limits = np.iinfo(x.dtype.numpy())
    return np.array(limits.min if is_max else limits.max, dtype=x.dtype.numpy())


def _cummax(x: Any, dim: int) -> tuple[Any, Any]:
    return _extreme(x, dim, _bound(x, is_max=True), is_max=True)


def _cummin(x: Any, dim: int) -> tuple[Any, Any]:
    return _extreme(x, dim, _bound(x, is_max=False), is_max=False)


def _cumprod(x: Any, dim: int, dtype: int | None = None) -> Any:
    """Integers become int64, as in torch."""
    rank, wanted = len(x.shape), x.dtype if dtype is None else ir.DataType(dtype)
    if dtype is None and not x.dtype.is_floating_point():
        wanted = ir.DataType.INT64
    axis = dim % rank
    order, back = _order(rank, axis)
    row = op.Cast(op.Unsqueeze(op.Transpose(x, perm=order), ints(-2)), to=wanted)
    seen = op.Where(_past(x, axis), row, op.Cast(constant(np.array(1, dtype=np.int64)), to=wanted))
    return op.Transpose(op.ReduceProd(seen, ints(-1), keepdims=0), perm=back)


def _logcumsumexp(x: Any, dim: int) -> Any:
    """Each sum is taken relative to its own maximum."""
    rank = len(x.shape)
    axis = dim % rank
    order, back = _order(rank, axis)
    row = op.Unsqueeze(op.Transpose(x, perm=order), ints(-2))
    seen = op.Where(_past(x, axis), row, op.CastLike(constant(np.array(-np.inf, dtype=np.float32)), x))
    highest = op.ReduceMax(seen, ints(-1), keepdims=1)
    base = op.Where(op.IsInf(highest), op.CastLike(constant(np.array(0, dtype=np.float32)), x), highest)
    total = op.ReduceSum(op.Exp(op.Sub(seen, base)), ints(-1), keepdims=1)
    return op.Transpose(op.Squeeze(op.Add(op.Log(total), base), ints(-1)), perm=back)
