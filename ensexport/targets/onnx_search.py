"""ONNX forms of looking up and ranking: `searchsorted`, `bucketize`, `sort`, `median`, `kthvalue`, `mode`.

torch's exporter (2.13) has none but for `sort`, which puts NaN anywhere. A search counts the boundaries below each
value: that is as many comparisons as there are pairs, and needs no loop. NaN ranks highest, as in torch.
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
        aten.searchsorted.Tensor: _searchsorted,
        aten.searchsorted.Scalar: _searchsorted_scalar,
        aten.bucketize.Tensor: _bucketize,
        aten.bucketize.Scalar: _bucketize_scalar,
        aten.sort.default: _sort,
        aten.sort.stable: _sort_stable,
        aten.median.default: _median_of_all,
        aten.median.dim: _median,
        aten.nanmedian.default: _nanmedian_of_all,
        aten.nanmedian.dim: _nanmedian,
        aten.kthvalue.default: _kthvalue,
        aten.mode.default: _mode,
    }


def _searchsorted(
    sorted_sequence: Any,
    x: Any,
    out_int32: bool = False,
    right: bool = False,
    side: str | None = None,
    sorter: Any = None,
) -> Any:
    """`sorted_sequence (n,)` or `(..., n)`, `x (...)` or `(..., m)`: how many boundaries lie before each value.

    A NaN lies behind all of them: hence the negated comparisons.
    """
    rank = len(sorted_sequence.shape)
    if sorter is not None:
        sorted_sequence = op.GatherElements(sorted_sequence, sorter, axis=-1)
    boundaries = sorted_sequence if rank == 1 else op.Unsqueeze(sorted_sequence, ints(-2))
    values = op.Unsqueeze(x, ints(-1))
    is_behind = op.Greater if right or side == "right" else op.GreaterOrEqual
    before = op.Cast(op.Not(is_behind(boundaries, values)), to=ir.DataType.INT64)
    count = op.ReduceSum(before, ints(-1), keepdims=0)
    return op.Cast(count, to=ir.DataType.INT32) if out_int32 else count


def _searchsorted_scalar(
    sorted_sequence: Any,
    x: float,
    out_int32: bool = False,
    right: bool = False,
    side: str | None = None,
    sorter: Any = None,
) -> Any:
    value = op.CastLike(constant(np.array(x)), sorted_sequence)
    return _searchsorted(sorted_sequence, value, out_int32, right, side, sorter)


def _bucketize(x: Any, boundaries: Any, out_int32: bool = False, right: bool = False) -> Any:
    return _searchsorted(boundaries, x, out_int32, right)


def _bucketize_scalar(x: float, boundaries: Any, out_int32: bool = False, right: bool = False) -> Any:
    return _searchsorted_scalar(boundaries, x, out_int32, right)


def _is_nan(x: Any) -> Any:
    """None for integers, which cannot be NaN."""
    return op.IsNaN(x) if x.dtype.is_floating_point() else None


def _ranked(x: Any, count: Any, axis: int, largest: bool = False) -> Any:
    """Places of the `count` smallest elements along an axis, smallest first; of equal ones the first goes first."""
    nan = _is_nan(x)
    if nan is not None:
        x = op.Where(nan, op.CastLike(constant(np.array(np.inf, dtype=np.float32)), x), x)
    elif x.dtype.bitwidth < 32:
        x = op.Cast(x, to=ir.DataType.INT32)
    return op.TopK(x, count, axis=axis, largest=int(largest), sorted=1)[1]


def _length(x: Any, axis: int) -> Any:
    """`(1,)`: the size of one dim."""
    size = x.shape[axis]
    return ints(size) if isinstance(size, int) else op.Shape(x, start=axis, end=axis + 1)


def _sort(x: Any, dim: int = -1, descending: bool = False) -> tuple[Any, Any]:
    """Equal elements stay in order."""
    if len(x.shape) == 0:
        return op.Identity(x), constant(np.array(0, dtype=np.int64))
    axis = dim % len(x.shape)
    places = _ranked(x, _length(x, axis), axis, descending)
    return op.GatherElements(x, places, axis=axis), places


def _sort_stable(x: Any, stable: bool | None = None, dim: int = -1, descending: bool = False) -> tuple[Any, Any]:
    return _sort(x, dim, descending)


def _taken(x: Any, places: Any, axis: int, keepdim: bool) -> tuple[Any, Any]:
    """The elements at `places`, which has size 1 along the axis; and the places."""
    values = op.GatherElements(x, places, axis=axis)
    if keepdim:
        return values, places
    return op.Squeeze(values, ints(axis)), op.Squeeze(places, ints(axis))


def _last(x: Any, axis: int) -> Any:
    return op.Slice(x, ints(-1), ints(2**62), ints(axis))


def _median(x: Any, dim: int, keepdim: bool = False) -> tuple[Any, Any]:
    """The lower of the two middle elements; NaN where there is one."""
    axis = dim % len(x.shape)
    middle = op.Div(op.Add(_length(x, axis), ints(1)), ints(2))
    places = _last(_ranked(x, middle, axis), axis)
    nan = _is_nan(x)
    if nan is not None:
        flags = op.Cast(nan, to=ir.DataType.INT32)
        has_nan = op.Cast(op.ReduceMax(flags, ints(axis), keepdims=1), to=ir.DataType.BOOL)
        places = op.Where(has_nan, op.ArgMax(flags, axis=axis, keepdims=1), places)
    return _taken(x, places, axis, keepdim)


def _nanmedian(x: Any, dim: int, keepdim: bool = False) -> tuple[Any, Any]:
    """The lower of the two middle elements of those that are numbers."""
    nan = _is_nan(x)
    if nan is None:
        return _median(x, dim, keepdim)
    axis = dim % len(x.shape)
    ranked = _ranked(x, _length(x, axis), axis)
    numbers = op.ReduceSum(op.Cast(op.Not(nan), to=ir.DataType.INT64), ints(axis), keepdims=1)
    middle = op.Div(op.Max(op.Sub(numbers, ints(1)), ints(0)), ints(2))
    return _taken(x, op.GatherElements(ranked, middle, axis=axis), axis, keepdim)


def _median_of_all(x: Any) -> Any:
    return _median(op.Reshape(x, ints(-1)), 0)[0]


def _nanmedian_of_all(x: Any) -> Any:
    return _nanmedian(op.Reshape(x, ints(-1)), 0)[0]


def _kthvalue(x: Any, k: int, dim: int = -1, keepdim: bool = False) -> tuple[Any, Any]:
    """The `k`-th smallest element, counted from 1."""
    axis = dim % len(x.shape)
    return _taken(x, _last(_ranked(x, ints(k), axis), axis), axis, keepdim)


def _mode(x: Any, dim: int = -1, keepdim: bool = False) -> tuple[Any, Any]:
    """The most frequent element, the smallest of several; its last place."""
    rank = len(x.shape)
    axis = dim % rank
    order = [*(other for other in range(rank) if other != axis), axis]
    last = op.Transpose(x, perm=order)
    equal = op.Equal(op.Unsqueeze(last, ints(-1)), op.Unsqueeze(last, ints(-2)))
    counts = op.ReduceSum(op.Cast(equal, to=ir.DataType.INT64), ints(-1), keepdims=0)
    most = op.Equal(counts, op.ReduceMax(counts, ints(-1), keepdims=1))
    highest = op.ReduceMax(last, ints(-1), keepdims=1)
    value = op.ReduceMin(op.Where(most, last, highest), ints(-1), keepdims=1)
    found = op.Cast(op.Equal(last, value), to=ir.DataType.INT32)
    places = op.ArgMax(found, axis=-1, keepdims=1, select_last_index=1)
    back = [order.index(position) for position in range(rank)]
    return _taken(x, op.Transpose(places, perm=back), axis, keepdim)
