"""Which ops of the batched graph run once a member instead of once for all.

Batching an op saves calls and fills the machine better; it does not save arithmetic, and some runtimes have slower
kernels for the batched form of some shapes. So the ops that cost something are placed one by one: batched, or apart,
with the kernels that a loop over the members would run. What stands between two ops that run apart runs apart too, and
one `Concat` leads back. Since a switch copies an activation, the ops are not judged alone: the cheapest sequence of
forms, switches included, is found over all of them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import fx

from ensexport.batching.costs import Cost, Layer
from ensexport.batching.member_graph import MemberGraph
from ensexport.batching.source import source_line
from ensexport.spec import Stage, batch_dim

aten = torch.ops.aten

CONVS = {
    aten.conv1d.default,
    aten.conv1d.padding,
    aten.conv2d.default,
    aten.conv2d.padding,
    aten.conv3d.default,
    aten.conv3d.padding,
}
TRANSPOSED = {aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input}
LINEARS = {aten.linear.default, aten.addmm.default, aten.mm.default}
PRODUCTS = {aten.matmul.default, aten.bmm.default, aten.baddbmm.default, aten.scaled_dot_product_attention.default}
HEAVY = CONVS | TRANSPOSED | LINEARS | PRODUCTS
_BYTES_A_SECOND = 8e9  # of a copy that one Split or Concat makes
_SWITCH_SHARE = 0.003  # of the whole: a change of form that gains less is not worth its nodes
_TO_APART = 2  # how much more a Split takes: what runs apart takes up its own memory layout anew
_NODE_S = 4e-6  # of one more node, with the light ones behind it


@dataclass(frozen=True)
class Site:
    """What is placed.

    Attributes:
        member: The member graph.
        n_members: N.
        differing: Its nodes whose values differ between members.
    """

    member: MemberGraph
    n_members: int
    differing: Collection[fx.Node]

    @property
    def heavy(self) -> list[fx.Node]:
        """The nodes there is a choice for, in order: work that is done for each member."""
        return [node for node in self.member.graph.nodes if node.target in HEAVY and node in self.differing]

    def size(self, size: Any, batch: int) -> int:
        """A size at one batch size, the other dynamic dims as in the example."""
        if isinstance(size, int):
            return size
        expr, env = size.node.expr, self.member.fake_mode.shape_env
        name = batch_dim(self.member.specs)
        assert env is not None
        values = {
            symbol: batch if self.member.symbols.get(str(symbol)) == name else env.backed_var_to_val.get(symbol, 1)
            for symbol in expr.free_symbols
        }
        return int(expr.subs(values))

    def sizes(self, node: fx.Node, batch: int) -> list[int]:
        """The shape of a node's value at one batch size."""
        return [self.size(size, batch) for size in node.meta["val"].shape]


Placement = Callable[[Site], frozenset[fx.Node]]


def differing_nodes(
    member: MemberGraph, is_shared: Callable[[str], bool], per_member: Collection[str]
) -> frozenset[fx.Node]:
    """The nodes whose values differ between members: what depends on a member's own weights or inputs."""
    found = {node for node, name in member.state.items() if not is_shared(name)}
    found |= {node for name, node in member.inputs.items() if name in per_member}
    for node in member.graph.nodes:
        if any(source in found for source in node.all_input_nodes):
            found.add(node)
    return frozenset(found)


