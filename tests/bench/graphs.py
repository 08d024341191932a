"""Small ONNX files, written node by node."""

import numpy as np
import onnx
from onnx import helper, numpy_helper

FLOAT = onnx.TensorProto.FLOAT


def tensor(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def write(path, nodes, inputs, outputs, weights=None, *, opset=20, external=False):
    """Write nodes as a file. `inputs`: name -> shape, or (shape, ONNX type); `outputs`: names; `weights`: arrays."""
    infos = []
    for name, shape in inputs.items():
        dims, kind = shape if isinstance(shape, tuple) else (shape, FLOAT)
        infos.append(helper.make_tensor_value_info(name, kind, dims))
    graph = helper.make_graph(
        nodes,
        "g",
        infos,
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    for output, inferred in zip(graph.output, onnx.shape_inference.infer_shapes(model).graph.output, strict=True):
        output.CopyFrom(inferred)
    model.graph.CopyFrom(graph)
    if external:
        onnx.save(model, path, save_as_external_data=True, location=f"{path.name}.data", size_threshold=0)
    else:
        onnx.save(model, path)
    return path


def node(op, inputs, output, **attributes):
    outputs = output.split(",")
    return helper.make_node(op, inputs.split(","), outputs, **attributes)
