"""A module's tensors by name: read them all, copy the module without them, put others in their place."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from ensexport.errors import StackError

_MAX_DEPTH = 6


def named_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """All parameters and buffers, tied ones under each of their names, non-persistent buffers included."""
    return {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }


def meta_copy(module: nn.Module) -> nn.Module:
    """Return a copy of `module` whose parameters and buffers are on meta: the code without the weights.

    Ties are kept. Nothing of the weights is copied.

    Raises:
        StackError: A plain attribute holds a parameter or buffer, so that overriding by name would miss it.
    """
    memo: dict[int, Any] = {}
    for tensor in named_tensors(module).values():
        empty = torch.empty_like(tensor, device="meta")
        memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    for part in module.modules():
        for value in vars(part).values():
            # deepcopy refuses tensors with a history, such as the weight that weight_norm computed last.
            if isinstance(value, torch.Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    base = copy.deepcopy(module, memo).eval()
    for path, part in base.named_modules():
        for name, value in vars(part).items():
            if name not in ("_parameters", "_buffers", "_modules") and _holds_meta(value, 0):
                raise StackError(
                    f"cannot stack: attribute '{f'{path}.{name}'.lstrip('.')}' holds a parameter or buffer that "
                    "is registered elsewhere in the module, which stacking by name would miss.",
                    hint="Register it under that name too (assign the Parameter itself to an attribute).",
                )
    return base


def _holds_meta(value: Any, depth: int) -> bool:
    if isinstance(value, torch.Tensor):
        return value.is_meta
    if depth > _MAX_DEPTH or isinstance(value, nn.Module):
        return False
    if isinstance(value, dict):
        return any(_holds_meta(child, depth + 1) for child in value.values())
    if isinstance(value, list | tuple | set):
        return any(_holds_meta(child, depth + 1) for child in value)
    return False


def assign_tensor(module: nn.Module, name: str, tensor: torch.Tensor) -> None:
    """Put `tensor` in the place of the parameter or buffer `name`, keeping which of the two it is."""
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    if leaf in owner._parameters:
        owner._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
    else:
        owner._buffers[leaf] = tensor


def register_like(target: nn.Module, source: nn.Module, name: str, value: Any) -> None:
    """Register `value` in `target` under the dotted `name`, as the parameter or buffer it is in `source`.

    Plain containers are made for the path. Names are written directly into them: a member may well have a
    parameter called like a method of `nn.Module`.
    """
    path, _, leaf = name.rpartition(".")
    original = source
    for part in path.split(".") if path else ():
        original = original.get_submodule(part)
        if part not in target._modules:
            target._modules[part] = nn.Module()
        target = target.get_submodule(part)
    if leaf in original._parameters:
        target._parameters[leaf] = value
        return
    target._buffers[leaf] = value
    if leaf in original._non_persistent_buffers_set:
        target._non_persistent_buffers_set.add(leaf)
