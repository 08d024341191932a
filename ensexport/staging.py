"""Every file this tool writes is made beside its target and renamed last: whole, or not there at all.

One writer for all: a full disk, a signal or a failed check leaves nothing behind, and an existing target keeps its
bytes until the new ones are complete.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from ensexport.errors import OutputError, TargetExistsError, UsageError
from ensexport.resources import Reserve

_PREFIX = ".ensexport-"
_NEW, _REPLACED, _MODE_PROBE, _SCRATCH = "new", "replaced", "mode", "scratch"  # what is in a staging folder
_NO_HARD_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
_NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP)
_HINTS = {
    errno.ENOSPC: "Free some space.",
    errno.EDQUOT: "Free some space.",
    errno.EFBIG: "Raise the limit on file sizes (ulimit -f).",
    errno.EACCES: "Check the folder's permissions.",
    errno.EPERM: "Check the folder's permissions.",
    errno.EROFS: "Choose a folder that can be written to.",
}


_listeners: list[Callable[[Path], None]] = []


def tell_folders(listener: Callable[[Path], None]) -> None:
    """Have `listener` told of each staging folder before it is made, to remove it if this process cannot."""
    _listeners.append(listener)


class Staging:
    """A hidden folder beside each target, removed on leaving; `commit` moves the finished files into place.

    Args:
        targets: The files to be written.
        force: Replace targets that exist.

    Raises:
        TargetExistsError: A target exists and `force` is False.
        OutputError: A target's folder is missing or cannot be written to.
        UsageError: The same target is named twice.
    """

    def __init__(self, targets: Sequence[Path], *, force: bool) -> None:
        self.targets = [Path(target) for target in targets]
        self.force = force
        self._folders: dict[Path, Path] = {}
        self._reserve: Reserve | None = None
        seen: set[str] = set()
        for target in self.targets:
            if os.path.realpath(target) in seen:
                raise UsageError(f"'{target}' is named twice as output.", hint="Give each output its own name.")
            seen.add(os.path.realpath(target))
        for target in self.targets:
            with writing(target):
                self._check(target)

    def _check(self, target: Path) -> None:
        if not target.parent.is_dir():
            what = "is not a folder" if target.parent.exists() else "does not exist"
            raise OutputError(f"cannot write '{target}': '{target.parent}' {what}.", hint="Create the folder first.")
        if target.is_dir():
            raise OutputError(f"cannot write '{target}': it is a folder.", hint="Choose another name.")
        if not self.force and os.path.lexists(target):
            raise TargetExistsError(
                f"cannot write '{target}': it exists.", hint="Use --force to replace it, or another name."
            )
        if not os.access(target.parent, os.W_OK | os.X_OK):
            raise OutputError(
                f"cannot write '{target}': '{target.parent}' may not be written to.", hint=_HINTS[errno.EACCES]
            )

    def __enter__(self) -> Staging:
        self._reserve = Reserve()  # to list a folder takes memory, and that there is none may be why we leave
        try:
            for target in self.targets:
                if target.parent not in self._folders:
                    # Noted before it is made, so that no signal can come between; absolute, so that a model that
                    # changes the current directory moves nothing.
                    folder = Path(os.path.abspath(target.parent), _PREFIX + secrets.token_hex(8))
                    self._folders[target.parent] = folder
                    for listener in _listeners:
                        listener(folder)
                    with writing(target):
                        for made in (folder, folder / _NEW, folder / _REPLACED):
                            made.mkdir(mode=0o700)
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._remove()

    def _remove(self) -> None:
        if self._reserve is not None:
            self._reserve.release()
        for folder in self._folders.values():
            try:
                shutil.rmtree(folder, ignore_errors=True)
            finally:  # once more, for whatever interrupted it
                if folder.exists():
                    shutil.rmtree(folder, ignore_errors=True)
        self._folders.clear()

    def path(self, target: Path) -> Path:
        """Where to write `target` for now. It has the final name, so files may refer to each other by name."""
        return self._folders[Path(target).parent] / _NEW / Path(target).name

    def scratch(self, target: Path) -> Path:
        """A file beside `target` for what is needed meanwhile; it is never put into place."""
        return self._folders[Path(target).parent] / _SCRATCH

    def commit(self) -> list[Path]:
        """Move everything that was staged into place and return the final paths.

        Files beside the targets (external data) go first, so that no target is ever seen without them. If one of
        several moves fails, those already made are undone.

        Raises:
            TargetExistsError: A file is in the way and `force` is False.
            OutputError: A target was not staged, or the operating system refused.
        """
        moves = self._moves()
        for move in moves:
            with writing(move.target):
                move.prepare()
        begun: list[_Move] = []
        try:
            for move in moves:
                begun.append(move)
                with writing(move.target):
                    move.make(force=self.force)
            for folder in self._folders.values():
                with writing(folder.parent):
                    _sync_folder(folder.parent)
        except BaseException as error:
            self._undo(begun, error)
            raise
        return [move.target for move in moves]

    def _moves(self) -> list[_Move]:
        planned = [_Move(self.path(target), target, is_target=True) for target in self.targets]
        known = {move.staged for move in planned}
        beside = [
            _Move(staged, parent / staged.name)
            for parent, folder in self._folders.items()
            for staged in sorted((folder / _NEW).iterdir())
            if staged not in known
        ]
        return beside + planned

    def _undo(self, begun: Sequence[_Move], cause: BaseException) -> None:
        kept = []
        for move in reversed(begun):
            try:
                move.undo()
            except OSError:
                kept.append(move)
        if kept:
            self._folders.clear()  # what is in them is all there is of the replaced files
            raise OutputError(
                f"cannot write '{kept[0].target}', and cannot put back what was there ({cause}).",
                hint=f"The replaced files are kept: {', '.join(str(move.backup) for move in kept)}.",
            ) from cause


@dataclass
class _Move:
    """One staged file on its way into place, in steps that can be undone wherever they were interrupted.

    Attributes:
        staged: Where it was written; absolute.
        target: Where it goes, as the user named it.
        is_target: False for a file beside a target, such as external data.
        has_backup: What was there is kept, whole.
        identity: Device and inode of the staged file.
    """

    staged: Path
    target: Path
    is_target: bool = False
    has_backup: bool = False
    identity: tuple[int, int] = (0, 0)

    @property
    def folder(self) -> Path:
        """The staging folder."""
        return self.staged.parent.parent

    @property
    def place(self) -> Path:
        """The target as an absolute path."""
        return self.folder.parent / self.target.name

    @property
    def backup(self) -> Path:
        """Where the replaced file is kept until all moves are made."""
        return self.folder / _REPLACED / self.target.name

    def prepare(self) -> None:
        """Make the file durable, with the mode a plain `open` would have given it."""
        with self.staged.open("rb+") as file:
            os.fsync(file.fileno())
        os.chmod(self.staged, _default_mode(self.folder / _MODE_PROBE))
        status = os.stat(self.staged)
        self.identity = (status.st_dev, status.st_ino)

    def make(self, *, force: bool) -> None:
        """Put the file into place."""
        if not force:
            try:
                os.link(self.staged, self.place)  # fails if the target appeared meanwhile, unlike a rename
            except FileExistsError:
                raise self._in_the_way() from None
            except OSError as error:
                if error.errno not in _NO_HARD_LINKS:
                    raise
                if os.path.lexists(self.place):
                    raise self._in_the_way() from None
                os.rename(self.staged, self.place)
            return
        if os.path.lexists(self.place):
            _keep(self.place, self.backup)
            self.has_backup = True
        os.replace(self.staged, self.place)

    def undo(self) -> None:
        """Put back what was there, if the file is in place."""
        try:
            status = os.lstat(self.place)
            if (status.st_dev, status.st_ino) != self.identity:
                return
        except FileNotFoundError:
            pass
        if self.has_backup:
            os.replace(self.backup, self.place)
        else:
            self.place.unlink(missing_ok=True)

    def _in_the_way(self) -> TargetExistsError:
        when = " It appeared while this command ran." if self.is_target else ""
        return TargetExistsError(
            f"cannot write '{self.target}': it exists.{when}", hint="Use --force to replace it, or another name."
        )


def _keep(target: Path, backup: Path) -> None:
    if target.is_symlink():
        os.symlink(os.readlink(target), backup)
        return
    try:
        os.link(target, backup)
    except OSError:
        shutil.copy2(target, backup)


@contextlib.contextmanager
def writing(target: Path) -> Iterator[None]:
    """Turn the operating system's refusal to write into an `OutputError` that names the target."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        hint = _HINTS.get(error.errno or 0, "")
        raise OutputError(f"cannot write '{target}': {reason}.", hint=hint) from error


def _default_mode(probe: Path) -> int:
    """The mode `open` gives a new file. Asking the umask would change it for other threads meanwhile."""
    descriptor = os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        return stat.S_IMODE(os.fstat(descriptor).st_mode)
    finally:
        os.close(descriptor)
        os.unlink(probe)


def _sync_folder(folder: Path) -> None:
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
