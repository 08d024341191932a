"""The scale and shift that an op of a member graph applies to each channel.

Norms end with one, a product with a parameter is one, so is a product with a number, and a batch norm in eval mode is
nothing else. `Scales.of` says which; `folding.py` decides where they go.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import fx
from torch._ops import OpOverload

from ensexport.batching.context import Context
from ensexport.batching.layers import EVERYWHERE, SAME, VIEWS
from ensexport.batching.member_graph import MemberGraph
from ensexport.batching.value import Value, same_size

aten = torch.ops.aten

# op -> positions of scale and shift among its arguments
NORMS = {aten.layer_norm.default: (2, 3), aten.rms_norm.default: (2, None)}
_DTYPES = (torch.float32, torch.float64)
_BY_A_NUMBER = {aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar}
_SMALLEST = 1e-10  # of numbers that move: far smaller or larger ones could leave the range of float32

Vector = Callable[[Context, Mapping[fx.Node, Any]], Value]
"""Writes a vector of float64, one number a channel or one for all, into the weight graph."""


@dataclass(frozen=True)
class Scale:
    """`x * scale + shift` for each channel.

    Attributes:
        node: Whose result it is.
        x: What is scaled; for a norm, which does more than that, the norm itself.
        channels: The dim of the channels in the result; EVERYWHERE for one number.
        scale: None for 1; one number or one for each channel.
        shift: None for 0.
        into_shared: May it go into a layer that is equal in all members? That would not be so any more if it differs.
    """

    node: fx.Node
    x: fx.Node
    channels: int
    scale: Vector | None
    shift: Vector | None
    into_shared: bool = False


class Scales:
    """Reads scales off a member graph."""

    def __init__(self, member: MemberGraph, is_shared: Callable[[str], bool]) -> None:
        self._member = member
        self._is_shared = is_shared

    def of(self, node: fx.Node) -> Scale | None:
        """The scale that a node applies, None if it does anything else."""
        result = node.meta.get("val")
        if node.op != "call_function" or not isinstance(result, torch.Tensor) or result.dtype not in _DTYPES:
            return None
        if node.target in NORMS and len(node.args[1]) == 1:  # type: ignore[arg-type]
            return self._norm(node, result)
        if node.target is aten.batch_norm.default or node.target is operator.getitem:
            return self._batch_norm(node)
        number = _number(node, result)
        if number is not None:
            return number
        return self._product(node, result) if node.target is aten.mul.Tensor else None

    def state_of(self, node: Any) -> fx.Node | None:
        """The state tensor a node is, or is a view of."""
        while isinstance(node, fx.Node) and node not in self._member.state:
            if node.target not in VIEWS | SAME | {aten.unsqueeze.default}:
                return None
            node = node.args[0]
        return node if isinstance(node, fx.Node) else None

    def differ(self, nodes: Iterable[fx.Node]) -> bool:
        """Is any of these, state tensors, views of them or several joined, not the same for all members?"""
        states = [self.state_of(part) for node in nodes for part in joined_parts(node)]
        return any(state is not None and not self._is_shared(self._member.state[state]) for state in states)

    def _norm(self, node: fx.Node, result: torch.Tensor) -> Scale | None:
        scale, shift = (
            cast(fx.Node | None, None if position is None or position >= len(node.args) else node.args[position])
            for position in NORMS[cast(OpOverload, node.target)]
        )
        given = [part for part in (scale, shift) if part is not None]
        if not given or not all(part in self._member.state for part in given) or not self.differ(given):
            return None
        return Scale(node, node, result.dim() - 1, _vector(scale), _vector(shift))

    def _product(self, node: fx.Node, result: torch.Tensor) -> Scale | None:
        states = [self.state_of(arg) for arg in node.args]
        if (states[0] is None) == (states[1] is None):
            return None
        factor, x = (node.args[0], node.args[1]) if states[0] is not None else (node.args[1], node.args[0])
        if not isinstance(factor, fx.Node) or not isinstance(x, fx.Node) or not self.differ([factor]):
            return None
        scale = factor.meta["val"]
        wide = [dim for dim in range(-scale.dim(), 0) if not same_size(scale.shape[dim], 1)]
        if len(wide) != 1 or scale.dim() > result.dim() or scale.dtype != result.dtype:
            return None
        if x.meta["val"].dtype != result.dtype or x.meta["val"].dim() != result.dim():
            return None
        if not same_size(x.meta["val"].shape[wide[0]], scale.numel()):
            return None
        return Scale(node, x, result.dim() + wide[0], _vector(self.state_of(factor)), None)

    def _batch_norm(self, node: fx.Node) -> Scale | None:
        """A batch norm in eval mode, whole or as the first result of its functional form."""
        norm = node
        if node.target is operator.getitem:
            norm = cast(fx.Node, node.args[0])
            if norm.target is not aten._native_batch_norm_legit_no_training.default or node.args[1] != 0:
                return None
            eps = norm.args[6]
        else:
            is_training, eps = node.args[5], node.args[7]
            if is_training:
                return None
        x = cast(fx.Node, norm.args[0])
        weight, bias, mean, variance = cast(list[fx.Node | None], norm.args[1:5])
        given = [part for part in (weight, bias, mean, variance) if part is not None]
        # State stands before all layers; a view of it may not.
        weight, bias, mean, variance = map(self.state_of, (weight, bias, mean, variance))
        if mean is None or variance is None or len(given) != sum(map(bool, (weight, bias, mean, variance))):
            return None
        # Without an eps a variance of 0 gives an infinity where W * inf would give NaN.
        if x.meta["val"].dim() < 2 or not isinstance(eps, float) or eps <= 0:
            return None
        scale, shift = batch_norm_vectors(weight, bias, mean, variance, eps)
        return Scale(node, x, 1, scale, shift, into_shared=not self.differ(given))


def batch_norm_vectors(
    weight: fx.Node | None, bias: fx.Node | None, mean: fx.Node, variance: fx.Node, eps: float
) -> tuple[Vector, Vector]:
    """`weight / sqrt(variance + eps)` and `bias - mean * scale`; a variance below -eps gives NaN, as in the norm."""

    def scale(ctx: Context, env: Mapping[fx.Node, Any]) -> Value:
        inverse = ctx.weight(aten.rsqrt.default, ctx.weight(aten.add.Tensor, wide(ctx, env[variance]), eps))
        return inverse if weight is None else ctx.weight(aten.mul.Tensor, wide(ctx, env[weight]), inverse)

    def shift(ctx: Context, env: Mapping[fx.Node, Any]) -> Value:
        moved = ctx.weight(aten.mul.Tensor, wide(ctx, env[mean]), scale(ctx, env))
        if bias is None:
            return ctx.weight(aten.neg.default, moved)
        return ctx.weight(aten.sub.Tensor, wide(ctx, env[bias]), moved)

    return scale, shift


def _number(node: fx.Node, result: torch.Tensor) -> Scale | None:
    """A product with a number, or a quotient by one, that leaves weights as exact as they are."""
    if node.target not in _BY_A_NUMBER or len(node.args) != 2 or node.kwargs:
        return None
    x, number = node.args
    if not isinstance(x, fx.Node) or not isinstance(number, int | float) or isinstance(number, bool):
        return None
    if x.meta["val"].dtype != result.dtype or not _SMALLEST <= abs(number) <= 1 / _SMALLEST or _is_gated(x):
        return None
    factor = float(number) if node.target in (aten.mul.Tensor, aten.mul.Scalar) else 1 / number

    def scale(ctx: Context, env: Mapping[fx.Node, Any]) -> Value:
        return ctx.constant(aten.full.default, [1], factor, dtype=torch.float64)

    return Scale(node, x, EVERYWHERE, scale, None)


def _is_gated(node: fx.Node) -> bool:
    """Is it a product of two activations? ONNX Runtime knows a GELU that is written out by the number behind one."""
    return node.target is aten.mul.Tensor and len(node.all_input_nodes) == 2


def joined_parts(node: fx.Node) -> list[fx.Node]:
    """The weights that are joined, or the one weight itself."""
    return cast(list[fx.Node], node.args[0]) if node.target is aten.cat.default else [node]


def _vector(node: fx.Node | None) -> Vector | None:
    """A state tensor of one number a channel."""
    return None if node is None else lambda ctx, env: wide(ctx, env[node])


def wide(ctx: Context, value: Value) -> Value:
    """A weight of one number a channel as a vector of float64."""
    return ctx.weight(aten.reshape.default, ctx.weight(aten.to.dtype, value, torch.float64), [-1])
