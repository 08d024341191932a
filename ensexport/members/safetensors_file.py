"""One safetensors file -> its tensors. The format holds no code; the header is still checked before it is believed.

The safetensors library checks offsets, shapes and that no byte is left over, but takes the last of two entries of
one name (0.8.0), and reads a header of up to 100 MB into memory.
"""

from __future__ import annotations

import json
from typing import Any, BinaryIO

import safetensors
import torch

from ensexport.errors import CheckpointError
from ensexport.members.wording import quote_path

_MAX_HEADER_BYTES = 2**24
_MAX_TENSORS = 100_000


class _HeaderError(ValueError):
    """What is wrong with a header."""


def load_safetensors(file: BinaryIO, source: str, path: str, *, size_bytes: int) -> dict[str, torch.Tensor]:
    """Return all tensors of a safetensors file, mapped into memory.

    Args:
        file: The open file; its position is undefined afterwards.
        source: The same file, by name.
        path: For messages.
        size_bytes: Size of the file.

    Raises:
        CheckpointError: The header is cut, no JSON, or names a tensor twice; offsets overlap, leave holes or bytes
            over; a shape does not fit its bytes.

    Source: https://github.com/huggingface/safetensors, "Format".
    """
    try:
        _check_header(file, size_bytes)
        with safetensors.safe_open(source, framework="pt", device="cpu") as archive:
            return {name: archive.get_tensor(name) for name in archive.keys()}  # noqa: SIM118 - no dict
    except (safetensors.SafetensorError, RecursionError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"cannot read {quote_path(path)}: it is truncated, damaged, or no safetensors file ({error}).",
            hint="Copy or download it again.",
        ) from error


def _check_header(file: BinaryIO, size_bytes: int) -> None:
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if size_bytes < 8 or length > size_bytes - 8:
        raise _HeaderError(f"its header claims {length} bytes, the file has {size_bytes}")
    if length > _MAX_HEADER_BYTES:
        raise _HeaderError(f"its header has {length} bytes, more than {_MAX_HEADER_BYTES}")
    header = json.loads(file.read(length), object_pairs_hook=_without_duplicates)
    if not isinstance(header, dict):
        raise _HeaderError("its header is no JSON object")
    if len(header) > _MAX_TENSORS:
        raise _HeaderError(f"it has {len(header)} tensors, more than {_MAX_TENSORS}")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise _HeaderError(f"its header names {name!r} twice")
        found[name] = value
    return found
