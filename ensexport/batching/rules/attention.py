"""Attention without weights of its own: the members go into the batch, `(N*B, heads, S, d)`.

Where query, key and value have them in the heads already, `(B, N*heads, S, d)`, as wide layers on a shared input leave
them, they stay there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from ensexport.batching.context import Context
from ensexport.batching.registry import rule
from ensexport.batching.value import Folded, Stacked, Value, same_size

aten = torch.ops.aten

_NO_MASK_FITS = object()


@rule(aten.scaled_dot_product_attention.default)
def attention(
    ctx: Context, query: Value, key: Value, value: Value, attn_mask: Value | None = None, *args: Any, **options: Any
) -> Value | None:
    """`query (B, ..., S, d)`; a mask that differs between rows of the batch is laid out like them."""
    rank = query.rank
    if rank < 2 or key.rank != rank or value.rank != rank:
        return None
    if rank == 2:
        nodes = [ctx.stacked(x) for x in (query, key, value)]
        mask = None if attn_mask is None else ctx.broadcast(attn_mask, 2)
        return ctx.value(
            ctx.call(aten.scaled_dot_product_attention.default, *nodes, mask, *args, **options), Stacked(0)
        )
    heads_mask = _mask_for_heads(ctx, attn_mask, query)
    if rank == 4 and all(x.layout == Folded(1) for x in (query, key, value)) and heads_mask is not _NO_MASK_FITS:
        nodes = [x.node for x in (query, key, value)]
        node = ctx.call(aten.scaled_dot_product_attention.default, *nodes, heads_mask, *args, **options)
        return ctx.value(node, Folded(1))
    nodes = [ctx.folded(x, 0) for x in (query, key, value)]
    mask = None if attn_mask is None else _mask(ctx, attn_mask, query)
    node = ctx.call(aten.scaled_dot_product_attention.default, *nodes, mask, *args, **options)
    return ctx.value(node, Folded(0))


def _mask_for_heads(ctx: Context, mask: Value | None, query: Value) -> Any:
    """A shared mask that broadcasts against `(B, N*heads, S, S)`, or `_NO_MASK_FITS`."""
    if mask is None:
        return None
    is_same_for_heads = mask.rank < 3 or same_size(mask.shape[-3], 1)
    if mask.is_per_member or not is_same_for_heads or mask.rank > query.rank:
        return _NO_MASK_FITS
    return ctx.shared(mask)


def _mask(ctx: Context, mask: Value, query: Value) -> fx.Node:
    """A mask that broadcasts against `(N*B, ...)`."""
    same_for_batch = mask.rank < query.rank or same_size(mask.shape[0], 1)
    if not mask.is_per_member and same_for_batch:
        return ctx.shared(mask)
    if not mask.is_per_member:
        return ctx.call(aten.repeat.default, ctx.shared(mask), [ctx.n_members] + [1] * (query.rank - 1))
    node = ctx.broadcast(mask, query.rank)
    if same_for_batch:
        sizes: list[Any] = [-1] * (query.rank + 1)
        sizes[1] = ctx.size(query, 0)
        node = ctx.call(aten.expand.default, node, sizes)
    return ctx.call(aten.flatten.using_ints, node, 0, 1)
