"""Scales and shifts that move into the weights beside them, so that they cost nothing at run time.

A per-member scale cannot stand inside `LayerNormalization` (see `rules/norm.py`); it would be two nodes a norm. Where
linear layers or convolutions alone read the result, `norm(x) * g + b` followed by `W` is `norm(x)` followed by
`W * g` with `W @ b` added to the bias. Where a residual sum reads it too, `b` alone moves: into the bias of the layer
that writes the other half of the sum. A per-channel scale right behind a layer is a scale of its filters.

Found once on the member graph (`find_folds`); the new weights are written into the weight graph, computed in float64
for each member when packing (`Folds.folded_weights`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import fx
from torch._ops import OpOverload

from ensexport.batching.context import Context
from ensexport.batching.member_graph import MemberGraph
from ensexport.batching.value import Value, same_size

aten = torch.ops.aten

# op -> positions of scale and shift among its arguments
NORMS = {aten.layer_norm.default: (2, 3), aten.rms_norm.default: (2, None)}
_CONVS = {aten.conv1d.default: 1, aten.conv2d.default: 2, aten.conv3d.default: 3}
SAME = {
    aten.alias.default,
    aten.clone.default,
    aten.contiguous.default,
    aten.detach.default,
    aten.dropout.default,
}
_VIEWS = {aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.flatten.using_ints}
_FOLDED_DTYPES = (torch.float32, torch.float64)


@dataclass(frozen=True)
class _Scale:
    """A per-channel scale, and a shift, that leave the place `node` in the member graph."""

    node: fx.Node
    scale: fx.Node | None
    shift: fx.Node | None


@dataclass(frozen=True)
class Folds:
    """What moves where.

    Attributes:
        norms: Norms that run without their scale and shift.
        shiftless: Norms that run without their shift.
        removed: Multiplications that vanish -> the argument that takes their place.
        inputs: Layer -> the scale and shift of its input channels.
        outputs: Layer -> the scale of its output channels.
        shifts: Layer -> the shift of its output channels.
    """

    norms: set[fx.Node] = field(default_factory=set)
    shiftless: set[fx.Node] = field(default_factory=set)
    removed: dict[fx.Node, fx.Node] = field(default_factory=dict)
    inputs: dict[fx.Node, _Scale] = field(default_factory=dict)
    outputs: dict[fx.Node, fx.Node] = field(default_factory=dict)
    shifts: dict[fx.Node, fx.Node] = field(default_factory=dict)

    def arguments(self, ctx: Context, node: fx.Node, args: tuple[Any, ...], env: dict[fx.Node, Any]) -> tuple[Any, ...]:
        """The arguments a node is batched with: ones and zeros for a norm, the new weights for a layer."""
        if node in self.norms:
            return _without_affine(ctx, node, args)
        if node in self.shiftless:
            position = NORMS[node.target][1]  # type: ignore[index]
            assert position is not None
            return (*args[:position], None, *args[position + 1 :])
        if node in self.inputs or node in self.outputs or node in self.shifts:
            return self._folded_weights(ctx, node, args, env)
        return args

    def _folded_weights(
        self, ctx: Context, node: fx.Node, args: tuple[Any, ...], env: dict[fx.Node, Any]
    ) -> tuple[Any, ...]:
        x, weight, bias = (*args, None, None)[:3]
        dtype, trailing = weight.member.dtype, [1] * (weight.rank - 2)

        def wide(value: Value, shape: list[int]) -> Value:
            flat = ctx.weight(aten.to.dtype, value, torch.float64)
            return ctx.weight(aten.reshape.default, flat, shape)

        new_weight = ctx.weight(aten.to.dtype, weight, torch.float64)
        new_bias = None if bias is None else wide(bias, [-1])
        if node in self.inputs:
            fold = self.inputs[node]
            if fold.shift is not None:
                shifted = ctx.weight(aten.mul.Tensor, new_weight, wide(env[fold.shift], [1, -1, *trailing]))
                moved = ctx.weight(aten.sum.dim_IntList, shifted, list(range(1, weight.rank)))
                new_bias = moved if new_bias is None else ctx.weight(aten.add.Tensor, new_bias, moved)
            if fold.scale is not None:
                new_weight = ctx.weight(aten.mul.Tensor, new_weight, wide(env[fold.scale], [1, -1, *trailing]))
        if node in self.outputs:
            scale = env[self.outputs[node]]
            new_weight = ctx.weight(aten.mul.Tensor, new_weight, wide(scale, [-1, 1, *trailing]))
            new_bias = None if new_bias is None else ctx.weight(aten.mul.Tensor, new_bias, wide(scale, [-1]))
        if node in self.shifts:
            new_bias = ctx.weight(aten.add.Tensor, new_bias, wide(env[self.shifts[node]], [-1]))
        final_bias = None if new_bias is None else ctx.weight(aten.to.dtype, new_bias, dtype)
        return (x, ctx.weight(aten.to.dtype, new_weight, dtype), final_bias, *args[3:])


def _without_affine(ctx: Context, node: fx.Node, args: tuple[Any, ...]) -> tuple[Any, ...]:
    new_args = list(args)
    for position, fill in zip(NORMS[node.target], (1.0, 0.0), strict=True):  # type: ignore[index]
        if position is not None and len(args) > position and args[position] is not None:
            dtype = args[position].member.dtype
            new_args[position] = ctx.constant(aten.full.default, list(args[1]), fill, dtype=dtype)
    return tuple(new_args)


def find_folds(member: MemberGraph, is_shared: Callable[[str], bool]) -> Folds:
    """Find what can move.

    Only scales that differ between members are worth it, and never into a layer whose weights are equal in all
    members or used elsewhere too: those are kept once.

    Args:
        member: The member graph; it is not changed.
        is_shared: Is the state tensor of this name equal in all members?
    """
    folds = Folds()
    finder = _Finder(member, is_shared)
    for node in member.graph.nodes:
        found = finder.scale_of(node)
        if found is None:
            continue
        scale, channels = found
        layers = finder.readers(node, channels, has_shift=scale.shift is not None)
        if layers and not any(layer in folds.inputs for layer in layers):
            folds.inputs.update(dict.fromkeys(layers, scale))
            if node.target in NORMS:
                folds.norms.add(node)
            else:
                folds.removed[node] = finder.scaled(node)
        elif node.target is aten.mul.Tensor:
            x = finder.scaled(node)
            layer = finder.writer(x, channels)
            if layer is not None and layer not in folds.outputs and scale.scale is not None:
                folds.outputs[layer] = scale.scale
                folds.removed[node] = x
        elif scale.shift is not None:
            _move_shift(folds, finder, scale, channels)
    return folds


def _move_shift(folds: Folds, finder: _Finder, scale: _Scale, channels: int) -> None:
    """Move the shift alone, if residual sums and layers are all that reads it."""
    assert scale.shift is not None
    found = finder.summed(scale.node, channels)
    if found is None:
        return
    readers, writers = found
    if len(set(writers)) != len(writers) or any(layer in folds.shifts for layer in writers):
        return
    if any(layer in folds.inputs for layer in readers):
        return
    folds.shiftless.add(scale.node)
    folds.inputs.update(dict.fromkeys(readers, _Scale(scale.node, None, scale.shift)))
    folds.shifts.update(dict.fromkeys(writers, scale.shift))


class _Finder:
    def __init__(self, member: MemberGraph, is_shared: Callable[[str], bool]) -> None:
        self.member = member
        self.is_shared = is_shared

    def state_of(self, node: Any) -> fx.Node | None:
        """The state tensor a node is, or is a view of."""
        while isinstance(node, fx.Node) and node not in self.member.state:
            if node.target not in _VIEWS | SAME | {aten.unsqueeze.default}:
                return None
            node = node.args[0]
        return node if isinstance(node, fx.Node) else None

    def scaled(self, product: fx.Node) -> fx.Node:
        """What a product with a state tensor, or a view of one, scales."""
        first, second = cast(tuple[fx.Node, fx.Node], product.args)
        return first if self.state_of(second) is not None else second

    def _is_per_member(self, node: fx.Node | None) -> bool:
        return node is not None and not self.is_shared(self.member.state[node])

    def scale_of(self, node: fx.Node) -> tuple[_Scale, int] | None:
        """The per-channel scale and shift that a node applies, and the dim of the channels in its result."""
        if node.op != "call_function" or not isinstance(node.meta.get("val"), torch.Tensor):
            return None
        result = node.meta["val"]
        if result.dtype not in _FOLDED_DTYPES:
            return None
        if node.target in NORMS and len(node.args[1]) == 1:  # type: ignore[arg-type]
            scale, shift = (
                cast(fx.Node | None, None if position is None or position >= len(node.args) else node.args[position])
                for position in NORMS[cast(OpOverload, node.target)]
            )
            given = [part for part in (scale, shift) if part is not None]
            if given and all(part in self.member.state for part in given) and any(map(self._is_per_member, given)):
                return _Scale(node, scale, shift), result.dim() - 1
        if node.target is aten.mul.Tensor:
            return self._product(node, result)
        return None

    def _product(self, node: fx.Node, result: torch.Tensor) -> tuple[_Scale, int] | None:
        states = [self.state_of(arg) for arg in node.args]
        if (states[0] is None) == (states[1] is None):
            return None
        factor, x = (node.args[0], node.args[1]) if states[0] is not None else (node.args[1], node.args[0])
        state = states[0] if states[0] is not None else states[1]
        if not isinstance(factor, fx.Node) or not isinstance(x, fx.Node) or not self._is_per_member(state):
            return None
        scale = factor.meta["val"]
        wide = [dim for dim in range(-scale.dim(), 0) if not same_size(scale.shape[dim], 1)]
        if len(wide) != 1 or scale.dim() > result.dim() or scale.dtype != result.dtype:
            return None
        if x.meta["val"].dtype != result.dtype or x.meta["val"].dim() != result.dim():
            return None
        if not same_size(x.meta["val"].shape[wide[0]], scale.numel()):
            return None
        return _Scale(node, state, None), result.dim() + wide[0]

    def readers(self, node: fx.Node, channels: int, *, has_shift: bool) -> list[fx.Node]:
        """The layers that read a node's channels, if nothing else does; else an empty list."""
        layers: list[fx.Node] = []
        for user in node.users:
            if self._takes_fold(user, node, channels, has_shift):
                layers.append(user)
                continue
            passed = _passed_on(user, node, channels)
            further = [] if passed is None else self.readers(user, passed, has_shift=has_shift)
            if not further:
                return []
            layers.extend(further)
        return layers

    def summed(self, node: fx.Node, channels: int) -> tuple[list[fx.Node], list[fx.Node]] | None:
        """The layers that read a node, and those that write what it is added to; None if anything else reads it."""
        readers: list[fx.Node] = []
        writers: list[fx.Node] = []
        for user in node.users:
            if self._takes_fold(user, node, channels, has_shift=True):
                readers.append(user)
            elif user.target is aten.add.Tensor:
                writer = self._writer_of_other(user, node, channels)
                if writer is None:
                    return None
                writers.append(writer)
            else:
                passed = _passed_on(user, node, channels)
                further = None if passed is None else self.summed(user, passed)
                if further is None:
                    return None
                readers += further[0]
                writers += further[1]
        return readers, writers

    def _writer_of_other(self, total: fx.Node, node: fx.Node, channels: int) -> fx.Node | None:
        """The layer with a bias that writes the other half of a sum of two tensors of one shape."""
        halves = [arg for arg in total.args if arg is not node]
        if len(halves) != 1 or not isinstance(halves[0], fx.Node) or total.kwargs:
            return None
        shapes = [part.meta["val"].shape for part in (node, halves[0], total)]
        if len({len(shape) for shape in shapes}) != 1 or halves[0].meta["val"].dtype != total.meta["val"].dtype:
            return None
        if not all(
            same_size(size, other) for shape in shapes[1:] for size, other in zip(shapes[0], shape, strict=True)
        ):
            return None
        layer = self.writer(halves[0], channels)
        return layer if layer is not None and len(layer.args) > 2 and layer.args[2] is not None else None

    def _takes_fold(self, layer: fx.Node, x: fx.Node, channels: int, has_shift: bool) -> bool:
        if not self._is_layer(layer) or layer.args[0] is not x or list(layer.all_input_nodes).count(x) != 1:
            return False
        rank = x.meta["val"].dim()
        if layer.target is aten.linear.default:
            return bool(channels == rank - 1)
        spatial = _CONVS[layer.target]  # type: ignore[index]
        _, _, _, _, padding, _, groups = _conv_arguments(layer, spatial)
        is_padded = any(padding) and has_shift  # the shift of a padded border is no constant
        return bool(channels == rank - spatial - 1 and groups == 1 and not is_padded)

    def writer(self, node: Any, channels: int) -> fx.Node | None:
        """The layer whose output channels a node hands on, if nobody else reads them on the way."""
        while isinstance(node, fx.Node) and len(node.users) == 1:
            if self._is_layer(node):
                spatial = 0 if node.target is aten.linear.default else _CONVS[node.target]  # type: ignore[index]
                return node if channels == node.meta["val"].dim() - spatial - 1 else None
            source = node.args[0] if node.args else None
            if not isinstance(source, fx.Node):
                return None
            before = (
                [dim for dim in range(source.meta["val"].dim()) if _passed_on(node, source, dim) == channels]
                if isinstance(source.meta.get("val"), torch.Tensor)
                else []
            )
            if len(before) != 1:
                return None
            node, channels = source, before[0]
        return None

    def _is_layer(self, node: fx.Node) -> bool:
        """A linear layer or convolution with weights of its own that differ between members."""
        if node.target is not aten.linear.default and node.target not in _CONVS:
            return False
        weight, bias = (*node.args, None)[1:3]
        given = [weight] if bias is None else [weight, bias]
        if node.kwargs or not all(map(self._is_own_state, given)):
            return False
        return self._is_per_member(self.state_of(weight))

    def _is_own_state(self, node: Any) -> bool:
        """Is it a state tensor, or a view of one, that nothing else reads?"""
        while isinstance(node, fx.Node) and len(node.users) == 1:
            if node in self.member.state:
                return True
            node = node.args[0] if node.target in _VIEWS else None
        return False


