"""Do two modules differ in anything that is not a parameter or buffer?

`torch.func.functional_call` runs one module's code for all members, so a scale, an eps or a plain tensor that
differs between members would silently be taken from the first. Such members are refused instead. Where it is
unknown how to compare two values, they count as different: a refusal can be argued with, a wrong result cannot.
"""

from __future__ import annotations

import types
import weakref
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from ensexport.members.rebuilding import recomputed_names
from ensexport.members.tensors import same_bytes

_MODULE_FIELDS = frozenset(vars(nn.Module()))
_HOOKS = ("_forward_pre_hooks", "_forward_hooks")
# What nn.LSTM and its kin derive from their parameters, and where transformers notes which folder a model came from.
_DERIVED = {"_flat_weights", "_flat_weight_refs"}
_ORIGIN = {"name_or_path", "_name_or_path"}
_NOT_OF_THE_CLASS = {"__dict__", "__weakref__", "__doc__", "__module__", "__firstlineno__", "__static_attributes__"}
_MISSING = object()

Difference = tuple[str, Any, Any]


def differing_attributes(first: nn.Module, other: nn.Module) -> Iterator[Difference]:
    """Yield `(dotted name, value in first, value in other)` for each plain attribute that differs.

    Parameters, buffers and the training flag are not looked at; sub-modules are compared with each other, and so are
    forward hooks. A module that is not registered (in a plain list, say) is compared with its weights.
    """
    yield from _Comparison(first, other).modules(first, other, "", with_tensors=False)


def plain_attributes(module: nn.Module) -> dict[str, Any]:
    """What `module` itself holds beside its parameters, buffers, sub-modules and hooks."""
    left_out = _MODULE_FIELDS | _ORIGIN | recomputed_names(module)
    if isinstance(module, nn.RNNBase):
        left_out |= _DERIVED
    return {name: value for name, value in vars(module).items() if name not in left_out}


