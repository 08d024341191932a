"""What passes look at in a member graph: linear layers and convolutions, and ops that only hand channels on."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import fx

from ensexport.batching.value import same_size

aten = torch.ops.aten

# op -> number of spatial dims
CONVS = {
    aten.conv1d.default: 1,
    aten.conv2d.default: 2,
    aten.conv3d.default: 3,
    aten.conv1d.padding: 1,
    aten.conv2d.padding: 2,
    aten.conv3d.padding: 3,
}
TRANSPOSED = {aten.conv_transpose1d.default: 1, aten.conv_transpose2d.input: 2, aten.conv_transpose3d.input: 3}
LAYERS = {aten.linear.default: 0, **CONVS, **TRANSPOSED}

SAME = {
    aten.alias.default,
    aten.clone.default,
    aten.contiguous.default,
    aten.detach.default,
    aten.dropout.default,
}
VIEWS = {aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.flatten.using_ints}
_MOVES = {
    *SAME,
    *VIEWS,
    aten.expand.default,
    aten.permute.default,
    aten.roll.default,
    aten.select.int,
    aten.slice.Tensor,
    aten.squeeze.dim,
    aten.transpose.int,
    aten.unflatten.int,
    aten.unsqueeze.default,
}

EVERYWHERE = -1  # in the place of a dim: one number for all channels


def channel_dim(layer: fx.Node) -> int:
    """The dim of a layer's input and result that holds the channels."""
    return int(layer.meta["val"].dim()) - LAYERS[layer.target] - 1  # type: ignore[index]


def groups_of(layer: fx.Node) -> int:
    """Number of groups of a convolution."""
    return cast(int, layer.args[6]) if len(layer.args) > 6 else 1


def is_padded(layer: fx.Node) -> bool:
    """Does a convolution see a border that its input does not hold?"""
    padding: Any = layer.args[4] if len(layer.args) > 4 else 0
    if isinstance(padding, str):
        return padding != "valid"
    return any(padding) if isinstance(padding, list | tuple) else bool(padding)


def passed_on(node: fx.Node, source: fx.Node, channels: int) -> int | None:
    """The dim where the channels of `source` stand in the result of `node`, which changes no value; else None."""
    result = node.meta.get("val")
    if node.op != "call_function" or node.args[0] is not source or not isinstance(result, torch.Tensor):
        return None
    if channels == EVERYWHERE:
        return EVERYWHERE if node.target in _MOVES else None
    shape = source.meta["val"].shape
    if node.target in (aten.permute.default, aten.transpose.int):
        return order_of(node, len(shape)).index(channels)
    if node.target in VIEWS:
        return _kept_by_view(shape, result.shape, channels)
    if node.target in (aten.slice.Tensor, aten.select.int):
        dim = cast(int, node.args[1] if len(node.args) > 1 else 0) % len(shape)
        gone = node.target is aten.select.int and dim < channels
        return None if dim == channels else channels - int(gone)
    return channels if node.target in SAME or node.target is aten.roll.default else None


def came_from(node: fx.Node, channels: int) -> tuple[fx.Node, int] | None:
    """Where the channels of a result stood before an op that changes no value: `passed_on` the other way round."""
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node) or not isinstance(source.meta.get("val"), torch.Tensor):
        return None
    dims = [EVERYWHERE] if channels == EVERYWHERE else range(source.meta["val"].dim())
    before = [dim for dim in dims if passed_on(node, source, dim) == channels]
    return (source, before[0]) if len(before) == 1 else None


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
