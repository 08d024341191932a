"""Which functions a checkpoint's pickle may call, and with what: one line a function, plain data only.

torch's loader allows about 250 names and gives them whatever the file says; here each call is held against what
`torch.save` writes: numbers within bounds, a tensor within its storage, no call that a file of weights never needs.
"""

from __future__ import annotations

import argparse
import math
import re
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ensexport.members.allowed import ALLOWED

_STORAGE = re.compile(r"torch\.(?:cuda\.)?(\w+)Storage|torch\.storage\.(Untyped)Storage")
_STORAGE_BYTES = {
    "Untyped": 1, "Bool": 1, "Byte": 1, "Char": 1, "QInt8": 1, "QUInt8": 1, "QUInt4x2": 1, "QUInt2x4": 1,
    "Short": 2, "Half": 2, "BFloat16": 2, "Int": 4, "Float": 4, "QInt32": 4,
    "Long": 8, "Double": 8, "ComplexFloat": 8, "ComplexDouble": 16,
}  # fmt: skip
_QSCHEMES = {f"torch.per_{axis}_{kind}" for axis in ("tensor", "channel") for kind in ("affine", "symmetric")}
_ONLY_NAMED = {"torch.Tensor", "torch.nn.parameter.Parameter", "torch.per_channel_affine_float_qparams", *_QSCHEMES}
"""May stand as a value; calling one would make a tensor out of memory that no one wrote."""
_MAX_DIMS = 64
_MAX_KEY = 2**59


class UnreadableError(Exception):
    """A pickle that `torch.save` did not write, or that did not arrive whole; the text says why."""


class BlockedError(Exception):
    """A pickle asks for something that may run code; the text names it."""


@dataclass(frozen=True)
class Global:
    """A class or function that the pickle names; never looked up."""

    name: str


@dataclass(frozen=True)
class Storage:
    """The bytes of one or more tensors: where they lie in the file and how many there are."""

    key: str
    type_name: str
    numel: int

    @property
    def size_bytes(self) -> int:
        """How many bytes the file must hold for it."""
        return self.numel * _STORAGE_BYTES[self.type_name]


@dataclass(frozen=True, eq=False)
class TensorOutline:
    """Stands for a tensor: `dense` (also on the meta device), or the kind that cannot be packed."""

    kind: str


@dataclass(frozen=True, eq=False)
class Opaque:
    """Stands for a value that holds nothing: a device, a layout."""

    name: str


def is_known(name: str) -> bool:
    """True if a checkpoint may name it at all."""
    return (
        name in _CALLS
        or name in ALLOWED
        or name in _ONLY_NAMED
        or _storage_type(name) is not None
        or _dtype(name) is not None
    )


def call(function: object, arguments: object) -> object:
    """Return what a call would make.

    Raises:
        BlockedError: The function may not be called.
        UnreadableError: The arguments are not those that `torch.save` writes.
    """
    if not isinstance(function, Global):
        raise BlockedError("something that it made itself")
    if not isinstance(arguments, tuple):
        raise UnreadableError(f"it calls {function.name} without a tuple of arguments")
    if function.name in ALLOWED and function.name != "argparse.Namespace":
        plain = [ALLOWED.get(item.name, item) if isinstance(item, Global) else item for item in arguments]
        return ALLOWED[function.name](*plain)
    rule = _CALLS.get(function.name)
    if rule is None:
        raise BlockedError(function.name)
    try:
        return rule(*arguments)
    except TypeError as error:
        raise UnreadableError(f"it calls {function.name} with {len(arguments)} arguments") from error


def storage_of(saved_id: object) -> Storage:
    """Return the storage that a persistent id names.

    Raises:
        UnreadableError: It is not of the form `('storage', TYPE, KEY, LOCATION, NUMEL)`.
    """
    if isinstance(saved_id, tuple) and len(saved_id) == 6 and saved_id[5] is None:
        saved_id = saved_id[:5]  # files from before torch 1.6 have a place for views of storages
    if not (isinstance(saved_id, tuple) and len(saved_id) == 5 and saved_id[0] == "storage"):
        raise UnreadableError("it refers to something that is no storage")
    _, kind, key, location, numel = saved_id
    type_name = _storage_type(kind.name) if isinstance(kind, Global) else None
    plain = isinstance(key, str) and isinstance(location, str) and type(numel) is int
    if type_name is None or not plain or not 0 <= numel < 2**48:
        raise UnreadableError("it holds a storage of an unknown type or size")
    return Storage(key, type_name, numel)


