"""What packing will take, worked out before the work: bytes of memory and of disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ensexport.resources import available_memory, check_disk, check_memory, size_text

_RUN_TIME_BYTES = 500_000_000
"""What the libraries take while they trace and export: 0.4 GB for ViT-B, torch 2.13."""
_EXTERNAL_BYTES = 2**31
_SESSION = 1.2
"""Memory of ONNX Runtime over the weights it holds: 1.1 for ViT-B (1.31, CPU), and what a batch takes."""


@dataclass(frozen=True)
class Estimate:
    """Memory by phase, and disk.

    Attributes:
        n_members: N.
        member_bytes: Bytes of one member's tensors.
        packed_bytes: At most so many bytes of weights go into each file.
        phases: What is done -> what is in memory then, by name.
        disk_bytes: All files together.
    """

    n_members: int
    member_bytes: int
    packed_bytes: int
    phases: Mapping[str, Mapping[str, int]]
    disk_bytes: int

    @property
    def memory_bytes(self) -> int:
        """The most that any phase takes."""
        return max(sum(parts.values()) for parts in self.phases.values())

    def to_dict(self) -> dict[str, Any]:
        """Return the `estimate` object of `pack`'s JSON."""
        return {
            "memory_bytes": self.memory_bytes,
            "disk_bytes": self.disk_bytes,
            "phases": {name: sum(parts.values()) for name, parts in self.phases.items()},
        }

    def __str__(self) -> str:
        limit = available_memory()
        there = "" if limit is None else f" ({limit})"
        return (
            f"estimate for {self.n_members} members of {size_text(self.member_bytes)}: "
            f"{size_text(self.memory_bytes)} of memory{there}, {size_text(self.disk_bytes)} of disk"
        )

    def check_memory(self) -> None:
        """Refuse what does not fit into memory.

        Raises:
            MemoryLimitError: Some phase takes more than there is; says both numbers.
        """
        for name, parts in self.phases.items():
            check_memory(parts, task=f"{name} {self.n_members} members", hint=_HINTS[name])

    def check_disk(self, targets: Sequence[Path]) -> None:
        """Refuse files for which there is no room, going by the weights alone.

        Raises:
            OutputError: There is less; says both numbers.
        """
        share = self.disk_bytes // len(targets)
        check_disk(dict.fromkeys(targets, share))


_HINTS = {
    "pack": "Free memory, or pack on a larger machine.",
    "serialise": "torch writes .ts and .pt2 files in memory: ship .onnx, or pack on a larger machine.",
    "validate": "Free memory, compare on a larger machine (--validate-members none here, `ensexport validate` there).",
}


def estimate(
    formats: Sequence[str], member_bytes: int, n_members: int, *, n_validated: int, equal_bytes: int = 0
) -> Estimate:
    """Work out what packing takes.

    Args:
        formats: One an output: `onnx`, `torchscript`, `pt2`.
        member_bytes: Bytes of one member's tensors.
        n_members: N.
        n_validated: How many members are compared with the loop.
        equal_bytes: Bytes of the tensors that are equal in all members, which are kept once.
    """
    packed = equal_bytes + (member_bytes - equal_bytes) * n_members
    phases: dict[str, dict[str, int]] = {
        "pack": {"one member twice": 2 * member_bytes, "the export": _RUN_TIME_BYTES},
    }
    others = sum(kind != "onnx" for kind in formats)
    if others:
        phases["serialise"] = {"the weights": packed, "the file": packed, "the export": _RUN_TIME_BYTES}
    if n_validated:
        phases["validate"] = {
            "one member in its own dtype and in float64": 3 * member_bytes,
            "the file": int(_SESSION * packed),
        }
    # torch reads the weights from the ONNX file's external data where there is any, else from a scratch file.
    scratch = int(bool(others) and not ("onnx" in formats and packed >= _EXTERNAL_BYTES))
    return Estimate(n_members, member_bytes, packed, phases, packed * (len(formats) + scratch))
