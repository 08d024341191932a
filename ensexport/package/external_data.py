"""What an ONNX file says of the file beside it that holds its weights.

ONNX Runtime and `onnx.checker` believe most of it: a length beyond the file, two tensors on the same bytes, a file with
two names. Here every tensor is found, wherever it stands (subgraphs, functions, attributes, sparse ones), and its entry
must name the one file that the manifest lists, and the bytes that its shape and dtype take.

Source: https://github.com/onnx/onnx/blob/main/docs/ExternalData.md
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ensexport.package.problems import as_text

if TYPE_CHECKING:
    import onnx

_KEYS = ("location", "offset", "length", "checksum")
_MAX_DIGITS = 20
_BITS = {
    "FLOAT": 32, "UINT8": 8, "INT8": 8, "UINT16": 16, "INT16": 16, "INT32": 32, "INT64": 64, "BOOL": 8, "FLOAT16": 16,
    "DOUBLE": 64, "UINT32": 32, "UINT64": 64, "COMPLEX64": 64, "COMPLEX128": 128, "BFLOAT16": 16, "FLOAT8E4M3FN": 8,
    "FLOAT8E4M3FNUZ": 8, "FLOAT8E5M2": 8, "FLOAT8E5M2FNUZ": 8, "UINT4": 4, "INT4": 4, "FLOAT4E2M1": 4,
    "FLOAT8E8M0": 8, "UINT2": 2, "INT2": 2,
}  # fmt: skip
Range = tuple[int, int, str]


class _EntryError(ValueError):
    """What is wrong with one tensor."""


def external_data_problems(model: onnx.ModelProto, data: str | None, size_bytes: int) -> list[str]:
    """Return all that is wrong with the external data of a model.

    Args:
        model: Read without its external data.
        data: Name of the file beside it that may be named; None if there is none.
        size_bytes: Size of that file.
    """
    problems, ranges = [], []
    for tensor in tensors_of(model):
        if not is_external(tensor):
            if tensor.external_data:
                problems.append(f"tensor {tensor.name!r} names a file, and does not say that its values lie there")
            continue
        try:
            ranges.append(_range(tensor, data, size_bytes))
        except _EntryError as error:
            problems.append(f"tensor {tensor.name!r}: {error}")
    problems += _overlaps(sorted(set(ranges)))
    if data is not None and not ranges and not problems:
        problems.append(f"no tensor has its values in {data!r}")
    return problems


def tensors_of(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every `TensorProto` of a model, wherever it stands."""
    import onnx

    waiting: list[Any] = [model]
    while waiting:
        message = waiting.pop()
        if isinstance(message, onnx.TensorProto):
            yield message
            continue
        for name, is_repeated in _ways_to_tensors()[message.DESCRIPTOR.full_name]:
            if is_repeated:
                waiting.extend(getattr(message, name))
            elif message.HasField(name):
                waiting.append(getattr(message, name))


def is_external(tensor: onnx.TensorProto) -> bool:
    """Do the tensor's values lie in another file?"""
    return bool(tensor.data_location == tensor.EXTERNAL)


@functools.cache
def _ways_to_tensors() -> dict[str, list[tuple[str, bool]]]:
    """Type of message -> the fields through which a tensor can be reached, and whether each is repeated."""
    import onnx

    target = onnx.TensorProto.DESCRIPTOR
    types, waiting = {}, [onnx.ModelProto.DESCRIPTOR]
    while waiting:
        kind = waiting.pop()
        if kind.full_name not in types:
            types[kind.full_name] = kind
            waiting += [field.message_type for field in kind.fields if field.message_type is not None]
    reaching = {target.full_name}
    while more := {
        name
        for name, kind in types.items()
        if name not in reaching
        and any(field.message_type is not None and field.message_type.full_name in reaching for field in kind.fields)
    }:
        reaching |= more
    return {
        name: [
            (field.name, _is_repeated(field))
            for field in types[name].fields
            if field.message_type is not None and field.message_type.full_name in reaching
        ]
        for name in reaching - {target.full_name}
    }


def _is_repeated(field: Any) -> bool:
    """Protobuf 6 deprecates `label` in favour of `is_repeated`, which older ones lack."""
    found = getattr(field, "is_repeated", None)
    return bool(found) if found is not None else field.label == field.LABEL_REPEATED


def _range(tensor: onnx.TensorProto, data: str | None, size_bytes: int) -> Range:
    keys = [as_text(entry.key) for entry in tensor.external_data]
    unknown = sorted(set(keys) - set(_KEYS))
    if unknown or len(set(keys)) != len(keys):
        raise _EntryError(f"expected each of the keys {', '.join(_KEYS)} at most once, got {', '.join(keys)}")
    entries = {as_text(entry.key): as_text(entry.value) for entry in tensor.external_data}
    location = entries.get("location")
    if data is None or location != data:
        wanted = "no external data, for the manifest lists none" if data is None else f"values in {data!r}"
        raise _EntryError(f"expected {wanted}, got the location {location!r}")
    if tensor.HasField("raw_data"):
        raise _EntryError("it has values in the file and values beside it")
    offset, length, needed = _number(entries, "offset", 0), _number(entries, "length", None), _size(tensor)
    if length != needed:
        raise _EntryError(f"expected {needed} bytes for shape {list(tensor.dims)}, got the length {length}")
    if offset + length > size_bytes:
        raise _EntryError(f"expected bytes within the {size_bytes} of {data!r}, got {offset} to {offset + length}")
    return offset, offset + length, as_text(tensor.name)


def _number(entries: dict[str, str], key: str, default: int | None) -> int:
    text = entries.get(key)
    if text is None and default is not None:
        return default
    if text is None or not (text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS):
        raise _EntryError(f"expected a number as its {key}, got {text!r}")
    return int(text)


def _size(tensor: onnx.TensorProto) -> int:
    import onnx

    known = onnx.TensorProto.DataType.DESCRIPTOR.values_by_number
    kind = known[tensor.data_type].name if tensor.data_type in known else str(tensor.data_type)
    if kind not in _BITS:
        raise _EntryError(f"expected numbers, got the type {kind}")
    if min(tensor.dims, default=0) < 0:
        raise _EntryError(f"expected sizes of 0 or more, got the shape {list(tensor.dims)}")
    n_values: int = math.prod(tensor.dims)
    return -(-n_values * _BITS[kind] // 8)


def _overlaps(ranges: list[Range]) -> list[str]:
    """Two tensors on the same bytes; one tensor may be named in several graphs."""
    problems, behind, holder = [], 0, ""
    for begin, end, name in ranges:
        if begin == end:
            continue
        if begin < behind:
            problems.append(f"tensors {holder!r} and {name!r} overlap in bytes {begin} to {min(end, behind)}")
        if end > behind:
            behind, holder = end, name
    return problems
