"""Linear layers that read the same activation, written as one: attention's query, key and value, say.

One call with the weights joined on the out-features is `Linear(x, W_q | W_k | W_v)`; one split follows. Where each
result goes straight to heads of the same shape (`view`, then `transpose`), the parts are taken after one view and one
permute instead. Fewer and larger calls help where a call costs as much as its arithmetic; the parts have to be
copied apart, though, so it is a switch. Timed with ONNX Runtime on a CPU it gains nothing (`docs/batching.md`).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import fx

from ensexport.batching.folding import find_folds
from ensexport.batching.layers import EVERYWHERE, VIEWS, order_of
from ensexport.batching.member_graph import MemberGraph
from ensexport.batching.value import same_size

aten = torch.ops.aten


def merge_linears(member: MemberGraph, is_shared: Callable[[str], bool]) -> MemberGraph:
    """Rewrite each group of linear layers over one activation as a single layer.

    Before: any member graph; it is not changed. After: the same values at all other nodes, and no activation is read
    by two linear layers, but for those that have a reason to stay: a weight that something else reads too is kept
    once, one that is equal in all members is not joined to others, and a layer that takes a scale or shift into its
    weights keeps it. The graph itself is returned if there is no such group.

    Args:
        member: The member graph.
        is_shared: Is the state tensor of this name equal in all members?
    """
    if not _groups(member, is_shared):
        return member
    copied = member.copied()
    for parts in _groups(copied, is_shared):
        _merge(copied.graph, parts)
    copied.graph.lint()
    return replace(copied, outputs=tuple(copied.graph.output_node().args[0]))  # type: ignore[arg-type]


@dataclass(frozen=True)
class _Part:
    """Layers with one weight and bias."""

    weight: fx.Node
    bias: fx.Node | None
    layers: list[fx.Node]

    @property
    def width(self) -> int:
        """Out-features."""
        return int(self.weight.meta["val"].shape[0])


def _groups(member: MemberGraph, is_shared: Callable[[str], bool]) -> list[list[_Part]]:
    """The parts of each layer to be, two or more."""
    groups: dict[Any, dict[Any, _Part]] = {}
    folds = find_folds(member, is_shared)
    kept = {layer for layer, behind in folds.outputs.items() if any(fold.channels != EVERYWHERE for fold in behind)}
    for node in member.graph.nodes:
        if node.target is not aten.linear.default or node.kwargs or node in kept or node in folds.shifts:
            continue
        x, weight, bias = (*node.args, None)[:3]
        if any(part not in member.state for part in (weight, bias) if part is not None) or x in member.state:
            continue
        known = [is_shared(member.state[part]) for part in (weight, bias or weight)]
        group = groups.setdefault((x, weight.meta["val"].dtype, *known), {})
        group.setdefault((weight, bias), _Part(weight, bias, [])).layers.append(node)
    alone = [
        [part for part in group.values() if set(part.weight.users) == set(part.layers)] for group in groups.values()
    ]
    return [parts for parts in alone if len(parts) > 1]


def _merge(graph: fx.Graph, parts: list[_Part]) -> None:
    layers = [layer for part in parts for layer in part.layers]
    first = next(node for node in graph.nodes if node in layers)
    x = cast(fx.Node, first.args[0])
    with graph.inserting_before(first):
        joined = _joined(graph, first, parts)
        shape = (*x.meta["val"].shape[:-1], sum(part.width for part in parts))
        merged = _call(graph, first, aten.linear.default, (x, *joined), shape)
    heads = [[_heads(layer) for layer in part.layers] for part in parts]
    if len({part.width for part in parts}) == 1 and _same_heads([end for ends in heads for end in ends]):
        ends = [[cast(fx.Node, end) for end in part_ends] for part_ends in heads]
        _split_heads(graph, merged, ends)
    else:
        _split(graph, merged, parts)
    for layer in layers:
        graph.erase_node(layer)


def _joined(graph: fx.Graph, first: fx.Node, parts: Sequence[_Part]) -> tuple[fx.Node, fx.Node | None]:
    """Weight and bias of the one layer; parts without a bias get zeros if another has one."""
    width, inputs = sum(part.width for part in parts), parts[0].weight.meta["val"].shape[1]
    weight = _call(graph, first, aten.cat.default, ([part.weight for part in parts], 0), (width, inputs))
    if all(part.bias is None for part in parts):
        return weight, None
    biases = [
        part.bias or _call(graph, first, aten.new_zeros.default, (part.weight, [part.width]), (part.width,))
        for part in parts
    ]
    return weight, _call(graph, first, aten.cat.default, (biases, 0), (width,))


def _split(graph: fx.Graph, merged: fx.Node, parts: Sequence[_Part]) -> None:
    """Take the parts out of the last dim."""
    with graph.inserting_after(merged):
        split = graph.call_function(
            aten.split_with_sizes.default, (merged, [part.width for part in parts], merged.meta["val"].dim() - 1)
        )
    split.meta = {**merged.meta, "val": tuple(part.layers[0].meta["val"] for part in parts)}
    _hand_out(graph, split, [part.layers for part in parts])


def _split_heads(graph: fx.Graph, merged: fx.Node, ends: Sequence[Sequence[fx.Node]]) -> None:
    """Take the parts after one view and one permute, from a dim in front."""
    old = {end for part_ends in ends for end in part_ends}
    first = next(node for node in graph.nodes if node in old)
    view = cast(fx.Node, first.args[0])
    lead, (count, size) = view.meta["val"].shape[:-2], view.meta["val"].shape[-2:]
    place = len(lead)
    entries = [*cast(Sequence[Any], view.args[1])[:-2], len(ends), count, size]
    order = [place, *(dim + (dim >= place) for dim in order_of(first, place + 2))]
    with graph.inserting_before(first):
        wide = _call(graph, view, aten.view.default, (merged, entries), (*lead, len(ends), count, size))
        shape = [wide.meta["val"].shape[dim] for dim in order]
        moved = _call(graph, first, aten.permute.default, (wide, order), shape)
        parts = graph.call_function(aten.unbind.int, (moved, 0))
    parts.meta = {**first.meta, "val": tuple(part_ends[0].meta["val"] for part_ends in ends)}
    views = [cast(fx.Node, end.args[0]) for end in old]
    _hand_out(graph, parts, ends)
    for node in (*old, *views):
        graph.erase_node(node)


def _hand_out(graph: fx.Graph, results: fx.Node, old: Sequence[Sequence[fx.Node]]) -> None:
    """Put each result in the place of the nodes that had its value."""
    for index, nodes in enumerate(old):
        with graph.inserting_after(results):
            item = graph.call_function(operator.getitem, (results, index))
        item.meta = {**nodes[0].meta}
        for node in nodes:
            node.replace_all_uses_with(item)


def _heads(layer: fx.Node) -> fx.Node | None:
    """The permute behind the view that splits the last dim of a layer's result in two, if nothing else reads either."""
    view = next(iter(layer.users)) if len(layer.users) == 1 else layer
    if view.target not in VIEWS - {aten.flatten.using_ints} or view.args[0] is not layer or len(view.users) != 1:
        return None
    before, after = layer.meta["val"].shape, view.meta["val"].shape
    if len(after) != len(before) + 1 or not all(isinstance(size, int) for size in after[-2:]):
        return None
    if not all(same_size(a, b) for a, b in zip(before[:-1], after[:-2], strict=True)):
        return None
    end = next(iter(view.users))
    return end if end.target in (aten.transpose.int, aten.permute.default) else None


def _same_heads(ends: Sequence[fx.Node | None]) -> bool:
    """Do all parts go to heads of the same shape in the same way?"""
    known = [end for end in ends if end is not None]
    if len(known) < len(ends):
        return False
    views = [cast(fx.Node, end.args[0]).meta["val"].shape for end in known]
    orders = [order_of(end, len(shape)) for end, shape in zip(known, views, strict=True)]
    return all(shape[-2:] == views[0][-2:] for shape in views) and all(order == orders[0] for order in orders)


def _call(graph: fx.Graph, origin: fx.Node, target: Any, args: tuple[Any, ...], shape: Sequence[Any]) -> fx.Node:
    """Add a call whose result has the dtype of `origin`, and its line in the source."""
    node, value = graph.call_function(target, args), origin.meta["val"]
    with value.fake_mode:
        node.meta = {**origin.meta, "val": value.new_empty(shape)}
    return node