def _conv_arguments(node: fx.Node, spatial: int) -> tuple[Any, ...]:
    names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    defaults = (None, None, None, [1] * spatial, [0] * spatial, [1] * spatial, 1)
    given = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    return tuple(given.get(name, default) for name, default in zip(names, defaults, strict=True))


def _passed_on(node: fx.Node, source: fx.Node, channels: int) -> int | None:
    """The dim where the channels of `source` stand in the result of `node`, which changes no value; else None."""
    result = node.meta.get("val")
    if node.op != "call_function" or node.args[0] is not source or not isinstance(result, torch.Tensor):
        return None
    shape, args = source.meta["val"].shape, list(node.args)
    rank = len(shape)
    if node.target in SAME or node.target is aten.roll.default:
        return channels
    if node.target in (aten.permute.default, aten.transpose.int):
        return order_of(node, rank).index(channels)
    if node.target in _VIEWS:
        return _kept_by_view(shape, result.shape, channels)
    if node.target in (aten.slice.Tensor, aten.select.int):
        dim = cast(int, args[1] if len(args) > 1 else 0) % rank
        gone = node.target is aten.select.int and dim < channels
        return None if dim == channels else channels - int(gone)
    return None


def _kept_by_view(shape: torch.Size, result: torch.Size, channels: int) -> int | None:
    """Where a view keeps the channels: as the last dim, or where it only adds and takes away dims of size 1."""
    if channels == len(shape) - 1 and len(result) > 0 and same_size(result[-1], shape[-1]):
        return len(result) - 1
    before = [dim for dim, size in enumerate(shape) if not same_size(size, 1)]
    after = [dim for dim, size in enumerate(result) if not same_size(size, 1)]
    if channels not in before or len(before) != len(after):
        return None
    if not all(same_size(shape[old], result[new]) for old, new in zip(before, after, strict=True)):
        return None
    return after[before.index(channels)]


def order_of(node: fx.Node, rank: int) -> list[int]:
    """The dims of the argument in the order of the result."""
    if node.target is aten.permute.default:
        return [dim % rank for dim in cast(list[int], node.args[1])]
    order = list(range(rank))
    first, second = cast(int, node.args[1]) % rank, cast(int, node.args[2]) % rank
    order[first], order[second] = order[second], order[first]
    return order
