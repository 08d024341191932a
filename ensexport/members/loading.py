"""Checkpoint files -> members: read, compared with each other and with the architecture, ready to be built.

What `load_members` returns is known to fit on one member axis; later stages need not look again.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from ensexport.errors import CheckpointError, NonFiniteWeightsError, NoWeightsError, UsageError
from ensexport.members.agreement import check_states_agree
from ensexport.members.architecture import ModelSource, resolve_architecture
from ensexport.members.discovery import Discovery, find_checkpoints
from ensexport.members.fitting import Blueprint, Fitted, check_fit, check_ties, read_blueprint
from ensexport.members.libraries import OWN_NAME, own_architecture
from ensexport.members.member import Member, Members, member_label
from ensexport.members.network_config import check_configs_agree
from ensexport.members.outliers import find_outliers, summarise
from ensexport.members.parts import Part, split_state
from ensexport.members.reading import Checkpoint, read_checkpoint
from ensexport.members.selection import NO_SELECTION, Selection
from ensexport.members.tensors import find_nonfinite, weights_digest
from ensexport.members.trust import NO_TRUST, Trust
from ensexport.members.wording import join_numbers, join_some, quote_path, show_path
from ensexport.spec import SkippedFile

Key = TypeVar("Key", bound=Hashable)
Progress = Callable[[str, int, int], None]
"""Called as `(path, done, total)` after each file that was read."""


def load_members(
    paths: str | Path | Sequence[str | Path],
    model: ModelSource | None = None,
    *,
    model_args: Mapping[str, Any] | None = None,
    base_dir: str | Path | None = None,
    selection: Selection = NO_SELECTION,
    trust: Trust = NO_TRUST,
    allow_nonfinite: bool = False,
    on_progress: Progress | None = None,
) -> Members:
    """Read the checkpoints of one ensemble and make sure that they fit together.

    Args:
        paths: Folders, files or globs, or one of them; see `find_checkpoints` for what is taken, in which order.
        model: The architecture, see `resolve_architecture`; `timm` alone takes the name that the checkpoints of
            timm's train.py hold. Without it the members can be compared and stacked but not built, and a file is
            one member.
        model_args: Keyword arguments of the architecture.
        base_dir: What relative paths in `model` are relative to; None means the current directory.
        selection: Where in the files the weights lie, as far as the user says so.
        trust: What may run code; by default nothing.
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
    files, skipped = _read_all(found, selection, trust, on_progress)
    warnings = [*found.warnings, *describe_choices(files)]
    architecture = blueprint = None
    if model == OWN_NAME:
        labelled = [(member_label(index, path), file.origin) for index, (path, file) in enumerate(files)]
        model, said = own_architecture(labelled)
        model_args = said | dict(model_args or {})
    if model is not None:
        architecture = resolve_architecture(model, model_args, base_dir)
        blueprint = read_blueprint(architecture)
    members, notes = split_members(files, blueprint)
    warnings += notes
    warnings += _check_finite(members, allow_nonfinite=allow_nonfinite)
    members = [replace(member, weights_sha256=weights_digest(member.state)) for member in members]
    check_configs_agree([member.label for member in members], [member.config for member in members])
    check_states_agree([(member.label, member.state) for member in members])
    if blueprint is not None:
        check_fit(members[0].label, members[0].state, blueprint)
        for member in members:
            check_ties(member.label, member.state, blueprint)
    warnings += find_repeats(members)
    summaries = [summarise(member.state) for member in members]
    warnings += [outlier.text for outlier in find_outliers(summaries, [member.label for member in members])]
    return Members(members, architecture=architecture, skipped=skipped, warnings=tuple(warnings))


def _read_all(
    found: Discovery, selection: Selection, trust: Trust, on_progress: Progress | None
) -> tuple[list[tuple[str, Checkpoint]], tuple[SkippedFile, ...]]:
    """Read every checkpoint that was found. One without weights is skipped, unless it was named or is the only one."""
    files: list[tuple[str, Checkpoint]] = []
    skipped = list(found.skipped)
    refused: CheckpointError | None = None
    for done, source in enumerate(found.sources, start=1):
        try:
            files.append((str(source.path), read_checkpoint(source, selection=selection, trust=trust)))
        except NoWeightsError as error:
            if source.is_explicit:
                raise
            refused = refused or error
            skipped.append(SkippedFile(str(source.path), no_weights_reason(error)))
        if on_progress is not None:
            on_progress(str(source.path), done, len(found.sources))
    if refused is not None and not files:
        raise refused
    return files, tuple(skipped)


def no_weights_reason(error: NoWeightsError) -> str:
    """Why a file that was found, and not named, is skipped: the error's words without the path."""
    return error.message.partition(" holds ")[2].rstrip(".") or error.message


