"""Ops that only rearrange: views, flattening, and the no-ops of eval mode."""

from __future__ import annotations

from typing import Any

import torch

from ensexport.batching.context import Context
from ensexport.batching.registry import rule
from ensexport.batching.value import Folded, Stacked, Value, same_size

aten = torch.ops.aten


@rule(
    aten.contiguous.default,
    aten.clone.default,
    aten.alias.default,
    aten.detach.default,
    aten.lift_fresh_copy.default,
)
def unchanged(ctx: Context, x: Value, **_options: Any) -> Value:
    """A copy or alias: the same value."""
    return Value(x.node, x.layout, ctx.result)


@rule(
    aten.dropout.default,
    aten.feature_dropout.default,
    aten.alpha_dropout.default,
    aten.feature_alpha_dropout.default,
)
def dropout(ctx: Context, x: Value, p: float, train: bool) -> Value | None:
    """Nothing in eval mode. In train mode it draws random numbers, and the model was refused before."""
    return None if train else unchanged(ctx, x)


@rule(aten.flatten.using_ints)
def flatten(ctx: Context, x: Value, start_dim: int = 0, end_dim: int = -1) -> Value | None:
    """Merge dims; members folded into the first of them stay folded, for they are its slowest index."""
    if x.rank == 0:
        return None
    start, end = start_dim % x.rank, end_dim % x.rank
    if isinstance(x.layout, Folded) and not start < x.layout.dim <= end:
        dim = x.layout.dim if x.layout.dim <= start else x.layout.dim - (end - start)
        return ctx.value(ctx.call(aten.flatten.using_ints, x.node, start, end), Folded(dim))
    return ctx.value(ctx.call(aten.flatten.using_ints, ctx.stacked(x), start + 1, end + 1), Stacked(0))


@rule(aten.view.default, aten.reshape.default, aten._unsafe_view.default)
def view(ctx: Context, x: Value, shape: list[Any]) -> Value:
    """Change the shape; members folded into a dim that keeps its place in front of its group stay folded."""
    if isinstance(x.layout, Folded):
        dim = _dim_after_view(x, ctx.result.shape)
        if dim is not None:
            entries = list(shape)
            size = ctx.result.shape[dim]
            if isinstance(size, int):
                entries[dim] = size * ctx.n_members
                return ctx.value(ctx.call(aten.reshape.default, x.node, ctx.shape(entries)), Folded(dim))
    return ctx.value(
        ctx.call(aten.reshape.default, ctx.stacked(x), [ctx.n_members, *ctx.shape(list(shape))]), Stacked(0)
    )


def _dim_after_view(x: Value, shape: torch.Size) -> int | None:
    """The dim of the new shape in which members folded into `x` still lead, or None.

    They do where everything before the folded dim stays as it is: then the folded dim is the slowest index of what
    follows, and the new dim at the same place starts with it. Its size must hold whole old sizes or divide into one.
    """
    assert isinstance(x.layout, Folded)
    dim = x.layout.dim
    if len(shape) <= dim or any(not same_size(a, b) for a, b in zip(x.shape[:dim], shape[:dim], strict=True)):
        return None
    return dim


@rule(aten.unsqueeze.default)
def unsqueeze(ctx: Context, x: Value, dim: int) -> Value:
    """Add a dim of size 1."""
    dim = dim % (x.rank + 1)
    if isinstance(x.layout, Folded):
        moved = x.layout.dim + 1 if dim <= x.layout.dim else x.layout.dim
        return ctx.value(ctx.call(aten.unsqueeze.default, x.node, dim), Folded(moved))
    return ctx.value(ctx.call(aten.unsqueeze.default, ctx.stacked(x), dim + 1), Stacked(0))
