"""What this machine lets this process use, and the refusals made before work that would need more.

A process that runs out of memory is killed by the kernel without a word, and a full disk is found when most of the work
is done. So what can be added up beforehand is compared with what is there, and both numbers are said. What cannot be
found out (no `/proc`, a file system that says nothing) is no reason to refuse.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ensexport.control_groups import group_limits, read_lines
from ensexport.errors import MemoryLimitError, OutputError

_ROOT = Path("/")
_OF_MACHINE = "memory of this machine"
_OF_GROUP = "memory of the control group"
_OF_ADDRESSES = "address space, ulimit -v"
_OF_DATA = "data segment, ulimit -d"
_KIB = 1024
_RESERVE_BYTES = 2**24


@dataclass(frozen=True)
class MemoryLimit:
    """One bound on this process's memory.

    Attributes:
        size_bytes: What is left of it.
        total_bytes: All of it.
        what: What sets it: `address space, ulimit -v`.
        counts_files: Whether files that are mapped into memory count too; elsewhere they are only cache.
    """

    size_bytes: int
    total_bytes: int
    what: str
    counts_files: bool = False

    def __str__(self) -> str:
        return f"{size_text(self.size_bytes)} of {size_text(self.total_bytes)} are left ({self.what})"


def size_text(size_bytes: int) -> str:
    """`1.2 MB`, decimal units."""
    size = float(size_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError


def memory_limits(*, root: Path = _ROOT) -> list[MemoryLimit]:
    """All bounds on this process's memory that can be found out.

    Args:
        root: Where `/proc` lies, and `/sys` of the control groups.

    Source: proc(5), proc_pid_limits(5) and getrlimit(2): RLIMIT_AS bounds VmSize, RLIMIT_DATA bounds VmData.
    """
    limits = [*_machine_limits(root)]
    limits += [MemoryLimit(left, allowed, _OF_GROUP) for left, allowed in group_limits(root)]
    for name, used, what, counts_files in (
        ("Max address space", "VmSize", _OF_ADDRESSES, True),
        ("Max data size", "VmData", _OF_DATA, False),
    ):
        allowed, held = _soft_limit(root, name), status_bytes(used, root=root)
        if allowed is not None and held is not None:
            limits.append(MemoryLimit(max(0, allowed - held), allowed, what, counts_files))
    return limits


def available_memory(*, root: Path = _ROOT) -> MemoryLimit | None:
    """The bound that leaves least, None if nothing is known.

    Args:
        root: As for `memory_limits`.
    """
    return min(memory_limits(root=root), key=lambda limit: limit.size_bytes, default=None)


def check_memory(
    needs: Mapping[str, int], *, task: str, hint: str, mapped: Mapping[str, int] | None = None, root: Path = _ROOT
) -> None:
    """Refuse work that needs more memory than there is, before it is begun.

    Args:
        needs: What must be in memory at one time, by name: `{"one member": 350_000_000}`.
        task: What cannot be done: `pack 10 members`.
        hint: What to do about it.
        mapped: Files that are mapped into memory meanwhile. They count against `ulimit -v` alone.
        root: As for `memory_limits`.

    Raises:
        MemoryLimitError: There is less; says both numbers.
    """
    parts = {False: dict(needs), True: {**needs, **(mapped or {})}}
    limits = memory_limits(root=root)
    short = min(limits, key=lambda one: one.size_bytes - sum(parts[one.counts_files].values()), default=None)
    if short is None:
        return
    counted = parts[short.counts_files]
    needed = sum(counted.values())
    if needed <= short.size_bytes:
        return
    listed = ", ".join(f"{name} {size_text(size)}" for name, size in counted.items())
    raise MemoryLimitError(
        f"cannot {task}: {size_text(needed)} of memory are needed ({listed}), and {short}.",
        hint=hint,
        needed_bytes=needed,
        available_bytes=short.size_bytes,
        limit=short.what,
    )


def check_disk(sizes: Mapping[Path, int]) -> None:
    """Refuse to write files for which there is no room, before the first byte.

    A file that is to be replaced stays until the new one is whole, so its bytes do not count as free.

    Args:
        sizes: Bytes to be written, by file; those of one file system count together.

    Raises:
        OutputError: There is less; says both numbers.
    """
    largest = _largest_file()
    systems: dict[int, list[Path]] = {}
    for path, size in sizes.items():
        if largest is not None and size > largest:
            raise OutputError(
                f"cannot write '{path}': it will have {size_text(size)}, and files may have {size_text(largest)} "
                "(file size, ulimit -f).",
                hint="Raise the limit on file sizes (ulimit -f).",
                needed_bytes=size,
                free_bytes=largest,
            )
        try:
            systems.setdefault(os.stat(path.parent).st_dev, []).append(path)
        except OSError:
            continue  # a missing folder is the matter of whoever writes
    for paths in systems.values():
        _check_room(paths, sum(sizes[path] for path in paths))


def _check_room(paths: list[Path], needed: int) -> None:
    try:
        disk = shutil.disk_usage(paths[0].parent)
    except OSError:
        return
    if needed <= disk.free or not disk.total:  # some network file systems say 0 of 0
        return
    names = " and ".join(f"'{path}'" for path in paths[:2]) + (f" and {len(paths) - 2} more" if paths[2:] else "")
    replaces = any(os.path.lexists(path) for path in paths)
    raise OutputError(
        f"cannot write {names}: {size_text(needed)} are needed, and {size_text(disk.free)} of {size_text(disk.total)} "
        "are free on that disk.",
        hint="Free some space, or write elsewhere."
        + (" What is replaced stays until the new files are whole." if replaces else ""),
        needed_bytes=needed,
        free_bytes=disk.free,
    )


def status_bytes(field: str, *, root: Path = _ROOT) -> int | None:
    """A size in `/proc/self/status`, such as `VmRSS`; None where there is none."""
    return _kib_field(root / "proc/self/status", field)


class PeakMemory:
    """The most resident memory that this process had since the last `reset`.

    Where the kernel does not allow a reset, or has no `/proc`, it is the most ever.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> bool:
        """Begin anew; returns whether the kernel took it. See proc_pid_clear_refs(5)."""
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            return False
        return True

    def peak_bytes(self) -> int | None:
        """The peak, None on systems that do not say."""
        peak = status_bytes("VmHWM")
        return _largest_resident() if peak is None else peak


