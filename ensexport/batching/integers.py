"""Which integers a member accepts: read off its graph, so that the proof visits the whole of its tables.

An integer input that looks up rows of a table (`nn.Embedding`, `gather`, `table[ids]`) may hold any row's number and
nothing else. The walk follows each element of an input through the ops that only move it or add a constant to it
(one embedding for several columns, with offsets) up to the table, and takes the table's size as the element's range.
What cannot be followed keeps 0 and 1, which every table has.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch._ops import OpOverload

from ensexport.batching.examples import BagOffsets, Example, IntegerRange, ValueRange, random_feed
from ensexport.batching.member_graph import MemberGraph
from ensexport.spec import TensorSpec
from ensexport.stacking.baseline import run_member
from ensexport.stacking.state import named_tensors

aten = torch.ops.aten

_MAX_ELEMENTS = 2**20  # of a constant that is computed to follow an input: tables themselves are never copied

# Ops whose result holds elements of their first argument, unchanged. The same op is applied to the elements' numbers.
_MOVES = {
    "view", "reshape", "_unsafe_view", "view_as", "reshape_as", "unsqueeze", "squeeze", "select", "slice", "transpose",
    "permute", "movedim", "t", "mT", "numpy_T", "expand", "expand_as", "flatten", "unflatten", "contiguous", "clone",
    "alias", "detach", "lift_fresh_copy", "repeat", "repeat_interleave", "flip", "roll", "narrow", "unbind", "split",
    "split_with_sizes", "chunk", "tensor_split", "index_select", "diagonal", "unfold",
}  # fmt: skip
_JOINS = {"cat", "concat", "stack"}
_CASTS = {"to", "_to_copy", "type_as"}
# The result lies in a range of the op's own, whatever the integers are.
_BOUNDING = {
    "remainder", "clamp", "clamp_min", "clamp_max", "eq", "ne", "lt", "le", "gt", "ge", "logical_not", "logical_and",
    "logical_or", "argmax", "argmin", "isnan", "any", "all", "ones_like", "zeros_like", "full_like",
}  # fmt: skip


@dataclass(frozen=True)
class _Traced:
    """Each element is one element of an input (its number in the flat input) plus a constant."""

    name: str
    source: torch.Tensor
    offset: torch.Tensor


class _Free:
    """Depends on an input in a way that no integer input has to mind."""


class _Lost:
    """Depends on an integer input in a way that is not followed."""


_FREE, _LOST = _Free(), _Lost()


def accepted_ranges(
    module: nn.Module, member: MemberGraph, example: Example
) -> tuple[dict[str, ValueRange], tuple[str, ...]]:
    """Return the ranges of the inputs that look up rows, tried on a member, and what the user should know of them.

    Args:
        module: The member that was captured.
        member: Its graph.
        example: What it was captured with.
    """
    ranges = value_ranges(member, named_tensors(module), example.feed)
    if not ranges:
        return {}, ()
    try:
        for seed in range(3):
            run_member(module, random_feed(member.specs, example.sizes, seed, ranges=ranges))
    except Exception as error:  # noqa: BLE001 - the user's model says no in its own way
        names = ", ".join(f"'{name}'" for name in ranges)
        return {}, (
            f"the proof uses 0 and 1 only for {names}: the model refuses the whole range of its tables "
            f"({type(error).__name__}: {str(error).strip()[:200]})",
        )
    return ranges, ()


def value_ranges(
    member: MemberGraph, state: Mapping[str, torch.Tensor], feed: Mapping[str, torch.Tensor]
) -> dict[str, ValueRange]:
    """Return, for the inputs that look up rows, what their elements may be.

    Args:
        member: The member graph.
        state: One member's tensors by name: constants that are added to an input are among them.
        feed: Inputs of the sizes that the graph was captured at.

    Returns:
        Input name -> range. Inputs that look nothing up, or that cannot be followed to what they look up, are left out.
    """
    walk = _Walk(member, state, feed)
    low = {name: torch.zeros(tensor.numel(), dtype=torch.int64) for name, tensor in feed.items()}
    high = {name: torch.full((tensor.numel(),), _UNBOUNDED) for name, tensor in feed.items()}
    offsets: dict[str, ValueRange] = {}
    lost = False
    for index, n_rows in _lookups(member.graph):
        found = walk.follow(index)
        lost = lost or found is _LOST
        if isinstance(found, _Traced):
            source, bottom, top = found.source.flatten(), -found.offset.flatten(), n_rows - found.offset.flatten()
            low[found.name].scatter_reduce_(0, source, bottom, "amax")
            high[found.name].scatter_reduce_(0, source, top, "amin")
    for ids, starts, has_end in _bags(member.graph):
        first, of = walk.follow(starts), walk.follow(ids)
        if isinstance(first, _Traced) and isinstance(of, _Traced):
            offsets[first.name] = BagOffsets(of.name, has_end)
    if lost:  # which of the inputs it was is not known
        return offsets
    ranges = {spec.name: _range(spec, low[spec.name], high[spec.name], feed[spec.name]) for spec in member.specs}
    return {name: found for name, found in ranges.items() if found is not None} | offsets


_UNBOUNDED = 2**62


def _range(spec: TensorSpec, low: torch.Tensor, high: torch.Tensor, example: torch.Tensor) -> IntegerRange | None:
    """One range for all sizes of the dynamic dims, one for each place along the others."""
    if spec.dtype == "bool" or bool((high == _UNBOUNDED).all()):
        return None
    if not example.dtype.is_floating_point:
        high = torch.where(high == _UNBOUNDED, high, high.clamp(max=torch.iinfo(example.dtype).max))
    low, high = low.view(example.shape), high.view(example.shape)
    dynamic = [dim for dim, size in enumerate(spec.dims) if isinstance(size, str)]
    if dynamic:
        low, high = low.amax(dynamic, keepdim=True), high.amin(dynamic, keepdim=True)
    if bool((low >= high).any()):
        return None
    low, high = (torch.where(high >= _UNBOUNDED, 0, bound) for bound in (low, high))
    for dim in range(low.dim()):
        if bool((low == low.narrow(dim, 0, 1)).all() and (high == high.narrow(dim, 0, 1)).all()):
            low, high = low.narrow(dim, 0, 1), high.narrow(dim, 0, 1)
    return IntegerRange(low, high)


def _lookups(graph: fx.Graph) -> Iterator[tuple[fx.Node, int]]:
    """Yield each tensor of row numbers and how many rows there are to look up."""
    for node in graph.nodes:
        name = _name(node)
        if name in ("embedding", "embedding_bag", "_embedding_bag", "_embedding_bag_forward_only"):
            yield node.args[1], _size(node.args[0], 0)
        elif name in ("gather", "index_select", "take_along_dim", "scatter", "scatter_add", "scatter_reduce"):
            index = node.args[1] if name == "take_along_dim" else node.args[2]
            dim = node.args[2] if name == "take_along_dim" else node.args[1]
            if isinstance(index, fx.Node) and isinstance(dim, int):
                yield index, _size(node.args[0], dim)
        elif name in ("index", "index_put"):
            for dim, index in enumerate(node.args[1]):
                if isinstance(index, fx.Node) and index.meta["val"].dtype is not torch.bool:
                    yield index, _size(node.args[0], dim)
        elif name == "one_hot" and len(node.args) > 1 and isinstance(node.args[1], int) and node.args[1] > 0:
            yield node.args[0], node.args[1]


def _bags(graph: fx.Graph) -> Iterator[tuple[fx.Node, fx.Node, bool]]:
    """Yield the ids of each embedding bag, where its bags start, and whether the last start is the end."""
    for node in graph.nodes:
        if _name(node) in ("embedding_bag", "_embedding_bag", "_embedding_bag_forward_only"):
            has_end = bool(node.args[7]) if len(node.args) > 7 else bool(node.kwargs.get("include_last_offset", False))
            yield node.args[1], node.args[2], has_end


def _size(table: Any, dim: int) -> int:
    """How many rows a table has; of a dynamic dim, what it has in the example."""
    return int(_hint(table.meta["val"].shape[dim]))


def _hint(value: Any) -> Any:
    """The size that the graph was captured at, for a dynamic one."""
    return int(value.node.hint) if isinstance(value, torch.SymInt) else value


def _name(node: fx.Node) -> str:
    return node.target._schema.name.partition("::")[2] if isinstance(node.target, OpOverload) else ""


class _Walk:
    """Follows values backwards to the inputs; each node is looked at once."""

    def __init__(
        self, member: MemberGraph, state: Mapping[str, torch.Tensor], feed: Mapping[str, torch.Tensor]
    ) -> None:
        self._known: dict[fx.Node, Any] = {}
        for node, name in member.state.items():
            self._known[node] = member.constants.get(name, state.get(name, _FREE))
        for name, node in member.inputs.items():
            example = feed[name]
            number = torch.arange(example.numel()).view(example.shape)
            is_number = example.dtype is not torch.bool
            self._known[node] = _Traced(name, number, torch.zeros_like(number)) if is_number else _FREE

    def follow(self, node: fx.Node) -> Any:
        """Return a `_Traced`, `_FREE`, `_LOST`, or the value itself where it depends on no input."""
        waiting = [node]
        while waiting:
            current = waiting[-1]
            missing = [other for other in current.all_input_nodes if other not in self._known]
            if current in self._known or not missing:
                waiting.pop()
                if current not in self._known:
                    self._known[current] = self._apply(current)
            else:
                waiting += missing
        return self._known[node]

    def _apply(self, node: fx.Node) -> Any:
        value = node.meta.get("val")
        if isinstance(value, int | torch.SymInt):
            return _hint(value)
        known = [self._known[other] for other in node.all_input_nodes]
        traced = [item for item in known if isinstance(item, _Traced)]
        if traced:
            return self._of_traced(node, traced)
        if any(item is _LOST for item in known):
            return _LOST
        return _FREE if any(item is _FREE for item in known) else self._constant(node)

    def _of_traced(self, node: fx.Node, traced: Sequence[_Traced]) -> Any:
        name = _name(node)
        if node.target is operator.getitem or name in _MOVES:
            return self._moved(node)
        if name in _JOINS:
            return self._joined(node, traced)
        if name in _CASTS:
            return self._known[node.args[0]] if isinstance(node.args[0], fx.Node) else _LOST
        if name in ("add", "sub") and not node.kwargs:
            return self._shifted(node, 1 if name == "add" else -1)
        # What is computed from a number in floating point is no row's number any more.
        value = node.meta.get("val")
        is_float = isinstance(value, torch.Tensor) and value.dtype.is_floating_point
        return _FREE if name in _BOUNDING or is_float else _LOST

    def _constant(self, node: fx.Node) -> Any:
        value = node.meta.get("val")
        is_small = isinstance(value, torch.Tensor) and _hint(value.numel()) <= _MAX_ELEMENTS
        if not is_small and node.target is not operator.getitem:
            return _FREE
        return self._call(node, lambda other: self._known[other])

    def _call(self, node: fx.Node, value_of: Any) -> Any:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), value_of)
        try:
            with torch.no_grad():
                return node.target(*args, **kwargs)  # type: ignore[operator]
        except (RuntimeError, TypeError, IndexError, ValueError):
            return _LOST

    def _moved(self, node: fx.Node) -> Any:
        first = node.args[0]
        what = self._known[first] if isinstance(first, fx.Node) else _LOST
        if isinstance(what, tuple | list):
            return what[node.args[1]]  # type: ignore[index]
        if not isinstance(what, _Traced):
            return _FREE  # the input only says where: `table[ids]` with the table as the first argument
        sources = self._call(node, lambda other: what.source if other is first else self._known[other])
        offsets = self._call(node, lambda other: what.offset if other is first else self._known[other])
        if isinstance(sources, tuple | list):
            return [_Traced(what.name, *pair) for pair in zip(sources, offsets, strict=True)]
        return _LOST if sources is _LOST else _Traced(what.name, sources, offsets)

    def _joined(self, node: fx.Node, traced: Sequence[_Traced]) -> Any:
        parts = [self._known[other] for other in node.all_input_nodes]
        if len({item.name for item in traced}) > 1 or len(traced) < len(parts):
            return _LOST
        sources = self._call(node, lambda other: self._known[other].source)
        offsets = self._call(node, lambda other: self._known[other].offset)
        return _LOST if sources is _LOST else _Traced(traced[0].name, sources, offsets)

    def _shifted(self, node: fx.Node, sign: int) -> Any:
        left, right = (self._known[arg] if isinstance(arg, fx.Node) else arg for arg in node.args[:2])
        if isinstance(right, _Traced) and sign == 1:
            left, right = right, left
        if not isinstance(left, _Traced) or not isinstance(right, int | torch.Tensor):
            return _LOST if isinstance(right, _Traced | int | torch.Tensor) or right in (_LOST, _FREE) else _FREE
        if isinstance(right, torch.Tensor) and right.dtype.is_floating_point:
            return _FREE
        constant = torch.as_tensor(right, dtype=torch.int64)
        offset = left.offset + sign * constant
        return _Traced(left.name, left.source.expand(offset.shape), offset)
