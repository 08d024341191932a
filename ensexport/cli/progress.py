"""Progress of the long steps: a line that moves on a terminal's stderr, lines with `-v`, nothing otherwise."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

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
    "write": "putting the files in place",
    "prepare": "preparing the alternatives",
    "start": "starting one process an alternative",
    "measure": "measuring",
    "profile": "counting kernels and work",
}


@contextmanager
def progress(*, verbose: bool, quiet: bool) -> Iterator[OnStage]:
    """Yield a listener `(stage, done, total)`."""
    if quiet or not (verbose or sys.stderr.isatty()):
        yield lambda stage, done, total: None
    elif verbose:
        yield _listing()
    else:
        from rich.console import Console

        with Console(stderr=True).status("starting") as status:
            yield lambda stage, done, total: status.update(_words(stage, done, total))


def _listing() -> OnStage:
    """One line a stage on stderr, with the seconds since the start."""
    begin = time.perf_counter()
    last = ""

    def listen(stage: str, done: int, total: int) -> None:
        nonlocal last
        if stage != last:
            click.echo(f"{time.perf_counter() - begin:7.1f} s  {_words(stage, 0, 0)}", err=True)
        last = stage

    return listen


def _words(stage: str, done: int, total: int) -> str:
    return f"{_WORDS.get(stage, stage)}{f' {done}/{total}' if total else ''}"
