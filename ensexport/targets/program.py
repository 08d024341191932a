"""Batched graph -> `torch.export.ExportedProgram`, assembled directly: nothing is traced again."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram, ModuleCallEntry, ModuleCallSignature
from torch.export.graph_signature import (
    ExportGraphSignature,
    InputKind,
    InputSpec,
    OutputKind,
    OutputSpec,
    TensorArgument,
)
from torch.utils import _pytree as pytree

from ensexport.batching.engine import BatchedGraph
from ensexport.runtime.runner import HIDDEN_NODE


def build_program(
    batched: BatchedGraph, weights: Mapping[str, torch.Tensor], *, with_hidden: bool = False
) -> ExportedProgram:
    """Return the batched graph as an exported program.

    Args:
        batched: The graph; it is copied, not changed.
        weights: The packed initializers by name, real or fake.
        with_hidden: Return the hidden outputs too, last; else they are nodes that are called as `HIDDEN_NODE` says.

    Returns:
        A program that takes the user inputs by position and returns one tensor, or a tuple.
    """
    graph = _copy(batched.graph, 0 if with_hidden else batched.n_hidden)
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    inputs: list[InputSpec] = []
    state: dict[str, Any] = {}
    for node in placeholders:
        argument = TensorArgument(name=node.name)
        weight = node.meta.get("packed")
        if weight is None:
            inputs.append(InputSpec(InputKind.USER_INPUT, argument, None))
            continue
        value = weights[weight.name]
        state[weight.name] = torch.nn.Parameter(value, requires_grad=False) if _is_float(value) else value
        kind = InputKind.PARAMETER if _is_float(value) else InputKind.BUFFER
        inputs.append(InputSpec(kind, argument, weight.name, persistent=None if _is_float(value) else True))
    results: Any = graph.output_node().args[0]
    outputs = [OutputSpec(OutputKind.USER_OUTPUT, TensorArgument(name=node.name), None) for node in results]
    users = tuple(node for node in placeholders if "packed" not in node.meta)
    in_spec = pytree.tree_structure((tuple(0 for _ in users), {}))
    out_spec = pytree.tree_structure(0 if len(results) == 1 else tuple(0 for _ in results))
    signature = ModuleCallSignature(
        inputs=[TensorArgument(name=node.name) for node in users],
        # No names: a decomposition renames or drops nodes, and then takes an old name here for an error.
        outputs=[TensorArgument(name="") for _ in results],
        in_spec=in_spec,
        out_spec=out_spec,
    )
    return ExportedProgram(
        root=torch.nn.Module(),
        graph=graph,
        graph_signature=ExportGraphSignature(inputs, outputs),
        state_dict=state,
        range_constraints=dict(batched.member.program.range_constraints),
        module_call_graph=[ModuleCallEntry(fqn="", signature=signature)],
        constants={},
    )


def _is_float(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _copy(source: fx.Graph, n_hidden: int) -> fx.Graph:
    """Copy a graph; outputs that are one and the same node, or an input, get a node of their own.

    The last `n_hidden` are nodes of a known name then, and no outputs.
    """
    graph = fx.Graph()
    mapping: dict[fx.Node, fx.Node] = {}
    results = graph.graph_copy(source, mapping)
    assert isinstance(results, tuple)
    own: list[fx.Node] = []
    for node in results:
        if node in own or node.op == "placeholder":
            copy = graph.call_function(torch.ops.aten.clone.default, (node,))
            copy.meta = {key: value for key, value in node.meta.items() if key != "packed"}
            own.append(copy)
        else:
            own.append(node)
    shown = own[: len(own) - n_hidden]
    for index, node in enumerate(own[len(shown) :]):
        node._rename(HIDDEN_NODE.format(index))
    graph.output(tuple(shown))
    graph.output_node().meta["val"] = tuple(node.meta["val"] for node in shown)
    for node in graph.nodes:
        if node.target is operator.getitem:
            node.meta.setdefault("val", node.args[0].meta["val"][node.args[1]])
    return graph
