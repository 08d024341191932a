"""What a Triton server does with a configuration, as far as a test can do it: load, warm up, answer, label.

Written from the server's sources, in Python: ValidateModelConfig, ValidateIOShape and GenerateWarmupData in
triton-inference-server/core, ValidateInputs, ValidateOutputs and CompareDimsSupported in
triton-inference-server/onnxruntime_backend, AddClassResults in triton-inference-server/server.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

DTYPES = {
    "TYPE_BOOL": "bool", "TYPE_UINT8": "uint8", "TYPE_INT8": "int8", "TYPE_INT16": "int16", "TYPE_INT32": "int32",
    "TYPE_INT64": "int64", "TYPE_FP16": "float16", "TYPE_FP32": "float32", "TYPE_FP64": "float64",
}  # fmt: skip
ORT_TYPES = {"float": "float32", "double": "float64"}
PLATFORMS = {"onnxruntime_onnx": "onnxruntime", "pytorch_libtorch": "pytorch"}


class RefusedError(Exception):
    """A server would refuse the model or the request."""


def refuse_if(condition, text):
    if condition:
        raise RefusedError(text)


def parse(content: bytes):
    """Read a configuration with Triton's own messages; a field that they do not know is an error."""
    return text_format.Parse(content.decode(), model_config_pb2.ModelConfig())


def data_type(number: int) -> str:
    return DTYPES[model_config_pb2.DataType.Name(number)]


def load(config, session: ort.InferenceSession) -> None:
    """Check a configuration as a server does, against the session that its backend makes."""
    refuse_if(PLATFORMS.get(config.platform) != config.backend, "unexpected 'platform' and 'backend' pair")
    refuse_if(config.max_batch_size < 0, "'max_batch_size' must be non-negative")
    for size in config.dynamic_batching.preferred_batch_size:
        refuse_if(not 0 < size <= config.max_batch_size, "dynamic batching preferred size")
    for io in (*config.input, *config.output):
        _check_shape(io, config.max_batch_size)
    inputs = {value.name: value for value in session.get_inputs()}
    required = [io for io in config.input if not io.optional]
    refuse_if(len(required) != len(inputs), f"expects {len(required)} inputs, model provides {len(inputs)}")
    inputs |= {value.name: value for value in session.get_overridable_initializers()}
    for io in config.input:
        refuse_if(io.optional and config.max_batch_size, f"optional input '{io.name}' is not supported with batching")
        _compare(io, inputs, config.max_batch_size, is_exact=False)
    outputs = {value.name: value for value in session.get_outputs()}
    for io in config.output:
        _compare(io, outputs, config.max_batch_size, is_exact=True)


def _check_shape(io, max_batch_size):
    refuse_if(not io.name, "must specify 'name'")
    refuse_if(not io.data_type, f"'{io.name}' must specify 'data_type'")
    refuse_if(not io.dims, f"'{io.name}' must specify 'dims'")
    refuse_if(any(dim < 1 and dim != -1 for dim in io.dims), f"'{io.name}' dimension must be >= 1 or -1")
    if io.HasField("reshape"):
        refuse_if(not io.reshape.shape and not max_batch_size, f"'{io.name}' cannot have empty reshape")
        refuse_if(math.prod(io.dims) != math.prod(io.reshape.shape), f"'{io.name}' has different size for reshape")


def _compare(io, values, max_batch_size, *, is_exact):
    refuse_if(io.name not in values, f"unexpected '{io.name}', allowed are {sorted(values)}")
    value = values[io.name]
    kind = value.type.removeprefix("tensor(").removesuffix(")")
    refuse_if(ORT_TYPES.get(kind, kind) != data_type(io.data_type), f"'{io.name}': model provides {kind}")
    dims = list(io.reshape.shape if io.HasField("reshape") else io.dims)
    model = [dim if isinstance(dim, int) else -1 for dim in value.shape]
    if not model:
        refuse_if(any(dim != 1 for dim in dims), f"scalar tensor '{io.name}' should only provide 1")
        return
    if max_batch_size:
        refuse_if(model[0] != -1, f"'{io.name}': the first dimension must be -1, but is {model}")
        dims = [-1, *dims]
    same = len(model) == len(dims) and all(
        want == have or (want == -1 and not is_exact) for want, have in zip(model, dims, strict=True)
    )
    refuse_if(not same, f"'{io.name}': the model expects {model}, the configuration specifies {dims}")


