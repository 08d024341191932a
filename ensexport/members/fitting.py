"""Checkpoints against the architecture: which names, shapes and ties it has, and which tensors no file holds.

A blueprint is taken from one build and then used for all members, so that each costs no further build.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch.nn.parameter import is_lazy

from ensexport.errors import StackError
from ensexport.members.agreement import describe_tensor
from ensexport.members.architecture import Architecture
from ensexport.members.containers import strip_prefix
from ensexport.members.rebuilding import Ties, tensors_outside, tied_names
from ensexport.members.tensors import same_bytes

_MAX_SHOWN = 5
AVERAGING_COUNTERS = ("n_averaged", "steps")  # buffers of torch's AveragedModel and mmengine's BaseAveragedModel
BATCH_COUNTER = "num_batches_tracked"  # BatchNorm counts its training batches in this buffer


@dataclass(frozen=True)
class Blueprint:
    """What one build of an architecture expects to be loaded.

    Attributes:
        name: The architecture's name.
        shapes: Each name of its state dict, with its shape; None where the shape is not known yet.
        ties: Groups of names that stand for one and the same tensor.
    """

    name: str
    shapes: dict[str, tuple[int, ...] | None]
    ties: Ties


@dataclass(frozen=True)
class Fitted:
    """A state dict with the names of the architecture.

    Attributes:
        state: What is to be loaded.
        stripped_prefix: What was taken off the names in the end.
        dropped: Counters that the architecture does not have.
    """

    state: dict[str, torch.Tensor]
    stripped_prefix: str | None
    dropped: tuple[str, ...]


def read_blueprint(architecture: Architecture) -> Blueprint:
    """Build the architecture and note what it expects.

    Raises:
        ArchitectureError: It cannot be built.
        StackError: A tensor that is in no state dict differs between two builds, so that the members, who had
            yet another one in training, could not be reproduced.
    """
    module = architecture.build()
    unsaved = tensors_outside(module, sharing=False)
    if unsaved:
        again = tensors_outside(architecture.build(), sharing=False)
        for name, tensor in unsaved.items():
            if name not in again or not same_bytes(tensor, again[name]):
                raise StackError(
                    f"the members cannot be reproduced: {name!r} of {architecture.name!r} is in no state "
                    "dict, and two builds of the architecture give it different values.",
                    hint="Register it as a persistent buffer and train again, or build it from a fixed seed.",
                )
    state = {name: value for name, value in module.state_dict().items() if isinstance(value, torch.Tensor)}
    shapes = {name: None if is_lazy(value) else tuple(value.shape) for name, value in state.items()}
    groups = (tuple(name for name in group if name in shapes) for group in tied_names(module))
    return Blueprint(architecture.name, shapes, tuple(group for group in groups if len(group) > 1))


def fit_state(state: Mapping[str, torch.Tensor], stripped_prefix: str | None, blueprint: Blueprint) -> Fitted:
    """Give a state dict the architecture's names, as far as that loses nothing but counters.

    A prefix that the architecture has itself is put back; a name that safetensors left out because it is tied
    to another is filled in; `n_averaged` and `num_batches_tracked` go where the architecture has none.
    """
    known = blueprint.shapes
    result = dict(state)
    prefix = stripped_prefix or ""
    if prefix and known and all(name.startswith(prefix) for name in known):
        result = {prefix + name: tensor for name, tensor in result.items()}
        prefix = ""
    dropped = [name for name in result if name in AVERAGING_COUNTERS and name not in known]
    for name in dropped:
        del result[name]
    stripped, found = strip_prefix(result)
    if found and not all(name.startswith(found) for name in known):
        result, prefix = stripped, prefix + found
    counters = [name for name in result if name.endswith(BATCH_COUNTER) and name not in known]
    for name in counters:
        del result[name]
    for group in blueprint.ties:
        source = next((result[name] for name in group if name in result), None)
        if source is not None:
            result.update({name: source for name in group if name not in result})
    return Fitted(result, prefix or None, (*dropped, *counters))


def check_fit(label: str, state: Mapping[str, torch.Tensor], blueprint: Blueprint) -> None:
    """Refuse a state dict that the architecture cannot load exactly. Dtypes may differ.

    Args:
        label: The member, for example `member 0 (runs/s0.pt)`.
        state: Its tensors, as `fit_state` returned them.
        blueprint: What the architecture expects.

    Raises:
        StackError: A name is missing or unknown, or a shape differs: up to five, and how many more.
    """
    texts = list(_misfits(label, state, blueprint.shapes))
    if texts:
        more = f"; and {len(texts) - _MAX_SHOWN} more" if len(texts) > _MAX_SHOWN else ""
        raise StackError(
            f"the checkpoints do not fit the architecture {blueprint.name!r}: {'; '.join(texts[:_MAX_SHOWN])}{more}.",
            hint="Give the class and the arguments used in training (--model, --model-args).",
            n_differences=len(texts),
        )


def check_ties(label: str, state: Mapping[str, torch.Tensor], blueprint: Blueprint) -> None:
    """Refuse a state dict that holds different values for names the architecture ties together.

    Raises:
        StackError: It does; names both tensors and the member.
    """
    for first, *others in blueprint.ties:
        for other in others:
            if first in state and other in state and not same_bytes(state[first], state[other]):
                raise StackError(
                    f"the checkpoints do not fit the architecture {blueprint.name!r}: {first!r} and "
                    f"{other!r} are one tied tensor there, but differ in {label}.",
                    hint="Use the architecture the members were trained with.",
                )


def _misfits(
    label: str, state: Mapping[str, torch.Tensor], shapes: Mapping[str, tuple[int, ...] | None]
) -> Iterator[str]:
    for name, shape in shapes.items():
        if name not in state:
            what = "" if shape is None else f" (shape {shape})"
            yield f"{name!r} is in the architecture{what}, missing in {label}"
    for name, tensor in state.items():
        if name not in shapes:
            yield f"{name!r} is missing in the architecture, in {label} it has {describe_tensor(tensor)}"
    for name, shape in shapes.items():
        got = tuple(state[name].shape) if name in state else shape
        if shape is not None and got != shape:
            yield f"{name!r}: expected shape {shape} as in the architecture, got {got} in {label}"
