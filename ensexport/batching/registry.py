"""Which rule batches which ATen op.

A rule is a function `rule(ctx, *args, **kwargs) -> Value | tuple[Value, ...] | None` that takes the op's own
arguments, with a `Value` wherever the op takes a tensor, and returns the op's result for all members. None means
"not this combination": the next step of the ladder is tried. A rule is only called when at least one argument
differs between members. See `docs/batching.md` for how to add one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch._ops import OpOverload

Rule = Callable[..., Any]
_RULES: dict[OpOverload, Rule] = {}


def rule(*overloads: OpOverload) -> Callable[[Rule], Rule]:
    """Register a function as the rule of one or several overloads; a second rule for one is refused."""

    def register(function: Rule) -> Rule:
        for overload in overloads:
            if overload in _RULES:
                raise ValueError(f"{overload} has a rule already: {_RULES[overload].__name__}")
            _RULES[overload] = function
        return function

    return register


def rule_for(overload: Any) -> Rule | None:
    """Return the rule of an overload, or None."""
    return _RULES.get(overload)
