"""The weight side of a batched graph: every packed initializer as a function of ONE member's tensors.

While the batched graph is written, anything that depends on a member's state alone goes into a second graph, the
weight graph: state in, finished pieces out. Packing runs it once a member and writes each piece to that member's
own contiguous range. So the batched graph is made without any weights, members can be streamed one at a time,
and one member can be replaced without a new export.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ensexport.batching.precision import Float64Interpreter, nodes_behind
from ensexport.errors import StackError, WeightRangeError
from ensexport.members.tensors import raw_bytes

Kind = Literal["stacked", "folded", "shared", "member"]
Put = Callable[[str, int, memoryview], None]


@dataclass(frozen=True)
class PackedWeight:
    """One initializer of the batched graph.

    Attributes:
        name: Its name in the exported files, such as `fc1.weight`.
        piece: Index of the member's piece in the weight graph's outputs.
        kind: `stacked`: pieces side by side on a new axis 0, `(N, ...)`. `folded`: merged into axis 0,
            `(N*C, ...)`. `shared`: one piece serves all. `member`: the piece of `member_index` alone.
        member_index: The member, for kind `member`.
        piece_shape: Shape of one member's piece.
        dtype: Dtype of the piece.
        members: First member and one past the last whose pieces it holds; None for all. For kinds `stacked` and
            `folded`.
    """

    name: str
    piece: int
    kind: Kind
    member_index: int | None
    piece_shape: tuple[int, ...]
    dtype: torch.dtype
    members: tuple[int, int] | None = None

    def shape(self, n_members: int) -> tuple[int, ...]:
        """Shape of the initializer in an ensemble of `n_members`."""
        if self.members is not None:
            n_members = self.members[1] - self.members[0]
        if self.kind == "stacked":
            return (n_members, *self.piece_shape)
        if self.kind == "folded":
            return (n_members * self.piece_shape[0], *self.piece_shape[1:])
        return self.piece_shape

    def n_bytes(self, n_members: int) -> int:
        """Size of the initializer in an ensemble of `n_members`."""
        return math.prod(self.shape(n_members)) * self.dtype.itemsize

    def place(self, member_index: int) -> int | None:
        """Where among the initializer's bytes a member's piece begins, in one run; None if it has no piece there."""
        first, end = self.members or (0, member_index + 1)
        if self.kind in ("stacked", "folded"):
            size = math.prod(self.piece_shape) * self.dtype.itemsize
            return (member_index - first) * size if first <= member_index < end else None
        return 0 if member_index == (self.member_index or 0) else None


@dataclass(frozen=True)
class WeightProgram:
    """The weight graph, finished: turns one member's state into its pieces.

    Attributes:
        module: Holds the graph, as `module.graph`: it takes the leaves in order, and returns the tuple of pieces.
        leaves: Names of the state tensors it reads.
        constants: Values of leaves that belong to the architecture, not to a member's state.
        packed: The initializers made of the pieces.
    """

    module: nn.Module
    leaves: tuple[str, ...]
    constants: Mapping[str, torch.Tensor]
    packed: tuple[PackedWeight, ...]

    @property
    def graph(self) -> fx.Graph:
        """The weight graph."""
        graph = self.module.graph
        assert isinstance(graph, fx.Graph)
        return graph

    def pieces(
        self, state: Mapping[str, torch.Tensor], wanted: Collection[int] | None = None
    ) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield one member's pieces as they are finished; what is computed is float64, and not rounded yet.

        Args:
            state: The member's parameters and buffers by name.
            wanted: Indices of the pieces to compute; None for all.

        Yields:
            Index of the piece, and the piece. One at a time is in memory.

        Raises:
            StackError: One of the tensors is missing, or has another shape than the graph was made for.
        """
        needed = nodes_behind(self.graph, wanted)
        placeholders = [node for node in self.graph.nodes if node.op == "placeholder"]
        leaves = [
            self._leaf(name, node, state) if node in needed else None
            for name, node in zip(self.leaves, placeholders, strict=True)
        ]
        with torch.no_grad():
            for index, piece in Float64Interpreter(self.module).stream(leaves, wanted):
                yield index, piece.detach()

    def _leaf(self, name: str, node: fx.Node, state: Mapping[str, torch.Tensor]) -> torch.Tensor:
        leaf, expected = state[name] if name in state else self.constants.get(name), node.meta["val"].shape
        if leaf is None:
            raise StackError(f"cannot pack '{name}': expected shape {tuple(expected)}, and there is no such tensor.")
        if leaf.shape != expected:
            raise StackError(
                f"cannot pack '{name}': expected shape {tuple(expected)}, as in member 0 when it was captured, "
                f"got {tuple(leaf.shape)}.",
                hint="Is it changed by forward? Then compute it without storing.",
            )
        return leaf

    def finished(
        self,
        state: Mapping[str, torch.Tensor],
        member_index: int,
        takes: Callable[[PackedWeight], bool],
        wanted: Collection[int] | None = None,
    ) -> Iterator[tuple[PackedWeight, memoryview]]:
        """Yield one member's share of initializers, in the initializer's dtype.

        Args:
            state: The member's parameters and buffers by name.
            member_index: The member.
            takes: Says of which initializers.
            wanted: Indices of the pieces to compute; None for all.

        Raises:
            StackError: See `pieces`.
            WeightRangeError: A finite number has no place in the initializer's dtype.
        """
        weights: dict[int, list[PackedWeight]] = {}
        for weight in filter(takes, self.packed):
            weights.setdefault(weight.piece, []).append(weight)
        for index, piece in self.pieces(state, wanted):
            for weight in weights.get(index, ()):
                yield weight, raw_bytes(_rounded(piece, weight, member_index)).numpy().data

    def write(self, state: Mapping[str, torch.Tensor], member_index: int, put: Put) -> None:
        """Write one member's share of every initializer.

        Args:
            state: The member's parameters and buffers by name.
            member_index: The member.
            put: Called as `(name, place, bytes)`: where in which initializer a run of bytes begins.

        Raises:
            WeightRangeError: A finite number has no place in the initializer's dtype.
        """

        def takes(weight: PackedWeight) -> bool:
            return weight.place(member_index) is not None

        for weight, values in self.finished(state, member_index, takes):
            place = weight.place(member_index)
            assert place is not None
            put(weight.name, place, values)

    def pack(self, states: Iterable[Mapping[str, torch.Tensor]], n_members: int) -> dict[str, torch.Tensor]:
        """Return every initializer by name, in memory, filled member by member.

        Args:
            states: One state a member, read one at a time.
            n_members: N.
        """
        packed = {weight.name: torch.empty(weight.shape(n_members), dtype=weight.dtype) for weight in self.packed}
        views = {name: raw_bytes(tensor).numpy().data for name, tensor in packed.items()}

        def put(name: str, place: int, values: memoryview) -> None:
            views[name][place : place + len(values)] = values

        for member_index, state in enumerate(states):
            self.write(state, member_index, put)
        return packed


