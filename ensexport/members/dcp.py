"""A folder that `torch.distributed.checkpoint` wrote (FSDP, `dcp.save`) -> the tensors that were saved into it.

torch's own reader is not used: it unpickles the table and every entry that is no tensor with nothing forbidden, and
checks no checksum. What is left of its work is to put each record into its place of the tensor.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import re
import stat
import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from ensexport.errors import CheckpointError, UnsafeCheckpointError
from ensexport.members.archive import ZIP_MAGIC, check_archive
from ensexport.members.checkpoint import LoadedFile
from ensexport.members.dcp_metadata import Chunk, SavedTensor, Table, parse_table
from ensexport.members.file_sets import digest_of_files, neighbour
from ensexport.members.programs import refuse_program
from ensexport.members.refusals import damaged, refusal
from ensexport.members.wording import join_some, quote_path

_METADATA = ".metadata"
_MAX_METADATA_BYTES = 256 * 2**20
_OPTIMIZER = re.compile(r"optim(izer)?s?(_states?|_state_dict)?(_\d+)?")
_HINT = "Copy the folder again, or save it again with torch.distributed.checkpoint.save."


def load_dcp(folder: Path) -> LoadedFile:
    """Read the weights of a distributed checkpoint.

    Args:
        folder: Holds `.metadata` and the files it names.

    Returns:
        The tensors in nested dicts as they were saved (a place in a list is a key `"0"`), without the optimizer's,
        and without anything that is no tensor. The format is `dcp`, the digest that of `digest_of_files` over
        `.metadata` and the files it names, the size their sum; nothing is mapped from a file.

    Raises:
        IncompleteCheckpointError: A file is missing.
        CheckpointError: A file or the table is damaged, changed while it was read, or lies elsewhere; the table
            claims more than the files hold; or there are no weights.
        UnsafeCheckpointError: The table or a record asks for code to be run, or the environment switches torch's
            protection off.

    Source: torch 2.13.0 distributed/checkpoint/filesystem.py (FileSystemReader.read_data), default_planner.py.
    """
    if os.environ.get("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"):
        raise UnsafeCheckpointError(
            f"refused to read {quote_path(folder)}: TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD is set, which switches safe "
            "loading off.",
            hint="Unset TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD.",
        )
    try:
        with ExitStack() as stack:
            return _load(folder, stack)
    except OSError as error:
        raise CheckpointError(
            f"cannot read {quote_path(error.filename or folder)}: {error.strerror or error}.",
            hint="Check the path and its permissions.",
        ) from error


def _load(folder: Path, stack: ExitStack) -> LoadedFile:
    files = {_METADATA: stack.enter_context(_open(folder, _METADATA))}
    table = _read_table(files[_METADATA], folder)
    for name in table.files:
        if name not in files:
            files[name] = stack.enter_context(_open(folder, name))
    digest = digest_of_files({name: hashlib.file_digest(file, "sha256").hexdigest() for name, file in files.items()})
    sizes = {name: os.fstat(file.fileno()).st_size for name, file in files.items()}
    tensors = _without_optimizer(table, folder)
    _check_claims(tensors, sizes, folder)
    content: dict[str, Any] = {}
    for tensor in tensors:
        _put(content, tensor, _read_tensor(tensor, files, folder), folder)
    facts = os.fstat(files[_METADATA].fileno())
    return LoadedFile(content, digest, "dcp", sum(sizes.values()), str(folder / _METADATA), facts)


@contextmanager
def _open(folder: Path, name: str) -> Iterator[io.BufferedReader]:
    """Open a file of the folder for reading; refuse it afterwards if it changed meanwhile."""
    path = neighbour(folder, name, named_in=folder / _METADATA)
    if not stat.S_ISREG(path.stat().st_mode):  # asked before opening: a pipe would block for ever
        raise CheckpointError(f"cannot read {quote_path(path)}: it is not a regular file.", hint=_HINT)
    with path.open("rb") as file:
        before = os.fstat(file.fileno())
        yield file
        after = path.stat()
    facts = [(s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns) for s in (before, after)]
    if facts[0] != facts[1]:
        raise CheckpointError(
            f"{quote_path(path)} changed while it was read ({before.st_size} bytes, then {after.st_size}).",
            hint="Wait until the training run has finished writing.",
        )


def _read_table(file: io.BufferedReader, folder: Path) -> Table:
    raw = file.read(_MAX_METADATA_BYTES + 1)
    path = folder / _METADATA
    if len(raw) > _MAX_METADATA_BYTES:
        raise CheckpointError(
            f"cannot read {quote_path(path)}: it has more than {_MAX_METADATA_BYTES} bytes.", hint=_HINT
        )
    file.seek(0)
    return parse_table(raw, str(path))


def _without_optimizer(table: Table, folder: Path) -> list[SavedTensor]:
    tensors = [tensor for tensor in table.tensors if not _is_optimizers(tensor)]
    if not tensors:
        names = [repr(tensor.name) for tensor in table.tensors] + [repr(name) for name in table.others]
        found = join_some(names) if names else "nothing"
        raise CheckpointError(
            f"{quote_path(folder)} holds no weights: found {found}.",
            hint="Name the folder that the model was saved to, not the optimizer's.",
        )
    return tensors


def _is_optimizers(tensor: SavedTensor) -> bool:
    """True if one of the dicts around a tensor is an optimizer's state; flat names are cut at their dots."""
    first = tensor.path[0].split(".")[0] if "." in tensor.path[0] else ""
    return any(_OPTIMIZER.fullmatch(key) for key in (first, *tensor.path[:-1]))


