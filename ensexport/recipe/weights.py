"""The weight half of a recipe: how one member's tensors become its share of a file's weights.

It is the weight graph that packing runs, so that one member can be packed anew into a file that is there: the same
ops on the same tensors give the same bits. Tensors of the architecture that nothing but constants are made of are
in the file already, and are not written a second time.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast, get_args

import torch
from torch import fx, nn

from ensexport.batching.graph_json import dtype_name, dtype_of_name, graph_from_json, graph_to_json
from ensexport.batching.precision import nodes_behind
from ensexport.batching.weights import Kind, PackedWeight, WeightProgram
from ensexport.errors import ArtifactError, EnsexportError, ExportError
from ensexport.members.tensors import raw_bytes

Json = Any
_MAX_CONSTANT_BYTES = 2**22
_HINT = "The file is damaged: pack again."


@dataclass(frozen=True)
class WeightRecipe:
    """How a member is packed into a file.

    Attributes:
        program: The weight graph.
        wanted: Indices of the pieces that depend on a member's tensors.
        dtypes: Name of a member's tensor that is read -> its dtype.
        fills_buffers: Does the architecture fill buffers when it is called first? They are read after that.
        sizes: Size of each dynamic dim at which the members were seen to run.
    """

    program: WeightProgram
    wanted: frozenset[int]
    dtypes: Mapping[str, torch.dtype]
    fills_buffers: bool
    sizes: Mapping[str, int]


class _Holder(nn.Module):
    """A graph and nothing else: of a stranger's graph no code is generated."""

    def __init__(self, graph: fx.Graph) -> None:
        super().__init__()
        self.graph = graph


# -- writing ---------------------------------------------------------------------------------------


def weights_to_json(program: WeightProgram, *, fills_buffers: bool, sizes: Mapping[str, int]) -> Json:
    """Write the weight graph and what it makes.

    Args:
        program: What packing runs for each member.
        fills_buffers: See `WeightRecipe`.
        sizes: Likewise.

    Raises:
        ExportError: It cannot be written: an op of it, or too large a constant; names it.
    """
    graph = graph_to_json(program.graph)
    needed = nodes_behind(program.graph, own_pieces(program.graph, program.leaves, program.constants))
    constants: dict[str, Json] = {}
    for name, node in zip(program.leaves, _placeholders(program.graph), strict=True):
        if name in program.constants:
            constants[name] = _tensor_to_json(program.constants[name]) if node in needed else None
    size = sum(program.constants[name].nbytes for name, value in constants.items() if value is not None)
    if size > _MAX_CONSTANT_BYTES:
        raise ExportError(f"the model's own constants take {size} bytes, more than a file should hold twice.")
    return {
        "graph": graph,
        "leaves": list(program.leaves),
        "constants": constants,
        "packed": [_packed_to_json(weight) for weight in program.packed],
        "fills_buffers": fills_buffers,
        "sizes": dict(sizes),
    }


def own_pieces(graph: fx.Graph, leaves: tuple[str, ...], constants: Mapping[str, Any]) -> frozenset[int]:
    """Indices of the pieces that are made of a member's tensors, and not of constants alone."""
    own = {node for name, node in zip(leaves, _placeholders(graph), strict=True) if name not in constants}
    for node in graph.nodes:
        if any(arg in own for arg in node.all_input_nodes):
            own.add(node)
    pieces = cast(tuple[fx.Node, ...], graph.output_node().args[0])
    return frozenset(index for index, piece in enumerate(pieces) if piece in own)


def _placeholders(graph: fx.Graph) -> list[fx.Node]:
    return [node for node in graph.nodes if node.op == "placeholder"]


def _packed_to_json(weight: PackedWeight) -> Json:
    members = None if weight.members is None else list(weight.members)
    own = [weight.name, weight.piece, weight.kind, weight.member_index, members]
    return [*own, list(weight.piece_shape), dtype_name(weight.dtype)]


def _tensor_to_json(tensor: torch.Tensor) -> Json:
    data = base64.b64encode(raw_bytes(tensor.detach().contiguous()).numpy().data).decode()
    return [list(tensor.shape), dtype_name(tensor.dtype), data]


