"""Normalisation layers."""

from __future__ import annotations

import torch

from ensexport.batching.context import Context
from ensexport.batching.registry import rule
from ensexport.batching.value import Folded, Value

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


@rule(aten.layer_norm.default)
def layer_norm(
    ctx: Context,
    x: Value,
    normalized_shape: list[int],
    weight: Value | None = None,
    bias: Value | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Value | None:
    """The op without its affine part, then scale and shift with one slice a member.

    A per-member scale inside the op fails in ONNX Runtime 1.21 to 1.24.2 and on CUDA; multiply and add always work.
    """
    from ensexport.batching.value import Stacked

    if any(not isinstance(size, int) for size in normalized_shape):
        return None
    affine = [value for value in (weight, bias) if value is not None and value.is_per_member]
    rows = ctx.stacked(x) if x.is_per_member else ctx.shared(x)
    if not affine:
        plain = [None if value is None else ctx.shared(value) for value in (weight, bias)]
        node = ctx.call(aten.layer_norm.default, rows, normalized_shape, *plain, eps, cudnn_enable)
        return ctx.value(node, Stacked(0))
    node = ctx.call(aten.layer_norm.default, rows, normalized_shape, None, None, eps, cudnn_enable)
    if weight is not None:
        node = ctx.call(aten.mul.Tensor, node, ctx.broadcast(weight, x.rank))
    if bias is not None:
        node = ctx.call(aten.add.Tensor, node, ctx.broadcast(bias, x.rank))
    return ctx.value(node, Stacked(0))
