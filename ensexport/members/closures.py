"""Finding functions inside a network that hold the network itself, and would hold the same one in a copy of it.

`copy.deepcopy` copies no function. After `forward = net.forward; net.forward = lambda x: forward(x / 255)` a copy of
`net` runs the original's weights, whatever is loaded into the copy: every member would return the same, and so
would the loop it is compared with.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from types import FunctionType, MethodType
from typing import Any

from torch import nn


def function_with_own_parts(module: nn.Module) -> str | None:
    """Name a function, an attribute or a hook of the network, that holds a part of it; None if there is none.

    Args:
        module: The network.

    Returns:
        Such as `'forward' of Net`.
    """
    own = {id(part) for part in module.modules()}
    own |= {id(tensor) for tensor in (*module.parameters(), *module.buffers())}
    for part in module.modules():
        for name, value in vars(part).items():
            if name in ("_parameters", "_buffers", "_modules"):
                continue
            if any(_holds(function, own, set()) for function in _functions(value, set())):
                return f"'{name.strip('_')}' of {type(part).__name__}"
    return None


def _functions(value: Any, seen: set[int]) -> Iterator[FunctionType]:
    """The functions in an attribute: itself, or what a table of hooks or a list holds."""
    if isinstance(value, FunctionType):
        yield value
    elif isinstance(value, partial):
        yield from _functions(value.func, seen)
    elif isinstance(value, MethodType):  # a copy of it is bound to the copy
        yield from _functions(value.__func__, seen)
    elif isinstance(value, dict | list | tuple) and id(value) not in seen:
        seen.add(id(value))
        for item in value.values() if isinstance(value, dict) else value:
            yield from _functions(item, seen)


def _holds(value: Any, own: set[int], seen: set[int]) -> bool:
    """Does a value that a function holds lead to a part of the network?"""
    if id(value) in seen:
        return False
    seen.add(id(value))
    return id(value) in own or any(_holds(item, own, seen) for item in _held(value))


def _held(value: Any) -> Sequence[Any]:
    if isinstance(value, MethodType):
        return (value.__self__, value.__func__)
    if isinstance(value, partial):
        return (value.func, *value.args, *value.keywords.values())
    if isinstance(value, FunctionType):
        filled = (cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell))
        return (*filled, *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values())
    if isinstance(value, dict):
        return tuple(value.values())
    return value if isinstance(value, list | tuple) else ()


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018 - an empty cell raises
    except ValueError:
        return False
    return True
