"""The members' own tensors as their checkpoints name them: what `--state-dict` gives back."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from ensexport.members import Members
from ensexport.members.tensors import same_bytes
from ensexport.stacking import Ensemble
from ensexport.stacking.state import named_tensors

_CHANGED = "the model makes another tensor of it when it is loaded or first run"


@dataclass(frozen=True)
class OwnTensors:
    """What is known of them when a file is packed.

    Attributes:
        leaf_of: Name in the checkpoint -> the name that a batched graph may know it by: one for tied names.
        changed: Names whose values in a built member are not those of the checkpoint, and why.
    """

    leaf_of: Mapping[str, str]
    changed: Mapping[str, str] = field(default_factory=dict)

    @property
    def leaves(self) -> tuple[str, ...]:
        """The names that a batched graph may know."""
        return tuple(dict.fromkeys(self.leaf_of.values()))


def own_tensors(
    ensemble: Ensemble | Members, first: nn.Module, leaves: Collection[str], *, fills_buffers: bool
) -> OwnTensors:
    """Say what the members' own tensors are.

    Args:
        ensemble: The members.
        first: Member 0 as it is packed: built, and run once.
        leaves: The names that the member graph knows.
        fills_buffers: Did running it put other tensors in the place of its own?
    """
    built = named_tensors(first)
    known = {id(tensor): name for name, tensor in built.items() if name in leaves}
    is_plain = isinstance(ensemble, Members) and ensemble.is_plain and not fills_buffers
    state = ensemble[0].shapes if is_plain else state_of(ensemble, 0)  # type: ignore[index]
    leaf_of = {name: known.get(id(built[name]), name) if name in built else name for name in state}
    changed = {}
    if not is_plain:
        same = {name for name, tensor in state.items() if name in built and same_bytes(built[name], tensor)}
        changed = {name: _CHANGED for name in state if name not in same}
    return OwnTensors(leaf_of, changed)


def state_of(ensemble: Ensemble | Members, member_index: int) -> dict[str, torch.Tensor]:
    """One member's tensors under the names of its checkpoint, in the dtypes of its checkpoint."""
    if not isinstance(ensemble, Members):
        state = ensemble.build(member_index).state_dict()
        return {name: value.detach() for name, value in state.items() if isinstance(value, torch.Tensor)}
    member = ensemble[member_index]
    return {name: tensor.to(member.saved_dtypes.get(name, tensor.dtype)) for name, tensor in member.state.items()}
