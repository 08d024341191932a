"""Copies tensors out of a file that is mapped into memory, by reading the file.

Reading through the map would be shorter, but a file that is cut short meanwhile then ends the process with a signal
(SIGBUS), and every page that was read counts as memory of the process a second time.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch

from ensexport.errors import CheckpointError
from ensexport.members.wording import quote_path

_MAPS = Path("/proc/self/maps")


class MappedFile:
    """One open file, parts of which tensors are views of.

    Args:
        path: The file.

    Raises:
        OSError: It cannot be opened.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = path
        self._file = Path(path).open("rb")  # noqa: SIM115 - closed by `close`
        self.facts = os.fstat(self._file.fileno())
        self._places: list[tuple[int, int, int]] | None = None

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def copy(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """Return a contiguous copy of a tensor that lies in the file; None if it does not, or nobody can say.

        Raises:
            CheckpointError: The file is shorter than it was.
        """
        offset = self._offset(tensor)
        if offset is None:
            return None
        steps = zip(tensor.shape, tensor.stride(), strict=True)
        span = torch.empty(1 + sum((size - 1) * stride for size, stride in steps), dtype=tensor.dtype)
        self._read(span, offset)
        whole = span.as_strided(tensor.shape, tensor.stride())
        whole = whole.conj() if tensor.is_conj() else whole
        whole = torch._neg_view(whole) if tensor.is_neg() else whole
        return whole.resolve_conj().resolve_neg().contiguous()

    def _read(self, target: torch.Tensor, offset: int) -> None:
        view = target.view(torch.uint8).numpy().data
        done = 0
        while done < len(view):
            count = os.preadv(self._file.fileno(), [view[done:]], offset + done)
            if count == 0:
                size = os.fstat(self._file.fileno()).st_size
                raise CheckpointError(
                    f"{quote_path(self._path)} changed while it was read ({self.facts.st_size} bytes, then {size}).",
                    hint="Wait until the training run has finished writing.",
                )
            done += count

    def _offset(self, tensor: torch.Tensor) -> int | None:
        """Where in the file a tensor begins."""
        if not tensor.numel() or any(stride < 0 for stride in tensor.stride()):
            return None
        if self._places is None:
            self._places = _places_of(self.facts)
        address = tensor.data_ptr()
        return next((address - begin + start for begin, end, start in self._places if begin <= address < end), None)


def _places_of(facts: os.stat_result) -> list[tuple[int, int, int]]:
    """Where a file is mapped: first address, one past the last, and the place in the file of the first.

    Source: proc_pid_maps(5). Other systems than Linux have no such list.
    """
    device = f"{os.major(facts.st_dev):02x}:{os.minor(facts.st_dev):02x}"
    places = []
    for line in _MAPS.read_text(errors="replace").splitlines() if _MAPS.exists() else ():
        addresses, _, start, where, inode, *_ = line.split(None, 5)
        if where == device and int(inode) == facts.st_ino:
            begin, _, end = addresses.partition("-")
            places.append((int(begin, 16), int(end, 16), int(start, 16)))
    return places
