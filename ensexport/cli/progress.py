"""Progress of the long steps: a line that moves on a terminal's stderr, nothing anywhere else."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_WORDS = {
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
    "measure": "measuring",
}


@contextmanager
def progress(*, quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """Yield a listener `(stage, done, total)`."""
    if quiet or not sys.stderr.isatty():
        yield lambda stage, done, total: None
        return
    from rich.console import Console

    console = Console(stderr=True)
    with console.status("starting") as status:

        def listen(stage: str, done: int, total: int) -> None:
            count = f" {done}/{total}" if total else ""
            status.update(f"{_WORDS.get(stage, stage)}{count}")

        yield listen
