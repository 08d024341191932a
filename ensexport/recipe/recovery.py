"""Weights read back out of a packed file: what was done to a member's tensors on the way in, undone.

The pieces that a file holds and the tensors that are wanted are functions of the same state. They are matched by what
they are made of: where one is the other moved about (`permute`, `reshape`, a part of a `cat`), moving it back gives it
bit for bit. What is neither in a piece nor part of one is computed from what is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ensexport.batching.builder import GraphBuilder
from ensexport.batching.layers import SAME, VIEWS, order_of
from ensexport.batching.weights import PackedWeight, WeightProgram
from ensexport.errors import ArtifactError

aten = torch.ops.aten

PIECE = "piece_{}"
"""Leaf of a recovery program: the piece with this number."""
_PIECE = re.compile(re.escape(PIECE).replace(r"\{\}", r"(\d{1,9})"))
_RESHAPING = VIEWS | {
    aten.unflatten.int,
    aten.unsqueeze.default,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
}
_ORDERING = {aten.permute.default, aten.transpose.int}
_CASTS = {aten.to.dtype, aten._to_copy.default}
_PARTS = {aten.split_with_sizes.default, aten.split.Tensor, aten.chunk.default}


@dataclass(frozen=True)
class Recovered:
    """How tensors are made of a file's pieces.

    Attributes:
        program: Takes the pieces, `PIECE` by number, and returns the tensors that were found.
        lost: Names of those that were not.
    """

    program: WeightProgram
    lost: tuple[str, ...]


class Holder(nn.Module):
    """A graph and nothing else: no code is generated of it."""

    def __init__(self, graph: fx.Graph) -> None:
        super().__init__()
        self.graph = graph


def recover_weights(wanted: WeightProgram, held: WeightProgram, fake_mode: FakeTensorMode) -> Recovered:
    """Make the pieces of one program of those of another.

    Args:
        wanted: Its pieces are wanted; one initializer each.
        held: Its pieces are in the file.
        fake_mode: That of the graphs' fake values.
    """
    search = _Search(held, fake_mode, is_exact=False)
    pieces = cast(tuple[fx.Node, ...], wanted.graph.output_node().args[0])
    nodes = [search.computed(piece) for piece in pieces]
    places = {index: place for place, index in enumerate(i for i, node in enumerate(nodes) if node is not None)}
    packed = tuple(replace(w, piece=places[w.piece]) for w in wanted.packed if w.piece in places)
    lost = tuple(weight.name for weight in wanted.packed if weight.piece not in places)
    return Recovered(search.program([nodes[index] for index in places], packed), lost)


def recover_state(names: Sequence[str], held: WeightProgram, fake_mode: FakeTensorMode) -> Recovered:
    """Make a member's own tensors of a file's pieces, bit for bit.

    Args:
        names: Names of the tensors.
        held: Its pieces are in the file.
        fake_mode: That of the graphs' fake values.
    """
    search = _Search(held, fake_mode, is_exact=True)
    found = {name: node for name in names if (node := search.leaf(name)) is not None}
    packed = tuple(
        PackedWeight(name, place, "shared", None, tuple(node.meta["val"].shape), node.meta["val"].dtype)
        for place, (name, node) in enumerate(found.items())
    )
    lost = tuple(name for name in names if name not in found)
    return Recovered(search.program(list(found.values()), packed), lost)


def pieces_of(program: WeightProgram) -> dict[int, list[PackedWeight]]:
    """The initializers that hold each piece."""
    weights: dict[int, list[PackedWeight]] = {}
    for weight in program.packed:
        weights.setdefault(weight.piece, []).append(weight)
    return weights


def piece_number(leaf: str) -> int:
    """The number of the piece that a leaf of a recovery program stands for.

    Raises:
        ArtifactError: It stands for none.
    """
    matched = _PIECE.fullmatch(leaf)
    if matched is None:
        raise ArtifactError(f"cannot read the file's recipe: {leaf[:80]!r} is no piece of it.")
    return int(matched[1])


class _Forms:
    """Numbers the values of weight graphs: those of one number are the same function of a member's state."""

    def __init__(self) -> None:
        self._numbers: dict[Any, int] = {}
        self._known: dict[fx.Node, int] = {}

    def of(self, node: fx.Node) -> int:
        """The number of a node's value."""
        if node not in self._known:
            key: Any = ("leaf", node.meta["leaf"]) if node.op == "placeholder" else self._key(node)
            self._known[node] = self.number(key)
        return self._known[node]

    def number(self, key: Any) -> int:
        """The number of what is called so."""
        return self._numbers.setdefault(key, len(self._numbers))

    def _key(self, node: fx.Node) -> Any:
        return (node.target, self._frozen(node.args), self._frozen(dict(node.kwargs)))

    def _frozen(self, value: Any) -> Any:
        if isinstance(value, fx.Node):
            return ("node", self.of(value))
        if isinstance(value, list | tuple):
            return tuple(self._frozen(item) for item in value)
        if isinstance(value, dict):
            return tuple(sorted((name, self._frozen(item)) for name, item in value.items()))
        return type(value).__name__, repr(value)


