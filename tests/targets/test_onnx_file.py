"""The bytes of an ONNX file, worked out without its weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from onnx_ir.tensor_adapters import TorchTensor
from torch import nn

from ensexport.batching.engine import BatchedGraph
from ensexport.stacking.state import named_tensors
from ensexport.targets.onnx import onnx_model, write_onnx
from ensexport.targets.onnx_file import lay_out, weight_of
from ensexport.targets.weight_file import WeightFile, put_all
from tests.batching.runs import batched


def _members(n_members: int = 3) -> list[nn.Module]:
    members = []
    for seed in range(n_members):
        torch.manual_seed(seed)
        members.append(
            nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5)).eval()
        )
    return members


def _graph() -> tuple[BatchedGraph, dict[str, torch.Tensor]]:
    return batched(_members(), "x:float32[batch,3,8,8]")


def _through_protobuf(graph: BatchedGraph, weights: dict[str, torch.Tensor], path: Path) -> bytes:
    """The file as protobuf writes it, weights and all in memory."""
    model = onnx_model(graph, ["output"])
    for name, value in model.graph.initializers.items():
        packed = value.meta.get("packed_name", name)
        if packed in weights:
            value.const_value = TorchTensor(weights[packed], name=name)
    model.metadata_props["b"], model.metadata_props["a"] = "2", "1"
    model.producer_name, model.producer_version = "ensexport", ""
    ir.save(model, path)
    return path.read_bytes()


def test_the_bytes_are_those_that_protobuf_writes(tmp_path: Path) -> None:
    graph, weights = _graph()
    expected = _through_protobuf(graph, weights, tmp_path / "whole.onnx")
    write_onnx(onnx_model(graph, ["output"]), tmp_path / "pieces.onnx", weights, {"b": "2", "a": "1"})
    assert (tmp_path / "pieces.onnx").read_bytes() == expected


def test_pieces_written_member_by_member_are_the_whole_weights(tmp_path: Path) -> None:
    graph, weights = _graph()
    shapes = {w.name: weight_of(w.shape(3), w.dtype) for w in graph.weights.packed}
    path = tmp_path / "a.onnx"
    layout = lay_out(onnx_model(graph, ["output"]), shapes, path.name)
    with WeightFile(layout.write(path), layout.places) as file:
        for index in (2, 0, 1):  # in any order
            graph.weights.write(named_tensors(_members()[index]), index, file.put)
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        assert np.array_equal(onnx.numpy_helper.to_array(tensor), weights[tensor.name].numpy()), tensor.name


def test_external_data_is_aligned_and_checked_by_path(tmp_path: Path) -> None:
    graph, weights = _graph()
    shapes = {name: weight_of(tuple(tensor.shape), tensor.dtype) for name, tensor in weights.items()}
    path = tmp_path / "a.onnx"
    layout = lay_out(onnx_model(graph, ["output"]), shapes, path.name, max_bytes=100)
    assert layout.data == "a.onnx.data"
    assert all(place % 64 == 0 for place in layout.places.values())
    with WeightFile(layout.write(path), layout.places) as file:
        put_all(file, weights)
    assert path.stat().st_size == layout.n_bytes
    assert (tmp_path / "a.onnx.data").stat().st_size == layout.data_bytes
    onnx.checker.check_model(str(path))
    write_onnx(onnx_model(graph, ["output"]), tmp_path / "b.onnx", weights, {})
    feed = {"x": np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32)}
    results = [
        ort.InferenceSession(str(tmp_path / name), providers=["CPUExecutionProvider"]).run(None, feed)[0]
        for name in ("a.onnx", "b.onnx")
    ]
    assert np.array_equal(*results)


def test_a_large_tensor_begins_where_windows_can_map_it() -> None:
    value = ir.Value(name="w", shape=ir.Shape([2**19]), type=ir.TensorType(ir.DataType.FLOAT))
    small = ir.Value(name="s", shape=ir.Shape([3]), type=ir.TensorType(ir.DataType.FLOAT))
    graph = ir.Graph([], [], nodes=[], initializers=[small, value], opset_imports={"": 20}, name="g")
    weights = {"w": weight_of((2**19,), torch.float32), "s": weight_of((3,), torch.float32)}
    layout = lay_out(ir.Model(graph, ir_version=10), weights, "m.onnx", max_bytes=0)
    assert layout.places == {"s": 0, "w": 2**16}
    assert layout.data_bytes == 2**16 + 2**21


@pytest.mark.parametrize("n_bytes", [0, 1, 127, 128, 300, 16_384, 2_100_000])
def test_lengths_of_every_size_are_written_as_protobuf_reads_them(tmp_path: Path, n_bytes: int) -> None:
    value = ir.Value(name="w", shape=ir.Shape([n_bytes]), type=ir.TensorType(ir.DataType.UINT8))
    graph = ir.Graph([], [value], nodes=[], initializers=[value], opset_imports={"": 20}, name="g")
    layout = lay_out(ir.Model(graph, ir_version=10), {"w": weight_of((n_bytes,), torch.uint8)}, "m.onnx")
    with WeightFile(layout.write(tmp_path / "m.onnx"), layout.places) as file:
        put_all(file, {"w": torch.full((n_bytes,), 7, dtype=torch.uint8)})
    (tensor,) = onnx.load(tmp_path / "m.onnx").graph.initializer
    assert np.array_equal(onnx.numpy_helper.to_array(tensor), np.full(n_bytes, 7, np.uint8))


def test_a_complex_weight_is_pairs_of_real_numbers() -> None:
    weight = weight_of((2, 3), torch.complex64)
    assert (weight.shape, weight.dtype, weight.n_bytes) == ((2, 3, 2), torch.float32, 48)
