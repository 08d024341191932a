"""Do two modules differ in anything that is not a parameter or buffer?

`torch.func.functional_call` runs one module's code for all members, so a scale, an eps or a plain tensor that
differs between members would silently be taken from the first. Such members are refused instead.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

_IGNORED = {"training", "_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"}
_MAX_DEPTH = 6


def differing_attributes(first: nn.Module, other: nn.Module) -> Iterator[tuple[str, Any, Any]]:
    """Yield `(dotted name, value in first, value in other)` for each plain attribute that differs.

    Parameters, buffers and the training flag are not looked at; sub-modules are compared with each other.
    """
    yield from _modules(first, other, "")


def _modules(first: nn.Module, other: nn.Module, prefix: str) -> Iterator[tuple[str, Any, Any]]:
    if type(first).__qualname__ != type(other).__qualname__:
        yield prefix.rstrip(".") or "the module", type(first).__qualname__, type(other).__qualname__
        return
    left, right = _plain(first), _plain(other)
    for name in sorted(left.keys() | right.keys()):
        missing = object()
        a, b = left.get(name, missing), right.get(name, missing)
        if a is missing or b is missing:
            yield prefix + name, None if a is missing else a, None if b is missing else b
        elif not _equal(a, b, 0):
            yield prefix + name, a, b
    children, others = dict(first.named_children()), dict(other.named_children())
    for name in sorted(children.keys() | others.keys()):
        if name in children and name in others:
            yield from _modules(children[name], others[name], f"{prefix}{name}.")
        else:
            yield prefix + name, children.get(name), others.get(name)


def _plain(module: nn.Module) -> dict[str, Any]:
    # What the older weight_norm and spectral_norm compute before each call follows from the parameters.
    recomputed = {getattr(hook, "name", None) for hook in module._forward_pre_hooks.values()}
    return {
        name: value
        for name, value in vars(module).items()
        if name not in _IGNORED | recomputed and not (name.startswith("_") and name.endswith("_hooks"))
    }


def _equal(a: Any, b: Any, depth: int) -> bool:  # noqa: PLR0911 - one line a kind of value
    if a is b or depth > _MAX_DEPTH:
        return True
    if isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor):
        same_kind = isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)
        return same_kind and a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key], depth + 1) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(_equal(x, y, depth + 1) for x, y in zip(a, b, strict=True))
    if isinstance(a, types.FunctionType):
        return a.__code__ == b.__code__ and _equal(_closure(a), _closure(b), depth + 1)
    if isinstance(a, types.MethodType):
        return a.__func__ is b.__func__
    if isinstance(a, nn.Module):
        return next(_modules(a, b, ""), None) is None
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    if "__eq__" in {name for kind in type(a).__mro__[:-1] for name in vars(kind)}:
        return bool(a == b) or (isinstance(a, float) and a != a and b != b)  # noqa: PLR0124 - NaN equals NaN here
    return _equal(vars(a), vars(b), depth + 1) if hasattr(a, "__dict__") else True


def _closure(function: types.FunctionType) -> list[Any]:
    return [cell.cell_contents for cell in function.__closure__ or ()]
