"""Staging folders: a living process holds a lock on each of its own, so one without a lock is a dead process's.

The lock is flock(2) on the folder itself, which ends with the process however that ends. A new folder is made, locked
and then looked for once more: a scan that came in between has removed it, and another is made. So neither needs a lock
on the folder around it, which other programs may hold. The name says on which machine it was made, for some network
file systems keep such locks on each machine for itself; where a file system knows no locks, the name says that, and
nothing is ever removed.

Source: flock(2), proc_sys_kernel_random(5) for boot_id.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ensexport.staging.journal import JOURNAL, recover
from ensexport.staging.moves import NEW, REPLACED
from ensexport.staging.system import MODE_FILE, MODE_FOLDER

SCRATCH = "scratch"

_PREFIX, _UNLOCKED, _KEPT = ".ensexport-", "unlocked-", "kept-"
_KNOWN = {NEW, REPLACED, SCRATCH, JOURNAL, MODE_FILE, MODE_FOLDER}
_NAME = re.compile(rf"{re.escape(_PREFIX)}([0-9a-f]{{8}})([0-9a-f]{{8}})[0-9a-f]{{16}}")
_WAIT_S, _LOOK_S = 10.0, 0.002  # renames take less than a millisecond
_FOLDER_ONLY = getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0)

_listeners: list[Callable[[Path], None]] = []
_living: list[Room] = []  # of this process


def tell_folders(listener: Callable[[Path], None]) -> None:
    """Have `listener` told of each staging folder before it is made, to call `remove_room` if this process cannot."""
    _listeners.append(listener)


class Room:
    """One staging folder. It is noted by its owner before it is made, so that no signal can come between.

    Args:
        parent: Where the targets lie.
        is_locked: False where locks are known to be refused.
    """

    def __init__(self, parent: Path, *, is_locked: bool) -> None:
        machine = "".join(_machine()) if is_locked else _UNLOCKED
        # Absolute, so that a model that changes the current folder moves nothing. A `..` stays: it may follow a link.
        self.path = Path(parent.absolute(), f"{_PREFIX}{machine}{secrets.token_hex(8)}")
        self.is_locked = is_locked
        self._descriptor: int | None = None
        self._process = os.getpid()
        _living.append(self)
        for listener in _listeners:
            listener(self.path)

    def make(self) -> bool:
        """Make and lock it; returns False if that did not come about: it was taken away, or cannot be locked.

        Raises:
            OSError: The system refuses.
        """
        self.path.mkdir(mode=0o700)
        if self.is_locked:
            try:
                self._descriptor = _locked(self.path)
                if self._descriptor is None:
                    self.is_locked = False
                    return False
                if not os.path.samestat(os.fstat(self._descriptor), os.lstat(self.path)):
                    return False
            except (FileNotFoundError, BlockingIOError):
                return False
        for folder in (NEW, REPLACED):
            (self.path / folder).mkdir(mode=0o700)
        return True

    def remove(self) -> None:
        """Remove it, and what is in it; in a fork of the process that made it, do nothing."""
        if os.getpid() != self._process:
            return
        try:
            _remove_tree(self.path)
        finally:
            try:  # once more, for whatever interrupted it
                if os.path.lexists(self.path):
                    _open_up(self.path)
                    _remove_tree(self.path)
            finally:
                self._end()

    def keep(self) -> Path:
        """Give it a name under which no other run removes it, if that can be done; returns its path."""
        kept = self.path.with_name(f"{_PREFIX}{_KEPT}{secrets.token_hex(8)}")
        with contextlib.suppress(OSError):
            os.rename(self.path, kept)
            self.path = kept
            self._end()
        return self.path

    def _end(self) -> None:
        if self in _living:
            _living.remove(self)
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


def make_room(parent: Path, note: Callable[[Room], None]) -> None:
    """Make a staging folder.

    Args:
        parent: Where the targets lie.
        note: Called with each room before it is made; the last one is the one to use.

    Raises:
        OSError: The system refuses.
    """
    is_locked = _can_lock()
    while True:
        room = Room(parent, is_locked=is_locked)
        note(room)
        if room.make():
            return
        room.remove()
        is_locked = room.is_locked


@atexit.register
def remove_rooms() -> None:
    """Remove what this process has staged and not removed: a signal may raise its exception on the way to that."""
    for room in list(_living):
        room.remove()


def clear_stale(parent: Path) -> None:
    """Remove the staging folders of dead processes, and put back what they had moved away.

    Only folders of this user that hold nothing else are looked at. What cannot be read or removed is left alone.

    Args:
        parent: Where to look.
    """
    if not _can_lock():
        return
    with contextlib.suppress(OSError):
        for name in os.listdir(parent):
            found = _NAME.fullmatch(name)
            if found and any(ours == theirs for ours, theirs in zip(_machine(), found.groups(), strict=True)):
                with contextlib.suppress(OSError):
                    _clear_if_dead(parent.absolute() / name)


def remove_room(folder: Path) -> None:
    """Remove the staging folder of a process that has ended, and put back what it had moved away.

    Args:
        folder: As told to the listener of `tell_folders`.
    """
    with contextlib.suppress(OSError):
        recover(folder)
    _remove_tree(folder)


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other runs from renaming anything in a folder meanwhile, so that what two runs write is never mixed.

    Where locks are refused, or some other program holds this one for long, go on without.

    Args:
        folder: Where the targets lie.
    """
    deadline, descriptor = time.monotonic() + _WAIT_S, None
    while descriptor is None and _can_lock() and time.monotonic() < deadline:
        try:
            descriptor = _locked(folder, follow=True)
            break
        except BlockingIOError:
            time.sleep(_LOOK_S)
        except OSError:
            break
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _clear_if_dead(folder: Path) -> None:
    descriptor = _locked(folder)
    if descriptor is None:
        return
    try:
        status = os.fstat(descriptor)
        is_ours = status.st_uid == os.geteuid() and os.path.samestat(status, os.lstat(folder))
        if is_ours and _KNOWN.issuperset(os.listdir(folder)):
            with alone_in(folder.parent):
                recover(folder)
            _remove_tree(folder)
    finally:
        os.close(descriptor)