class _Search:
    """What can be had of the pieces.

    Args:
        held: The program that makes them.
        fake_mode: That of the graphs' fake values.
        is_exact: Bit for bit: nothing is computed, and a piece that is kept in another dtype is not the tensor.
    """

    def __init__(self, held: WeightProgram, fake_mode: FakeTensorMode, *, is_exact: bool) -> None:
        self._builder = GraphBuilder(fake_mode)
        self._forms = _Forms()
        self._known: dict[int, fx.Node | None] = {}
        self._is_exact = is_exact
        pieces = cast(tuple[fx.Node, ...], held.graph.output_node().args[0])
        for index, weights in sorted(pieces_of(held).items()):
            piece = pieces[index]
            if is_exact and weights[0].dtype != piece.meta["val"].dtype:
                continue
            leaf = self._builder.placeholder(PIECE.format(index), piece.meta["val"])
            leaf.meta["leaf"] = PIECE.format(index)
            self._unpack(piece, leaf)
        for node in reversed(held.graph.nodes):
            self._join(node)

    def leaf(self, name: str) -> fx.Node | None:
        """A state tensor."""
        return self._known.get(self._forms.number(("leaf", name)))

    def computed(self, node: fx.Node) -> fx.Node | None:
        """A value of a weight graph; None if it depends on what is in no piece."""
        form = self._forms.of(node)
        if form not in self._known:
            self._known[form] = None if node.op == "placeholder" else self._applied(node)
        return self._known[form]

    def program(self, results: Sequence[Any], packed: tuple[PackedWeight, ...]) -> WeightProgram:
        """Finish the recovery graph: it returns `results`, and reads the pieces that these need."""
        graph = self._builder.graph
        graph.output(tuple(results))
        graph.eliminate_dead_code(is_impure_node=lambda node: node.op == "output")
        for node in [node for node in graph.nodes if node.op == "placeholder" and not node.users]:
            graph.erase_node(node)
        leaves = tuple(node.meta["leaf"] for node in graph.nodes if node.op == "placeholder")
        return WeightProgram(Holder(graph), leaves, {}, packed)

    def _applied(self, node: fx.Node) -> fx.Node | None:
        new = {arg: self.computed(arg) for arg in node.all_input_nodes}
        if any(value is None for value in new.values()):
            return None
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), new.__getitem__)
        return self._builder.call_as(node.meta["val"], node.target, *args, **kwargs)  # type: ignore[arg-type]

    def _unpack(self, node: fx.Node, value: fx.Node) -> None:
        """Note that `value` is `node`, and with it what `node` was made of by moving it about."""
        while self._known.setdefault(self._forms.of(node), value) is value and node.op == "call_function":
            if node.target in (aten.cat.default, aten.stack.default):
                for part, own in self._parts(node, value):
                    self._unpack(part, own)
                return
            back = self._moved_back(node, value)
            if back is None:
                return
            node, value = cast(fx.Node, node.args[0]), back

    def _parts(self, node: fx.Node, value: fx.Node) -> Iterator[tuple[fx.Node, fx.Node]]:
        """What was joined, and where it is in the result."""
        parts = cast(list[fx.Node], node.args[0])
        rank = value.meta["val"].dim()
        dim = cast(int, (*node.args, 0)[1]) % rank
        if len({part.meta["val"].dtype for part in parts}) > 1:
            return
        begin = 0
        for index, part in enumerate(parts):
            if node.target is aten.stack.default:
                yield part, self._builder.call(aten.select.int, value, dim, index)
                continue
            shape = part.meta["val"].shape
            if len(shape) == rank:  # an empty tensor of one dim may be joined to anything
                yield part, self._builder.call(aten.slice.Tensor, value, dim, begin, begin + shape[dim])
                begin += shape[dim]

    def _moved_back(self, node: fx.Node, value: fx.Node) -> fx.Node | None:
        """The argument of an op, made of its result; None if the op does more than move numbers about."""
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node) or not isinstance(source.meta["val"], torch.Tensor):
            return None
        before, call, back = source.meta["val"], self._builder.call, None
        shape = list(before.shape)
        if node.target in SAME or (node.target in _CASTS and before.dtype == node.meta["val"].dtype):
            back = value
        elif node.target in _RESHAPING:
            back = call(aten.reshape.default, value, shape)
        elif node.target is aten.t.default:
            back = call(aten.t.default, value)
        elif node.target in _ORDERING:
            order = order_of(node, len(shape))
            back = call(aten.permute.default, value, [order.index(dim) for dim in range(len(order))])
        elif node.target is aten.flip.default:
            back = call(aten.flip.default, value, node.args[1])
        elif node.target is aten.expand.default and math.prod(node.meta["val"].shape):
            back = self._unexpanded(value, shape)
        elif node.target in _CASTS and not self._is_exact and _widens(before.dtype, node.meta["val"].dtype):
            back = call(aten.to.dtype, value, before.dtype)
        return back

    def _unexpanded(self, value: fx.Node, shape: list[int]) -> fx.Node:
        sizes = list(value.meta["val"].shape)
        own = [1] * (len(sizes) - len(shape)) + shape
        for dim, (size, size_before) in enumerate(zip(sizes, own, strict=True)):
            if size != size_before:
                value = self._builder.call(aten.slice.Tensor, value, dim, 0, 1)
        return self._builder.call(aten.reshape.default, value, shape)

    def _join(self, node: fx.Node) -> None:
        """Note a value whose parts are all known: attention's weight, whose thirds are kept apart."""
        value = node.meta.get("val")
        if node.op == "output" or not isinstance(value, torch.Tensor) or self._forms.of(node) in self._known:
            return
        for dim, parts in _cuts(node):
            known = [self._known.get(self._forms.of(part)) for part in parts]
            if all(part is not None for part in known):
                self._unpack(node, self._builder.call(aten.cat.default, known, dim))
                return


