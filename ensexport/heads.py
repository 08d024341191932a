"""What pipelines deploy, inside the graph: the members' outputs combined, and how far to trust them.

Nodes are written onto a finished batched graph, so that it stays one graph however the members were batched. The
members' tensors stay in it under their own names even where they are no outputs of the file: what stands behind a
mean can then be compared member by member in the very file that ships.

The formulas are those of `emission`; all are computed in float32 (float64 for float64) and cast back once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import fx

from ensexport.batching.builder import GraphBuilder
from ensexport.batching.engine import BatchedGraph
from ensexport.batching.member_graph import MemberGraph
from ensexport.batching.value import expression
from ensexport.batching.weights import PackedWeight, WeightProgram, with_constant
from ensexport.combining import Combiner
from ensexport.emission import MEMBERS, QUANTILE_NAMES, QUANTITIES, OutputEmission, percent_of
from ensexport.errors import UsageError
from ensexport.spec import batch_dim
from ensexport.weighting import WEIGHTS_INPUT, MemberWeights

_EXACT_NAMES = (MEMBERS, "min", "max")


def add_heads(
    batched: BatchedGraph, emitted: Sequence[OutputEmission], weights: MemberWeights | None = None
) -> BatchedGraph:
    """Make the outputs of a batched graph what was asked for.

    Before: the outputs are the members', one a model output, as `batch_graph` wrote them. After: the outputs are those
    of `emitted` in order, and behind them, `n_hidden` in number, the members' outputs that are not emitted. Combined
    outputs have no member axis: they are batch first. With weights that are an input, `member_weights` is the last one.

    Args:
        batched: The graph; it is copied, not changed.
        emitted: What each output of the model becomes, in their order.
        weights: How much each member counts in what is combined; None for all alike.

    Raises:
        UsageError: An output cannot become what was asked for (says what it can), weights do not fit, or nothing uses
            them.
    """
    for entry, value in zip(emitted, batched.member.output_values, strict=True):
        _check(entry, value, batched)
        if weights is not None:
            _check_weighable(entry)
    if not any(entry.combined for entry in emitted):
        if weights is not None:
            raise UsageError(
                "member weights are given, and nothing is combined: expected another name than 'members'.",
                hint=f"Add one to --emit: {', '.join(name for name in QUANTITIES if name != MEMBERS)}.",
            )
        return batched
    if weights is not None:
        weights.check(batched.n_members)
    writer = _Writer(batched, emitted)
    weight = None if weights is None else writer.weights(weights)
    outputs: list[fx.Node] = []
    hidden: list[fx.Node] = []
    for entry, members, value in zip(emitted, writer.members, batched.member.output_values, strict=True):
        combiner = Combiner(
            call=writer.builder.call,
            constant=writer.constant,
            members=members,
            member_axis=min(batched.member_axis, value.dim()),
            class_axis=entry.class_axis % value.dim() if value.dim() else 0,
            weights=weight,
        )
        outputs += [members if name == MEMBERS else combiner.result(name) for name in entry.names]
        hidden += [members] if entry.is_hidden else []
    return writer.finish(outputs, hidden)


def _check(entry: OutputEmission, value: torch.Tensor, batched: BatchedGraph) -> None:
    """Refuse what an output cannot become, and say what it can."""
    why = _no_classes(value, entry.class_axis)
    valid = [name for name in QUANTITIES if name in _names_for(value) and not (why and QUANTITIES[name].needs_classes)]
    has_quantiles = value.is_floating_point()
    wrong = next(
        (name for name in entry.names if not (has_quantiles if percent_of(name) is not None else name in valid)), None
    )
    valid += [QUANTILE_NAMES] if has_quantiles else []
    if wrong is not None:
        kind = str(value.dtype).removeprefix("torch.")
        reason = why if why and wrong in _names_for(value) else f"it is {kind}"
        raise UsageError(
            f"cannot emit '{wrong}' of output '{entry.output}': {reason}. Valid for it: {', '.join(valid)}.",
            hint=f"Say what each output becomes with --emit {entry.output}=LIST, where its classes are with "
            f"--class-axis {entry.output}=AXIS.",
        )
    if batched.member_axis == 1 and MEMBERS in entry.names and not _has_batch(batched.member, value):
        raise UsageError(
            f"cannot put the members of output '{entry.output}' at axis 1: its shape {_shape(value)} has no batch. "
            f"Valid for it: --member-axis 0, or to emit {', '.join(name for name in valid if name != MEMBERS)}.",
        )


def _check_weighable(entry: OutputEmission) -> None:
    """Refuse quantiles of weighted members: there are several definitions of them, and none is usual."""
    wrong = next((name for name in entry.names if percent_of(name) is not None), None)
    if wrong is not None:
        raise UsageError(
            f"cannot emit '{wrong}' of output '{entry.output}' with member weights: quantiles are of members that all "
            f"count alike. Valid for it: {', '.join(QUANTITIES)}.",
            hint="Leave --member-weights out, or emit median, min and max.",
        )


def _names_for(value: torch.Tensor) -> Sequence[str]:
    """The names that the dtype allows."""
    if value.is_floating_point():
        return tuple(QUANTITIES)
    return (MEMBERS,) if value.is_complex() or value.dtype is torch.bool else _EXACT_NAMES


def _no_classes(value: torch.Tensor, axis: int) -> str:
    """Why an axis of one member's output holds no classes; empty if it may."""
    if not -value.dim() <= axis < value.dim():
        return f"one member's output has the shape {_shape(value)}, and no axis {axis} to hold classes"
    size = value.shape[axis]
    if isinstance(size, int) and size > 1:
        return ""
    return f"axis {axis} of one member's output {_shape(value)} holds no classes, 2 or more of a fixed number"


