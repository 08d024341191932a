"""Checkpoint files -> members: read, compared with each other and with the architecture, ready to be built.

What `load_members` returns is known to fit on one member axis; later stages need not look again.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, overload

import torch
from torch import nn

from ensexport.errors import NonFiniteWeightsError, StackError, UsageError
from ensexport.members.agreement import check_states_agree
from ensexport.members.architecture import Architecture, ModelSource, resolve_architecture
from ensexport.members.checkpoint import read_checkpoint
from ensexport.members.containers import Origin
from ensexport.members.discovery import find_checkpoints
from ensexport.members.fitting import Blueprint, check_fit, check_ties, fit_state, read_blueprint
from ensexport.members.libraries import OWN_NAME, own_architecture
from ensexport.members.rebuilding import load_exactly
from ensexport.members.tensors import find_nonfinite, weights_digest
from ensexport.members.wording import join_numbers, join_some, show_path
from ensexport.spec import SkippedFile

Key = TypeVar("Key", bound=Hashable)
Progress = Callable[[str, int, int], None]
"""Called as `(path, done, total)` after each file that was read."""


@dataclass(frozen=True)
class Member:
    """One trained network of the set.

    Attributes:
        index: Its place on the member axis, from 0.
        path: The file, as the user gave it.
        sha256: Digest of the file's bytes.
        weights_sha256: Digest of `state` alone, the same for every file format.
        container_key: The key the state dict lay under; None if it stood alone.
        stripped_prefix: What was taken off every name; None if nothing was.
        state: Its tensors by name: dense, contiguous, on the CPU.
        origin: What the file says its network is; None if it says nothing.
    """

    index: int
    path: str
    sha256: str
    weights_sha256: str
    container_key: str | None
    stripped_prefix: str | None
    state: dict[str, torch.Tensor]
    origin: Origin | None = None

    @property
    def label(self) -> str:
        """How messages name it: `member 3 (runs/s3.pt)`."""
        return f"member {self.index} ({show_path(self.path)})"


class Members(Sequence[Member]):
    """The members of one ensemble, in order, with what is known about the whole set.

    Args:
        members: At least one.
        architecture: What builds them; None if only the weights are known.
        skipped: What was seen in the checkpoint folders and not taken.
        warnings: What the user should know, one text each.
    """

    def __init__(
        self,
        members: Iterable[Member],
        *,
        architecture: Architecture | None = None,
        skipped: tuple[SkippedFile, ...] = (),
        warnings: tuple[str, ...] = (),
    ) -> None:
        self._members = tuple(members)
        self.architecture = architecture
        self.skipped = skipped
        self.warnings = warnings

    @overload
    def __getitem__(self, index: int) -> Member: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Member, ...]: ...
    def __getitem__(self, index: int | slice) -> Member | tuple[Member, ...]:
        return self._members[index]

    def __len__(self) -> int:
        return len(self._members)

    def __repr__(self) -> str:
        return f"Members(n_members={len(self)}, architecture={self.architecture and self.architecture.name!r})"

    @property
    def labels(self) -> tuple[str, ...]:
        """How messages name the members, in order."""
        return tuple(member.label for member in self)

    def build(self, member_index: int) -> nn.Module:
        """Build one member: its own weights in their own dtype, eval mode, no gradients.

        The module's tensors are the member's own, not copies: do not write to them.

        Raises:
            UsageError: No architecture was given, or there is no such member.
            ArchitectureError: The architecture cannot be built.
            StackError: The module does not take the weights.
        """
        if self.architecture is None:
            raise UsageError(
                "cannot build a member: only weights were loaded, no architecture.",
                hint="Give --model (model=...).",
            )
        if not 0 <= member_index < len(self):
            raise UsageError(f"there is no member {member_index}: expected 0 to {len(self) - 1}.")
        member = self[member_index]
        module = self.architecture.build()
        try:
            load_exactly(module, member.state)
        except StackError as error:
            raise StackError(
                f"cannot build {member.label} with {self.architecture.name!r}: {error.message}",
                hint=error.hint,
            ) from error
        return module


def load_members(
    paths: str | Path | Sequence[str | Path],
    model: ModelSource | None = None,
    *,
    model_args: Mapping[str, Any] | None = None,
    base_dir: str | Path | None = None,
    allow_nonfinite: bool = False,
    on_progress: Progress | None = None,
) -> Members:
    """Read the checkpoints of one ensemble and make sure that they fit together.

    Args:
        paths: Folders, files or globs, or one of them; see `find_checkpoints` for the order.
        model: The architecture, see `resolve_architecture`; `timm` alone takes the name that the checkpoints of
            timm's train.py hold. Without it the members can be compared and stacked but not built.
        model_args: Keyword arguments of the architecture.
        base_dir: What relative paths in `model` are relative to; None means the current directory.
        allow_nonfinite: Take members that hold NaN or Inf, with a warning.
        on_progress: Called as `(path, done, total)` after each file.

    Returns:
        The members in order. All tensors are in memory.

    Raises:
        UsageError: A path does not exist, `model` has an unknown form, or arguments are given without it.
        InputRefusedError: A file was refused: missing, damaged, unsafe, or holds NaN or Inf.
        ArchitectureError: The architecture cannot be imported or built.
        StackError: Members differ in names, shapes or dtypes, do not fit the architecture, or could not be
            reproduced by it; names tensor, members and both values.
    """
    if model is None and model_args:
        raise UsageError(f"arguments ({', '.join(model_args)}) are given without a model.", hint="Give --model.")
    found = find_checkpoints([paths] if isinstance(paths, str | Path) else list(paths))
    members = [_read_member(index, path, len(found.files), on_progress) for index, path in enumerate(found.files)]
    warnings: list[str] = []
    architecture = blueprint = None
    if model == OWN_NAME:
        model, said = own_architecture([(member.label, member.origin) for member in members])
        model_args = said | dict(model_args or {})
    if model is not None:
        architecture = resolve_architecture(model, model_args, base_dir)
        blueprint = read_blueprint(architecture)
        members, notes = _fit_members(members, blueprint)
        warnings += notes
    warnings += _check_finite(members, allow_nonfinite=allow_nonfinite)
    members = [replace(member, weights_sha256=weights_digest(member.state)) for member in members]
    check_states_agree([(member.label, member.state) for member in members])
    if blueprint is not None:
        check_fit(members[0].label, members[0].state, blueprint)
        for member in members:
            check_ties(member.label, member.state, blueprint)
    warnings += _find_repeats(members)
    return Members(members, architecture=architecture, skipped=found.skipped, warnings=tuple(warnings))


def _read_member(index: int, path: Path, total: int, on_progress: Progress | None) -> Member:
    checkpoint = read_checkpoint(path)
    if on_progress is not None:
        on_progress(str(path), index + 1, total)
    return Member(
        index=index,
        path=str(path),
        sha256=checkpoint.sha256,
        weights_sha256="",
        container_key=checkpoint.container_key,
        stripped_prefix=checkpoint.stripped_prefix,
        state=checkpoint.state,
        origin=checkpoint.origin,
    )


def _fit_members(members: Sequence[Member], blueprint: Blueprint) -> tuple[list[Member], list[str]]:
    """Give all members the architecture's names, and say which counters were dropped."""
    fitted = [fit_state(member.state, member.stripped_prefix, blueprint) for member in members]
    warnings = []
    for names, group in _group({member.index: fit.dropped for member, fit in zip(members, fitted, strict=True)}):
        if names:
            shown = join_some([repr(name) for name in names])
            warnings.append(f"dropped {shown} from {_members_text(group)}: counters that {blueprint.name!r} has not.")
    kept = [
        replace(member, state=fit.state, stripped_prefix=fit.stripped_prefix)
        for member, fit in zip(members, fitted, strict=True)
    ]
    return kept, warnings


