"""`stack`: live modules or loaded members -> one module that runs them all under `torch.vmap`.

Source of the recipe: the PyTorch tutorial "Model ensembling"
(https://docs.pytorch.org/tutorials/intermediate/ensembling.html): stacked parameters, `functional_call` on a
stateless base, `vmap` with `in_dims`. Two things differ from it, both because it fails silently otherwise:
every tensor of the base is overridden under each of its names (a tied weight would stay on meta, whose kernels
return uninitialised memory), and plain attributes that differ between modules are refused.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from ensexport.errors import ModelInputError, StackError
from ensexport.members import Members, check_states_agree
from ensexport.stacking.attributes import differing_attributes
from ensexport.stacking.outputs import map_leaves
from ensexport.stacking.state import assign_tensor, meta_copy, named_tensors, register_like

InDims = int | None | Sequence[int | None] | Mapping[str, int | None]


class Ensemble(nn.Module):
    """The members of one architecture as one module: outputs have shape `(N, B, ...)`.

    Parameters and buffers carry the members' own names with a leading axis of size N, so `state_dict()`,
    `load_state_dict()`, `.to()` and `.half()` work as on any module. It always runs in eval mode.

    Attributes:
        n_members: N.
        in_dims: As given to `stack`.
        labels: One text a member for messages, such as `member 3 (runs/s3.pt)`.
    """

    n_members: int
    in_dims: InDims
    labels: tuple[str, ...]
    _base: nn.Module

    def __init__(
        self,
        base: nn.Module,
        states: Sequence[Mapping[str, torch.Tensor]],
        in_dims: InDims,
        labels: Sequence[str],
    ):
        super().__init__()
        # Not a sub-module: the base holds no state of its own and must not show up in state_dict() or modules().
        object.__setattr__(self, "_base", base)
        object.__setattr__(self, "n_members", len(states))
        object.__setattr__(self, "in_dims", in_dims)
        object.__setattr__(self, "labels", tuple(labels))
        stacked: dict[int, Any] = {}
        for name, tensor in named_tensors(base).items():
            if id(tensor) not in stacked:
                value = torch.stack([state[name].detach() for state in states])
                is_parameter = isinstance(tensor, nn.Parameter)
                stacked[id(tensor)] = nn.Parameter(value, tensor.requires_grad) if is_parameter else value
            register_like(self, base, name, stacked[id(tensor)])
        super().train(False)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run every member and return the members' own structure with a leading N on each tensor.

        Args:
            args: Inputs by position; `(B, ...)` where `in_dims` is None, `(N, B, ...)` where it is 0.
            kwargs: Inputs by keyword, likewise.

        Raises:
            ModelInputError: A per-member input has a leading size other than N.
        """
        arg_dims, kwarg_dims = self._dims_of(args, kwargs)
        structure: list[Any] = []

        def one_member(
            state: dict[str, torch.Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[torch.Tensor, ...]:
            tensors: list[torch.Tensor] = []

            def take(tensor: torch.Tensor) -> _Slot:
                tensors.append(tensor)
                return _Slot(len(tensors) - 1)

            output = functional_call(self._base, state, args, kwargs, tie_weights=False)
            structure[:] = [map_leaves(output, torch.Tensor, take)]
            return tuple(tensors)

        stacked = torch.vmap(one_member, in_dims=(0, arg_dims, kwarg_dims))(self._state(), args, kwargs)
        return map_leaves(structure[0], _Slot, lambda slot: stacked[slot.index])

    def __len__(self) -> int:
        """N."""
        return int(self.n_members)

    def build(self, member_index: int) -> nn.Module:
        """Return member `member_index` as a module of its own, in eval mode. Its tensors are views of the stack."""
        module = copy.deepcopy(self._base)
        for name, tensor in self._state().items():
            assign_tensor(module, name, tensor[member_index].detach())
        return module.eval()

    def train(self, mode: bool = True) -> Ensemble:
        """Stay in eval mode: an ensemble is for inference, and train-mode BatchNorm would differ silently."""
        return super().train(False)

    def in_dim(self, name: str, position: int | None = None) -> int | None:
        """Return the `in_dims` entry of one input, by its name or, where `in_dims` is a sequence, its position."""
        if self.in_dims is None or isinstance(self.in_dims, int):
            return self.in_dims
        if isinstance(self.in_dims, Mapping):
            return self.in_dims.get(name)
        parameters = list(inspect.signature(self._base.forward).parameters)
        if name in parameters:
            position = parameters.index(name)
        return self.in_dims[position] if position is not None and position < len(self.in_dims) else None

    def _state(self) -> dict[str, torch.Tensor]:
        state = named_tensors(self)
        missing = named_tensors(self._base).keys() - state.keys()
        if missing:
            raise StackError(f"the ensemble lost {', '.join(sorted(missing))}.", hint="Stack the members again.")
        return state

    def _dims_of(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        if isinstance(self.in_dims, Sequence):
            if len(self.in_dims) != len(args) + len(kwargs):
                raise ModelInputError(
                    f"in_dims has {len(self.in_dims)} entries: expected {len(args) + len(kwargs)}, one an input.",
                    hint="Give in_dims as a dict by name where inputs are optional.",
                )
            arg_dims = tuple(self.in_dims[: len(args)])
            kwarg_dims = dict(zip(kwargs, self.in_dims[len(args) :], strict=True))
        else:
            names = list(inspect.signature(self._base.forward).parameters)
            arg_dims = tuple(self.in_dim(names[min(i, len(names) - 1)]) for i in range(len(args)))
            kwarg_dims = {name: self.in_dim(name) for name in kwargs}
        arg_dims = tuple(
            self._checked_dim(f"input {i}", value, dim)
            for i, (value, dim) in enumerate(zip(args, arg_dims, strict=True))
        )
        return arg_dims, {
            name: self._checked_dim(f"input '{name}'", kwargs[name], dim) for name, dim in kwarg_dims.items()
        }

    def _checked_dim(self, label: str, value: Any, dim: int | None) -> int | None:
        """Return the dim vmap maps over; a non-tensor argument (a flag, None) is the same for all members."""
        if dim is None or not isinstance(value, torch.Tensor):
            return None
        if value.dim() == 0 or value.shape[0] != self.n_members:
            raise ModelInputError(
                f"{label} is per-member (in_dims=0): expected a leading size of {self.n_members}, one slice a "
                f"member, got shape {tuple(value.shape)}.",
                hint="Stack one minibatch per member, or use in_dims=None for a shared one.",
            )
        return 0


def stack(members: Members | Sequence[nn.Module], *, in_dims: InDims = None) -> Ensemble:
    """Stack the members' tensors along a new member axis.

    Args:
        members: What `load_members(..., model=...)` returned, or modules of one class. N is their number.
        in_dims: torch.vmap's term, for all inputs or one entry an input (sequence by position, dict by name):
            None = the same `(B, ...)` for all members, 0 = one slice per member, `(N, B, ...)`.

    Returns:
        A module whose outputs have shape `(N, B, ...)`. Copies: peak memory is about twice the members'.

    Raises:
        StackError: No member; keys, shapes, dtypes, classes or plain attributes differ; names both members.

    Example:
        >>> ensemble = stack([torch.nn.Linear(4, 2) for _ in range(3)])
        >>> ensemble(torch.zeros(5, 4)).shape
        torch.Size([3, 5, 2])
    """
    if isinstance(members, nn.Module) and not isinstance(members, nn.ModuleList):
        raise StackError(
            f"cannot stack one {type(members).__name__}: expected a sequence of modules.",
            hint="Pass [module, ...].",
        )
    _check_in_dims(in_dims)
    if isinstance(members, Members):
        labels = [f"member {m.index} ({m.path})" for m in members]
        modules = [members.build(m.index) for m in members]
    else:
        modules = list(members)
        labels = [f"member {index}" for index in range(len(modules))]
    if not modules:
        raise StackError("cannot stack 0 members: expected at least one.", hint="Pass the trained modules.")
    _check_alike(modules, labels)
    states = [named_tensors(module) for module in modules]
    return Ensemble(meta_copy(modules[0]), states, in_dims, labels)


def _check_in_dims(in_dims: InDims) -> None:
    if in_dims is None or isinstance(in_dims, int):
        entries: list[int | None] = [in_dims]
    else:
        entries = list(in_dims.values() if isinstance(in_dims, Mapping) else in_dims)
    for entry in entries:
        if entry not in (None, 0):
            raise StackError(f"in_dims holds {entry!r}: expected 0 (per-member) or None (shared).")


def _check_alike(modules: Sequence[nn.Module], labels: Sequence[str]) -> None:
    for module, label in zip(modules, labels, strict=True):
        if not isinstance(module, nn.Module):
            raise StackError(f"cannot stack {label}: expected a torch.nn.Module, got {type(module).__name__}.")
        found = next(differing_attributes(modules[0], module), None)
        if found is not None:
            name, expected, got = found
            raise StackError(
                f"cannot stack: attribute '{name}' is {expected!r:.80} in {labels[0]}, {got!r:.80} in {label}.",
                hint="One graph runs one configuration: stack only members built with the same arguments.",
            )
    check_states_agree([(label, named_tensors(module)) for module, label in zip(modules, labels, strict=True)])


@dataclass(frozen=True)
class _Slot:
    """Marks where a tensor stood in a model's output while the structure passes by vmap."""

    index: int
