"""The drawing of the page: how the strong loop of every network does against the one file."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from results import Run

from ensexport.bench.plot import draw


def draw_strong_loop(runs: Sequence[Run], path: Path) -> bool:
    """Draw the ratios over the batch size; without matplotlib what is there is kept.

    Returns:
        True if there is a drawing.
    """
    rows = [
        {**row, "alternative": f"strong loop, {run['workload']}"}
        for run in runs
        for row in run["results"]
        if row["alternative"] == "strong-loop"
    ]
    if not rows:
        return False
    if importlib.util.find_spec("matplotlib") is None:
        return path.exists()
    environment = next(run["environment"] for run in runs if "environment" in run)
    draw({"results": rows, "environment": environment, "artifact": "one file a network"}, path)
    return True
