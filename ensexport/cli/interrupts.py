"""SIGINT and SIGTERM become exceptions, so that staged files are removed on the way out.

Python drops an exception that is raised inside a destructor or weak-reference callback, of which `torch.export` has
many. So a signal is also remembered, and `check`, called between the stages of a command, raises it again.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

_CLEAN_UP_S = 2.0  # repeated signals are ignored that long: they would interrupt the removal of files


class Terminated(BaseException):
    """SIGTERM arrived. Like KeyboardInterrupt, it is not caught by `except Exception`."""


class Interrupts:
    """Remembers the signal that arrived."""

    def __init__(self) -> None:
        self._received: type[BaseException] | None = None
        self._received_at = 0.0
        self._is_held = False

    def hold(self) -> None:
        """From here on ignore signals: what is being done takes a moment and must be done whole."""
        self._is_held = True

    def check(self) -> None:
        """Raise what arrived, if anything did."""
        if self._received is not None:
            raise self._received

    @contextlib.contextmanager
    def caught(self) -> Iterator[None]:
        """Handle both signals inside. Outside the main thread nothing is changed; an ignored signal stays ignored."""
        before: dict[signal.Signals, Any] = {}
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    before[number] = signal.signal(number, self._receive)
        except ValueError:
            before.clear()
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._is_held or (self._received is not None and now - self._received_at < _CLEAN_UP_S):
            return
        self._received = KeyboardInterrupt if number == signal.SIGINT else Terminated
        self._received_at = now
        raise self._received
