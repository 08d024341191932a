"""The one place that reads a checkpoint file. Nothing in a file is ever run.

Order of the checks: cheap facts first (size, first bytes), then a digest of all bytes, then the zip's own
checksums, and only then torch's loader, always with `weights_only=True`. Size and time of the file are
compared before and after, so that the digest speaks about the bytes that were loaded.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import stat
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import safetensors
import torch

from ensexport.errors import CheckpointError, UnsafeCheckpointError
from ensexport.members.archive import ZIP_MAGIC, check_archive
from ensexport.members.containers import Origin, extract_state, read_origin, strip_prefix
from ensexport.members.refusals import refusal
from ensexport.members.tensors import find_nonfinite, plain_state, weights_digest
from ensexport.members.wording import quote_path

__all__ = ["Checkpoint", "find_nonfinite", "read_checkpoint", "weights_digest"]

_HTML_STARTS = (b"<!doctype", b"<html", b"<head", b"<?xml", b"<!--")
_PLAIN_CLASSES: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [argparse.Namespace]
"""Beside tensors and plain values: the training options that timm and torchvision save. It only holds attributes."""
_NO_SAFETY = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"


@dataclass(frozen=True)
class Checkpoint:
    """The weights of one file and where in it they lay.

    Attributes:
        state: Plain, dense, contiguous CPU tensors by name; tied weights are the same object.
        container_key: The key the state dict lay under; None if the file held nothing else.
        stripped_prefix: What was taken off every name; None if nothing was.
        sha256: Digest of the file's bytes.
        format: `safetensors`, `torch-zip`, or `torch-legacy` (before torch 1.6).
        origin: What the file says its network is; None if it says nothing.
    """

    state: dict[str, torch.Tensor]
    container_key: str | None
    stripped_prefix: str | None
    sha256: str
    format: str
    origin: Origin | None = None


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read the weights of one checkpoint file without running anything in it.

    Args:
        path: A `.safetensors` file, or a file of any other suffix that `torch.save` wrote.

    Raises:
        CheckpointError: The file cannot be opened, is empty, truncated, damaged, a Git LFS pointer or a web
            page, holds no state dict or a tensor that cannot be packed, or changed while it was read.
        UnsafeCheckpointError: It asks for code to be run (names what), is a TorchScript or `.pt2` program,
            or the environment switches torch's protection off.
    """
    name = str(path)
    try:
        with _open_regular(Path(path)) as file:
            before = os.fstat(file.fileno())
            _check_head(file.read(512), name, before.st_size)
            file.seek(0)
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            if Path(path).suffix.lower() == ".safetensors":
                loaded, file_format = _load_safetensors(name), "safetensors"
            else:
                loaded, file_format = _load_torch(file, name, before.st_size)
            _check_unchanged(before, Path(path).stat(), name)
    except OSError as error:
        raise CheckpointError(
            f"cannot read {quote_path(name)}: {error.strerror or error}.",
            hint="Check the path and its permissions.",
        ) from error
    origin = read_origin(loaded)
    state, container_key = extract_state(loaded, name)
    state, stripped_prefix = strip_prefix(plain_state(state, name, size_bytes=before.st_size))
    return Checkpoint(state, container_key, stripped_prefix, sha256, file_format, origin)


def _open_regular(path: Path) -> io.BufferedReader:
    if not stat.S_ISREG(path.stat().st_mode):  # asked before opening: a pipe would block for ever
        raise CheckpointError(f"cannot read {quote_path(path)}: it is not a regular file.", hint="Name a file.")
    return path.open("rb")


def _check_head(head: bytes, path: str, size_bytes: int) -> None:
    problem = advice = ""
    is_safetensors = path.lower().endswith(".safetensors")
    if not head:
        problem, advice = "it is empty (0 bytes)", "Copy or download it again."
    elif head.startswith(b"version https://git-lfs"):
        problem, advice = f"it is a Git LFS pointer ({size_bytes} bytes), not the file", "Run 'git lfs pull'."
    elif head.lstrip().lower().startswith(_HTML_STARTS):
        problem, advice = "it is a web page, not a checkpoint", "Download the file itself; log in first."
    elif is_safetensors and head.startswith((ZIP_MAGIC, b"\x80\x02")):
        problem, advice = "it was written by torch.save, not by safetensors", "Rename it to end in .pt."
    elif not is_safetensors and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < size_bytes:
        problem, advice = "it is a safetensors file", "Rename it to end in .safetensors."
    if problem:
        raise CheckpointError(f"cannot read {quote_path(path)}: {problem}.", hint=advice)


def _load_safetensors(path: str) -> dict[str, torch.Tensor]:
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as archive:
            # Copied out of the memory map: what is done to the file later must not reach the weights.
            return {name: archive.get_tensor(name).clone() for name in archive.keys()}  # noqa: SIM118 - no dict
    except safetensors.SafetensorError as error:
        raise CheckpointError(
            f"cannot read {quote_path(path)}: it is truncated, damaged, or no safetensors file ({error}).",
            hint="Copy or download it again.",
        ) from error


def _load_torch(file: io.BufferedReader, path: str, size_bytes: int) -> tuple[Any, str]:
    if os.environ.get(_NO_SAFETY):
        raise UnsafeCheckpointError(
            f"refused to read {quote_path(path)}: {_NO_SAFETY} is set, which switches safe loading off.",
            hint=f"Unset {_NO_SAFETY}, or use .safetensors files.",
        )
    file.seek(0)
    is_zip = file.read(4) == ZIP_MAGIC
    pickled: BinaryIO = io.BytesIO(check_archive(file, path, size_bytes=size_bytes)) if is_zip else file
    file.seek(0)
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_PLAIN_CLASSES):
            warnings.simplefilter("ignore")  # torch's remarks on pickle protocols and typed storages
            loaded = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes that are no checkpoint make torch raise any built-in error
        pickled.seek(0)
        raise refusal(error, path, pickled) from error
    return loaded, "torch-zip" if is_zip else "torch-legacy"


def _check_unchanged(before: os.stat_result, after: os.stat_result, path: str) -> None:
    """Refuse a file that was written to or replaced while it was read."""
    facts = [(s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns) for s in (before, after)]
    if facts[0] != facts[1]:
        raise CheckpointError(
            f"{quote_path(path)} changed while it was read ({before.st_size} bytes, then {after.st_size}).",
            hint="Wait until the training run has finished writing.",
        )
