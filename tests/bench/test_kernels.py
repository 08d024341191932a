"""Kernels counted in ONNX Runtime's profile."""

import os
import tempfile

import numpy as np
import onnx
import pytest
from onnx import helper

from ensexport.bench.kernels import count_kernels
from ensexport.errors import ArtifactError
from tests.bench.graphs import FLOAT, node, tensor, write


def test_fused_ops_count_as_what_runs(tmp_path):
    nodes = [node("Gemm", "x,w,b", "h"), node("Relu", "h", "r"), node("Gemm", "r,v", "y")]
    weights = {"w": tensor(4, 8), "b": tensor(8), "v": tensor(8, 2)}
    path = write(tmp_path / "mlp.onnx", nodes, {"x": ["batch", 4]}, ["y"], weights)
    assert count_kernels(path, "cpu", {"x": tensor(3, 4)}) == {"FusedGemm": 1, "Gemm": 1}


def test_folded_nodes_run_no_kernel(tmp_path):
    nodes = [node("Transpose", "w", "t"), node("MatMul", "x,t", "y")]
    path = write(tmp_path / "folded.onnx", nodes, {"x": ["batch", 4]}, ["y"], {"w": tensor(8, 4)})
    assert count_kernels(path, "cpu", {"x": tensor(3, 4)}) == {"MatMul": 1}


@pytest.mark.parametrize("trips", [1, 5])
def test_the_body_of_a_loop_counts_as_often_as_it_runs(tmp_path, trips):
    body = helper.make_graph(
        [node("Identity", "go", "go_on"), node("Sin", "h", "h_next")],
        "body",
        [
            helper.make_tensor_value_info("i", onnx.TensorProto.INT64, []),
            helper.make_tensor_value_info("go", onnx.TensorProto.BOOL, []),
            helper.make_tensor_value_info("h", FLOAT, ["batch"]),
        ],
        [onnx.ValueInfoProto(name="go_on"), onnx.ValueInfoProto(name="h_next")],
    )
    body.output[0].CopyFrom(helper.make_tensor_value_info("go_on", onnx.TensorProto.BOOL, []))
    body.output[1].CopyFrom(helper.make_tensor_value_info("h_next", FLOAT, ["batch"]))
    nodes = [node("Loop", "trips,,x", "y", body=body)]
    path = write(tmp_path / "loop.onnx", nodes, {"trips": ([], onnx.TensorProto.INT64), "x": ["batch"]}, ["y"])
    counts = count_kernels(path, "cpu", {"trips": np.array(trips), "x": tensor(3)})
    assert (counts["Loop"], counts["Sin"]) == (1, trips)


def test_nothing_is_left_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temp"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "temp").mkdir()
    path = write(tmp_path / "sin.onnx", [node("Sin", "x", "y")], {"x": ["batch"]}, ["y"])
    assert count_kernels(path, "cpu", {"x": tensor(3)}) == {"Sin": 1}
    assert (os.listdir(tmp_path / "temp"), sorted(os.listdir(tmp_path))) == ([], ["sin.onnx", "temp"])


def test_a_file_that_is_no_onnx_is_refused(tmp_path):
    (tmp_path / "e.onnx").write_bytes(b"nothing")
    with pytest.raises(ArtifactError, match=r"ONNX Runtime cannot load 'e\.onnx'"):
        count_kernels(tmp_path / "e.onnx", "cpu", {})
