"""The graph that ONNX Runtime's CPU provider makes of a file: which nodes, in which form, in order.

`kernels.py` counts what runs. This says how it is wired, which is where a batched graph shows whether the runtime took
it: convolutions in their blocked form (`com.microsoft.nchwc`), copies between layouts, activations fused into layers.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort

from ensexport.runtime.onnx_runner import make_session

BLOCKED = "com.microsoft.nchwc"
_TOLD = ("group", "activation", "perm", "axis", "transA", "transB", "transBatchA", "transBatchB", "alpha")
_DEFAULTS = {"group": 1, "transA": 0, "transB": 0, "transBatchA": 0, "transBatchB": 0, "alpha": 1.0}


@dataclass(frozen=True)
class OptimisedNode:
    """One node of an optimised graph.

    Attributes:
        op_type: `Conv`, `FusedMatMul`, `ReorderOutput`, ...
        domain: Empty for ONNX's own ops; `com.microsoft` for fused ones, `com.microsoft.nchwc` for blocked layouts.
        attributes: Those that say how members are laid out and what was fused, where they are not the default.
        inputs: Names of the values it reads.
        outputs: Names of the values it writes.
        weights: Shapes of the inputs that are constants, in order.
        shape: Shape of the first output, dynamic dims by name; None where ONNX Runtime does not say.
    """

    op_type: str
    domain: str
    attributes: Mapping[str, Any]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weights: tuple[tuple[int, ...], ...] = ()
    shape: tuple[int | str, ...] | None = field(default=None)

    @property
    def is_blocked(self) -> bool:
        """Does it work on the blocked layout of ONNX Runtime's fast convolutions?"""
        return self.domain == BLOCKED

    def __str__(self) -> str:
        name = f"{self.domain.removeprefix('com.microsoft.')}:{self.op_type}" if self.is_blocked else self.op_type
        told = [f"{key}={value}" for key, value in self.attributes.items()]
        told += [str(list(shape)) for shape in self.weights if len(shape) > 1]
        arrow = "" if self.shape is None else f" -> ({', '.join(map(str, self.shape))})"
        return " ".join([name, *told]) + arrow


def optimised_nodes(path: Path) -> list[OptimisedNode]:
    """List the nodes of the graph that a CPU session of a file runs, in order, after all optimisations.

    The blocked layouts depend on the processor: the list holds for the machine it is made on.

    Args:
        path: An ONNX file.

    Raises:
        ArtifactError: The file cannot be loaded.

    Source: https://onnxruntime.ai/docs/performance/model-optimizations/graph-optimizations.html, "offline mode".
    """
    with tempfile.TemporaryDirectory(prefix="ensexport-optimised-") as folder:
        saved = Path(folder) / "optimised.onnx"
        options = ort.SessionOptions()
        options.log_severity_level = 3  # else it warns that the file fits this machine only
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.optimized_model_filepath = str(saved)
        # Weights stay out of the graph's file, which may not exceed 2 GiB.
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights.bin")
        make_session(path, "cpu", options)
        graph = onnx.load(str(saved), load_external_data=False).graph
    shapes = {value.name: _shape(value) for value in (*graph.value_info, *graph.output)}
    weights = {weight.name: tuple(weight.dims) for weight in graph.initializer}
    return [
        OptimisedNode(
            node.op_type,
            node.domain,
            _attributes(node),
            tuple(node.input),
            tuple(node.output),
            tuple(weights[name] for name in node.input if name in weights),
            shapes.get(node.output[0]),
        )
        for node in graph.node
    ]


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    found = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    told = {name: found[name] for name in _TOLD if name in found and found[name] != _DEFAULTS.get(name)}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in told.items()}


def _shape(value: onnx.ValueInfoProto) -> tuple[int | str, ...] | None:
    kind = value.type.tensor_type
    if not kind.HasField("shape"):
        return None
    return tuple(dim.dim_param or (dim.dim_value if dim.HasField("dim_value") else "?") for dim in kind.shape.dim)
