"""Requests that Triton runs before it calls a model ready, made of a stored sample.

A server whose largest batch does not fit its memory then fails when it starts, not under load, and TensorRT has built
its engine for all batch sizes between the smallest and the largest before the first request: it widens the engine's
range when it meets a size beyond it
(https://onnxruntime.ai/docs/execution-providers/TensorRT-ExecutionProvider.html#explicit-shape-range).

Source: ModelWarmup in https://github.com/triton-inference-server/common/blob/main/protobuf/model_config.proto, and
GenerateWarmupData in https://github.com/triton-inference-server/core/blob/main/src/backend_model_instance.cc: files lie
in `warmup/`, hold ONE row's bytes, and `batch_size` such requests are run as one batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from ensexport.errors import TritonError
from ensexport.package.pbtxt import Enum, Message, Value, map_entry
from ensexport.package.triton_batching import Batching
from ensexport.package.triton_tensors import DATA_TYPES, Tensor

Array = npt.NDArray[np.generic]
FOLDER = "warmup"
_TORCHSCRIPT_RUNS = 2
"""TorchScript watches the first run and optimises in the second."""


def warmup_fields(
    inputs: Sequence[Tensor], samples: Mapping[str, Array], batching: Batching, kind: str
) -> tuple[tuple[Message, ...], dict[str, bytes]]:
    """Return the `model_warmup` messages, and the files that they read.

    A model that is batched is warmed up with one row, and with `max_batch_size` of them; else with the sample as it is.

    Args:
        inputs: Of the file; optional ones are left out.
        samples: Input name in the file -> one stored sample, in the file's shape.
        batching: What was decided.
        kind: `onnx` or `torchscript`.

    Raises:
        TritonError: A sample is missing, or has another dtype or shape than the input.
    """
    entries, files = [], {}
    for place, tensor in enumerate(inputs):
        if tensor.is_optional:
            continue
        array = _checked(tensor, samples.get(tensor.name))
        row = array[:1] if batching.is_batched else array
        shape = row.shape[1:] if batching.is_batched else row.shape
        path = f"input_{place}.bin"
        files[f"{FOLDER}/{path}"] = _bytes(row)
        value = Message(
            (
                ("data_type", Enum(DATA_TYPES[tensor.dtype])),
                ("dims", shape or (1,)),
                ("input_data_file", path),
            )
        )
        entries.append(map_entry(tensor.served_name, value))
    sizes = sorted({1, batching.max_batch_size}) if batching.is_batched else [1]
    runs: tuple[tuple[str, Value], ...] = (("count", _TORCHSCRIPT_RUNS),) if kind == "torchscript" else ()
    messages = tuple(
        Message(
            (
                ("name", f"batch_{size}" if batching.is_batched else "sample"),
                ("batch_size", size),
                *(("inputs", entry) for entry in entries),
                *runs,
            )
        )
        for size in sizes
    )
    return messages, files


def _checked(tensor: Tensor, array: Array | None) -> Array:
    if array is None:
        raise TritonError(f"cannot warm up with {tensor}: no sample of it is stored.")
    fits = len(array.shape) == len(tensor.shape) and all(
        size > 0 and (isinstance(dim, str) or dim == size) for dim, size in zip(tensor.shape, array.shape, strict=False)
    )
    if not fits or array.dtype.name != tensor.dtype:
        raise TritonError(
            f"cannot warm up with {tensor}: expected a sample of that shape and of {tensor.dtype}, got "
            f"{list(array.shape)} of {array.dtype.name}."
        )
    return array


def _bytes(array: Array) -> bytes:
    """Row-major and little-endian, a bool as one byte."""
    return np.asarray(array.astype(array.dtype.newbyteorder("<"), copy=False), order="C").tobytes()
