"""Pooling, resizing, padding: every channel on its own, so members stay side by side in the channels."""

from __future__ import annotations

from typing import Any

import torch
from torch._ops import OpOverload

from ensexport.batching.context import Context
from ensexport.batching.registry import rule
from ensexport.batching.schema import results
from ensexport.batching.value import Folded, Stacked, Value

aten = torch.ops.aten


def _channelwise(op: OpOverload, spatial: int) -> Any:
    def batched(ctx: Context, x: Value, *args: Any, **kwargs: Any) -> Any:
        dim = x.rank - spatial - 1
        return results(ctx, ctx.call(op, ctx.folded(x, dim), *args, **kwargs), Folded(dim))

    return batched


for _op, _spatial in [
    (aten.max_pool1d.default, 1),
    (aten.max_pool2d.default, 2),
    (aten.max_pool3d.default, 3),
    (aten.max_pool1d_with_indices.default, 1),
    (aten.max_pool2d_with_indices.default, 2),
    (aten.max_pool3d_with_indices.default, 3),
    (aten.avg_pool1d.default, 1),
    (aten.avg_pool2d.default, 2),
    (aten.avg_pool3d.default, 3),
    (aten.adaptive_avg_pool1d.default, 1),
    (aten.adaptive_avg_pool2d.default, 2),
    (aten.adaptive_avg_pool3d.default, 3),
    (aten._adaptive_avg_pool2d.default, 2),
    (aten._adaptive_avg_pool3d.default, 3),
    (aten.adaptive_max_pool1d.default, 1),
    (aten.adaptive_max_pool2d.default, 2),
    (aten.adaptive_max_pool3d.default, 3),
    (aten.upsample_nearest1d.vec, 1),
    (aten.upsample_nearest2d.vec, 2),
    (aten.upsample_nearest3d.vec, 3),
    (aten._upsample_nearest_exact1d.vec, 1),
    (aten._upsample_nearest_exact2d.vec, 2),
    (aten._upsample_nearest_exact3d.vec, 3),
    (aten.upsample_linear1d.vec, 1),
    (aten.upsample_bilinear2d.vec, 2),
    (aten.upsample_trilinear3d.vec, 3),
    (aten.upsample_bicubic2d.vec, 2),
    (aten._upsample_bilinear2d_aa.vec, 2),
    (aten._upsample_bicubic2d_aa.vec, 2),
    (aten.upsample_nearest1d.default, 1),
    (aten.upsample_nearest2d.default, 2),
    (aten.upsample_nearest3d.default, 3),
    (aten.upsample_linear1d.default, 1),
    (aten.upsample_bilinear2d.default, 2),
    (aten.upsample_trilinear3d.default, 3),
    (aten.upsample_bicubic2d.default, 2),
    (aten.reflection_pad1d.default, 1),
    (aten.reflection_pad2d.default, 2),
    (aten.reflection_pad3d.default, 3),
    (aten.replication_pad1d.default, 1),
    (aten.replication_pad2d.default, 2),
    (aten.replication_pad3d.default, 3),
    (aten.pixel_shuffle.default, 2),
    (aten.pixel_unshuffle.default, 2),
    (aten.im2col.default, 2),
    (aten.col2im.default, 1),
]:
    rule(_op)(_channelwise(_op, _spatial))


@rule(aten.pad.default, aten.constant_pad_nd.default)
def pad(ctx: Context, x: Value, padding: list[Any], *args: Any, **kwargs: Any) -> Value:
    """Pad trailing dims; a fold in a dim that is not padded stays."""
    if isinstance(x.layout, Folded) and x.layout.dim < x.rank - len(padding) // 2:
        return ctx.value(ctx.call(ctx.op, x.node, padding, *args, **kwargs), x.layout)
    if ctx.op is aten.pad.default and args and args[0] != "constant":
        dim = x.rank - len(padding) // 2 - 1
        return ctx.value(ctx.call(ctx.op, ctx.folded(x, dim), padding, *args, **kwargs), Folded(dim))
    return ctx.value(ctx.call(ctx.op, ctx.stacked(x), padding, *args, **kwargs), Stacked(0))


@rule(aten.grid_sampler.default, aten.grid_sampler_2d.default, aten.grid_sampler_3d.default)
def grid_sampler(ctx: Context, x: Value, grid: Value, *args: Any) -> Value:
    """A shared grid samples all members' channels at once; grids of their own go into the batch with the images."""
    if not grid.is_per_member:
        return ctx.value(ctx.call(ctx.op, ctx.folded(x, 1), ctx.shared(grid), *args), Folded(1))
    return ctx.value(ctx.call(ctx.op, ctx.folded(x, 0), ctx.folded(grid, 0), *args), Folded(0))


@rule(aten.prelu.default)
def prelu(ctx: Context, x: Value, weight: Value) -> Value | None:
    """One slope, or one a channel: per channel for all members."""
    if x.rank < 2 or not isinstance(x.shape[1], int):
        return None
    slopes = ctx.weight(aten.expand.default, weight, [x.shape[1]]) if weight.is_weight else weight
    return ctx.value(ctx.call(ctx.op, ctx.folded(x, 1), ctx.folded(slopes, 0)), Folded(1))


@rule(aten.channel_shuffle.default)
def channel_shuffle(ctx: Context, x: Value, groups: int) -> Value | None:
    """`(B, N*G*K, ...)` -> `(B, N*K*G, ...)`: each member's groups among themselves."""
    if not isinstance(x.shape[1], int):
        return None
    node = ctx.call(aten.unflatten.int, ctx.folded(x, 1), 1, [ctx.n_members, groups, x.shape[1] // groups])
    node = ctx.call(aten.flatten.using_ints, ctx.call(aten.transpose.int, node, 2, 3), 1, 3)
    return ctx.value(node, Folded(1))


def _unpool(op: OpOverload, spatial: int) -> Any:
    def batched(ctx: Context, x: Value, places: Value, *args: Any) -> Value:
        """Places count within one channel, so members stay side by side."""
        dim = x.rank - spatial - 1
        return ctx.value(ctx.call(op, ctx.folded(x, dim), ctx.folded(places, dim), *args), Folded(dim))

    return batched


rule(aten.max_unpool2d.default)(_unpool(aten.max_unpool2d.default, 2))
rule(aten.max_unpool3d.default)(_unpool(aten.max_unpool3d.default, 3))
