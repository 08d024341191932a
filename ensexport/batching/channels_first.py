"""Linear layers over the channels of images, written as the 1x1 convolutions that they are.

Between two convolutions a network may permute `(B, C, H, W)` to `(B, H, W, C)`, run norms, linear layers and pointwise
ops over the last dim, and permute back. Convolutions keep members side by side in the channels and linear layers keep
them in front, so each such stretch would split the members off and merge them again: two reshapes and a copy on either
side. A linear layer over the last dim is a convolution with filters of size 1 over the channels dim; only a norm needs
the channels last, and gets its own two permutes.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx

from ensexport.batching.layers import SAME, order_of
from ensexport.batching.member_graph import MemberGraph
from ensexport.batching.rules.pointwise import is_pointwise
from ensexport.batching.scales import NORMS
from ensexport.batching.value import same_size

aten = torch.ops.aten

_CONVS = {4: aten.conv2d.default, 5: aten.conv3d.default}


def channels_first(member: MemberGraph) -> MemberGraph:
    """Rewrite the stretches of a member graph that have the channels last only between two permutes.

    Before: any member graph; it is not changed. After: the same values at all other nodes, and no linear layer between
    a permute to channels last and the permute back, where nothing else reads the values in between. The graph itself
    is returned if there is no such stretch.
    """
    if not _stretches(member):
        return member
    copied = member.copied()
    for stretch in _stretches(copied):
        _rewrite(copied.graph, stretch.nodes, stretch.ends)
    return replace(copied, outputs=tuple(copied.graph.output_node().args[0]))  # type: ignore[arg-type]


@dataclass
class _Stretch:
    """Nodes with the channels last, in order, and the permutes that end it."""

    nodes: list[fx.Node] = field(default_factory=list)
    ends: list[fx.Node] = field(default_factory=list)


def _stretches(member: MemberGraph) -> list[_Stretch]:
    """Connected sets of nodes, linear layers among them, that only permutes lead into and out of."""
    part_of: dict[fx.Node, _Stretch] = {}
    weights = set(member.state)
    for node in member.graph.nodes:
        if node.op != "call_function" or not isinstance(node.meta.get("val"), torch.Tensor):
            continue
        if node.all_input_nodes and all(arg in weights for arg in node.all_input_nodes):
            weights.add(node)
            continue
        sources = [arg for arg in node.all_input_nodes if arg in part_of]
        if not _starts(node) and not (sources and _continues(node, sources, weights)):
            continue
        merged = _Stretch()
        for part in {id(part_of[source]): part_of[source] for source in sources}.values():
            merged.nodes += part.nodes
        merged.nodes.append(node)
        part_of.update(dict.fromkeys(merged.nodes, merged))
    places = {node: place for place, node in enumerate(member.graph.nodes)}
    found = []
    for stretch in {id(part): part for part in part_of.values()}.values():
        stretch.nodes.sort(key=places.__getitem__)
        if not any(node.target is aten.linear.default for node in stretch.nodes):
            continue
        further = [user for node in stretch.nodes for user in node.users if user not in stretch.nodes]
        if not any(node in member.outputs for node in stretch.nodes) and all(map(_ends, further)):
            found.append(replace(stretch, ends=list(dict.fromkeys(further))))
    return found


def _starts(node: fx.Node) -> bool:
    return _is_permute(node, [0, *range(2, node.meta["val"].dim()), 1])


def _ends(node: fx.Node) -> bool:
    rank = node.meta["val"].dim() if isinstance(node.meta.get("val"), torch.Tensor) else 0
    return _is_permute(node, [0, rank - 1, *range(1, rank - 1)])


def _is_permute(node: fx.Node, order: list[int]) -> bool:
    return node.target is aten.permute.default and len(order) in _CONVS and order_of(node, len(order)) == order


def _continues(node: fx.Node, sources: list[fx.Node], weights: set[fx.Node]) -> bool:
    """Can a node be computed with the channels in dim 1, and does it keep all dims?"""
    rank = sources[0].meta["val"].dim()
    others = [arg for arg in node.all_input_nodes if arg not in sources]
    if node.meta["val"].dim() != rank or any(arg not in weights for arg in others) or node.kwargs:
        return False
    if node.target is aten.linear.default:
        return node.args[0] in sources and len(sources) == 1
    if node.target in NORMS:
        return node.args[0] in sources and len(sources) == 1 and len(node.args[1]) == 1  # type: ignore[arg-type]
    if not isinstance(node.target, torch._ops.OpOverload) or not (node.target in SAME or is_pointwise(node.target)):
        return False
    shapes = [source.meta["val"].shape for source in sources]
    is_whole = all(same_size(a, b) for shape in shapes for a, b in zip(shape, node.meta["val"].shape, strict=True))
    return is_whole and all(arg.meta["val"].dim() <= 1 for arg in others)


def _rewrite(graph: fx.Graph, stretch: list[fx.Node], ends: list[fx.Node]) -> None:
    """Write the stretch with the channels in dim 1."""
    twins: dict[fx.Node, fx.Node] = {}
    for node in stretch:
        with graph.inserting_before(node):
            twins[node] = _twin(graph, node, twins)
    for end in ends:
        end.replace_all_uses_with(twins[end.args[0]])  # type: ignore[index]
        graph.erase_node(end)
    for node in reversed(stretch):
        if not node.users:  # a permute that a norm reads stays
            graph.erase_node(node)


def _twin(graph: fx.Graph, node: fx.Node, twins: dict[fx.Node, fx.Node]) -> fx.Node:
    value = node.meta["val"]
    rank = value.dim()
    to_first, to_last = [0, rank - 1, *range(1, rank - 1)], [0, *range(2, rank), 1]

    def call(target: Any, args: tuple[Any, ...], result: torch.Tensor) -> fx.Node:
        new = graph.call_function(target, args)
        new.meta = {**node.meta, "val": result}
        return new

    def ordered(tensor: torch.Tensor, order: list[int]) -> torch.Tensor:
        with tensor.fake_mode:  # type: ignore[attr-defined]
            return tensor.permute(order)

    if node not in twins and node.target is aten.permute.default:
        assert isinstance(node.args[0], fx.Node)
        return node.args[0]
    if node.target in NORMS:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        is_start = source.target is aten.permute.default
        last = source if is_start else call(aten.permute.default, (twins[source], to_last), source.meta["val"])
        norm = call(node.target, (last, *node.args[1:]), value)
        return call(aten.permute.default, (norm, to_first), ordered(value, to_first))
    if node.target is aten.linear.default:
        source, weight, *bias = node.args
        assert isinstance(source, fx.Node)
        assert isinstance(weight, fx.Node)
        shape = [*weight.meta["val"].shape, *[1] * (rank - 2)]
        with value.fake_mode:
            wide = weight.meta["val"].view(shape)
        filters = call(aten.view.default, (weight, shape), wide)
        return call(_CONVS[rank], (twins[source], filters, *bias), ordered(value, to_first))

    def argument(arg: fx.Node) -> fx.Node:
        if arg in twins:
            return twins[arg]
        if arg.meta["val"].dim() == 0:
            return arg
        with value.fake_mode:
            per_channel = arg.meta["val"].view([-1, *[1] * (rank - 2)])
        return call(aten.view.default, (arg, [-1, *[1] * (rank - 2)]), per_channel)

    args = fx.node.map_arg(node.args, argument)
    return call(node.target, args, ordered(value, to_first))
