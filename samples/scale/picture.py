"""The picture of the page: time and peak memory over N, what a file's bytes cost beside what is flat.

The same numbers always give the same bytes, so that the picture changes only with what it shows.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plan import ROWS
from records import Record, find
from verdicts import bound_mb, line_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito, as in `ensexport bench --plot`.
_BLUE, _RED, _GREEN = "#0072B2", "#D55E00", "#009E73"
_STYLE = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.family": "DejaVu Sans",  # matplotlib brings it along: the same everywhere
    "font.size": 10,
    "grid.color": "#dddddd",
    "legend.frameon": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "ensexport",
    "text.parse_math": False,
}
# Those that compare nothing; the one that is larger than memory would push all others into a corner.
CURVES = {
    network: [row.name for row in ROWS if (row.network, row.validate) == (network, "none") and row.name != "larger"]
    for network in dict.fromkeys(row.network for row in ROWS)
}


def draw_curves(records: Sequence[Record], path: Path) -> bool:
    """Draw time and peak memory over N, a column for each network; without matplotlib what is there is kept.

    Returns:
        True if there is a picture.
    """
    columns = [own for own in ([find(records, name) for name in names] for names in CURVES.values()) if any(own)]
    if not columns:
        return False
    if importlib.util.find_spec("matplotlib") is None:
        return path.exists()
    import matplotlib
    from matplotlib.figure import Figure

    # Not what the user's own matplotlibrc says; the backend is only for windows.
    defaults = {key: value for key, value in matplotlib.rcParamsDefault.items() if key != "backend"}
    settings: Any = defaults | _STYLE
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(3.9 * len(columns), 6.4), layout="constrained")
        grid = figure.subplots(2, len(columns), squeeze=False)
        for number, column in enumerate(columns):
            own = [record for record in column if record is not None]
            grid[0][number].set_title(own[0]["network"], fontsize=11)
            _time(grid[0][number], own)
            _memory(grid[1][number], own)
        grid[0][0].set_ylabel("time of pack (s)")
        grid[1][0].set_ylabel("peak memory of pack (MB)")
        figure.savefig(path, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return True


def _time(axes: Axes, own: Sequence[Record]) -> None:
    counts = [record["n_members"] for record in own]
    axes.plot(counts, [record["seconds"] for record in own], "o", color=_BLUE, label="measured")
    if len(own) > 1:
        begin, slope = line_of(own)
        text = f"{begin:.1f} s + {slope:.2f} s a GB"
        axes.plot(
            counts, [begin + slope * record["packed_bytes"] / 1e9 for record in own], "-", color=_BLUE, label=text
        )
    _finish(axes)


def _memory(axes: Axes, own: Sequence[Record]) -> None:
    counts = [record["n_members"] for record in own]
    axes.plot(counts, [record["peak_mb"] for record in own], "o-", color=_BLUE, label="measured")
    label = "one member + one tensor + 1 GB"
    axes.plot(counts, [bound_mb(record) for record in own], "--", color=_GREEN, label=label)
    axes.plot(counts, [record["packed_bytes"] / 1e6 for record in own], ":", color=_RED, label="the packed file")
    _finish(axes)


def _finish(axes: Axes) -> None:
    axes.set_xlim(left=0)
    # Room for the legend above the points.
    axes.set_ylim(0, 1.45 * axes.get_ylim()[1])
    axes.set_xlabel("members N")
    axes.legend(loc="upper left", fontsize=8)
