"""Calling ops by argument name, and wrapping ops with several results."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch._ops import OpOverload

from ensexport.batching.context import Context
from ensexport.batching.value import Folded, Rows, Stacked


def bound(op: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """All arguments of a call by name, defaults filled in."""
    given = dict(zip((argument.name for argument in op._schema.arguments), args, strict=False))
    defaults = {a.name: a.default_value for a in op._schema.arguments if a.has_default_value()}
    return {**defaults, **given, **kwargs}


def called(ctx: Context, op: OpOverload, arguments: dict[str, Any]) -> torch.fx.Node:
    """Call `op` with arguments by name."""
    positional, keywords = _split(op, arguments)
    return ctx.call(op, *positional, **keywords)


def called_in(ctx: Context, layout: Stacked | Folded, op: OpOverload, arguments: dict[str, Any]) -> torch.fx.Node:
    """Like `called`, for an op whose result is known to be its own in `layout` (see `Context.call_in`)."""
    positional, keywords = _split(op, arguments)
    return ctx.call_in(layout, op, *positional, **keywords)


def _split(op: OpOverload, arguments: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    given = [argument for argument in op._schema.arguments if argument.name in arguments]
    positional = [arguments[argument.name] for argument in given if not argument.kwarg_only]
    return positional, {argument.name: arguments[argument.name] for argument in given if argument.kwarg_only}


def results(ctx: Context, node: torch.fx.Node, layout: Stacked | Folded | Rows) -> Any:
    """Wrap one node, or the parts of a node with several results."""
    if isinstance(ctx.result, torch.Tensor):
        return ctx.value(node, layout)
    parts = [ctx.call(operator.getitem, node, index) for index in range(len(ctx.result))]
    return tuple(ctx.value(part, layout, output=index) for index, part in enumerate(parts))