def _has_batch(member: MemberGraph, value: torch.Tensor) -> bool:
    """Has an output the batch dimension? Where that is fixed, any dimension may be it."""
    batch = batch_dim(member.specs)
    if batch is None:
        return value.dim() > 0
    symbols = {symbol for symbol, name in member.symbols.items() if name == batch}
    return any(
        str(symbol) in symbols
        for size in value.shape
        if isinstance(size, torch.SymInt)
        for symbol in expression(size).free_symbols
    )


def _shape(value: torch.Tensor) -> str:
    return "(" + ", ".join("?" if isinstance(size, torch.SymInt) else str(size) for size in value.shape) + ")"


class _Writer:
    """The graph under construction: a copy of the batched graph without its output node."""

    def __init__(self, batched: BatchedGraph, emitted: Sequence[OutputEmission]) -> None:
        self.batched = batched
        self.builder = GraphBuilder(batched.member.fake_mode)
        copies: dict[fx.Node, fx.Node] = {}
        self.builder.graph.graph_copy(batched.graph, copies)
        self.members = tuple(copies[node] for node in batched.outputs)
        self.first_input = copies[batched.inputs[0]]
        self.program: WeightProgram = batched.weights

    def weights(self, weights: MemberWeights) -> fx.Node:
        """The weights `(N,)`: the last input, or a constant."""
        if weights.values is not None:
            # Shares of the largest, before float64 becomes float32: neither 1e-300 nor 1e300 is lost.
            shares = [value / max(weights.values) for value in weights.values]
            return self.constant(WEIGHTS_INPUT, torch.tensor(shares, dtype=torch.float64))
        if WEIGHTS_INPUT in self.batched.member.inputs:
            raise UsageError(
                f"the model has an input '{WEIGHTS_INPUT}' of its own.", hint="Rename it, or bake the weights in."
            )
        with self.builder.fake_mode:
            fake = torch.empty(self.batched.n_members, dtype=torch.float32)
        node = self.builder.placeholder(WEIGHTS_INPUT, fake)
        node.meta["is_member_weights"] = True
        return node

    def constant(self, name: str, tensor: torch.Tensor) -> fx.Node:
        """A tensor that is the same in every file of this architecture, kept as a shared weight."""
        known: fx.Node | None = next((n for n in self.builder.graph.nodes if n.meta.get("constant") == name), None)
        if known is not None:
            return known
        weight: PackedWeight
        self.program, weight = with_constant(self.program, name, tensor, self.builder.fake_mode)
        with self.builder.fake_mode:
            fake = torch.empty(tuple(tensor.shape), dtype=tensor.dtype)
        node = self.builder.placeholder(f"constant_{name}", fake, before=self.first_input)
        node.meta |= {"packed": weight, "constant": name}
        return node

    def finish(self, outputs: Sequence[fx.Node], hidden: Sequence[fx.Node]) -> BatchedGraph:
        """The batched graph with these outputs."""
        graph, results = self.builder.graph, (*outputs, *hidden)
        graph.output(results)
        graph.output_node().meta["val"] = tuple(node.meta["val"] for node in results)
        graph.lint()
        return replace(self.batched, graph=graph, weights=self.program, n_hidden=len(hidden))
