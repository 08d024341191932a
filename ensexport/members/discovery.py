"""Folders, files and globs -> what to read the members from, and what was seen but not taken.

Nothing is left out in silence: each entry of a folder is either taken or a `SkippedFile` with a reason.
Nothing is opened here, so a pipe or a device cannot block the tool. Standard library only.
"""

from __future__ import annotations

import glob
import os
import re
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ensexport.errors import CheckpointError, NoCheckpointError, UsageError
from ensexport.members.folders import MemberFolder, auxiliary_reason, member_folder
from ensexport.members.picking import pick
from ensexport.members.wording import join_some, quote_path
from ensexport.spec import SkippedFile

CHECKPOINT_SUFFIXES = (".pt", ".pth", ".pth.tar", ".ckpt", ".safetensors")
CONFIG_NAMES = ("ensexport.toml", "pyproject.toml")
_SUFFIX_TEXT = ", ".join(CHECKPOINT_SUFFIXES)
_MAX_DEPTH = 8
_NOT_TAKEN_BESIDE_FILES = "sub-folder beside checkpoints: name it to take what it holds"


@dataclass(frozen=True)
class Source:
    """One checkpoint to read: a file, or a folder that is one checkpoint as a whole.

    Attributes:
        path: The file or folder.
        folder: What kind of folder it is; None for a file.
        note: Why it was taken rather than what lay beside it; empty if nothing did.
        is_explicit: It was named itself, and not found in a folder or by a glob.
    """

    path: Path
    folder: MemberFolder | None = None
    note: str = ""
    is_explicit: bool = False

    def size_bytes(self) -> int:
        """Bytes of the file, or of the folder's files; 0 for what cannot be looked at."""
        files = [self.path] if self.folder is None else list(self.folder.source.parent.iterdir())
        try:
            return sum(file.stat().st_size for file in files)
        except OSError:
            return 0


@dataclass(frozen=True)
class Discovery:
    """The checkpoints taken, in member order, and the entries that were skipped.

    Attributes:
        sources: One a checkpoint; the same one may stand there twice.
        skipped: What was seen and not taken, and why.
        warnings: What may not be meant, one text each.
    """

    sources: tuple[Source, ...]
    skipped: tuple[SkippedFile, ...]
    warnings: tuple[str, ...] = ()


def find_checkpoints(paths: Sequence[str | Path]) -> Discovery:
    """Turn folders, files and globs into the list of checkpoints to read.

    Args:
        paths: A file stands for itself, whatever its suffix. A folder that is one checkpoint as a whole (see
            `member_folder`) stands for it. Any other folder stands for its files with a suffix of
            `CHECKPOINT_SUFFIXES`; if it has none, for what its sub-folders hold, where of several moments of one
            run the best, the last or the newest is taken (see `pick`). Several folders are treated as such
            sub-folders. A text that names nothing but holds `*`, `?` or `[` is read as a glob. The order of the
            paths is kept; within a folder or glob it is natural (`m2` before `m10`).

    Returns:
        At least one source, and what was skipped.

    Raises:
        UsageError: No path is given, or one does not exist.
        NoCheckpointError: A folder or glob holds no checkpoint; the message lists what was seen.
        CheckpointError: A file named explicitly is no regular file, a folder cannot be listed, or holds a checkpoint
            in a form that cannot be read (an adapter, ZeRO-3).
    """
    if not paths:
        raise UsageError("no checkpoint is given.", hint="Name a folder, files or a glob.")
    n_folders = sum(Path(given).is_dir() for given in paths if str(given))
    sources: list[Source] = []
    skipped: list[SkippedFile] = []
    warnings: list[str] = []
    for given in paths:
        path = Path(given)
        if str(given) and path.is_dir():
            found = _Walk(path).run() if n_folders > 1 else _Walk(path).whole()
            if not found.sources:
                raise _no_checkpoint(f"the folder {quote_path(path)} holds no checkpoint", found.skipped)
        elif str(given) and os.path.lexists(path):
            found = Discovery((_explicit_file(path),), ())
        elif glob.has_magic(str(given)):
            found = _matched(_expand(str(given)))
            if not found.sources:
                seen = found.skipped or _seen_near(str(given))
                raise _no_checkpoint(f"the glob {quote_path(str(given))} matches no checkpoint", seen)
        else:
            raise UsageError(f"no such file or folder: {quote_path(str(given))}.", hint="Check the path.")
        sources += found.sources
        skipped += found.skipped
        warnings += found.warnings
    return Discovery(tuple(sources), tuple(dict.fromkeys(skipped)), tuple(warnings))


