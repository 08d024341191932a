"""Progress of the long steps: a line that moves on a terminal's stderr, lines with `-v`, nothing otherwise.

A listener is told `(stage, done, total)`. Stages that move weights count bytes, all others what they do.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

from ensexport.resources import size_text

OnStage = Callable[[str, int, int], None]

_WORDS = {
    "import": "loading torch",
    "load": "reading checkpoints",
    "capture": "exporting one member",
    "batch": "batching",
    "export_onnx": "writing ONNX",
    "export_torchscript": "writing TorchScript",
    "export_pt2": "writing .pt2",
    "validate": "comparing with the loop",
    "loop": "running the members one by one",
    "weights": "writing the weights",
    "digest": "computing checksums",
    "write": "putting the files in place",
    "prepare": "preparing the alternatives",
    "start": "starting one process an alternative",
    "measure": "measuring",
    "curve": "running the data",
    "samples": "running the samples",
    "profile": "counting kernels and work",
}
_IN_BYTES = {"load", "weights", "digest"}


@contextmanager
def progress(*, verbose: bool, quiet: bool) -> Iterator[OnStage]:
    """Yield a listener `(stage, done, total)`."""
    if quiet or not (verbose or sys.stderr.isatty()):
        yield lambda stage, done, total: None
    elif verbose:
        listing = _Listing()
        yield listing.show
        listing.end_stage()
    else:
        from rich.console import Console

        from ensexport.cli.progress_bar import ProgressBar

        with ProgressBar(_words, _IN_BYTES.__contains__, Console(stderr=True)) as bar:
            yield bar.show


class _Listing:
    """One line a stage on stderr, with the seconds since the start; one more at the end of a stage that moved bytes."""

    def __init__(self) -> None:
        self._begin = time.perf_counter()
        self._stage, self._stage_begin, self._done = "", 0.0, 0

    def show(self, stage: str, done: int, total: int) -> None:
        if stage != self._stage:
            self.end_stage()
            self._stage, self._stage_begin = stage, self._seconds()
            self._say(_words(stage))
        self._done = done

    def end_stage(self) -> None:
        if self._stage in _IN_BYTES and self._done:
            took = self._seconds() - self._stage_begin
            rate = f" in {took:.1f} s, {size_text(int(self._done / took))}/s" if took > 0 else ""
            self._say(f"{_words(self._stage)}: {size_text(self._done)}{rate}")
        self._stage, self._done = "", 0

    def _seconds(self) -> float:
        return time.perf_counter() - self._begin

    def _say(self, text: str) -> None:
        click.echo(f"{self._seconds():7.1f} s  {text}", err=True)


def _words(stage: str) -> str:
    return _WORDS.get(stage, stage)
