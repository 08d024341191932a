"""What each stage of a long job takes, told to whoever listens."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from ensexport.resources import status_bytes

OnStage = Callable[[str, int, int], None]
"""Called as `(stage, done, total)`; `load`, `weights` and `digest` count bytes."""

_SAMPLE_S = 0.02


@dataclass
class Clock:
    """Times the stages, notes their peak memory, and tells a listener of them.

    Attributes:
        listener: Is told.
        seconds: Stage -> seconds.
        peak_bytes: Stage -> the most resident memory of the process meanwhile; empty where the system does not say.
    """

    listener: OnStage | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    peak_bytes: dict[str, int] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what is done in the block; a stage may come several times."""
        self.tell(name, 0, 0)
        begin, watch = time.perf_counter(), _Watch()
        try:
            watch.begin()
            yield
        finally:
            watch.end()
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begin
            if watch.highest:
                self.peak_bytes[name] = max(self.peak_bytes.get(name, 0), watch.highest)

    def tell(self, name: str, done: int, total: int) -> None:
        """Tell the listener how far a stage is."""
        if self.listener is not None:
            self.listener(name, done, total)


class _Watch:
    """The most resident memory: exact where it was the most ever, else the largest of samples.

    The kernel's own mark could be set back, but whoever watches this process from outside reads the same mark.
    """

    def __init__(self) -> None:
        self.highest = 0
        self._mark = status_bytes("VmHWM") or 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def begin(self) -> None:
        if self._mark:
            self._thread.start()

    def end(self) -> None:
        self._over.set()
        mark = status_bytes("VmHWM") or 0
        self._look()
        self.highest = mark if mark > self._mark else self.highest

    def _sample(self) -> None:
        while not self._over.wait(_SAMPLE_S):
            self._look()

    def _look(self) -> None:
        self.highest = max(self.highest, status_bytes("VmRSS") or 0)
