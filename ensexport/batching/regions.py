"""Regions that `torch.export` keeps as sub-graphs (`with torch.no_grad():`, `with torch.autocast(enabled=False):`).

Contract: before, a captured program that may hold such regions; after, one flat graph of the same values. A region
that switches autocast ON computes in other dtypes than its nodes say and is refused.
"""

from __future__ import annotations

import operator
from typing import Any

from torch import fx
from torch._higher_order_ops.wrap import wrap_with_autocast, wrap_with_set_grad_enabled
from torch.export import ExportedProgram
from torch.export.graph_signature import TensorArgument

from ensexport.batching.source import source_line
from ensexport.errors import UnsupportedModelError


def inline_regions(program: ExportedProgram) -> bool:
    """Copy every region's nodes to the place of its call; returns whether there was any."""
    graph = program.graph
    calls = [node for node in graph.nodes if node.target in (wrap_with_autocast, wrap_with_set_grad_enabled)]
    for call in calls:
        position = next(i for i, arg in enumerate(call.args) if isinstance(arg, fx.Node) and arg.op == "get_attr")
        if call.target is wrap_with_autocast and call.args[2] is True:
            raise UnsupportedModelError(
                f"cannot pack the model: it switches autocast on inside forward ({source_line(call)}).",
                hint="Convert the weights instead, or take the autocast out of forward.",
            )
        region = call.args[position]
        _inline(program.graph_module.get_submodule(str(region.target)), call, list(call.args[position + 1 :]))
        graph.erase_node(call)
        if not region.users:
            graph.erase_node(region)
    if calls:
        inline_regions(program)  # regions inside regions
        results: Any = graph.output_node().args[0]
        for spec, node in zip(program.graph_signature.output_specs, results, strict=True):
            spec.arg = TensorArgument(name=node.name)
        graph.lint()
    return bool(calls)


def _inline(region: Any, call: fx.Node, operands: list[Any]) -> None:
    mapping: dict[fx.Node, Any] = {}
    feed = iter(operands)
    with call.graph.inserting_before(call):
        for node in region.graph.nodes:
            if node.op == "placeholder":
                mapping[node] = next(feed)
            elif node.op == "output":
                _replace(call, fx.node.map_arg(node.args[0], mapping.__getitem__))
            else:
                mapping[node] = call.graph.node_copy(node, mapping.__getitem__)


def _replace(call: fx.Node, results: Any) -> None:
    if isinstance(results, fx.Node):
        call.replace_all_uses_with(results)
        return
    for user in list(call.users):
        assert user.target is operator.getitem
        user.replace_all_uses_with(results[user.args[1]])
        call.graph.erase_node(user)
