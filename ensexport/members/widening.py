"""Members that were saved in different dtypes, brought to one: the widest of each tensor, so that nothing is lost."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch

from ensexport.members.member import Member, Members
from ensexport.members.reader import members_text
from ensexport.members.wording import join_some

State = dict[str, torch.Tensor]
Dtypes = Mapping[str, torch.dtype]


def widened(members: Sequence[Member]) -> tuple[list[Member], tuple[str, ...]]:
    """Return the members with tensors of one dtype each, and what to warn of.

    Args:
        members: Members of equal names and shapes.

    Returns:
        The members; where tensors of floats differ in dtype, they are read in the one that holds all of them (float32
        for float16 and bfloat16). Digests are still those of the files.
    """
    wanted = _widest(members)
    done, texts = [], dict[str, list[int]]()
    for member in members:
        casts = {name: dtype for name, dtype in wanted.items() if member.shapes[name].dtype != dtype}
        if casts:
            kinds = sorted({f"{_short(member.shapes[name].dtype)} as {_short(dtype)}" for name, dtype in casts.items()})
            texts.setdefault(join_some(kinds), []).append(member.index)
            saved = {name: member.shapes[name].dtype for name in casts}
            shapes, read = _cast(dict(member.shapes), casts), functools.partial(_read, member.read, casts)
            member = replace(member, shapes=shapes, read=read, saved_dtypes=saved)  # noqa: PLW2901 - the member, widened
        done.append(member)
    warnings = [f"{members_text(group)}: {kinds}, the dtype of others (--dtype)." for kinds, group in texts.items()]
    return done, tuple(warnings)


def as_wide(members: Members, dtypes: Dtypes) -> Members:
    """Return members with their tensors of floats in the dtypes that others have, where those are wider.

    Args:
        members: As `load_members` returned them.
        dtypes: Name of a tensor -> dtype; a tensor that it would not fit keeps its own.
    """
    done = []
    for member in members:
        known = {id(tensor): dtypes[name] for name, tensor in member.shapes.items() if name in dtypes}  # tied ones too
        casts = {
            name: known[id(tensor)]
            for name, tensor in member.shapes.items()
            if tensor.is_floating_point() and id(tensor) in known and tensor.dtype != known[id(tensor)]
        }
        casts = {n: kind for n, kind in casts.items() if torch.promote_types(member.shapes[n].dtype, kind) == kind}
        saved = {name: member.shapes[name].dtype for name in casts}
        shapes, read = _cast(dict(member.shapes), casts), functools.partial(_read, member.read, casts)
        done.append(replace(member, shapes=shapes, read=read, saved_dtypes=saved) if casts else member)
    return Members(
        done,
        architecture=members.architecture,
        skipped=members.skipped,
        warnings=members.warnings,
        equal=members.equal,
    )


def saved_dtypes_json(member: Member) -> dict[str, dict[str, str]]:
    """The entry of a member's record that says in which dtypes its file has tensors that are read in others, if any."""
    kinds = {name: _short(dtype) for name, dtype in sorted(member.saved_dtypes.items())}
    return {"saved_dtypes": kinds} if kinds else {}


def _widest(members: Sequence[Member]) -> dict[str, torch.dtype]:
    """The dtype that holds each tensor of floats in all members."""
    wanted = {name: tensor.dtype for name, tensor in members[0].shapes.items() if tensor.is_floating_point()}
    for shapes in {id(member.shapes): member.shapes for member in members}.values():
        for name, dtype in wanted.items():
            wanted[name] = torch.promote_types(dtype, shapes[name].dtype)
    return wanted


def _read(read: Callable[[], State], casts: Dtypes) -> State:
    return _cast(read(), casts)


def _cast(state: State, casts: Dtypes) -> State:
    """Tensors in other dtypes; those that are one object stay one."""
    made: dict[tuple[int, torch.dtype], torch.Tensor] = {}
    result = {}
    for name, tensor in state.items():
        dtype = casts.get(name, tensor.dtype)
        result[name] = made.setdefault((id(tensor), dtype), tensor if tensor.dtype == dtype else tensor.to(dtype))
    return result


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
