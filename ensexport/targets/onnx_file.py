"""ONNX model -> the bytes of its file, with holes where the packed weights go.

protobuf holds a message in memory three times over while it is written, weights and all. Its wire format needs none of
that: a tensor's values are a run of bytes behind their length. So the graph is serialised without them, the places of
the runs are worked out, and the weights are written there member by member.

Source: https://protobuf.dev/programming-guides/encoding; onnx 1.23 onnx.proto (field numbers).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir
import torch
from onnx_ir.tensor_adapters import from_torch_dtype

MAX_IN_FILE_BYTES = 2**31 - 2**24  # protobuf's 2 GiB limit, less room for the graph itself
_ALIGNMENT = 2**16  # of large tensors: what Windows can map into memory, and so all others
_LARGE_BYTES = 2**20
_SMALL_ALIGNMENT = 64
_HOLE = "hole"
_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9  # field numbers of ModelProto, GraphProto and TensorProto


@dataclass(frozen=True)
class Weight:
    """A packed initializer as ONNX knows it.

    Attributes:
        shape: Its shape; a complex number is two real ones in a last dim.
        dtype: Its dtype, that of the real numbers.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def n_bytes(self) -> int:
        """Size of its values."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


@dataclass(frozen=True)
class Hole:
    """Room for the values of one packed weight."""

    name: str
    n_bytes: int


@dataclass(frozen=True)
class OnnxFile:
    """The bytes of an ONNX file but for the packed weights.

    Attributes:
        parts: Bytes and holes, in order.
        data: Name of the file beside it that holds the weights; None if they are in the file.
        places: Name of a packed weight -> where its values begin, in `data` or else in the file.
        n_bytes: Size of the file.
        data_bytes: Size of `data`.
    """

    parts: tuple[bytes | Hole, ...]
    data: str | None
    places: Mapping[str, int]
    n_bytes: int
    data_bytes: int

    def write(self, path: Path) -> Path:
        """Write the file without the weights; returns the file that they are to be written to.

        Args:
            path: The `.onnx` file; external data goes beside it.

        Raises:
            OSError: The system refuses.
        """
        with path.open("wb") as file:
            for part in self.parts:
                file.write(part) if isinstance(part, bytes) else file.seek(part.n_bytes, 1)
            file.truncate(self.n_bytes)
        if self.data is None:
            return path
        data = path.with_name(self.data)
        with data.open("wb") as file:
            file.truncate(self.data_bytes)
        return data


def weight_of(shape: tuple[int, ...], dtype: torch.dtype) -> Weight:
    """How ONNX holds a tensor of this shape and dtype."""
    return Weight((*shape, 2), dtype.to_real()) if dtype.is_complex else Weight(shape, dtype)


def lay_out(model: ir.Model, weights: Mapping[str, Weight], name: str, *, max_bytes: int | None = None) -> OnnxFile:
    """Work out the bytes of a model's file.

    Args:
        model: Initializers that are packed weights have no value, all others theirs.
        weights: The packed weights by name.
        name: Name of the file; external data goes to `<name>.data`.
        max_bytes: What is larger gets external data; None for what protobuf can hold.
    """
    packed = {
        value: value.meta.get("packed_name", name)
        for name, value in model.graph.initializers.items()
        if value.meta.get("packed_name", name) in weights
    }
    others = [value for value in model.graph.initializers.values() if value not in packed]
    own = sum(value.const_value.nbytes for value in others if value.const_value is not None)
    total = own + sum(weights[name].n_bytes for name in packed.values())
    data = f"{name}.data" if total > (MAX_IN_FILE_BYTES if max_bytes is None else max_bytes) else None
    places, end = {}, 0
    for value, weight_name in packed.items():
        weight = weights[weight_name]
        step = _ALIGNMENT if weight.n_bytes >= _LARGE_BYTES else _SMALL_ALIGNMENT
        end = -(-end // step) * step
        places[weight_name] = end
        value.const_value = ir.ExternalTensor(
            data or _HOLE,
            end,
            weight.n_bytes,
            from_torch_dtype(weight.dtype),
            shape=ir.Shape(weight.shape),
            name=str(value.name),
        )
        end += weight.n_bytes
    proto = ir.serde.serialize_model(model)
    for value in packed:
        value.const_value = None
    if data is not None:
        whole = proto.SerializeToString()
        return OnnxFile((whole,), data, places, len(whole), end)
    names = {str(value.name): weight_name for value, weight_name in packed.items()}
    parts = tuple(_joined(_model_parts(proto, names)))
    places, end = {}, 0
    for part in parts:
        if isinstance(part, Hole):
            places[part.name] = end
        end += _size(part)
    return OnnxFile(parts, None, places, end, 0)


def _model_parts(proto: onnx.ModelProto, names: Mapping[str, str]) -> Iterator[bytes | Hole]:
    graph = list(_graph_parts(proto.graph, names))
    proto.ClearField("graph")
    before, behind = _split(proto, _GRAPH)
    yield before + _tag(_GRAPH) + _varint(sum(map(_size, graph)))
    yield from graph
    yield behind


def _graph_parts(graph: onnx.GraphProto, names: Mapping[str, str]) -> Iterator[bytes | Hole]:
    initializers = [list(_tensor_parts(tensor, names)) for tensor in graph.initializer]
    graph.ClearField("initializer")
    before, behind = _split(graph, _INITIALIZER)
    yield before
    for parts in initializers:
        yield _tag(_INITIALIZER) + _varint(sum(map(_size, parts)))
        yield from parts
    yield behind


def _tensor_parts(tensor: onnx.TensorProto, names: Mapping[str, str]) -> Iterator[bytes | Hole]:
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        yield tensor.SerializeToString()
        return
    n_bytes = next(int(entry.value) for entry in tensor.external_data if entry.key == "length")
    tensor.ClearField("external_data")
    tensor.ClearField("data_location")
    before, behind = _split(tensor, _RAW_DATA)
    yield before + _tag(_RAW_DATA) + _varint(n_bytes)
    yield Hole(names[tensor.name], n_bytes)
    yield behind


def _split(message: onnx.ModelProto | onnx.GraphProto | onnx.TensorProto, number: int) -> tuple[bytes, bytes]:
    """The fields before and behind one; protobuf writes them in the order of their numbers."""
    behind = type(message)()
    behind.CopyFrom(message)
    for field, _ in message.ListFields():
        (behind if field.number < number else message).ClearField(field.name)
    return message.SerializeToString(), behind.SerializeToString()


def _joined(parts: Iterator[bytes | Hole]) -> Iterator[bytes | Hole]:
    """The same with neighbouring bytes as one."""
    held: list[bytes] = []
    for part in parts:
        if isinstance(part, bytes):
            held.append(part)
            continue
        yield b"".join(held)
        yield part
        held = []
    yield b"".join(held)


def _size(part: bytes | Hole) -> int:
    return len(part) if isinstance(part, bytes) else part.n_bytes


def _tag(number: int) -> bytes:
    """Before a field that is a run of bytes (wire type 2)."""
    return _varint(number << 3 | 2)


def _varint(number: int) -> bytes:
    digits = bytearray()
    while number > 127:
        digits.append(number & 127 | 128)
        number >>= 7
    return bytes((*digits, number))
