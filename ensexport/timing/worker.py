"""One alternative in a process of its own: reads requests from stdin, answers on stdout, one JSON line each.

Requests: `{"run": FEED.npz, "to": OUT.npz}` runs once and saves the outputs; `{"time": FEED.npz, "warm": m,
"repeats": n}` runs m times, then answers the seconds of n runs; `{"reset": true}` starts a new count of the most
memory used, and `{"memory": true}` answers it. Between requests the parent stops the process, so that alternatives can
be interleaved.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from ensexport.errors import EnsexportError
from ensexport.timing.memory import peak_mb, reset_peak, resident_mb


def main() -> None:
    """Serve requests until stdin closes."""
    _end_with_parent()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a model prints must not mix with the answers

    def answer(value: dict[str, Any]) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    job = json.loads(sys.stdin.readline() or "null")
    if job is None:
        return
    empty_mb = resident_mb() or 0.0
    try:
        module, _, function = job["maker"].partition(":")
        maker = getattr(importlib.import_module(module), function)
        begin = time.perf_counter()
        run = maker(job)
        load_s = time.perf_counter() - begin
    except EnsexportError as error:
        answer({"error": error.message, "hint": error.hint, "code": error.code})
        return
    except Exception as error:  # noqa: BLE001 - any runtime may fail; the parent says so in the report
        answer(_failure(error))
        return
    answer({"ready": True, "load_s": load_s})
    for line in sys.stdin:
        try:
            answer(_served(json.loads(line), run, empty_mb, job.get("casts", {})))
        except Exception as error:  # noqa: BLE001 - likewise
            answer(_failure(error))


def _served(request: dict[str, Any], run: Any, empty_mb: float, casts: dict[str, str]) -> dict[str, Any]:
    from ensexport.timing.exchange import read_feed, write_feed

    if "reset" in request:
        reset_peak()
        return {"done": True}
    if "memory" in request:
        peak = peak_mb()
        return {"memory_mb": None if peak is None else peak - empty_mb}
    if "run" in request:
        write_feed(Path(request["to"]), run(read_feed(Path(request["run"]), casts)))
        return {"done": True}
    feed = read_feed(Path(request["time"]), casts)
    call = run.bind(feed) if hasattr(run, "bind") else lambda: run(feed)
    for _ in range(request["warm"]):
        call()
    begin = time.perf_counter()
    for _ in range(request["repeats"]):
        call()
    return {"seconds": time.perf_counter() - begin}


def _failure(error: Exception) -> dict[str, Any]:
    return {"error": f"{type(error).__name__}: {str(error).strip()[:300]}"}


def _end_with_parent() -> None:
    """Ask Linux to end this process with its parent: one that is stopped would not see its stdin close."""
    if sys.platform == "linux":
        import ctypes
        import signal

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG, see prctl(2)


if __name__ == "__main__":
    main()
