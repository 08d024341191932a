"""What the operating system is asked for, and what its refusals mean. Where it lacks a call, the callers do without."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from ensexport.errors import OutputError

# Flags of renameat2(2), by its manual page: fail if the target exists; swap the two.
NO_REPLACE, EXCHANGE = 1, 2
# A kernel or file system without the call, or without the flag, says one of these.
NO_SUCH_CALL = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP)
NO_HARD_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
MODE_FILE, MODE_FOLDER = "mode-of-a-file", "mode-of-a-folder"

_AT_FDCWD = -100
_IS_THERE = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR, errno.EISDIR)  # what appeared after one had looked
_NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP)
_PERMISSIONS = "Check the folder's permissions."
_HINTS = {
    errno.ENOSPC: "Free some space.",
    errno.EDQUOT: "Free some space.",
    errno.EFBIG: "Raise the limit on file sizes (ulimit -f).",
    errno.EACCES: _PERMISSIONS,
    errno.EPERM: _PERMISSIONS,
    errno.EROFS: "Choose a folder that can be written to.",
    errno.EXDEV: "This file system cannot move what is there: remove it first, or use another name.",
}


@contextlib.contextmanager
def writing(target: Path) -> Iterator[None]:
    """Turn the operating system's refusal to write into an `OutputError` that names the target."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        hint = _HINTS.get(error.errno or 0, "")
        raise OutputError(f"cannot write '{target}': {reason}.", hint=hint) from error


def check_writable(parent: Path, target: Path) -> None:
    """Refuse a target whose folder may not be written to.

    Raises:
        OutputError: It may not.
    """
    if not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write '{target}': '{parent}' may not be written to.", hint=_PERMISSIONS)


def rename_new(source: Path, target: Path) -> None:
    """Rename to a name that is free.

    Where the system has no such call, it is looked first, and a plain rename of a folder replaces an empty one at most.

    Raises:
        FileExistsError: It is not free.
        OSError: The system refuses.
    """
    try:
        renameat2(source, target, NO_REPLACE)
    except OSError as error:
        if error.errno not in NO_SUCH_CALL:
            raise
        is_there = os.path.lexists(target)
        if not is_there:
            try:
                os.rename(source, target)
            except OSError as refusal:
                if refusal.errno not in _IS_THERE:
                    raise
                is_there = True
        if is_there:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from None


def renameat2(source: Path, target: Path, flags: int) -> None:
    """Rename with the flags of Linux.

    Raises:
        OSError: The system refuses; ENOSYS where it has no such call.
    """
    call = _renameat2()
    if call is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    number = call(os.fsencode(source), os.fsencode(target), flags)
    if number:
        raise OSError(number, os.strerror(number), str(source), None, str(target))


@functools.cache
def _renameat2() -> Callable[[bytes, bytes, int], int] | None:
    """The call as `(source, target, flags) -> error number`; None where the C library has none."""
    import ctypes

    try:
        function = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):  # TypeError: Windows has no CDLL(None)
        return None
    function.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)

    def call(source: bytes, target: bytes, flags: int) -> int:
        ctypes.set_errno(0)
        return ctypes.get_errno() if function(_AT_FDCWD, source, _AT_FDCWD, target, flags) else 0

    return call


def default_modes(folder: Path) -> tuple[int, int]:
    """The modes that `open` gives a new file and `mkdir` a new folder. Asking the umask would change it meanwhile.

    Args:
        folder: Where to try it.
    """
    descriptor = os.open(folder / MODE_FILE, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        file_mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
    finally:
        os.close(descriptor)
    os.unlink(folder / MODE_FILE)
    os.mkdir(folder / MODE_FOLDER, 0o777)
    folder_mode = stat.S_IMODE(os.lstat(folder / MODE_FOLDER).st_mode)
    os.rmdir(folder / MODE_FOLDER)
    return file_mode, folder_mode


def sync_file(path: Path) -> None:
    """Have the system write a file to the disk; a link is refused, not followed."""
    descriptor = os.open(path, (os.O_RDONLY if os.name == "posix" else os.O_RDWR) | getattr(os, "O_NOFOLLOW", 0))
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Have the system write a folder's list of names to the disk, where it can."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:  # some network file systems cannot
            raise
    finally:
        os.close(descriptor)
