"""What each stage of a long job takes, told to whoever listens."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

OnStage = Callable[[str, int, int], None]
"""Called as `(stage, done, total)`; `load`, `weights` and `digest` count bytes."""


@dataclass
class Clock:
    """Times the stages and tells a listener of them."""

    listener: OnStage | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what is done in the block; a stage may come several times."""
        self.tell(name, 0, 0)
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begin

    def tell(self, name: str, done: int, total: int) -> None:
        """Tell the listener how far a stage is."""
        if self.listener is not None:
            self.listener(name, done, total)
