"""Folders, files and globs -> the checkpoint files to read, and what was seen but not taken.

Nothing is left out in silence: each entry of a folder is either a member or a `SkippedFile` with a reason.
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
from ensexport.members.wording import join_some, quote_path
from ensexport.spec import SkippedFile

CHECKPOINT_SUFFIXES = (".pt", ".pth", ".pth.tar", ".safetensors")
CONFIG_NAMES = ("ensexport.toml", "pyproject.toml")
_SUFFIX_TEXT = ", ".join(CHECKPOINT_SUFFIXES)


@dataclass(frozen=True)
class Discovery:
    """The files taken as members, in member order, and the entries that were skipped.

    Attributes:
        files: One file a member; the same file may stand there twice.
        skipped: What was seen and not taken, and why.
    """

    files: tuple[Path, ...]
    skipped: tuple[SkippedFile, ...]


def find_checkpoints(paths: Sequence[str | Path]) -> Discovery:
    """Turn folders, files and globs into the list of checkpoint files.

    Args:
        paths: A folder stands for its direct files with a suffix of `CHECKPOINT_SUFFIXES`, in natural order
            (`m2` before `m10`); a file for itself; a text that names nothing but holds `*`, `?` or `[` is
            read as a glob, also in natural order. The order of the paths is kept.

    Returns:
        At least one file, and what was skipped.

    Raises:
        UsageError: No path is given, or one does not exist.
        NoCheckpointError: A folder or glob holds no checkpoint; the message lists what was seen.
        CheckpointError: A file named explicitly has another suffix or is no regular file, or a folder
            cannot be listed.
    """
    if not paths:
        raise UsageError("no checkpoint is given.", hint="Name a folder, files or a glob.")
    files: list[Path] = []
    skipped: list[SkippedFile] = []
    for given in paths:
        path = Path(given)
        if str(given) and path.is_dir():
            found = _sort_out(_list_folder(path))
            if not found.files:
                raise _no_checkpoint(f"the folder {quote_path(path)} holds no checkpoint", found.skipped)
        elif str(given) and os.path.lexists(path):
            found = Discovery((_explicit_file(path),), ())
        elif glob.has_magic(str(given)):
            found = _sort_out(_expand(str(given)))
            if not found.files:
                seen = found.skipped or _seen_near(str(given))
                raise _no_checkpoint(f"the glob {quote_path(str(given))} matches no checkpoint", seen)
        else:
            raise UsageError(f"no such file or folder: {quote_path(str(given))}.", hint="Check the path.")
        files += found.files
        skipped += found.skipped
    return Discovery(tuple(files), tuple(dict.fromkeys(skipped)))


def holds_checkpoints(folder: Path, paths: Iterable[str | Path]) -> bool:
    """True if a file in `folder` lies among the checkpoints of `paths`, so that it must not choose code.

    That is so for a folder in `paths` and everything below it, and for the folder of each file in `paths`.

    Args:
        folder: The folder asked about, resolved.
        paths: As for `find_checkpoints`; what does not exist is passed over.
    """
    for given in paths:
        path = Path(given)
        if path.is_dir():
            top = path.resolve()
            if top == folder or top in folder.parents:
                return True
        else:
            files = [path] if os.path.lexists(path) else _expand(str(given))
            if any(file.parent.resolve() == folder for file in files):
                return True
    return False


def natural_key(path: Path) -> tuple[tuple[tuple[int, int, str], ...], str]:
    """Return a sort key that orders digits by their number: `m2` before `m10`."""
    parts = re.split(r"([0-9]+)", str(path))
    keys = tuple((0, int(part), "") if part.isdigit() else (1, 0, part.casefold()) for part in parts)
    return keys, str(path)


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


def _sort_out(entries: Sequence[Path]) -> Discovery:
    reasons = [(path, _skip_reason(path)) for path in entries]
    return Discovery(
        tuple(path for path, reason in reasons if reason is None),
        tuple(SkippedFile(str(path), reason) for path, reason in reasons if reason is not None),
    )


def _skip_reason(path: Path) -> str | None:
    """Say why an entry of a folder or glob is not taken; None if it is."""
    if path.name in CONFIG_NAMES:
        return "a configuration file inside a checkpoint folder is never obeyed"
    kind = _file_kind(path)
    if kind == "folder":
        return "sub-folder: name it on the command line to take its checkpoints"
    if path.name.startswith("."):
        return "hidden file"
    if kind != "file":
        return kind
    if not _has_checkpoint_suffix(path):
        return f"suffix {path.suffix!r} is none of {_SUFFIX_TEXT}" if path.suffix else "no suffix"
    return None


def _has_checkpoint_suffix(path: Path) -> bool:
    return "".join(path.suffixes[-2:]).lower().endswith(CHECKPOINT_SUFFIXES)


def _explicit_file(path: Path) -> Path:
    kind = _file_kind(path)
    if kind != "file":
        raise CheckpointError(f"cannot take {quote_path(path)}: {kind}.", hint="Name a regular file.")
    if not _has_checkpoint_suffix(path):
        raise CheckpointError(
            f"cannot take {quote_path(path)} as a checkpoint: expected a suffix of {_SUFFIX_TEXT}, got "
            f"{path.suffix!r}.",
            hint="Rename the file if it is one.",
        )
    return path


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
