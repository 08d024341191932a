"""Draw a members curve: what more members bring on the left, what they cost on the right."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ensexport.bench.canvas import COLOURS, html_page, html_table, write_drawing
from ensexport.bench.curve_names import TITLES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Point = Mapping[str, Any]
# Panels of quality: measures with the same unit, and how their axis is called.
_PANELS = (
    (("agreement", "accuracy"), "share of rows"),
    (("nll",), "NLL (nats)"),
    (("ece",), "ECE"),
    (("deviation",), "deviation"),
    (("rmse",), "RMSE"),
)
_TIMES = {"latency_ms": "one file", "loop_ms": "loop"}


def draw_curve(report: Mapping[str, Any], path: Path) -> None:
    """Draw a members curve as `.png`, `.svg`, or `.html` with the drawing, the table and the environment in one file.

    Args:
        report: What `bench --members-curve --json` prints: `members_curve`, `curve_data`, `environment`, `artifact`.
        path: The file to write.

    Raises:
        UsageError: The suffix is none of the three.
        OutputError: matplotlib is not installed.
    """
    write_drawing(path, lambda: _figure(report), lambda drawing: _page(report, drawing))


def _figure(report: Mapping[str, Any]) -> Figure:
    from matplotlib.figure import Figure

    points: Sequence[Point] = report["members_curve"]
    panels = [(names, label) for names, label in _PANELS if any(points[0][name] for name in names)]
    figure = Figure(figsize=(3.6 * (len(panels) + 1), 3.8), layout="constrained")
    *of_quality, of_time = figure.subplots(1, len(panels) + 1, squeeze=False)[0]
    places = [point["k"] for point in points]
    for axes, (names, label) in zip(of_quality, panels, strict=True):
        for index, name in enumerate(name for name in names if points[0][name]):
            _measure(axes, places, [point[name] for point in points], name, COLOURS[index])
        axes.set_title(label, fontsize=10)
        if len(axes.get_legend_handles_labels()[1]) > 1:
            axes.legend(frameon=False, fontsize=9)
    for index, (key, label) in enumerate(_TIMES.items()):
        if points[0][key] is not None:
            times = [point[key] for point in points]

            of_time.plot(places, times, color=COLOURS[index], marker=".", label=label)
    batch = report["curve_data"]["batch"]
    of_time.set_title("ms a call" + ("" if batch is None else f" at batch {batch}"), fontsize=10)
    of_time.set_ylim(bottom=0)
    of_time.legend(frameon=False, fontsize=9)
    for axes in (*of_quality, of_time):
        axes.set_xlabel("members k")
        axes.locator_params(axis="x", nbins=5, integer=True)
        axes.locator_params(axis="y", nbins=4)
        axes.tick_params(bottom=False, left=False)  # the grid shows the places; small, for drawings in repositories
    figure.suptitle(_title(report), fontsize=11, x=0.01, ha="left")
    return figure


def _measure(axes: Axes, places: Sequence[int], spreads: Sequence[Mapping[str, float]], name: str, colour: str) -> None:
    """A line of the means over a band from the smallest to the largest; infinite values are left out."""
    lines = {key: [spread[key] if math.isfinite(spread[key]) else math.nan for spread in spreads] for key in spreads[0]}
    axes.plot(places, lines["mean"], color=colour, marker=".", label=TITLES[name])
    axes.fill_between(places, lines["min"], lines["max"], color=colour, alpha=0.15, linewidth=0)


def _title(report: Mapping[str, Any]) -> str:
    data = report["curve_data"]
    most = max(point["subsets"] for point in report["members_curve"])
    files = f"{Path(str(report['artifact'])).name}, {Path(data['path']).name}"
    return f"{files}: mean and range of up to {most} subsets, {data['rows']} rows"


def _page(report: Mapping[str, Any], drawing: str) -> str:
    points: Sequence[Point] = report["members_curve"]
    measures = [name for name in TITLES if points[0][name]]
    head = ["members", "subsets"]
    head += [text for name in measures for text in (TITLES[name], "from", "to")]
    head += ["ms a call", "ms, loop"]
    rows = [
        [str(point["k"]), str(point["subsets"])]
        + [f"{point[name][key]:.5g}" for name in measures for key in ("mean", "min", "max")]
        + ["-" if point[key] is None else f"{point[key]:.4g}" for key in _TIMES]
        for point in points
    ]
    facts = [(str(key), str(value)) for key, value in report["environment"].items()]
    return html_page(
        f"Members curve of {Path(str(report['artifact'])).name}",
        f"{_title(report)}.",
        drawing,
        [
            ("Results", html_table(head, rows, lambda _: True)),
            ("Environment", html_table(("fact", "value"), facts, lambda _: False)),
        ],
    )
