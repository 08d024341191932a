"""Which line of the user's code an op came from."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

import torch
from torch import fx

_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<function>\S+)')
_TORCH = str(Path(torch.__file__).parent)
_OURS = str(Path(__file__).parent.parent)


def _is_users(file: str) -> bool:
    return not file.startswith((_TORCH, _OURS, "<")) and not file.startswith("torch/")


def source_line(node: fx.Node) -> str:
    """Return `file.py:12 in forward` for the innermost frame outside torch, or an empty string."""
    frames = [m for m in _FRAME.finditer(node.meta.get("stack_trace") or "") if _is_users(m["file"])]
    if not frames:
        return ""
    last = frames[-1]
    return f"{Path(last['file']).name}:{last['line']} in {last['function']}"


def error_line(error: BaseException) -> str:
    """Return `file.py:12 in forward` for the innermost frame of the user's code an error passed through."""
    seen: list[BaseException] = []
    current: BaseException | None = error
    found = ""
    while current is not None and current not in seen:
        seen.append(current)
        found = _innermost(current.__traceback__) or found
        current = current.__cause__ or current.__context__
    return found


def line_of_frames(frames: Iterable[traceback.FrameSummary]) -> str:
    """Return `file.py:12 in forward: y = x.view(8, -1)` for the innermost frame of the user's code."""
    frame = _users(frames)
    if frame is None:
        return ""
    where = f"{Path(frame.filename).name}:{frame.lineno} in {frame.name}"
    return f"{where}: {frame.line.strip()[:120]}" if frame.line else where


def _innermost(tb: TracebackType | None) -> str:
    frame = _users(traceback.extract_tb(tb))
    return "" if frame is None else f"{Path(frame.filename).name}:{frame.lineno} in {frame.name}"


def _users(frames: Iterable[traceback.FrameSummary]) -> traceback.FrameSummary | None:
    users = [frame for frame in frames if _is_users(frame.filename)]
    users = [frame for frame in users if "site-packages" not in frame.filename] or users
    return users[-1] if users else None
