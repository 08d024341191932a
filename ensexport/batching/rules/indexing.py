"""Writing into a part of a tensor: by indices, by a mask, or one slice."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

from ensexport.batching.compose import compose, composed
from ensexport.batching.context import Context
from ensexport.batching.registry import rule
from ensexport.batching.value import Stacked, Value

aten = torch.ops.aten


@rule(aten.index_put.default)
def index_put(ctx: Context, x: Value, indices: list[Value | None], values: Value, accumulate: bool = False) -> Any:
    """`x[indices] = values`, or `+=`.

    A mask becomes `where`. Indices that differ between members get the member's own number beside them.
    """
    given = [value for value in indices if value is not None]
    first = indices.index(given[0])
    if any(value.member.dtype is torch.bool for value in given):
        if len(indices) > 1 or accumulate or values.member.numel() != 1:
            return None
        return compose(ctx, _where, x, given[0], values)
    is_adjacent = indices[first:] == given
    if not is_adjacent:
        return None
    node_of: list[Any]
    if not any(value.is_per_member for value in given):
        node_of = [None, *(None if value is None else ctx.shared(value) for value in indices)]
    elif first == 0:
        rank = max(value.rank for value in given)
        numbers = ctx.call(aten.arange.default, ctx.n_members, device=x.member.device)
        numbers = ctx.call(aten.reshape.default, numbers, [-1] + [1] * rank)
        node_of = [numbers, *(ctx.broadcast(value, rank) for value in given)]
    else:
        return None
    rank = x.rank - len(given) + max(value.rank for value in given)
    node = ctx.call(aten.index_put.default, ctx.stacked(x), node_of, ctx.broadcast(values, rank), accumulate)
    return ctx.value(node, Stacked(0))


def _where(x: Tensor, mask: Tensor, value: Tensor) -> Tensor:
    mask = mask[(..., *[None] * (x.dim() - mask.dim()))]
    return torch.where(mask, value.reshape([]).to(x.dtype), x)


@composed(aten.select_scatter.default)
def select_scatter(x: Tensor, source: Tensor, dim: int, index: int) -> Tensor:
    """`x` with `source` in the place of `x.select(dim, index)`."""
    end = index + 1 if index != -1 else sys.maxsize
    return torch.slice_scatter(x, source.unsqueeze(dim), dim, index, end)


@rule(aten.index_add.default, aten.index_copy.default)
def index_add(ctx: Context, x: Value, dim: int, index: Value, source: Value, **options: Any) -> Value | None:
    """Rows added to, or put at, indices that all members share."""
    if index.is_per_member or x.rank == 0 or source.rank != x.rank:
        return None
    node = ctx.call(ctx.op, ctx.stacked(x), dim % x.rank + 1, ctx.shared(index), ctx.stacked(source), **options)
    return ctx.value(node, Stacked(0))
