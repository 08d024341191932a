"""Which tensors are bit-equal in all members, found while the members pass by one at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch

from ensexport.members.tensors import raw_bytes

_HEAD = 2**14  # elements: members that differ do so here already, as a rule


class EqualTensors:
    """Keeps the names of the tensors that were equal in all members so far."""

    def __init__(self) -> None:
        self._first: dict[str, tuple[bytes, bytes]] | None = None

    def add(self, state: Mapping[str, torch.Tensor]) -> None:
        """Compare the next member with those before."""
        if self._first is None:
            self._first = {name: (_digest(_head(tensor)), _digest(tensor)) for name, tensor in state.items()}
            return
        for name in [name for name in self._first if not self._is_equal(name, state.get(name))]:
            del self._first[name]

    def _is_equal(self, name: str, tensor: torch.Tensor | None) -> bool:
        assert self._first is not None
        head, whole = self._first[name]
        return tensor is not None and _digest(_head(tensor)) == head and _digest(tensor) == whole

    @property
    def names(self) -> frozenset[str]:
        """The names."""
        return frozenset(self._first or ())


def _head(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.numel() <= _HEAD or not tensor.is_contiguous() else tensor.detach().view(-1)[:_HEAD]


def _digest(tensor: torch.Tensor) -> bytes:
    digest = hashlib.blake2b(f"{tensor.dtype} {tuple(tensor.shape)}".encode(), digest_size=16)
    digest.update(raw_bytes(tensor).numpy().data)
    return digest.digest()