def answer(config, session: ort.InferenceSession, requests: Sequence[Mapping[str, np.ndarray]]):
    """Run requests as one batch, or one alone; returns the outputs of each."""
    refuse_if(not config.max_batch_size and len(requests) != 1, "no batching")
    for request in requests:
        for io in config.input:
            refuse_if(io.name not in request and not io.optional, f"input '{io.name}' is missing")
        for name, array in request.items():
            _check_request(config, name, array)
    feed = {}
    for io in config.input:
        if io.name not in requests[0]:
            continue
        array = (
            np.concatenate([request[io.name] for request in requests])
            if config.max_batch_size
            else requests[0][io.name]
        )
        if io.HasField("reshape"):
            array = array.reshape([len(array), *io.reshape.shape])
        feed[io.name] = array.reshape(()) if _is_scalar(session.get_inputs(), io.name) else array
    results = dict(
        zip([io.name for io in config.output], session.run([io.name for io in config.output], feed), strict=True)
    )
    sizes = [len(next(iter(request.values()))) for request in requests] if config.max_batch_size else None
    for io in config.output:
        if io.HasField("reshape") or not results[io.name].shape:
            lead = [len(results[io.name])] if config.max_batch_size else []
            results[io.name] = results[io.name].reshape([*lead, *io.dims])
    if sizes is None:
        return [results]
    ends = np.cumsum(sizes)
    refuse_if(ends[-1] > config.max_batch_size, f"max allowed is {config.max_batch_size}")
    return [
        {name: array[end - size : end] for name, array in results.items()}
        for size, end in zip(sizes, ends, strict=True)
    ]


def _check_request(config, name, array):
    io = next((io for io in config.input if io.name == name), None)
    refuse_if(io is None, f"unexpected inference input '{name}'")
    refuse_if(array.dtype.name != data_type(io.data_type), f"input '{name}': data-type {array.dtype.name}")
    shape = list(array.shape)
    if config.max_batch_size:
        refuse_if(not shape or not 1 <= shape[0] <= config.max_batch_size, f"input '{name}': batch of {shape[:1]}")
        shape = shape[1:]
    same = len(shape) == len(io.dims) and all(want in (-1, have) for want, have in zip(io.dims, shape, strict=True))
    refuse_if(not same, f"input '{name}': unexpected shape {shape}, expecting {list(io.dims)}")


def _is_scalar(values, name):
    return any(value.name == name and not value.shape for value in values)


def warm_up(config, folder: Path, session: ort.InferenceSession):
    """Run the warm-up requests; returns per message its name, the batch and the outputs of the first request."""
    runs = []
    for message in config.model_warmup:
        request = {}
        for name, value in message.inputs.items():
            content = (folder / "warmup" / value.input_data_file).read_bytes()
            array = np.frombuffer(content, data_type(value.data_type))
            refuse_if(len(array) < math.prod(value.dims), f"warmup setting expects {math.prod(value.dims)} elements")
            shape = [*([1] if config.max_batch_size else []), *value.dims]
            request[name] = array[: math.prod(value.dims)].reshape(shape)
        runs.append((message.name, message.batch_size, answer(config, session, [request] * message.batch_size)[0]))
    return runs


def classify(array: np.ndarray, count: int, labels: Sequence[str], *, is_batched: bool) -> np.ndarray:
    """`VALUE:INDEX:LABEL` of the largest elements, as the classification extension returns them."""
    rows = array.reshape(len(array), -1) if is_batched else array.reshape(1, -1)
    found = []
    for row in rows:
        for index in np.argsort(-row, kind="stable")[:count]:
            label = labels[index] if index < len(labels) else ""
            found.append(f"{row[index]:f}:{index}" + (f":{label}" if label else ""))
    shape = (len(rows), -1) if is_batched else (-1,)
    return np.array([text.encode() for text in found], dtype=object).reshape(shape)
