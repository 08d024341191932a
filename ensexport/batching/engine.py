"""Member graph -> batched graph: one walk over the member's ATen graph, every op for all members at once.

`batch_graph` is the whole engine: it keeps, for each value of the member graph, where its members are
(`value.py`), asks the ladder (`ladder.py`) for each op, and leaves what is the same for all members un-stacked.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from ensexport.batching import rules
from ensexport.batching.activation_scales import activation_scales
from ensexport.batching.builder import GraphBuilder
from ensexport.batching.channels_first import channels_first
from ensexport.batching.context import Context, shared_value
from ensexport.batching.folding import Folds, find_folds
from ensexport.batching.ladder import StepError, UnbatchableError, branched, climb_down
from ensexport.batching.member_graph import MemberGraph
from ensexport.batching.merging import merge_linears
from ensexport.batching.placement import HEAVY, Placement, Site, differing_nodes, leading_to, stages_of
from ensexport.batching.source import source_line
from ensexport.batching.tree import map_values, values_in
from ensexport.batching.value import Branches, Folded, Rows, Stacked, Value, WeightLayout
from ensexport.batching.weights import PackedWeight, WeightProgram
from ensexport.errors import ExportError
from ensexport.spec import Fallback, Plan, Stage

aten = torch.ops.aten
rules.load()

_MAX_WEIGHT_GROWTH = 4
_SIZES = {aten.sym_size.int, aten.sym_numel.default}


@dataclass(frozen=True)
class BatchedGraph:
    """The ensemble as one ATen graph, without weights.

    Attributes:
        graph: Placeholders are the packed weights (`meta["packed"]`), then the user inputs; fake values throughout.
        weights: How one member's state becomes its pieces of the packed weights.
        member: The member graph it was made from: specs, output names, dims.
        n_members: N.
        per_member: Names of the inputs that carry a leading N axis.
        member_axis: Where N stands in the outputs: 0 `(N, B, ...)`, 1 `(B, N, ...)`.
        plan: Strategy and the ops that went down the ladder.
        n_hidden: How many of the last outputs are members' outputs that the file does not return: they stay in it
            to be compared with the loop.
        shared_state: Names of state tensors that are equal in all members.
    """

    graph: fx.Graph
    weights: WeightProgram
    member: MemberGraph
    n_members: int
    per_member: tuple[str, ...]
    member_axis: int
    plan: Plan
    n_hidden: int = 0
    shared_state: frozenset[str] = frozenset()

    @property
    def packed(self) -> dict[fx.Node, PackedWeight]:
        """The weight placeholders, in order."""
        return {node: node.meta["packed"] for node in self.graph.nodes if "packed" in node.meta}

    @property
    def inputs(self) -> tuple[fx.Node, ...]:
        """The user-input placeholders, in the file's order."""
        return tuple(node for node in self.graph.nodes if node.op == "placeholder" and "packed" not in node.meta)

    @property
    def weights_input(self) -> fx.Node | None:
        """The input that holds the members' weights, the last one, if there is one."""
        return next((node for node in self.inputs if node.meta.get("is_member_weights")), None)

    @property
    def outputs(self) -> tuple[fx.Node, ...]:
        """The output nodes, hidden ones last; as `batch_graph` wrote them in the order of `member.output_names`."""
        return tuple(self.graph.output_node().args[0])  # type: ignore[arg-type]


def batch_graph(
    member: MemberGraph,
    n_members: int,
    *,
    shared_state: Collection[str] = (),
    per_member: Sequence[str] = (),
    member_axis: int = 0,
    strategy: str = "auto",
    placement: Placement | None = None,
    chunks: int = 1,
    merges: bool = False,
) -> BatchedGraph:
    """Write the batched graph of `n_members` members.

    Args:
        member: One member's graph.
        n_members: N. One member gives the plain model with a leading axis of 1.
        shared_state: Names of state tensors that are equal in all members: kept once.
        per_member: Names of the inputs that get a leading N axis; all others are shared.
        member_axis: Where N stands in the outputs, 0 or 1.
        strategy: `auto` or `stacked` batch op by op; `unrolled` writes N branches in one graph.
        placement: Chooses the ops of a batched graph that run once a member; none by default.
        chunks: Batch the members in so many groups, one after the other, so that a group's activations fit into a
            cache; at most N.
        merges: Write the linear layers that read one activation as one.

    Raises:
        ExportError: No step of the ladder takes some op; names op and source line.
    """
    if strategy != "unrolled":
        try:
            walk = _Walk(member, n_members, shared_state, per_member, member_axis)
            return walk.batched(strategy, placement, chunks, merges=merges)
        except UnbatchableError as error:
            if strategy == "stacked":
                raise ExportError(f"cannot batch {error}.", hint="Use --strategy auto or unrolled.") from error
            unrolled = _Walk(member, n_members, shared_state, per_member, member_axis)
            return unrolled.unrolled("unrolled", (Fallback(error.op, error.source, "unroll_graph"),))
    return _Walk(member, n_members, shared_state, per_member, member_axis).unrolled("unrolled", ())


