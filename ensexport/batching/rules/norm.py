"""Normalisation layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from ensexport.batching.context import Context
from ensexport.batching.registry import rule
from ensexport.batching.value import ROWS, Folded, Stacked, Value

aten = torch.ops.aten


@rule(aten.batch_norm.default)
def batch_norm(
    ctx: Context,
    x: Value,
    weight: Value | None,
    bias: Value | None,
    running_mean: Value | None,
    running_var: Value | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Value | None:
    """One batch norm over N*C channels; statistics are per channel, so members cannot mix."""
    if x.rank < 2:
        return None
    node = ctx.call(
        aten.batch_norm.default,
        ctx.folded(x, 1),
        *(None if value is None else ctx.folded(value, 0) for value in (weight, bias, running_mean, running_var)),
        training,
        momentum,
        eps,
        cudnn_enabled,
    )
    return ctx.value(node, Folded(1))


@rule(aten._native_batch_norm_legit_no_training.default)
def native_batch_norm(
    ctx: Context,
    x: Value,
    weight: Value | None,
    bias: Value | None,
    running_mean: Value,
    running_var: Value,
    momentum: float,
    eps: float,
) -> tuple[Value | None, ...] | None:
    """The functional form in eval mode; only its first result is ever used."""
    member = ctx.result
    ctx.result = member[0]
    out = batch_norm(ctx, x, weight, bias, running_mean, running_var, False, momentum, eps, False)
    ctx.result = member
    return None if out is None else (out, None, None)


@rule(aten.instance_norm.default)
def instance_norm(
    ctx: Context,
    x: Value,
    weight: Value | None,
    bias: Value | None,
    running_mean: Value | None,
    running_var: Value | None,
    *args: Any,
) -> Value:
    """One instance norm over N*C channels."""
    per_channel = (weight, bias, running_mean, running_var)
    nodes = [None if value is None else ctx.folded(value, 0) for value in per_channel]
    return ctx.value(ctx.call(aten.instance_norm.default, ctx.folded(x, 1), *nodes, *args), Folded(1))


@rule(aten.group_norm.default)
def group_norm(
    ctx: Context,
    x: Value,
    num_groups: int,
    weight: Value | None = None,
    bias: Value | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Value:
    """One group norm over N*C channels in N*G groups."""
    nodes = [None if value is None else ctx.folded(value, 0) for value in (weight, bias)]
    groups = ctx.n_members * num_groups
    node = ctx.call(aten.group_norm.default, ctx.folded(x, 1), groups, *nodes, eps, cudnn_enabled)
    return ctx.value(node, Folded(1))


@rule(aten.layer_norm.default)
def layer_norm(
    ctx: Context,
    x: Value,
    normalized_shape: list[int],
    weight: Value | None = None,
    bias: Value | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Value:
    """The op without its affine part, then scale and shift with one slice a member.

    A per-member scale inside the op fails in ONNX Runtime 1.21 to 1.24.2 and on CUDA; multiply and add always work.
    """

    def normalize(rows: fx.Node, scale: fx.Node, shift: fx.Node) -> fx.Node:
        return ctx.call(aten.layer_norm.default, rows, normalized_shape, scale, shift, eps, cudnn_enable)

    return _affine(ctx, x, normalized_shape, weight, bias, normalize)


@rule(aten.rms_norm.default)
def rms_norm(
    ctx: Context, x: Value, normalized_shape: list[int], weight: Value | None = None, eps: float | None = None
) -> Value:
    """Like `layer_norm`, without a shift."""

    def normalize(rows: fx.Node, scale: fx.Node, shift: fx.Node) -> fx.Node:
        return ctx.call(aten.rms_norm.default, rows, normalized_shape, scale, eps)

    return _affine(ctx, x, normalized_shape, weight, None, normalize)


def _affine(
    ctx: Context,
    x: Value,
    normalized_shape: list[int],
    weight: Value | None,
    bias: Value | None,
    normalize: Callable[[fx.Node, fx.Node, fx.Node], fx.Node],
) -> Value:
    """Normalise with a scale of ones and a shift of zeros given as tensors: left out, ONNX would compute them."""
    in_rows = x.layout in (ROWS, Folded(x.rank - 1)) and x.rank > 2 and len(normalized_shape) == 1
    rows = ctx.rows(x) if in_rows else ctx.stacked(x) if x.is_per_member else ctx.shared(x)
    wrapped = ctx.rows_value if in_rows else lambda node: ctx.value(node, Stacked(0))
    rank = 2 if in_rows else x.rank
    dtype = ctx.result.dtype
    ones = ctx.shared(ctx.constant(aten.full.default, normalized_shape, 1.0, dtype=dtype))
    zeros = ctx.shared(ctx.constant(aten.full.default, normalized_shape, 0.0, dtype=dtype))
    if not any(value is not None and value.is_per_member for value in (weight, bias)):
        scale, shift = (ctx.shared(v) if v is not None else default for v, default in ((weight, ones), (bias, zeros)))
        return wrapped(normalize(rows, scale, shift))
    node = normalize(rows, ones, zeros)
    if weight is not None:
        node = ctx.call(aten.mul.Tensor, node, ctx.broadcast(weight, rank))
    if bias is not None:
        node = ctx.call(aten.add.Tensor, node, ctx.broadcast(bias, rank))
    return wrapped(node)
