"""Checkpoint files -> members: read one at a time, compared with each other and with the architecture.

What `load_members` returns is known to fit on one member axis; later stages need not look again.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from ensexport.errors import (
    CheckpointError,
    InputRefusedError,
    NonFiniteWeightsError,
    NoWeightsError,
    StackError,
    UsageError,
)
from ensexport.members.agreement import check_states_agree
from ensexport.members.architecture import ModelSource, resolve_architecture
from ensexport.members.checkpoint import Ledger
from ensexport.members.discovery import Discovery, Source, find_checkpoints
from ensexport.members.equality import EqualTensors
from ensexport.members.fitting import check_fit, check_ties, read_blueprint
from ensexport.members.libraries import OWN_NAME, own_architecture
from ensexport.members.member import Member, Members, member_label
from ensexport.members.network_config import check_configs_agree
from ensexport.members.outliers import Summary, find_outliers, summarise
from ensexport.members.reader import Reader, members_text
from ensexport.members.reading import Checkpoint, open_checkpoint
from ensexport.members.selection import NO_SELECTION, Selection
from ensexport.members.tensors import find_nonfinite, weights_digest
from ensexport.members.trust import NO_TRUST, Trust
from ensexport.members.widening import widened
from ensexport.members.wording import join_some, show_path
from ensexport.spec import SkippedFile

Key = TypeVar("Key", bound=Hashable)
Progress = Callable[[str, int, int], None]
"""Called as `(path, done, total)` after each checkpoint that was read, in bytes."""


def load_members(
    paths: str | Path | Sequence[str | Path],
    model: ModelSource | None = None,
    *,
    model_args: Mapping[str, Any] | None = None,
    base_dir: str | Path | None = None,
    selection: Selection = NO_SELECTION,
    trust: Trust = NO_TRUST,
    allow_nonfinite: bool = False,
    any_float: bool = False,
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
        any_float: Take members that were saved in different dtypes, each tensor in the widest, with a warning.
        on_progress: Called as `(path, done, total)` after each checkpoint, in bytes.

    Returns:
        The members in order. Their weights stay in the files and are read again, a member at a time, when needed.

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
    ledger, base = Ledger(), Path.cwd()
    if model == OWN_NAME:
        model, said = read_own_architecture(found.sources, selection, trust, ledger)
        model_args = said | dict(model_args or {})
    architecture = None if model is None else resolve_architecture(model, model_args, base_dir)
    blueprint = None if architecture is None else read_blueprint(architecture)
    intake = _Intake(Reader(selection, trust, ledger, blueprint, base), allow_nonfinite=allow_nonfinite)
    skipped = intake.read_all(found, on_progress)
    members = intake.members
    intake.raise_problems()
    check_configs_agree([member.label for member in members], [member.config for member in members])
    check_states_agree([(member.label, member.shapes) for member in members], any_float=any_float)
    members, mixed = widened(members) if any_float else (members, ())
    if blueprint is not None:
        check_fit(members[0].label, members[0].shapes, blueprint)
        if intake.untied is not None:
            raise intake.untied
    outliers = find_outliers(intake.summaries, [member.label for member in members])
    warnings = [
        *found.warnings,
        *intake.warnings(),
        *mixed,
        *find_repeats(members),
        *(outlier.text for outlier in outliers),
    ]
    return Members(
        members, architecture=architecture, skipped=skipped, warnings=tuple(warnings), equal=intake.equal.names
    )


def read_own_architecture(
    sources: Sequence[Source], selection: Selection, trust: Trust, ledger: Ledger
) -> tuple[str, dict[str, Any]]:
    """Read what timm's checkpoints say their network is; those that cannot be read say nothing."""
    origins = []
    for index, source in enumerate(sources):
        try:
            checkpoint = open_checkpoint(source, selection=selection, trust=trust, ledger=ledger)
        except InputRefusedError:
            continue  # reported in its place when the members are read
        origins.append((member_label(index, str(source.path)), checkpoint.origin))
    return own_architecture(origins)


class _Intake:
    """Reads checkpoints one at a time; of each member it keeps what `Members` and the comparisons need."""

    def __init__(self, reader: Reader, *, allow_nonfinite: bool) -> None:
        self._reader = reader
        self._allow_nonfinite = allow_nonfinite
        self._pool = ThreadPoolExecutor(1)  # digests, beside what else is looked at
        self._files: list[tuple[str, Checkpoint]] = []
        self._unsplit: StackError | None = None
        self._nonfinite: list[NonFiniteWeightsError] = []
        self.members: list[Member] = []
        self.summaries: list[Summary] = []
        self.untied: StackError | None = None
        self.equal = EqualTensors()

    def read_all(self, found: Discovery, on_progress: Progress | None) -> tuple[SkippedFile, ...]:
        """Read every checkpoint that was found; returns what was skipped.

        One without weights is skipped, unless it was named or is the only one.
        """
        skipped = list(found.skipped)
        refused: CheckpointError | None = None
        sizes = [source.size_bytes() for source in found.sources]
        for number, source in enumerate(found.sources, start=1):
            try:
                checkpoint = self._reader.open(source)
                self._files.append((str(source.path), checkpoint.without_values()))
                self._add(source, checkpoint)
            except NoWeightsError as error:
                if source.is_explicit:
                    raise
                refused = refused or error
                skipped.append(SkippedFile(str(source.path), no_weights_reason(error)))
            if on_progress is not None:
                on_progress(str(source.path), sum(sizes[:number]), sum(sizes))
        if refused is not None and not self._files:
            raise refused
        return tuple(skipped)

    def _add(self, source: Source, checkpoint: Checkpoint) -> None:
        """Note the members of one checkpoint. What is wrong with them waits until all files were read."""
        if self._unsplit is not None:
            return
        try:
            found = self._reader.members_of(source, checkpoint, start=len(self.members))
        except StackError as error:
            self._unsplit = error
            return
        for member, state in found:
            digest = self._pool.submit(weights_digest, state)
            names = find_nonfinite(state)
            if names:
                self._nonfinite.append(nonfinite_error(member, names))
            if self._reader.blueprint is not None and self.untied is None:
                try:
                    check_ties(member.label, state, self._reader.blueprint)
                except StackError as error:
                    self.untied = error
            self.summaries.append(summarise(state))
            self.equal.add(state)
            self.members.append(replace(member, weights_sha256=digest.result()))
            del state, digest  # before the next one is read

    def raise_problems(self) -> None:
        """Refuse what cannot be told apart, and NaN or Inf unless they are allowed."""
        if self._unsplit is not None:
            raise self._unsplit
        if self._nonfinite and not self._allow_nonfinite:
            raise self._nonfinite[0]

    def warnings(self) -> list[str]:
        """What was chosen, dropped, and taken though it is not finite."""
        return [*describe_choices(self._files), *self._reader.notes(), *(error.message for error in self._nonfinite)]


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
