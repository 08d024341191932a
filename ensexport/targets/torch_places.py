"""Where in a TorchScript or `.pt2` archive each packed weight lies, found without running anything of it.

TorchScript keeps the tensors' description in a pickle; here it is read with nothing to build from but tensors'
descriptions and empty objects. A `.pt2` file says it in JSON.
"""

from __future__ import annotations

import functools
import io
import json
import math
import pickle
import re
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ensexport.errors import ArtifactError
from ensexport.targets.torch_archive import Record, read_records

_HINT = "Give a file that ensexport packed."
_WEIGHT = re.compile(r"weight_\d+_\w*")
_MAX_TEXT_BYTES = 2**26
_ITEM_BYTES = {
    "DoubleStorage": 8,
    "FloatStorage": 4,
    "HalfStorage": 2,
    "BFloat16Storage": 2,
    "LongStorage": 8,
    "IntStorage": 4,
    "ShortStorage": 2,
    "CharStorage": 1,
    "ByteStorage": 1,
    "BoolStorage": 1,
    "ComplexFloatStorage": 8,
    "ComplexDoubleStorage": 16,
}


@dataclass(frozen=True)
class Slot:
    """Where the values of one weight lie: the record, and from where to where in it."""

    record: str
    offset: int
    n_bytes: int


def script_name(index: int, weight_name: str) -> str:
    """What a TorchScript file calls a packed weight: number `index` of them."""
    return f"weight_{index}_" + "".join(c if c.isalnum() else "_" for c in weight_name)


def find_slots(path: Path, weight_names: Sequence[str]) -> Mapping[str, Slot]:
    """Find where the weights of a `.ts` or `.pt2` file lie.

    Args:
        path: The archive.
        weight_names: The packed weights, in order.

    Returns:
        Name of a weight -> place.

    Raises:
        ArtifactError: The archive is damaged, or lacks a weight; names it.
    """
    records = {record.name: record for record in read_records(path)}
    try:
        if path.suffix == ".pt2":
            slots = _exported_slots(_text(path, records, "data/weights/model_weights_config.json"))
            names = {name: name for name in weight_names}
        else:
            slots = _script_slots(_text(path, records, "data.pkl"))
            names = {name: script_name(index, name) for index, name in enumerate(weight_names)}
        for name, own in names.items():
            slot = slots.get(own)
            record = None if slot is None else records.get(slot.record)
            if slot is None or record is None or record.method or slot.offset + slot.n_bytes > record.n_bytes:
                raise ArtifactError(f"cannot use '{path}': it lacks the weight '{name}'.", hint=_HINT)
        return {name: slots[own] for name, own in names.items()}
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, EOFError, pickle.UnpicklingError) as error:
        raise ArtifactError(f"cannot use '{path}': its weights cannot be found: {error}.", hint=_HINT) from error


def _text(path: Path, records: Mapping[str, Record], name: str) -> bytes:
    if name not in records or records[name].n_bytes > _MAX_TEXT_BYTES:
        raise ArtifactError(f"cannot use '{path}': it has no record '{name}'.", hint=_HINT)
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.read(records[name].full_name.decode())
    except (zipfile.BadZipFile, zlib.error, RuntimeError, OSError, EOFError) as error:  # RuntimeError: encrypted
        raise ArtifactError(f"cannot read '{path}': {error}.", hint=_HINT) from error


def _exported_slots(data: bytes) -> dict[str, Slot]:
    slots = {}
    for name, entry in json.loads(data)["config"].items():
        meta = entry["tensor_meta"]
        sizes = [size["as_int"] for size in meta["sizes"]]
        strides = [stride["as_int"] for stride in meta["strides"]]
        if entry["use_pickle"] or meta["storage_offset"]["as_int"] or not _is_contiguous(sizes, strides):
            raise ValueError(f"'{name[:80]}' is not kept as plain bytes")
        slots[name] = Slot(f"data/weights/{entry['path_name']}", 0, math.prod(sizes) * _ITEM_BYTES_OF[meta["dtype"]])
    return slots


# torch/_export/serde/schema.py, ScalarType, of torch 2.13.
_ITEM_BYTES_OF = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 2, 7: 4, 8: 8, 9: 4, 10: 8, 11: 16, 12: 1, 13: 2}


def _is_contiguous(sizes: Sequence[int], strides: Sequence[int]) -> bool:
    expected = 1
    for size, stride in zip(reversed(sizes), reversed(strides), strict=True):
        if size > 1 and stride != expected:
            return False
        expected *= max(size, 1)
    return all(type(size) is int and size >= 0 for size in sizes)


def _script_slots(data: bytes) -> dict[str, Slot]:
    found: dict[str, Slot] = {}
    _collect(_Unpickler(data).load(), found, 0)
    return found


def _collect(value: Any, found: dict[str, Slot], depth: int) -> None:
    if not isinstance(value, _Object) or depth > 8:
        return
    for name, part in value.state.items():
        if isinstance(part, Slot) and isinstance(name, str) and _WEIGHT.fullmatch(name):
            found[name] = part
        _collect(part, found, depth + 1)


class _Object:
    """An object of the archive's own classes: what it holds, and no code."""

    def __init__(self) -> None:
        self.state: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.state = state


class _Unpickler(pickle.Unpickler):
    """Reads the description of a TorchScript file's objects; refuses whatever else a pickle may ask for."""

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        # What is called is made anew each time: a pickle may also set attributes of what it is given.
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return functools.partial(_slot)
        if (module, name) == ("torch.jit._pickle", "restore_type_tag"):
            return lambda value, _kind: value
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and name in _ITEM_BYTES:
            return _Storage(name)
        if module == "__torch__" or module.startswith("__torch__."):
            return type("Object", (_Object,), {})
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        """A storage: its record, and the size of an item."""
        kind, storage, key, _, _ = pid
        if kind != "storage" or not isinstance(storage, _Storage) or not isinstance(key, str):
            raise pickle.UnpicklingError("it asks for what is no tensor")
        return (f"data/{key}", _ITEM_BYTES[storage.name])


class _Storage:
    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self) -> None:
        raise pickle.UnpicklingError("it makes a storage")


def _slot(storage: Any, offset: int, sizes: Sequence[int], strides: Sequence[int], *_others: Any) -> Slot:
    record, item = storage
    if not _is_contiguous(sizes, strides) or offset < 0:
        raise pickle.UnpicklingError("a weight is not kept as plain bytes")
    return Slot(record, offset * item, math.prod(sizes) * item)
