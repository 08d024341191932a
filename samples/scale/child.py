"""Run a command as a child and take the operating system's account of it: seconds, and the most memory it held.

The account is `wait4`'s, taken from outside: what the child says of itself is not asked. Nothing large may be imported
here: Linux counts as the child's what this process held when it was started, see `setmax_mm_hiwater_rss` in exec.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from ensexport.timing.memory import available_mb

MB = 1e6
POLL_S = 0.02
# Below this the kernel begins to kill, and not only the child.
LEAST_AVAILABLE_MB = 600.0


class ChildError(RuntimeError):
    """A child failed or was stopped."""


@dataclass(frozen=True)
class Account:
    """What a child did.

    Attributes:
        exit_code: Minus the signal where one ended it.
        seconds: From its start to its end, the interpreter's included.
        peak_mb: The most memory it held at a time, pages of mapped files included: `ru_maxrss`.
        stdout: What it answered.
        stderr: What else it said.
        stopped: Why it was stopped from here; empty if it was not.
    """

    exit_code: int
    seconds: float
    peak_mb: float
    stdout: str
    stderr: str
    stopped: str


def run_child(command: Sequence[str], folder: Path, limit_s: float) -> Account:
    """Run a command to its end, or to a limit.

    Args:
        command: Program and arguments.
        folder: Its current directory.
        limit_s: It is killed after so many seconds, or once the machine has less than `LEAST_AVAILABLE_MB` left.

    Returns:
        Its account.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        begin = time.perf_counter()
        process = None
        stopped = ""
        try:
            with _signals_held_back():
                process = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
            while True:
                found, status, usage = os.wait4(process.pid, os.WNOHANG)
                seconds = time.perf_counter() - begin
                if found:
                    break
                if not stopped:
                    stopped = _reason_to_stop(seconds, limit_s)
                    if stopped:
                        process.kill()
                time.sleep(POLL_S)
            process.returncode = os.waitstatus_to_exitcode(status)  # Popen did not see it end
        finally:
            if process is not None and process.returncode is None:
                process.kill()
                process.wait()
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2): bytes there, kilobytes on Linux
    return Account(process.returncode, seconds, usage.ru_maxrss * unit / MB, texts[0], texts[1], stopped)


@contextlib.contextmanager
def _signals_held_back() -> Iterator[None]:
    """Let SIGINT and SIGTERM wait: inside `Popen` their exceptions would lose a child that is already running."""
    held: list[tuple[int, FrameType | None]] = []
    usual = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in usual:
        signal.signal(number, lambda number, frame: held.append((number, frame)))
    try:
        yield
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)
    for received, _ in held:
        signal.raise_signal(received)


def run_checked(command: Sequence[str], folder: Path, limit_s: float, what: str) -> Account:
    """`run_child`, for a command that has to succeed.

    Raises:
        ChildError: It did not; the text names it, its exit code and what it said.
    """
    return check(run_child(command, folder, limit_s), what)


def check(account: Account, what: str) -> Account:
    """Return the account of a child that succeeded.

    Raises:
        ChildError: It did not: with the message of its JSON, or its last line.
    """
    if account.exit_code == 0 and not account.stopped:
        return account
    if account.stopped:
        raise ChildError(f"{what} was {account.stopped}")
    try:
        words = json.loads(account.stdout)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        words = (account.stderr.strip().splitlines() or ["it said nothing"])[-1]
    raise ChildError(f"{what} ended with exit code {account.exit_code}: {words}")


def _reason_to_stop(seconds: float, limit_s: float) -> str:
    if seconds > limit_s:
        return f"stopped after {limit_s:g} s"
    available = available_mb()
    if available is not None and available < LEAST_AVAILABLE_MB:
        return f"stopped: the machine had {available:.0f} MB of memory left"
    return ""
