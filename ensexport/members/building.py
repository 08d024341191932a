"""Members as modules: the architecture is built once, each member is a copy of that with its own weights.

Building anew would fill every member with random numbers first, which for ten ViT-B takes longer than to write them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ensexport.members.architecture import Architecture
from ensexport.members.closures import function_with_own_parts
from ensexport.members.rebuilding import load_exactly, tensors_outside
from ensexport.members.tensors import same_bytes


class Builder:
    """Builds members of one architecture.

    Args:
        architecture: What builds the network.

    Attributes:
        is_plain: Does the network take the weights as they are, and nothing of it but them differ between members? None
            before the first is built.
    """

    def __init__(self, architecture: Architecture) -> None:
        self._architecture = architecture
        self.is_plain: bool | None = None
        self._empty: nn.Module | None = None
        self._is_copied = True

    def build(self, read: Callable[[], Mapping[str, torch.Tensor]]) -> nn.Module:
        """Return the network with a member's weights, in eval mode, without gradients; it shares the tensors.

        Args:
            read: Reads the weights. It is called when the network is there, so that random weights are in memory before
                or after, and not beside them.

        Raises:
            ArchitectureError: The architecture cannot be built.
            StackError: The network does not take the weights.
        """
        if self._is_copied and self._empty is None:
            self._empty = _empty_copy(self._architecture.build())
            self._is_copied = self._empty is not None
        module = self._architecture.build() if self._empty is None else copy.deepcopy(self._empty)
        rest = tensors_outside(module, sharing=False) if self.is_plain is None else {}
        before = {name: tensor.detach().clone() for name, tensor in rest.items()}
        state = read()
        load_exactly(module, state)
        if self._empty is not None and _is_empty(module):  # it fills its tensors in place, and these have no memory
            self._is_copied, self._empty = False, None
            return self.build(read)
        if self.is_plain is None:
            self.is_plain = _takes_as_is(module, state) and _same(before, tensors_outside(module, sharing=False))
        return module


def _takes_as_is(module: nn.Module, state: Mapping[str, torch.Tensor]) -> bool:
    """Are the weights in the module those of the state dict? A module may compute others from them when loaded."""
    own = module.state_dict(keep_vars=True)
    found = {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }
    return own.keys() == state.keys() and all(
        name in found and same_bytes(found[name], tensor) for name, tensor in state.items()
    )


def _same(before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor]) -> bool:
    return before.keys() == after.keys() and all(same_bytes(before[name], after[name]) for name in before)


def _is_empty(module: nn.Module) -> bool:
    return any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers()))


def _empty_copy(module: nn.Module) -> nn.Module | None:
    """Return a copy whose saved tensors are on meta; None if it would not be the same network.

    Shared with the original is nothing that a forward pass may write to. Attributes that are views of a parameter would
    be views of nothing.
    """
    saved = {
        id(value): value for value in module.state_dict(keep_vars=True).values() if isinstance(value, torch.Tensor)
    }
    if any(is_lazy(value) or type(value) not in (nn.Parameter, torch.Tensor, nn.Buffer) for value in saved.values()):
        return None
    if _is_empty(module) or tensors_outside(module, sharing=True) or function_with_own_parts(module) is not None:
        return None
    memo: dict[int, Any] = {}
    for key, value in saved.items():
        empty = torch.empty_like(value, device="meta")
        memo[key] = nn.Parameter(empty, requires_grad=False) if isinstance(value, nn.Parameter) else empty
    for part in module.modules():
        for attribute in vars(part).values():
            if isinstance(attribute, torch.Tensor) and not attribute.is_leaf:  # what weight_norm computed last
                memo[id(attribute)] = attribute.detach().clone()
            if isinstance(attribute, ModuleType):
                memo[id(attribute)] = attribute
    try:
        return copy.deepcopy(module, memo)
    except Exception:  # noqa: BLE001 - what cannot be copied is built anew for each member
        return None
