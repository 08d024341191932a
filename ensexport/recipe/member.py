"""The member half of a recipe: the graph of one member, and how its weights are read out of a packed file.

Written when packing, without a second export: the graph is JSON until somebody asks for a member. Nothing in it is a
weight, so it costs kilobytes however large the members are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import fx

from ensexport.batching.converting import convert
from ensexport.batching.engine import BatchedGraph, member_form
from ensexport.batching.graph_json import dtype_name, graph_to_json
from ensexport.batching.weights import WeightProgram
from ensexport.dtypes import Conversion
from ensexport.errors import ExportError
from ensexport.recipe.own_tensors import OwnTensors
from ensexport.recipe.recovery import Recovered, piece_number, pieces_of, recover_state, recover_weights

Json = Any


def member_recipe(
    batched: BatchedGraph, conversion: Conversion | None, own: OwnTensors, sizes: Mapping[str, int]
) -> Json:
    """Write the member half of a file's recipe.

    Args:
        batched: The file's graph, converted and with whatever outputs.
        conversion: What it was converted by.
        own: The members' own tensors.
        sizes: Sizes of the dynamic dims that a member accepts.
    """
    held, mode = batched.weights, batched.member.fake_mode
    state = recover_state(own.leaves, held, mode)
    written: dict[str, Json] = {
        "state": _state_to_json(state, batched, own),
        "sizes": {name: int(size) for name, size in sizes.items()},
        "symbols": dict(batched.member.symbols),
    }
    programs = [state.program]
    try:
        one, weights = _one(batched, conversion)
        written |= {
            "graph": graph_to_json(one.graph),
            "recovery": graph_to_json(weights.program.graph),
            "weights": [[weight.name, weight.piece, weight.kind] for weight in weights.program.packed],
        }
        programs.append(weights.program)
    except ExportError as error:
        written["problem"] = error.message
    used = {piece_number(leaf) for program in programs for leaf in program.leaves}
    written["pieces"] = {
        str(piece): [[w.name, w.kind, w.member_index, w.members and list(w.members)] for w in weights]
        for piece, weights in pieces_of(held).items()
        if piece in used
    }
    return written


def _one(batched: BatchedGraph, conversion: Conversion | None) -> tuple[BatchedGraph, Recovered]:
    """The graph of one member whose weights can all be had, of the member's own ops if possible."""
    for is_plain in (True, False):
        one = member_form(batched, is_plain=is_plain)
        one = one if conversion is None else convert(one, conversion)
        found = recover_weights(one.weights, batched.weights, batched.member.fake_mode)
        if not found.lost:
            return one, found
    raise ExportError(f"'{found.lost[0]}' cannot be computed from the weights that the file holds.")


def _state_to_json(state: Recovered, batched: BatchedGraph, own: OwnTensors) -> Json:
    found = {weight.name: weight.piece for weight in state.program.packed}
    tensors: dict[str, Json] = {}
    for name, leaf in own.leaf_of.items():
        why = own.changed.get(name) or ("" if leaf in found else why_lost(leaf, batched.weights))
        tensors[name] = {"why": why} if why else {"at": found[leaf]}
    return {"graph": graph_to_json(state.program.graph), "tensors": tensors}


def kept_names(recipe: Json) -> tuple[str, ...]:
    """Names of the members' tensors that cannot be read back out of a file bit for bit: what a package keeps apart.

    Args:
        recipe: What `member_recipe` returned.
    """
    return tuple(sorted(name for name, entry in recipe["state"]["tensors"].items() if "at" not in entry))


def why_lost(leaf: str, program: WeightProgram) -> str:
    """Say why a state tensor is not among a file's pieces."""
    graph = program.graph
    source = next((node for node in graph.nodes if node.meta.get("leaf") == leaf), None)
    if source is None:
        return "nothing in the graph reads it"
    touched, left = {source}, [source]
    while left:
        found = left.pop().users.keys() - touched
        touched |= found
        left += found
    pieces: Sequence[fx.Node] = graph.output_node().args[0]  # type: ignore[assignment]
    holders = [weight for weight in program.packed if pieces[weight.piece] in touched]
    same = next((weight for weight in holders if pieces[weight.piece] is source), None)
    if same is not None:
        return f"it is kept as {dtype_name(same.dtype)}"
    names = list(dict.fromkeys(weight.name for weight in holders))
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"it is folded into {', '.join(map(repr, names[:3]))}{more}"
