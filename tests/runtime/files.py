"""Tiny artifacts in every format, made without the package, and the metadata it would have written."""

import io
import json
import warnings
import zipfile

import onnx
import torch
from onnx import TensorProto, helper
from torch import nn

METADATA = {
    "n_members": 2,
    "member_axis": 0,
    "inputs": ["x:float32[batch,2]"],
    "per_member": [],
    "outputs": ["y"],
    "dims": {"batch": [1, None]},
    "members": [{"index": 0}, {"index": 1}],
}
X = TensorProto.FLOAT


class Double(nn.Module):
    """Takes `(B, 2)`, returns `(2, B, 2)`: x and 2 x."""

    def forward(self, x):
        return torch.stack([x, x * 2])


class Both(nn.Module):
    def forward(self, x):
        return x + 1, x * 2


def onnx_file(path, nodes, inputs, outputs, *, metadata=METADATA, opset=20, ir_version=9):
    """Write an ONNX file; inputs and outputs are name -> (element type, shape)."""
    infos = [[helper.make_tensor_value_info(n, *v) for n, v in values.items()] for values in (inputs, outputs)]
    graph = helper.make_graph(nodes, "graph", *infos)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
    if metadata is not None:
        text = metadata if isinstance(metadata, str) else json.dumps(metadata)
        helper.set_model_props(model, {"ensexport": text})
    onnx.save(model, path)
    return path


def identity(path, kind=X, shape=("b", 2), **options):
    """One input `x`, one output `y`, the same tensor."""
    node = helper.make_node("Identity", ["x"], ["y"])
    return onnx_file(path, [node], {"x": (kind, shape)}, {"y": (kind, shape)}, **options)


def torchscript_file(path, module=None, *, metadata=METADATA):
    extra = (
        {} if metadata is None else {"ensexport.json": metadata if isinstance(metadata, str) else json.dumps(metadata)}
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated; files of its kind are still in use
        buffer = io.BytesIO()
        torch.jit.save(torch.jit.script(module or Double()), buffer, _extra_files=extra)
    path.write_bytes(buffer.getvalue())
    return path


def pt2_file(path, module=None, *, metadata=METADATA):
    extra = (
        {} if metadata is None else {"ensexport.json": metadata if isinstance(metadata, str) else json.dumps(metadata)}
    )
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(module or Double(), (torch.ones(3, 2),), dynamic_shapes=({0: batch},))
    torch.export.save(program, path, extra_files=extra)
    return path


MAKERS = {".onnx": identity, ".ts": torchscript_file, ".pt2": pt2_file}


def damage(path, how):
    """Spoil a file in one of the ways files are spoilt."""
    data = path.read_bytes()
    if how == "empty":
        path.write_bytes(b"")
    elif how == "half":
        path.write_bytes(data[: len(data) // 2])
    elif how == "random":
        path.write_bytes(bytes(range(1, 256)) * 4)
    elif how == "html":
        path.write_text("<!DOCTYPE html><html></html>")
    elif how == "other zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("hello.txt", "hello")
    return path
