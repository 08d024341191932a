"""stdout is the answer: whatever else is printed while a command works goes to stderr."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from typing import Any

import click

from ensexport.spec import json_number


def prepare_streams() -> None:
    """Make the standard streams safe to use, whatever the caller left of them.

    One that is closed becomes the null device, lest the next file opened be taken for it. A character that the
    terminal's encoding has not is written as an escape sequence.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    sys.stdout = sys.__stdout__ = _usable(sys.stdout, 1)  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = _usable(sys.stderr, 2)  # type: ignore[misc]


def _usable(stream: Any, descriptor: int) -> Any:
    if stream is None:
        return open(descriptor, "w", errors="backslashreplace", closefd=False)
    stream.reconfigure(errors="backslashreplace")
    return stream


@contextlib.contextmanager
def stdout_for_the_answer() -> Iterator[None]:
    """Send everything printed inside (a model's own prints, a library's chatter) to stderr.

    That holds for Python's `print`, for C code and for child processes. Where stdout was replaced by a Python object,
    as tests do, it holds for Python code only.
    """
    stdout = sys.__stdout__
    is_replaced = sys.stdout is not stdout or sys.stderr is not sys.__stderr__
    with contextlib.redirect_stdout(sys.stderr):
        if stdout is None or is_replaced:
            yield
            return
        stdout.flush()
        saved = os.dup(1)
        os.dup2(2, 1)
        try:
            yield
        finally:
            stdout.flush()  # what code wrote to `sys.__stdout__` itself
            _flush_c_streams()
            os.dup2(saved, 1)
            os.close(saved)


def _flush_c_streams() -> None:
    if os.name == "posix":
        import ctypes

        ctypes.CDLL(None).fflush(None)


def end_stdout() -> None:
    """Send what user code prints at interpreter exit to stderr; the answer is out."""
    with contextlib.suppress(OSError):
        os.dup2(2, 1)


def drop_streams() -> None:
    """Nobody reads stdout or stderr any more: keep the interpreter from complaining about it at exit."""
    null = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(null, descriptor)
    os.close(null)


def write_json(answer: dict[str, Any]) -> None:
    """Write the one JSON object; see `json_number` for NaN and Inf."""
    click.echo(json.dumps(_plain(answer), allow_nan=False))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return json_number(value)
