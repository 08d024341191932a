"""Weights into a freshly built module, exactly: own dtype, ties kept, and nothing that no checkpoint holds.

`load_state_dict` alone is not enough. By assignment it gives two tied names two tensors and leaves a plain
attribute that is a view of a parameter at its untrained values; by copying it casts to the module's dtype.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ensexport.errors import StackError

Ties = tuple[tuple[str, ...], ...]


def load_exactly(module: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Load a member's weights in place, strictly and in their own dtype. Gradients are switched off.

    The module shares the tensors of `state` unless one of its plain attributes is a view of a parameter; then
    the values are copied, so that the view follows.

    Args:
        module: A fresh build.
        state: One tensor for each name of its state dict.

    Raises:
        StackError: The module does not take the weights, or it holds such a view and the dtypes differ.
    """
    _switch_gradients_off(module)
    ties, views = tied_names(module), tensors_outside(module, sharing=True)
    if views:
        own = module.state_dict()
        differing = [name for name in state if name in own and own[name].dtype != state[name].dtype]
        if differing:
            raise StackError(
                f"attribute {next(iter(views))!r} is a view of a parameter, so that {differing[0]!r} cannot "
                f"change from {own[differing[0]].dtype} to {state[differing[0]].dtype}.",
                hint="Build the architecture in the dtype of the checkpoints.",
            )
    try:
        module.load_state_dict(dict(state), strict=True, assign=not views)
    except RuntimeError as error:
        text = " ".join(str(error).split()).rstrip(" .")
        raise StackError(f"the architecture does not take the weights: {text}.") from error
    for group in ties:
        _restore_tie(module, group, state)
    _switch_gradients_off(module)


def tied_names(module: nn.Module) -> Ties:
    """Return the groups of names under which one parameter or buffer object is registered."""
    groups: dict[int, list[str]] = {}
    for named in (module.named_parameters, module.named_buffers):
        for name, tensor in named(remove_duplicate=False):
            groups.setdefault(id(tensor), []).append(name)
    return tuple(tuple(names) for names in groups.values() if len(names) > 1)


def tensors_outside(module: nn.Module, *, sharing: bool) -> dict[str, torch.Tensor]:
    """Return the buffers and plain tensor attributes that are not in the state dict, by name.

    What hooks compute before each forward pass is left out, see `recomputed_names`.

    Args:
        module: Any module.
        sharing: True for those that share memory with a tensor in the state dict, False for the others.
    """
    saved = {name: value for name, value in module.state_dict().items() if _has_storage(value)}
    storages = {value.untyped_storage().data_ptr() for value in saved.values()} - {0}
    return {
        name: tensor
        for name, tensor in _all_tensors(module)
        if name not in saved and _has_storage(tensor) and (tensor.untyped_storage().data_ptr() in storages) is sharing
    }


def recomputed_names(module: nn.Module) -> set[str]:
    """Return the plain attributes that a hook computes from the parameters before each forward pass.

    Those of `torch.nn.utils.weight_norm`, `spectral_norm` and `prune`: they follow from the state dict.
    """
    hooks = module._forward_pre_hooks.values()
    names = [getattr(hook, attribute, None) for hook in hooks for attribute in ("name", "_tensor_name")]
    return {name for name in names if isinstance(name, str)}


def _all_tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every buffer and plain tensor attribute; parameters only where they are not registered."""
    yield from module.named_buffers(remove_duplicate=False)
    for path, part in module.named_modules():
        recomputed = recomputed_names(part)
        for name, value in vars(part).items():
            if isinstance(value, torch.Tensor) and name not in recomputed:
                yield f"{path}.{name}" if path else name, value


def _switch_gradients_off(module: nn.Module) -> None:
    for parameter in module.parameters():
        if not is_lazy(parameter):
            parameter.requires_grad_(False)


def _restore_tie(module: nn.Module, names: tuple[str, ...], state: Mapping[str, torch.Tensor]) -> None:
    """Make the names of a group one object again: that of the first name that was loaded."""
    loaded = next((name for name in names if name in state), None)
    if loaded is None:
        return
    path, _, attribute = loaded.rpartition(".")
    tensor = getattr(module.get_submodule(path), attribute)
    for name in names:
        path, _, attribute = name.rpartition(".")
        setattr(module.get_submodule(path), attribute, tensor)


def _has_storage(value: Any) -> bool:
    if not isinstance(value, torch.Tensor) or is_lazy(value):
        return False
    return not value.is_meta and value.layout is torch.strided
