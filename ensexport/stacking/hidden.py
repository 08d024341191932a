"""Does a module reach its own weights by a way that stacking by name would miss?

Stacking runs one copy of the module's code and puts each member's tensors in under their names. A weight that is
also held in a plain list, a view of one, or a function that closed over the module itself would go on using the
first member's values for all members, silently. Such modules are refused.
"""

from __future__ import annotations

import functools
import types
import weakref
from collections import deque
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from ensexport.errors import StackError
from ensexport.stacking.attributes import enclosed, plain_attributes
from ensexport.stacking.state import named_tensors


def refuse_hidden_weights(module: nn.Module) -> None:
    """Refuse a module that holds its parameters or buffers in a plain attribute too.

    Raises:
        StackError: It does; names the attribute.
    """
    search = _Search(module)
    for path, part in module.named_modules():
        attributes = plain_attributes(part)
        attributes |= {f"forward hook {number}": hook for number, hook in enumerate(part._forward_hooks.values())}
        attributes |= {f"pre-hook {number}": hook for number, hook in enumerate(part._forward_pre_hooks.values())}
        for name, value in attributes.items():
            found = search.find(value)
            if found:
                raise StackError(
                    f"cannot stack: attribute '{f'{path}.{name}'.lstrip('.')}' {found}, which stacking by name "
                    "would miss: all members would run with the weights of the first.",
                    hint="Register weights (nn.ParameterList, or the Parameter itself as an attribute), and use "
                    "methods instead of functions that hold the module.",
                )


class _Search:
    """Looks through plain values for a module's registered tensors."""

    def __init__(self, module: nn.Module) -> None:
        tensors = named_tensors(module).values()
        self._tensors = {id(tensor) for tensor in tensors}
        self._storages = {_storage(tensor) for tensor in tensors} - {0}
        self._modules = {id(part) for part in module.modules()}

    def find(self, value: Any) -> str:
        """Say how `value` reaches a registered tensor, or return an empty text."""
        # True beside a value: it is reached through something that a copy of the module would not copy.
        waiting: list[tuple[Any, bool]] = [(value, False)]
        seen: set[tuple[int, bool]] = set()
        while waiting:
            value, by_reference = waiting.pop()
            if (id(value), by_reference) in seen:
                continue
            seen.add((id(value), by_reference))
            text = self._describe(value, by_reference)
            if text:
                return text
            if not (isinstance(value, nn.Module) and id(value) in self._modules):
                by_reference = by_reference or isinstance(value, types.FunctionType | weakref.ref)
                waiting += [(part, by_reference) for part in _parts(value)]
        return ""

    def _describe(self, value: Any, by_reference: bool) -> str:
        if isinstance(value, nn.Module):
            reached = by_reference and id(value) in self._modules
            return "is or holds a function that reaches the module itself" if reached else ""
        if not isinstance(value, torch.Tensor):
            return ""
        if id(value) in self._tensors:
            return "holds a parameter or buffer that is registered elsewhere in the module"
        return "holds a view of a parameter or buffer" if _storage(value) in self._storages else ""


def _parts(value: Any) -> Iterator[Any]:
    """What a value is made of, as far as that can hold tensors."""
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list | tuple | set | frozenset | deque):
        yield from value
    elif isinstance(value, types.FunctionType):
        yield from enclosed(value)
    elif isinstance(value, types.MethodType):
        yield value.__self__
    elif isinstance(value, functools.partial):
        yield from (value.func, *value.args, *value.keywords.values())
    elif isinstance(value, weakref.ref):
        yield value()
    elif not isinstance(value, type | types.ModuleType):
        yield from getattr(value, "__dict__", {}).values()


def _storage(tensor: torch.Tensor) -> int:
    if tensor.layout is not torch.strided or tensor.is_meta:
        return 0
    return tensor.untyped_storage().data_ptr()
