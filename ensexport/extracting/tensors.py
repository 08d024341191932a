"""A member's own tensors, bit for bit, out of a packed file and what a package keeps beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ensexport.batching.graph_json import dtype_of_name
from ensexport.errors import LostTensorsError, MismatchError
from ensexport.extracting.packed_file import PackedFile, Pieces, reading_recipe
from ensexport.members.safetensors_file import load_safetensors
from ensexport.members.tensors import weights_digest
from ensexport.recipe.member_reading import MemberRecipe
from ensexport.recipe.state_file import Entry, StateFile


@dataclass(frozen=True)
class OwnState:
    """A member's own tensors.

    Attributes:
        tensors: By the names of its checkpoint.
        kept: How many of them the package kept apart.
        lost: Those that are nowhere, and why.
        is_proven: Were they compared with the digest of the checkpoint's weights?
    """

    tensors: Mapping[str, torch.Tensor] = field(repr=False)
    kept: int
    lost: Mapping[str, str]
    is_proven: bool


def read_state(file: PackedFile, recipe: MemberRecipe, member_index: int, *, partial: bool) -> OwnState:
    """Put a member's tensors together.

    Args:
        file: The packed file.
        recipe: Its recipe, read.
        member_index: The member.
        partial: Take what there is where tensors are lost.

    Raises:
        LostTensorsError: Some are lost, and `partial` is False.
        MismatchError: They are not those that were packed: their digest differs.
        CheckpointError: The package's file of tensors cannot be read.
    """
    found = _from_pieces(file, recipe, member_index)
    kept = {} if file.state is None else _kept(file.state, member_index, recipe.lost)
    lost = {name: why for name, why in recipe.lost.items() if name not in kept}
    if lost and not partial:
        raise _lost_error(file, member_index, lost)
    tensors = {**found, **kept}
    digest = str(file.member(member_index).get("weights_sha256", ""))
    if digest and not lost and weights_digest(tensors) != digest:
        raise MismatchError(
            f"the tensors in '{file.shown_as}' are not those that were packed as member {member_index}: expected "
            f"weights sha256 {digest[:12]}..., got {weights_digest(tensors)[:12]}....",
            hint="The file was changed after it was packed. Get it anew, or pack again.",
            member_index=member_index,
        )
    return OwnState(tensors, len(kept), lost, bool(digest) and not lost)


def write_state(path: Path, state: OwnState) -> None:
    """Write the tensors as safetensors; equal tensors give equal bytes.

    Raises:
        OSError: The system refuses.
    """
    entries = {name: Entry(tuple(tensor.shape), tensor.dtype) for name, tensor in state.tensors.items()}
    with StateFile(path, entries) as file:
        for name, tensor in state.tensors.items():
            file.put(name, tensor)


def _from_pieces(file: PackedFile, recipe: MemberRecipe, member_index: int) -> dict[str, torch.Tensor]:
    pieces = Pieces(file, recipe, member_index).read(recipe.state.graph)
    names = {weight.piece: weight.name for weight in recipe.state.packed}
    with reading_recipe(file.shown_as):
        results = {names[index]: piece for index, piece in recipe.state.pieces(pieces) if index in names}
    saved = file.member(member_index).get("saved_dtypes") or {}
    tensors = {}
    for name, source in recipe.tied.items():
        tensor = results[source]
        dtype = dtype_of_name(saved[name]) if name in saved else tensor.dtype
        tensors[name] = tensor.to(dtype).contiguous()
    return tensors


def _kept(path: Path, member_index: int, names: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Those of the lost tensors that a package keeps."""
    with path.open("rb") as file:
        tensors = load_safetensors(file, str(path), str(path), size_bytes=path.stat().st_size)
    wanted = {name: f"{member_index}.{name}" for name in names}
    return {name: tensors[key] for name, key in wanted.items() if key in tensors}


def _lost_error(file: PackedFile, member_index: int, lost: Mapping[str, str]) -> LostTensorsError:
    shown = "; ".join(f"'{name}': {why}" for name, why in list(lost.items())[:3])
    more = f"; and {len(lost) - 3} more" if len(lost) > 3 else ""
    return LostTensorsError(
        f"cannot give back all tensors of member {member_index} from '{file.shown_as}': {len(lost)} of them "
        f"{'is' if len(lost) == 1 else 'are'} not in it bit for bit ({shown}{more}).",
        hint="A package (`pack -o NAME`, without a suffix) keeps them. --partial writes the others.",
        member_index=member_index,
        lost=dict(lost),
    )
