"""The inputs and outputs of a packed file as Triton's configuration names, types and shapes them.

Source: Datatypes, Reshape and Special Conventions for PyTorch Backend in
https://github.com/triton-inference-server/server/blob/main/docs/user_guide/model_configuration.md
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ensexport.errors import TritonError
from ensexport.package.pbtxt import Enum, Message, Value

KINDS = ("onnx", "torchscript")

# Both backends take these. TYPE_BF16 exists, for TensorRT plans: neither backend here maps it.
# https://github.com/triton-inference-server/onnxruntime_backend/blob/main/src/onnxruntime_utils.cc
# https://github.com/triton-inference-server/pytorch_backend/blob/main/src/libtorch_utils.cc (TYPE_FP16 too)
DATA_TYPES = {
    "bool": "TYPE_BOOL",
    "uint8": "TYPE_UINT8",
    "int8": "TYPE_INT8",
    "int16": "TYPE_INT16",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "float16": "TYPE_FP16",
    "float32": "TYPE_FP32",
    "float64": "TYPE_FP64",
}


@dataclass(frozen=True)
class Tensor:
    """One input or output.

    Attributes:
        role: `input` or `output`.
        name: In the file.
        served_name: What Triton's clients call it.
        dtype: In the file, NumPy's name.
        shape: In the file; a text is a dynamic dim.
        is_optional: May a request leave it out?
    """

    role: str
    name: str
    served_name: str
    dtype: str
    shape: tuple[int | str, ...]
    is_optional: bool = False

    def __str__(self) -> str:
        return f"{self.role} '{self.name}' of shape ({', '.join(map(str, self.shape))})"

    def file_dims(self, *, is_batched: bool) -> tuple[int, ...]:
        """Its shape for the file, -1 where a dim is dynamic, less the batch if Triton batches."""
        dims = tuple(-1 if isinstance(dim, str) else dim for dim in self.shape)
        return dims[1:] if is_batched else dims

    def dims(self, *, is_batched: bool) -> tuple[int, ...]:
        """Its shape in a request or answer: as in the file, only that no dims at all are one of size 1."""
        return self.file_dims(is_batched=is_batched) or (1,)

    def message(self, *, is_batched: bool, more: tuple[tuple[str, Value], ...] = ()) -> Message:
        """Return its `ModelInput` or `ModelOutput`.

        A tensor that has the batch dim alone is reshaped to it; a 0-d tensor of a model that Triton does not batch
        must not be (ValidateIOShape in triton-inference-server/core, src/model_config_utils.cc), and the ONNX Runtime
        backend takes dims `[ 1 ]` for it.

        Args:
            is_batched: Does Triton batch, so that dims are without the batch?
            more: Further fields.
        """
        comment = () if self.name == self.served_name else (("#", f"'{self.name}' in the file"),)
        reshape = is_batched and not self.file_dims(is_batched=True)
        return Message(
            (
                *comment,
                ("name", self.served_name),
                ("data_type", Enum(DATA_TYPES[self.dtype])),
                ("dims", self.dims(is_batched=is_batched)),
                *((("reshape", Message((("shape", ()),))),) if reshape else ()),
                *more,
            )
        )


def read_tensors(manifest: Mapping[str, Any], kind: str) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return the inputs and outputs that a manifest names.

    ONNX Runtime knows names. TorchScript files have none for outputs, and Triton takes places instead: `INPUT__0`.

    Args:
        manifest: Of the package.
        kind: One of `KINDS`.

    Raises:
        TritonError: Triton cannot hold one of them; names it.
    """
    inputs, outputs = (
        tuple(_read(entry, role, kind, place) for place, entry in enumerate(manifest[f"{role}s"]))
        for role in ("input", "output")
    )
    for tensor in (*inputs, *outputs):
        _check(tensor, kind)
    return inputs, outputs


def _read(entry: Mapping[str, Any], role: str, kind: str, place: int) -> Tensor:
    served = entry["name"] if kind == "onnx" else f"{role.upper()}__{place}"
    return Tensor(
        role, entry["name"], served, entry["dtype"], tuple(entry["shape"]), bool(entry.get("is_optional", False))
    )


def _check(tensor: Tensor, kind: str) -> None:
    if tensor.dtype not in DATA_TYPES:
        raise TritonError(
            f"cannot serve {tensor} with Triton: expected one of {', '.join(DATA_TYPES)}, got {tensor.dtype}.",
            hint="Pack with --io-dtype float32: inside, the file keeps its dtype." if "float" in tensor.dtype else "",
        )
    if any(isinstance(dim, int) and dim < 1 for dim in tensor.shape):
        raise TritonError(f"cannot serve {tensor} with Triton: expected sizes of 1 or more.")
    if kind == "torchscript" and not tensor.shape:
        raise TritonError(
            f"cannot serve {tensor} with Triton: its PyTorch backend takes and returns no 0-d tensors.",
            hint="Serve the ONNX file.",
        )
    if kind == "torchscript" and tensor.is_optional:
        raise TritonError(
            f"cannot serve {tensor} with Triton: its PyTorch backend takes no optional inputs.",
            hint="Serve the ONNX file, or fix the weights when packing: --member-weights 0.5,0.3,0.2.",
        )
