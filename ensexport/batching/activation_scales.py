"""Scales inside of an activation, moved into the layers on either side.

`celu(x, alpha)` is `alpha * elu(x / alpha)`, and `softplus(x, beta)` is `softplus(beta * x) / beta`. Between two layers
neither factor need be computed at run time: the first goes into the weights and bias of the layer before, the second
into the weights of the layers behind. What is left is the activation without a parameter, which every runtime has as
one op, or as the fewest.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import fx
from torch._ops import OpOverload

from ensexport.batching.layers import SAME
from ensexport.batching.member_graph import MemberGraph

aten = torch.ops.aten

_LAYERS = {aten.linear.default, aten.conv1d.default, aten.conv2d.default, aten.conv3d.default}
# One factor for all elements goes through whatever only moves them.
_MOVING = SAME | {
    aten.flatten.using_ints,
    aten.permute.default,
    aten.reshape.default,
    aten.squeeze.dim,
    aten.transpose.int,
    aten.unsqueeze.default,
    aten.view.default,
}
_DTYPES = (torch.float32, torch.float64)


@dataclass(frozen=True)
class _Scaled:
    """An activation that is `plain(inner * x) / inner`.

    Attributes:
        node: It, in the member graph.
        plain: The op without a scale of its own, and its arguments behind `x`.
        inner: What its argument is multiplied by.
        writer: The layer that writes its argument.
        readers: The layers that read its result.
    """

    node: fx.Node
    plain: tuple[OpOverload, tuple[Any, ...]]
    inner: float
    writer: fx.Node
    readers: tuple[fx.Node, ...]


def activation_scales(member: MemberGraph) -> MemberGraph:
    """Move the scales inside of `celu` and `softplus` into the linear layers and convolutions beside them.

    Before: any member graph; it is not changed. After: the same outputs up to rounding, and no `celu` with another
    alpha than 1, nor `softplus` with another beta, whose argument one layer writes for it alone and whose result only
    layers read, where their weights are state that nothing else reads. The new weights are ops on state alone, so they
    are computed for each member when packing, in float64. The graph itself is returned if there is no such activation.
    """
    found = [scaled for node in member.graph.nodes if (scaled := _scaled(member, node)) is not None]
    if not found:
        return member
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    graph.graph_copy(member.graph, copies)
    graph.output(tuple(copies[node] for node in member.outputs))
    weights, biases = defaultdict[fx.Node, float](lambda: 1.0), dict[fx.Node, float]()
    for scaled in found:
        weights[scaled.writer] *= scaled.inner
        biases[scaled.writer] = scaled.inner
        for reader in scaled.readers:
            weights[reader] /= scaled.inner
        copy = copies[scaled.node]
        copy.target, more = scaled.plain
        copy.args = (copy.args[0], *more)
    for layer, factor in weights.items():
        _scale_argument(graph, copies[layer], 1, factor)
        _scale_argument(graph, copies[layer], 2, biases.get(layer, 1.0))
    graph.lint()
    return replace(
        member,
        graph=graph,
        inputs={name: copies[node] for name, node in member.inputs.items()},
        state={copies[node]: name for node, name in member.state.items()},
        outputs=tuple(graph.output_node().args[0]),  # type: ignore[arg-type]
    )


def _scaled(member: MemberGraph, node: fx.Node) -> _Scaled | None:
    """An activation whose scale can move, else None."""
    found = _plain(node)
    if found is None or not math.isfinite(found[0]) or found[0] <= 0 or found[0] == 1:
        return None
    inner, op, more = found
    writer, readers = node.args[0], _readers(node)
    if node.meta["val"].dtype not in _DTYPES or not isinstance(writer, fx.Node) or len(writer.users) != 1:
        return None
    if not readers or not all(_is_layer(member, layer) for layer in (writer, *readers)):
        return None
    return _Scaled(node, (op, more), inner, writer, tuple(readers))


def _plain(node: fx.Node) -> tuple[float, OpOverload, tuple[Any, ...]] | None:
    """What an activation multiplies its argument by (and divides its result by), and what it is without that."""
    if node.kwargs:
        return None
    if node.target is aten.celu.default:
        alpha = cast(float, node.args[1] if len(node.args) > 1 else 1.0)
        return 1 / alpha, aten.elu.default, ()
    if node.target is aten.softplus.default:
        beta = cast(float, node.args[1] if len(node.args) > 1 else 1.0)
        threshold = node.args[2] if len(node.args) > 2 else 20.0  # of beta * x
        return float(beta), aten.softplus.default, (1.0, threshold)
    return None


def _readers(node: fx.Node) -> list[fx.Node] | None:
    """The layers that read a result, whole or rearranged; None if anything else does."""
    layers: list[fx.Node] = []
    for user in node.users:
        if user.target in _LAYERS and user.args[0] is node and list(user.all_input_nodes).count(node) == 1:
            layers.append(user)
            continue
        further = _readers(user) if user.target in _MOVING else None
        if further is None:
            return None
        layers += further
    return layers


def _is_layer(member: MemberGraph, node: fx.Node) -> bool:
    """A layer with a weight, and a bias if it has one, that are state and that nothing else reads."""
    if node.target not in _LAYERS or node.kwargs:
        return False
    given = [arg for arg in node.args[1:3] if arg is not None]
    return all(isinstance(arg, fx.Node) and arg in member.state and len(arg.users) == 1 for arg in given)


def _scale_argument(graph: fx.Graph, layer: fx.Node, position: int, factor: float) -> None:
    """Multiply a layer's weight or bias, in float64."""
    weight = layer.args[position] if position < len(layer.args) else None
    if not isinstance(weight, fx.Node) or math.isclose(factor, 1.0, rel_tol=1e-15):
        return
    fake = weight.meta["val"]
    with graph.inserting_before(layer), fake.fake_mode:
        wide = fake.to(torch.float64)
        for op, argument, value in (
            (aten.to.dtype, torch.float64, wide),
            (aten.mul.Scalar, factor, wide),
            (aten.to.dtype, fake.dtype, fake),
        ):
            weight = graph.call_function(op, (weight, argument))
            weight.meta = {**layer.meta, "val": value}
    layer.update_arg(position, weight)
