"""One checkpoint -> the bytes that a file holds for it, at their places."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ensexport.batching.examples import find_example
from ensexport.batching.weights import PackedWeight
from ensexport.errors import ArtifactError, EnsexportError, StackError
from ensexport.members import Members
from ensexport.members.member import member_label
from ensexport.recipe.weights import WeightRecipe
from ensexport.spec import TensorSpec
from ensexport.stacking.baseline import run_member
from ensexport.stacking.state import named_tensors
from ensexport.swapping.contents import Contents


@dataclass(frozen=True)
class Patch:
    """A run of bytes of one packed weight.

    Attributes:
        weight: Its name.
        offset: Where among the weight's bytes the run begins.
        values: The bytes.
    """

    weight: str
    offset: int
    values: memoryview


@dataclass(frozen=True)
class NewMember:
    """The checkpoint that goes into a file.

    Attributes:
        members: It alone, as `load_members` returned it.
        module: Built, its buffers filled.
        index: The member whose place it takes.
    """

    members: Members
    module: nn.Module
    index: int

    @property
    def label(self) -> str:
        """How messages name it."""
        member = self.members[0]
        return member_label(self.index, member.path, member.part)


def build_member(members: Members, specs: Sequence[TensorSpec], recipe: WeightRecipe, member_index: int) -> NewMember:
    """Build the checkpoint's network, as packing does.

    Args:
        members: The checkpoint alone, with its architecture.
        specs: The inputs as one member sees them.
        recipe: Of the file.
        member_index: The member whose place it takes.

    Raises:
        EnsexportError: The architecture does not take the weights or the inputs.
    """
    module = members.build(0)
    if recipe.fills_buffers:
        run_member(module, find_example(members.build(0), specs).feed)
    return NewMember(members, module, member_index)


def make_patches(contents: Contents, new: NewMember) -> list[Patch]:
    """Compute the member's share of a file's weights, with the graph that packed the others.

    Args:
        contents: The file.
        new: The checkpoint.

    Raises:
        StackError: The checkpoint does not fit the members in the file, or differs in what they have in common.
        WeightRangeError: A weight is beyond the range of the file's dtype.
        ArtifactError: The recipe cannot be run.
    """
    recipe, n_members = contents.recipe, contents.n_members
    state = _fitting(recipe, named_tensors(new.module), new)
    patches: list[Patch] = []

    def is_common(weight: PackedWeight) -> bool:
        return weight.kind == "shared" and n_members > 1

    def takes(weight: PackedWeight) -> bool:
        return is_common(weight) or weight.place(new.index) is not None

    try:
        for weight, values in recipe.program.finished(state, new.index, takes, recipe.wanted):
            if len(values) != torch.Size(weight.piece_shape).numel() * weight.dtype.itemsize:
                raise ArtifactError(
                    f"cannot use '{contents.path}': its recipe makes {len(values)} bytes for '{weight.name}', and "
                    f"there is room for another number.",
                    hint="The file is damaged: pack again.",
                )
            if is_common(weight):
                _check_common(contents, weight, values, new)
            else:
                patches.append(Patch(weight.name, weight.place(new.index) or 0, values))
    except (EnsexportError, MemoryError):
        raise
    except Exception as error:
        raise ArtifactError(
            f"cannot use '{contents.path}': its recipe cannot be run: {' '.join(str(error).split())[:200]}",
            hint="The file is damaged: pack again.",
        ) from error
    return patches


def _fitting(recipe: WeightRecipe, state: Mapping[str, torch.Tensor], new: NewMember) -> Mapping[str, torch.Tensor]:
    """The tensors that are read."""
    placeholders = [node for node in recipe.program.graph.nodes if node.op == "placeholder"]
    values = {name: node.meta["val"] for name, node in zip(recipe.program.leaves, placeholders, strict=True)}
    found: dict[str, torch.Tensor] = {}
    for name, dtype in recipe.dtypes.items():
        tensor, shape = state.get(name), tuple(values[name].shape)
        if tensor is None or tuple(tensor.shape) != shape:
            got = "no such tensor" if tensor is None else str(tuple(tensor.shape))
            raise StackError(
                f"cannot swap '{name}': expected shape {shape} as in the file, got {got} in {new.label}.",
                hint="Give a checkpoint of the architecture that was packed, and its --model-args.",
                tensor=name,
            )
        if tensor.dtype != dtype:
            raise StackError(
                f"cannot swap '{name}': expected {_short(dtype)} as in the members that were packed, got "
                f"{_short(tensor.dtype)} in {new.label}.",
                hint="Save the checkpoint in that dtype, or pack again.",
                tensor=name,
            )
        found[name] = tensor
    return found


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _check_common(contents: Contents, weight: PackedWeight, values: memoryview, new: NewMember) -> None:
    kept = contents.shared_bytes(weight)
    if kept is not None and kept != values:
        raise StackError(
            f"cannot swap member {new.index}: '{weight.name}' was equal in all members and is kept once for all, and "
            f"{new.label} has another value for it.",
            hint="Pack again with all checkpoints.",
            tensor=weight.name,
        )
