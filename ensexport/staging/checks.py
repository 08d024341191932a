"""Which targets are refused: whatever is in the way and is not ours to replace."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from ensexport.errors import OutputError, TargetExistsError, UsageError
from ensexport.staging.system import check_writable

MANIFEST = "manifest.json"
_OTHER_NAME = "Choose another name."
_MOST_MANIFEST_BYTES = 2**28


def check_names(files: Sequence[Path], folders: Sequence[Path]) -> None:
    """Refuse targets that are in each other's way.

    Raises:
        UsageError: The same target is named twice, or one lies in a folder that is another.
    """
    seen: set[str] = set()
    for target in (*files, *folders):
        if os.path.realpath(target) in seen:
            raise UsageError(f"'{target}' is named twice as output.", hint="Give each output its own name.")
        seen.add(os.path.realpath(target))
    for folder in folders:
        for target in (*files, *folders):
            if Path(os.path.realpath(folder)) in Path(os.path.realpath(target)).parents:
                raise UsageError(
                    f"output '{target}' lies in output '{folder}'.", hint="Write it beside that folder instead."
                )


def check_file(target: Path, *, force: bool) -> None:
    """Refuse a file that cannot be written.

    Raises:
        TargetExistsError: It exists and `force` is False.
        OutputError: Its folder is missing or may not be written to, or it is a folder.
    """
    _check_parent(target)
    if target.is_dir():
        raise OutputError(f"cannot write '{target}': it is a folder.", hint=_OTHER_NAME)
    if not force and os.path.lexists(target):
        raise in_the_way(target)
    check_writable(target.parent, target)


def check_folder(target: Path, *, force: bool) -> None:
    """Refuse a folder that cannot be written.

    Raises:
        TargetExistsError: It exists and `force` is False.
        OutputError: Its parent is missing or may not be written to, or what is there is not ours to replace.
    """
    if target.name in ("", ".."):
        raise OutputError(f"cannot write '{target}': a new folder needs a name of its own.", hint=_OTHER_NAME)
    _check_parent(target)
    if os.path.lexists(target):
        with contextlib.suppress(FileNotFoundError):  # another run has moved it away meanwhile
            check_replaceable(target, target)
        if not force:
            raise in_the_way(target)
    check_writable(target.parent, target)


def check_replaceable(there: Path, target: Path) -> None:
    """Refuse to replace anything but an empty folder or a package of ours.

    Args:
        there: What is to be replaced.
        target: What the user called it.

    Raises:
        OutputError: It is something else.
        FileNotFoundError: It is gone.
    """
    status = os.lstat(there)
    what = _what_it_is(there, status.st_mode)
    if what and not os.path.samestat(status, os.lstat(there)):
        raise FileNotFoundError(
            errno.ENOENT, os.strerror(errno.ENOENT), str(there)
        )  # another one since it was looked at
    if what:
        raise OutputError(f"cannot write '{target}': {what}.", hint=f"It is never replaced. {_OTHER_NAME}")


def _what_it_is(there: Path, mode: int) -> str:
    """Why something is never replaced; empty if it may be."""
    if stat.S_ISLNK(mode):
        return "it is a link"
    if not stat.S_ISDIR(mode):
        return "it is a file, and the output is a folder"
    if os.path.ismount(there):
        return "another file system is mounted there"
    for other, name in ((os.curdir, "current"), (os.path.expanduser("~"), "home")):
        if _holds(there, other):
            return f"it is or holds the {name} folder"
    is_ours = not any(there.iterdir()) or is_package(there)
    return "" if is_ours else f"it is a folder without a {MANIFEST} of ensexport"


def is_package(folder: Path) -> bool:
    """Whether a folder's manifest, a plain file, says that this tool made it."""
    try:
        status = os.lstat(folder / MANIFEST)
        if not stat.S_ISREG(status.st_mode) or status.st_size > _MOST_MANIFEST_BYTES:
            return False
        manifest = json.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    tool = manifest.get("tool") if isinstance(manifest, dict) else None
    return isinstance(tool, dict) and tool.get("name") == "ensexport"


def in_the_way(target: Path, when: str = "") -> TargetExistsError:
    """The error for a target that exists."""
    return TargetExistsError(
        f"cannot write '{target}': it exists.{when}", hint="Use --force to replace it, or another name."
    )


def _check_parent(target: Path) -> None:
    if not target.parent.is_dir():
        what = "is not a folder" if target.parent.exists() else "does not exist"
        raise OutputError(f"cannot write '{target}': '{target.parent}' {what}.", hint="Create the folder first.")


def _holds(folder: Path, other: str) -> bool:
    try:
        inner, outer = Path(os.path.realpath(other)), Path(os.path.realpath(folder))
    except FileNotFoundError:  # the current folder was removed
        return False
    return outer == inner or outer in inner.parents