def _rounded(piece: torch.Tensor, weight: PackedWeight, member_index: int) -> torch.Tensor:
    """A piece in its initializer's dtype, contiguous."""
    is_half = weight.dtype.itemsize == 2 and weight.dtype.is_floating_point
    rounded = (_odd_float32(piece) if is_half and piece.dtype is torch.float64 else piece).to(weight.dtype).contiguous()
    if is_half and rounded.dtype != piece.dtype:
        lost = piece.isfinite() & rounded.isinf()
        if lost.any():
            largest = float(piece[lost].abs().max())
            dtype = str(weight.dtype).removeprefix("torch.")
            raise WeightRangeError(
                f"member {member_index}: '{weight.name}' holds {largest:.6g}, beyond the largest {dtype}, "
                f"{torch.finfo(weight.dtype).max:.6g} ({int(lost.sum())} of {piece.numel()} numbers).",
                hint="Use --dtype bfloat16, which has float32's range, or float32.",
            )
    return rounded


def _odd_float32(exact: torch.Tensor) -> torch.Tensor:
    """Float64 as float32, an inexact one as its neighbour whose last bit is set: rounding that again is rounding once.

    Torch goes from float64 to 16 bits by way of float32, which rounds twice.
    Source: Boldo and Melquiond, Emulation of FMA and correctly rounded sums: proved algorithms using rounding to odd.
    """
    near = exact.to(torch.float32)
    towards_zero = torch.where(near.abs().double() > exact.abs(), torch.nextafter(near, torch.zeros_like(near)), near)
    is_inexact = towards_zero.double() != exact
    return (towards_zero.view(torch.int32) | is_inexact.to(torch.int32)).view(torch.float32)


