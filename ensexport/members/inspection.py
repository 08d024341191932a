"""Look at checkpoints as `pack` would read them, and say all that is wrong with them instead of the first thing.

Only one checkpoint is in memory at a time: of each member its names, shapes, digest and norms are kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import IntEnum
from pathlib import Path
from typing import Any

import torch

from ensexport.errors import EnsexportError, InputRefusedError, NonFiniteWeightsError, NoWeightsError, StackError
from ensexport.members.agreement import check_states_agree
from ensexport.members.architecture import ModelSource, resolve_architecture
from ensexport.members.checkpoint import Ledger
from ensexport.members.differences import Differing, differing
from ensexport.members.discovery import Source, find_checkpoints
from ensexport.members.facts import Facts
from ensexport.members.fitting import check_fit, check_ties, read_blueprint
from ensexport.members.libraries import OWN_NAME
from ensexport.members.loading import (
    Progress,
    describe_choices,
    find_repeats,
    no_weights_reason,
    nonfinite_error,
    read_own_architecture,
)
from ensexport.members.member import Member
from ensexport.members.network_config import check_configs_agree
from ensexport.members.outliers import Summary, find_outliers, summarise
from ensexport.members.reader import Reader
from ensexport.members.reading import Checkpoint
from ensexport.members.scalars import Scalar
from ensexport.members.selection import NO_SELECTION, Selection
from ensexport.members.tensors import find_nonfinite, weights_digest
from ensexport.members.trust import NO_TRUST, Trust
from ensexport.spec import SkippedFile, json_number


@dataclass(frozen=True)
class InspectedMember:
    """One member, or one checkpoint that could not be read.

    Attributes:
        index: Its place among the members; None if it was refused.
        path: The file or folder.
        problem: Why `pack` would refuse it; None if it would not.
        member: The member; None if nothing could be read.
        format: See `LoadedFile`.
        size_bytes: Size of the file or files.
        note: Why it was taken rather than what lay beside it.
        facts: What the file says beside the weights.
    """

    index: int | None
    path: str
    problem: EnsexportError | None = None
    member: Member | None = None
    format: str | None = None
    size_bytes: int | None = None
    note: str = ""
    facts: Facts = field(default_factory=Facts)

    def to_dict(self) -> dict[str, Any]:
        """Return the entry of the JSON contract with what `inspect` adds to it."""
        names = ("sha256", "container_key", "stripped_prefix", "weights", "part", "weights_sha256")
        state = self.member.shapes if self.member else {}
        return {
            "index": self.index,
            "path": self.path,
            **{name: getattr(self.member, name, None) for name in names},
            "format": self.format,
            "size_bytes": self.size_bytes,
            "n_tensors": len(state),
            "n_values": sum(tensor.numel() for tensor in state.values()),
            "dtypes": sorted({str(tensor.dtype).removeprefix("torch.") for tensor in state.values()}),
            "epoch": self.facts.epoch,
            "step": self.facts.step,
            "metrics": {name: json_number(value) for name, value in self.facts.metrics.items()},
            "note": self.note,
            "problem": None if self.problem is None else self.problem.to_dict(),
        }


@dataclass(frozen=True)
class Inspection:
    """What is there to pack.

    Attributes:
        architecture: The architecture that the members were compared with; None if they were not.
        members: In order, refused checkpoints in their places.
        skipped: What was seen and not taken.
        warnings: What the user should know.
        differing: Options of the runs in which the members differ.
        problems: Why `pack` would refuse them, the first first.
    """

    architecture: str | None
    members: tuple[InspectedMember, ...]
    skipped: tuple[SkippedFile, ...]
    warnings: tuple[str, ...]
    differing: Differing
    problems: tuple[EnsexportError, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object of `inspect`, less `command` and `ok`."""
        return {
            "architecture": self.architecture,
            "members": [member.to_dict() for member in self.members],
            "skipped": [asdict(skipped) for skipped in self.skipped],
            "differing": {
                kind: {name: [json_number(value) for value in values] for name, values in found.items()}
                for kind, found in asdict(self.differing).items()
            },
            "warnings": list(self.warnings),
            "problems": [problem.to_dict() for problem in self.problems],
        }


