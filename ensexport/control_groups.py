"""What the control groups of this process (containers, systemd, batch systems) leave it of memory.

A group counts the page cache of the files it read as its own. The kernel gives that back before it kills anyone, so it
counts as free here; without that, a process that has just read its checkpoints would seem to have nothing left.

Source: https://docs.kernel.org/admin-guide/cgroup-v2.html (memory.max, memory.current, memory.stat) and
https://docs.kernel.org/admin-guide/cgroup-v1/memory.html (hierarchical_memory_limit apart, the files named below).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_UNLIMITED_BYTES = 2**60  # version 1 writes the largest multiple of a page below 2**63 for "no limit"


@dataclass(frozen=True)
class _Version:
    """The names of one version's files."""

    limit: str
    used: str
    cache: tuple[str, ...]


_V1 = _Version("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file"))
_V2 = _Version("memory.max", "memory.current", ("inactive_file", "active_file"))


def group_limits(root: Path) -> Iterator[tuple[int, int]]:
    """Yield `(bytes left, bytes allowed)` of each group with a limit, this process's own and those above it.

    Args:
        root: Where `/proc` and the mount points lie.
    """
    paths = dict(_group_paths(root))
    for version, mounted, mount in _mounts(root):
        path = paths.get(version)
        if path is None:
            continue
        # In a container the mount shows part of the tree; a path outside of that part leaves the mount itself.
        inside = path.removeprefix(mounted) if mounted != "/" and path.startswith(mounted) else path
        folder = mount / inside.strip("/")
        for place in (folder, *folder.parents):
            if place.is_relative_to(mount):
                yield from _limit_of(place, version)


def _group_paths(root: Path) -> Iterator[tuple[_Version, str]]:
    """The groups of this process, by version."""
    for line in read_lines(root / "proc/self/cgroup"):
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            yield _V2, path
        elif "memory" in controllers.split(","):
            yield _V1, path


def _mounts(root: Path) -> Iterator[tuple[_Version, str, Path]]:
    """Version, which part of the tree is seen, and where."""
    for line in read_lines(root / "proc/self/mountinfo"):
        fields, _, kind = line.partition(" - ")
        parts, kinds = fields.split(" "), kind.split(" ")
        if len(parts) < 5 or len(kinds) < 3:
            continue
        mount = root / _unescaped(parts[4]).lstrip("/")
        if kinds[0] == "cgroup2":
            yield _V2, _unescaped(parts[3]), mount
        elif kinds[0] == "cgroup" and "memory" in kinds[2].split(","):
            yield _V1, _unescaped(parts[3]), mount


def _limit_of(folder: Path, version: _Version) -> Iterator[tuple[int, int]]:
    allowed, used = _number(folder / version.limit), _number(folder / version.used)
    if allowed is None or used is None or allowed >= _UNLIMITED_BYTES:
        return
    cache = 0
    for line in read_lines(folder / "memory.stat"):
        name, _, value = line.partition(" ")
        if name in version.cache and value.isdigit():
            cache += int(value)
    yield min(max(0, allowed - used + cache), allowed), allowed


def _number(path: Path) -> int | None:
    """What a file says, None if that is no number: it is missing, or says `max`."""
    text = "".join(read_lines(path)).strip()
    return int(text) if text.isdigit() else None


def read_lines(path: Path) -> list[str]:
    """The lines of one of the kernel's files, none if it cannot be read."""
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []


def _unescaped(text: str) -> str:
    r"""Mountinfo writes a space as `\040`."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)
