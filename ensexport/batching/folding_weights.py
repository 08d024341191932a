"""The weights of a layer that scales and shifts moved into, computed in float64 for each member when packing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx

from ensexport.batching.context import Context
from ensexport.batching.layers import TRANSPOSED, groups_of
from ensexport.batching.scales import Scale, Vector, wide
from ensexport.batching.value import Value

aten = torch.ops.aten


def folded_weights(
    ctx: Context,
    layer: fx.Node,
    args: tuple[Any, ...],
    env: Mapping[fx.Node, Any],
    before: Scale | None,
    behind: Sequence[Scale],
    added: Vector | None,
) -> tuple[Any, ...]:
    """The arguments of a layer with new weight and bias.

    Args:
        ctx: Writes the weight graph.
        layer: The layer in the member graph.
        args: What it is batched with.
        env: Values of the member graph's nodes.
        before: The scale and shift of its input channels.
        behind: Those of its output channels, in order.
        added: What is added to its output channels at last.
    """
    x, weight, bias = (*args, None, None)[:3]
    dtype = weight.member.dtype
    new_weight = ctx.weight(aten.to.dtype, weight, torch.float64)
    new_bias = None if bias is None else wide(ctx, bias)
    if before is not None:
        per_input = [*((-1, 1) if layer.target in TRANSPOSED else (1, -1)), *[1] * (weight.rank - 2)]
        if before.shift is not None:
            shift = ctx.weight(aten.reshape.default, before.shift(ctx, env), per_input)
            shifted = ctx.weight(aten.mul.Tensor, new_weight, shift)
            moved = ctx.weight(aten.sum.dim_IntList, shifted, list(range(1, weight.rank)))
            new_bias = _plus(ctx, new_bias, moved)
        if before.scale is not None:
            scale = ctx.weight(aten.reshape.default, before.scale(ctx, env), per_input)
            new_weight = ctx.weight(aten.mul.Tensor, new_weight, scale)
    for fold in behind:
        if fold.scale is not None:
            vector = fold.scale(ctx, env)
            new_weight = _scaled_outputs(ctx, layer, new_weight, vector)
            new_bias = None if new_bias is None else ctx.weight(aten.mul.Tensor, new_bias, vector)
        if fold.shift is not None:
            new_bias = _plus(ctx, new_bias, fold.shift(ctx, env))
    if added is not None:
        new_bias = _plus(ctx, new_bias, added(ctx, env))
    final_bias = None if new_bias is None else ctx.weight(aten.to.dtype, new_bias, dtype)
    return (x, ctx.weight(aten.to.dtype, new_weight, dtype), final_bias, *args[3:])


def _plus(ctx: Context, bias: Value | None, shift: Value) -> Value:
    return shift if bias is None else ctx.weight(aten.add.Tensor, bias, shift)


def _scaled_outputs(ctx: Context, layer: fx.Node, weight: Value, vector: Value) -> Value:
    """Scale the filters of each output channel: `(O, ...)`, or `(I, O / groups, ...)` of a transposed convolution."""
    trailing = list(weight.shape[2:])
    if layer.target not in TRANSPOSED or vector.shape[0] == 1:
        scale = ctx.weight(aten.reshape.default, vector, [-1, 1, *[1] * len(trailing)])
        return ctx.weight(aten.mul.Tensor, weight, scale)
    groups, (inputs, outputs) = groups_of(layer), weight.shape[:2]
    grouped = ctx.weight(aten.reshape.default, weight, [groups, inputs // groups, outputs, *trailing])
    scale = ctx.weight(aten.reshape.default, vector, [groups, 1, outputs, *[1] * len(trailing)])
    return ctx.weight(aten.reshape.default, ctx.weight(aten.mul.Tensor, grouped, scale), list(weight.shape))
