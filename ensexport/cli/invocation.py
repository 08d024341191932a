"""What one run of the command line knows of itself: the root options, and how to do long work under them."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import click

from ensexport.cli.interrupts import Interrupts
from ensexport.cli.progress import OnStage, progress
from ensexport.cli.room import check_room_for_libraries
from ensexport.cli.streams import stdout_for_the_answer
from ensexport.resources import Reserve

if TYPE_CHECKING:
    from ensexport.estimates import Estimate

_MUCH_BYTES = 2_000_000_000


@dataclass
class Invocation:
    """One run.

    Attributes:
        verbose: `-v`: say the stages, one a line.
        quiet: `-q`: errors only.
        debug: `--debug`: show the traceback of an error.
        interrupts: The signals that arrived.
        reserve: Memory to say with what happened when there is no more.
    """

    verbose: bool = False
    quiet: bool = False
    debug: bool = False
    interrupts: Interrupts = field(default_factory=Interrupts)
    reserve: Reserve | None = None

    @contextlib.contextmanager
    def working(self) -> Iterator[OnStage]:
        """Keep stdout clean and show progress while a command works.

        Yields:
            A listener `(stage, done, total)` for the library.

        Raises:
            MemoryLimitError: There is not enough memory to begin with.
        """
        check_room_for_libraries()
        self.reserve = Reserve()
        with stdout_for_the_answer(), warnings.catch_warnings(), self._progress() as show:
            if self.quiet:
                warnings.simplefilter("ignore")

            def listen(stage: str, done: int, total: int) -> None:
                self.interrupts.check()
                if stage == "write":
                    self.interrupts.hold()
                show(stage, done, total)

            listen("import", 0, 0)
            yield listen

    def say_estimate(self, estimate: Estimate) -> None:
        """Say what will be needed: always where it is much, with `-v` in any case."""
        if not self.quiet and (self.verbose or estimate.memory_bytes + estimate.disk_bytes >= _MUCH_BYTES):
            click.echo(str(estimate), err=True)

    def _progress(self) -> contextlib.AbstractContextManager[OnStage]:
        return progress(verbose=self.verbose, quiet=self.quiet)