def layer_of(site: Site, node: fx.Node, batch: int) -> Layer | None:
    """The layer that a heavy node is at one batch size; None for a product of activations."""
    weights = set(site.member.state)
    x, *others = cast(tuple[fx.Node, ...], node.args[:3])
    if node.target in LINEARS:
        if node.target is aten.addmm.default:
            x = others[0]
        shape, inputs = site.sizes(node, batch), site.sizes(x, batch)[-1]
        rows = math.prod(shape[:-1])
        kind = "linear" if x in site.differing and x not in weights else "wide"
        return Layer(kind, inputs, shape[-1], max(rows // batch, 1), batch, 2.0 * rows * inputs * shape[-1])
    if node.target not in CONVS | TRANSPOSED or x not in site.differing:
        return None  # a shared image meets all filters in one wide convolution: no table knows better
    shape, filters = site.sizes(node, batch), site.sizes(others[0], batch)
    source = site.sizes(x, batch)
    spatial = len(filters) - 2
    if len(shape) != spatial + 2:
        return None  # an image without a batch
    is_transposed = node.target in TRANSPOSED
    pixels = math.prod((source if is_transposed else shape)[2:])
    inputs, outputs = source[1], shape[1]
    per_group = filters[1] if not is_transposed else inputs * filters[1] // outputs
    kernel = math.prod(filters[2:])
    kind = "pointwise" if kernel == 1 else "depthwise" if per_group == 1 and inputs > 1 else "conv"
    kind += "-odd" if inputs % 8 or outputs % 8 else ""
    flops = 2.0 * batch * pixels * math.prod(filters)
    return Layer(kind, inputs, outputs, pixels, batch, flops)


def stages_of(heavy: Sequence[fx.Node], apart: Collection[fx.Node]) -> tuple[Stage, ...]:
    """Sum up a placement for the report."""
    stages = []
    for is_apart, group in itertools.groupby(heavy, key=lambda node: node in apart):
        nodes = list(group)
        line = source_line(nodes[0])
        first = f"{nodes[0].target}{f' ({line})' if line else ''}"
        stages.append(Stage("apart" if is_apart else "batched", len(nodes), first))
    return tuple(stages)


def leading_to(member: MemberGraph, apart: Collection[fx.Node]) -> frozenset[fx.Node]:
    """The light ops whose results go to layers that run apart, more than to batched ones."""
    votes: dict[fx.Node, int] = {}
    for node in reversed(member.graph.nodes):
        own = [(1 if user in apart else -1) if user.target in HEAVY else votes.get(user, 0) for user in node.users]
        total = sum(own)
        votes[node] = (total > 0) - (total < 0)
    return frozenset(node for node, vote in votes.items() if vote > 0 and node.target not in HEAVY)


def cheapest(
    costs: Mapping[fx.Node, Sequence[Cost]], site: Site, batches: Sequence[int], margin: float
) -> frozenset[fx.Node]:
    """The nodes that run apart in the cheapest sequence of forms.

    Args:
        costs: Each heavy node, in order, with its cost at each batch size.
        site: What is placed.
        batches: The batch sizes; all count the same, whatever they take.
        margin: What running apart must gain to be chosen, as a factor.
    """
    if not costs:
        return frozenset()
    totals = [sum(own[index].apart_s for own in costs.values()) or 1.0 for index in range(len(batches))]

    def share(seconds: Sequence[float]) -> float:
        return sum(second / total for second, total in zip(seconds, totals, strict=True))

    best: dict[bool, tuple[float, tuple[fx.Node, ...]]] = {False: (0.0, ()), True: (0.0, ())}
    for number, (node, own) in enumerate(costs.items()):
        copies = share([_switch_s(site, node, batch) for batch in batches]) if number else 0.0
        switch = copies + _SWITCH_SHARE * len(batches) if number else 0.0
        batched = share([cost.batched_s for cost in own])
        apart = share([margin * cost.apart_s + _NODE_S * site.n_members for cost in own])
        stay, back = best[False][0], best[True][0] + switch
        go, remain = best[False][0] + switch + _TO_APART * copies, best[True][0]
        best = {
            False: (min(stay, back) + batched, best[False][1] if stay <= back else best[True][1]),
            True: (min(go, remain) + apart, (*(best[True] if remain <= go else best[False])[1], node)),
        }
    return frozenset(best[False][1] if best[False][0] <= best[True][0] else best[True][1])


def _switch_s(site: Site, node: fx.Node, batch: int) -> float:
    """Seconds that a Split or Concat of the node's input takes."""
    sources = [arg for arg in node.all_input_nodes if arg not in site.member.state and arg in site.differing]
    sizes = [
        math.prod(site.sizes(source, batch)) for source in sources if isinstance(source.meta.get("val"), torch.Tensor)
    ]
    return 4.0 * 2 * site.n_members * max(sizes, default=0) / _BYTES_A_SECOND + _NODE_S * site.n_members
