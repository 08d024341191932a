"""Drawings as files: `.png`, `.svg`, or a self-contained `.html` page with tables.

The same numbers always give the same bytes, so that a drawing in a repository changes only with what it shows.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ensexport.errors import OutputError, UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg", ".html")
# Okabe and Ito: told apart by readers with any kind of colour vision. https://jfly.uni-koeln.de/color/
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
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
_CSS = (
    "body{font-family:sans-serif;max-width:75em;margin:2em auto;padding:0 1em;color:#222;background:#fff}"
    "svg{max-width:100%;height:auto}table{border-collapse:collapse;margin:1em 0}"
    "th,td{padding:.25em .75em;border-bottom:1px solid #ddd;text-align:left}"
    "td.number,th.number{text-align:right;font-variant-numeric:tabular-nums}"
)


def write_drawing(path: Path, figure: Callable[[], Figure], page: Callable[[str], str]) -> None:
    """Write a drawing.

    Args:
        path: The file to write.
        figure: Makes the drawing, in matplotlib's default style.
        page: Makes an HTML page of the drawing as SVG.

    Raises:
        UsageError: The suffix is none of the three.
        OutputError: matplotlib is not installed.
    """
    check_suffix(path)
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
        made = figure()
        if path.suffix == ".png":
            made.savefig(path, dpi=150, metadata={"Software": None})
            return
        buffer = io.StringIO()
        made.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    drawing = _shortened(buffer.getvalue())
    path.write_text(drawing if path.suffix == ".svg" else page(drawing), encoding="utf-8", newline="\n")


def _shortened(drawing: str) -> str:
    """An SVG without indentation, places to a hundredth of a point; scales, which are small numbers, as they are."""
    lines = (line.lstrip() for line in drawing.splitlines())
    return re.sub(r"(?<!scale\()\b([0-9]+\.[0-9]{2})[0-9]+", r"\1", "\n".join(lines)) + "\n"


def check_suffix(path: Path) -> None:
    """Refuse a file that cannot be drawn. Light, so that it can be asked before anything is measured.

    Raises:
        UsageError: The suffix is none of the three.
    """
    if path.suffix not in SUFFIXES:
        raise UsageError(f"cannot draw '{path}': expected a file that ends in {', '.join(SUFFIXES)}.")


def html_page(title: str, introduction: str, drawing: str, sections: Sequence[tuple[str, str]]) -> str:
    """A page that needs nothing else: a drawing as SVG, and below it sections of a heading and HTML each."""
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f"<title>{html.escape(title)}</title><style>{_CSS}</style></head><body>",
        f"<h1>{html.escape(title)}</h1>",
        f"<p>{html.escape(introduction)}</p>",
        drawing[drawing.index("<svg") :].strip(),
    ]
    for heading, content in sections:
        parts += [f"<h2>{html.escape(heading)}</h2>", content]
    return "\n".join([*parts, "</body></html>"]) + "\n"


def html_table(head: Sequence[str], rows: Sequence[Sequence[str]], is_number: Callable[[int], bool]) -> str:
    """A table of texts; `is_number` says of a column whether it is set to the right."""

    def line(tag: str, cells: Sequence[str]) -> str:
        kinds = [' class="number"' if is_number(index) else "" for index in range(len(cells))]
        return "".join(f"<{tag}{kind}>{html.escape(cell)}</{tag}>" for kind, cell in zip(kinds, cells, strict=True))

    lines = [f"<tr>{line('td', row)}</tr>" for row in rows]
    return "\n".join(["<table>", f"<thead><tr>{line('th', head)}</tr></thead>", "<tbody>", *lines, "</tbody></table>"])
