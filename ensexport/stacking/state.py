"""A module's tensors by name: read them all, copy the module without them, put others in their place."""

from __future__ import annotations

import copy
from types import ModuleType
from typing import Any

import torch
from torch import nn

from ensexport.errors import StackError


def named_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """All parameters and buffers, tied ones under each of their names, non-persistent buffers included."""
    return {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }


def release_tensors(module: nn.Module) -> None:
    """Take all tensors out of a module that is not needed any more.

    A module that refers to itself somewhere lives on until Python looks for such circles; its weights need not.
    """
    for part in module.modules():
        part._parameters.clear()
        part._buffers.clear()


def meta_copy(module: nn.Module) -> nn.Module:
    """Return a copy of `module` whose parameters and buffers are on meta: the code without the weights.

    Ties are kept. Nothing of the weights is copied. The copy is in eval mode.

    Raises:
        StackError: The module cannot be copied, because of an open file, say.
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
            if isinstance(value, ModuleType):  # `self.F = torch.nn.functional`: deepcopy refuses it too
                memo[id(value)] = value
    try:
        return copy.deepcopy(module, memo).eval()
    except Exception as error:
        raise StackError(
            f"cannot stack: {type(module).__name__} cannot be copied: {type(error).__name__}: {error}",
            hint="Remove what it holds beside its weights and configuration.",
        ) from error


def assign_tensor(module: nn.Module, name: str, tensor: torch.Tensor) -> None:
    """Put `tensor` in the place of the parameter or buffer `name`; a parameter must be a `Parameter`."""
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    if leaf in owner._parameters:
        assert isinstance(tensor, nn.Parameter)
        owner._parameters[leaf] = tensor
    else:
        owner._buffers[leaf] = tensor


def register_like(target: nn.Module, source: nn.Module, name: str, value: Any) -> None:
    """Register `value` in `target` under the dotted `name`, as the parameter or buffer it is in `source`.

    Plain containers are made for the path. Names are written directly into them: a member may well have a
    parameter or sub-module called like an attribute of `target`.
    """
    path, _, leaf = name.rpartition(".")
    for part in path.split(".") if path else ():
        source = _child(source, part)
        target._modules.setdefault(part, nn.Module())
        target = _child(target, part)
    if leaf in source._parameters:
        target._parameters[leaf] = value
        return
    target._buffers[leaf] = value
    if leaf in source._non_persistent_buffers_set:
        target._non_persistent_buffers_set.add(leaf)


def _child(module: nn.Module, name: str) -> nn.Module:
    child = module._modules[name]
    assert child is not None
    return child
