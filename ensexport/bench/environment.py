"""What a measurement was made on, and how: it means nothing without."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import onnxruntime as ort
import torch

from ensexport.timing.measure import BLOCK_S


def describe_environment(provider: str, mode: str, reason: str, *, tf32: bool = False) -> dict[str, Any]:
    """Return versions, processor, threads and method.

    Args:
        provider: `cpu`, `cuda` or `tensorrt`.
        mode: `interleaved` or `isolated`.
        reason: Why this mode, if it was not asked for.
        tf32: May CUDA compute products of float32 in TF32?
    """
    others = "the artifact and one alternative at a time" if mode == "isolated" else "all at a time"
    return {
        "provider": provider,
        "threads": n_cores(),
        "processor": _processor(),
        **({} if provider == "cpu" else {"device": _device(), "tf32": tf32}),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "onnxruntime": ort.__version__,
        "mode": mode,
        "mode_reason": reason,
        "method": f"one process an alternative, {others}, stopped while another is timed; interleaved blocks of "
        f"{BLOCK_S * 1e3:.0f} ms, medians of per-block ratios",
    }


def n_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _device() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "unknown: torch sees no CUDA device"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )
