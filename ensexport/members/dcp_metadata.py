"""The table of a `torch.distributed.checkpoint` folder (`.metadata`), read without running anything in it.

The table is a pickle, and torch reads it with the plain unpickler. Here every class it may name becomes an inert
stand-in that keeps what it is given, any other name is refused, and what comes out is checked field by field.
"""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ensexport.errors import CheckpointError, UnsafeCheckpointError
from ensexport.members.refusals import globals_in_pickle
from ensexport.members.wording import join_some, quote_path

_METADATA = "torch.distributed.checkpoint.metadata"
_STORAGE = "torch.distributed.checkpoint.filesystem"
_OLD_METADATA = "torch.distributed._shard.sharded_tensor.metadata"  # of the tensors, up to torch 2.2
_CLASSES = {
    *((_METADATA, name) for name in ("Metadata", "MetadataIndex", "StorageMeta", "TensorProperties")),
    *((_METADATA, f"{kind}StorageMetadata") for kind in ("Tensor", "Bytes", "Chunk")),
    (_METADATA, "_MEM_FORMAT_ENCODING"),
    *((_STORAGE, name) for name in ("_StorageInfo", "_StoragePrefix")),
    *((_OLD_METADATA, name) for name in ("TensorProperties", "MEM_FORMAT_ENCODING")),
    ("torch.serialization", "_get_layout"),
    *(
        (module, name)  # the place it was saved to
        for module in ("pathlib", "pathlib._local")
        for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
    ),
}
"""Source: torch 2.13.0 distributed/checkpoint/metadata.py, filesystem.py; torch 2.2.0 for `_OLD_METADATA`."""
_MAX_PARTS = 4_000_000
_MAX_RANK = 64
_MAX_ELEMENTS = 2**48


@dataclass(frozen=True)
class Chunk:
    """A box of one tensor and the record that holds it.

    Attributes:
        offsets: Where in the tensor the box begins.
        sizes: Its shape.
        file: Name of the file; may still be anything.
        start: First byte of the record in the file.
        length: Size of the record in bytes.
    """

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: str
    start: int
    length: int


@dataclass(frozen=True)
class SavedTensor:
    """One tensor as the table describes it.

    Attributes:
        name: Its name, all parts joined with dots.
        path: Its keys in the nested dicts that were saved; `(name,)` where they were flat.
        dtype: Its dtype.
        shape: Its shape.
        chunks: The boxes it was cut into, without empty ones.
    """

    name: str
    path: tuple[str, ...]
    dtype: torch.dtype
    shape: tuple[int, ...]
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True)
class Table:
    """What the table of a folder says.

    Attributes:
        tensors: The tensors, in the order they were saved in.
        others: Names of what was saved and is no tensor; it is never read, for torch pickled it.
        files: Names of all files the table speaks of, also those of `others`.
    """

    tensors: tuple[SavedTensor, ...]
    others: tuple[str, ...]
    files: tuple[str, ...]


def parse_table(raw: bytes, path: str) -> Table:
    """Read the bytes of `.metadata`.

    Args:
        raw: The bytes.
        path: For messages.

    Raises:
        UnsafeCheckpointError: It asks for anything but the classes of such a table; names it.
        CheckpointError: It is damaged, or does not describe tensors.
    """
    loaded = _unpickle(raw, path)
    try:
        return _read_table(loaded, path)
    except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
        raise CheckpointError(
            f"cannot read {quote_path(path)}: it is no table of a distributed checkpoint "
            f"({type(error).__name__}: {str(error)[:200]}).",
            hint="Save it again with torch.distributed.checkpoint.save.",
        ) from error


# -- the pickle ------------------------------------------------------------------------------------


class _StandIn:
    """Takes the place of a class of torch: keeps what it was called with and given as its state."""

    def __init__(self, *args: Any) -> None:
        self.args = args

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)
        else:
            self.state = state


class _Ordered(dict[Any, Any]):
    """Takes the place of an OrderedDict, which is pickled empty and then filled; never a copy of another."""

    def __init__(self) -> None:
        super().__init__()


_KNOWN: dict[tuple[str, str], Any] = {
    ("torch", "Size"): tuple,
    ("collections", "OrderedDict"): _Ordered,
    **{names: type(names[1], (_StandIn,), {}) for names in _CLASSES},
}
_DTYPES = {name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}


