"""What one call of an ONNX file must do at least: the products it computes, the bytes it reads and writes.

Work is counted on the graph as it was written, run once with all optimisations off, for then every node is a standard
one and every shape is the real one, also in the bodies of loops and where sizes depend on values.
"""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, inliner, shape_inference

from ensexport.bench.kernels import kernel_events, profiling_options
from ensexport.compare import Array
from ensexport.errors import ArtifactError
from ensexport.runtime.onnx_runner import PROVIDERS

Shape = tuple[int, ...]
_EXTERNAL_FOLDER = "session.model_external_initializers_file_folder_path"
_NO_PREPACKING = "session.disable_prepacking"  # weights that are laid out anew are missing from the profile


@dataclass(frozen=True)
class Work:
    """What one call of a file must do.

    Attributes:
        flops: Two for each multiply-add of convolutions, matrix products, recurrent layers and attention. All other ops
            count zero: they are a few percent of a network's arithmetic, and are limited by memory, not by arithmetic.
        weight_bytes: Of all weights as stored, once. Of a table that is only looked up, the rows that are read.
        input_bytes: Of the inputs.
        output_bytes: Of the outputs.
        dtype: What most of the flops are in, as the file declares it: `float32`.
    """

    flops: int
    weight_bytes: int
    input_bytes: int
    output_bytes: int
    dtype: str

    @property
    def total_bytes(self) -> int:
        """Bytes that are read or written at least once."""
        return self.weight_bytes + self.input_bytes + self.output_bytes


def count_work(path: Path, feed: Mapping[str, Array]) -> Work:
    """Count the work of one call on these inputs. Runs the file once, on the CPU, not optimised.

    Ops outside the standard ONNX domain count no flops.

    Args:
        path: An ONNX file.
        feed: The inputs by name; sizes matter, and values where the graph branches or loops on them.

    Raises:
        ArtifactError: The file cannot be read, or the CPU cannot run it.
    """
    model = _named(path)
    nodes = {node.name: node for node in _all_nodes(model.graph)}
    output_bytes, events = _profiled(model, path, feed)
    dtypes = _dtypes(model)
    flops: Counter[str] = Counter()
    looked_up: Counter[str] = Counter()
    for event in events:
        node = nodes.get(event["name"])
        if node is None:
            continue  # a cast that ONNX Runtime put in
        call = _call(node, event)
        if node.op_type == "Gather":
            looked_up[node.input[0]] += math.prod(call.outputs[0])
        elif node.op_type in _MULTIPLY_ADDS and node.domain in ("", "ai.onnx"):
            dtype = dtypes.get(node.input[0], "")
            flops[dtype or call.dtype] += 2 * _MULTIPLY_ADDS[node.op_type](call)
    return Work(
        flops=sum(flops.values()),
        weight_bytes=_weight_bytes(model, looked_up),
        input_bytes=sum(array.nbytes for array in feed.values()),
        output_bytes=output_bytes,
        dtype=flops.most_common(1)[0][0] if flops else "float32",
    )


@dataclass(frozen=True)
class _Call:
    """A node as it ran: shapes of its inputs, None where one is absent, and of its outputs."""

    node: onnx.NodeProto
    inputs: tuple[Shape | None, ...]
    outputs: tuple[Shape, ...]
    dtype: str
    attributes: Mapping[str, Any] = field(default_factory=dict)

    def shape(self, index: int) -> Shape:
        found = self.inputs[index]
        assert found is not None, f"{self.node.op_type} without input {index}"
        return found


def _conv(call: _Call) -> int:
    return math.prod(call.outputs[0]) * math.prod(call.shape(1)[1:])


def _conv_transpose(call: _Call) -> int:
    return math.prod(call.shape(0)) * math.prod(call.shape(1)[1:])


def _matmul(call: _Call) -> int:
    return math.prod(call.outputs[0]) * call.shape(0)[-1]


def _gemm(call: _Call) -> int:
    return math.prod(call.outputs[0]) * call.shape(0)[0 if call.attributes.get("transA") else 1]


def _recurrent(call: _Call) -> int:
    """Rows of `x`, by the weights of each direction. `layout` swaps the two axes that are multiplied."""
    rows = math.prod(call.shape(0)[:2])
    return rows * (math.prod(call.shape(1)) + math.prod(call.shape(2)))


def _attention(call: _Call) -> int:
    """Queries by keys, and their weights by values; keys and values of the past come first. Masks save nothing here."""
    past = call.inputs[4] if len(call.inputs) > 4 else None
    n_keys = call.shape(1)[-2] + (past[-2] if past else 0)
    return n_keys * (math.prod(call.shape(0)) + math.prod(call.outputs[0]))


