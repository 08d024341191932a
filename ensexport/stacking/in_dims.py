"""`in_dims`: which inputs of an ensemble have one slice per member, and which are the same for all.

torch.vmap's own term, with one addition: entries may be given by name, so that optional inputs can be left out.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from ensexport.errors import ModelInputError, StackError

InDims = int | None | Sequence[int | None] | Mapping[str, int | None]

_BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def check_in_dims(in_dims: InDims, module: nn.Module) -> None:
    """Refuse entries other than 0 and None, and such as the module has no input for.

    Raises:
        StackError: As said; names the entry.
    """
    if isinstance(in_dims, Mapping):
        entries = list(in_dims.values())
    elif isinstance(in_dims, Sequence) and not isinstance(in_dims, str):
        entries = list(in_dims)
    else:
        entries = [in_dims]
    for entry in entries:
        if entry is not None and (type(entry) is not int or entry != 0):
            raise StackError(f"in_dims holds {entry!r}: expected 0 (per-member) or None (shared).")
    parameters = inspect.signature(module.forward).parameters
    kinds = {parameter.kind for parameter in parameters.values()}
    known = f"{type(module).__name__}.forward({', '.join(parameters)})"
    if isinstance(in_dims, Mapping) and inspect.Parameter.VAR_KEYWORD not in kinds:
        for name in in_dims:
            if name not in parameters:
                raise StackError(f"in_dims names '{name}', which is no input of {known}.")
    if isinstance(in_dims, Sequence) and inspect.Parameter.VAR_POSITIONAL not in kinds:
        most = len(_parameters(module, *_BY_POSITION))
        if len(in_dims) > most:
            raise StackError(f"in_dims has {len(in_dims)} entries: expected at most {most}, as in {known}.")


def find_in_dim(in_dims: InDims, module: nn.Module, name: str, position: int | None = None) -> int | None:
    """Return the entry of one input: by its name or, where `in_dims` is a sequence, by its place in `forward`.

    Args:
        in_dims: As given to `stack`.
        module: A member.
        name: The input's name.
        position: Its place where `forward` has no parameter of that name.
    """
    if in_dims is None or isinstance(in_dims, int):
        return in_dims
    if isinstance(in_dims, Mapping):
        return in_dims.get(name)
    names = _parameters(module, *_BY_POSITION)
    if name in names:
        position = names.index(name)
    return in_dims[position] if position is not None and position < len(in_dims) else None


def dims_of_call(
    in_dims: InDims, module: nn.Module, n_members: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return what torch.vmap maps over, for each tensor among the arguments of one call.

    Raises:
        ModelInputError: A per-member input has a leading size other than N, or `in_dims` has no entry for it.
    """
    names = _parameters(module, *_BY_POSITION, inspect.Parameter.VAR_POSITIONAL)
    labels = [names[min(index, len(names) - 1)] if names else str(index) for index in range(len(args))]
    labels += kwargs
    if isinstance(in_dims, Sequence):
        places = [*range(len(args)), *(names.index(name) if name in names else len(names) for name in kwargs)]
        for label, place in zip(labels, places, strict=True):
            if place >= len(in_dims):
                raise ModelInputError(
                    f"in_dims has {len(in_dims)} entries, and none for input '{label}'.",
                    hint="Give one entry a parameter of forward, or a dict by name.",
                )
        dims = [in_dims[place] for place in places]
    else:
        dims = [find_in_dim(in_dims, module, label) for label in labels]
    values = [*args, *kwargs.values()]
    mapped = [_dims_in(*item, n_members) for item in zip(values, dims, labels, strict=True)]
    return tuple(mapped[: len(args)]), dict(zip(kwargs, mapped[len(args) :], strict=True))


def _dims_in(value: Any, dim: int | None, label: str, n_members: int) -> Any:
    """One entry a leaf of `value`; what is no tensor (a flag, None) is the same for all members."""

    def check(leaf: Any) -> int | None:
        if dim is None or not isinstance(leaf, torch.Tensor):
            return None
        if leaf.dim() == 0 or leaf.shape[0] != n_members:
            raise ModelInputError(
                f"input '{label}' is per-member (in_dims=0): expected a leading size of {n_members}, one slice a "
                f"member, got shape {tuple(leaf.shape)}.",
                hint="Stack one minibatch per member, or use in_dims=None for a shared one.",
            )
        return 0

    return pytree.tree_map(check, value)


def _parameters(module: nn.Module, *kinds: Any) -> list[str]:
    """Names of the parameters of `forward` of some kinds, in order."""
    return [name for name, p in inspect.signature(module.forward).parameters.items() if p.kind in kinds]
