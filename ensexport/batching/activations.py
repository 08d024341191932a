"""How much memory one member's activations take, read off its graph.

What is alive at a time: a result from the op that makes it to the last that reads it. Ops that only give a tensor
another shape make no copy. A runtime that fuses ops needs less, one that plans badly more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx
from torch.utils._pytree import tree_leaves

from ensexport.batching.layers import SAME, VIEWS
from ensexport.batching.member_graph import MemberGraph
from ensexport.batching.value import expression

aten = torch.ops.aten

_ALIASES = {
    *SAME,
    *VIEWS,
    aten.expand.default,
    aten.permute.default,
    aten.select.int,
    aten.slice.Tensor,
    aten.squeeze.dim,
    aten.squeeze.default,
    aten.t.default,
    aten.transpose.int,
    aten.unflatten.int,
    aten.unsqueeze.default,
}


def activation_bytes(member: MemberGraph, sizes: Mapping[str, int]) -> int:
    """The most bytes of activations that are alive at one time in one member.

    Args:
        member: Its graph.
        sizes: Size of each dynamic dim.
    """
    owner: dict[fx.Node, fx.Node] = {}
    last: dict[fx.Node, fx.Node] = {}
    for node in member.graph.nodes:
        sources = [arg for arg in node.all_input_nodes if arg not in member.state]
        is_alias = node.op == "call_function" and node.target in _ALIASES and bool(sources)
        owner[node] = owner[sources[0]] if is_alias else node
        for source in sources:
            last[owner[source]] = node
    ends: dict[fx.Node, list[fx.Node]] = {}
    for node, end in last.items():
        ends.setdefault(end, []).append(node)
    alive = highest = 0
    made: dict[fx.Node, int] = {}
    for node in member.graph.nodes:
        if owner[node] is node and node.op == "call_function":
            made[node] = _bytes(node.meta.get("val"), member, sizes)
            alive += made[node]
            highest = max(highest, alive)
        alive -= sum(made.pop(done, 0) for done in ends.get(node, ()))
    return highest


def _bytes(value: Any, member: MemberGraph, sizes: Mapping[str, int]) -> int:
    return sum(_tensor_bytes(leaf, member, sizes) for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor))


def _tensor_bytes(tensor: torch.Tensor, member: MemberGraph, sizes: Mapping[str, int]) -> int:
    count = tensor.dtype.itemsize
    for size in tensor.shape:
        count *= size if isinstance(size, int) else _size(size, member, sizes)
    return count


def _size(size: torch.SymInt, member: MemberGraph, sizes: Mapping[str, int]) -> int:
    """A symbolic size in numbers; what depends on values counts as 1."""
    expr = expression(size)
    known = {symbol: sizes.get(member.symbols.get(str(symbol), ""), 1) for symbol in expr.free_symbols}
    return max(1, int(expr.subs(known)))
