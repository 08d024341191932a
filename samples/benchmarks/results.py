"""The file of measurements: what was measured is kept after every ensemble, so that a run can be resumed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Run = Mapping[str, Any]
KEY = ("workload", "provider", "dtype", "n_members")


def read_runs(path: Path) -> list[Run]:
    """The runs of a file; none if there is no file."""
    return list(json.loads(path.read_text())["runs"]) if path.exists() else []


def write_runs(path: Path, runs: Sequence[Run]) -> None:
    """Write a file of runs, one measured row a line; what was there stays whole until the new file is."""
    texts = []
    for run in runs:
        head = json.dumps({key: value for key, value in run.items() if key != "results"})[:-1]
        rows = ",\n    ".join(json.dumps(row) for row in run["results"])
        texts.append(f'  {head},\n   "results": [\n    {rows}\n   ]}}')
    new = path.with_name(f".{path.name}.new")
    new.write_text('{"runs": [\n' + ",\n".join(texts) + "\n]}\n")
    os.replace(new, path)


def key_of(run: Run) -> tuple[Any, ...]:
    """Which ensemble a run is of."""
    return tuple(run[name] for name in KEY)


def replaced(runs: Iterable[Run], new: Run) -> list[Run]:
    """The runs with a new one in the place of the older of the same ensemble."""
    kept = list(runs)
    for place, run in enumerate(kept):
        if key_of(run) == key_of(new):
            kept[place] = new
            return kept
    return [*kept, new]


def is_finished(runs: Iterable[Run], key: tuple[Any, ...], batches: Sequence[int]) -> bool:
    """True if there is a run that holds all these batch sizes, or says why it does not."""
    for run in runs:
        if key_of(run) == key and "error" not in run:
            known = {row["batch"] for row in run["results"]} | {skipped["batch"] for skipped in run["skipped"]}
            return set(batches) <= known
    return False


def find_row(run: Run, batch: int, alternative: str) -> Mapping[str, Any] | None:
    """One measured row."""
    return next((row for row in run["results"] if (row["batch"], row["alternative"]) == (batch, alternative)), None)


def call_s(runs: Iterable[Run], workload: str, provider: str, dtype: str) -> float | None:
    """Seconds of one call for one member at batch 1, as far as an ensemble of any size tells."""
    for run in runs:
        if (run["workload"], run["provider"], run["dtype"]) == (workload, provider, dtype):
            row = find_row(run, 1, "packed")
            if row is not None:
                return float(row["median_ms"]) / 1e3 / run["n_members"]
    return None
