"""Convolutions: members packed side by side in the channels, `(B, N*C, H, W)`, from stem to pooling.

Lowering: a shared input meets all members' filters in one wide convolution; after it, N members of G groups are
one convolution of N*G groups. Depthwise stays depthwise. No transpose, no fifth dimension between convolutions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload

from ensexport.batching.context import Context
from ensexport.batching.registry import rule
from ensexport.batching.schema import bound, called_in
from ensexport.batching.value import Folded, Value

aten = torch.ops.aten


def _conv(op: OpOverload, spatial: int) -> Any:
    def batched(ctx: Context, *args: Any, **kwargs: Any) -> Value | None:
        arguments = bound(op, args, kwargs)
        x, weight, bias, groups = (arguments[name] for name in ("input", "weight", "bias", "groups"))
        channel = x.rank - spatial - 1

        def convolve(layout: Folded, rows: fx.Node, filters: fx.Node, bias_node: fx.Node | None, groups: int) -> Value:
            replaced = {"input": rows, "weight": filters, "bias": bias_node, "groups": groups}
            return ctx.value(called_in(ctx, layout, op, {**arguments, **replaced}), layout)

        if not weight.is_per_member and (bias is None or not bias.is_per_member):
            if channel != 1:
                return None
            # The same filters for all members: the members go into the batch.
            shared_bias = None if bias is None else ctx.shared(bias)
            return convolve(Folded(0), ctx.folded(x, 0), ctx.shared(weight), shared_bias, groups)
        if x.is_per_member or groups > 1:
            rows, groups = ctx.folded(x, channel), ctx.n_members * groups
        else:
            rows = ctx.shared(x)
        wide_bias = None if bias is None else ctx.folded(bias, 0)
        return convolve(Folded(channel), rows, ctx.folded(weight, 0), wide_bias, groups)

    return batched


for _op, _spatial in [
    (aten.conv1d.default, 1),
    (aten.conv2d.default, 2),
    (aten.conv3d.default, 3),
    (aten.conv1d.padding, 1),
    (aten.conv2d.padding, 2),
    (aten.conv3d.padding, 3),
]:
    rule(_op)(_conv(_op, _spatial))


def _conv_transpose(op: OpOverload, spatial: int) -> Any:
    def batched(ctx: Context, *args: Any, **kwargs: Any) -> Value | None:
        """Filters `(C, O/G, ...)` have the input channels in front, so a shared input is repeated for each member."""
        arguments = bound(op, args, kwargs)
        x, weight, bias, groups = (arguments[name] for name in ("input", "weight", "bias", "groups"))
        channel = x.rank - spatial - 1
        arguments |= {
            "input": ctx.folded(x, channel),
            "weight": ctx.folded(weight, 0),
            "bias": None if bias is None else ctx.folded(bias, 0),
            "groups": ctx.n_members * groups,
        }
        return ctx.value(called_in(ctx, Folded(channel), op, arguments), Folded(channel))

    return batched


for _op, _spatial in [
    (aten.conv_transpose1d.default, 1),
    (aten.conv_transpose2d.input, 2),
    (aten.conv_transpose3d.input, 3),
]:
    rule(_op)(_conv_transpose(_op, _spatial))
