"""Tables looked up by ids: one Gather for all members."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ensexport.batching.compose import compose
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


@rule(aten.embedding_bag.padding_idx, aten.embedding_bag.default)
def embedding_bag(
    ctx: Context,
    weight: Value,
    ids: Value,
    offsets: Value,
    scale_grad_by_freq: bool = False,
    mode: int = 0,
    sparse: bool = False,
    per_sample_weights: Value | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> tuple[Any, ...] | None:
    """`weight (V, D)`, bags of one length L, as `nn.EmbeddingBag` makes them of ids `(B, L)`: a lookup and a reduction.

    Only the op's first result is ever used without gradients. Bags of several lengths go down the ladder.
    """
    length = _bag_length(offsets)
    if length is None or include_last_offset:
        return None

    def reduced(weight: Tensor, ids: Tensor, scale: Tensor | None) -> Tensor:
        ids = ids.reshape(-1, length)
        rows = F.embedding(ids, weight)
        if padding_idx is None:
            if scale is not None:
                rows = rows * scale.reshape(-1, length, 1)
            return (rows.sum(1), rows.mean(1), rows.amax(1))[mode]
        is_real = (ids != padding_idx % weight.shape[0]).unsqueeze(-1)
        if mode == 2:
            highest = torch.where(is_real, rows, -torch.inf).amax(1)
            return torch.where(is_real.any(1), highest, 0.0)
        kept = is_real.to(rows.dtype)
        total = (rows * (kept if scale is None else kept * scale.reshape(-1, length, 1))).sum(1)
        return total if mode == 0 else total / kept.sum(1).clamp_min(1)

    results = ctx.result
    ctx.result = results[0]
    try:
        out = compose(ctx, reduced, weight, ids, per_sample_weights)
    finally:
        ctx.result = results
    return out, *[None] * (len(results) - 1)


def _bag_length(offsets: Value) -> int | None:
    """L if the offsets are 0, L, 2L, ..."""
    node = offsets.node
    if not offsets.is_shared or node.target is not aten.arange.start_step:
        return None
    start, _, step = (*node.args, 1)[:3]  # torch leaves out a step of 1
    return step if start == 0 and isinstance(step, int) else None
