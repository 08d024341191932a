"""Sizes of tensors as JSON and back: numbers, and arithmetic on dimensions that are dynamic.

An expression is written as a tree and read back by doing the arithmetic on sizes that the caller gives by name:
nothing is evaluated as text.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch

from ensexport.errors import ArtifactError, ExportError

Json = Any
_MAX_SIZE = 2**62
_MAX_DEPTH = 64
_OPS: dict[str, Callable[[Any, Any], Any]] = {
    "Add": operator.add,
    "Mul": operator.mul,
    "FloorDiv": operator.floordiv,
    "Mod": operator.mod,
    "Max": torch.sym_max,
    "Min": torch.sym_min,
}
_SPELLED = {"CleanDiv": "FloorDiv", "PythonMod": "Mod"}


def size_to_json(size: Any) -> Json:
    """Write one size: an int, or a symbolic one as `["Mul", ["s0"], 4]`.

    Raises:
        ExportError: The expression holds what is not known here.
    """
    return size if isinstance(size, int) else _tree(size.node.expr)


def _tree(expr: Any) -> Json:
    if expr.is_Integer:
        return int(expr)
    if expr.is_Symbol:
        return [str(expr)]
    kind = type(expr).__name__
    kind = _SPELLED.get(kind, kind)
    if kind == "Pow" and expr.args[1].is_Integer and 0 < int(expr.args[1]) <= 8:
        return ["Mul", *[_tree(expr.args[0])] * int(expr.args[1])]
    if kind not in _OPS:
        raise ExportError(f"cannot write the size {expr}: it holds {kind}.")
    args = sorted(expr.args, key=str) if kind in ("Add", "Mul", "Max", "Min") else expr.args
    return [kind, *map(_tree, args)]


def size_from_json(data: Json, symbols: Mapping[str, Any], depth: int = 0) -> Any:
    """Read one size.

    Args:
        data: What `size_to_json` returned.
        symbols: The dynamic sizes by name, ints or symbolic.
        depth: How deep in the expression it lies.

    Raises:
        ArtifactError: It is no size, or names one that is not given.
    """
    if isinstance(data, int) and not isinstance(data, bool) and abs(data) < _MAX_SIZE:
        return data
    if depth > _MAX_DEPTH or not isinstance(data, list) or not data or not isinstance(data[0], str):
        raise ArtifactError(f"cannot read a size of a graph: {str(data)[:80]} is none.")
    if len(data) == 1:
        if data[0] not in symbols:
            raise ArtifactError(f"cannot read a size of a graph: there is no dynamic size {data[0][:80]!r}.")
        return symbols[data[0]]
    parts = [size_from_json(part, symbols, depth + 1) for part in data[1:]]
    is_division = data[0] in ("FloorDiv", "Mod")
    if data[0] not in _OPS or (is_division and (len(parts) != 2 or (isinstance(parts[1], int) and parts[1] == 0))):
        raise ArtifactError(f"cannot read a size of a graph: {str(data)[:80]} is no arithmetic on sizes.")
    return functools.reduce(_OPS[data[0]], parts)
