"""What a model returns -> a flat list of named tensors, and back.

Models return tensors, tuples, dicts, dataclasses and mixtures with None in them; a graph file has a flat
list of named outputs. The names are part of the contract, so they are made in this one place.
"""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, MutableMapping
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
    found = [("_".join(path) or _UNNAMED, leaf) for path, leaf in _leaves(value, ())]
    for stem, leaf in found:
        if not isinstance(leaf, torch.Tensor):
            raise not_a_tensor(leaf, f" as {stem!r}")
    if not found:
        raise ModelOutputError("the model returns no tensor.", hint="Return at least one tensor from forward.")
    counts, used = Counter(stem for stem, _ in found), Counter[str]()
    named: dict[str, torch.Tensor] = {}
    for stem, leaf in found:
        name = stem if counts[stem] == 1 else f"{stem}_{used[stem]}"
        used[stem] += 1
        while name in named or (name != stem and name in counts):
            name += "_"
        named[name] = leaf
    return named


def not_a_tensor(leaf: Any, where: str = "") -> ModelOutputError:
    """The error for something in a model's output that is no tensor."""
    return ModelOutputError(
        f"the model returns a {type(leaf).__name__} ({leaf!r:.60}){where}: "
        "expected tensors (nested in tuples, lists, dicts or dataclasses).",
        hint="Return a tensor there, or None to leave it out.",
    )


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


def map_leaves(value: Any, function: Callable[[Any], Any]) -> Any:
    """Return `value` with `function` applied to each leaf, None included; containers are kept as they are.

    Containers are copied, not built anew: neither `__init__` nor a factory of default values gets in the way.
    """
    if isinstance(value, Mapping):
        mapped = {key: map_leaves(child, function) for key, child in value.items()}
        if type(value) is dict or not isinstance(value, MutableMapping):
            return mapped
        copied: Any = copy.copy(value)
        for key, child in mapped.items():  # not update(): transformers' ModelOutput refuses it
            copied[key] = child
        return copied
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)._make(map_leaves(child, function) for child in value)  # type: ignore[attr-defined]
    if isinstance(value, tuple | list):
        return type(value)(map_leaves(child, function) for child in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        copied = copy.copy(value)
        for name, child in (_fields(value) or {}).items():
            object.__setattr__(copied, name, map_leaves(child, function))
        return copied
    return function(value)
