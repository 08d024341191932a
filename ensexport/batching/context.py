"""What a rule works with: values in the layout it asks for, and calls that add nodes.

`Context` is the whole interface between the engine and the rules. It converts layouts (each conversion is one or
two nodes, made once), hands out packed weights, and adds calls; it knows no op of its own.
"""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import statically_known_true

from ensexport.batching.builder import GraphBuilder, Target
from ensexport.batching.value import (
    ROWS,
    SHARED,
    Branches,
    Folded,
    Layout,
    Rows,
    Stacked,
    Value,
    WeightLayout,
    expression,
)
from ensexport.batching.weights import Kind, WeightPacker

aten = torch.ops.aten


class Context:
    """The batched graph and the weight graph under construction.

    Attributes:
        n_members: N, or how many of them are being written, if not all at once.
        builder: Writes the batched graph.
        weight_builder: Writes the weight graph.
        packer: The initializers asked for so far.
        op: The op being batched.
        result: The member graph's fake result of it (tensor or tuple of tensors).
        only_member: While one member's copy of an op is written, its index; weights are then that member's.
        members: While some of the members are written, the first and one past the last; None for all.
    """

    def __init__(self, n_members: int, builder: GraphBuilder, weight_builder: GraphBuilder) -> None:
        self.n_members = n_members
        self.builder = builder
        self.weight_builder = weight_builder
        self.packer = WeightPacker()
        self.result: Any = None
        self.op: Any = None
        self.only_member: int | None = None
        self.members: tuple[int, int] | None = None
        self._symbols: dict[Any, tuple[fx.Node, int]] = {}
        self._merged_sizes: dict[Any, fx.Node] = {}
        self._first_input: fx.Node | None = None

    # -- building ----------------------------------------------------------------------------------

    def call(self, target: Target, *args: Any, **kwargs: Any) -> fx.Node:
        """Add a call to the batched graph; tensor arguments are its nodes."""
        return self.builder.call(target, *args, **kwargs)

    def call_in(self, layout: Layout, target: Target, *args: Any, **kwargs: Any) -> fx.Node:
        """Add a call whose result is known to be the op's own, in `layout`, without running it on fake tensors.

        For convolutions: torch's shape function asks for the batch size to choose a backend, which would fix it.
        """
        return self._call_for(self.result, layout, target, *args, **kwargs)

    def _call_for(self, member: torch.Tensor, layout: Layout, target: Target, *args: Any, **kwargs: Any) -> fx.Node:
        with self.builder.symbolic():
            value = member.new_empty(self._physical_shape(member, layout))
        return self.builder.call_as(value, target, *args, **kwargs)

    def value(self, node: fx.Node, layout: Layout, *, output: int | None = None) -> Value:
        """Wrap a node as the op's result, or as result number `output` of an op with several."""
        return Value(node, layout, self.result if output is None else self.result[output])

    def shared_value(self, node: fx.Node) -> Value:
        """Wrap a node as the op's result where it turned out to be the same for all members."""
        return Value(node, SHARED, self.result)

    def weight(self, target: Target, *args: Any, **kwargs: Any) -> Value:
        """Apply an op to weights on the member's side: computed when packing, not when running."""
        weights = [arg for arg in args if isinstance(arg, Value)]
        nodes = [arg.node if isinstance(arg, Value) else arg for arg in args]
        node = self.weight_builder.call(target, *nodes, **kwargs)
        is_shared = all(weight.layout == WeightLayout(is_shared=True) for weight in weights)
        return Value(node, WeightLayout(is_shared), node.meta["val"])

    def constant(self, target: Target, *args: Any, **kwargs: Any) -> Value:
        """A tensor that depends on nothing (ones, a mask), made when packing and kept once."""
        with self.builder.fake_mode:
            node = self.weight_builder.call(target, *args, **kwargs)
        return Value(node, WeightLayout(is_shared=True), node.meta["val"])

    def add_input(self, name: str, value: torch.Tensor) -> fx.Node:
        """Add a user input, after the weights."""
        node = self.builder.placeholder(name, value)
        self._first_input = self._first_input or node
        for dim, size in enumerate(value.shape):
            if isinstance(size, torch.SymInt):
                self._symbols.setdefault(expression(size), (node, dim))
        return node

    def _packed(self, value: Value, kind: Kind, member_index: int | None = None) -> fx.Node:
        members = self.members if kind in ("stacked", "folded") else None
        if kind == "member" and self.members is not None and member_index is not None:
            member_index += self.members[0]
        key = (value.node, kind, member_index, members)
        if key not in self.packer.placeholders:
            weight = self.packer.add(value.node, kind, member_index, members)
            with self.builder.fake_mode:
                fake = torch.empty(weight.shape(self.n_members), dtype=weight.dtype)
            node = self.builder.placeholder(f"weight_{len(self.packer.placeholders)}", fake, before=self._first_input)
            node.meta["packed"] = weight
            self.packer.placeholders[key] = node
        return self.packer.placeholders[key]

    # -- layouts -----------------------------------------------------------------------------------

    def shared(self, value: Value) -> fx.Node:
        """The physical tensor of a value that is the same for all members: logical shape."""
        if value.is_weight:
            if self.only_member is not None and value.is_per_member:
                return self._packed(value, "member", self.only_member)
            assert not value.is_per_member, "a per-member weight was asked for as a shared one"
            return self._packed(value, "shared")
        assert value.is_shared, f"{value.layout} was asked for as shared"
        return value.node

    def stacked(self, value: Value, axis: int = 0) -> fx.Node:
        """The physical tensor with the members at dim `axis`: `(N, ...)` for axis 0."""
        layout = value.layout
        if isinstance(layout, WeightLayout):
            return self._move(self._packed(value, "stacked"), 0, axis)
        if isinstance(layout, Stacked):
            return self._move(value.node, layout.axis, axis)
        if isinstance(layout, Branches):
            return self._joined(value, Stacked(axis), aten.stack.default, axis)
        if isinstance(layout, Folded):
            size = value.shape[layout.dim]
            split = [self.n_members, size if isinstance(size, int) else -1]
            return self._move(self.call(aten.unflatten.int, value.node, layout.dim, split), layout.dim, axis)
        if isinstance(layout, Rows):
            sizes = self.shape([self.size(value, dim) for dim in range(value.rank - 1)])
            return self._move(self.call(aten.unflatten.int, value.node, 1, sizes), 0, axis)
        return self._repeated(value.node, value.rank, axis)

    def folded(self, value: Value, dim: int) -> fx.Node:
        """The physical tensor with the members merged into logical dim `dim`, member 0 first."""
        if value.layout == Folded(dim):
            return value.node
        if value.is_weight and dim == 0 and value.rank > 0:
            return self._packed(value, "folded")
        if dim == 0 and isinstance(value.layout, Rows):
            return self._batch_first(value)
        if isinstance(value.layout, Branches):
            return self._joined(value, Folded(dim), aten.cat.default, dim)
        stacked = self.stacked(value, dim)
        return self._call_for(value.member, Folded(dim), aten.flatten.using_ints, stacked, dim, dim + 1)

    def rows(self, value: Value) -> fx.Node:
        """The physical tensor as a batched matmul takes it: `(N, rows, last dim)`, for a value of rank 2 or more."""
        layout, last = value.layout, value.rank - 1
        if value.rank == 2 or layout == ROWS:
            return self.stacked(value) if value.rank == 2 else value.node
        self._remember_sizes(value)
        width = value.shape[last]
        if layout == Folded(0) and isinstance(width, int):
            return self.call(aten.reshape.default, value.node, [self.n_members, -1, width])
        if layout == Folded(last) and isinstance(width, int):
            split = self.call(aten.reshape.default, value.node, [-1, self.n_members, width])
            return self.call(aten.permute.default, split, [1, 0, 2])
        return self._call_for(value.member, ROWS, aten.flatten.using_ints, self.stacked(value), 1, last)

    def _joined(self, value: Value, layout: Layout, target: Target, dim: int) -> fx.Node:
        """The branches as one tensor."""
        assert isinstance(value.layout, Branches)
        return self._call_for(value.member, layout, target, list(value.layout.nodes), dim)

    def rows_value(self, node: fx.Node) -> Value:
        """Wrap `(N, rows, last dim)` as the op's result."""
        return Value(node, ROWS if self.result.dim() > 2 else Stacked(0), self.result)

    def _batch_first(self, value: Value) -> fx.Node:
        """`Rows` as members merged into dim 0: one reshape."""
        sizes = [self.size(value, dim) for dim in range(1, value.rank)]
        return self.call(aten.reshape.default, value.node, [-1, *sizes])

    def broadcast(self, value: Value, rank: int) -> fx.Node:
        """A tensor that broadcasts against `(N, *logical)` of logical rank `rank`.

        Per-member values come as `(N, 1, ..., *shape)`, shared ones as they are.
        """
        if not value.is_per_member:
            return self.shared(value)
        missing = rank - value.rank
        if missing and value.is_weight:
            return self.stacked(self.weight(aten.reshape.default, value, [1] * missing + list(value.shape)))
        node = self.stacked(value)
        for _ in range(missing):
            node = self.call(aten.unsqueeze.default, node, 1)
        return node

    def member(self, value: Value, member_index: int) -> fx.Node:
        """One member's tensor, logical shape."""
        if not value.is_per_member:
            return self.shared(value)
        if value.is_weight:
            return self._packed(value, "member", member_index)
        layout = value.layout
        if isinstance(layout, Branches):
            return layout.nodes[member_index]
        if isinstance(layout, Stacked):
            return self.call(aten.select.int, value.node, layout.axis, member_index)
        if isinstance(layout, Folded) and layout.dim > 0 and isinstance(value.shape[layout.dim], int):
            sizes = [value.shape[layout.dim]] * self.n_members
            parts = self.call(aten.split_with_sizes.default, value.node, sizes, layout.dim)
            return self.call(operator.getitem, parts, member_index)
        return self.call(aten.select.int, self.stacked(value), 0, member_index)

    def _move(self, node: fx.Node, source: int, target: int) -> fx.Node:
        if source == target:
            return node
        order = list(range(node.meta["val"].dim()))
        order.insert(target, order.pop(source))
        return self.call(aten.permute.default, node, order)

    def _repeated(self, node: fx.Node, rank: int, axis: int) -> fx.Node:
        sizes = [-1] * rank
        sizes.insert(axis, self.n_members)
        return self.call(aten.expand.default, self.call(aten.unsqueeze.default, node, axis), sizes)

    # -- sizes -------------------------------------------------------------------------------------

    def size(self, value: Value, dim: int) -> int | fx.Node:
        """One member's size of a dim: an int, or a node where it is dynamic."""
        size = value.shape[dim]
        if isinstance(size, int):
            return size
        return self.size_node(size) or self._physical_size(value, dim)

    def _remember_sizes(self, value: Value) -> None:
        """Note where dynamic sizes can be read, before they are merged into rows."""
        for dim, size in enumerate(value.shape):
            if isinstance(size, torch.SymInt) and expression(size) not in self._symbols:
                self._merged_sizes.setdefault(expression(size), self._physical_size(value, dim))

    def size_node(self, size: Any) -> fx.Node | None:
        """The node of a dynamic size that is a dimension of some input, else None."""
        known = self._symbols.get(expression(size))
        if known is not None:
            return self.call(aten.sym_size.int, *known)
        return self._merged_sizes.get(expression(size))

    def _physical_size(self, value: Value, dim: int) -> fx.Node:
        layout = value.layout
        if layout == ROWS:
            if dim != value.rank - 1:
                raise NotImplementedError(f"size {value.shape[dim]} is not known outside the merged rows")
            return self.call(aten.sym_size.int, value.node, 2)
        physical = dim + 1 if isinstance(layout, Stacked) and dim >= layout.axis else dim
        node = self.call(aten.sym_size.int, value.node, physical)
        if isinstance(layout, Folded) and layout.dim == dim:
            return self.call(operator.floordiv, node, self.n_members)
        return node

    @staticmethod
    def shape(entries: list[int | fx.Node]) -> list[int | fx.Node]:
        """A shape argument from ints and size nodes: the first node becomes -1 where that is possible.

        A constant shape needs no Shape and Gather nodes in the exported file.
        """
        if -1 in [entry for entry in entries if isinstance(entry, int)]:
            return entries
        first = next((index for index, entry in enumerate(entries) if isinstance(entry, fx.Node)), None)
        return [-1 if index == first else entry for index, entry in enumerate(entries)]

    def _physical_shape(self, member: torch.Tensor, layout: Layout) -> list[Any]:
        shape: list[Any] = list(member.shape)
        if isinstance(layout, Stacked):
            shape.insert(layout.axis, self.n_members)
        elif isinstance(layout, Folded):
            shape[layout.dim] = shape[layout.dim] * self.n_members
        elif layout == ROWS:
            shape = [self.n_members, math.prod(shape[:-1]), shape[-1]]
        return shape

    # -- the engine's own check --------------------------------------------------------------------

    def describe_error(self, value: Value) -> str | None:
        """Say how a value's physical tensor contradicts its layout, or None if it does not."""
        physical, member = value.node.meta["val"], value.member
        if isinstance(value.layout, Branches):
            apart = (self.describe_error(shared_value(node, member)) for node in value.layout.nodes)
            return next((problem for problem in apart if problem is not None), None)
        if physical.dtype != member.dtype:
            return f"dtype {physical.dtype} instead of {member.dtype}"
        expected = self._physical_shape(member, value.layout)
        same = len(expected) == physical.dim() and all(
            a is b or statically_known_true(a == b) for a, b in zip(physical.shape, expected, strict=True)
        )
        return None if same else f"shape {tuple(physical.shape)} instead of {tuple(expected)} ({value.layout})"


def shared_value(node: fx.Node, member: torch.Tensor) -> Value:
    """Wrap a node that is the same for all members."""
    return Value(node, SHARED, member)
