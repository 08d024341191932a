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
    done = 0
    with ThreadPoolExecutor(1) as pool:
        writing: list[Future[None]] = []

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

        for member_index in range(len(states)):
            states.visit(member_index, functools.partial(weights.write, member_index=member_index, put=put))
        finish()


def put_all(file: WeightFile, weights: Mapping[str, torch.Tensor]) -> None:
    """Write whole weights that are in memory.

    Raises:
        OSError: The system refuses.
    """
    for name, tensor in weights.items():
        file.put(name, 0, raw_bytes(tensor).numpy().data)
