"""The one place that reads a checkpoint file. Nothing in a file is ever run, unless the user said to trust it.

Order of the checks: cheap facts first (size, first bytes), then the checks of the format that the first bytes show,
with a digest of all bytes; a suffix is only a name. Size and time of the file are compared before and after, so that
the digest speaks about the bytes that were loaded.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ensexport.errors import CheckpointError
from ensexport.members.mapped import MappedFile
from ensexport.members.safetensors_file import load_safetensors
from ensexport.members.tensors import own_state
from ensexport.members.torch_file import by_name, is_torch_head, load_torch
from ensexport.members.trust import NO_TRUST, Trust
from ensexport.members.wording import quote_path

_HEAD_BYTES = 512
_CHUNK_BYTES = 2**20
_HTML_STARTS = (b"<!doctype", b"<html", b"<head", b"<?xml", b"<!--")


@dataclass(frozen=True)
class LoadedFile:
    """What one file held, before anything in it is chosen.

    Attributes:
        content: Tensors, dicts, lists and plain values; a whole module only where pickles are trusted. Tensors may
            still lie in the file, mapped into memory, until `take` copies those that are wanted.
        sha256: Digest of the file's bytes.
        format: `safetensors`, `torch-zip`, `torch-legacy` (before torch 1.6), or, where they are trusted, `pickle`,
            `torchscript`, `pt2`.
        size_bytes: Size of the file.
        path: The file.
        facts: What the file system said of it when it was opened.
    """

    content: Any
    sha256: str
    format: str
    size_bytes: int
    path: str
    facts: os.stat_result

    def take(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Give tensors of the content memory of their own; tied ones stay tied.

        Raises:
            CheckpointError: The file was written to, replaced or removed since it was opened.
        """
        try:
            file = MappedFile(self.path)
        except OSError as error:
            raise self._gone(error) from error
        try:
            _check_unchanged(self.facts, file.facts, self.path)
            taken = own_state(state, file.copy)
        finally:
            file.close()
        self.check_unchanged()
        return taken

    def check_unchanged(self) -> None:
        """Make sure that what was copied out of the file is what the digest speaks about.

        Raises:
            CheckpointError: The file was written to, replaced or removed since it was opened.
        """
        try:
            _check_unchanged(self.facts, Path(self.path).stat(), self.path)
        except OSError as error:
            raise self._gone(error) from error

    def _gone(self, error: OSError) -> CheckpointError:
        return CheckpointError(
            f"{quote_path(self.path)} went away while it was read ({error.strerror}).",
            hint="Wait until the training run has finished writing.",
        )


@dataclass(frozen=True)
class Ledger:
    """The files that were read once: read again, their checksums need not be computed again.

    Attributes:
        files: Path -> what the file system said of it, and its digest.
    """

    files: dict[str, tuple[os.stat_result, str]] = field(default_factory=dict)

    def digest(self, path: str, facts: os.stat_result) -> str | None:
        """The digest of a file; None if it was not read before, or may have changed since.

        Raises:
            CheckpointError: It was, and has changed since.
        """
        if path not in self.files:
            return None
        before, sha256 = self.files[path]
        _check_unchanged(before, facts, path)
        # A program can set the time of the last change, but not the time when it did so.
        return sha256 if before.st_ctime_ns == facts.st_ctime_ns else None


def load_file(path: str | Path, *, trust: Trust = NO_TRUST, ledger: Ledger | None = None) -> LoadedFile:
    """Read one checkpoint file without running anything in it, unless `trust` allows that.

    Args:
        path: A file of any name; its first bytes say what it is.
        trust: What may run code.
        ledger: What is known of files that were read before; this one is added.

    Returns:
        What it held. With `allow_pickle` a file that needs no code is still read the safe way.

    Raises:
        CheckpointError: The file cannot be opened, is empty, truncated, damaged, a Git LFS pointer or a web
            page, or changed while it was read.
        UnsafeCheckpointError: It asks for code to be run (names what), or is a TorchScript or `.pt2` program, and
            `trust` does not cover it; or the environment switches torch's protection off.
    """
    name = str(path)
    try:
        # The digest is computed beside the checks of the format: both read all bytes.
        with _open_regular(Path(path)) as file, ThreadPoolExecutor(1) as pool:
            before = os.fstat(file.fileno())
            head = file.read(_HEAD_BYTES)
            _check_head(head, name, before.st_size)
            file.seek(0)
            known = None if ledger is None else ledger.digest(name, before)
            digest = pool.submit(_digest, file.fileno()) if known is None else None
            if _is_safetensors(head, name, before.st_size):
                content: Any = load_safetensors(file, by_name(file, name), name, size_bytes=before.st_size)
                file_format = "safetensors"
            else:
                content, file_format = load_torch(
                    file, name, size_bytes=before.st_size, trust=trust, is_known=known is not None
                )
            sha256 = known or (digest.result() if digest else "")
            _check_unchanged(before, Path(path).stat(), name)
    except OSError as error:
        raise CheckpointError(
            f"cannot read {quote_path(name)}: {error.strerror or error}.",
            hint="Check the path and its permissions.",
        ) from error
    if ledger is not None:
        ledger.files[name] = before, sha256
    return LoadedFile(content, sha256, file_format, before.st_size, name, before)


def _digest(descriptor: int) -> str:
    """The SHA-256 of a file; its position does not matter and is not moved."""
    digest, buffer, offset = hashlib.sha256(), bytearray(_CHUNK_BYTES), 0
    while count := os.preadv(descriptor, [buffer], offset):
        digest.update(memoryview(buffer)[:count])
        offset += count
    return digest.hexdigest()


def _open_regular(path: Path) -> io.BufferedReader:
    if not stat.S_ISREG(path.stat().st_mode):  # asked before opening: a pipe would block for ever
        raise CheckpointError(f"cannot read {quote_path(path)}: it is not a regular file.", hint="Name a file.")
    return path.open("rb")


def _check_head(head: bytes, path: str, size_bytes: int) -> None:
    problem = advice = ""
    if not head:
        problem, advice = "it is empty (0 bytes)", "Copy or download it again."
    elif head.startswith(b"version https://git-lfs"):
        problem, advice = f"it is a Git LFS pointer ({size_bytes} bytes), not the file", "Run 'git lfs pull'."
    elif head.lstrip().lower().startswith(_HTML_STARTS):
        problem, advice = "it is a web page, not a checkpoint", "Download the file itself; log in first."
    if problem:
        raise CheckpointError(f"cannot read {quote_path(path)}: {problem}.", hint=advice)


def _is_safetensors(head: bytes, path: str, size_bytes: int) -> bool:
    """Tell by the first bytes; the suffix only decides what a broken file was meant to be."""
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < size_bytes:
        return True
    is_pickle = is_torch_head(head) or (head[:1] == b"\x80" and head[1:2] <= b"\x05")
    return path.lower().endswith(".safetensors") and not is_pickle


def _check_unchanged(before: os.stat_result, after: os.stat_result, path: str) -> None:
    """Refuse a file that was written to or replaced while it was read."""
    facts = [(s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns) for s in (before, after)]
    if facts[0] != facts[1]:
        raise CheckpointError(
            f"{quote_path(path)} changed while it was read ({before.st_size} bytes, then {after.st_size}).",
            hint="Wait until the training run has finished writing.",
        )