class WeightPacker:
    """Collects the initializers a batched graph asks for, each (piece, kind) once, under readable names.

    Attributes:
        names_members: Say in a name which member's piece it is, where it is one member's.
    """

    def __init__(self) -> None:
        self.names_members = True
        self.placeholders: dict[Any, fx.Node] = {}
        self._names: set[str] = set()

    def add(self, node: fx.Node, kind: Kind, member_index: int | None, members: tuple[int, int] | None) -> PackedWeight:
        """Name the initializer made of the piece that `node` of the weight graph computes."""
        piece = node.meta["val"]
        whose = f"_member_{member_index}" if member_index is not None and self.names_members else ""
        whose = f"_members_{members[0]}_to_{members[1] - 1}" if members is not None else whose
        shape = tuple(int(size) for size in piece.shape)
        name = self._unique(_readable_name(node) + whose)
        return PackedWeight(name, -1, kind, member_index, shape, piece.dtype, members)

    def finish(self, placeholders: list[fx.Node], weight_graph: fx.Graph) -> tuple[PackedWeight, ...]:
        """Make the weight graph return exactly the pieces that `placeholders` of the batched graph read.

        After it, every placeholder's `meta["packed"]` holds the index of its piece, and the weight graph has no
        node or leaf that no piece needs.
        """
        node_of = {placeholder: key[0] for key, placeholder in self.placeholders.items()}
        pieces = list(dict.fromkeys(node_of[placeholder] for placeholder in placeholders))
        for placeholder in placeholders:
            weight = placeholder.meta["packed"]
            placeholder.meta["packed"] = replace(weight, piece=pieces.index(node_of[placeholder]))
        weight_graph.output(tuple(pieces))
        weight_graph.eliminate_dead_code(is_impure_node=lambda node: node.op == "output")
        for node in [node for node in weight_graph.nodes if node.op == "placeholder" and not node.users]:
            weight_graph.erase_node(node)
        return tuple(placeholder.meta["packed"] for placeholder in placeholders)

    def _unique(self, stem: str) -> str:
        name, number = stem, 1
        while name in self._names:
            number += 1
            name = f"{stem}_{number}"
        self._names.add(name)
        return name


def with_constant(
    program: WeightProgram, name: str, tensor: torch.Tensor, fake_mode: FakeTensorMode
) -> tuple[WeightProgram, PackedWeight]:
    """Add a tensor that belongs to no member to what is packed.

    Args:
        program: The weight graph; it is copied, not changed.
        name: What to call it in the exported files; a name that is taken gets a number.
        tensor: Its value.
        fake_mode: That of the graph's fake values.

    Returns:
        The program that packs it too, and the initializer.
    """
    taken = {weight.name.split(".")[0] for weight in program.packed}
    numbered = (f"{name}_{number}" for number in itertools.count(2))
    own = next(free for free in itertools.chain([name], numbered) if free not in taken)
    leaf = f"ensexport.{own}"
    graph = fx.Graph()
    results = graph.graph_copy(program.graph, {})
    assert isinstance(results, tuple)
    before = next((node for node in graph.nodes if node.op != "placeholder"), None)
    with graph.inserting_before(before) if before is not None else contextlib.nullcontext():
        placeholder = graph.placeholder(f"leaf_{own}")
    with fake_mode:
        placeholder.meta |= {"val": torch.empty(tuple(tensor.shape), dtype=tensor.dtype), "leaf": leaf}
    graph.output((*results, placeholder))
    weight = PackedWeight(own, len(results), "shared", None, tuple(tensor.shape), tensor.dtype)
    leaves = tuple(node.meta["leaf"] for node in graph.nodes if node.op == "placeholder")
    return (
        WeightProgram(
            fx.GraphModule(torch.nn.Module(), graph),
            leaves,
            {**program.constants, leaf: tensor},
            (*program.packed, weight),
        ),
        weight,
    )


_REARRANGING = {"permute", "reshape", "expand", "view", "transpose", "t", "unsqueeze", "squeeze", "to"}


def _readable_name(node: fx.Node) -> str:
    """`fc1.weight` for a state tensor, rearranged or not; `fc1.weight_mul` for what is computed from it.

    No name is another's prefix before a dot: they are also paths in a module tree.
    """
    if "leaf" in node.meta:
        return str(node.meta["leaf"])
    source = next((_readable_name(arg) for arg in node.all_input_nodes), "constant")
    op = getattr(node.target, "__name__", str(node.target)).split(".")[0]
    return source if op in _REARRANGING else f"{source}_{op}"
