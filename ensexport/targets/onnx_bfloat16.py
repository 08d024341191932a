"""bfloat16 ensembles in ONNX: stored and exchanged in bfloat16, computed in float32.

ONNX Runtime has hardly a bfloat16 kernel on the CPU, so that a plain export loads nowhere but on some GPUs. The weights
keep their bytes and each is cast where the file is loaded (a constant the runtime folds); inputs are cast where they
come in, outputs where they go out. In between nothing is rounded to bfloat16, which is nearer to the members in float64
than the members themselves are.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

_NARROW, _WIDE = ir.DataType.BFLOAT16, ir.DataType.FLOAT


def compute_in_float32(model: ir.Model) -> bool:
    """Cast bfloat16 inputs and weights to float32 and the outputs back.

    Before: any model. After: bfloat16 are only inputs, initializers and outputs, whose names and dtypes stay; returns
    whether there were any.
    """
    graph = model.graph
    narrow_outputs = [index for index, value in enumerate(graph.outputs) if value.dtype == _NARROW]
    sources = [value for value in (*graph.inputs, *graph.initializers.values()) if value.dtype == _NARROW]
    made = [value for node in graph.all_nodes() for value in node.outputs if value.dtype == _NARROW]
    if not (narrow_outputs or sources or made):
        return False
    for value in made:
        value.dtype = _WIDE
    for node in graph.all_nodes():
        _widen_attributes(node)
    first = next(iter(graph))
    for value in sources:
        uses = list(value.uses())
        if not uses:
            continue
        cast = _cast(value, _WIDE, f"{value.name}_float32")
        first.prepend(cast)
        for use in uses:
            use.node.replace_input_with(use.idx, cast.outputs[0])
    for index in narrow_outputs:
        wide = graph.outputs[index]
        if wide.producer() is None:  # an input, handed on as it is
            continue
        name = wide.name
        if wide.dtype == _NARROW:
            wide.dtype = _WIDE
        wide.name = f"{name}_float32"
        cast = _cast(wide, _NARROW, str(name))
        graph.append(cast)
        graph.outputs[index] = cast.outputs[0]
    return True


def _cast(value: ir.Value, dtype: ir.DataType, name: str) -> ir.Node:
    node = ir.node("Cast", [value], attributes={"to": dtype}, num_outputs=1, name=f"cast_{name}")
    result = node.outputs[0]
    result.name, result.dtype, result.shape = name, dtype, value.shape
    return node


def _widen_attributes(node: ir.Node) -> None:
    for name, attribute in list(node.attributes.items()):
        if attribute.type == ir.AttributeType.INT and name in ("to", "dtype") and attribute.value == _NARROW:
            node.attributes[name] = ir.AttrInt64(name, _WIDE)
        if attribute.type == ir.AttributeType.TENSOR and attribute.value.dtype == _NARROW:
            node.attributes[name] = ir.AttrTensor(name, ir.tensor(attribute.value.numpy().astype(np.float32)))
