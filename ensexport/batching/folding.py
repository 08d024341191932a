"""Scales and shifts that move into the weights beside them, so that they cost nothing at run time.

A batch norm in eval mode is a scale and a shift of the layer before it. A per-member scale cannot stand inside
`LayerNormalization` (see `rules/norm.py`); it would be two nodes a norm. Where linear layers or convolutions alone
read the result, `norm(x) * g + b` followed by `W` is `norm(x)` followed by `W * g` with `W @ b` added to the bias.
Where a residual sum reads it too, `b` alone moves: into the bias of the layer that writes the other half of the sum.
A per-channel scale right behind a layer is a scale of its filters, and so is a number, such as attention's.

Found once on the member graph (`find_folds`), which is not changed; `Folds` tells the engine what each op is batched
with instead. After it, all values but those of the removed ops and of the layers before them are what they were.
Numbers that are not finite stay so: a NaN among the statistics is a NaN in the weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx

from ensexport.batching.context import Context
from ensexport.batching.folding_weights import folded_weights
from ensexport.batching.layers import (
    EVERYWHERE,
    LAYERS,
    TRANSPOSED,
    VIEWS,
    came_from,
    channel_dim,
    groups_of,
    is_padded,
    passed_on,
)
from ensexport.batching.member_graph import MemberGraph
from ensexport.batching.scales import NORMS, Scale, Scales, Vector
from ensexport.batching.value import same_size

aten = torch.ops.aten


@dataclass(frozen=True)
class Folds:
    """What moves where.

    Attributes:
        norms: Norms that run without their scale and shift.
        shiftless: Norms that run without their shift.
        removed: Ops that vanish -> the argument that takes their place.
        inputs: Layer -> the scale and shift of its input channels.
        outputs: Layer -> the scales and shifts of its output channels, in order.
        shifts: Layer -> the shift of its output channels that comes last.
    """

    norms: set[fx.Node] = field(default_factory=set)
    shiftless: set[fx.Node] = field(default_factory=set)
    removed: dict[fx.Node, fx.Node] = field(default_factory=dict)
    inputs: dict[fx.Node, Scale] = field(default_factory=dict)
    outputs: dict[fx.Node, list[Scale]] = field(default_factory=dict)
    shifts: dict[fx.Node, Vector] = field(default_factory=dict)

    def arguments(self, ctx: Context, node: fx.Node, args: tuple[Any, ...], env: dict[fx.Node, Any]) -> tuple[Any, ...]:
        """The arguments a node is batched with: ones and zeros for a norm, the new weights for a layer."""
        if node in self.norms:
            return _without_affine(ctx, node, args)
        if node in self.shiftless:
            position = NORMS[node.target][1]  # type: ignore[index]
            assert position is not None
            return (*args[:position], None, *args[position + 1 :])
        if node in self.inputs or node in self.outputs or node in self.shifts:
            before, behind, added = self.inputs.get(node), self.outputs.get(node, ()), self.shifts.get(node)
            return folded_weights(ctx, node, args, env, before, behind, added)
        return args


def _without_affine(ctx: Context, node: fx.Node, args: tuple[Any, ...]) -> tuple[Any, ...]:
    new_args = list(args)
    for position, fill in zip(NORMS[node.target], (1.0, 0.0), strict=True):  # type: ignore[index]
        if position is not None and len(args) > position and args[position] is not None:
            dtype = args[position].member.dtype
            new_args[position] = ctx.constant(aten.full.default, list(args[1]), fill, dtype=dtype)
    return tuple(new_args)


def find_folds(member: MemberGraph, is_shared: Callable[[str], bool]) -> Folds:
    """Find what can move.

    Never into a layer whose weights are used elsewhere too, nor what differs between members into one whose weights
    are equal in all of them: those are kept once.

    Args:
        member: The member graph; it is not changed.
        is_shared: Is the state tensor of this name equal in all members?
    """
    folds, scales = Folds(), Scales(member, is_shared)
    finder = _Finder(member, scales, folds)
    for node in member.graph.nodes:
        scale = scales.of(node)
        if scale is not None and not _into_writer(folds, finder, scale) and not _into_readers(folds, finder, scale):
            _move_shift(folds, finder, scale)
    return folds


def _into_writer(folds: Folds, finder: _Finder, scale: Scale) -> bool:
    """Move it into the layer that alone writes what is scaled."""
    if scale.node.target in NORMS:
        return False
    layer = finder.writer(scale.x, scale.channels, into_shared=scale.into_shared)
    if layer is None:
        return False
    folds.outputs.setdefault(layer, []).append(scale)
    folds.removed[scale.node] = scale.x
    return True


def _into_readers(folds: Folds, finder: _Finder, scale: Scale) -> bool:
    """Move it into the layers that alone read what is scaled."""
    layers = finder.readers(scale.node, scale)
    if not layers or any(layer in folds.inputs for layer in layers):
        return False
    folds.inputs.update(dict.fromkeys(layers, scale))
    if scale.node.target in NORMS:
        folds.norms.add(scale.node)
    else:
        folds.removed[scale.node] = scale.x
    return True


def _move_shift(folds: Folds, finder: _Finder, scale: Scale) -> None:
    """Move the shift of a norm alone, if residual sums and layers are all that reads it."""
    if scale.shift is None or scale.node.target not in NORMS:
        return
    found = finder.summed(scale.node, replace(scale, scale=None))
    if found is None:
        return
    readers, writers = found
    if len(set(writers)) != len(writers) or any(layer in folds.shifts for layer in writers):
        return
    if any(layer in folds.inputs for layer in readers):
        return
    folds.shiftless.add(scale.node)
    folds.inputs.update(dict.fromkeys(readers, replace(scale, scale=None)))
    folds.shifts.update(dict.fromkeys(writers, scale.shift))


class _Finder:
    """Finds the layers beside a scale."""

    def __init__(self, member: MemberGraph, scales: Scales, folds: Folds) -> None:
        self._member = member
        self._scales = scales
        self._removed = folds.removed

    def readers(self, node: fx.Node, scale: Scale) -> list[fx.Node]:
        """The layers that read the channels of `node`, scaled, if nothing else does; else an empty list."""
        layers: list[fx.Node] = []
        for user in node.users:
            if self._takes_fold(user, node, scale):
                layers.append(user)
                continue
            passed = passed_on(user, node, scale.channels)
            further = [] if passed is None else self.readers(user, replace(scale, channels=passed))
            if not further:
                return []
            layers.extend(further)
        return layers

    def summed(self, node: fx.Node, scale: Scale) -> tuple[list[fx.Node], list[fx.Node]] | None:
        """The layers that read a node, and those that write what it is added to; None if anything else reads it."""
        readers: list[fx.Node] = []
        writers: list[fx.Node] = []
        for user in node.users:
            if self._takes_fold(user, node, scale):
                readers.append(user)
            elif user.target is aten.add.Tensor:
                writer = self._writer_of_other(user, node, scale.channels)
                if writer is None:
                    return None
                writers.append(writer)
            else:
                passed = passed_on(user, node, scale.channels)
                further = None if passed is None else self.summed(user, replace(scale, channels=passed))
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

    def writer(self, node: Any, channels: int, *, into_shared: bool = False) -> fx.Node | None:
        """The layer whose output channels a node hands on, if nobody else reads them on the way."""
        while isinstance(node, fx.Node) and len(node.users) == 1:
            if self._is_layer(node, into_shared):
                return node if channels in (channel_dim(node), EVERYWHERE) else None
            before = (self._removed[node], channels) if node in self._removed else came_from(node, channels)
            if before is None:
                return None
            node, channels = before
        return None

    def _takes_fold(self, layer: fx.Node, x: fx.Node, scale: Scale) -> bool:
        if not self._is_layer(layer, scale.into_shared):
            return False
        if layer.args[0] is not x or list(layer.all_input_nodes).count(x) != 1:
            return False
        if scale.shift is not None and (is_padded(layer) or layer.target in TRANSPOSED):
            return False  # the shift is no constant at a border, nor where fewer filters overlap
        return scale.channels == EVERYWHERE or (scale.channels == channel_dim(layer) and groups_of(layer) == 1)

    def _is_layer(self, node: fx.Node, into_shared: bool) -> bool:
        """A linear layer or convolution with weights of its own; that differ between members, but for `into_shared`."""
        if node.target not in LAYERS or node.kwargs:
            return False
        weight, bias = (*node.args, None)[1:3]
        given = [part for part in (weight, bias) if isinstance(part, fx.Node)]
        return all(map(self._is_own_state, given)) and (into_shared or self._scales.differ(given[:1]))

    def _is_own_state(self, node: fx.Node) -> bool:
        """Is it a state tensor, a view of one or several joined, that nothing else reads?"""
        if sum(user.target is not aten.new_zeros.default for user in node.users) != 1:
            return False
        if node in self._member.state or node.target is aten.new_zeros.default:
            return True
        if node.target is aten.cat.default or node.target in VIEWS:
            return all(map(self._is_own_state, node.all_input_nodes))
        return False
