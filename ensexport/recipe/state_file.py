"""A safetensors file written tensor by tensor: the layout first, then each tensor at its place.

The library's own writer takes all tensors at once, which for the members of an ensemble would be all of their weights.

Source: https://github.com/huggingface/safetensors, "Format".
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch

from ensexport.errors import ExportError
from ensexport.members import Members
from ensexport.members.tensors import raw_bytes
from ensexport.recipe.own_tensors import state_of
from ensexport.stacking import Ensemble

STATE_FILE = "state.safetensors"
_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.complex64: "C64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True)
class Entry:
    """One tensor of a file."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def n_bytes(self) -> int:
        """Size of its values."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


class StateFile:
    """An open safetensors file: made with its header, filled by `put`. Equal tensors give equal bytes.

    Args:
        path: The file.
        entries: Its tensors by name.

    Raises:
        ExportError: The format does not know a dtype.
        OSError: The system refuses.
    """

    def __init__(self, path: Path, entries: Mapping[str, Entry]) -> None:
        # The widest first, as the library does it: every tensor begins at a multiple of its item size.
        order = sorted(entries, key=lambda name: (-entries[name].dtype.itemsize, name))
        header, end = {}, 0
        self._places: dict[str, int] = {}
        for name in order:
            entry = entries[name]
            if entry.dtype not in _NAMES:
                raise ExportError(
                    f"cannot keep '{name}': safetensors has no {str(entry.dtype).removeprefix('torch.')}.",
                    hint="Leave the members' tensors out.",
                )
            self._places[name] = end
            end += entry.n_bytes
            offsets = [self._places[name], end]
            header[name] = {"dtype": _NAMES[entry.dtype], "shape": list(entry.shape), "data_offsets": offsets}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._begin = 8 + len(text)
        self._file = path.open("wb")
        try:
            self._file.write(len(text).to_bytes(8, "little") + text)
            self._file.truncate(self._begin + end)
            self._file.flush()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> StateFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._file.close()

    def put(self, name: str, tensor: torch.Tensor) -> None:
        """Write a tensor of the shape and dtype that its entry has.

        Raises:
            OSError: The system refuses: the disk is full, for one.
        """
        values, offset, done = raw_bytes(tensor).numpy().data, self._begin + self._places[name], 0
        while done < len(values):
            done += os.pwrite(self._file.fileno(), values[done:], offset + done)


def kept_entries(ensemble: Ensemble | Members, names: Sequence[str]) -> dict[str, Entry]:
    """What a package keeps of all members, without reading a value: `K.NAME` -> shape and dtype.

    Args:
        ensemble: The members.
        names: What `kept_names` returned.
    """
    entries = {}
    shapes = None if isinstance(ensemble, Members) else state_of(ensemble, 0)
    for index in range(len(ensemble)):
        for name in names:
            tensor = ensemble[index].shapes[name] if isinstance(ensemble, Members) else (shapes or {})[name]
            saved = ensemble[index].saved_dtypes if isinstance(ensemble, Members) else {}
            entries[f"{index}.{name}"] = Entry(tuple(tensor.shape), saved.get(name, tensor.dtype))
    return entries


def write_kept(path: Path, ensemble: Ensemble | Members, names: Sequence[str]) -> None:
    """Write the tensors that cannot be read back out of a packed file, of all members, one member in memory at a time.

    Args:
        path: The file; its bytes depend on the tensors alone.
        ensemble: The members.
        names: What `kept_names` returned.

    Raises:
        ExportError: safetensors does not know a dtype.
        CheckpointError: A checkpoint was changed or removed meanwhile.
        OSError: The system refuses.
    """
    with StateFile(path, kept_entries(ensemble, names)) as file:
        for index in range(len(ensemble)):
            state = state_of(ensemble, index)
            for name in names:
                file.put(f"{index}.{name}", state[name])
