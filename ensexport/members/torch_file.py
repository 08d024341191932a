"""One file of `torch.save` -> what it held: checked from outside, walked without running it, and only then loaded.

The order matters. The zip's directory and checksums come first, then the outline of the pickle, which must fit the
records that are really there, and torch's loader last, always with `weights_only=True` and our own list of harmless
classes. Nothing is ever tried again with less safety: whether a file needs `--allow-pickle` is known before it is
opened.
"""

from __future__ import annotations

import io
import os
import pickle
import re
import struct
import warnings
from pathlib import Path
from typing import Any, BinaryIO

import torch

from ensexport.errors import CheckpointError, UnsafeCheckpointError
from ensexport.members.allowed import safe_globals
from ensexport.members.archive import ZIP_MAGIC, Archive, check_archive
from ensexport.members.calls import BlockedError, UnreadableError
from ensexport.members.outline import Outline, UnknownStepError, find_odd, read_outline
from ensexport.members.programs import load_pickle, load_program, refuse_program
from ensexport.members.refusals import damaged, globals_in_pickle, looks_like_pickle, refusal, refused, unread
from ensexport.members.tensors import refuse_kind
from ensexport.members.trust import Trust
from ensexport.members.wording import quote_path

_NO_SAFETY = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
_LEGACY_START = re.compile(rb"\x80[\x02-\x05](?:\x95.{8})?\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19\.", re.DOTALL)
"""The number that `torch.save` wrote first, before torch 1.6: torch.serialization.MAGIC_NUMBER, pickled."""
_LEGACY_PICKLES = 5


def is_torch_head(head: bytes) -> bool:
    """True if a file of these first bytes is a zip, or a file of `torch.save` from before torch 1.6."""
    return head.startswith(ZIP_MAGIC) or _LEGACY_START.match(head) is not None


def load_torch(
    file: io.BufferedReader, path: str, *, size_bytes: int, trust: Trust, is_known: bool = False
) -> tuple[Any, str]:
    """Read a file that is not safetensors.

    Args:
        file: The open file; its position is undefined afterwards.
        path: For messages.
        size_bytes: Size of the file.
        trust: What may run code.
        is_known: The file was read before and has not changed: its checksums are right, its pickle does no harm.

    Returns:
        What it held, and its format: `torch-zip`, `torch-legacy`, `pickle`, `torchscript` or `pt2`.

    Raises:
        CheckpointError: It is truncated, damaged, or was not written by `torch.save`.
        UnsafeCheckpointError: It asks for code that `trust` does not cover.
    """
    if os.environ.get(_NO_SAFETY):
        raise UnsafeCheckpointError(
            f"refused to read {quote_path(path)}: {_NO_SAFETY} is set, which switches safe loading off.",
            hint=f"Unset {_NO_SAFETY}, or use .safetensors files.",
        )
    file.seek(0)
    head = file.read(64)
    if head.startswith(ZIP_MAGIC):
        return _load_zip(file, path, size_bytes, trust, is_known=is_known)
    if _LEGACY_START.match(head):
        return _load_legacy(file, path, size_bytes, trust), "torch-legacy"
    return _load_bare(file, path, size_bytes, trust), "pickle"


def by_name(file: io.BufferedReader, path: str) -> str:
    """Return a name for the file that is open already, whatever lies under its path by now.

    torch goes by the suffix where it is given a path, and takes no path that is no UTF-8.
    """
    opened = f"/dev/fd/{file.fileno()}"
    return opened if Path(opened).exists() else path


def _load_zip(file: io.BufferedReader, path: str, size_bytes: int, trust: Trust, *, is_known: bool) -> tuple[Any, str]:
    archive = check_archive(file, path, size_bytes=size_bytes, is_known=is_known)
    if archive.program is not None:
        if not trust.trust_code:
            raise refuse_program(archive.program, path)
        return load_program(archive.program, by_name(file, path), path), archive.program
    pickled = io.BytesIO(archive.pickle)
    if trust.allow_pickle or not is_known:
        try:
            _check_outline(archive, pickled, path)
        except (BlockedError, UnknownStepError, UnreadableError) as error:
            if trust.allow_pickle and not _is_damage(error):
                return load_pickle(by_name(file, path), path, is_torch=True), "torch-zip"
            raise _explained(error, path, pickled) from error
    return _load_safely(by_name(file, path), path, pickled, is_mapped=True), "torch-zip"


