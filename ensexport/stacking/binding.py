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
_KEYWORD = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


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

    Inputs that are left over go to `*args` in order, or by their own name to `**kwargs` where there is no `*args`.

    Raises:
        ModelInputError: More inputs than parameters, a required parameter is left without an input, or one that
            takes no keyword comes after one that is left out.
    """
    parameters = inspect.signature(module.forward).parameters
    kinds = {parameter.kind for parameter in parameters.values()}
    # Parameter -> input. What is named like a parameter is that parameter.
    input_of = {name: name for name in names if name in parameters and parameters[name].kind not in _VARIABLE}
    free = [name for name, p in parameters.items() if p.kind in _POSITIONAL and name not in input_of]
    unbound = [name for name in names if name not in input_of]
    by_own_name: list[str] = []
    takes_any_keyword = inspect.Parameter.VAR_KEYWORD in kinds and inspect.Parameter.VAR_POSITIONAL not in kinds
    if len(unbound) > len(free) and takes_any_keyword:
        by_own_name, unbound = unbound, []
    input_of |= dict(zip(free, unbound, strict=False))
    extra = unbound[len(free) :]
    missing = [
        name
        for name, p in parameters.items()
        if p.default is p.empty and p.kind not in _VARIABLE and name not in input_of
    ]
    if missing or (extra and inspect.Parameter.VAR_POSITIONAL not in kinds):
        what = f"no input for {', '.join(missing)}" if missing else f"{len(names)} inputs given"
        raise _misfit(module, names, what, "Give one --input per parameter of forward, named like it.")
    # Everything goes by keyword that can; with *args in use, nothing that stands before it can.
    in_order = [name for name, p in parameters.items() if p.kind in (_POSITIONAL if extra else _POSITIONAL[:1])]
    last = max((index for index, name in enumerate(in_order) if extra or name in input_of), default=-1)
    left_out = [name for name in in_order[: last + 1] if name not in input_of]
    if left_out:
        what = f"'{left_out[0]}' is left out, and a later one can only be given by position"
        raise _misfit(module, names, what, f"Give an input for '{left_out[0]}' too.")
    positional = [input_of.pop(name) for name in in_order[: last + 1]] + extra
    keyword_of = {name: parameter for parameter, name in input_of.items()} | {name: name for name in by_own_name}
    return Binding(
        tuple(names), tuple(keyword_of.get(name) for name in names), tuple(names.index(name) for name in positional)
    )


def _misfit(module: nn.Module, names: Sequence[str], what: str, hint: str) -> ModelInputError:
    forward = f"{type(module).__name__}.forward({', '.join(inspect.signature(module.forward).parameters)})"
    return ModelInputError(f"cannot bind the inputs ({', '.join(names)}) to {forward}: {what}.", hint=hint)
