"""How a list of named tensors meets the parameters of a model's `forward`."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ensexport.errors import ModelInputError

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@dataclass(frozen=True)
class Binding:
    """For each input, in the file's order: the keyword it is passed by, or None for the next position.

    Attributes:
        names: The inputs' names.
        keywords: One entry an input.
        positions: Indices into `names` of the inputs passed by position, in call order.
    """

    names: tuple[str, ...]
    keywords: tuple[str | None, ...]
    positions: tuple[int, ...]

    def call(self, module: nn.Module, tensors: Sequence[torch.Tensor]) -> Any:
        """Call `module` with one tensor per input."""
        args = [tensors[index] for index in self.positions]
        kwargs = {keyword: tensors[index] for index, keyword in enumerate(self.keywords) if keyword is not None}
        return module(*args, **kwargs)


def bind_inputs(module: nn.Module, names: Sequence[str]) -> Binding:
    """Bind inputs to the parameters of `module.forward`: by name where the name exists, else by position.

    Raises:
        ModelInputError: More inputs than parameters, or a required parameter is left without an input.
    """
    parameters = inspect.signature(module.forward).parameters
    takes_any_keyword = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    takes_any_position = any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters.values())
    by_keyword = {
        name
        for name in names
        if name in parameters
        and parameters[name].kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    }
    free = [name for name, p in parameters.items() if p.kind in _POSITIONAL and name not in by_keyword]
    unbound = [name for name in names if name not in by_keyword]
    if len(unbound) > len(free) and takes_any_keyword and not takes_any_position:
        by_keyword |= set(unbound)
        unbound = []
    taken = dict(zip(free, unbound, strict=False))
    missing = [
        name
        for name, p in parameters.items()
        if p.default is p.empty
        and p.kind not in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        and name not in by_keyword
        and name not in taken
    ]
    if missing or (len(unbound) > len(free) and not takes_any_position):
        raise ModelInputError(
            f"cannot bind the inputs ({', '.join(names)}) to {type(module).__name__}.forward"
            f"({', '.join(parameters)}): "
            + (f"no input for {', '.join(missing)}." if missing else f"{len(names)} inputs given."),
            hint="Give one --input per parameter of forward, named like it.",
        )
    if not unbound:
        keywords: list[str | None] = list(names)
        return Binding(tuple(names), tuple(keywords), ())
    if takes_any_position and len(unbound) > len(free):
        return Binding(tuple(names), (None,) * len(names), tuple(range(len(names))))
    # A parameter bound by name may stand before one bound by position, so pass everything by keyword that can be.
    by_parameter = {other: name for name, other in taken.items()}
    keyword_of: list[str | None] = []
    positions: list[int] = []
    for index, name in enumerate(names):
        target = name if name in by_keyword else by_parameter[name]
        if target in parameters and parameters[target].kind is inspect.Parameter.POSITIONAL_ONLY:
            keyword_of.append(None)
            positions.append(index)
        else:
            keyword_of.append(target)
    return Binding(tuple(names), tuple(keyword_of), tuple(positions))
