"""Linear layers: one wide `Gemm` while the input is shared, member-first batched matmuls after it.

Lowering: a broadcast-batch matmul `x[B,K] @ w[N,K,O]` is never emitted (cuBLAS takes its pointer-array form with
three host copies a node); a shared input meets `w[N*O,K]` in one `Gemm`, whose result stays wide, `(B, N*O)`,
through the activation. A per-member input meets `w[N,K,O]` in a strided-batched matmul of rank 3.
"""

from __future__ import annotations

import torch

from ensexport.batching.context import Context
from ensexport.batching.registry import rule
from ensexport.batching.value import ROWS, Folded, Stacked, Value

aten = torch.ops.aten


@rule(aten.linear.default)
def linear(ctx: Context, x: Value, weight: Value, bias: Value | None = None) -> Value | None:
    """`x (B, ..., K)`, `weight (O, K)`, `bias (O,)`."""
    return apply_linear(ctx, x, weight, bias)


def apply_linear(ctx: Context, x: Value, weight: Value, bias: Value | None) -> Value | None:
    """`x @ weight.T + bias` for all members; shared by every op that comes down to it."""
    if weight.rank != 2:
        return None
    if not x.is_per_member:
        wide_bias = None if bias is None else ctx.folded(bias, 0)
        node = ctx.call(aten.linear.default, ctx.shared(x), ctx.folded(weight, 0), wide_bias)
        return ctx.value(node, Folded(x.rank - 1))
    if not weight.is_per_member and (bias is None or not bias.is_per_member):
        shared_bias = None if bias is None else ctx.shared(bias)
        if x.layout == ROWS:
            return ctx.rows_value(ctx.call(aten.linear.default, x.node, ctx.shared(weight), shared_bias))
        return ctx.value(ctx.call(aten.linear.default, ctx.stacked(x), ctx.shared(weight), shared_bias), Stacked(0))
    rows = ctx.call(aten.unsqueeze.default, ctx.stacked(x), 1) if x.rank == 1 else ctx.rows(x)
    node = ctx.call(aten.bmm.default, rows, _transposed(ctx, weight))
    if bias is not None:
        node = ctx.call(aten.add.Tensor, node, ctx.broadcast(bias, 2))
    if x.rank == 1:
        return ctx.value(ctx.call(aten.squeeze.dim, node, 1), Stacked(0))
    return ctx.rows_value(node)


def _transposed(ctx: Context, weight: Value) -> torch.fx.Node:
    """`(N, K, O)`: laid out so when packing, transposed in the graph only for a weight that is computed there."""
    if weight.is_weight:
        return ctx.stacked(ctx.weight(aten.permute.default, weight, [1, 0]))
    return ctx.call(aten.permute.default, ctx.stacked(weight), [0, 2, 1])


@rule(aten.addmm.default)
def addmm(ctx: Context, bias: Value, x: Value, weight: Value, *, beta: float = 1, alpha: float = 1) -> Value | None:
    """`bias + x (B, K) @ weight (K, O)`, as decomposed programs write a linear layer."""
    if beta != 1 or alpha != 1 or not weight.is_weight or bias.rank != 1:
        return None
    return apply_linear(ctx, x, ctx.weight(aten.permute.default, weight, [1, 0]), bias)


@rule(aten.mm.default)
def mm(ctx: Context, x: Value, weight: Value) -> Value | None:
    """`x (B, K) @ weight (K, O)`."""
    if not weight.is_weight:
        return None
    return apply_linear(ctx, x, ctx.weight(aten.permute.default, weight, [1, 0]), None)
