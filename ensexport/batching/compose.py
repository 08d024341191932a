"""Rules written in torch: an op as a composition of other ops, each of them batched by its own rule.

The composition is traced on one member's fake tensors, so it is plain torch code for one member, and the layouts of
its parts (one wide linear for a shared input, weights computed when packing) are those of any other graph.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch._decomp import decomposition_table
from torch._ops import OpOverload
from torch.fx.experimental.proxy_tensor import make_fx

from ensexport.batching.context import Context, shared_value
from ensexport.batching.ladder import StepError, own_rule
from ensexport.batching.registry import Rule, rule
from ensexport.batching.tree import leaves_of, map_values, values_in
from ensexport.batching.value import Value

aten = torch.ops.aten
Function = Callable[..., Any]

# A weight that is expanded beyond this many times its elements is expanded when running, not when packing.
_MAX_WEIGHT_GROWTH = 4


def composed(*ops: OpOverload) -> Callable[[Function], Function]:
    """Register a torch function, written for one member, as the rule of ops that take its arguments."""

    def register(function: Function) -> Function:
        rule(*ops)(_rule_of(function, keep_composites=True))
        return function

    return register


def decomposed(*ops: OpOverload) -> None:
    """Register torch's own decomposition as the rule of ops."""
    for op in ops:
        rule(op)(_rule_of(decomposition_table.get(op, op), keep_composites=False))


def _rule_of(function: Function, *, keep_composites: bool) -> Rule:
    def batched(ctx: Context, *args: Any, **kwargs: Any) -> Any:
        return compose(ctx, function, *args, keep_composites=keep_composites, **kwargs)

    return batched


def compose(ctx: Context, function: Function, *args: Any, keep_composites: bool = True, **kwargs: Any) -> Any:
    """Batch `function(*args, **kwargs)`, op by op.

    Args:
        ctx: The graph under construction; `ctx.result` is the fake result of the whole.
        function: Torch code for one member; it may not look at a dynamic size.
        args: Its arguments, with values for tensors and nodes for dynamic sizes.
        keep_composites: Keep `linear`, `matmul` and the like whole, as `torch.export` does.
        kwargs: Its keyword arguments.

    Raises:
        StepError: Some op of it has no rule for its arguments.
    """
    leaves = [leaf for leaf in leaves_of((args, kwargs)) if isinstance(leaf, Value | fx.Node)]

    def call(*tensors: Any) -> Any:
        fill = dict(zip(map(id, leaves), tensors, strict=True))
        new_args, new_kwargs = map_values((args, kwargs), lambda value: fill[id(value)])
        new_args, new_kwargs = fx.node.map_arg((new_args, new_kwargs), lambda node: fill[id(node)])
        return function(*new_args, **new_kwargs)

    with ctx.builder.symbolic():
        fakes = [leaf.member if isinstance(leaf, Value) else leaf.meta["val"] for leaf in leaves]
        traced = make_fx(call, tracing_mode="real", _allow_non_fake_inputs=True, pre_dispatch=keep_composites)(*fakes)
    results = _walked(ctx, traced.graph, leaves)
    if isinstance(ctx.result, torch.Tensor):
        return Value(results.node, results.layout, ctx.result)
    return tuple(Value(r.node, r.layout, member) for r, member in zip(results, ctx.result, strict=True))


def _walked(ctx: Context, graph: fx.Graph, inputs: list[Any]) -> Any:
    env: dict[fx.Node, Any] = {}
    feed = iter(inputs)
    for node in graph.nodes:
        if node.op == "placeholder":
            env[node] = next(feed)
            continue
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), env.__getitem__)
        if node.op == "output":
            return args[0]
        if node.op != "call_function":
            raise StepError(f"its composition needs a constant ({node.target})")
        env[node] = _applied(ctx, node.target, node.meta.get("val"), args, kwargs)
    raise AssertionError("a traced graph ends with its output")


def _applied(ctx: Context, target: Any, member: Any, args: Any, kwargs: Any) -> Any:
    """Batch one op of a composition; `member` is its fake result."""
    if not isinstance(target, OpOverload):
        if isinstance(args[0], tuple | list):
            return args[0][args[1]]
        has_node = any(isinstance(arg, fx.Node) for arg in args)
        return ctx.call(target, *args, **kwargs) if has_node else target(*args, **kwargs)
    if target is aten.sym_size.int:
        return ctx.size(*args)
    values = values_in((args, kwargs))
    if values and all(value.is_weight for value in values) and _stays_weight(member, values):
        return ctx.weight(target, *args, **kwargs)
    outer = ctx.op, ctx.result
    ctx.op, ctx.result = target, member
    try:
        if any(value.is_per_member for value in values):
            return own_rule(ctx, target, args, kwargs)
        nodes, keywords = map_values((args, kwargs), ctx.shared)
        return _wrapped(ctx, ctx.builder.call_as(member, target, *nodes, **keywords))
    finally:
        ctx.op, ctx.result = outer


def _stays_weight(member: Any, values: list[Value]) -> bool:
    if not isinstance(member, torch.Tensor) or any(isinstance(size, torch.SymInt) for size in member.shape):
        return False
    return bool(member.numel() <= _MAX_WEIGHT_GROWTH * sum(value.member.numel() for value in values) + 1024)


def _wrapped(ctx: Context, node: fx.Node) -> Any:
    if isinstance(ctx.result, torch.Tensor):
        return shared_value(node, ctx.result)
    return tuple(
        shared_value(ctx.call(operator.getitem, node, index), member) for index, member in enumerate(ctx.result)
    )
