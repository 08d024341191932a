"""What is computed from weights alone is computed in float64 and rounded once, at the end.

A sub-graph of weights (weight normalisation, a folded norm, a table of positions) costs nothing at run time, so it may
be as exact as it likes: a chain of float32 steps would leave its rounding errors in the file for good. Arithmetic on
floats runs in float64, from the tensors as they were loaded; each piece is rounded to its own dtype when finished.
What only moves numbers about keeps their dtype, so a piece that nothing was computed for is bit-equal to its source.

Two kinds of op keep the member's own arithmetic, from the source tensors on. A step that jumps (`round`, `sign`, a
comparison, an index) would land elsewhere for an input that is better by its last bit: not a smaller error, another
network. And where the model itself rounds to fewer bits (`.half().float()`), the rounding is the point.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterator, Sequence
from typing import Any, cast

import torch
from torch import fx, nn
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten

_WIDE = {
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.float32: torch.float64,
    torch.complex64: torch.complex128,
}

# Ops that move numbers about, by the name all their overloads share. One that is missing here costs a copy, no bits.
_MOVING = {
    *("alias", "clone", "contiguous", "detach", "lift_fresh_copy", "dropout"),
    *("permute", "transpose", "t", "numpy_T", "movedim", "flip", "roll", "swapaxes"),
    *("view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze", "expand", "broadcast_to"),
    *("cat", "stack", "split", "split_with_sizes", "chunk", "unbind", "slice", "select", "narrow", "repeat", "tile"),
    *("index", "index_select", "gather", "embedding", "diagonal", "tril", "triu", "unfold", "constant_pad_nd", "where"),
}
_CASTS = {"to", "_to_copy", "type_as"}
_JUMPING = {
    *("round", "floor", "ceil", "trunc", "fix", "frac", "floor_divide", "fmod", "remainder", "sign", "sgn"),
    *("heaviside", "hardshrink", "threshold", "nextafter"),
    *("fake_quantize_per_tensor_affine", "fake_quantize_per_channel_affine"),
    *("nan_to_num", "rms_norm", "linalg_pinv", "pinverse"),  # look at the largest number or the last bit of a dtype
}


class Float64Interpreter(fx.Interpreter):
    """Runs a graph whose nodes carry their fake values in `meta["val"]`, as the module above says.

    Before: the arguments are the tensors as loaded. After: the results have the dtypes that the graph promises.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self._graph = cast(fx.Graph, module.graph)
        self._as_written = _read_by_a_jump(self._graph)

    def stream(
        self, leaves: Sequence[torch.Tensor | None], wanted: Collection[int] | None = None
    ) -> Iterator[tuple[int, torch.Tensor]]:
        """Run the graph and yield each result as soon as it is there, with its place among the results.

        Nothing is kept longer than it is read: of the results, one at a time is in memory. They are not rounded yet.

        Args:
            leaves: The arguments; None for one that nothing needs.
            wanted: Places of the results to compute; None for all. What is computed has the same bits either way.
        """
        needed = nodes_behind(self._graph, wanted)
        pieces = cast(tuple[fx.Node, ...], self._graph.output_node().args[0])
        places: dict[fx.Node, list[int]] = {}
        for place, piece in enumerate(pieces):
            if wanted is None or place in wanted:
                places.setdefault(piece, []).append(place)
        run = [node for node in self._graph.nodes if node in needed]
        last_read = {arg: node for node in run for arg in node.all_input_nodes}
        given = dict(zip((node for node in self._graph.nodes if node.op == "placeholder"), leaves, strict=True))
        self.env = {}
        for node in run:
            self.env[node] = given[node] if node.op == "placeholder" else self.run_node(node)
            for place in places.get(node, ()):
                yield place, self.env[node]
            for done in (*node.all_input_nodes, node):
                if last_read.get(done, done) is node:
                    self.env.pop(done, None)

    def run_node(self, n: fx.Node) -> Any:
        """Run one node; floats that were computed are float64 until the end."""
        if n.op == "output":
            pieces = cast(tuple[fx.Node, ...], n.args[0])
            return tuple(self.env[piece].to(piece.meta["val"].dtype) for piece in pieces)
        if n.op != "call_function" or n.target is operator.getitem or n in self._as_written:
            return super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        name = _name(n)
        floats = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        if name in _CASTS and _was_computed(n, args):
            return args[0]
        if name not in _CASTS and (name not in _MOVING or len({leaf.dtype for leaf in floats if _is_float(leaf)}) > 1):
            args, kwargs = tree_map(_widened, (args, kwargs))
        return n.target(*args, **kwargs)  # type: ignore[operator]


def nodes_behind(graph: fx.Graph, wanted: Collection[int] | None) -> set[fx.Node]:
    """The nodes that some of the results need, those included; all but the output for None."""
    if wanted is None:
        return {node for node in graph.nodes if node.op != "output"}
    pieces = cast(tuple[fx.Node, ...], graph.output_node().args[0])
    left = [pieces[place] for place in wanted]
    found = set(left)
    while left:
        more = [arg for arg in left.pop().all_input_nodes if arg not in found]
        found.update(more)
        left += more
    return found


def _was_computed(node: fx.Node, args: Sequence[Any]) -> bool:
    """Is this a cast that drops no bits, of a value that is in float64 already?"""
    source = node.all_input_nodes[0].meta["val"].dtype
    return bool(args[0].dtype != source) and _keeps_bits(source, node.meta["val"].dtype)


def _read_by_a_jump(graph: fx.Graph) -> set[fx.Node]:
    """The ops that run as the member runs them: those that jump, and what these read."""
    found: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        if node.op == "call_function" and (_jumps(node) or any(user in found for user in node.users)):
            found.add(node)
    return found


def _jumps(node: fx.Node) -> bool:
    given = [arg.meta["val"] for arg in node.all_input_nodes]
    floats = [value for value in tree_leaves(given) if isinstance(value, torch.Tensor) and _is_float(value)]
    results = [value for value in tree_leaves(node.meta["val"]) if isinstance(value, torch.Tensor)]
    if not floats:
        return True  # integers, masks and tensors made of nothing have no bits to gain
    if node.target is operator.getitem:
        return False
    if _name(node) in _JUMPING or _has_rounding_mode(node) or node.target is aten.view.dtype:
        return True
    if not all(_is_float(value) for value in results):
        return True
    narrow = [value.dtype for value in results if value.dtype in (torch.float16, torch.bfloat16)]
    return any(not _keeps_bits(value.dtype, dtype) for value in floats for dtype in narrow)


def _has_rounding_mode(node: fx.Node) -> bool:
    return node.kwargs.get("rounding_mode") is not None


def _name(node: fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target)).partition(".")[0]


def _is_float(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _keeps_bits(source: torch.dtype, target: torch.dtype) -> bool:
    return torch.promote_types(source, target) == target


def _widened(leaf: Any) -> Any:
    if isinstance(leaf, torch.Tensor) and leaf.dtype in _WIDE:
        return leaf.to(_WIDE[leaf.dtype])
    return _WIDE.get(leaf, leaf) if isinstance(leaf, torch.dtype) else leaf
