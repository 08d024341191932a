"""In-place ops out of a member graph, so that every value is written once.

Contract: before, an exported program that may hold in-place ops; after, an equivalent one without. Where each
in-place op writes to a value of its own (the usual `relu_` after a conv), the op is replaced in place of itself,
which keeps `flatten` and `batch_norm` whole; otherwise torch's own functionalisation runs, which splits them.
"""

from __future__ import annotations

import warnings

import torch
from torch import fx
from torch._ops import OpOverload
from torch.export import ExportedProgram


def functionalized(program: ExportedProgram) -> ExportedProgram:
    """Return `program` without in-place ops; the program itself if it has none."""
    mutating = [node for node in program.graph.nodes if _writes_to(node) is not None]
    if not mutating:
        return program
    storages = _storages(program.graph)
    if all(_is_simple(node, storages) for node in mutating):
        for node in mutating:
            _replace(node)
        program.graph.lint()
        return program
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        functional: ExportedProgram = program.run_decompositions({})
        return functional


def _writes_to(node: fx.Node) -> fx.Node | None:
    """The node an in-place op writes to, None for any other op."""
    if node.op != "call_function" or not isinstance(node.target, OpOverload) or not node.target._schema.is_mutable:
        return None
    target = node.args[0] if node.args else None
    return target if isinstance(target, fx.Node) else node


def _functional_twin(node: fx.Node) -> OpOverload | None:
    """`aten.relu.default` for `aten.relu_.default`, if it takes the same arguments."""
    assert isinstance(node.target, OpOverload)
    namespace, _, name = node.target._schema.name.partition("::")
    if not name.endswith("_") or namespace != "aten":
        return None
    packet = getattr(torch.ops.aten, name[:-1], None)
    overload = getattr(packet, node.target._overloadname, None) if packet is not None else None
    if not isinstance(overload, OpOverload):
        return None
    ours = [(a.name, str(a.type)) for a in node.target._schema.arguments]
    return overload if [(a.name, str(a.type)) for a in overload._schema.arguments] == ours else None


def _storages(graph: fx.Graph) -> dict[fx.Node, int]:
    """Node -> which memory its value lies in. torch.export's fake values keep their aliasing; dropout is ours."""
    storages: dict[fx.Node, int] = {}
    for node in graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor):
            storages[node] = value.untyped_storage()._cdata
        if getattr(node.target, "overloadpacket", None) is torch.ops.aten.dropout:
            storages[node] = storages[node.args[0]]
    return storages


def _is_simple(node: fx.Node, storages: dict[fx.Node, int]) -> bool:
    """Is the written value an op's fresh result of the same shape and dtype, with no view of it made before?"""
    written = _writes_to(node)
    if written is None or written is node or _functional_twin(node) is None:
        return False
    before, after = written.meta["val"], node.meta["val"]
    if not isinstance(before, torch.Tensor) or before.dtype != after.dtype or before.dim() != after.dim():
        return False
    for other in node.graph.nodes:
        if other is node:
            return True
        shares = storages.get(other) == storages[node] and _writes_to(other) is None
        # Only the op that made the value may stand before the write: no input of the model, no view.
        is_view = any(storages.get(argument) == storages[node] for argument in other.all_input_nodes)
        if shares and (is_view or other.op != "call_function"):
            return False
    return True


def _replace(node: fx.Node) -> None:
    written = _writes_to(node)
    twin = _functional_twin(node)
    assert written is not None
    assert twin is not None
    node.target = twin
    order = {other: index for index, other in enumerate(node.graph.nodes)}
    for user in list(written.users):
        if order[user] > order[node]:
            user.replace_input_with(written, node)
