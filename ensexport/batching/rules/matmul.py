"""Products of two activations, and of activations with weights of any rank."""

from __future__ import annotations

import torch

from ensexport.batching.context import Context
from ensexport.batching.registry import rule
from ensexport.batching.rules.linear import apply_linear
from ensexport.batching.value import Stacked, Value

aten = torch.ops.aten


@rule(aten.matmul.default)
def matmul(ctx: Context, x: Value, y: Value) -> Value | None:
    """A weight matrix on the right is a linear layer; anything else is a batched matmul, members outermost."""
    return _product(ctx, x, y)


def _product(ctx: Context, x: Value, y: Value) -> Value | None:
    if y.is_weight and y.rank == 2 and x.rank >= 1 and not x.is_weight:
        return apply_linear(ctx, x, ctx.weight(aten.permute.default, y, [1, 0]), None)
    if x.rank == 0 or y.rank == 0:
        return None
    left, right = _as_matrix(ctx, x, 0), _as_matrix(ctx, y, 1)
    aligned = _aligned(ctx, x, y, left, right)
    if x.rank > 1 and y.rank > 1:
        # Torch's shape function asks whether dynamic sizes are 0.
        return ctx.value(ctx.call_in(Stacked(0), aten.matmul.default, *aligned), Stacked(0))
    node = ctx.call(aten.matmul.default, *aligned)
    if y.rank == 1:
        node = ctx.call(aten.squeeze.dim, node, -1)
    if x.rank == 1:
        node = ctx.call(aten.squeeze.dim, node, -1 if y.rank == 1 else -2)
    return ctx.value(node, Stacked(0))


def _as_matrix(ctx: Context, value: Value, side: int) -> torch.fx.Node:
    """A vector as a row (left side) or a column (right side), members in front."""
    node = ctx.stacked(value) if value.is_per_member else ctx.shared(value)
    if value.rank > 1:
        return node
    return ctx.call(aten.unsqueeze.default, node, -2 if side == 0 else -1)


def _aligned(
    ctx: Context, x: Value, y: Value, left: torch.fx.Node, right: torch.fx.Node
) -> tuple[torch.fx.Node, torch.fx.Node]:
    """Give both sides the same logical rank, new dims behind the member axis."""
    rank = max(x.rank, y.rank, 2)

    def aligned(value: Value, node: torch.fx.Node) -> torch.fx.Node:
        if value.is_per_member:
            for _ in range(rank - max(value.rank, 2)):
                node = ctx.call(aten.unsqueeze.default, node, 1)
        return node

    return aligned(x, left), aligned(y, right)


@rule(aten.bmm.default)
def bmm(ctx: Context, x: Value, y: Value) -> Value | None:
    """`(B, M, K) @ (B, K, O)`."""
    return _product(ctx, x, y)


@rule(aten.baddbmm.default)
def baddbmm(ctx: Context, bias: Value, x: Value, y: Value, *, beta: float = 1, alpha: float = 1) -> Value | None:
    """`beta * bias + alpha * (x @ y)`."""
    product = _product(ctx, x, y)
    if product is None:
        return None
    node = product.node
    if alpha != 1:
        node = ctx.call(aten.mul.Tensor, node, alpha)
    addend = ctx.broadcast(bias, 3)
    if beta != 1:
        addend = ctx.call(aten.mul.Tensor, addend, beta)
    return ctx.value(ctx.call(aten.add.Tensor, node, addend), Stacked(0))