def holds_checkpoints(folder: Path, paths: Iterable[str | Path]) -> bool:
    """True if a file in `folder` lies among the checkpoints of `paths`, so that it must not choose code.

    That is so for a folder in `paths` and everything below it, and for the folder of each file in `paths`.

    Args:
        folder: The folder asked about, resolved.
        paths: As for `find_checkpoints`; what does not exist is passed over.
    """
    for given in paths:
        path = Path(given)
        matches = [path] if os.path.lexists(path) else _expand(str(given))
        for match in matches:
            top = match.resolve()
            if match.is_dir() and (top == folder or top in folder.parents):
                return True
            if not match.is_dir() and match.parent.resolve() == folder:
                return True
    return False


def natural_key(path: Path) -> tuple[tuple[tuple[int, int, str], ...], str]:
    """Return a sort key that orders digits by their number: `m2` before `m10`."""
    parts = re.split(r"([0-9]+)", str(path))
    keys = tuple((0, int(part), "") if part.isdigit() else (1, 0, part.casefold()) for part in parts)
    return keys, str(path)


class _Walk:
    """Sorts out one folder and what lies below it.

    Args:
        top: The folder. A link inside that leads out of it is not followed.
    """

    def __init__(self, top: Path) -> None:
        self._top = top
        self._root = top.resolve()
        self._sources: list[Source] = []
        self._skipped: list[SkippedFile] = []

    def whole(self) -> Discovery:
        """Take all files that lie in the folder itself, else one of each run in its sub-folders."""
        warnings: list[str] = []
        if not self._take_as_one(self._top):
            files, folders = self._listed(self._top)
            if files:
                self._sources += [Source(path) for path in files]
                self._skip(folders, _NOT_TAKEN_BESIDE_FILES)
                warnings = _warn_of_one_run(self._top, files)
            else:
                self._below(folders, depth=1)
        return Discovery(tuple(self._sources), tuple(self._skipped), tuple(warnings))

    def run(self) -> Discovery:
        """Take the folder as one run: of several moments only one."""
        self._run(self._top, depth=0)
        return Discovery(tuple(self._sources), tuple(self._skipped))

    def _run(self, folder: Path, depth: int) -> None:
        if self._take_as_one(folder):
            return
        files, folders = self._listed(folder)
        if files:
            self._pick(files)
            self._skip(folders, _NOT_TAKEN_BESIDE_FILES)
        else:
            self._below(folders, depth + 1)

    def _below(self, folders: Sequence[Path], depth: int) -> None:
        """Look into sub-folders; those that are moments of one run (`checkpoint-500`) stand for one member."""
        if depth > _MAX_DEPTH:
            self._skip(folders, f"more than {_MAX_DEPTH} folders deep: name it to take what it holds")
            return
        found = []
        for folder in folders:
            inner = _Walk(self._top)
            inner._run(folder, depth)
            if inner._sources:
                found.append((folder, inner))
            else:
                self._skip([folder], "sub-folder without a checkpoint")
        picked = pick([folder for folder, _ in found])
        for folder, inner in found:
            if folder in picked.left:
                self._skip([folder], _left_reason(picked.taken[0], picked.why))
            else:
                note = f"{picked.why} of {len(found)} folders" if picked.why else ""
                self._sources += [_noted(source, note) for source in inner._sources]
                self._skipped += inner._skipped

    def _pick(self, files: Sequence[Path]) -> None:
        picked = pick(files)
        note = f"{picked.why} of {len(files)}" if picked.why else ""
        self._sources += [Source(path, note=note) for path in picked.taken]
        self._skip(picked.left, _left_reason(picked.taken[0], picked.why))

    def _take_as_one(self, folder: Path) -> bool:
        kind = member_folder(folder)
        if kind is None:
            return False
        self._sources.append(Source(folder, kind))
        self._skipped += kind.skipped
        return True

    def _listed(self, folder: Path) -> tuple[list[Path], list[Path]]:
        """The checkpoint files and the sub-folders in a folder; anything else is skipped with its reason."""
        files, folders = [], []
        for path in _list_folder(folder):
            reason = _skip_reason(path) or self._leads_out(path)
            if reason:
                self._skip([path], reason)
            elif path.is_dir():
                folders.append(path)
            else:
                files.append(path)
        return files, folders

    def _leads_out(self, path: Path) -> str:
        """Say so if a link leads out of the folder; the store of the Hugging Face hub (`blobs`) is part of it."""
        if not path.is_symlink():
            return ""
        target = path.resolve()
        if path.is_dir():
            return "a link to a folder: name it to take what it holds"
        if self._root in target.parents or target.parent.name == "blobs":
            return ""
        return f"a link that leads out of the folder, to {quote_path(target)}: name it to take it"

    def _skip(self, paths: Iterable[Path], reason: str) -> None:
        self._skipped += [SkippedFile(str(path), reason) for path in paths]


