"""`stack`: live modules or loaded members -> one module that runs them all under `torch.vmap`.

Source of the recipe: the PyTorch tutorial "Model ensembling"
(https://docs.pytorch.org/tutorials/intermediate/ensembling.html): stacked parameters, `functional_call` on a
stateless base, `vmap` with `in_dims`. Two things differ from it, both because it fails silently otherwise:
every tensor of the base is overridden under each of its names (a tied weight would stay on meta, whose kernels
return uninitialised memory), and plain attributes that differ between modules are refused.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree

from ensexport.errors import StackError, UsageError
from ensexport.members import Members, check_states_agree
from ensexport.stacking.attributes import differing_attributes
from ensexport.stacking.hidden import refuse_hidden_weights
from ensexport.stacking.in_dims import InDims, check_in_dims, dims_of_call, find_in_dim
from ensexport.stacking.outputs import map_leaves, not_a_tensor
from ensexport.stacking.state import assign_tensor, meta_copy, named_tensors, register_like

Outputs = tuple[torch.Tensor, ...]

_NO_BATCHING_RULE = "Batching rule not implemented"


class Ensemble(nn.Module):
    """The members of one architecture as one module: outputs have shape `(N, B, ...)`.

    Parameters and buffers carry the members' own names with a leading axis of size N, so `state_dict()`,
    `load_state_dict()`, `.to()` and `.half()` work as on any module. It always runs in eval mode. Where torch has no
    batching rule for an op of the model (`nn.LSTM`), the members run one after the other.
    """

    def __init__(
        self,
        base: nn.Module,
        states: Sequence[Mapping[str, torch.Tensor]],
        in_dims: InDims,
        labels: Sequence[str],
    ):
        super().__init__()
        # The base is no sub-module: it holds no state of its own and must not show up in state_dict() or modules().
        # All this is out of the way of the members' own names: a member may well have a sub-module called `labels`.
        self.__dict__["_ensexport"] = _Facts(base, frozenset(named_tensors(base)), len(states), in_dims, tuple(labels))
        stacked: dict[tuple[int, ...], Any] = {}
        for name, tensor in named_tensors(base).items():
            tie = tuple(id(state[name]) for state in states)  # equal only for names that are tied in every member
            if tie not in stacked:
                value = torch.stack([state[name].detach() for state in states])
                is_parameter = isinstance(tensor, nn.Parameter)
                stacked[tie] = nn.Parameter(value, tensor.requires_grad) if is_parameter else value
            register_like(self, base, name, stacked[tie])
        super().train(False)

    @property
    def n_members(self) -> int:
        """N."""
        return self._facts.n_members

    @property
    def in_dims(self) -> InDims:
        """As given to `stack`."""
        return self._facts.in_dims

    @property
    def labels(self) -> tuple[str, ...]:
        """One text a member for messages, such as `member 3 (runs/s3.pt)`."""
        return self._facts.labels

    @property
    def _facts(self) -> _Facts:
        facts: _Facts = self.__dict__["_ensexport"]
        return facts

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run every member and return the members' own structure with a leading N on each tensor.

        Args:
            args: Inputs by position; `(B, ...)` where `in_dims` is None, `(N, B, ...)` where it is 0.
            kwargs: Inputs by keyword, likewise.

        Raises:
            ModelInputError: A per-member input has a leading size other than N, or `in_dims` has no entry for it.
            ModelOutputError: The model returns something that is neither tensor, number, text nor None.
        """
        base = self._facts.base
        arg_dims, kwarg_dims = dims_of_call(self.in_dims, base, self.n_members, args, kwargs)
        structure: list[Any] = []

        def one_member(_: torch.Tensor, state: dict[str, torch.Tensor], args: Any, kwargs: Any) -> Outputs:
            tensors: list[torch.Tensor] = []

            def take(leaf: Any) -> Any:
                if isinstance(leaf, torch.Tensor):
                    tensors.append(leaf)
                    return _Slot(len(tensors) - 1)
                if leaf is None or isinstance(leaf, bool | int | float | complex | str):
                    return leaf
                raise not_a_tensor(leaf)  # it may well hold tensors that mean nothing outside of vmap

            output = functional_call(base, state, args, kwargs, tie_weights=False)
            structure[:] = [map_leaves(output, take)]
            return tuple(tensors)

        # The first argument is what is mapped when a model has neither state nor per-member inputs.
        mapped = (torch.arange(self.n_members), self._state(), args, kwargs)
        with _left_as_found(base):
            try:
                stacked = torch.vmap(one_member, in_dims=(0, 0, arg_dims, kwarg_dims))(*mapped)
            except RuntimeError as error:
                if _NO_BATCHING_RULE not in str(error):
                    raise
                in_dims = (0, dict.fromkeys(mapped[1], 0), arg_dims, kwarg_dims)
                rows = [one_member(*_slice(mapped, in_dims, index)) for index in range(self.n_members)]
                stacked = tuple(torch.stack(column) for column in zip(*rows, strict=True))
        return map_leaves(structure[0], lambda leaf: stacked[leaf.index] if isinstance(leaf, _Slot) else leaf)

    def __len__(self) -> int:
        """N."""
        return self.n_members

    def build(self, member_index: int) -> nn.Module:
        """Return one member as a module of its own, in eval mode. Its tensors are views of the stack.

        Raises:
            UsageError: There is no such member.
        """
        if not 0 <= member_index < self.n_members:
            raise UsageError(f"there is no member {member_index}: expected 0 to {self.n_members - 1}.")
        module = copy.deepcopy(self._facts.base)
        made: dict[int, torch.Tensor] = {}  # tied names stay tied
        for name, tensor in self._state().items():
            if id(tensor) not in made:
                value = tensor[member_index].detach()
                is_parameter = isinstance(tensor, nn.Parameter)
                made[id(tensor)] = nn.Parameter(value, requires_grad=False) if is_parameter else value
            assign_tensor(module, name, made[id(tensor)])
        return module.eval()

    def train(self, mode: bool = True) -> Ensemble:
        """Stay in eval mode: an ensemble is for inference, and train-mode BatchNorm would differ silently."""
        return super().train(False)

    def in_dim(self, name: str, position: int | None = None) -> int | None:
        """Return the `in_dims` entry of one input, by its name or, where `in_dims` is a sequence, its position."""
        return find_in_dim(self.in_dims, self._facts.base, name, position)

    def _state(self) -> dict[str, torch.Tensor]:
        state = named_tensors(self)
        missing = self._facts.names - state.keys()
        if missing:
            raise StackError(f"the ensemble lost {', '.join(sorted(missing))}.", hint="Stack the members again.")
        return state


