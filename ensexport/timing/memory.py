"""What memory there is and what a process has used, in MB, as Linux tells it; None elsewhere."""

from __future__ import annotations

from ensexport.resources import PeakMemory, available_memory, status_bytes

_MB = 1e6


def resident_mb() -> float | None:
    """Memory this process has now."""
    return _in_mb(status_bytes("VmRSS"))


def peak_mb() -> float | None:
    """The most memory this process had since the last `reset_peak`."""
    return _in_mb(status_bytes("VmHWM"))


def reset_peak() -> None:
    """Count `peak_mb` from now on, see proc(5); where that is not allowed, it stays the most ever."""
    PeakMemory().reset()


def available_mb() -> float | None:
    """Memory that new processes may take before the machine swaps or a limit is reached."""
    limit = available_memory()
    return None if limit is None else _in_mb(limit.size_bytes)


def _in_mb(size_bytes: int | None) -> float | None:
    return None if size_bytes is None else size_bytes / _MB
