"""One alternative in a process of its own: reads requests from stdin, answers on stdout, one JSON line each.

Requests: `{"run": FEED.npz, "to": OUT.npz}` runs once and saves the outputs; `{"time": FEED.npz, "repeats": n}`
answers the seconds of n runs. The process sleeps between requests, so that alternatives can be interleaved.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any


def main() -> None:
    """Serve requests until stdin closes."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a model prints must not mix with the answers

    def answer(value: dict[str, Any]) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    import numpy as np

    from ensexport.bench.alternatives import MAKERS
    from ensexport.bench.exchange import read_feed, write_feed
    from ensexport.errors import EnsexportError

    job = json.loads(sys.stdin.readline())
    try:
        run = MAKERS[job["kind"]](job)
    except EnsexportError as error:
        answer({"error": str(error)})
        return
    answer({"ready": True})
    feeds: dict[str, dict[str, np.ndarray[Any, Any]]] = {}
    for line in sys.stdin:
        request = json.loads(line)
        path = request.get("run") or request["time"]
        feed = feeds.setdefault(path, read_feed(Path(path)))
        try:
            if "run" in request:
                write_feed(Path(request["to"]), run(feed))
                answer({"done": True})
                continue
            begin = time.perf_counter()
            for _ in range(request["repeats"]):
                run(feed)
            answer({"seconds": time.perf_counter() - begin})
        except Exception as error:  # noqa: BLE001 - any runtime may fail; the parent says so in the table
            answer({"error": f"{type(error).__name__}: {str(error).strip()[:300]}"})


if __name__ == "__main__":
    main()