def check_key(key: object) -> None:
    """Refuse a dict key whose hash could be slow, deep, or made to collide.

    Raises:
        UnreadableError: It is no text, bytes, bool, None, small number, or tuple of texts.
    """
    plain = key is None or isinstance(key, str | bytes | bool | float)
    small = type(key) is int and -_MAX_KEY < key < _MAX_KEY
    texts = isinstance(key, tuple) and len(key) <= 8 and all(isinstance(item, str) for item in key)
    if not (plain or small or texts or isinstance(key, Global)):
        raise UnreadableError(f"it holds a dict with {type(key).__name__} keys")


def _storage_type(name: str) -> str | None:
    match = _STORAGE.fullmatch(name)
    found = (match[1] or match[2]) if match else None
    return found if found in _STORAGE_BYTES else None


def _dtype(name: str) -> torch.dtype | None:
    home, _, short = name.rpartition(".")
    found = getattr(torch, short, None) if home == "torch" and short.isidentifier() else None
    return found if isinstance(found, torch.dtype) else None


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise UnreadableError(what)


# -- plain values ----------------------------------------------------------------------------------------


def _ordered_dict(pairs: Any = ()) -> OrderedDict[Any, Any]:
    result: OrderedDict[Any, Any] = OrderedDict()
    _require(isinstance(pairs, list | tuple), "it calls OrderedDict with something that is no list")
    for pair in pairs:
        _require(
            isinstance(pair, list | tuple) and len(pair) == 2, "it calls OrderedDict with something that is no pair"
        )
        check_key(pair[0])
        result[pair[0]] = pair[1]
    return result


def _counter(counts: Any = None) -> Counter[Any]:
    _require(counts is None or type(counts) is dict, "it calls Counter with something that is no dict")
    return Counter(counts or {})


def _set(items: Any = ()) -> set[Any]:
    _require(type(items) in (list, tuple), "it calls set with something that is no list")
    for item in items:
        check_key(item)
    return set(items)


def _encode(text: Any, encoding: Any = "") -> bytes:
    if not isinstance(text, str) or encoding not in {"latin1", "latin-1"}:
        raise BlockedError("_codecs.encode with another encoding than latin1")
    return text.encode("latin1")


def _bytearray(data: Any = b"", encoding: Any = None) -> bytearray:
    if isinstance(data, str):
        return bytearray(_encode(data, encoding))
    _require(isinstance(data, bytes) and encoding is None, "it calls bytearray with something that is no bytes")
    return bytearray(data)


def _complex(real: Any, imag: Any = 0.0) -> complex:
    _require(
        type(real) in (int, float) and type(imag) in (int, float), "it calls complex with something else than numbers"
    )
    return complex(real, imag)


def _size(sizes: Any = ()) -> tuple[int, ...]:
    return _ints(sizes)


def _device(name: Any, index: Any = 0) -> Opaque:
    _require(isinstance(name, str) and type(index) is int, "it calls torch.device with something that is no name")
    return Opaque(f"device {name}")


def _layout(name: Any) -> Opaque:
    _require(isinstance(name, str), "it calls _get_layout with something that is no name")
    return Opaque(f"layout {name}")


# -- tensors ---------------------------------------------------------------------------------------------


def _ints(sizes: Any) -> tuple[int, ...]:
    whole = isinstance(sizes, tuple) and len(sizes) <= _MAX_DIMS
    if not whole or not all(type(size) is int and 0 <= size < 2**48 for size in sizes):
        raise UnreadableError("it holds a tensor whose shape or strides are no small whole numbers")
    return tuple(sizes)


def _check_place(storage: Any, offset: Any, size: Any, stride: Any, item_bytes: int | None = None) -> None:
    """Hold a tensor against its storage; torch would enlarge the storage instead, to any size."""
    if not isinstance(storage, Storage) or type(offset) is not int or not 0 <= offset < 2**48:
        raise UnreadableError("it holds a tensor without a storage")
    sizes, strides = _ints(size), _ints(stride)
    _require(len(sizes) == len(strides), "it holds a tensor with fewer strides than dimensions")
    last = offset + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    item_bytes = item_bytes or storage.size_bytes // max(storage.numel, 1)
    if math.prod(sizes) and (last + 1) * item_bytes > storage.size_bytes:
        raise UnreadableError(
            f"it holds a tensor of shape {sizes} that ends at byte {(last + 1) * item_bytes} of its storage "
            f"{storage.key!r} of {storage.size_bytes} bytes"
        )
    _require(math.prod(max(size, 1) for size in sizes) < 2**60, f"it holds a tensor of the impossible shape {sizes}")


def _check_extras(requires_grad: Any, hooks: Any, metadata: Any = None) -> None:
    _require(type(requires_grad) is bool, "it holds a tensor whose requires_grad is no bool")
    _require(hooks is None or (isinstance(hooks, dict) and not hooks), "it holds a tensor with hooks")
    flags = metadata is None or (type(metadata) is dict and set(metadata) <= {"conj", "neg"})
    _require(flags, "it holds a tensor with unknown flags")
    _require(all(type(flag) is bool for flag in (metadata or {}).values()), "it holds a tensor with unknown flags")


