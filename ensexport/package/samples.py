"""Stored inputs and outputs in the layout that ONNX's own test runners read.

    test_data_set_0/input_0.pb   test_data_set_0/output_0.pb

Each file is one `TensorProto` with the name of the input or output. The bytes depend on name, dtype, shape and values
alone.

Source: https://github.com/onnx/onnx/blob/main/docs/OnnxBackendTest.md
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import ml_dtypes
import numpy as np
import numpy.typing as npt

from ensexport.errors import PackageError
from ensexport.members.wording import quote_path
from ensexport.package.problems import as_text

Array = npt.NDArray[np.generic]
DTYPES: dict[str, np.dtype[np.generic]] = {
    name: np.dtype(getattr(ml_dtypes, name) if name == "bfloat16" else name)
    for name in ("float16", "bfloat16", "float32", "float64", "int8", "int16", "int32", "int64",
                 "uint8", "uint16", "uint32", "uint64", "bool")
}  # fmt: skip
"""What an input or output may hold."""


def sample_files(inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> dict[str, bytes]:
    """Return the files of one test data set: `input_0.pb`, ..., `output_0.pb`, ... -> bytes.

    Args:
        inputs: By name, in the file's order.
        outputs: Likewise.

    Raises:
        PackageError: A dtype has no place there; names the tensor.
    """
    kinds = {"input": inputs, "output": outputs}
    return {
        f"{kind}_{number}.pb": tensor_bytes(name, array)
        for kind, arrays in kinds.items()
        for number, (name, array) in enumerate(arrays.items())
    }


def write_sample(folder: Path, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> list[Path]:
    """Make a folder with one test data set; returns the files.

    Args:
        folder: Is made, and may not be there.
        inputs: By name, in the file's order.
        outputs: Likewise.

    Raises:
        PackageError: A dtype has no place there; nothing was written.
        OSError: The system refuses.
    """
    files = sample_files(inputs, outputs)
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return [folder / name for name in files]


def tensor_bytes(name: str, array: Array) -> bytes:
    """Return one array as the bytes of a `TensorProto`.

    Args:
        name: Of the input or output.
        array: Any shape, also 0-d and empty.

    Raises:
        PackageError: The dtype has no place in a sample.
    """
    import onnx

    array = np.asarray(array)
    kind = array.dtype.name
    if kind not in DTYPES:
        why = (
            "ONNX Runtime takes and returns no complex numbers: give the real and imaginary parts as a last axis of 2"
            if array.dtype.kind == "c"
            else f"expected one of {', '.join(DTYPES)}"
        )
        raise PackageError(f"cannot store {name!r} as a sample: it is of dtype {kind}; {why}.")
    little = array.astype(array.dtype.newbyteorder("<"), copy=False) if kind != "bfloat16" else array
    proto = onnx.TensorProto(
        name=name, data_type=_onnx_types()[kind], dims=array.shape, raw_data=np.asarray(little, order="C").tobytes()
    )
    content: bytes = proto.SerializeToString(deterministic=True)
    return content


def read_tensor(content: bytes, path: str | Path) -> tuple[str, Array]:
    """Return name and values of a stored `TensorProto`.

    Args:
        content: Its bytes.
        path: For messages.

    Raises:
        PackageError: It is none, is of a dtype that has no place in a sample, refers to another file, or holds more or
            fewer values than its shape says.
    """
    import onnx
    from google.protobuf.message import DecodeError

    proto = onnx.TensorProto()
    where = f"cannot read {quote_path(path)} as a sample"
    try:
        proto.ParseFromString(content)
    except DecodeError as error:
        raise PackageError(f"{where}: it is no TensorProto ({str(error)[:120]}).") from error
    names = {number: name for name, number in _onnx_types().items()}
    kind = names.get(proto.data_type)
    if kind is None:
        raise PackageError(f"{where}: expected one of the dtypes {', '.join(DTYPES)}, got type {proto.data_type}.")
    if proto.data_location == onnx.TensorProto.EXTERNAL or proto.external_data:
        raise PackageError(f"{where}: its values lie in another file.")
    shape, dtype = tuple(proto.dims), DTYPES[kind]
    if not proto.HasField("raw_data"):
        raise PackageError(f"{where}: it holds no raw_data.")
    expected = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or len(proto.raw_data) != expected:
        raise PackageError(
            f"{where}: shape {list(shape)} of {kind} takes {expected} bytes, and it holds {len(proto.raw_data)}."
        )
    values = np.frombuffer(proto.raw_data, dtype.newbyteorder("<") if kind != "bfloat16" else dtype)
    if kind == "bool" and values.view(np.uint8).max(initial=0) > 1:
        raise PackageError(f"{where}: a bool is neither 0 nor 1.")
    return as_text(proto.name), values.astype(dtype, copy=False).reshape(shape)


def read_sample(folder: Path, kind: str, names: Sequence[str]) -> dict[str, Array]:
    """Return the inputs or outputs of one test data set by name.

    Args:
        folder: Its folder.
        kind: `input` or `output`.
        names: What is expected, in this order.

    Raises:
        PackageError: A file is missing, is no tensor, or has another name.
    """
    found = {}
    for number, name in enumerate(names):
        path = folder / f"{kind}_{number}.pb"
        try:
            content = path.read_bytes()
        except OSError as error:
            raise PackageError(f"cannot read {quote_path(path)}: {error.strerror or error}.") from error
        stored, found[name] = read_tensor(content, path)
        if stored != name:
            raise PackageError(f"{quote_path(path)} holds {stored!r}: expected {name!r}.")
    return found


def _onnx_types() -> dict[str, int]:
    import onnx

    kinds = {"float32": "FLOAT", "float64": "DOUBLE"}
    return {name: onnx.TensorProto.DataType.Value(kinds.get(name, name.upper())) for name in DTYPES}
