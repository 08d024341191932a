"""What a model returns -> a flat list of named tensors, and back.

Models return tensors, tuples, dicts, dataclasses and mixtures with None in them; a graph file has a flat
list of named outputs. The names are part of the contract, so they are made in this one place.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from ensexport.errors import ModelOutputError

_UNNAMED = "output"


def flatten_outputs(value: Any) -> dict[str, torch.Tensor]:
    """Return the tensors in `value`, in order, each under its contract name.

    A tensor without a name of its own is `output` (several: `output_0`, `output_1`, ...); keys of dicts and
    fields of dataclasses and named tuples keep their names; nested ones are joined by `_`; None is dropped.

    Raises:
        ModelOutputError: A leaf is neither a tensor nor None, or there is no tensor at all.
    """
    by_stem: dict[str, list[torch.Tensor]] = {}
    for path, leaf in _leaves(value, ()):
        if not isinstance(leaf, torch.Tensor):
            raise ModelOutputError(
                f"the model returns a {type(leaf).__name__} ({leaf!r:.60}) as {'_'.join(path) or _UNNAMED!r}: "
                "expected tensors (nested in tuples, lists, dicts or dataclasses).",
                hint="Return a tensor there, or None to leave it out.",
            )
        by_stem.setdefault("_".join(path) or _UNNAMED, []).append(leaf)
    if not by_stem:
        raise ModelOutputError("the model returns no tensor.", hint="Return at least one tensor from forward.")
    named: dict[str, torch.Tensor] = {}
    for stem, tensors in by_stem.items():
        for index, tensor in enumerate(tensors):
            name = stem if len(tensors) == 1 else f"{stem}_{index}"
            while name in named:
                name += "_"
            named[name] = tensor
    return named


def _fields(value: Any) -> dict[str, Any] | None:
    """The named children of a container, or None if it has none."""
    if isinstance(value, Mapping):
        return {str(key): child for key, child in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return dict(zip(value._fields, value, strict=True))
    return None


def _leaves(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if value is None:
        return
    named = _fields(value)
    if named is not None:
        for key, child in named.items():
            yield from _leaves(child, (*path, key))
    elif isinstance(value, tuple | list):
        for child in value:
            yield from _leaves(child, path)
    else:
        yield path, value


def map_leaves(value: Any, kind: type, function: Callable[[Any], Any]) -> Any:
    """Return `value` with `function` applied to each leaf of type `kind`, containers kept as they are."""
    if isinstance(value, kind):
        return function(value)
    if isinstance(value, Mapping):
        mapped = {key: map_leaves(child, kind, function) for key, child in value.items()}
        return mapped if type(value) is dict else type(value)(**mapped)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_leaves(child, kind, function) for child in value))
    if isinstance(value, tuple | list):
        return type(value)(map_leaves(child, kind, function) for child in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        children = _fields(value) or {}
        return type(value)(**{key: map_leaves(child, kind, function) for key, child in children.items()})
    return value
