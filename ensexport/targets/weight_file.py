"""The file that packed weights are written to, member by member, each at its place."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Protocol

import numpy as np
import torch

from ensexport.batching.weights import PackedWeight, WeightProgram
from ensexport.members.tensors import raw_bytes

_ALIGNMENT = 64
_SYNC_BYTES = 2**28
State = Mapping[str, torch.Tensor]


class States(Protocol):
    """Members whose tensors can be had one member at a time."""

    def __len__(self) -> int:
        """N."""

    def visit(self, member_index: int, use: Callable[[State], None]) -> None:
        """Call `use` with a member's parameters and buffers by name; they are gone afterwards."""


class WeightFile:
    """One open file and where in it each packed weight begins.

    Args:
        path: A file of its final size.
        places: Name of a packed weight -> where its values begin.

    Raises:
        OSError: The file cannot be opened.
    """

    def __init__(self, path: Path, places: Mapping[str, int]) -> None:
        self.path = path
        self.places = places
        self._file = path.open("rb+")

    def __enter__(self) -> WeightFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._file.close()

    def put(self, name: str, place: int, values: memoryview) -> None:
        """Write a run of bytes of a weight.

        Raises:
            OSError: The system refuses: the disk is full, for one.
        """
        if name not in self.places:
            return  # the format has no use for it
        offset, done = self.places[name] + place, 0
        while done < len(values):
            done += os.pwrite(self._file.fileno(), values[done:], offset + done)

    def sync(self) -> None:
        """Have the system write what it holds of the file to the disk; returns when it has.

        Raises:
            OSError: The disk is full, or broken.
        """
        os.fsync(self._file.fileno())

    def mapped(self, weight: PackedWeight, n_members: int) -> torch.Tensor:
        """Return a weight whose values stay in the file, mapped into memory; written to, it becomes a copy."""
        shape, n_bytes = weight.shape(n_members), weight.n_bytes(n_members)
        if n_bytes == 0:
            return torch.empty(shape, dtype=weight.dtype)
        values = np.memmap(self.path, np.uint8, "c", self.places[weight.name], (n_bytes,))
        return torch.from_numpy(values).view(weight.dtype).view(shape)


def make_scratch(path: Path, packed: Sequence[PackedWeight], n_members: int) -> dict[str, int]:
    """Make a file for packed weights alone and return their places.

    Args:
        path: The file.
        packed: The weights.
        n_members: N.

    Raises:
        OSError: The system refuses.
    """
    places, end = {}, 0
    for weight in packed:
        places[weight.name] = end
        end += -(-weight.n_bytes(n_members) // _ALIGNMENT) * _ALIGNMENT
    with path.open("wb") as file:
        file.truncate(end)
    return places


def fill(
    files: Sequence[WeightFile],
    weights: WeightProgram,
    states: States,
    tell: Callable[[int], None],
) -> None:
    """Read the members one at a time and write their pieces to all files.

    Args:
        files: The files.
        weights: How a member's state becomes its pieces.
        states: The members.
        tell: Called with the number of bytes that were written to each file.

    Raises:
        OSError: The system refuses.
        EnsexportError: A member cannot be read, or does not fit.
    """
    done = synced = 0
    with ThreadPoolExecutor(1) as pool, ThreadPoolExecutor(1) as sync_pool:
        writing: list[Future[None]] = []
        syncing: list[Future[None]] = []

        def finish() -> None:
            while writing:
                writing.pop().result()

        def write(name: str, place: int, values: memoryview) -> None:
            for file in files:
                file.put(name, place, values)

        def put(name: str, place: int, values: memoryview) -> None:
            nonlocal done
            finish()  # one piece is written while the next is computed, so that two are in memory
            writing.append(pool.submit(write, name, place, values))
            done += len(values)
            tell(done)

        def sync() -> None:
            for file in files:
                file.sync()

        for member_index in range(len(states)):
            states.visit(member_index, functools.partial(weights.write, member_index=member_index, put=put))
            if done - synced >= _SYNC_BYTES and not (syncing and not syncing[-1].done()):
                # The disk has work from the start on, and not only when the system's memory is full of it.
                while syncing:
                    syncing.pop().result()
                syncing.append(sync_pool.submit(sync))
                synced = done
        finish()
        while syncing:
            syncing.pop().result()


def put_all(file: WeightFile, weights: Mapping[str, torch.Tensor]) -> None:
    """Write whole weights that are in memory.

    Raises:
        OSError: The system refuses.
    """
    for name, tensor in weights.items():
        file.put(name, 0, raw_bytes(tensor).numpy().data)