def _check_outline(archive: Archive, pickled: io.BytesIO, path: str) -> None:
    """Walk the pickle without running it, and compare what it claims with the records that are there."""
    outline = read_outline(pickled, len(archive.pickle))
    if pickled.tell() != len(archive.pickle):
        raise UnreadableError(f"its pickle ends at byte {pickled.tell()} of {len(archive.pickle)}")
    for storage in outline.storages.values():
        found = archive.records.get(f"data/{storage.key}")
        if found != storage.size_bytes:
            raise UnreadableError(
                f"its record 'data/{storage.key}' should have {storage.size_bytes} bytes, "
                f"{'it has none' if found is None else f'it has {found}'}"
            )
    _check_odd(outline, path)


def _load_legacy(file: io.BufferedReader, path: str, size_bytes: int, trust: Trust) -> Any:
    file.seek(0)
    try:
        outline = _outline_of_legacy(file, size_bytes)
    except (BlockedError, UnknownStepError, UnreadableError) as error:
        file.seek(0)
        if trust.allow_pickle and not _is_damage(error):
            return load_pickle(file, path, is_torch=True)
        raise _explained(error, path, file) from error
    _check_odd(outline, path)
    file.seek(0)
    return _load_safely(file, path, file, is_mapped=False)


def _outline_of_legacy(file: io.BufferedReader, size_bytes: int) -> Outline:
    """Walk the five pickles in a row (magic number, version, system, content, keys), then the storages.

    Source: torch 2.13.0 torch/serialization.py, `_legacy_save` and `_legacy_load`.
    """
    parts = [read_outline(file, size_bytes - file.tell()) for _ in range(_LEGACY_PICKLES)]
    outline, keys = parts[3], parts[4].content
    named = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
    others = any(part.storages for part in parts if part is not outline)
    if not named or others or sorted(keys) != sorted(outline.storages):
        raise UnreadableError("the list of its storages does not name those of its tensors")
    place = file.tell()
    for key in keys:
        storage = outline.storages[key]
        file.seek(place)
        head = file.read(8)
        found = struct.unpack("<q", head)[0] if len(head) == 8 else None
        if found != storage.numel:
            raise UnreadableError(f"its storage {key!r} should have {storage.numel} elements, it has {found}")
        place += 8 + storage.size_bytes
    if place != size_bytes:
        raise UnreadableError(f"its storages end at byte {place}, the file at {size_bytes}")
    return outline


def _load_bare(file: io.BufferedReader, path: str, size_bytes: int, trust: Trust) -> Any:
    """A pickle that `torch.save` did not write: it can only be run."""
    file.seek(0)
    if trust.allow_pickle:
        return load_pickle(file, path, is_torch=False)
    is_binary = file.read(1) == pickle.PROTO
    file.seek(0)
    names = [
        name for name in globals_in_pickle(file) if is_binary or "?" not in name
    ]  # 0x93 in other files hides no name
    file.seek(0)
    if names:
        raise refused(names, path)
    if looks_like_pickle(file):
        raise unread(path, "it is a bare pickle, not a file of torch.save, and opening one can run code")
    raise damaged(path, "no zip, no pickle, no safetensors")


def _load_safely(source: str | BinaryIO, path: str, pickled: BinaryIO, *, is_mapped: bool) -> Any:
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(safe_globals()):
            warnings.simplefilter("ignore")  # torch's remarks on pickle protocols and typed storages
            can_map = is_mapped and isinstance(source, str)
            return torch.load(source, map_location="cpu", weights_only=True, mmap=can_map)
    except Exception as error:  # bytes that are no checkpoint make torch raise any built-in error
        pickled.seek(0)
        raise refusal(error, path, pickled) from error


def _is_damage(error: Exception) -> bool:
    return isinstance(error, UnreadableError) and not isinstance(error, UnknownStepError)


def _explained(error: Exception, path: str, pickled: BinaryIO) -> CheckpointError | UnsafeCheckpointError:
    if _is_damage(error):
        return damaged(path, str(error))
    pickled.seek(0)
    names = globals_in_pickle(pickled)
    if isinstance(error, BlockedError):
        return refused(names if str(error) in names else [str(error), *names], path)
    return refused(names, path) if names else unread(path, str(error))


def _check_odd(outline: Outline, path: str) -> None:
    if outline.odd:
        raise refuse_kind(find_odd(outline.content), outline.odd[0], path)