def _tensor(storage: Any, offset: Any, size: Any, stride: Any) -> TensorOutline:
    _check_place(storage, offset, size, stride)
    return TensorOutline("dense")


def _tensor_v2(
    storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, metadata: Any = None
) -> TensorOutline:
    _check_extras(grad, hooks, metadata)
    return _tensor(storage, offset, size, stride)


def _tensor_v3(
    storage: Any,
    offset: Any,
    size: Any,
    stride: Any,
    grad: Any,
    hooks: Any,
    dtype: Any,
    metadata: Any = None,
) -> TensorOutline:
    _check_extras(grad, hooks, metadata)
    found = _dtype(dtype.name) if isinstance(dtype, Global) else None
    if found is None:
        raise UnreadableError("it holds a tensor of an unknown dtype")
    _check_place(storage, offset, size, stride, found.itemsize)
    return TensorOutline("dense")


def _parameter(data: Any, grad: Any, hooks: Any) -> TensorOutline:
    _check_extras(grad, hooks)
    return _inner(data)


def _parameter_with_state(data: Any, grad: Any, hooks: Any, state: Any) -> TensorOutline:
    _check_attributes(state)
    return _parameter(data, grad, hooks)


def _from_type(function: Any, kind: Any, arguments: Any, state: Any) -> TensorOutline:
    """A tensor with attributes of its own."""
    named = isinstance(kind, Global) and kind.name in {"torch.Tensor", "torch.nn.parameter.Parameter"}
    if not named or not (isinstance(function, Global) and function.name.startswith("torch._utils._rebuild_")):
        raise BlockedError(f"a tensor class of its own ({kind.name if isinstance(kind, Global) else 'made by itself'})")
    _check_attributes(state)
    return _inner(call(function, arguments))


def _inner(data: Any) -> TensorOutline:
    if not isinstance(data, TensorOutline):
        raise UnreadableError("it holds a parameter without a tensor")
    return data


def _check_attributes(state: Any) -> None:
    """Attributes are set one by one, so none may stand for something that tensors have."""
    state = state[0] if isinstance(state, tuple) and len(state) == 2 and state[1] is None else state
    plain = state is None or (type(state) is dict and all(isinstance(name, str) for name in state))
    _require(plain, "it holds a tensor with attributes that are no dict")
    taken = [name for name in state or () if hasattr(torch.nn.Parameter, name) or name.startswith("__")]
    if taken:
        raise BlockedError(f"torch.Tensor.{taken[0]}")


def _meta(dtype: Any, size: Any, stride: Any, grad: Any) -> TensorOutline:
    _check_extras(grad, None)
    _require(isinstance(dtype, Global) and _dtype(dtype.name) is not None, "it holds a tensor of an unknown dtype")
    _require(len(_ints(size)) == len(_ints(stride)), "it holds a tensor with fewer strides than dimensions")
    _require(math.prod(max(item, 1) for item in _ints(size)) < 2**60, "it holds a tensor of an impossible shape")
    return TensorOutline("meta")


def _moved(data: Any, dtype: Any, device: Any, grad: Any) -> TensorOutline:
    """What was on a device that this torch may not know, saved through the CPU."""
    _check_extras(grad, None)
    known = isinstance(dtype, Global) and _dtype(dtype.name) is not None and isinstance(device, str)
    _require(known, "it holds a tensor of an unknown dtype or device")
    return _inner(data)


def _kind(kind: str) -> Callable[..., TensorOutline]:
    def make(*_: Any) -> TensorOutline:
        return TensorOutline(kind)

    return make


_CALLS: dict[str, Callable[..., object]] = {
    "_codecs.encode": _encode,
    "argparse.Namespace": argparse.Namespace,
    "builtins.bytearray": _bytearray,
    "builtins.complex": _complex,
    "builtins.set": _set,
    "collections.Counter": _counter,
    "collections.OrderedDict": _ordered_dict,
    "torch.Size": _size,
    "torch.device": _device,
    "torch.serialization._get_layout": _layout,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor_v2,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter_with_state,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _moved,
    "torch._utils._rebuild_meta_tensor_no_storage": _meta,
    "torch._utils._rebuild_sparse_tensor": _kind("sparse"),
    "torch._utils._rebuild_qtensor": _kind("quantised"),
    "torch._utils._rebuild_nested_tensor": _kind("nested"),
    "torch._utils._rebuild_wrapper_subclass": _kind("of a class of its own"),
    "torch._tensor._rebuild_from_type_v2": _from_type,
}
