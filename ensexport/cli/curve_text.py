"""The members curve as plain text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ensexport.bench.curve_names import EXPLAINED, TITLES
from ensexport.members.wording import show_path

_SHARES = ("agreement", "accuracy")


def curve_lines(report: dict[str, Any]) -> Iterator[str]:
    """One line a number of members: measures as mean (smallest to largest) over the subsets, and times."""
    points, data, environment = report["members_curve"], report["curve_data"], report["environment"]
    names = [name for name in TITLES if points[0][name]]
    batch = "a call" if data["batch"] is None else f"at batch {data['batch']}"
    labels = "with labels" if data["has_labels"] else "without labels"
    yield (
        f"{show_path(report['artifact'])} on {data['rows']} rows of {show_path(data['path'])}, {labels}, output "
        f"'{data['output']}', {data['kind']}"
    )
    yield ""
    rows = [["members", "subsets", *(TITLES[name] for name in names), f"ms {batch}", "ms, loop"]]
    for point in points:
        cells = [_spread(name, point[name], n_subsets=point["subsets"]) for name in names]
        times = ["-" if point[key] is None else f"{point[key]:.3f}" for key in ("latency_ms", "loop_ms")]
        rows.append([str(point["k"]), str(point["subsets"]), *cells, *times])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [
            cell.ljust(width) if 2 <= column < 2 + len(names) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  " + "   ".join(cells).rstrip()
    yield ""
    yield "mean (smallest to largest) over the subsets; times of the first k members, packed for it"
    for name in names:
        yield f"{TITLES[name]}: {EXPLAINED[name]}"
    yield (
        f"on {environment['processor']}, {environment['threads']} threads, provider {environment['provider']}, "
        f"ONNX Runtime {environment['onnxruntime']}, torch {environment['torch']}"
    )
    yield f"how: {environment['method']}; outputs compared first"
    for plot in report["plots"]:
        yield f"drawn: {show_path(plot)}"


def _spread(name: str, spread: dict[str, float], *, n_subsets: int) -> str:
    mean, low, high = (
        f"{spread[key]:.2%}" if name in _SHARES else f"{spread[key]:.4f}" for key in ("mean", "min", "max")
    )
    return mean if n_subsets == 1 else f"{mean} ({low} to {high})"
