"""Ops that work along named dims: the same op, its dims moved up by one behind the member axis.

One rule serves them all: torch's own schema says which argument is a dim. Reductions that leave the folded dim
alone run on folded values as they are, which keeps a global average pool free of transposes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch._ops import OpOverload

from ensexport.batching.context import Context
from ensexport.batching.registry import rule
from ensexport.batching.schema import bound, called, results
from ensexport.batching.value import Folded, Stacked, Value

aten = torch.ops.aten
_DIM_ARGUMENTS = ("dim", "dims", "dim0", "dim1")


def _along_dims(op: OpOverload) -> Any:
    def batched(ctx: Context, x: Value, *args: Any, **kwargs: Any) -> Any:
        if not x.is_per_member or x.rank == 0:
            return None
        arguments = bound(op, (x, *args), kwargs)
        folded = _on_folded(ctx, op, x, arguments)
        if folded is not None:
            return folded
        first = op._schema.arguments[0].name
        arguments[first] = ctx.stacked(x)
        for name in _DIM_ARGUMENTS:
            if name in arguments:
                arguments[name] = _moved(arguments[name], x.rank)
        return results(ctx, called(ctx, op, arguments), Stacked(0))

    return batched


def _moved(dims: Any, rank: int) -> Any:
    if dims is None or dims == []:
        return list(range(1, rank + 1))
    if isinstance(dims, list | tuple):
        return [dim % rank + 1 for dim in dims]
    return dims % rank + 1


_REDUCTIONS = (aten.mean.dim, aten.sum.dim_IntList, aten.amax.default, aten.amin.default)


def _on_folded(ctx: Context, op: OpOverload, x: Value, arguments: dict[str, Any]) -> Value | None:
    if op not in _REDUCTIONS or not isinstance(x.layout, Folded) or not arguments["dim"]:
        return None
    dims = [dim % x.rank for dim in arguments["dim"]]
    if x.layout.dim in dims:
        return None
    moved = x.layout.dim if arguments["keepdim"] else x.layout.dim - sum(dim < x.layout.dim for dim in dims)
    return ctx.value(called(ctx, op, {**arguments, op._schema.arguments[0].name: x.node}), Folded(moved))


for _op in [
    *_REDUCTIONS,
    aten.softmax.int,
    aten._softmax.default,
    aten.log_softmax.int,
    aten._log_softmax.default,
    aten.transpose.int,
    aten.select.int,
    aten.slice.Tensor,
    aten.cumsum.default,
    aten.glu.default,
    aten.argmax.default,
    aten.argmin.default,
    aten.max.dim,
    aten.min.dim,
    aten.squeeze.dim,
    aten.unflatten.int,
]:
    rule(_op)(_along_dims(_op))


@rule(aten.permute.default)
def permute(ctx: Context, x: Value, dims: list[int]) -> Value:
    """Reorder dims; folded members move with their dim."""
    order = [dim % x.rank for dim in dims]
    if isinstance(x.layout, Folded):
        node = ctx.call(aten.permute.default, x.node, order)
        return ctx.value(node, Folded(order.index(x.layout.dim)))
    return ctx.value(ctx.call(aten.permute.default, ctx.stacked(x), [0, *(dim + 1 for dim in order)]), Stacked(0))


@rule(aten.cat.default)
def cat(ctx: Context, tensors: list[Value], dim: int = 0) -> Value:
    """Join along a dim; values folded alike into another dim stay folded."""
    rank = max(value.rank for value in tensors)
    dim = dim % rank
    layouts = {value.layout for value in tensors}
    layout = next(iter(layouts)) if len(layouts) == 1 else None
    if isinstance(layout, Folded) and layout.dim != dim:
        return ctx.value(ctx.call(aten.cat.default, [value.node for value in tensors], dim), layout)
    return ctx.value(ctx.call(aten.cat.default, [ctx.stacked(value) for value in tensors], dim + 1), Stacked(0))
