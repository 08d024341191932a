"""Batched graph -> TorchScript, by scripting the ATen graph.

Tracing cannot do it: `torch.jit.trace` refuses `functional_call` modules, and tracing an exported program bakes the
example's sizes in. Scripting the graph with each overload replaced by its packet keeps every size symbolic, and
the file loads with plain `torch.jit.load`.
"""

from __future__ import annotations

import io
import math
import operator
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn
from torch._ops import OpOverload
from torch.utils import _pytree as pytree

from ensexport.batching.engine import BatchedGraph
from ensexport.errors import ExportError
from ensexport.runtime.runner import HIDDEN_METHOD
from ensexport.targets.torch_places import script_name

aten = torch.ops.aten


def torchscript_bytes(batched: BatchedGraph, weights: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> bytes:
    """Return the TorchScript archive of a batched graph.

    The bytes are made in memory: `torch.jit.save` to a path aborts the process on a full disk.

    Args:
        batched: The graph.
        weights: The packed initializers by name.
        metadata: Written as extra file `ensexport.json` and friends, name -> text.

    Raises:
        ExportError: TorchScript does not know an op of the graph; names it.
    """
    module = _scriptable(batched, weights)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit.script points to torch.export, which is where this came from
            scripted: torch.jit.ScriptModule = torch.jit.script(module)
            if batched.n_hidden or batched.weights_input is not None:
                scripted = _with_methods(scripted, batched)
    except (RuntimeError, NotImplementedError) as error:
        first = next((line for line in str(error).splitlines() if line.strip()), "")
        raise ExportError(
            f"cannot write TorchScript: {first.strip()[:300]}", hint="Ship .onnx or .pt2 for this model."
        ) from error
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(scripted, buffer, _extra_files=dict(metadata))
    return buffer.getvalue()


class _File(nn.Module):
    """What a file with combined outputs is: the graph, and how it is called."""

    def __init__(self, graph: torch.jit.ScriptModule) -> None:
        super().__init__()
        self.graph = graph


def _with_methods(scripted: torch.jit.ScriptModule, batched: BatchedGraph) -> torch.jit.ScriptModule:
    """The graph behind `forward`, which returns what was asked for, and a method that returns the members behind it.

    `member_weights` is the last argument of both, and may be left out.
    """
    inputs = [node.name for node in batched.inputs]
    arguments, lines = list(inputs), []
    if batched.weights_input is not None:
        name = inputs[-1]
        arguments[-1] = f"{name}: Optional[Tensor] = None"
        ones = f"torch.ones([{batched.n_members}], device={inputs[0]}.device)"
        lines.append(f"    {name} = {ones} if {name} is None else {name}")
    lines.append(f"    results = self.graph({', '.join(inputs)})")
    results = [f"results[{index}]" for index in range(len(batched.outputs))]
    shown = results[: len(results) - batched.n_hidden]
    returned = {"forward": shown[0] if len(shown) == 1 else ", ".join(shown)}
    if batched.n_hidden:
        returned[HIDDEN_METHOD] = "(" + ", ".join(results[len(shown) :]) + ",)"
    file = torch.jit.script(_File(scripted))
    for method, values in returned.items():
        head = f"def {method}(self, {', '.join(arguments)}):"
        file.define("\n".join([head, *lines, f"    return {values}", ""]))
    return file


def _scriptable(batched: BatchedGraph, weights: Mapping[str, torch.Tensor]) -> fx.GraphModule:
    """The graph as a module whose generated code `torch.jit.script` can read."""
    root = nn.Module()
    graph = fx.Graph()
    mapping: dict[fx.Node, fx.Node] = {}
    # Inputs first: TorchScript takes them positionally in the graph's placeholder order.
    for node in batched.inputs:
        mapping[node] = graph.placeholder(node.name)
    for index, (node, weight) in enumerate(batched.packed.items()):
        name = script_name(index, weight.name)
        root.register_buffer(name, weights[weight.name])
        mapping[node] = graph.get_attr(name)
    device = graph.call_function(getattr, (mapping[batched.inputs[0]], "device"))
    for node in batched.graph.nodes:
        if node.op == "call_function":
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), mapping.__getitem__)
            args, kwargs = fx.node.map_aggregate((args, kwargs), lambda leaf: _spelled(graph, leaf))
            mapping[node] = graph.call_function(_target(node.target), *_cleaned(node, args, kwargs, device))
    if not device.users:
        graph.erase_node(device)
    results = tuple(mapping[node] for node in batched.outputs)
    graph.output(results[0] if len(results) == 1 else results)
    return fx.GraphModule(root, graph, class_name="Ensemble")


def _target(target: Any) -> Any:
    if target is aten.sym_size.int:
        return aten.size
    if target is operator.getitem:
        return target
    return target.overloadpacket if isinstance(target, OpOverload) else target


def _spelled(graph: fx.Graph, leaf: Any) -> Any:
    """NaN has no name in TorchScript; `float("nan")` it can read."""
    return graph.call_function(float, ("nan",)) if isinstance(leaf, float) and math.isnan(leaf) else leaf


def _cleaned(node: fx.Node, args: Any, kwargs: Any, device: fx.Node) -> tuple[Any, Any]:
    """Arguments as TorchScript takes them, and new tensors on the device of the inputs.

    Default layouts and pinning are dropped: TorchScript spells them differently. A device that was written down when
    packing, or left out, would be the CPU wherever the file is loaded.
    """
    kept = {name: value for name, value in kwargs.items() if name not in ("layout", "pin_memory")}
    makes_new = not any(isinstance(arg.meta.get("val"), torch.Tensor) for arg in node.all_input_nodes)
    if (
        makes_new
        and isinstance(node.target, OpOverload)
        and "device" in {a.name for a in node.target._schema.arguments}
    ):
        kept["device"] = device
    args, kept = pytree.tree_map(lambda leaf: device if isinstance(leaf, torch.device) else leaf, (args, kept))
    return args, kept
