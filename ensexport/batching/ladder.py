"""The fallback ladder for one op: own rule, `torch.vmap(op)`, the op unrolled over the members.

Each step either returns the op's results or says why it cannot; the order stands here and nowhere else. The last
step, the whole member graph unrolled, is the engine's: it concerns all ops at once.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload
from torch.fx.experimental.proxy_tensor import make_fx

from ensexport.batching.context import Context
from ensexport.batching.registry import rule_for
from ensexport.batching.rules.pointwise import is_pointwise, pointwise
from ensexport.batching.tree import leaves_of, map_values, values_in
from ensexport.batching.value import Branches, Stacked, Value

aten = torch.ops.aten

# What torch raises when an op does not take the shapes it is given or would have to fix a dynamic one.
# _ShapeEnvGuardError is a RuntimeError.
TRACE_ERRORS = (
    RuntimeError,
    TypeError,
    ValueError,
    IndexError,
    AssertionError,
    NotImplementedError,
    KeyError,
)

Args = tuple[Any, ...]
Results = Value | tuple[Value, ...]


class StepError(Exception):
    """A step of the ladder does not take this op; the message says why."""


class UnbatchableError(StepError):
    """No step takes one op of the member graph.

    Attributes:
        op: Its name.
        source: The user's line it came from.
    """

    def __init__(self, op: str, source: str, reasons: str) -> None:
        super().__init__(f"{op}: {source} ({reasons})")
        self.op = op
        self.source = source


def own_rule(ctx: Context, op: OpOverload, args: Args, kwargs: dict[str, Any]) -> Results:
    """Apply the registered rule, or the one rule of all elementwise ops."""
    function = rule_for(op)
    try:
        if function is not None:
            results = function(ctx, *args, **kwargs)
        elif is_pointwise(op):
            results = pointwise(ctx, op, args, kwargs)
        else:
            raise StepError("no rule")
    except TRACE_ERRORS as error:
        raise StepError(f"its rule: {_first_line(error)}") from error
    if results is None:
        raise StepError("its rule does not take this combination")
    return _checked(ctx, results)


def vmapped(ctx: Context, op: OpOverload, args: Args, kwargs: dict[str, Any]) -> Results:
    """Trace `torch.vmap(op)` on fake tensors, refusing any new guard on a dynamic dimension."""
    values = values_in((args, kwargs))
    in_dims = tuple(0 if value.is_per_member else None for value in values)
    if any(isinstance(leaf, fx.Node) for leaf in leaves_of((args, kwargs))):
        raise StepError("takes a dynamic size as an argument")

    def call(*tensors: torch.Tensor) -> Any:
        fill = iter(tensors)
        new_args, new_kwargs = map_values((args, kwargs), lambda _: next(fill))
        return op(*new_args, **new_kwargs)

    try:
        physical = [ctx.stacked(value) if value.is_per_member else ctx.shared(value) for value in values]
        fakes = [node.meta["val"] for node in physical]
        with ctx.builder.symbolic(), _no_vmap_loop():
            traced = _traced(torch.vmap(call, in_dims=in_dims), fakes)
    except TRACE_ERRORS as error:
        raise StepError(f"torch.vmap: {_first_line(error)}") from error
    return _checked(ctx, _inlined(ctx, traced, physical))


def _traced(function: Callable[..., Any], fakes: list[Any]) -> fx.GraphModule:
    """Trace a vmapped op; where vmap's own code writes in place, once more with those writes taken out."""
    traced = make_fx(function, tracing_mode="real", _allow_non_fake_inputs=True)(*fakes)
    if not any(isinstance(n.target, OpOverload) and n.target._schema.is_mutable for n in traced.graph.nodes):
        return traced
    pure = torch.func.functionalize(function, remove="mutations")
    return make_fx(pure, tracing_mode="real", _allow_non_fake_inputs=True)(*fakes)


