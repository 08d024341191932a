"""The member half of a recipe, read back: it may come from anybody, so whatever does not add up is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from ensexport.batching.builder import GraphBuilder
from ensexport.batching.engine import BatchedGraph
from ensexport.batching.graph_json import graph_from_json
from ensexport.batching.member_graph import MemberGraph
from ensexport.batching.value import expression
from ensexport.batching.weights import PackedWeight, WeightProgram
from ensexport.errors import ArtifactError
from ensexport.recipe.recovery import PIECE, Holder, piece_number
from ensexport.recipe.symbols import Ranges, symbolic_program
from ensexport.spec import Plan, TensorSpec

Json = Any
_KINDS = ("stacked", "folded", "shared", "member")
_OTHER_INPUTS = "cannot read the file's recipe: its graph has other inputs or outputs than the file."


@dataclass(frozen=True)
class MemberRecipe:
    """How one member is taken out of a file.

    Attributes:
        graph: Its graph; the weight program takes pieces (`piece_3`) and returns the graph's weights.
        problem: Why there is no such graph, else empty.
        state: Takes pieces and returns the member's own tensors, those that are in the file bit for bit.
        tied: Name -> the name under which `state` returns it.
        lost: The member's other tensors, and why they are not in the file.
        pieces: Piece -> the initializers that hold it.
    """

    graph: BatchedGraph | None
    problem: str
    state: WeightProgram
    tied: Mapping[str, str]
    lost: Mapping[str, str]
    pieces: Mapping[int, tuple[PackedWeight, ...]]


def read_member_recipe(
    recipe: Json,
    specs: Sequence[TensorSpec],
    ranges: Ranges,
    outputs: Sequence[str],
    *,
    with_graph: bool = True,
) -> MemberRecipe:
    """Read what `member_recipe` wrote; it may come from anybody.

    Args:
        recipe: The JSON.
        specs: The inputs as one member sees them, in the file's dtypes.
        ranges: Dynamic dim -> smallest and largest size (None = no end).
        outputs: Names of one member's outputs, in order.
        with_graph: Read the member's graph too.

    Raises:
        ArtifactError: It is no recipe, or asks for what a file may not ask for.
    """
    state = _field(recipe, "state", dict)
    program = _program(_field(state, "graph", dict))
    tensors = _field(state, "tensors", dict)
    results = _results(program.graph)
    tied: dict[str, str] = {}
    lost: dict[str, str] = {}
    packed: dict[int, PackedWeight] = {}
    for name, entry in tensors.items():
        at = entry.get("at") if isinstance(entry, dict) else None
        if at is None:
            lost[str(name)] = str(_field(entry, "why", str))
            continue
        fake = _item(results, at).meta["val"]
        weight = PackedWeight(str(name), at, "shared", None, tuple(fake.shape), fake.dtype)
        tied[str(name)] = packed.setdefault(at, weight).name
    pieces = {
        piece_number(PIECE.format(key)): tuple(_initializer(entry, int(key)) for entry in entries)
        for key, entries in _field(recipe, "pieces", dict).items()
        if key.isdecimal() and isinstance(entries, list)
    }
    problem = str(recipe.get("problem", ""))
    graph = _graph(recipe, specs, ranges, outputs) if with_graph and not problem else None
    own = replace(program, packed=tuple(packed.values()))
    return MemberRecipe(graph, problem, own, tied, lost, pieces)


def _graph(recipe: Json, specs: Sequence[TensorSpec], ranges: Ranges, outputs: Sequence[str]) -> BatchedGraph:
    sizes = _field(recipe, "sizes", dict)
    program = symbolic_program(specs, sizes, ranges)
    fakes = [node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"]
    dims = {
        dim: size
        for spec, fake in zip(specs, fakes, strict=True)
        for dim, size in zip(spec.dims, fake.shape, strict=True)
        if isinstance(dim, str)
    }
    symbols = {str(symbol): dims[dim] for symbol, dim in _field(recipe, "symbols", dict).items() if dim in dims}
    builder = GraphBuilder(fakes[0].fake_mode)

    def make(shape: tuple[Any, ...], dtype: torch.dtype) -> torch.Tensor:
        with builder.symbolic():
            return torch.empty(shape, dtype=dtype)

    graph = graph_from_json(_field(recipe, "graph", dict), make=make, symbols=symbols)
    recovery = _program(_field(recipe, "recovery", dict))
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    names = _field(recipe, "weights", list)
    inputs = placeholders[len(names) :]
    if len(inputs) != len(specs) or len(_results(graph)) != len(outputs):
        raise ArtifactError(_OTHER_INPUTS)
    for node, fake in zip(inputs, fakes, strict=True):
        given = node.meta["val"]
        if given.dtype != fake.dtype or _sizes(given) != _sizes(fake):
            raise ArtifactError(_OTHER_INPUTS)
        node.meta["val"] = fake  # torch's tracing takes a size from where it finds it first: here from a size
    results, packed = _results(recovery.graph), []
    for node, entry in zip(placeholders, names, strict=False):
        name, place, kind = entry if isinstance(entry, list) and len(entry) == 3 else (None, None, None)
        fake, made = node.meta["val"], _item(results, place).meta["val"]
        index = 0 if kind == "member" else None
        if not isinstance(name, str) or kind not in _KINDS or type(place) is not int:
            raise ArtifactError(f"cannot read the file's recipe: {str(entry)[:80]} is no weight.")
        packed.append(PackedWeight(name, place, kind, index, tuple(made.shape), fake.dtype))
        node.meta["packed"] = packed[-1]
        if packed[-1].shape(1) != tuple(fake.shape):
            raise ArtifactError("cannot read the file's recipe: a weight has another shape than the graph reads.")
    member = MemberGraph(
        program,
        graph,
        tuple(specs),
        tuple(outputs),
        {spec.name: node for spec, node in zip(specs, inputs, strict=True)},
        {},
        {},
        _results(graph),
        dict(ranges),
        {str(size.node.expr): dim for dim, size in dims.items() if isinstance(size, torch.SymInt)},
    )
    plan = Plan("member")
    return BatchedGraph(graph, replace(recovery, packed=tuple(packed)), member, 1, (), 0, plan)


def _sizes(tensor: torch.Tensor) -> list[Any]:
    return [expression(size) for size in tensor.shape]


def _program(data: Json) -> WeightProgram:
    """A program that takes pieces."""
    graph = graph_from_json(data)
    leaves = tuple(str(node.target) for node in graph.nodes if node.op == "placeholder")
    for node in graph.nodes:
        if not isinstance(node.meta.get("val"), torch.Tensor) and node.op == "placeholder":
            raise ArtifactError("cannot read the file's recipe: a piece has no shape.")
    for leaf in leaves:
        piece_number(leaf)
    return WeightProgram(Holder(graph), leaves, {}, ())


def _results(graph: fx.Graph) -> tuple[fx.Node, ...]:
    results: Any = graph.output_node().args[0]
    if not isinstance(results, tuple) or not all(
        isinstance(node, fx.Node) and isinstance(node.meta.get("val"), torch.Tensor) for node in results
    ):
        raise ArtifactError("cannot read the file's recipe: a graph returns something other than tensors.")
    return results


def _item(results: Sequence[fx.Node], place: Any) -> fx.Node:
    if type(place) is not int or not 0 <= place < len(results):
        raise ArtifactError(f"cannot read the file's recipe: there is no result {str(place)[:80]}.")
    return results[place]


def _initializer(entry: Json, piece: int) -> PackedWeight:
    name, kind, index, members = entry if isinstance(entry, list) and len(entry) == 4 else (None, None, None, None)
    is_range = members is None or (
        isinstance(members, list) and len(members) == 2 and all(type(end) is int for end in members)
    )
    if not isinstance(name, str) or kind not in _KINDS or not (index is None or type(index) is int) or not is_range:
        raise ArtifactError(f"cannot read the file's recipe: {str(entry)[:80]} is no initializer.")
    bounds = None if members is None else (members[0], members[1])
    return PackedWeight(name, piece, kind, index, (), torch.uint8, bounds)


def _field(data: Any, name: str, kind: type) -> Any:
    value = data.get(name) if isinstance(data, dict) else None
    if type(value) is not kind:
        raise ArtifactError(
            f"cannot read the file's recipe: '{name}' is missing, or no {kind.__name__}.", hint="Pack again."
        )
    return value
