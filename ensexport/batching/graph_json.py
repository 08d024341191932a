"""A graph of ATen ops as JSON and back, so that a file can carry how its weights were made.

    {"nodes": [{"op": "placeholder", "name": "leaf_0", "val": [[3, 4], "float32"]},
               {"op": "call", "target": "aten.mul.Tensor", "args": [{"node": 0}, 2.0], "kwargs": {}, "val": ...}],
     "output": [{"node": 1}]}

`val` is a tensor's shape and dtype; a list of such under `many` where an op returns several; a size where it returns
one. Reading is for files of strangers, see `graph_ops`.
"""

from __future__ import annotations

import keyword
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx

from ensexport.batching.graph_ops import find_op, name_of
from ensexport.batching.sizes_json import size_from_json, size_to_json
from ensexport.errors import ArtifactError, ExportError

Json = Any
MakeTensor = Callable[[tuple[Any, ...], torch.dtype], torch.Tensor]
_MAX_DEPTH = 32
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex128, torch.complex64),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64),
        *(torch.bool, torch.complex32, torch.float8_e4m3fn, torch.float8_e5m2),
    )
}
_FORMATS = {
    str(form).removeprefix("torch."): form
    for form in (torch.contiguous_format, torch.preserve_format, torch.channels_last, torch.channels_last_3d)
}


def dtype_name(dtype: torch.dtype) -> str:
    """`float32`."""
    return str(dtype).removeprefix("torch.")


def dtype_of_name(name: Any) -> torch.dtype:
    """The dtype called `float32`.

    Raises:
        ArtifactError: There is none.
    """
    if not isinstance(name, str) or name not in _DTYPES:
        raise ArtifactError(f"cannot read a graph: {str(name)[:80]!r} is no dtype.")
    return _DTYPES[name]


# -- writing ---------------------------------------------------------------------------------------


def graph_to_json(graph: fx.Graph, *, with_values: bool = True) -> Json:
    """Write a graph of placeholders, calls and one output.

    Args:
        graph: The graph; each node's `meta["val"]` holds its fake value.
        with_values: Write shapes and dtypes too.

    Raises:
        ExportError: It holds what cannot be written, or what would not be read back; names the op.
    """
    places: dict[fx.Node, int] = {}
    nodes, output = [], None
    for node in graph.nodes:
        try:
            if node.op == "output":
                output = _written(node.args[0], places)
                continue
            nodes.append(_node_to_json(node, places, with_values=with_values))
        except ExportError as error:
            raise ExportError(f"cannot write {name_of(node.target)} as JSON: {error.message}") from error
        places[node] = len(places)
    return {"nodes": nodes, "output": output}


def _node_to_json(node: fx.Node, places: Mapping[fx.Node, int], *, with_values: bool) -> Json:
    value = {"val": _value_to_json(node.meta.get("val"))} if with_values else {}
    if node.op == "placeholder":
        return {"op": "placeholder", "name": str(node.target), **value}
    name = name_of(node.target)
    if node.op != "call_function" or find_op(name) is not node.target:
        raise ExportError("it is none of the ops that a file may hold.")
    args, kwargs = [_written(arg, places) for arg in node.args], node.kwargs
    return {
        "op": "call",
        "target": name,
        "args": args,
        "kwargs": {key: _written(kwargs[key], places) for key in sorted(kwargs)},
        **value,
    }


def _written(value: Any, places: Mapping[fx.Node, int]) -> Json:  # noqa: PLR0911 - one line a kind
    if isinstance(value, fx.Node):
        return {"node": places[value]}
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, complex):
        return {"complex": [_written(value.real, places), _written(value.imag, places)]}
    if isinstance(value, list):
        return [_written(item, places) for item in value]
    if isinstance(value, tuple):
        return {"tuple": [_written(item, places) for item in value]}
    if isinstance(value, slice):
        return {"slice": [_written(item, places) for item in (value.start, value.stop, value.step)]}
    if isinstance(value, torch.dtype):
        return {"dtype": dtype_name(value)}
    if isinstance(value, torch.memory_format):
        return {"memory_format": str(value).removeprefix("torch.")}
    if value is torch.strided:
        return {"layout": "strided"}
    if isinstance(value, torch.device) and value.type == "cpu":
        return {"device": "cpu"}
    raise ExportError(f"it takes {value!r}, a {type(value).__name__}.")


def _value_to_json(value: Any) -> Json:
    if isinstance(value, torch.Tensor):
        return [[size_to_json(size) for size in value.shape], dtype_name(value.dtype)]
    if isinstance(value, tuple | list):
        return {"many": [_value_to_json(part) for part in value]}
    if isinstance(value, torch.SymInt) or (isinstance(value, int) and not isinstance(value, bool)):
        return {"size": size_to_json(value)}
    if value is None:
        return None
    raise ExportError(f"it returns a {type(value).__name__}.")


