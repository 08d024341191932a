"""Adaptive pools in ONNX: windows that share out a dim, `floor(k * size / count)` up to `ceil((k + 1) * size / count)`.

torch's exporter (2.13) lacks the max pools with more than one window and the 3-D average pools, and over dims of
dynamic size it writes a plain pool whose windows fit the example alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from ensexport.targets.onnx_values import constant, ints, op

aten = torch.ops.aten


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """The translation table for `torch.onnx.export`."""
    return {
        aten.adaptive_avg_pool2d.default: _adaptive_avg_pool,
        aten._adaptive_avg_pool2d.default: _adaptive_avg_pool,
        aten.adaptive_avg_pool3d.default: _adaptive_avg_pool,
        aten._adaptive_avg_pool3d.default: _adaptive_avg_pool,
        aten.adaptive_max_pool2d.default: _adaptive_max_pool,
        aten.adaptive_max_pool3d.default: _adaptive_max_pool,
    }


def _adaptive_avg_pool(x: Any, output_size: Sequence[Any]) -> Any:
    """Windows are products of windows a dim, so that one dim can be averaged after the other."""
    shape, wanted = list(x.shape), list(output_size)
    rank = len(wanted)
    sizes = shape[-rank:]
    if wanted == [1] * rank:
        return op.ReduceMean(x, ints(*range(-rank, 0)), keepdims=1)
    if all(isinstance(size, int) and isinstance(count, int) for size, count in zip(sizes, wanted, strict=True)):
        if sizes == wanted:
            return op.Identity(x)
        if len(shape) == rank + 2 and not any(size % count for size, count in zip(sizes, wanted, strict=True)):
            kernel = [size // count for size, count in zip(sizes, wanted, strict=True)]
            return op.AveragePool(x, kernel_shape=kernel, strides=kernel)
    for axis, (size, count) in enumerate(zip(sizes, wanted, strict=True), len(shape) - rank):
        if not isinstance(count, int):
            if not _is_size(count):
                raise NotImplementedError("an adaptive pool whose output size is computed has no ONNX form")
        elif count == 1:
            x = op.ReduceMean(x, ints(axis), keepdims=1)
        elif not isinstance(size, int):
            x = _over_windows(x, axis, count, op.ReduceMean)
        elif size != count:
            order = [*(dim for dim in range(len(shape)) if dim != axis), axis]
            back = [order.index(dim) for dim in range(len(shape))]
            matrix = op.CastLike(constant(_windows(size, count)), x)
            x = op.Transpose(op.MatMul(op.Transpose(x, perm=order), matrix), perm=back)
    return x


def _is_size(value: Any) -> bool:
    """Is this the size of a dim as it is? `AdaptiveAvgPool2d((None, 7))` asks for the input's own."""
    producer = value.producer()
    while producer is not None and producer.op_type in ("Squeeze", "Cast", "Identity"):
        producer = producer.inputs[0].producer()
    return producer is not None and producer.op_type == "Shape"


def _over_windows(x: Any, axis: int, count: int, reduce: Callable[..., Any]) -> Any:
    """Reduce each window of a dim of dynamic size; where the windows stand is computed from the size."""
    size = op.Shape(x, start=axis, end=axis + 1)
    parts = []
    for index in range(count):
        start = op.Div(op.Mul(size, ints(index)), ints(count))
        end = op.Div(op.Add(op.Mul(size, ints(index + 1)), ints(count - 1)), ints(count))
        parts.append(reduce(op.Slice(x, start, end, ints(axis)), ints(axis), keepdims=1))
    return op.Concat(*parts, axis=axis)


def _windows(size: int, wanted: int) -> Any:
    """`(size, wanted)`: column k averages rows floor(k*size/wanted) up to ceil((k+1)*size/wanted)."""
    matrix = np.zeros((size, wanted), dtype=np.float32)
    for k in range(wanted):
        begin, end = (k * size) // wanted, -((-(k + 1) * size) // wanted)
        matrix[begin:end, k] = 1.0 / (end - begin)
    return matrix


def _adaptive_max_pool(x: Any, output_size: Sequence[int]) -> tuple[Any, Any]:
    """Each window is a row of a constant table of places, its first place repeated where it is shorter.

    Over dims of dynamic size there are no places to return.
    """
    rank, wanted = len(output_size), list(output_size)
    leading = [0] * (len(x.shape) - rank)
    flat = op.Reshape(x, ints(*leading, -1))
    shape = ints(*leading, *wanted)
    if wanted == [1] * rank:
        highest, places = op.ReduceMax(flat, ints(-1), keepdims=1), op.ArgMax(flat, axis=-1, keepdims=1)
        return op.Reshape(highest, shape), op.Reshape(places, shape)
    if not all(isinstance(size, int) for size in list(x.shape)[-rank:]):
        highest = _adaptive_max_of_any_size(x, wanted)
        return highest, op.Cast(highest, to=ir.DataType.INT64)  # no places: a model that uses them fails the proof
    table = _places([int(size) for size in list(x.shape)[-rank:]], wanted)
    windows = op.Gather(flat, constant(table), axis=-1)
    starts = constant(np.arange(len(table), dtype=np.int64) * table.shape[1])
    chosen = op.Add(op.ArgMax(windows, axis=-1, keepdims=0), starts)
    places = op.Gather(constant(table.reshape(-1)), chosen, axis=0)
    return op.Reshape(op.ReduceMax(windows, ints(-1), keepdims=0), shape), op.Reshape(places, shape)


def _adaptive_max_of_any_size(x: Any, wanted: Sequence[int]) -> Any:
    """One dim after the other."""
    for axis, count in enumerate(wanted, len(x.shape) - len(wanted)):
        x = op.ReduceMax(x, ints(axis), keepdims=1) if count == 1 else _over_windows(x, axis, count, op.ReduceMax)
    return x


def _places(sizes: list[int], wanted: list[int]) -> Any:
    """`(windows, longest window)`: flat places in the input of each output of an adaptive pool."""
    grid = np.arange(int(np.prod(sizes)), dtype=np.int64).reshape(sizes)
    rows = []
    for position in np.ndindex(*wanted):
        window = tuple(
            slice((k * size) // count, -((-(k + 1) * size) // count))
            for k, size, count in zip(position, sizes, wanted, strict=True)
        )
        rows.append(grid[window].reshape(-1))
    longest = max(len(row) for row in rows)
    return np.stack([np.concatenate([row, np.repeat(row[:1], longest - len(row))]) for row in rows])
