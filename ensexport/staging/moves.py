"""One staged file or folder on its way into place, in steps that can be undone wherever they were interrupted.

What to undo is read from the disk, never remembered: an interruption may come between a step and a note of it, and the
next run, which undoes what a killed process had begun, remembers nothing.
"""

from __future__ import annotations

import abc
import errno
import os
import shutil
import stat
from dataclasses import dataclass, field
from pathlib import Path

from ensexport.errors import OutputError
from ensexport.staging.checks import MANIFEST, check_replaceable, in_the_way
from ensexport.staging.system import (
    EXCHANGE,
    NO_HARD_LINKS,
    NO_SUCH_CALL,
    rename_new,
    renameat2,
    sync_file,
    sync_folder,
)

NEW, REPLACED = "new", "replaced"
_APPEARED = " It appeared while this command ran."
_TRIES = 100


@dataclass
class Move(abc.ABC):
    """What both kinds have.

    Attributes:
        room: The staging folder; absolute.
        target: Where it goes, as the user named it.
        is_target: False for a file beside a target, such as external data.
        inside: Name of the folder beside the staging folder that the target lies in; empty where it lies beside it.
        mark: What tells the staged file from any other in its place.
    """

    room: Path
    target: Path
    is_target: bool = True
    inside: str = ""
    mark: list[int] = field(default_factory=list)

    @property
    def staged(self) -> Path:
        """Where it was written."""
        return self.room / NEW / self.target.name

    @property
    def place(self) -> Path:
        """The target as an absolute path."""
        return self.room.parent / self.inside / self.target.name

    @property
    def backup(self) -> Path:
        """Where what is replaced is kept until all moves are made."""
        return self.room / REPLACED / self.target.name

    @property
    def kept(self) -> Path:
        """Where what was replaced is now."""
        return self.backup

    def is_placed(self) -> bool:
        """Whether what was staged is in place."""
        try:
            return self.mark == self._mark_of(self.place)
        except FileNotFoundError:
            return False

    @abc.abstractmethod
    def prepare(self, file_mode: int, folder_mode: int) -> None:
        """Make it durable, with the modes that a plain `open` and `mkdir` would have given."""

    @abc.abstractmethod
    def make(self, *, force: bool) -> None:
        """Put it into place."""

    @abc.abstractmethod
    def undo(self) -> None:
        """Put back what was there, if the move was made or begun."""

    @abc.abstractmethod
    def _mark_of(self, path: Path) -> list[int]:
        """What `mark` would be for another file."""


class FileMove(Move):
    """A file. An old one is replaced by one rename."""

    def prepare(self, file_mode: int, folder_mode: int) -> None:
        """Make the file durable, with the mode of a new one."""
        os.chmod(self.staged, file_mode)
        sync_file(self.staged)
        self.mark = self._mark_of(self.staged)

    def make(self, *, force: bool) -> None:
        """Put the file into place."""
        if not force:
            try:
                os.link(self.staged, self.place)  # fails if the target appeared meanwhile, unlike a rename
            except FileExistsError:
                raise self._in_the_way() from None
            except OSError as error:
                if error.errno not in NO_HARD_LINKS:
                    raise
                try:
                    rename_new(self.staged, self.place)
                except FileExistsError:
                    raise self._in_the_way() from None
            return
        if os.path.lexists(self.place):
            _keep(self.place, self.backup)
        os.replace(self.staged, self.place)

    def undo(self) -> None:
        """Put back what the file replaced."""
        if not self.is_placed():
            return
        if os.path.lexists(self.backup):
            os.replace(self.backup, self.place)
        else:
            self.place.unlink(missing_ok=True)

    def _mark_of(self, path: Path) -> list[int]:
        status = os.lstat(path)
        return [status.st_ino, status.st_size]  # network file systems round times, or set them later

    def _in_the_way(self) -> OutputError:
        return in_the_way(self.target, _APPEARED if self.is_target else "")


class FolderMove(Move):
    """A folder. An old one changes places with it, and is in the staging folder then."""

    @property
    def kept(self) -> Path:
        """Where the old folder is now."""
        return self.backup if os.path.lexists(self.backup) else self.staged

    def prepare(self, file_mode: int, folder_mode: int) -> None:
        """Make the folder durable, with the mode of a new one."""
        self._settle(self.staged, file_mode, folder_mode)
        self.mark = self._mark_of(self.staged)

    def _settle(self, folder: Path, file_mode: int, folder_mode: int) -> None:
        for path in sorted(folder.iterdir(), key=lambda path: (path.name == MANIFEST, path.name)):
            kind = os.lstat(path).st_mode
            if stat.S_ISDIR(kind):
                self._settle(path, file_mode, folder_mode)
            elif stat.S_ISREG(kind):
                os.chmod(path, file_mode)
                sync_file(path)
            else:
                inside = path.relative_to(self.staged)
                raise OutputError(f"cannot write '{self.target}': '{inside}' is neither a file nor a folder.")
        os.chmod(folder, folder_mode)
        sync_folder(folder)

    def make(self, *, force: bool) -> None:
        """Put the folder into place."""
        for _ in range(_TRIES):  # others may come and go
            if not os.path.lexists(self.place):
                try:
                    rename_new(self.staged, self.place)
                except FileExistsError:
                    continue
                return
            if not force:
                raise in_the_way(self.target, _APPEARED)
            try:
                check_replaceable(self.place, self.target)
                self._swap()
            except FileNotFoundError:
                continue
            return
        raise OutputError(f"cannot write '{self.target}': others write it at the same time.", hint="Try again.")

    def _swap(self) -> None:
        try:
            renameat2(self.staged, self.place, EXCHANGE)
        except OSError as error:
            if error.errno not in NO_SUCH_CALL:
                raise
            os.rename(self.place, self.backup)
            check_replaceable(self.backup, self.target)
            os.rename(self.staged, self.place)
            return
        check_replaceable(self.staged, self.target)  # what it was when it was moved, whatever it had been before

    def undo(self) -> None:
        """Put back what the folder replaced."""
        if self.is_placed():
            if not os.path.lexists(self.backup) and os.path.lexists(self.staged):
                renameat2(self.staged, self.place, EXCHANGE)
                return
            os.rename(self.place, self.staged)
        if os.path.lexists(self.backup):
            try:
                rename_new(self.backup, self.place)
            except FileExistsError:
                return  # somebody else's, and newer

    def _mark_of(self, path: Path) -> list[int]:
        return [os.lstat(path).st_ino]  # the times of a folder may change when it is moved


def _keep(target: Path, backup: Path) -> None:
    if target.is_symlink():
        os.symlink(os.readlink(target), backup)
        return
    try:
        os.link(target, backup)
    except OSError as error:
        if error.errno == errno.EEXIST:
            raise
        shutil.copy2(target, backup)
