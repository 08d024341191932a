"""Calling ops by argument name, and wrapping ops with several results."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch._ops import OpOverload

from ensexport.batching.context import Context
from ensexport.batching.value import Folded, Stacked


def bound(op: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """All arguments of a call by name, defaults filled in."""
    given = dict(zip((argument.name for argument in op._schema.arguments), args, strict=False))
    defaults = {a.name: a.default_value for a in op._schema.arguments if a.has_default_value()}
    return {**defaults, **given, **kwargs}


def called(ctx: Context, op: OpOverload, arguments: dict[str, Any]) -> torch.fx.Node:
    """Call `op` with arguments by name."""
    positional = [a for a in op._schema.arguments if not a.kwarg_only]
    keywords = {a.name: arguments[a.name] for a in op._schema.arguments if a.kwarg_only and a.name in arguments}
    return ctx.call(op, *(arguments[a.name] for a in positional if a.name in arguments), **keywords)


def results(ctx: Context, node: torch.fx.Node, layout: Stacked | Folded) -> Any:
    """Wrap one node, or the parts of a node with several results."""
    if isinstance(ctx.result, torch.Tensor):
        return ctx.value(node, layout)
    parts = [ctx.call(operator.getitem, node, index) for index in range(len(ctx.result))]
    return tuple(ctx.value(part, layout, output=index) for index, part in enumerate(parts))
