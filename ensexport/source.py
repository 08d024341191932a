"""What is exported: the ensemble, and what is known of one member after it was captured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ensexport.batching.activations import activation_bytes
from ensexport.batching.converting import dtype_of
from ensexport.batching.examples import Example, ValueRange, find_example
from ensexport.batching.integers import accepted_ranges
from ensexport.batching.member_graph import MemberGraph, capture_member
from ensexport.errors import UsageError
from ensexport.members import Members
from ensexport.members.equality import EqualTensors
from ensexport.recipe.own_tensors import OwnTensors, own_tensors
from ensexport.spec import TensorSpec, batch_dim
from ensexport.stacking import Ensemble
from ensexport.stacking.baseline import run_member
from ensexport.stacking.state import named_tensors, release_tensors


@dataclass(frozen=True)
class Source:
    """What is exported: the ensemble, and what is known of one member."""

    ensemble: Ensemble | Members
    specs: tuple[TensorSpec, ...]
    per_member: Sequence[str]
    example: Example
    member: MemberGraph
    ranges: Mapping[str, ValueRange]
    notes: Sequence[str]
    names: tuple[str, ...]
    fills_buffers: bool
    own: OwnTensors

    def activation_bytes(self, batch: int) -> int:
        """What the activations of all members take at a batch size, as a runtime needs it."""
        name = batch_dim(self.specs)
        sizes = dict(self.example.sizes) | ({name: batch} if name else {})
        return _OVER_ALIVE * len(self.ensemble) * activation_bytes(self.member, sizes)

    @property
    def sizes(self) -> dict[str, Any]:
        """What probes are made of: sizes that are accepted, and values."""
        return {
            "example_sizes": self.example.sizes,
            "dim_ranges": self.member.dim_ranges,
            "ranges": self.ranges,
        }


_OVER_ALIVE = 3
"""ONNX Runtime's memory over what is alive in the graph: 2.8 for ten ViT-B at batch 13 (1.31, CPU, no arena)."""
_MAX_CHUNK_BYTES = 2_000_000_000


def chunks_of(source: Source) -> int:
    """Groups of members to run one after the other, so that a group's activations fit into memory at batch 1."""
    return min(len(source.ensemble), -(-source.activation_bytes(1) // _MAX_CHUNK_BYTES) or 1)


def capture_source(
    ensemble: Ensemble | Members,
    specs: tuple[TensorSpec, ...],
    per_member: Sequence[str],
    output_names: Sequence[str] | None,
) -> Source:
    """Capture the first member's graph; its weights are let go of again.

    Args:
        ensemble: The members.
        specs: The inputs, as one member sees them.
        per_member: Names of the inputs with a leading N.
        output_names: New names for the outputs; None for their own.

    Raises:
        UsageError: The names fit no outputs.
        MemberError: The model cannot be captured.
    """
    module = ensemble.build(0)
    built = named_tensors(module)
    example = find_example(module, specs)
    fills_buffers = any(built.get(name) is not tensor for name, tensor in named_tensors(module).items())
    member = capture_member(module, specs, example)
    ranges, notes = accepted_ranges(module, member, example)
    names = _output_names(output_names, tuple(example.outputs), specs)
    own = own_tensors(ensemble, module, set(member.state.values()), fills_buffers=fills_buffers)
    member.forget_weights()
    release_tensors(module)
    return Source(ensemble, specs, per_member, example, member, ranges, notes, names, fills_buffers, own)


def member_bytes(ensemble: Ensemble | Members) -> int:
    """Bytes of one member's tensors, tied ones counted once."""
    if isinstance(ensemble, Members):
        return max(member.n_bytes for member in ensemble)
    tensors = {id(tensor): tensor for tensor in named_tensors(ensemble).values()}
    return sum(tensor.nbytes for tensor in tensors.values()) // len(ensemble)


@dataclass(frozen=True)
class States:
    """The members' tensors, one member in memory at a time."""

    source: Source

    def __len__(self) -> int:
        return len(self.source.ensemble)

    def visit(self, member_index: int, use: Callable[[Mapping[str, torch.Tensor]], None]) -> None:
        """Call `use` with a member's parameters and buffers by name; they are gone afterwards."""
        module = self.source.ensemble.build(member_index)
        if self.source.fills_buffers:  # on the first call, as member 0 was captured after it
            run_member(module, self.source.example.feed)
        use(named_tensors(module))
        release_tensors(module)


def equal_in_all(source: Source) -> frozenset[str]:
    """Names of the parameters and buffers that are bit-equal in all members: those are kept once."""
    if isinstance(source.ensemble, Members) and not source.fills_buffers:
        known = source.ensemble.equal_names()
        if known is not None:
            return known
    equal = EqualTensors()
    states = States(source)
    for member_index in range(len(states)):
        states.visit(member_index, equal.add)
    return equal.names


def dtype_name(member: MemberGraph) -> str:
    """The dtype that most of the members' weights have."""
    state = [node.meta["val"] for node, name in member.state.items() if name not in member.constants]
    return str(dtype_of(state, [node.meta["val"] for node in member.inputs.values()])).removeprefix("torch.")


def _output_names(wanted: Sequence[str] | None, own: tuple[str, ...], specs: Sequence[TensorSpec]) -> tuple[str, ...]:
    names = tuple(wanted) if wanted else own
    if len(names) != len(own):
        raise UsageError(
            f"{len(names)} output names are given: expected {len(own)}, for {', '.join(own)}.",
            hint="Give one name per output, in order.",
        )
    inputs = {spec.name for spec in specs}
    if len(set(names)) < len(names) or (wanted and inputs & set(names)):
        raise UsageError(f"output names must be unique and no input's name: got {', '.join(names)}.")
    return tuple(name if name not in inputs else f"{name}_out" for name in names)