class _TableUnpickler(pickle._Unpickler):
    """The unpickler written in Python: the one in C can be made to fill memory by a single large memo index."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        found = _lookup(module_name, global_name)
        if found is None:
            raise _BlockedName(f"{module_name}.{global_name}")
        return found

    def persistent_load(self, pid: Any) -> Any:
        raise _BlockedName("persistent_load")


class _BlockedName(pickle.UnpicklingError):
    pass


def _unpickle(raw: bytes, path: str) -> Any:
    try:
        return _TableUnpickler(io.BytesIO(raw)).load()
    except _BlockedName as error:
        names = [name for name in globals_in_pickle(io.BytesIO(raw)) if _lookup(*name.rpartition(".")[::2]) is None]
        names = list(dict.fromkeys([*names, str(error)]))
        raise UnsafeCheckpointError(
            f"refused {quote_path(path)}: it asks to run {join_some(names)}; the table of a distributed checkpoint may "
            "hold only sizes, types and names.",
            hint="Ask its author for the weights alone: torch.save(model.state_dict(), ...).",
            blocked=names,
        ) from error
    except Exception as error:  # bytes that are no pickle make the unpickler raise any built-in error
        raise CheckpointError(
            f"cannot read {quote_path(path)}: it is truncated, damaged, or no table of a distributed checkpoint "
            f"({type(error).__name__}).",
            hint="Copy it again, or save it again with torch.distributed.checkpoint.save.",
        ) from error


def _lookup(module: str, name: str) -> Any:
    """What a name in the table stands for; None if it may not be there."""
    return _KNOWN.get((module, name)) or (_DTYPES.get(name) if module == "torch" else None)


# -- its contents ----------------------------------------------------------------------------------


def _read_table(loaded: Any, path: str) -> Table:
    entries = _dict(_of(loaded, "Metadata").state_dict_metadata)
    paths = loaded.planner_data or {}
    storage: dict[tuple[str, tuple[int, ...] | None], Any] = {}
    for index, info in _dict(loaded.storage_data).items():
        key = (_text(_of(index, "MetadataIndex").fqn), _sizes(index.offset) if _has(index, "offset") else None)
        storage[key] = _of(info, "_StorageInfo")
    tensors, others, n_parts = [], [], 0
    for name, entry in entries.items():
        if type(entry).__name__ == "BytesStorageMetadata":
            others.append(_text(name))
            continue
        n_parts += len(_of(entry, "TensorStorageMetadata").chunks)
        if n_parts > _MAX_PARTS:
            raise ValueError(f"more than {_MAX_PARTS} parts")
        tensors.append(_read_tensor(_text(name), entry, _dict(paths), storage))
    files = dict.fromkeys(_text(info.relative_path) for info in storage.values())
    return Table(tuple(tensors), tuple(others), tuple(files))


def _read_tensor(
    name: str, entry: Any, paths: Mapping[Any, Any], storage: Mapping[tuple[str, tuple[int, ...] | None], Any]
) -> SavedTensor:
    dtype = _of(entry.properties, "TensorProperties").state[0]
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"the dtype of {name!r} is a {type(dtype).__name__}")
    shape = _sizes(entry.size)
    if math.prod(max(size, 1) for size in shape) > _MAX_ELEMENTS:
        raise ValueError(f"{name!r} has the shape {shape}")
    chunks = []
    for box in entry.chunks:
        offsets, sizes = _sizes(_of(box, "ChunkStorageMetadata").offsets), _sizes(box.sizes)
        if not all(o + s <= d for o, s, d in zip(offsets, sizes, shape, strict=True)):
            raise ValueError(f"a part of {name!r} lies outside its shape {shape}")
        if not math.prod(sizes):
            continue  # the share of a rank that got nothing
        info = storage[name, offsets]
        if _has(info, "transform_descriptors"):
            raise ValueError(f"{name!r} was written through an extension, {info.transform_descriptors}")
        chunks.append(Chunk(offsets, sizes, info.relative_path, _count(info.offset), _count(info.length)))
    if sum(math.prod(chunk.sizes) for chunk in chunks) != math.prod(shape):
        raise ValueError(f"the parts of {name!r} do not make up its shape {shape}")
    return SavedTensor(name, _key_path(name, paths), dtype, shape, tuple(chunks))


def _key_path(name: str, paths: Mapping[Any, Any]) -> tuple[str, ...]:
    parts = paths.get(name)
    if parts is None:
        return (name,)
    if (
        not isinstance(parts, tuple)
        or not 0 < len(parts) <= len(name) + 1
        or not all(isinstance(part, str | int) for part in parts)
    ):
        raise TypeError(f"the keys of {name!r} are no tuple of names")
    keys = tuple(str(part) for part in parts)
    if ".".join(keys) != name:
        raise ValueError(f"the keys of {name!r} are {keys}")
    return keys


def _of(value: Any, class_name: str) -> Any:
    if type(value).__name__ != class_name or not isinstance(value, _StandIn):
        raise TypeError(f"expected a {class_name}, got {type(value).__name__}")
    return value


def _has(value: Any, name: str) -> bool:
    return getattr(value, name, None) is not None


def _dict(value: Any) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"expected a dict, got {type(value).__name__}")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected a name, got {type(value).__name__}")
    return value


def _sizes(value: Any) -> tuple[int, ...]:
    if not isinstance(value, tuple) or len(value) > _MAX_RANK:
        raise TypeError(f"expected at most {_MAX_RANK} sizes, got {type(value).__name__}")
    return tuple(_count(item) for item in value)


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"expected a number of 0 or more, got {value!r}"[:100])
    return value
