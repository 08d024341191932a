"""Recognises that memory ran out, whoever noticed it first: Python, torch, ONNX Runtime, the loader of libraries.

Each says it in its own words and with its own class, often wrapped by whoever called it. The forms below were collected
by running the commands under `ulimit -v` and `ulimit -d` from 20 MB up, step by step, until they passed.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator

from ensexport.errors import EnsexportError, MemoryLimitError, OutOfMemoryError
from ensexport.resources import available_memory, memory_limits, size_text, status_bytes

_WORDS = re.compile(
    r"can't allocate memory|cannot allocate memory|could not allocate memory|failed to allocate memory"
    r"|unable to mmap|not enough memory|out of memory|std::bad_alloc|bad allocation"
    r"|failed to map segment from shared object|cannot map zero-fill pages"
    r"|can't start new thread|pthread_create failed|CUDA_ERROR_OUT_OF_MEMORY|CUBLAS_STATUS_ALLOC_FAILED",
    re.IGNORECASE,
)
_ON_GPU = re.compile(r"CUDA|HIP|GPU|CUBLAS")
_SILENT = re.compile(r"error return without exception set|returned NULL without setting an exception")
_ASKED = re.compile(
    r"(?:tried to allocate|unable to mmap|unable to allocate|requested buffer of size) ([\d.]+) ?([KMGT]iB)?",
    re.IGNORECASE,
)
_UNITS = {"": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_SPARE_SHARE, _SPARE_BYTES = 0.1, 2**26  # less is left than either: what failed for no known reason failed for this one
_HINTS = {
    "ulimit -v": "Raise the limit (ulimit -v), or lift it (ulimit -v unlimited).",
    "ulimit -d": "Raise the limit (ulimit -d), or lift it (ulimit -d unlimited).",
    "control group": "Give the container or job more memory.",
}
_HINT = "Close other programs, or use a machine with more memory."


def out_of_memory(error: BaseException) -> OutOfMemoryError | MemoryLimitError | None:
    """Say with numbers that memory ran out, if that is what an exception means.

    Args:
        error: What was raised; what it was raised from counts too.

    Returns:
        The error to report; None if it is about something else.
    """
    for one in _chain(error):
        if isinstance(one, OutOfMemoryError | MemoryLimitError):
            return one
        if _means_memory(one):
            return _described(one)
        if isinstance(one, SystemError) and _SILENT.search(str(one)) and is_tight():
            return _described(one)
    return None


def unexplained(error: BaseException) -> OutOfMemoryError | None:
    """Take an error that nobody knows for a lack of memory, if memory was at its end; see `is_tight`."""
    return _described(error, is_quoted=True) if is_tight() else None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The exception and what led to it, each once."""
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        # An error of ours names its cause. What else was being handled then, such as a first try that took too much
        # memory, is not it.
        hidden = one.__suppress_context__ or isinstance(one, EnsexportError)
        one = one.__cause__ or (None if hidden else one.__context__)


def _means_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return not isinstance(error, EnsexportError) and bool(_WORDS.search(str(error)))


def is_tight() -> bool:
    """Whether a `ulimit` of this process was nearly used up, though what failed may have given back some of it since.

    What meets the limit inside of a library comes out as anything: `SystemError: error return without exception set`,
    a source file that "cannot be found", a function that "is not callable".
    """
    peak = status_bytes("VmPeak") or 0
    for limit in memory_limits():
        left = min(limit.size_bytes, limit.total_bytes - peak) if limit.counts_files else limit.size_bytes
        if "ulimit" in limit.what and left < max(_SPARE_SHARE * limit.total_bytes, _SPARE_BYTES):
            return True
    return False


def _described(error: BaseException, *, is_quoted: bool = False) -> OutOfMemoryError:
    text = str(error)
    details: dict[str, int | str] = {}
    asked = ""
    found = _ASKED.search(text)
    if found:
        details["asked_bytes"] = int(float(found[1]) * _UNITS[found[2] or ""])
        asked = f"{size_text(int(details['asked_bytes']))} more were asked for; "
    if _ON_GPU.search(text):
        said = " ".join(text.split())[:300]
        return OutOfMemoryError(
            f"out of memory on the GPU: {said}",
            hint="Close what else runs on the GPU, or use the CPU (--provider cpu).",
            **details,
        )
    resident, limit = status_bytes("VmRSS"), available_memory()
    if resident is not None:
        details["resident_bytes"] = resident
        asked += f"this process holds {size_text(resident)}"
    hint = _HINT
    if limit is not None:
        details |= {"available_bytes": limit.size_bytes, "limit": limit.what}
        asked += f", and {limit}"
        hint = next((hint for name, hint in _HINTS.items() if name in limit.what), _HINT)
    if is_quoted:
        asked += f"; what failed for it said {type(error).__name__}: {' '.join(text.split())[:300]}"
    return OutOfMemoryError(f"out of memory: {asked or text}.", hint=hint, **details)