def _warn_of_one_run(folder: Path, files: Sequence[Path]) -> list[str]:
    picked = pick(files)
    if not picked.why:
        return []
    return [
        f"all {len(files)} checkpoints in {quote_path(folder)} are taken, though their names speak of moments of one "
        f"run; {quote_path(picked.taken[0].name)} is {picked.why}: name the files that are members."
    ]


def _noted(source: Source, note: str) -> Source:
    notes = [text for text in (source.note, note) if text]
    return Source(source.path, source.folder, ", ".join(notes))


def _left_reason(taken: Path, why: str) -> str:
    return f"another moment of the same run: {quote_path(taken.name)}, {why}, is taken"


def _list_folder(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir(), key=natural_key)
    except OSError as error:
        raise CheckpointError(
            f"cannot list the folder {quote_path(folder)}: {error.strerror}.", hint="Check its permissions."
        ) from error


def _expand(pattern: str) -> list[Path]:
    return sorted((Path(match) for match in glob.glob(pattern, recursive=True)), key=natural_key)


def _seen_near(pattern: str) -> tuple[SkippedFile, ...]:
    """List the entries of the last folder in the pattern that exists without wildcards."""
    folder = Path(pattern)
    while glob.has_magic(str(folder)) and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        return ()
    return tuple(SkippedFile(str(path), "not matched") for path in _list_folder(folder))


def _matched(entries: Sequence[Path]) -> Discovery:
    """Sort out what a glob matched: files are taken, folders are runs. Folders of files that matched are left out."""
    sources: list[Source] = []
    skipped: list[SkippedFile] = []
    for path in entries:
        reason = _skip_reason(path)
        if reason:
            skipped.append(SkippedFile(str(path), reason))
        elif not path.is_dir():
            sources.append(Source(path))
        elif not any(path in other.parents for other in entries):
            found = _Walk(path).run()
            sources += found.sources
            skipped += found.skipped or [SkippedFile(str(path), "sub-folder without a checkpoint")] * (
                not found.sources
            )
    return Discovery(tuple(sources), tuple(skipped))


def _skip_reason(path: Path) -> str:
    """Say why an entry of a folder or glob is not taken; empty if it is, or is a folder."""
    if path.name in CONFIG_NAMES:
        return "a configuration file inside a checkpoint folder is never obeyed"
    if path.name.startswith("."):
        return "hidden file"
    kind = _file_kind(path)
    if kind != "file":
        return "" if kind == "folder" else kind
    return auxiliary_reason(path.name) or _suffix_reason(path)


def _suffix_reason(path: Path) -> str:
    if "".join(path.suffixes[-2:]).lower().endswith(CHECKPOINT_SUFFIXES):
        return ""
    return f"suffix {path.suffix!r} is none of {_SUFFIX_TEXT}" if path.suffix else "no suffix"


def _explicit_file(path: Path) -> Source:
    kind = _file_kind(path)
    if kind != "file":
        raise CheckpointError(f"cannot take {quote_path(path)}: {kind}.", hint="Name a regular file.")
    return Source(path, is_explicit=True)


def _file_kind(path: Path) -> str:
    """Return `file`, `folder`, or the reason why it is neither. Links are followed, never opened."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if path.is_symlink():
            return f"a link that leads nowhere ({error.strerror})"
        return f"cannot be looked at ({error.strerror})"
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISDIR(mode):
        return "folder"
    names = {stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket", stat.S_IFCHR: "device", stat.S_IFBLK: "device"}
    return f"not a regular file but a {names.get(stat.S_IFMT(mode), 'special file')}"


def _no_checkpoint(what: str, seen: Sequence[SkippedFile]) -> NoCheckpointError:
    listed = [f"{quote_path(Path(item.path).name)} ({item.reason})" for item in seen]
    return NoCheckpointError(
        f"{what}: {'saw ' + join_some(listed) if listed else 'it is empty'}.",
        hint=f"Checkpoints end in {_SUFFIX_TEXT}.",
        seen=[item.path for item in seen],
    )
