"""How paths and lists are written in messages, so that every error of this package reads the same.

A file name may hold a line break or an escape sequence; printed as it is, it could fake a second message.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path


def show_path(path: str | Path) -> str:
    """Return the path as the user gave it, or its `repr` when it holds unprintable characters."""
    text = str(path)
    return text if text.isprintable() else repr(text)


def quote_path(path: str | Path) -> str:
    """Return the path in quotes, unprintable characters escaped."""
    text = str(path)
    return f"'{text}'" if text.isprintable() else repr(text)


def join_some(items: Sequence[str], *, limit: int = 5) -> str:
    """Return `a, b, c and 4 more`: at most `limit` items, and how many are left out."""
    shown = ", ".join(items[:limit])
    return f"{shown} and {len(items) - limit} more" if len(items) > limit else shown


def join_numbers(numbers: Sequence[int]) -> str:
    """Return `0, 3 and 7`."""
    *first, last = [str(number) for number in numbers]
    return f"{', '.join(first)} and {last}" if first else last


def close_match(name: str, candidates: Iterable[str]) -> str:
    """Return ` Did you mean 'X'?`, or an empty text when nothing is close."""
    matches = difflib.get_close_matches(name, list(candidates), n=3, cutoff=0.6)
    return f" Did you mean {' or '.join(repr(match) for match in matches)}?" if matches else ""