def _widens(dtype: torch.dtype, wide: torch.dtype) -> bool:
    is_float = dtype.is_floating_point and wide.is_floating_point
    return is_float and torch.promote_types(dtype, wide) == wide


def _cuts(node: fx.Node) -> Iterator[tuple[int, list[fx.Node]]]:
    """Ways in which the ops that read a tensor cut all of it into parts: the dim, and the parts in order."""
    slices: dict[int, dict[int, tuple[int, fx.Node]]] = {}
    shape = node.meta["val"].shape
    for user in node.users:
        if user.target in _PARTS and user.args[0] is node:
            dim = cast(int, user.args[2] if len(user.args) > 2 else user.kwargs.get("dim", 0))
            items = {cast(int, item.args[1]): item for item in user.users}
            if len(items) == len(user.meta["val"]):
                yield dim % len(shape), [items[index] for index in range(len(items))]
        if user.target is aten.slice.Tensor and user.args[0] is node and not user.kwargs and len(user.args) <= 4:
            given: list[Any] = [*user.args[1:], *(0, None, None)[len(user.args) - 1 :]]
            dim, begin, end = given[0] % len(shape), given[1], given[2]
            size = shape[dim]
            slices.setdefault(dim, {})[_index(begin, size, 0)] = (_index(end, size, size), user)
    for dim, found in slices.items():
        place, parts = 0, []
        while place in found and place < found[place][0]:
            place, part = found[place]
            parts.append(part)
        if place == shape[dim] and parts:
            yield dim, parts


def _index(value: Any, size: int, default: int) -> int:
    if value is None:
        return default
    return int(max(value + size, 0) if value < 0 else min(value, size))
