"""One checkpoint -> its members, one at a time, and each of them again whenever its weights are needed."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from ensexport.errors import CheckpointError
from ensexport.members.checkpoint import Ledger
from ensexport.members.discovery import Source
from ensexport.members.fitting import Blueprint, Fitted
from ensexport.members.member import Member
from ensexport.members.parts import Part, split_state
from ensexport.members.reading import Checkpoint, open_checkpoint
from ensexport.members.selection import Selection
from ensexport.members.trust import Trust
from ensexport.members.wording import join_numbers, join_some, quote_path

State = dict[str, torch.Tensor]


@dataclass
class Reader:
    """Reads members as the user said they are to be read.

    Attributes:
        selection: Where in a file the weights lie.
        trust: What may run code.
        ledger: The files that were read so far.
        blueprint: What the architecture expects; None if it is not known: a file is one member then.
        base: The current directory when the checkpoints were found: a model's code may change it.
    """

    selection: Selection
    trust: Trust
    ledger: Ledger
    blueprint: Blueprint | None
    base: Path
    _signatures: dict[tuple[object, ...], Mapping[str, torch.Tensor]] = field(default_factory=dict)
    _counters: dict[int, tuple[str, ...]] = field(default_factory=dict)
    _others: dict[int, tuple[str, ...]] = field(default_factory=dict)
    _last: tuple[Source, Checkpoint, list[Part]] | None = None

    def open(self, source: Source) -> Checkpoint:
        """Find the weights of a checkpoint, see `open_checkpoint`."""
        if Path.cwd() != self.base:
            folder = source.folder and replace(source.folder, source=self.base / source.folder.source)
            source = replace(source, path=self.base / source.path, folder=folder)
        return open_checkpoint(source, selection=self.selection, trust=self.trust, ledger=self.ledger)

    def members_of(self, source: Source, checkpoint: Checkpoint, *, start: int) -> Iterator[tuple[Member, State]]:
        """Find the members of a checkpoint: with the architecture's names, and all of those that one file holds.

        Args:
            source: The checkpoint.
            checkpoint: What `open` returned for it.
            start: Index of the first member.

        Returns:
            Each member, without the digest of its weights, with its tensors: one at a time in memory.

        Raises:
            StackError: See `split_state`.
        """
        parts = self._parts(str(source.path), checkpoint)
        for index, part in enumerate(parts, start=start):
            self._counters[index] = part.fitted.dropped
            self._others[index] = (*checkpoint.left_out, *part.dropped)
        return self._members(source, checkpoint, parts, start)

    def notes(self) -> list[str]:
        """What was dropped from the members, as warnings."""
        name = self.blueprint.name if self.blueprint else ""
        return [
            *_dropped_texts(self._counters, f"counters that {name!r} has not."),
            *_dropped_texts(self._others, "no part of the network."),
        ]

    def _members(
        self, source: Source, checkpoint: Checkpoint, parts: Sequence[Part], start: int
    ) -> Iterator[tuple[Member, State]]:
        for number, part in enumerate(parts):
            state = checkpoint.take(part.fitted.state)
            member = Member(
                index=start + number,
                path=str(source.path),
                sha256=checkpoint.sha256,
                weights_sha256="",
                container_key=checkpoint.container_key,
                stripped_prefix=part.fitted.stripped_prefix,
                shapes=self._shapes(state),
                read=functools.partial(self._again, source, checkpoint.sha256, number),
                origin=checkpoint.origin,
                part=part.index,
                weights=checkpoint.weights,
                config=checkpoint.config,
            )
            yield member, state
            del state  # before the next one is read

    def _again(self, source: Source, sha256: str, number: int) -> State:
        """Read a member once more."""
        if self._last is None or self._last[0] is not source:
            self._last = None
            checkpoint = self.open(source)
            if checkpoint.sha256 != sha256:
                raise CheckpointError(
                    f"{quote_path(source.path)} changed since it was read first (sha256 {sha256[:12]}..., then "
                    f"{checkpoint.sha256[:12]}...).",
                    hint="Wait until the training run has finished writing.",
                )
            self._last = source, checkpoint, self._parts(str(source.path), checkpoint)
        _, checkpoint, parts = self._last
        if len(parts) == 1:
            self._last = None  # a file of one member is not needed again soon
        return checkpoint.take(parts[number].fitted.state)

    def _parts(self, path: str, checkpoint: Checkpoint) -> list[Part]:
        if self.blueprint is None:
            return [Part(Fitted(checkpoint.state, checkpoint.stripped_prefix, ()), None)]
        return split_state(quote_path(path), checkpoint.state, checkpoint.stripped_prefix, self.blueprint)

    def _shapes(self, state: State) -> Mapping[str, torch.Tensor]:
        """The tensors without values; members of the same names, shapes, dtypes and ties share one mapping."""
        first = {id(tensor): name for name, tensor in reversed(state.items())}
        key = tuple((name, t.dtype, tuple(t.shape), first[id(t)]) for name, t in state.items())
        if key not in self._signatures:
            empty = {id(tensor): tensor.to("meta") for tensor in state.values()}
            self._signatures[key] = {name: empty[id(tensor)] for name, tensor in state.items()}
        return self._signatures[key]


def _dropped_texts(dropped: Mapping[int, tuple[str, ...]], what: str) -> list[str]:
    groups: dict[tuple[str, ...], list[int]] = {}
    for index, names in dropped.items():
        groups.setdefault(names, []).append(index)
    return [
        f"dropped {join_some([repr(name) for name in names])} from {members_text(group)}: {what}"
        for names, group in groups.items()
        if names
    ]


def members_text(indices: Sequence[int]) -> str:
    """`member 3`, or `members 0, 3 and 7`."""
    return f"{'member' if len(indices) == 1 else 'members'} {join_numbers(indices)}"
