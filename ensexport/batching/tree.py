"""Walking the nested arguments of an op call: lists, tuples and dicts with values among them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from ensexport.batching.value import Value


def leaves_of(tree: Any) -> Iterator[Any]:
    """Yield the leaves of nested lists, tuples and dicts, in order."""
    if isinstance(tree, list | tuple):
        for item in tree:
            yield from leaves_of(item)
    elif isinstance(tree, dict):
        for item in tree.values():
            yield from leaves_of(item)
    else:
        yield tree


def values_in(tree: Any) -> list[Value]:
    """Return the `Value` leaves, in order."""
    return [leaf for leaf in leaves_of(tree) if isinstance(leaf, Value)]


def map_values(tree: Any, function: Callable[[Value], Any]) -> Any:
    """Return the tree with `function` applied to each `Value`."""
    if isinstance(tree, list | tuple):
        return type(tree)([map_values(item, function) for item in tree])
    if isinstance(tree, dict):
        return {key: map_values(item, function) for key, item in tree.items()}
    return function(tree) if isinstance(tree, Value) else tree
