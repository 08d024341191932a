"""Draw a bench report: speed-up over batch size and over the number of members.

The same numbers always give the same bytes, so that a drawing in a repository changes only with what it shows.
"""

from __future__ import annotations

import html
import io
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ensexport.errors import OutputError, UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, Any]
SUFFIXES = (".png", ".svg", ".html")
# Okabe and Ito: told apart by readers with any kind of colour vision. https://jfly.uni-koeln.de/color/
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = "os^Dv<>PX*hp"
_STYLE = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.family": "DejaVu Sans",  # matplotlib brings it along: the same everywhere
    "font.size": 10,
    "grid.color": "#dddddd",
    "svg.fonttype": "path",
    "svg.hashsalt": "ensexport",
    "text.parse_math": False,  # a name may hold a dollar sign
}
_COLUMNS = ("batch", "n_members", "alternative", "ratio", "ratio_low", "ratio_high", "median_ms")
_CSS = (
    "body{font-family:sans-serif;max-width:75em;margin:2em auto;padding:0 1em;color:#222;background:#fff}"
    "svg{max-width:100%;height:auto}table{border-collapse:collapse;margin:1em 0}"
    "th,td{padding:.25em .75em;border-bottom:1px solid #ddd;text-align:left}"
    "td.number,th.number{text-align:right;font-variant-numeric:tabular-nums}"
)


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
    try:
        import matplotlib
    except ImportError as error:
        raise OutputError(
            f"cannot draw '{path}': matplotlib is not installed.", hint='Run: pip install "ensexport[plot]"'
        ) from error
    # Not what the user's own matplotlibrc says; the backend is only for windows.
    defaults = {key: value for key, value in matplotlib.rcParamsDefault.items() if key != "backend"}
    settings: Any = defaults | _STYLE
    with matplotlib.rc_context(settings):
        figure = _figure(report)
        if path.suffix == ".png":
            figure.savefig(path, dpi=150, metadata={"Software": None})
            return
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    drawing = buffer.getvalue()
    path.write_text(drawing if path.suffix == ".svg" else _page(report, drawing), encoding="utf-8", newline="\n")


def check_suffix(path: Path) -> None:
    """Refuse a file that cannot be drawn. Light, so that it can be asked before anything is measured.

    Raises:
        UsageError: The suffix is none of the three.
    """
    if path.suffix not in SUFFIXES:
        raise UsageError(f"cannot draw '{path}': expected a file that ends in {', '.join(SUFFIXES)}.")


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
            "color": _COLOURS[index % len(_COLOURS)],
            "marker": _MARKERS[index % len(_MARKERS)],
            "linestyle": "-" if index < len(_COLOURS) else "-.",
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
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f"<title>{html.escape(title)}</title><style>{_CSS}</style></head><body>",
        f"<h1>{html.escape(title)}</h1>",
        "<p>How many times as long each alternative takes as the one file, with a 95 % interval.</p>",
        drawing[drawing.index("<svg") :].strip(),
        "<h2>Results</h2>",
        _table(("batch", "members", "alternative", "times as long", "from", "to", "median (ms)"), rows, _is_number),
        "<h2>Environment</h2>",
        _table(("fact", "value"), facts, lambda _: False),
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


def _cell(key: str, value: Any) -> str:
    if value is None:
        return "-"
    if key.startswith("ratio"):
        return f"{value:.2f}"
    return f"{value:.4g}" if key == "median_ms" else str(value)


def _is_number(column: int) -> bool:
    return _COLUMNS[column] != "alternative"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], is_number: Callable[[int], bool]) -> str:
    def line(tag: str, cells: Sequence[str]) -> str:
        kinds = [' class="number"' if is_number(index) else "" for index in range(len(cells))]
        return "".join(f"<{tag}{kind}>{html.escape(cell)}</{tag}>" for kind, cell in zip(kinds, cells, strict=True))

    lines = [f"<tr>{line('td', row)}</tr>" for row in rows]
    return "\n".join(["<table>", f"<thead><tr>{line('th', head)}</tr></thead>", "<tbody>", *lines, "</tbody></table>"])