# -- reading ---------------------------------------------------------------------------------------


def _on_meta(shape: tuple[Any, ...], dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def graph_from_json(data: Json, *, make: MakeTensor = _on_meta, symbols: Mapping[str, Any] | None = None) -> fx.Graph:
    """Read a graph that may come from anybody.

    Args:
        data: What `graph_to_json` returned, through JSON.
        make: Makes `meta["val"]` of a shape and a dtype; a tensor on device meta by default.
        symbols: The dynamic sizes by the names they have in the file.

    Raises:
        ArtifactError: It is no graph, or holds an op that a file may not ask for; names it.
    """
    graph = fx.Graph()
    nodes: list[fx.Node] = []
    for number, item in enumerate(_field(data, "nodes", list)):
        kind = _field(item, "op", str)
        if kind == "placeholder":
            node = graph.placeholder(_identifier(_field(item, "name", str)))
        elif kind == "call":
            name = _field(item, "target", str)
            op = find_op(name)
            if op is None:
                raise ArtifactError(f"cannot read a graph: {name[:80]!r} is none of the ops that a file may hold.")
            args = tuple(_read(arg, nodes) for arg in _field(item, "args", list))
            kwargs = {_identifier(key): _read(arg, nodes) for key, arg in _field(item, "kwargs", dict).items()}
            node = graph.call_function(op, args, kwargs)
        else:
            raise ArtifactError(f"cannot read a graph: its node {number} is a {kind[:80]!r}.")
        if isinstance(item, dict) and "val" in item:
            node.meta["val"] = _value_from_json(item["val"], make, symbols or {})
        nodes.append(node)
    output = graph.output(_read(data.get("output"), nodes))
    output.meta["val"] = fx.node.map_arg(output.args[0], lambda node: node.meta.get("val"))
    return graph


def _field(data: Any, name: str, kind: type) -> Any:
    value = data.get(name) if isinstance(data, dict) else None
    if type(value) is not kind:
        raise ArtifactError(f"cannot read a graph: '{name}' is missing, or no {kind.__name__}.")
    return value


def _identifier(name: str) -> str:
    if not name.isidentifier() or keyword.iskeyword(name) or len(name) > 200:
        raise ArtifactError(f"cannot read a graph: {name[:80]!r} is no name.")
    return name


def _read(data: Any, nodes: list[fx.Node], depth: int = 0) -> Any:  # noqa: PLR0911, PLR0912 - one line a kind
    if data is None or isinstance(data, bool | int | float | str):
        return data
    if depth > _MAX_DEPTH:
        raise ArtifactError("cannot read a graph: an argument is nested too deep.")
    if isinstance(data, list):
        return [_read(item, nodes, depth + 1) for item in data]
    kind, value = next(iter(data.items())) if isinstance(data, dict) and len(data) == 1 else ("", None)
    if kind == "node" and type(value) is int and 0 <= value < len(nodes):
        return nodes[value]
    if kind in ("tuple", "slice", "complex") and isinstance(value, list):
        parts = [_read(item, nodes, depth + 1) for item in value]
        if kind == "tuple":
            return tuple(parts)
        if kind == "slice" and len(parts) == 3:
            return slice(*parts)
        if kind == "complex" and len(parts) == 2 and all(isinstance(part, float) for part in parts):
            return complex(*parts)
    if kind == "float" and value in ("nan", "inf", "-inf"):
        return float(value)
    if kind == "dtype":
        return dtype_of_name(value)
    if kind == "memory_format" and isinstance(value, str) and value in _FORMATS:
        return _FORMATS[value]
    if (kind, value) == ("layout", "strided"):
        return torch.strided
    if (kind, value) == ("device", "cpu"):
        return torch.device("cpu")
    raise ArtifactError(f"cannot read a graph: {str(data)[:80]} is no argument.")


def _value_from_json(data: Any, make: MakeTensor, symbols: Mapping[str, Any], depth: int = 0) -> Any:
    if data is None:
        return None
    if isinstance(data, list) and len(data) == 2 and isinstance(data[0], list):
        shape = tuple(size_from_json(size, symbols) for size in data[0])
        try:
            return make(shape, dtype_of_name(data[1]))
        except (RuntimeError, ValueError, TypeError, OverflowError) as error:
            raise ArtifactError(f"cannot read a graph: there is no tensor of shape {str(shape)[:80]}.") from error
    if isinstance(data, dict) and isinstance(data.get("many"), list) and depth <= _MAX_DEPTH:
        return tuple(_value_from_json(part, make, symbols, depth + 1) for part in data["many"])
    if isinstance(data, dict) and "size" in data:
        return size_from_json(data["size"], symbols)
    raise ArtifactError(f"cannot read a graph: {str(data)[:80]} is no tensor's shape and dtype.")