@contextlib.contextmanager
def _no_vmap_loop() -> Iterator[None]:
    """Have vmap refuse an op it has no rule for, instead of looping over the members itself with a warning."""
    functorch: Any = torch._C._functorch
    enabled = functorch._is_vmap_fallback_enabled()
    functorch._set_vmap_fallback_enabled(False)
    try:
        yield
    finally:
        functorch._set_vmap_fallback_enabled(enabled)


def unrolled(ctx: Context, op: OpOverload, args: Args, kwargs: dict[str, Any]) -> Results:
    """Call the op once a member and stack the results."""

    def joined(value: Value) -> Value:
        return Value(ctx.stacked(value), Stacked(0), value.member)

    try:
        apart = branched(ctx, op, args, kwargs)
        results = tuple(map(joined, apart)) if isinstance(apart, tuple) else joined(apart)
    except TRACE_ERRORS as error:
        raise StepError(f"unrolled: {_first_line(error)}") from error
    return _checked(ctx, results)


def branched(ctx: Context, op: OpOverload, args: Args, kwargs: dict[str, Any]) -> Results:
    """Call the op once a member and leave the results apart, as `Branches`."""
    if op is aten.view.default:
        op = aten.reshape.default  # a member's slice has other strides than the member's own tensor
    copies = []
    for index in range(ctx.n_members):
        member_args, member_kwargs = map_values((args, kwargs), lambda value, k=index: ctx.member(value, k))  # type: ignore[misc]
        copies.append(ctx.builder.call_as(ctx.result, op, *member_args, **member_kwargs))
    if isinstance(ctx.result, torch.Tensor):
        return _checked(ctx, ctx.value(copies[0], Branches(tuple(copies))))
    results = []
    for output in range(len(ctx.result)):
        nodes = tuple(ctx.call(operator.getitem, copy, output) for copy in copies)
        results.append(ctx.value(nodes[0], Branches(nodes), output=output))
    return _checked(ctx, tuple(results))


STEPS: tuple[tuple[str, Callable[..., Results]], ...] = (
    ("rule", own_rule),
    ("vmap", vmapped),
    ("unroll_op", unrolled),
)


def climb_down(ctx: Context, op: OpOverload, args: Args, kwargs: dict[str, Any]) -> tuple[Results, str, list[str]]:
    """Batch one op by the first step that takes it.

    Returns:
        The results, the step's name, and why each step before it did not take the op.

    Raises:
        StepError: No step takes it.
    """
    reasons: list[str] = []
    for name, step in STEPS:
        try:
            return step(ctx, op, args, kwargs), name, reasons
        except StepError as error:
            reasons.append(str(error))
    raise StepError("; ".join(reasons))


def _checked(ctx: Context, results: Any) -> Results:
    for value in results if isinstance(results, tuple) else (results,):
        problem = ctx.describe_error(value) if isinstance(value, Value) else None
        if problem is not None:
            raise StepError(f"wrong result: {problem}")
    return results  # type: ignore[no-any-return]


def _inlined(ctx: Context, traced: fx.GraphModule, inputs: list[fx.Node]) -> Results:
    """Copy the nodes of a traced op into the batched graph."""
    env: dict[fx.Node, fx.Node] = {}
    feed = iter(inputs)
    for node in traced.graph.nodes:
        if node.op == "placeholder":
            env[node] = next(feed)
        elif node.op == "call_function":
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), env.__getitem__)
            env[node] = ctx.call(node.target, *args, **kwargs)
        elif node.op == "output":
            outputs = node.args[0]
            if isinstance(ctx.result, torch.Tensor):
                return ctx.value(env[outputs[0] if isinstance(outputs, tuple | list) else outputs], Stacked(0))
            return tuple(ctx.value(env[out], Stacked(0), output=i) for i, out in enumerate(outputs))
        else:
            raise StepError(f"torch.vmap needs a constant ({node.target})")
    raise StepError("torch.vmap returned nothing")


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')[:160]}"
