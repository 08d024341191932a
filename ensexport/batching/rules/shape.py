"""Ops that only rearrange: views, flattening, expanding, and the no-ops of eval mode."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from ensexport.batching.context import Context
from ensexport.batching.registry import rule
from ensexport.batching.value import ROWS, Folded, Stacked, Value, same_size

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
    aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default, aten.feature_alpha_dropout.default
)
def dropout(ctx: Context, x: Value, p: float, train: bool) -> Value | None:
    """Nothing in eval mode. In train mode it draws random numbers, and the model was refused before."""
    return None if train else Value(x.node, x.layout, ctx.result)


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
def view(ctx: Context, x: Value, shape: list[int | fx.Node]) -> Value:
    """Change the shape.

    Members folded into a dim stay folded where everything before it stays as it is: the dim is then the slowest
    index of what follows, and the new dim at the same place starts with it.
    """
    target = ctx.result.shape
    if isinstance(x.layout, Folded) and len(target) > x.layout.dim:
        dim = x.layout.dim
        if all(same_size(a, b) for a, b in zip(x.shape[:dim], target[:dim], strict=True)):
            return _view_folded(ctx, x, shape, dim)
    if x.layout == ROWS:
        if len(target) > 2 and same_size(target[0], x.shape[0]):
            # Heads are split off with the members in the batch, as attention takes them: one reshape.
            return _view_folded(ctx, x, shape, 0)
        return _reshaped(ctx, x.node, [ctx.n_members, *ctx.shape(list(shape))], Stacked(0))
    return _reshaped(ctx, ctx.stacked(x), [ctx.n_members, *ctx.shape(list(shape))], Stacked(0))


def _reshaped(ctx: Context, node: fx.Node, entries: list[int | fx.Node], layout: Stacked | Folded) -> Value:
    """Reshape to the result's own shape; torch's shape function would ask whether dynamic sizes divide each other."""
    return ctx.value(ctx.call_in(layout, aten.reshape.default, node, entries), layout)


def _view_folded(ctx: Context, x: Value, shape: list[int | fx.Node], dim: int) -> Value:
    """Reshape the physical tensor to the new shape with the members in its dim `dim`."""
    target = ctx.result.shape
    entries = [_known_size(ctx, size, entry) for size, entry in zip(target, shape, strict=True)]
    others = [entry for index, entry in enumerate(entries) if index != dim and isinstance(entry, int)]
    if isinstance(target[dim], int):
        entries[dim] = target[dim] * ctx.n_members
    elif -1 not in others:
        entries[dim] = -1
    else:
        size = ctx.size(x, dim) if same_size(target[dim], x.shape[dim]) else entries[dim]
        if not isinstance(size, fx.Node):
            raise NotImplementedError(f"two unknown sizes in {target}")
        entries[dim] = ctx.call(operator.mul, size, ctx.n_members)
    return _reshaped(ctx, x.node, ctx.shape(entries), Folded(dim))


def _known_size(ctx: Context, size: Any, entry: int | fx.Node) -> int | fx.Node:
    if isinstance(size, int):
        return size
    return entry if isinstance(entry, fx.Node) else ctx.size_node(size) or entry


@rule(aten.unsqueeze.default)
def unsqueeze(ctx: Context, x: Value, dim: int) -> Value:
    """Add a dim of size 1."""
    dim = dim % (x.rank + 1)
    if isinstance(x.layout, Folded):
        moved = x.layout.dim + 1 if dim <= x.layout.dim else x.layout.dim
        return ctx.value(ctx.call(aten.unsqueeze.default, x.node, dim), Folded(moved))
    return ctx.value(ctx.call(aten.unsqueeze.default, ctx.stacked(x), dim + 1), Stacked(0))


@rule(aten.expand.default)
def expand(ctx: Context, x: Value, sizes: list[int | fx.Node], implicit: bool = False) -> Value:
    """Broadcast to a shape; new leading dims come after the member axis."""
    node = ctx.call(aten.expand.default, ctx.broadcast(x, len(sizes)), [ctx.n_members, *sizes])
    return ctx.value(node, Stacked(0))


@rule(aten.expand_as.default)
def expand_as(ctx: Context, x: Value, other: Value) -> Value:
    """Broadcast to another tensor's shape."""
    sizes = [ctx.size(other, dim) for dim in range(other.rank)]
    return ctx.value(ctx.call(aten.expand.default, ctx.broadcast(x, other.rank), [ctx.n_members, *sizes]), Stacked(0))


