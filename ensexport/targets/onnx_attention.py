"""Scaled dot-product attention in ONNX, as torch computes it.

torch's exporter (2.13) turns a boolean mask into the lowest finite number, so that a query whose keys are all masked
gets the average of all values; torch gives it zeros. It also transposes the keys by reshapes with computed shapes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from ensexport.targets.onnx_values import constant, op


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """The translation table for `torch.onnx.export`."""
    return {torch.ops.aten.scaled_dot_product_attention.default: _attention}


def _attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """`query (..., L, d)`, `key (..., S, d)`, `value (..., S, e)`, mask `(..., L, S)` -> `(..., L, e)`."""
    rank = len(query.shape)
    if enable_gqa:
        heads = query.shape[-3]
        key, value = _repeated_heads(key, heads), _repeated_heads(value, heads)
    if scale is None:
        scale = float(query.shape[-1]) ** -0.5
    factor = op.CastLike(constant(np.array(scale, dtype=np.float32)), query)
    keys = op.Transpose(key, perm=[*range(rank - 2), rank - 1, rank - 2])
    scores = op.MatMul(op.Mul(query, factor), keys)
    if is_causal:
        scores = op.Where(_causal(query, key), scores, op.CastLike(constant(_MINUS_INFINITY), query))
    if attn_mask is None:
        return op.MatMul(op.Softmax(scores, axis=-1), value)
    if attn_mask.dtype == ir.DataType.BOOL:
        scores = op.Where(attn_mask, scores, op.CastLike(constant(_MINUS_INFINITY), query))
    else:
        scores = op.Add(scores, attn_mask)
    weights = op.Softmax(scores, axis=-1)
    nothing = op.CastLike(constant(np.array(0, dtype=np.float32)), query)
    return op.MatMul(op.Where(op.IsNaN(weights), nothing, weights), value)


_MINUS_INFINITY = np.array(-np.inf, dtype=np.float32)


def _repeated_heads(x: Any, heads: int) -> Any:
    """`(B, G, S, d)` -> `(B, heads, S, d)`: each group's tensor for all of its query heads."""
    times = heads // x.shape[-3]
    if times == 1:
        return x
    rank = len(x.shape)
    sizes = [1] * (rank + 1)
    sizes[rank - 2] = times
    wide = op.Expand(
        op.Unsqueeze(x, constant(np.array([rank - 2], dtype=np.int64))), constant(np.array(sizes, dtype=np.int64))
    )
    shape = [0] * (rank - 3) + [heads, -1, x.shape[-1]]
    return op.Reshape(wide, constant(np.array(shape, dtype=np.int64)))


def _causal(query: Any, key: Any) -> Any:
    """`(L, S)`: may this query see that key?"""
    zero, one = (constant(np.array(number, dtype=np.int64)) for number in (0, 1))
    lengths = [op.Squeeze(op.Shape(x, start=-2, end=-1)) for x in (query, key)]
    rows, columns = (op.Range(zero, length, one) for length in lengths)
    return op.LessOrEqual(columns, op.Unsqueeze(rows, constant(np.array([1], dtype=np.int64))))
