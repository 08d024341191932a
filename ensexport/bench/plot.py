"""Draw a bench report: speed-up over batch size and over the number of members."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ensexport.bench.canvas import COLOURS, check_suffix, html_page, html_table, write_drawing
from ensexport.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, Any]
_MARKERS = "os^Dv<>PX*hp"
_COLUMNS = ("batch", "n_members", "alternative", "ratio", "ratio_low", "ratio_high", "median_ms")


def draw(report: Mapping[str, Any], path: Path) -> None:
    """Draw a bench report as `.png`, `.svg`, or `.html` with the drawing, the table and the environment in one file.

    Args:
        report: What `bench --json` prints: `results` are rows with `batch`, `n_members`, `alternative`, `ratio`,
            `ratio_low`, `ratio_high` and `median_ms`; `environment` is named facts; `artifact` a path, if there is one.
        path: The file to write.

    Raises:
        UsageError: The suffix is none of the three, or the report has no rows.
        OutputError: matplotlib is not installed.
    """
    check_suffix(path)
    if not report["results"]:
        raise UsageError(f"cannot draw '{path}': the report has no results.")
    write_drawing(path, lambda: _figure(report), lambda drawing: _page(report, drawing))


# -- drawing ---------------------------------------------------------------------------------------


def _figure(report: Mapping[str, Any]) -> Figure:
    """One panel for each N over the batch; below, where N varies, one for each batch over N."""
    from matplotlib.figure import Figure

    rows: Sequence[Row] = report["results"]
    counts = _distinct(rows, "n_members")
    batches = _distinct(rows, "batch")
    panels = [[("n_members", n, "batch") for n in counts]]
    if len(counts) > 1:
        panels.append([("batch", batch, "n_members") for batch in batches])
    width = max(len(line) for line in panels)
    figure = Figure(figsize=(max(6.4, 3.6 * width + 2.2), 0.6 + 3.4 * len(panels)), layout="constrained")
    grid = figure.subplots(len(panels), width, squeeze=False)
    looks = _looks(rows)
    for line, axes_of_line in zip(panels, grid, strict=True):
        for index, axes in enumerate(axes_of_line):
            if index >= len(line):
                axes.set_visible(False)
                continue
            fixed, value, along = line[index]
            _panel(axes, [row for row in rows if row[fixed] == value], along, looks)
            axes.set_title(_name(fixed, value))
            _scale(axes, [row for row in rows if row["alternative"] in looks])
        axes_of_line[0].set_ylabel("speed-up of the one file\n(times as fast)")
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False)
    artifact = Path(str(report.get("artifact") or "the one file")).name
    environment = report["environment"]
    facts = [str(environment[key]) for key in ("processor", "device", "provider") if environment.get(key)]
    figure.suptitle(
        "\n".join([f"{artifact} against what it replaces", ", ".join(facts)]).strip(), fontsize=11, x=0.01, ha="left"
    )
    return figure


def _panel(axes: Axes, rows: Sequence[Row], along: str, looks: Mapping[str, Mapping[str, Any]]) -> None:
    for alternative, look in looks.items():
        own = sorted((row for row in rows if row["alternative"] == alternative), key=lambda row: row[along] or 0)
        if not own:
            continue
        ratios = [row["ratio"] for row in own]
        below = [max(0.0, row["ratio"] - row["ratio_low"]) for row in own]
        above = [max(0.0, row["ratio_high"] - row["ratio"]) for row in own]
        places = [row[along] or 1 for row in own]
        axes.errorbar(places, ratios, yerr=(below, above), label=alternative, capsize=2.5, **look)
    axes.axhline(1, color="#444444", linewidth=1, linestyle="--", label="as fast as the one file", zorder=2)
    places = sorted({row[along] or 1 for row in rows})
    axes.set_xscale("log", base=2)
    axes.set_xticks(places, [str(place) for place in places])
    axes.minorticks_off()
    axes.set_xlim(places[0] / 1.3, places[-1] * 1.3)
    axes.set_xlabel("batch size B (rows)" if along == "batch" else "members N")


def _scale(axes: Axes, rows: Sequence[Row]) -> None:
    """Give every panel the same scale, logarithmic where the largest ratio dwarfs the smallest."""
    bottom = min([1.0, *(row["ratio_low"] for row in rows)])
    top = max([1.0, *(row["ratio_high"] for row in rows)])
    if top > 8 and bottom > 0:
        axes.set_yscale("log", base=2)
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_ylim(2 ** math.floor(math.log2(0.95 * bottom)), top * 1.1)
    else:
        axes.set_ylim(0.0, top * 1.1)


def _looks(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """Alternative -> how its line looks: the same in every panel, no two alike in both colour and marker."""
    names = [name for name in dict.fromkeys(row["alternative"] for row in rows) if name != "packed"]
    return {
        name: {
            "color": COLOURS[index % len(COLOURS)],
            "marker": _MARKERS[index % len(_MARKERS)],
            "linestyle": "-" if index < len(COLOURS) else "-.",
            "linewidth": 1.5,
            "markersize": 5,
        }
        for index, name in enumerate(names)
    }


def _distinct(rows: Sequence[Row], key: str) -> list[Any]:
    return sorted({row[key] for row in rows}, key=lambda value: value or 0)


def _name(key: str, value: Any) -> str:
    if key == "n_members":
        return f"N = {value} members"
    return "fixed batch" if value is None else f"batch size {value}"


# -- the page --------------------------------------------------------------------------------------


def _page(report: Mapping[str, Any], drawing: str) -> str:
    title = f"Bench of {Path(str(report.get('artifact') or 'an ensemble')).name}"
    facts = [(str(key), str(value)) for key, value in report["environment"].items()]
    rows = [[_cell(key, row.get(key)) for key in _COLUMNS] for row in report["results"]]
    head = ("batch", "members", "alternative", "times as long", "from", "to", "median (ms)")
    return html_page(
        title,
        "How many times as long each alternative takes as the one file, with a 95 % interval.",
        drawing,
        [
            ("Results", html_table(head, rows, _is_number)),
            ("Environment", html_table(("fact", "value"), facts, lambda _: False)),
        ],
    )


def _cell(key: str, value: Any) -> str:
    if value is None:
        return "-"
    if key.startswith("ratio"):
        return f"{value:.2f}"
    return f"{value:.4g}" if key == "median_ms" else str(value)


def _is_number(column: int) -> bool:
    return _COLUMNS[column] != "alternative"
