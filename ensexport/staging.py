"""Every file this tool writes is made beside its target and renamed last: whole, or not there at all.

One writer for all: a full disk, a signal or a failed check leaves nothing behind, and an existing target keeps its
bytes until the new ones are complete.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

from ensexport.errors import OutputError, TargetExistsError, UsageError

_PREFIX = ".ensexport-"


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
        if len({os.path.realpath(target) for target in self.targets}) < len(self.targets):
            raise UsageError(f"'{self.targets[0]}' is named twice as output.", hint="Give each output its own name.")
        for target in self.targets:
            self._check(target)

    def _check(self, target: Path) -> None:
        if not target.parent.is_dir():
            raise OutputError(
                f"cannot write '{target}': the folder '{target.parent}' does not exist.",
                hint="Create it first.",
            )
        if target.is_dir():
            raise OutputError(f"cannot write '{target}': it is a folder.", hint="Choose another name.")
        if not self.force and os.path.lexists(target):
            raise TargetExistsError(
                f"cannot write '{target}': it exists.", hint="Use --force to replace it, or another name."
            )

    def __enter__(self) -> Staging:
        for target in self.targets:
            if target.parent not in self._folders:
                with writing(target):
                    self._folders[target.parent] = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=target.parent))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for folder in self._folders.values():
            shutil.rmtree(folder, ignore_errors=True)

    def path(self, target: Path) -> Path:
        """Where to write `target` for now. It has the final name, so files may refer to each other by name."""
        return self._folders[Path(target).parent] / Path(target).name

    def commit(self) -> list[Path]:
        """Move everything that was staged into place and return the final paths.

        If one of several moves fails, those already made are undone.
        """
        moves = [
            (staged, parent / staged.name)
            for parent, folder in self._folders.items()
            for staged in sorted(folder.iterdir())
        ]
        done: list[tuple[Path, Path | None]] = []
        for staged, target in moves:
            with writing(target):
                _finish(staged)
        try:
            for staged, target in moves:
                done.append((target, self._move(staged, target)))
        except BaseException:
            for target, backup in reversed(done):
                if backup is not None:
                    os.replace(backup, target)
                else:
                    target.unlink(missing_ok=True)
            raise
        for parent in self._folders:
            _sync_folder(parent)
        return [target for _, target in moves]

    def _move(self, staged: Path, target: Path) -> Path | None:
        """Put one file into place; return where the replaced one is kept until all moves are made."""
        with writing(target):
            if not self.force:
                try:
                    os.link(staged, target)  # fails if the target appeared meanwhile, unlike a rename
                except FileExistsError:
                    raise TargetExistsError(
                        f"cannot write '{target}': it appeared while this command ran.",
                        hint="Use --force to replace it.",
                    ) from None
                except OSError as error:
                    if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
                        raise
                    os.rename(staged, target)  # a file system without hard links
                return None
            backup = None
            if target.exists():
                backup = staged.with_name(f"{staged.name}.old")
                _keep(target, backup)
            os.replace(staged, target)
            return backup


def _keep(target: Path, backup: Path) -> None:
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
        hint = "Free some space." if error.errno in (errno.ENOSPC, errno.EDQUOT) else "Check the folder's permissions."
        raise OutputError(f"cannot write '{target}': {reason}.", hint=hint) from error


def _finish(path: Path) -> None:
    """Make a staged file durable, with the mode a plain `open` would have given it."""
    mask = os.umask(0)
    os.umask(mask)
    os.chmod(path, 0o666 & ~mask)
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
