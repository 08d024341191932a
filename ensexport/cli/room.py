"""Before torch is loaded: whether it fits at all.

Where memory is limited (`ulimit -v`, `ulimit -d`) and does not suffice, the libraries do not fail in a way that could
be caught: libtorch ends the process with `terminate called after throwing an instance of 'std::bad_alloc'`, OpenBLAS
with `Memory allocation still failed after 10 retries`, the loader with `cannot allocate memory for thread-local data`.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from ensexport.resources import check_memory

# Measured with torch 2.13, numpy 2.4 and onnxruntime 1.31 for Linux on x86-64 with one thread: all limits at which a
# library ended the process were below 570 MB of address space or 110 MB of data; `inspect` works from 610 MB and 120 MB
# on. Between those that and what `pack` takes (about 900 MB and 370 MB), Python gets an exception.
_DATA_BYTES = 120_000_000
_THREAD_BYTES = 50_000_000  # OpenBLAS's buffers and stack, and the stack of OpenMP's
_MOST_BLAS_THREADS = 64  # what numpy's OpenBLAS is built for
_TORCH = ("libtorch_cpu.so", "libtorch_python.so", "libtorch_cuda.so", "libtorch_hip.so")


def check_room_for_libraries() -> None:
    """Refuse work that cannot even begin.

    Raises:
        MemoryLimitError: There is less memory than torch, numpy and ONNX Runtime take to be loaded.
    """
    needs = {"their data": _DATA_BYTES}
    threads = _n_threads() - 1
    if threads:
        needs[f"{threads} more {'thread' if threads == 1 else 'threads'}"] = threads * _THREAD_BYTES
    check_memory(
        needs,
        mapped={"their code": _torch_bytes()},
        task="load torch and ONNX Runtime",
        hint="Raise the limit." + (" Fewer threads take less: OMP_NUM_THREADS=1." if threads else ""),
    )


def _torch_bytes() -> int:
    """The size of torch's large libraries; a build for GPUs has several times as much as one without."""
    found = importlib.util.find_spec("torch")
    folder = Path(found.origin).parent / "lib" if found is not None and found.origin else None
    return sum((folder / name).stat().st_size for name in _TORCH if (folder / name).is_file()) if folder else 0


def _n_threads() -> int:
    """How many threads numpy's OpenBLAS starts when it is imported."""
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        value = os.environ.get(name, "").partition(",")[0]
        if value.isdigit() and int(value):
            return min(int(value), _MOST_BLAS_THREADS)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, _MOST_BLAS_THREADS)