def inspect_members(
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
) -> Inspection:
    """Read all checkpoints, one at a time, and gather what there is to say about them.

    Args:
        paths: As for `load_members`, and so are all others.
        model: Without it, what needs the architecture is not looked at: whether the weights fit, prefixes of a
            training framework, several members in one file.
        model_args: Keyword arguments of the architecture.
        base_dir: What relative paths in `model` are relative to.
        selection: Where in the files the weights lie.
        trust: What may run code.
        allow_nonfinite: NaN and Inf are no problem.
        any_float: Nor are floats of different dtypes.
        on_progress: Called as `(path, done, total)` after each checkpoint, in bytes.

    Raises:
        UsageError: A path does not exist, or `model` has an unknown form.
        NoCheckpointError: There is no checkpoint at all.
        ArchitectureError: The architecture cannot be imported or built.
    """
    found = find_checkpoints([paths] if isinstance(paths, str | Path) else list(paths))
    ledger, base = Ledger(), Path.cwd()
    if model == OWN_NAME:
        model, said = read_own_architecture(found.sources, selection, trust, ledger)
        model_args = said | dict(model_args or {})
    blueprint = None if model is None else read_blueprint(resolve_architecture(model, model_args, base_dir))
    reader = Reader(selection, trust, ledger, blueprint, base)
    survey = _Survey(reader, allow_nonfinite=allow_nonfinite, any_float=any_float)
    skipped = list(found.skipped)
    sizes = [source.size_bytes() for source in found.sources]
    for number, source in enumerate(found.sources, start=1):
        try:
            survey.add(source, reader.open(source))
        except (InputRefusedError, StackError) as error:
            if isinstance(error, NoWeightsError) and not source.is_explicit:
                skipped.append(SkippedFile(str(source.path), no_weights_reason(error)))
            else:
                survey.refuse(source, error)
        if on_progress is not None:
            on_progress(str(source.path), sum(sizes[:number]), sum(sizes))
    return survey.result(tuple(skipped), found.warnings)


class _Stage(IntEnum):
    """What `load_members` looks at first, and so reports first."""

    READ = 0
    SPLIT = 1
    FINITE = 2
    CONFIG = 3
    FIT = 4


def _stage(row: InspectedMember) -> _Stage:
    if row.index is None:
        return _Stage.SPLIT if isinstance(row.problem, StackError) else _Stage.READ
    return _Stage.FINITE if isinstance(row.problem, NonFiniteWeightsError) else _Stage.FIT


class _Survey:
    """Gathers facts, one checkpoint after the other."""

    def __init__(self, reader: Reader, *, allow_nonfinite: bool, any_float: bool) -> None:
        self._reader = reader
        self._any_float = any_float
        self._blueprint = reader.blueprint
        self._allow_nonfinite = allow_nonfinite
        self._rows: list[InspectedMember] = []
        self._summaries: dict[int, Summary] = {}
        self._files: list[tuple[str, Checkpoint]] = []
        self._configs: list[Mapping[str, Scalar] | None] = []
        self._warnings: list[str] = []
        self._first: tuple[str, Mapping[str, torch.Tensor]] | None = None

    def refuse(self, source: Source, problem: EnsexportError) -> None:
        """Note a checkpoint that cannot be read."""
        self._rows.append(InspectedMember(None, str(source.path), problem, note=source.note))

    def add(self, source: Source, checkpoint: Checkpoint) -> None:
        """Note the member or members of one checkpoint.

        Raises:
            StackError: They cannot be told apart, see `split_state`.
        """
        found = self._reader.members_of(source, checkpoint, start=len(self._summaries))
        self._files.append((str(source.path), checkpoint.without_values()))
        for member, state in found:
            problem = self._problem(member, state)
            self._summaries[member.index] = summarise(state)
            self._configs.append(checkpoint.config)
            self._rows.append(
                InspectedMember(
                    member.index,
                    member.path,
                    problem,
                    replace(member, weights_sha256=weights_digest(state)),
                    checkpoint.format,
                    checkpoint.size_bytes,
                    source.note,
                    checkpoint.facts,
                )
            )
            del state  # before the next one is read

    def result(self, skipped: tuple[SkippedFile, ...], warnings: Sequence[str]) -> Inspection:
        """Compare the members with each other."""
        rows = [row for row in self._rows if row.member is not None]
        members = [row.member for row in rows if row.member is not None]
        labels = [member.label for member in members]
        try:
            check_configs_agree(labels, self._configs)
            configs: list[tuple[_Stage, EnsexportError]] = []
        except StackError as error:
            configs = [(_Stage.CONFIG, error)]
        found = [(_stage(row), row.problem) for row in self._rows if row.problem is not None]
        problems = [problem for _, problem in sorted(found + configs, key=lambda item: item[0])]
        outliers = find_outliers([self._summaries[member.index] for member in members], labels)
        texts = [
            *warnings,
            *describe_choices(self._files),
            *self._reader.notes(),
            *self._warnings,
            *find_repeats(members),
        ]
        return Inspection(
            architecture=None if self._blueprint is None else self._blueprint.name,
            members=tuple(self._rows),
            skipped=skipped,
            warnings=(*texts, *(outlier.text for outlier in outliers)),
            differing=differing([row.facts.hyper_parameters for row in rows]),
            problems=tuple(problems),
        )

    def _problem(self, member: Member, state: dict[str, torch.Tensor]) -> EnsexportError | None:
        """The first reason why `pack` would refuse a member."""
        names = find_nonfinite(state)
        try:
            if names and not self._allow_nonfinite:
                raise nonfinite_error(member, names)
            if self._blueprint is not None:
                check_fit(member.label, state, self._blueprint)
                check_ties(member.label, state, self._blueprint)
            if self._first is not None:
                check_states_agree([self._first, (member.label, member.shapes)], any_float=self._any_float)
        except (NonFiniteWeightsError, StackError) as error:
            return error
        if names:
            self._warnings.append(nonfinite_error(member, names).message)
        self._first = self._first or (member.label, member.shapes)
        return None