class Reserve:
    """Memory set aside for what must still be done when there is no more: to remove files, to say what happened.

    It is never written to, so it takes up address space and nothing else. Where there is none to spare, it is empty.
    """

    def __init__(self) -> None:
        self._held: mmap.mmap | None = None
        # Private, for `ulimit -d` does not count memory that is shared with other processes.
        private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if os.name == "posix" else {}
        with contextlib.suppress(OSError, MemoryError):
            self._held = mmap.mmap(-1, _RESERVE_BYTES, **private)

    def release(self) -> None:
        """Give it back to whoever needs memory next."""
        if self._held is not None:
            self._held.close()
            self._held = None


def peak_of_children() -> int | None:
    """The most resident memory that one of this process's ended children had; None where the system does not say."""
    return _largest_resident(of_children=True)


def _largest_resident(*, of_children: bool = False) -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else _KIB  # getrusage(2) of each
    usage = resource.getrusage(resource.RUSAGE_CHILDREN if of_children else resource.RUSAGE_SELF)
    return usage.ru_maxrss * unit


def _machine_limits(root: Path) -> Iterator[MemoryLimit]:
    available = _kib_field(root / "proc/meminfo", "MemAvailable")
    total = _kib_field(root / "proc/meminfo", "MemTotal")
    if available is not None:
        yield MemoryLimit(available, total or available, _OF_MACHINE)
    elif not (root / "proc/meminfo").exists() and root == _ROOT:
        yield from _physical_memory()


def _physical_memory() -> Iterator[MemoryLimit]:
    """What systems without `/proc` say: macOS has no count of free pages here, so it is all of the memory."""
    try:
        page, total = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return
    if page > 0 and total > 0:
        yield MemoryLimit(page * total, page * total, _OF_MACHINE)


def _soft_limit(root: Path, name: str) -> int | None:
    for line in read_lines(root / "proc/self/limits"):
        if line.startswith(name):
            value = line.removeprefix(name).split()[:1]
            return int(value[0]) if value and value[0].isdigit() else None
    return None


def _kib_field(path: Path, field: str) -> int | None:
    for line in read_lines(path):
        found = re.fullmatch(rf"{field}:\s*(\d+) kB\s*", line)
        if found:
            return int(found[1]) * _KIB
    return None


def _largest_file() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    return None if limit == resource.RLIM_INFINITY else limit
