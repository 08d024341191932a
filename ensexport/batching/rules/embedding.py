"""Tables looked up by ids: one Gather for all members."""

from __future__ import annotations

import torch

from ensexport.batching.context import Context
from ensexport.batching.registry import rule
from ensexport.batching.value import Stacked, Value

aten = torch.ops.aten


@rule(aten.embedding.default)
def embedding(
    ctx: Context,
    weight: Value,
    ids: Value,
    padding_idx: int = -1,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Value | None:
    """`weight (V, D)`, `ids (...)`: a row of each member's table for each id.

    Shared ids pick along dim 1 of `(N, V, D)`; ids of their own pick from `(N*V, D)` after adding n*V.
    """
    if not weight.is_per_member:
        return ctx.value(ctx.call(aten.embedding.default, ctx.shared(weight), ctx.stacked(ids)), Stacked(0))
    if ids.is_per_member:
        if not isinstance(weight.shape[0], int):
            return None
        starts = ctx.call(aten.arange.start_step, 0, ctx.n_members * weight.shape[0], weight.shape[0])
        offsets = ctx.call(aten.reshape.default, starts, [ctx.n_members] + [1] * ids.rank)
        rows = ctx.call(aten.add.Tensor, ctx.stacked(ids), offsets)
        return ctx.value(ctx.call(aten.embedding.default, ctx.folded(weight, 0), rows), Stacked(0))
    flat = ctx.shared(ids)
    if ids.rank != 1:
        flat = ctx.call(aten.reshape.default, flat, [-1])
    node = ctx.call(aten.index_select.default, ctx.stacked(weight), 1, flat)
    if ids.rank == 0:
        node = ctx.call(aten.squeeze.dim, node, 1)
    elif ids.rank > 1:
        sizes = [ctx.size(ids, dim) for dim in range(ids.rank)]
        node = ctx.call(aten.unflatten.int, node, 1, ctx.shape(sizes))
    return ctx.value(node, Stacked(0))