# -- reading ---------------------------------------------------------------------------------------


def weights_from_json(data: Json, n_members: int) -> WeightRecipe:
    """Read the weight half of a recipe, which may come from anybody. No code of it is run.

    Args:
        data: What `weights_to_json` returned, through JSON.
        n_members: N.

    Raises:
        ArtifactError: It is none.
    """
    try:
        graph = graph_from_json(data["graph"])
        leaves = tuple(str(name) for name in data["leaves"])
        named: dict[str, torch.Tensor | None] = {
            name: None if value is None else _tensor_from_json(value) for name, value in data["constants"].items()
        }
        packed = tuple(_packed_from_json(item, n_members) for item in data["packed"])
        _check(graph, leaves, packed)
        wanted = own_pieces(graph, leaves, named)
        constants = {name: tensor for name, tensor in named.items() if tensor is not None}
        dtypes = {
            name: node.meta["val"].dtype
            for name, node in zip(leaves, _placeholders(graph), strict=True)
            if name not in named
        }
        program = WeightProgram(_Holder(graph), leaves, constants, packed)
        sizes = {str(name): int(size) for name, size in data["sizes"].items()}
        return WeightRecipe(program, wanted, dtypes, bool(data["fills_buffers"]), sizes)
    except EnsexportError as error:
        raise ArtifactError(f"its recipe is damaged: {error.message}", hint=_HINT) from error
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        raise ArtifactError(f"its recipe is damaged ({type(error).__name__}).", hint=_HINT) from error


def _check(graph: fx.Graph, leaves: tuple[str, ...], packed: tuple[PackedWeight, ...]) -> None:
    placeholders: list[fx.Node] = _placeholders(graph)
    results: Any = graph.output_node().args[0]
    if len(placeholders) != len(leaves) or len(set(leaves)) != len(leaves):
        raise ArtifactError(f"{len(placeholders)} tensors are read, and {len(set(leaves))} named.")
    if not isinstance(results, tuple) or not all(isinstance(piece, fx.Node) for piece in results):
        raise ArtifactError("its graph returns no pieces.")
    values = [(node, node.meta.get("val")) for node in graph.nodes if node.op != "output"]
    for node, value in values:
        parts = value if isinstance(value, tuple) else (value,)
        if not all(isinstance(part, torch.Tensor) for part in parts):
            raise ArtifactError(f"it does not say what {node.name} is.")
    if len({weight.name for weight in packed}) != len(packed):
        raise ArtifactError("a weight stands in it twice.")
    for weight in packed:
        piece = results[weight.piece] if weight.piece < len(results) else None
        if piece is None or tuple(piece.meta["val"].shape) != weight.piece_shape:
            raise ArtifactError(f"the weight '{weight.name[:80]}' is no piece of the shape it should have.")


def _packed_from_json(item: Json, n_members: int) -> PackedWeight:
    name, piece, kind, member_index, members, shape, dtype = item
    numbers = [piece, *shape, *([] if member_index is None else [member_index]), *(members or [])]
    first, end = members or (0, n_members)
    if (
        not isinstance(name, str)
        or kind not in get_args(Kind)
        or not all(type(number) is int and 0 <= number < 2**62 for number in numbers)
        or not 0 <= first < end <= n_members
        or not (member_index or 0) < n_members
        or (kind == "member") != (member_index is not None)
        or math.prod(shape) >= 2**62
    ):
        raise ArtifactError(f"{str(item)[:80]} is no weight.")
    bounds = None if members is None else (first, end)
    return PackedWeight(name, piece, kind, member_index, tuple(shape), dtype_of_name(dtype), bounds)


def _tensor_from_json(item: Json) -> torch.Tensor:
    shape, name, text = item
    dtype = dtype_of_name(name)
    try:
        data = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ArtifactError("a constant is no bytes.") from error
    if not all(type(size) is int and size >= 0 for size in shape) or len(data) != math.prod(shape) * dtype.itemsize:
        raise ArtifactError(f"a constant of shape {str(shape)[:80]} has {len(data)} bytes.")
    if not data:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(data), dtype=dtype).reshape(shape)