def member_form(batched: BatchedGraph, *, is_plain: bool = True) -> BatchedGraph:
    """Write the graph of ONE member on the weights of a batched graph: scales and shifts are folded into them alike.

    Args:
        batched: What `batch_graph` returned, converted or not, without combined outputs.
        is_plain: Write the ops of the member itself. Else those that the rules of the batched graph write for an
            ensemble of one, whose weights are these rules' too.

    Returns:
        A graph whose inputs and outputs are those of one member, without a member axis.
    """
    weights = GraphBuilder.continuing(batched.weights.graph, batched.member.fake_mode)
    walk = _Walk(batched.member, batched.n_members, batched.shared_state, (), 0, weights)
    return walk.alone(batched.plan.strategy) if is_plain else walk.alone_by_rules()


class _Walk:
    """One pass over the member graph."""

    def __init__(
        self,
        member: MemberGraph,
        n_members: int,
        shared_state: Collection[str],
        per_member: Sequence[str],
        member_axis: int,
        weight_builder: GraphBuilder | None = None,
    ) -> None:
        self.member = member
        self.n_members = n_members
        self.shared_state = set(shared_state)
        self.per_member = tuple(per_member)
        self.member_axis = member_axis
        fake_mode = member.fake_mode
        self.ctx = Context(n_members, GraphBuilder(fake_mode), weight_builder or GraphBuilder(fake_mode))
        self.env: dict[fx.Node, Any] = {}
        self.fallbacks: list[Fallback] = []
        self.folds = Folds()
        self.apart: frozenset[fx.Node] = frozenset()
        self.before_apart: frozenset[fx.Node] = frozenset()
        self.stages: tuple[Stage, ...] = ()

    def batched(self, strategy: str, placement: Placement | None, chunks: int, *, merges: bool) -> BatchedGraph:
        """Batch op by op, the members all at once or in chunks."""
        self.member = activation_scales(channels_first(self.member))
        self.member = merge_linears(self.member, self._is_shared) if merges else self.member
        if placement is not None and self.n_members > 1:
            differing = differing_nodes(self.member, self._is_shared, self.per_member)
            site = Site(self.member, self.n_members, differing)
            self.apart = placement(site)
            self.before_apart = leading_to(self.member, self.apart)
            self.stages = stages_of(site.heavy, self.apart)
        self._placeholders()
        self.folds = find_folds(self.member, self._is_shared)
        if chunks == 1:
            outputs = [self._output(value) for value in self._run()]
        else:
            outputs = self._run_in_chunks(min(chunks, self.n_members))
        return self._finish(outputs, strategy, tuple(dict.fromkeys(self.fallbacks)))

    def _run_in_chunks(self, chunks: int) -> list[fx.Node]:
        """Run the walk once for each group of members and join the outputs."""
        inputs, parts = dict(self.env), []
        bounds = [self.n_members * part // chunks for part in range(chunks + 1)]
        for first, end in itertools.pairwise(bounds):
            self.ctx.members, self.ctx.n_members = (first, end), end - first
            self.env = {
                node: replace(value, node=self.ctx.call(aten.slice.Tensor, value.node, 0, first, end))
                if isinstance(value.layout, Stacked)
                else value
                for node, value in inputs.items()
            }
            parts.append([self._output(value) for value in self._run()])
        self.ctx.members, self.ctx.n_members = None, self.n_members
        axes = [min(self.member_axis, value.dim()) for value in self.member.output_values]
        columns = zip(zip(*parts, strict=True), axes, strict=True)
        return [self.ctx.call(aten.cat.default, list(column), axis) for column, axis in columns]

    def unrolled(self, strategy: str, fallbacks: tuple[Fallback, ...]) -> BatchedGraph:
        """Write one copy of the member graph a member and stack the results."""
        self.member = activation_scales(self.member)
        self._placeholders()
        inputs = dict(self.env)
        copies: list[list[fx.Node]] = []
        for index in range(self.n_members):
            self.ctx.only_member = index
            self.env = {
                node: shared_value(self.ctx.member(value, index), value.member)
                if isinstance(value.layout, Stacked)
                else value
                for node, value in inputs.items()
            }
            copies.append([self.ctx.shared(value) for value in self._run()])
        self.ctx.only_member = None
        self.ctx.builder.origin = None
        stacked = [
            Value(self.ctx.call(aten.stack.default, list(copy), 0), Stacked(0), value)
            for copy, value in zip(zip(*copies, strict=True), self.member.output_values, strict=True)
        ]
        return self._finish([self._output(value) for value in stacked], strategy, fallbacks)

    def alone(self, strategy: str) -> BatchedGraph:
        """Write one member's own graph; the member graph is one that a walk has rewritten before."""
        self.ctx.only_member, self.ctx.packer.names_members = 0, False
        self._placeholders()
        self.folds = Folds() if strategy == "unrolled" else find_folds(self.member, self._is_shared)
        outputs = [self.ctx.shared(value) for value in self._run()]
        self.n_members = 1
        return self._finish(outputs, strategy, ())

    def alone_by_rules(self) -> BatchedGraph:
        """Write the same as an ensemble of one, whose member axis goes at the end."""
        self.ctx.n_members = 1
        self._placeholders()
        self.folds = find_folds(self.member, self._is_shared)
        values = self._run()
        self.ctx.builder.origin = None
        outputs = [
            self.ctx.call(aten.squeeze.dim, self.ctx.stacked(value), 0)
            if value.is_per_member
            else self.ctx.shared(value)
            for value in values
        ]
        self.n_members = 1
        return self._finish(outputs, "stacked", ())

    # -- leaves ------------------------------------------------------------------------------------

    def _placeholders(self) -> None:
        """Make the user inputs and the weight graph's leaves."""
        for name, node in self.member.inputs.items():
            fake = node.meta["val"]
            if name in self.per_member:
                with self.member.fake_mode:
                    stacked = fake.new_empty((self.n_members, *fake.shape))
                physical = self.ctx.add_input(name, stacked)
                if self.n_members == 1:  # the plain model, on its slice
                    self.env[node] = shared_value(self.ctx.call(aten.squeeze.dim, physical, 0), fake)
                    continue
                self.env[node] = Value(physical, Stacked(0), fake)
            else:
                self.env[node] = shared_value(self.ctx.add_input(name, fake), fake)
        known = {node.meta["leaf"]: node for node in self.ctx.weight_builder.graph.nodes if node.op == "placeholder"}
        for node, name in self.member.state.items():
            leaf = known.get(name) or self.ctx.weight_builder.placeholder(f"leaf_{len(self.env)}", node.meta["val"])
            leaf.meta["leaf"] = name
            self.env[node] = Value(leaf, WeightLayout(self._is_shared(name)), node.meta["val"])

    def _is_shared(self, name: str) -> bool:
        """Is this state tensor the same for all members?"""
        return name in self.shared_state or name in self.member.constants or self.n_members == 1

    # -- the walk ----------------------------------------------------------------------------------

    def _run(self) -> list[Value]:
        for node in self.member.graph.nodes:
            if node.op == "call_function":
                self.ctx.builder.origin = node
                self.ctx.weight_builder.origin = node
                self.env[node] = self._visit(node)
        return [self.env[node] for node in self.member.outputs]

    def _visit(self, node: fx.Node) -> Any:
        args: Any
        kwargs: Any
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), self.env.__getitem__)
        if node in self.folds.removed:
            return self.env[self.folds.removed[node]]
        if not isinstance(node.target, OpOverload) or node.target in _SIZES:
            return self._size_or_item(node, args)
        self.ctx.op, self.ctx.result = node.target, node.meta.get("val")
        args = self.folds.arguments(self.ctx, node, args, self.env)
        values = values_in((args, kwargs))
        if values and all(value.is_weight for value in values) and self._stays_weight(node, values):
            return self._on_weights(node, args, kwargs)
        is_one_member = self.ctx.only_member is not None
        if is_one_member or not any(value.is_per_member for value in values):
            return self._as_is(node, args, kwargs)
        if free_unbacked_symbols(node.meta["val"]):
            raise UnbatchableError(str(node.target), source_line(node), "how much it returns differs between members")
        if self._runs_apart(node, values):
            return branched(self.ctx, node.target, args, kwargs)
        try:
            results, step, _ = climb_down(self.ctx, node.target, args, kwargs)
        except StepError as error:
            raise UnbatchableError(str(node.target), source_line(node), str(error)) from error
        if step != "rule":
            self.fallbacks.append(Fallback(str(node.target), source_line(node), step))
        return results

    def _runs_apart(self, node: fx.Node, values: list[Value]) -> bool:
        """Does this op run once a member? Those placed so do, and light ones between them.

        A light op that meets both forms, such as a residual sum, takes the form of the layers that follow.
        """
        if node.target in HEAVY:
            return node in self.apart
        activations = [value for value in values if value.is_per_member and not value.is_weight]
        apart = [isinstance(value.layout, Branches) for value in activations]
        return bool(apart) and (all(apart) or (any(apart) and node in self.before_apart))

    def _size_or_item(self, node: fx.Node, args: Any) -> Any:
        """Sizes, arithmetic on them, and tuple indexing."""
        if node.target is aten.sym_size.int:
            return self.ctx.size(args[0], args[1])
        if node.target is aten.sym_numel.default:
            return self._numel(args[0])
        if args and isinstance(args[0], tuple):
            return args[0][args[1]]
        if any(isinstance(arg, fx.Node) for arg in args):
            return self.ctx.call(node.target, *args, **node.kwargs)  # type: ignore[arg-type]
        return node.target(*args, **node.kwargs)  # type: ignore[operator]

    def _numel(self, value: Value) -> Any:
        product: Any = 1
        for dim in range(value.rank):
            size = self.ctx.size(value, dim)
            both_known = isinstance(product, int) and isinstance(size, int)
            product = product * size if both_known else self.ctx.call(operator.mul, product, size)
        return product

    def _stays_weight(self, node: fx.Node, values: list[Value]) -> bool:
        """May this be computed when packing? Not if it is no tensor, needs a dynamic size, or is much larger."""
        results = node.meta["val"] if isinstance(node.meta["val"], tuple | list) else (node.meta["val"],)
        if not all(isinstance(result, torch.Tensor) for result in results):
            return False
        sizes = [size for result in results for size in result.shape]
        if any(isinstance(size, torch.SymInt) for size in sizes):
            return False
        grown = sum(result.numel() for result in results)
        return bool(grown <= _MAX_WEIGHT_GROWTH * sum(value.member.numel() for value in values) + 1024)

    def _on_weights(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        nodes, keywords = map_values((args, kwargs), lambda value: value.node)
        result = self.ctx.weight_builder.call_as(node.meta["val"], node.target, *nodes, **keywords)  # type: ignore[arg-type]
        is_shared = not any(value.is_per_member for value in values_in((args, kwargs)))
        return self._wrapped(node, result, self.ctx.weight_builder, WeightLayout(is_shared))

    def _as_is(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        """An op on values that are the same for all members (or on one member's own copies)."""
        nodes, keywords = map_values((args, kwargs), self.ctx.shared)
        result = self.ctx.builder.call_as(node.meta["val"], node.target, *nodes, **keywords)  # type: ignore[arg-type]
        return self._wrapped(node, result, self.ctx.builder, None)

    def _wrapped(self, node: fx.Node, result: fx.Node, builder: GraphBuilder, layout: WeightLayout | None) -> Any:
        def wrap(part: fx.Node, member: Any) -> Any:
            if not isinstance(member, torch.Tensor):
                return part if isinstance(member, torch.SymInt) else member
            return shared_value(part, member) if layout is None else Value(part, layout, member)

        member = node.meta["val"]
        if isinstance(member, tuple | list):
            return tuple(wrap(builder.call(operator.getitem, result, index), part) for index, part in enumerate(member))
        return wrap(result, member)

    # -- the end -----------------------------------------------------------------------------------

    def _output(self, value: Value) -> fx.Node:
        """Bring an output into `(N, B, ...)` or `(B, N, ...)`."""
        self.ctx.builder.origin = None
        axis = min(self.member_axis, value.rank)
        if (value.is_weight and value.is_per_member) or isinstance(value.layout, Stacked | Folded | Rows | Branches):
            return self.ctx.stacked(value, axis)
        if self.n_members == 1:
            return self.ctx.call(aten.unsqueeze.default, self.ctx.shared(value), axis)
        return self.ctx.stacked(shared_value(self.ctx.shared(value), value.member), axis)

    def _finish(self, outputs: list[fx.Node], strategy: str, fallbacks: tuple[Fallback, ...]) -> BatchedGraph:
        graph = self.ctx.builder.graph
        graph.output(tuple(outputs))
        graph.output_node().meta["val"] = tuple(node.meta["val"] for node in outputs)
        graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
        for node in [node for node in graph.nodes if "packed" in node.meta and not node.users]:
            graph.erase_node(node)
        graph.lint()
        return BatchedGraph(
            graph,
            self._weight_program([node for node in graph.nodes if "packed" in node.meta]),
            self.member,
            self.n_members,
            self.per_member,
            self.member_axis,
            Plan(strategy, fallbacks, stages=self.stages),
            shared_state=frozenset(self.shared_state),
        )

    def _weight_program(self, placeholders: list[fx.Node]) -> WeightProgram:
        """Finish the weight graph: only the pieces that the batched graph still reads."""
        graph = self.ctx.weight_builder.graph
        packed = self.ctx.packer.finish(placeholders, graph)
        leaves = tuple(node.meta["leaf"] for node in graph.nodes if node.op == "placeholder")
        return WeightProgram(fx.GraphModule(torch.nn.Module(), graph), leaves, self.member.constants, packed)