def _check_claims(tensors: Iterable[SavedTensor], sizes: dict[str, int], folder: Path) -> None:
    """Refuse a table whose tensors are larger than their records, or whose records are larger than their files."""
    left = dict(sizes)
    for tensor in tensors:
        for chunk in tensor.chunks:
            where = f"tensor {tensor.name!r} in {quote_path(folder)}"
            claimed = math.prod(chunk.sizes) * tensor.dtype.itemsize
            left[chunk.file] -= chunk.length
            if claimed > chunk.length:
                raise CheckpointError(
                    f"{where} claims {claimed} bytes (shape {chunk.sizes}), its record has {chunk.length}.", hint=_HINT
                )
            if chunk.start + chunk.length > sizes[chunk.file] or left[chunk.file] < 0:
                raise CheckpointError(
                    f"{where} claims bytes {chunk.start} to {chunk.start + chunk.length} of {chunk.file!r}, which has "
                    f"{sizes[chunk.file]} for all its tensors together.",
                    hint=_HINT,
                )


def _read_tensor(tensor: SavedTensor, files: dict[str, io.BufferedReader], folder: Path) -> torch.Tensor:
    if len(tensor.chunks) == 1:
        return _read_record(tensor, tensor.chunks[0], files, folder)
    result = torch.empty(tensor.shape, dtype=tensor.dtype)
    is_filled = torch.zeros(tensor.shape, dtype=torch.bool)
    for chunk in tensor.chunks:
        box = tuple(slice(start, start + size) for start, size in zip(chunk.offsets, chunk.sizes, strict=True))
        result[box] = _read_record(tensor, chunk, files, folder)
        is_filled[box] = True
    if not bool(is_filled.all()):
        raise CheckpointError(
            f"tensor {tensor.name!r} in {quote_path(folder)} is not whole: its {len(tensor.chunks)} parts overlap and "
            "leave holes.",
            hint=_HINT,
        )
    return result


def _read_record(tensor: SavedTensor, chunk: Chunk, files: dict[str, io.BufferedReader], folder: Path) -> torch.Tensor:
    """Read one record, a file of `torch.save` inside the file, as every checkpoint is read."""
    where = f"{folder / chunk.file} (tensor {tensor.name!r})"
    file = files[chunk.file]
    file.seek(chunk.start)
    record = io.BytesIO(file.read(chunk.length))
    if record.read(4) != ZIP_MAGIC:
        raise damaged(where, "a record that is no zip")
    archive = check_archive(record, where, size_bytes=chunk.length)
    if archive.program is not None:
        raise refuse_program(archive.program, where)
    record.seek(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's remarks on typed storages
            loaded = torch.load(record, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes that are no checkpoint make torch raise any built-in error
        raise refusal(error, where, io.BytesIO(archive.pickle)) from error
    expected = f"a dense {tensor.dtype} tensor of shape {chunk.sizes}"
    if type(loaded) is not torch.Tensor or loaded.layout is not torch.strided or loaded.is_meta:
        found = type(loaded).__name__
    elif (loaded.dtype, tuple(loaded.shape)) != (tensor.dtype, chunk.sizes):
        found = f"{loaded.dtype} of shape {tuple(loaded.shape)}"
    else:
        return loaded.contiguous()
    raise CheckpointError(f"cannot read {quote_path(where)}: expected {expected}, got {found}.", hint=_HINT)


def _put(content: dict[str, Any], tensor: SavedTensor, value: torch.Tensor, folder: Path) -> None:
    """Place a tensor in the nested dicts, under its keys."""
    inner: Any = content
    for key in tensor.path[:-1]:
        inner = inner.setdefault(key, {}) if isinstance(inner, dict) else None
    if not isinstance(inner, dict) or tensor.path[-1] in inner:
        raise CheckpointError(
            f"{quote_path(folder)} holds {tensor.name!r} both as a tensor and as a group of tensors.", hint=_HINT
        )
    inner[tensor.path[-1]] = value