def _einsum(call: _Call) -> int:
    """Every index of the equation by every other: what it costs without a cleverer order of three or more factors."""
    if len(call.inputs) < 2:
        return 0
    terms = call.attributes["equation"].decode().replace(" ", "").split("->")[0].split(",")
    sizes: dict[str, int] = {}
    dots: Shape = ()
    for index, term in enumerate(terms):
        shape = call.shape(index)
        before, dotted, after = term.partition("...")
        middle = len(shape) - len(before) - len(after)
        named = [*zip(before, shape, strict=False), *zip(after, shape[len(shape) - len(after) :], strict=True)]
        for letter, size in named:
            sizes[letter] = max(sizes.get(letter, 1), size)
        if dotted:
            dots = np.broadcast_shapes(dots, shape[len(before) : len(before) + middle])
    return math.prod(sizes.values()) * math.prod(dots)


_MULTIPLY_ADDS: dict[str, Callable[[_Call], int]] = {
    "Conv": _conv,
    "DeformConv": _conv,
    "ConvTranspose": _conv_transpose,
    "MatMul": _matmul,
    "Gemm": _gemm,
    "RNN": _recurrent,
    "GRU": _recurrent,
    "LSTM": _recurrent,
    "Attention": _attention,
    "Einsum": _einsum,
}


def _call(node: onnx.NodeProto, event: Mapping[str, Any]) -> _Call:
    """Put the shapes of an event where they belong: the profile skips inputs that are absent, and sequences."""
    given = [next(iter(entry.items())) for entry in event["args"]["input_type_shape"]]
    shapes = iter(given)
    nothing: tuple[str, list[int]] = ("", [])
    return _Call(
        node,
        tuple(tuple(next(shapes, nothing)[1]) if name else None for name in node.input),
        tuple(tuple(shape) for entry in event["args"]["output_type_shape"] for shape in entry.values()),
        {"float": "float32", "double": "float64"}.get(given[0][0], given[0][0]) if given else "",
        {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute},
    )


def _named(path: Path) -> onnx.ModelProto:
    """Read a file without the weights that lie beside it; every node gets a name of its own."""
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:
        raise ArtifactError(f"cannot read '{path}' as ONNX: {str(error).strip()[:200]}.") from error
    if model.functions:
        model = inliner.inline_local_functions(model)
    for number, node in enumerate(_all_nodes(model.graph)):
        node.name = f"node-{number}"
    return model


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield a graph and those inside its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _graphs(attribute.g)


def _all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for inner in _graphs(graph):
        yield from inner.node


def _profiled(model: onnx.ModelProto, path: Path, feed: Mapping[str, Array]) -> tuple[int, list[dict[str, Any]]]:
    """Run a model once, as it is; returns the bytes of its outputs and the events of its kernels."""
    with tempfile.TemporaryDirectory(prefix="ensexport-work-") as folder:
        options = profiling_options(Path(folder))
        options.log_severity_level = 3
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry(_EXTERNAL_FOLDER, str(path.resolve().parent))
        options.add_session_config_entry(_NO_PREPACKING, "1")
        try:
            session = ort.InferenceSession(model.SerializeToString(), options, providers=[PROVIDERS["cpu"]])
        except Exception as error:
            text = " ".join(str(error).split())[:400]
            raise ArtifactError(f"cannot count the work of '{path.name}', which the CPU cannot run: {text}") from error
        outputs = session.run_with_ort_values(None, {name: _ort_value(array) for name, array in feed.items()})
        size_bytes = sum(
            math.prod(value.shape()) * _dtype(info.type.tensor_type.elem_type).itemsize
            for value, info in zip(outputs, model.graph.output, strict=True)
        )
        return size_bytes, kernel_events(Path(session.end_profiling()))


def _ort_value(array: Array) -> ort.OrtValue:
    array = np.asarray(array, order="C")
    if array.dtype == ml_dtypes.bfloat16:
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(np.uint16), TensorProto.BFLOAT16)
    return ort.OrtValue.ortvalue_from_numpy(array)


def _dtype(kind: int) -> np.dtype[Any]:
    return np.dtype(helper.tensor_dtype_to_np_dtype(kind))


def _dtypes(model: onnx.ModelProto) -> dict[str, str]:
    """Value -> dtype as the file declares it: ONNX Runtime computes float16 as float32 where it has no kernel."""
    inferred = shape_inference.infer_shapes(model)
    kinds: dict[str, int] = {}
    for graph in _graphs(inferred.graph):
        kinds |= {tensor.name: tensor.data_type for tensor in graph.initializer}
        for info in (*graph.input, *graph.value_info):
            kinds[info.name] = info.type.tensor_type.elem_type
    return {name: str(_dtype(kind)) for name, kind in kinds.items() if kind}


def _weight_bytes(model: onnx.ModelProto, looked_up: Mapping[str, int]) -> int:
    """Bytes of all initializers; of those that only `Gather` reads, what it took, `looked_up` in elements."""
    reads: Counter[str] = Counter()
    for node in _all_nodes(model.graph):
        reads.update(node.input if node.op_type != "Gather" else node.input[1:])
    total = 0
    for graph in _graphs(model.graph):
        reads.update(output.name for output in graph.output)
        for tensor in graph.initializer:
            size = math.prod(tensor.dims)
            if tensor.name in looked_up and not reads[tensor.name]:
                size = min(size, looked_up[tensor.name])
            total += size * _dtype(tensor.data_type).itemsize
    return total