def _check_finite(members: Sequence[Member], *, allow_nonfinite: bool) -> list[str]:
    warnings = []
    for member in members:
        names = find_nonfinite(member.state)
        if not names:
            continue
        text = f"{member.label} holds NaN or Inf in {join_some([repr(name) for name in names])}."
        if not allow_nonfinite:
            raise NonFiniteWeightsError(
                text,
                hint="Leave it out, for it spoils every mean; or allow it (allow_nonfinite).",
                member_index=member.index,
                tensors=names,
            )
        warnings.append(text)
    return warnings


def _find_repeats(members: Sequence[Member]) -> list[str]:
    """Say which members are the same file, and which others hold the same weights."""
    warnings = []
    files = {member.index: Path(member.path).resolve() for member in members}
    for _, group in _group(files):
        if len(group) > 1:
            warnings.append(f"{_members_text(group)} are the same file, {show_path(members[group[0]].path)}.")
    once = {member.index: member.weights_sha256 for member in members}
    for _, group in _group(once):
        if len({files[index] for index in group}) > 1:
            warnings.append(f"{_members_text(group)} hold identical weights.")
    return warnings


def _group(keys: Mapping[int, Key]) -> list[tuple[Key, list[int]]]:
    groups: dict[Key, list[int]] = {}
    for index, key in keys.items():
        groups.setdefault(key, []).append(index)
    return list(groups.items())


def _members_text(indices: Sequence[int]) -> str:
    return f"{'member' if len(indices) == 1 else 'members'} {join_numbers(indices)}"
