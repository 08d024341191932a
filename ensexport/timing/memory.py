"""What memory there is and what a process has used, as Linux tells it; None elsewhere."""

from __future__ import annotations

from pathlib import Path

_MB = 1e6


def resident_mb() -> float | None:
    """Memory this process has now."""
    return _read(Path("/proc/self/status"), "VmRSS")


def peak_mb() -> float | None:
    """The most memory this process had since the last `reset_peak`."""
    return _read(Path("/proc/self/status"), "VmHWM")


def reset_peak() -> None:
    """Count `peak_mb` from now on, see proc(5); where that is not allowed, it stays the most ever."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def available_mb() -> float | None:
    """Memory that new processes may take before the machine swaps."""
    return _read(Path("/proc/meminfo"), "MemAvailable")


def _read(path: Path, field: str) -> float | None:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    found = next((line.split()[1] for line in lines if line.startswith(f"{field}:")), None)
    return None if found is None else int(found) * 1024 / _MB
