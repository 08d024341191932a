"""The files of a package as the system shows them: opened without following a link, hashed from what was opened."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from ensexport.errors import PackageError
from ensexport.members.wording import quote_path

_CHUNK_BYTES = 2**22
_MAX_ENTRIES = 200_000
_MAX_DEPTH = 32
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a pipe must not block
_FOLDER = os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY | os.O_CLOEXEC
_HINT = "Give a folder that `ensexport pack` wrote."
_KINDS = {
    stat.S_IFREG: "a file",
    stat.S_IFDIR: "a folder",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


@dataclass(frozen=True)
class Entry:
    """One name in a folder.

    Attributes:
        path: Below the package, '/' between the parts.
        kind: `a file`, `a folder`, `a symbolic link`, `a pipe`, `a socket` or `a device`.
        links: How many names the file has.
        size_bytes: Of a file.
        target: Of a symbolic link.
        is_empty: Of a folder: nothing lies in it.
        problem: Why a folder cannot be looked into.
    """

    path: str
    kind: str
    links: int = 1
    size_bytes: int = 0
    target: str = ""
    is_empty: bool = False
    problem: str = ""


@dataclass(frozen=True)
class Stamp:
    """What changes when a file is written to or replaced."""

    device: int
    inode: int
    size_bytes: int
    modified_ns: int
    changed_ns: int

    @classmethod
    def of(cls, descriptor: int) -> Stamp:
        """The stamp of an open file."""
        found = os.fstat(descriptor)
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


class Folder:
    """An open package.

    Args:
        path: The folder; it may be reached through links, nothing in it may.

    Raises:
        PackageError: It cannot be opened.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self._root = os.open(path, _FOLDER & ~os.O_NOFOLLOW)
        except OSError as error:
            raise PackageError(
                f"cannot read {quote_path(path)}: {error.strerror or error}.",
                hint="Check the path and its permissions.",
            ) from error

    def __enter__(self) -> Folder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        os.close(self._root)

    def open(self, path: str) -> int:
        """Open a regular file below the folder for reading; returns the descriptor.

        Args:
            path: Relative, '/' between the parts.

        Raises:
            OSError: It is not there, or it or a folder on the way is a link or something else.
        """
        *folders, name = path.split("/")
        at, opened = self._root, []
        try:
            for folder in folders:
                at = os.open(folder, _FOLDER, dir_fd=at)
                opened.append(at)
            descriptor = os.open(name, _FILE, dir_fd=at)
        finally:
            for each in opened:
                os.close(each)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError(errno.EINVAL, "it is not a regular file")
        return descriptor

    def walk(self) -> list[Entry]:
        """List everything below the folder, sorted by path; links are not followed.

        Raises:
            PackageError: There are more than 200,000 names, or folders 32 deep.
        """
        found: list[Entry] = []
        for entry in self._below(self._root, "", 0):
            found.append(entry)
            if len(found) > _MAX_ENTRIES:
                raise PackageError(
                    f"cannot check {quote_path(self.path)}: expected at most {_MAX_ENTRIES} names below it, got more.",
                    hint=_HINT,
                )
        return sorted(found, key=lambda entry: entry.path)

    def _below(self, at: int, prefix: str, depth: int) -> Iterator[Entry]:
        if depth > _MAX_DEPTH:
            raise PackageError(
                f"cannot check {quote_path(self.path)}: expected folders at most {_MAX_DEPTH} deep, got more.",
                hint=_HINT,
            )
        with os.scandir(at) as entries:
            for each in entries:
                path, found = prefix + each.name, each.stat(follow_symlinks=False)
                kind = _KINDS.get(stat.S_IFMT(found.st_mode), "a device")
                if kind == "a symbolic link":
                    yield Entry(path, kind, target=os.readlink(each.name, dir_fd=at))
                elif kind == "a folder":
                    yield from self._folder(at, each.name, path, depth)
                else:
                    yield Entry(path, kind, found.st_nlink, found.st_size)

    def _folder(self, at: int, name: str, path: str, depth: int) -> Iterator[Entry]:
        try:
            below = os.open(name, _FOLDER, dir_fd=at)
        except OSError as error:
            yield Entry(path, "a folder", problem=error.strerror or str(error))
            return
        try:
            inside = list(self._below(below, f"{path}/", depth + 1))
        finally:
            os.close(below)
        yield Entry(path, "a folder", is_empty=not inside)
        yield from inside


def hash_file(descriptor: int, tell: Callable[[int], None]) -> str:
    """Return the sha256 of an open file, read from its beginning.

    Args:
        descriptor: The file.
        tell: Called with the number of bytes of each piece that was read.

    Raises:
        OSError: It cannot be read.
    """
    digest, place = hashlib.sha256(), 0
    while piece := os.pread(descriptor, _CHUNK_BYTES, place):
        digest.update(piece)
        place += len(piece)
        tell(len(piece))
    return digest.hexdigest()


def read_file(descriptor: int, size_bytes: int) -> bytes:
    """Return the bytes of an open file; at most one more than `size_bytes`, so that a longer one is noticed.

    Raises:
        OSError: It cannot be read.
    """
    pieces, place = [], 0
    while place <= size_bytes and (piece := os.pread(descriptor, min(_CHUNK_BYTES, size_bytes + 1 - place), place)):
        pieces.append(piece)
        place += len(piece)
    return b"".join(pieces)