def stack(members: Members | Sequence[nn.Module], *, in_dims: InDims = None) -> Ensemble:
    """Stack the members' tensors along a new member axis.

    Args:
        members: What `load_members(..., model=...)` returned, or modules of one class. N is their number.
        in_dims: torch.vmap's term, for all inputs or one entry an input (sequence by position, dict by name):
            None = the same `(B, ...)` for all members, 0 = one slice per member, `(N, B, ...)`.

    Returns:
        A module whose outputs have shape `(N, B, ...)`. Copies: peak memory is about twice the members'.

    Raises:
        StackError: No member, or something that is no module; keys, shapes, dtypes, devices, classes or plain
            attributes differ (names both members); weights are held where stacking by name would miss them;
            `in_dims` does not fit the model.

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
    if isinstance(members, Members):
        labels = list(members.labels)
        modules = [members.build(m.index) for m in members]
    else:
        modules = list(members)
        labels = [f"member {index}" for index in range(len(modules))]
    if not modules:
        raise StackError("cannot stack 0 members: expected at least one.", hint="Pass the trained modules.")
    for module, label in zip(modules, labels, strict=True):
        _check_module(module, label)
    check_in_dims(in_dims, modules[0])
    refuse_hidden_weights(modules[0])
    _check_alike(modules, labels)
    return Ensemble(meta_copy(modules[0]), [named_tensors(module) for module in modules], in_dims, labels)


def _check_module(module: nn.Module, label: str) -> None:
    if not isinstance(module, nn.Module):
        raise StackError(f"cannot stack {label}: expected a torch.nn.Module, got {type(module).__name__}.")
    if isinstance(module, torch.jit.ScriptModule):
        raise StackError(
            f"cannot stack {label}: it is a TorchScript module, whose code cannot be run with other weights.",
            hint="Pass the nn.Module it was made from.",
        )
    for name, tensor in named_tensors(module).items():
        if is_lazy(tensor):
            raise StackError(
                f"cannot stack {label}: '{name}' has no shape yet.", hint="Run the module once on an example first."
            )
        if tensor.is_meta:
            raise StackError(
                f"cannot stack {label}: '{name}' is on device meta and holds no data.", hint="Load its weights first."
            )


def _check_alike(modules: Sequence[nn.Module], labels: Sequence[str]) -> None:
    for module, label in zip(modules, labels, strict=True):
        found = next(differing_attributes(modules[0], module), None)
        if found is not None:
            name, expected, got = found
            raise StackError(
                f"cannot stack: '{name}' is {_short(expected)} in {labels[0]}, {_short(got)} in {label}.",
                hint="One graph runs one configuration: stack only members built with the same arguments, and "
                "delete what a module has only cached.",
            )
    states = [named_tensors(module) for module in modules]
    check_states_agree(list(zip(labels, states, strict=True)))
    for state, label in zip(states, labels, strict=True):
        for name, tensor in state.items():
            if tensor.device != states[0][name].device:
                raise StackError(
                    f"cannot stack '{name}': expected device {states[0][name].device} as in {labels[0]}, got "
                    f"{tensor.device} in {label}.",
                    hint="Move all members to one device.",
                )


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def _slice(mapped: Any, in_dims: Any, member_index: int) -> Any:
    """What one member gets of vmap's arguments."""
    return pytree.tree_map(lambda value, dim: value if dim is None else value[member_index], mapped, in_dims)


@contextmanager
def _left_as_found(module: nn.Module) -> Iterator[None]:
    """Undo what a forward pass stores in plain attributes: under vmap, tensors that mean nothing outside of it."""
    before = [(part, dict(vars(part))) for part in module.modules()]
    try:
        yield
    finally:
        for part, attributes in before:
            vars(part).clear()
            vars(part).update(attributes)


@dataclass(frozen=True)
class _Facts:
    """What an ensemble knows beside its tensors."""

    base: nn.Module
    names: frozenset[str]
    n_members: int
    in_dims: InDims
    labels: tuple[str, ...]


class _Slot:
    """Marks where a tensor stood in a model's output while the structure passes by vmap."""

    def __init__(self, index: int) -> None:
        self.index = index
