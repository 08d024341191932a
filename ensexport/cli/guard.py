"""Under `ulimit -v` or `ulimit -d` the work is done in a second process, so that its death can be reported.

Where such a limit is reached, some libraries end the process that uses them: C++ by `std::terminate`, the run-time
library of GCC with `cannot allocate memory for thread-local data: ABORT`, OpenBLAS and libgomp by `exit(1)`. Nothing in
that process can say what happened or remove its files then. Without a limit nothing is forked.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from ensexport.errors import OutOfMemoryError
from ensexport.memory_errors import is_tight
from ensexport.resources import memory_limits, peak_of_children, size_text
from ensexport.staging import remove_room, tell_folders

_FOLDER, _END = b"folder", b"end"


def is_limited() -> bool:
    """Whether the shell that started this process limits its memory."""
    return hasattr(os, "fork") and any("ulimit" in limit.what for limit in memory_limits())


def guarded(work: Callable[[], int], report: Callable[[BaseException], int]) -> int:
    """Do the work in a child process.

    Args:
        work: Returns an exit code.
        report: Reports an error and returns its exit code.

    Returns:
        In the child and, if the child came to its end, in the parent too: the exit code of the work. Otherwise that of
        the report, and the child's files are removed.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    reading, writing = os.pipe()
    with _Forwarding() as forwarding:
        child = os.fork()
        if not child:
            forwarding.end()
            os.close(reading)
            return _in_child(work, writing)
        os.close(writing)
        forwarding.begin(child)
        _, status = os.waitpid(child, 0)
    os.set_blocking(reading, False)  # a process that the model's code started may hold the other end
    notes = list(_notes(reading))
    code = next((int(value) for name, value in notes if name == _END), None)
    if code is not None:
        return code
    for name, value in notes:
        if name == _FOLDER:
            remove_room(Path(os.fsdecode(value)))
    return report(_ended(os.waitstatus_to_exitcode(status)))


def _in_child(work: Callable[[], int], notes: int) -> int:
    def note(name: bytes, value: bytes) -> None:
        os.write(notes, name + b"\0" + value + b"\0")

    def note_folder(folder: Path) -> None:
        note(_FOLDER, os.fsencode(folder))

    tell_folders(note_folder)
    try:
        code = work()
    except MemoryError:
        os._exit(1)  # not even the report could be made; the parent will
    note(_END, str(code).encode())
    if code and is_tight():  # what libraries do at the interpreter's end would fail, with tracebacks
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)
    return code


def _notes(descriptor: int) -> Iterator[tuple[bytes, bytes]]:
    content = b""
    with contextlib.suppress(BlockingIOError):
        while block := os.read(descriptor, 2**16):
            content += block
    os.close(descriptor)
    parts = content.split(b"\0")[:-1]
    yield from zip(parts[::2], parts[1::2], strict=True)


def _ended(exit_code: int) -> OutOfMemoryError:
    how = f"exit code {exit_code}" if exit_code >= 0 else signal.Signals(-exit_code).name
    limit = min((one for one in memory_limits() if "ulimit" in one.what), key=lambda one: one.total_bytes)
    peak = peak_of_children()
    return OutOfMemoryError(
        f"out of memory: a library ended the process ({how}), as they do when the system gives them no more: it held "
        f"{size_text(peak or 0)} at most, of {size_text(limit.total_bytes)} ({limit.what}).",
        hint=f"Raise the limit ({limit.what.rpartition(', ')[2]}), or lift it.",
        peak_bytes=peak,
        limit=limit.what,
        limit_bytes=limit.total_bytes,
    )


class _Forwarding:
    """Hands SIGINT and SIGTERM on to the child, which answers them; one that it has already it takes once."""

    def __init__(self) -> None:
        self._child: int | None = None
        self._early: list[int] = []
        self._before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def __enter__(self) -> _Forwarding:
        for number, handler in self._before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, self._receive)
        return self

    def __exit__(self, *error: object) -> None:
        self.end()

    def begin(self, child: int) -> None:
        self._child = child
        for number in self._early:
            self._receive(number, None)

    def end(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if self._child is None:
            self._early.append(number)
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._child, number)