def _remove_tree(folder: Path) -> None:
    with contextlib.suppress(OSError):  # first, for from here on there is nothing to put back
        os.unlink(folder / JOURNAL)
    with contextlib.suppress(OSError):  # a signal's exception on its way out makes it close a folder twice
        shutil.rmtree(folder, ignore_errors=True)


def _open_up(folder: Path) -> None:
    """Make folders writable, as those of a package that was replaced may not be."""
    for inside, names, _ in os.walk(folder):
        for path in (os.path.join(inside, name) for name in names):
            if not os.path.islink(path):
                with contextlib.suppress(OSError):
                    os.chmod(path, 0o700)


def _can_lock() -> bool:
    try:
        import fcntl  # noqa: F401
    except ImportError:  # Windows
        return False
    return True


def _locked(folder: Path, *, follow: bool = False) -> int | None:
    """Open and lock a folder; None if locks are refused.

    Args:
        folder: The folder.
        follow: It may be a link to one.

    Raises:
        BlockingIOError: Another process has the lock.
        OSError: It is no folder, or cannot be opened.
    """
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY | (0 if follow else _FOLDER_ONLY))
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise
    except OSError:
        os.close(descriptor)
        return None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


@functools.cache
def _machine() -> tuple[str, str]:
    """Tokens of this boot of this machine, and of its name: containers have names of their own on the same kernel."""
    name = os.uname().nodename if hasattr(os, "uname") else ""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
    except OSError:
        boot = f"boot of {name}"
    boot_token, name_token = (hashlib.sha256(text.encode()).hexdigest()[:8] for text in (boot, name))
    return boot_token, name_token