def describe_choices(files: Sequence[tuple[str, Checkpoint]]) -> list[str]:
    """Say which of several sets of weights was taken."""
    chosen = {
        index: (file.container_key, file.weights, file.others) for index, (_, file) in enumerate(files) if file.others
    }
    texts = []
    for (key, weights, others), group in group_by(chosen):
        kind = {"ema": "averaged ", "raw": "raw "}.get(weights or "", "")
        texts.append(
            f"{members_text(group)} {'holds' if len(group) == 1 else 'hold'} weights under several keys: the {kind}"
            f"ones under {key!r} are taken, not {join_some([repr(other) for other in others])} (--weights, --key)."
        )
    return texts


def split_members(
    files: Sequence[tuple[str, Checkpoint]], blueprint: Blueprint | None, *, start: int = 0
) -> tuple[list[Member], list[str]]:
    """Find the members in files: with the architecture's names, and all of those that one file holds.

    Args:
        files: Each path with what it held.
        blueprint: What the architecture expects; None if it is not known: a file is one member then.
        start: Index of the first member.

    Returns:
        The members, without the digest of their weights; and what was dropped, as warnings.

    Raises:
        StackError: See `split_state`.
    """
    members: list[Member] = []
    counters: dict[int, tuple[str, ...]] = {}
    others: dict[int, tuple[str, ...]] = {}
    for path, file in files:
        for part in _parts(path, file, blueprint):
            index = start + len(members)
            counters[index], others[index] = part.fitted.dropped, (*file.left_out, *part.dropped)
            members.append(
                Member(
                    index=index,
                    path=path,
                    sha256=file.sha256,
                    weights_sha256="",
                    container_key=file.container_key,
                    stripped_prefix=part.fitted.stripped_prefix,
                    state=part.fitted.state,
                    origin=file.origin,
                    part=part.index,
                    weights=file.weights,
                    config=file.config,
                )
            )
    name = blueprint.name if blueprint else ""
    return members, [
        *_dropped_texts(counters, f"counters that {name!r} has not."),
        *_dropped_texts(others, "no part of the network."),
    ]


def _parts(path: str, file: Checkpoint, blueprint: Blueprint | None) -> list[Part]:
    if blueprint is None:
        return [Part(Fitted(file.state, file.stripped_prefix, ()), None)]
    return split_state(quote_path(path), file.state, file.stripped_prefix, blueprint)


def _dropped_texts(dropped: Mapping[int, tuple[str, ...]], what: str) -> list[str]:
    return [
        f"dropped {join_some([repr(name) for name in names])} from {members_text(group)}: {what}"
        for names, group in group_by(dropped)
        if names
    ]


def _check_finite(members: Sequence[Member], *, allow_nonfinite: bool) -> list[str]:
    warnings = []
    for member in members:
        names = find_nonfinite(member.state)
        if not names:
            continue
        error = nonfinite_error(member, names)
        if not allow_nonfinite:
            raise error
        warnings.append(error.message)
    return warnings


def nonfinite_error(member: Member, names: list[str]) -> NonFiniteWeightsError:
    """Say which tensors of a member hold NaN or Inf."""
    return NonFiniteWeightsError(
        f"{member.label} holds NaN or Inf in {join_some([repr(name) for name in names])}.",
        hint="Leave it out, for it spoils every mean; or take it as it is (--allow-nonfinite).",
        member_index=member.index,
        tensors=names,
    )


def find_repeats(members: Sequence[Member]) -> list[str]:
    """Say which members are the same file, and which others hold the same weights."""
    warnings = []
    files = {member.index: (Path(member.path).resolve(), member.part) for member in members}
    for _, group in group_by(files):
        if len(group) > 1:
            warnings.append(
                f"{members_text(group)} are the same file, {show_path(members[group[0]].path)}: "
                "it counts more than once."
            )
    once = {member.index: member.weights_sha256 for member in members}
    for _, group in group_by(once):
        if len({files[index] for index in group}) > 1:
            warnings.append(f"{members_text(group)} hold identical weights: leave all but one out, unless it is meant.")
    return warnings


def group_by(keys: Mapping[int, Key]) -> list[tuple[Key, list[int]]]:
    """Gather the members (by index) that have the same key."""
    groups: dict[Key, list[int]] = {}
    for index, key in keys.items():
        groups.setdefault(key, []).append(index)
    return list(groups.items())


def members_text(indices: Sequence[int]) -> str:
    """`member 3`, or `members 0, 3 and 7`."""
    return f"{'member' if len(indices) == 1 else 'members'} {join_numbers(indices)}"
