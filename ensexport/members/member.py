"""Members: trained networks of one architecture, in order, ready to be built."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import overload

import torch
from torch import nn

from ensexport.errors import StackError, UsageError
from ensexport.members.architecture import Architecture
from ensexport.members.building import Builder
from ensexport.members.containers import Origin
from ensexport.members.scalars import Scalar
from ensexport.members.selection import Kind
from ensexport.members.wording import show_path
from ensexport.spec import SkippedFile


@dataclass(frozen=True)
class Member:
    """One trained network of the set.

    Attributes:
        index: Its place on the member axis, from 0.
        path: The file or folder, as the user gave it.
        sha256: Digest of its bytes; see `Checkpoint`.
        weights_sha256: Digest of `state` alone, the same for every file format.
        container_key: The key the state dict lay under; None if it stood alone.
        stripped_prefix: What was taken off every name; None if nothing was.
        shapes: Its tensors by name without their values: shape and dtype, on device meta.
        read: Reads its tensors; see `state`.
        origin: What the file says its network is; None if it says nothing.
        part: Its number in the file; None if the file holds one member alone.
        weights: `ema` or `raw` where the file holds both.
        config: The `config.json` of its folder, flat; None if it has none.
        saved_dtypes: Dtypes in the file of the tensors that are read in another one, see `widened`.
    """

    index: int
    path: str
    sha256: str
    weights_sha256: str
    container_key: str | None
    stripped_prefix: str | None
    shapes: Mapping[str, torch.Tensor]
    read: Callable[[], dict[str, torch.Tensor]] = field(repr=False, compare=False)
    origin: Origin | None = None
    part: int | None = None
    weights: Kind | None = None
    config: Mapping[str, Scalar] | None = None
    saved_dtypes: Mapping[str, torch.dtype] = field(default_factory=dict)

    @property
    def state(self) -> dict[str, torch.Tensor]:
        """Its tensors by name, read anew each time: dense, contiguous, on the CPU; tied ones are one object.

        Raises:
            CheckpointError: The file was changed or removed since it was read first.
        """
        return self.read()

    @property
    def n_bytes(self) -> int:
        """Bytes of its tensors, tied ones counted once."""
        return sum(
            tensor.numel() * tensor.dtype.itemsize for tensor in {id(t): t for t in self.shapes.values()}.values()
        )

    @property
    def label(self) -> str:
        """How messages name it: `member 3 (runs/s3.pt)`, or `member 3 (runs/all.pt, number 3 in it)`."""
        return member_label(self.index, self.path, self.part)


class Members(Sequence[Member]):
    """The members of one ensemble, in order, with what is known about the whole set.

    Args:
        members: At least one.
        architecture: What builds them; None if only the weights are known.
        skipped: What was seen in the checkpoint folders and not taken.
        warnings: What the user should know, one text each.
        equal: Names of tensors that are bit-equal in all members; None if that is not known.

    The weights stay in the files: `Member.state` and `build` read one member at a time.
    """

    def __init__(
        self,
        members: Iterable[Member],
        *,
        architecture: Architecture | None = None,
        skipped: tuple[SkippedFile, ...] = (),
        warnings: tuple[str, ...] = (),
        equal: frozenset[str] | None = None,
    ) -> None:
        self._members = tuple(members)
        self._builder: Builder | None = None
        self.architecture = architecture
        self.skipped = skipped
        self.warnings = warnings
        self.equal = equal

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

    def first(self, n_members: int) -> Members:
        """The same set with its first members alone."""
        return Members(
            self._members[:n_members], architecture=self.architecture, skipped=self.skipped, warnings=self.warnings
        )

    @property
    def labels(self) -> tuple[str, ...]:
        """How messages name the members, in order."""
        return tuple(member.label for member in self)

    @property
    def equal_bytes(self) -> int:
        """Bytes of one member's tensors that are bit-equal in all, as far as that is known; tied ones counted once."""
        shapes = self[0].shapes
        tensors = {id(shapes[name]): shapes[name] for name in self.equal or () if name in shapes}
        return sum(tensor.numel() * tensor.dtype.itemsize for tensor in tensors.values())

    @property
    def is_plain(self) -> bool:
        """Does a built member hold its weights as the file has them? False before the first is built."""
        return self._builder is not None and bool(self._builder.is_plain)

    def equal_names(self) -> frozenset[str] | None:
        """Names of a built member's parameters and buffers that are bit-equal in all; None if only building can say."""
        built = self.build(0)
        assert self._builder is not None
        if self.equal is None or not self._builder.is_plain:
            return None
        others = [name for name, _ in built.named_buffers(remove_duplicate=False) if name not in self[0].shapes]
        return self.equal | frozenset(others)

    def build(self, member_index: int) -> nn.Module:
        """Read and build one member: its own weights in their own dtype, eval mode, no gradients.

        Raises:
            UsageError: No architecture was given, or there is no such member.
            ArchitectureError: The architecture cannot be built.
            StackError: The module does not take the weights.
            CheckpointError: The file was changed or removed since it was read first.
        """
        if self.architecture is None:
            raise UsageError(
                "cannot build a member: only weights were loaded, no architecture.",
                hint="Give --model (model=...).",
            )
        if not 0 <= member_index < len(self):
            raise UsageError(f"there is no member {member_index}: expected 0 to {len(self) - 1}.")
        member = self[member_index]
        self._builder = self._builder or Builder(self.architecture)
        try:
            return self._builder.build(member.read)
        except StackError as error:
            raise StackError(
                f"cannot build {member.label} with {self.architecture.name!r}: {error.message}",
                hint=error.hint,
            ) from error


def member_label(index: int, path: str, part: int | None = None) -> str:
    """How messages name a member.

    Args:
        index: Its place on the member axis.
        path: Its file or folder.
        part: Its number in the file, where that holds several.
    """
    inside = "" if part is None else f", number {part} in it"
    return f"member {index} ({show_path(path)}{inside})"