class _Comparison:
    """Compares what two modules hold; remembers what it has compared, so that cycles end."""

    def __init__(self, first: nn.Module, other: nn.Module) -> None:
        self._path = {id(part): path for module in (first, other) for path, part in module.named_modules()}
        self._seen: set[tuple[int, int]] = set()
        self._alive: list[Any] = []  # an id is only unique as long as its object lives

    def modules(self, first: nn.Module, other: nn.Module, prefix: str, *, with_tensors: bool) -> Iterator[Difference]:
        if not self._same_class(type(first), type(other)):
            yield prefix.rstrip(".") or "the module", type(first), type(other)
            return
        left, right = plain_attributes(first), plain_attributes(other)
        for name in _HOOKS:
            left[name], right[name] = list(getattr(first, name).values()), list(getattr(other, name).values())
        if with_tensors:
            left |= first._parameters | first._buffers
            right |= other._parameters | other._buffers
        for name in sorted(left.keys() | right.keys()):
            a, b = left.get(name, _MISSING), right.get(name, _MISSING)
            if a is _MISSING or b is _MISSING:
                yield prefix + name, None if a is _MISSING else a, None if b is _MISSING else b
            elif not self.equal(a, b):
                yield prefix + name, a, b
        for name in sorted(first._modules.keys() | other._modules.keys()):
            child, counterpart = first._modules.get(name), other._modules.get(name)
            if child is not None and counterpart is not None:
                yield from self.modules(child, counterpart, f"{prefix}{name}.", with_tensors=with_tensors)
            elif child is not counterpart:
                yield prefix + name, child, counterpart

    def _compared(self, a: Any, b: Any) -> bool:
        """True if this pair was met before; it is now."""
        before = (id(a), id(b)) in self._seen
        self._seen.add((id(a), id(b)))
        self._alive.append((a, b))
        return before

    def equal(self, a: Any, b: Any) -> bool:
        """True if nothing could tell `a` from `b` in a forward pass."""
        if isinstance(a, type) and isinstance(b, type):
            return self._same_class(a, b)
        if a is b or self._compared(a, b):
            return True
        if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
            return _same_tensor(a, b)
        if isinstance(a, nn.Module) and isinstance(b, nn.Module):
            return self._same_module(a, b)
        return self._same_class(type(a), type(b)) and self._same_value(a, b)

    def _same_value(self, a: Any, b: Any) -> bool:  # noqa: PLR0911 - one line a kind of value
        if isinstance(a, int | float | complex | str | bytes):
            return bool(a == b) or bool(a != a and b != b)  # noqa: PLR0124 - NaN equals NaN here
        if isinstance(a, dict | types.MappingProxyType):
            keys, others = ({key for key in value if key not in _ORIGIN} for value in (a, b))
            return keys == others and all(self.equal(a[key], b[key]) for key in keys)
        if isinstance(a, list | tuple | deque):
            return len(a) == len(b) and all(self.equal(x, y) for x, y in zip(a, b, strict=True))
        if isinstance(a, set | frozenset):
            return bool(a == b)
        if isinstance(a, types.FunctionType):
            return a.__code__ == b.__code__ and self.equal(enclosed(a), enclosed(b)) and a.__globals__ is b.__globals__
        if isinstance(a, types.MethodType):
            return self.equal(a.__func__, b.__func__) and self.equal(a.__self__, b.__self__)
        if isinstance(a, staticmethod | classmethod):
            return self.equal(a.__func__, b.__func__)
        if isinstance(a, property):
            return self.equal([a.fget, a.fset], [b.fget, b.fset])
        if isinstance(a, weakref.ref):
            return self.equal(a(), b())
        if isinstance(a, np.ndarray):
            if a.dtype != b.dtype or a.shape != b.shape:
                return False
            return self.equal(a.tolist(), b.tolist()) if a.dtype.hasobject else a.tobytes() == b.tobytes()
        return self._same_object(a, b)

    def _same_object(self, a: Any, b: Any) -> bool:
        """Compare by what pickling would save; by `==` what cannot be pickled, such as a lock or a generator."""
        try:
            left, right = a.__reduce_ex__(4), b.__reduce_ex__(4)
        except Exception:  # noqa: BLE001 - a class may refuse with whatever it likes
            return bool(a == b)
        if isinstance(left, str) or isinstance(right, str):
            return bool(left == right)
        return self.equal([_materialised(part) for part in left], [_materialised(part) for part in right])

    def _same_module(self, a: nn.Module, b: nn.Module) -> bool:
        if id(a) in self._path or id(b) in self._path:
            return self._path.get(id(a)) == self._path.get(id(b))  # its own turn comes, or came
        return next(self.modules(a, b, "", with_tensors=True), None) is None

    def _same_class(self, a: type, b: type) -> bool:
        """True for one class, and for two that one piece of code made, with the same values in it.

        A class statement in a function makes a new class at each call, and so does `torch.nn.utils.parametrize`.
        """
        if a is b:
            return True
        if (a.__qualname__, a.__module__, len(a.__mro__)) != (b.__qualname__, b.__module__, len(b.__mro__)):
            return False
        if self._compared(a, b):
            return True
        left, right = (
            {name: value for name, value in vars(kind).items() if name not in _NOT_OF_THE_CLASS} for kind in (a, b)
        )
        return self.equal(list(a.__bases__), list(b.__bases__)) and self.equal(left, right)


def enclosed(function: types.FunctionType) -> list[Any]:
    """What a function brings along: the variables of its closure, and its default arguments."""
    cells = [cell.cell_contents for cell in function.__closure__ or () if cell != types.CellType()]
    return [*cells, *(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]


def _same_tensor(a: torch.Tensor, b: torch.Tensor) -> bool:
    if (a.shape, a.dtype, a.layout, a.is_meta) != (b.shape, b.dtype, b.layout, b.is_meta):
        return False
    if a.is_meta:
        return True
    if a.is_quantized:
        return torch.equal(a, b)
    return same_bytes(a, b) if a.layout is torch.strided else same_bytes(a.to_dense(), b.to_dense())


def _materialised(part: Any) -> Any:
    return list(part) if isinstance(part, Iterator) else part
