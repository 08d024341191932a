"""Elementwise ops: one rule for all of them, told by torch's own tag.

Source: `torch.Tag.pointwise` (aten/src/ATen/native/tags.yaml, torch 2.13).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload

from ensexport.batching.context import Context
from ensexport.batching.tree import map_values, values_in
from ensexport.batching.value import ROWS, Folded, Rows, Stacked, Value, same_size

aten = torch.ops.aten

# Elementwise in effect, though torch does not tag them so.
_UNTAGGED = {
    aten._to_copy.default,
    aten.to.dtype,
    aten.to.dtype_layout,
    aten.to.device,
    aten.type_as.default,
    aten.nan_to_num.default,
    aten.zeros_like.default,
    aten.ones_like.default,
    aten.full_like.default,
    aten.empty_like.default,
    aten.hardswish.default,
    aten.log_sigmoid.default,
    aten.where.Scalar,
    aten.where.ScalarOther,
    aten.where.ScalarSelf,
    aten.__and__.Tensor,
    aten.__and__.Scalar,
    aten.__or__.Tensor,
    aten.__or__.Scalar,
    aten.__xor__.Tensor,
    aten.__xor__.Scalar,
    aten.isnan.default,
    aten.isinf.default,
    aten.isfinite.default,
    aten.softplus.default,
    aten.mish.default,
    aten.selu.default,
    aten.celu.default,
    aten.relu6.default,
    aten.hardsigmoid.default,
    aten.silu.default,
    aten.lerp.Scalar,
    aten.lerp.Tensor,
    aten.clamp_max.Tensor,
    aten.clamp_min.Tensor,
    aten.true_divide.Tensor,
    aten.square.default,
    aten.rsub.Scalar,
    aten.rsub.Tensor,
    aten.fill.Scalar,
}


def is_pointwise(op: OpOverload) -> bool:
    """Does every element of the result depend on one element of each (broadcast) argument?"""
    return torch.Tag.pointwise in op.tags or op in _UNTAGGED


def pointwise(ctx: Context, op: OpOverload, args: Any, kwargs: Any) -> Value:
    """Batch an elementwise op in the layout its arguments have, else in the stacked one."""
    values = values_in((args, kwargs))
    rank = max(value.rank for value in values)

    def call(to_node: Any) -> fx.Node:
        new_args, new_kwargs = map_values((args, kwargs), to_node)
        return ctx.call(op, *new_args, **new_kwargs)

    layout = _same_layout(values, rank)
    if layout is not None:
        return ctx.value(call(lambda v: v.node if v.is_per_member else ctx.shared(v)), layout)
    if _fits_rows(ctx, values, rank):
        return ctx.rows_value(call(lambda v: _against_rows(ctx, v)))
    dim = _common_fold(ctx, values, rank)
    if dim is not None:
        return ctx.value(call(lambda v: _against_fold(ctx, v, dim, rank)), Folded(dim))
    return ctx.value(call(lambda v: ctx.broadcast(v, rank)), Stacked(0))


def _same_layout(values: list[Value], rank: int) -> Stacked | Folded | Rows | None:
    """The layout of all per-member values, if they share one and everything else is a single number."""
    per_member = [value for value in values if value.is_per_member]
    layout = per_member[0].layout
    if not isinstance(layout, Stacked | Folded | Rows):
        return None
    for value in values:
        if value.is_per_member:
            alike = value.layout == layout and value.rank == rank
            alike = alike and all(same_size(a, b) for a, b in zip(value.shape, per_member[0].shape, strict=True))
        else:
            alike = value.member.numel() == 1 and value.rank == 0
        if not alike:
            return None
    return layout


def _fits_rows(ctx: Context, values: list[Value], rank: int) -> bool:
    """Is some value in rows, with the result's rows, and can every other argument follow?"""
    rows = ctx.result.shape[:-1]

    def has_these_rows(value: Value) -> bool:
        return value.rank == rank and all(same_size(a, b) for a, b in zip(value.shape, rows, strict=False))

    if not any(value.layout == ROWS and has_these_rows(value) for value in values):
        return False
    return all(has_these_rows(value) or all(same_size(size, 1) for size in value.shape[:-1]) for value in values)


def _against_rows(ctx: Context, value: Value) -> fx.Node:
    """A tensor that broadcasts against `(N, rows, last dim)`; one without rows of its own has only a last dim."""
    if all(same_size(size, 1) for size in value.shape[:-1]) and not isinstance(value.layout, Rows):
        if value.is_weight:
            return ctx.broadcast(ctx.weight(aten.reshape.default, value, list(value.shape[-1:])), 2)
        node = ctx.stacked(value) if value.is_per_member else ctx.shared(value)
        if value.rank > 1:
            first = 1 if value.is_per_member else 0
            return ctx.call(aten.flatten.using_ints, node, first, first + value.rank - 2)
        return ctx.call(aten.unsqueeze.default, node, 1) if value.is_per_member and value.rank == 1 else node
    if value.is_per_member:
        return ctx.rows(value)
    return ctx.call(aten.flatten.using_ints, ctx.shared(value), 0, value.rank - 2)


def _common_fold(ctx: Context, values: list[Value], rank: int) -> int | None:
    """The dim that some per-member activation is folded into, if every other argument can follow."""
    folds = {value.layout.dim for value in values if isinstance(value.layout, Folded) and value.rank == rank}
    if len(folds) != 1:
        return None
    dim = folds.pop()
    size = ctx.result.shape[dim]
    for value in values:
        own = dim - (rank - value.rank)
        if value.is_per_member and not value.is_weight:
            if value.rank != rank or not same_size(value.shape[dim], size):
                return None
        elif value.is_per_member:
            leads = own >= 0 and all(same_size(other, 1) for other in value.shape[:own])
            if not (leads or value.member.numel() == 1) or not isinstance(size, int):
                return None
    return dim


def _against_fold(ctx: Context, value: Value, dim: int, rank: int) -> fx.Node:
    """A tensor that broadcasts against members folded into logical dim `dim`."""
    if value.is_per_member and not value.is_weight:
        return ctx.folded(value, dim)
    size = ctx.result.shape[dim]
    tail = [1] * (rank - dim - 1)
    own = dim - (rank - value.rank)
    if value.is_per_member:
        rest = list(value.shape[own + 1 :]) if own >= 0 else []
        lead = value.shape[own] if own >= 0 else 1
        shape = [lead, *rest] if own >= 0 and value.member.numel() != 1 else [1, *tail]
        piece = ctx.weight(aten.reshape.default, value, shape)
        return ctx.folded(ctx.weight(aten.expand.default, piece, [size, *shape[1:]]), 0)
    node = ctx.shared(value)
    if own < 0 or same_size(value.shape[own], 1):
        return node
    # A shared tensor with the same channels for every member: repeat them side by side.
    repeated = ctx.call(aten.expand.default, ctx.call(aten.unsqueeze.default, node, own), _repeat(value, own, ctx))
    return ctx.call(aten.flatten.using_ints, repeated, own, own + 1)


def _repeat(value: Value, dim: int, ctx: Context) -> list[int]:
    sizes = [-1] * value.rank
    sizes.insert(dim, ctx.n_members)
    return sizes
