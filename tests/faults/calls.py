"""Failing calls: the n-th call by which the code under test changes a folder raises an error, or ends the process.

The calls are replaced where Python code finds them: functions of `os`, `open` with the files it gives, and renameat2.
Only those count that concern the folder under test, so that a whole command can be run with them.
"""

import builtins
import contextlib
import functools
import io
import os

from ensexport.staging import system

ALLOCATING = (
    "open", "mkdir", "link", "symlink", "fsync", "pwrite", "write", "truncate", "posix_fallocate",
)  # fmt: skip
NAMES = (*ALLOCATING, "rename", "replace", "unlink", "rmdir", "chmod", "look")  # look: to open for reading


class Calls:
    """Counts the calls and lets some of them fail.

    Args:
        folder: Calls that concern something else are not counted.
        number: Which call fails, from 1; 0 for none.
        fail: Called instead of it; it raises, kills, or returns to let the call be made.
        names: The calls that count.
        is_lasting: All calls from that one on fail.
    """

    def __init__(self, folder, number=0, fail=None, names=NAMES, *, is_lasting=False):
        self.folder, self.number, self.fail = os.path.realpath(folder), number, fail
        self.names, self.is_lasting = names, is_lasting
        self.made = 0
        self.failed = []

    def note(self, name, *paths):
        """Count a call; let it fail if it is its turn."""
        if name not in self.names or not any(self._concerns(path) for path in paths):
            return
        self.made += 1
        if self.number and (self.made == self.number or (self.is_lasting and self.made > self.number)):
            self.failed.append(name)
            self.fail()

    def _concerns(self, path):
        if isinstance(path, int):
            try:
                path = os.readlink(f"/proc/self/fd/{path}")
            except OSError:
                return False
        return os.path.abspath(os.fsdecode(path)).startswith(self.folder)

    @contextlib.contextmanager
    def counted(self):
        """Replace the calls inside."""
        before = {name: getattr(os, name) for name in NAMES if name != "look"}
        opened, find = io.open, system._renameat2
        for name, real in before.items():
            setattr(os, name, self._os_call(name, real))
        io.open = builtins.open = functools.partial(self._open, opened)
        system._renameat2 = lambda: self._renameat2(find())
        try:
            yield self
        finally:
            for name, real in before.items():
                setattr(os, name, real)
            io.open = builtins.open = opened
            system._renameat2 = find

    def _os_call(self, name, real):
        def call(*args, **kwargs):
            within = kwargs.get("dir_fd")
            paths = args[:2] if name in ("link", "symlink", "rename", "replace") else args[:1]
            writes = name != "open" or args[1] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            self.note(name if writes else "look", *((within,) if within is not None else paths))
            return real(*args, **kwargs)

        return call

    def _renameat2(self, real):
        if real is None:
            return None

        def call(source, target, flags):
            try:
                self.note("rename", source, target)
            except OSError as error:
                return error.errno
            return real(source, target, flags)

        return call

    def _open(self, real, file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, closefd=True,
              opener=None):  # fmt: skip
        if not set(mode) & set("wax+") or not self._concerns(file):
            return real(file, mode, buffering, encoding, errors, newline, closefd, opener)
        self.note("open", file)
        raw = _File(file, mode.replace("b", "").replace("t", ""), closefd, opener)
        raw.calls = self
        if buffering == 0:
            return raw
        whole = (io.BufferedRandom if "+" in mode else io.BufferedWriter)(raw)
        if "b" in mode:
            return whole
        return io.TextIOWrapper(whole, encoding, errors, newline)


class _File(io.FileIO):
    """A file whose writes are counted."""

    calls = None

    def write(self, data):
        self.calls.note("write", self.name)
        return super().write(data)

    def truncate(self, size=None):
        self.calls.note("truncate", self.name)
        return super().truncate(size)


def raises(number):
    """A fault: an `OSError` with this number."""

    def fail():
        raise OSError(number, os.strerror(number))

    return fail


def without_renameat2():
    """Takes the place of `system._renameat2` to make a system that lacks the call."""