@rule(aten.tile.default)
def tile(ctx: Context, x: Value, repeats: list[int | fx.Node]) -> Value:
    """`repeat` that takes fewer numbers than dims: the missing ones are 1."""
    tiled: Value = repeat(ctx, x, [*[1] * (x.rank - len(repeats)), *repeats])
    return tiled


@rule(aten.repeat.default)
def repeat(ctx: Context, x: Value, repeats: list[int | fx.Node]) -> Value:
    """Tile; new leading dims come after the member axis."""
    return ctx.value(ctx.call(aten.repeat.default, ctx.broadcast(x, len(repeats)), [1, *repeats]), Stacked(0))


@rule(aten.permute.default)
def permute(ctx: Context, x: Value, dims: list[int]) -> Value:
    """Reorder dims; folded members move with their dim."""
    return _permuted(ctx, x, [dim % x.rank for dim in dims])


def _permuted(ctx: Context, x: Value, order: list[int]) -> Value:
    channel_first = [0, x.rank - 1, *range(1, x.rank - 1)]
    if x.rank > 3 and order == channel_first:
        return ctx.value(
            ctx.call(aten.permute.default, ctx.stacked(x), [1, 0, *(dim + 1 for dim in order[1:])]), Stacked(1)
        )
    if isinstance(x.layout, Folded) and not (x.rank > 2 and order[-1] == x.layout.dim):
        return ctx.value(ctx.call(aten.permute.default, x.node, order), Folded(order.index(x.layout.dim)))
    if isinstance(x.layout, Folded):
        fold = x.layout.dim
        moved = [dim + 1 if dim >= fold else dim for dim in order]
        return ctx.value(ctx.call(aten.permute.default, ctx.stacked(x, fold), [fold, *moved]), Stacked(0))
    return ctx.value(ctx.call(aten.permute.default, ctx.stacked(x), [0, *(dim + 1 for dim in order)]), Stacked(0))


@rule(aten.transpose.int)
def transpose(ctx: Context, x: Value, dim0: int, dim1: int) -> Value:
    """Swap two dims."""
    order = list(range(x.rank))
    if order:
        order[dim0], order[dim1] = order[dim1], order[dim0]
    return _permuted(ctx, x, order)


@rule(aten.t.default, aten.numpy_T.default, aten.mT.default)
def t(ctx: Context, x: Value) -> Value | None:
    """Transpose a matrix."""
    return None if x.rank != 2 else _permuted(ctx, x, [1, 0])


@rule(aten.cat.default, aten.concat.default)
def cat(ctx: Context, tensors: list[Value], dim: int = 0) -> Value:
    """Join along a dim; values folded alike stay folded, also along the folded dim itself."""
    tensors = [value for value in tensors if not (value.rank == 1 and same_size(value.shape[0], 0))]
    dim = dim % max(value.rank for value in tensors)
    folds = {value.layout.dim for value in tensors if isinstance(value.layout, Folded)}
    if len(folds) == 1:
        fold = folds.pop()
        if fold != dim:
            return ctx.value(ctx.call(aten.cat.default, [ctx.folded(v, fold) for v in tensors], dim), Folded(fold))
        return ctx.value(ctx.call(aten.cat.default, [ctx.stacked(v, dim) for v in tensors], dim + 1), Stacked(dim))
    return ctx.value(ctx.call(aten.cat.default, [ctx.stacked(value) for value in tensors], dim + 1), Stacked(0))


@rule(aten.stack.default)
def stack(ctx: Context, tensors: list[Value], dim: int = 0) -> Value:
    """Join along a new dim."""
    dim = dim % (tensors[0].rank + 1)
    return ctx.value(ctx.call(aten.stack.default, [ctx.stacked(value) for value in tensors], dim + 1), Stacked(0))


@rule(aten.new_zeros.default, aten.new_ones.default, aten.new_full.default, aten.new_empty.default)
def new(ctx: Context, x: Value, sizes: list[int | fx.Node], fill: float | None = None, **_options: Any) -> Value | None:
    """A constant of a shape given in numbers: the same for all members, whatever tensor it was asked of."""
    value = {"aten::new_ones": 1, "aten::new_full": fill}.get(ctx.op._schema.name, 0)
    node = ctx.call(aten.full.default, sizes, value, dtype=ctx.result.dtype, device=ctx.result.device)
    return ctx.shared_value(node)


@rule(aten.copy.default)
def copy(ctx: Context, x: Value, source: Value, non_blocking: bool = False) -> Value:
    """`source` in the shape and dtype of `x`, whose values are not read."""
    return ctx.value(ctx.call(aten.copy.default, ctx.stacked(x), ctx.broadcast(source, x.rank)), Stacked(0))
