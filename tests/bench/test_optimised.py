"""The optimised graph of a file, read back."""

import os
import tempfile

import pytest

from ensexport.bench.optimised import optimised_nodes
from ensexport.errors import ArtifactError
from tests.bench.graphs import node, tensor, write


def test_fused_nodes_are_listed_in_order_with_what_they_read(tmp_path):
    nodes = [node("Gemm", "x,w,b", "h"), node("Relu", "h", "r"), node("MatMul", "r,v", "y")]
    weights = {"w": tensor(4, 8), "b": tensor(8), "v": tensor(8, 2)}
    first, second = optimised_nodes(write(tmp_path / "mlp.onnx", nodes, {"x": ["batch", 4]}, ["y"], weights))
    assert (first.op_type, first.domain, first.attributes) == ("FusedGemm", "com.microsoft", {"activation": "Relu"})
    assert (first.inputs[0], first.weights, second.shape) == ("x", ((4, 8), (8,)), ("batch", 2))
    assert (second.inputs[0], second.outputs, second.attributes) == (first.outputs[0], ("y",), {})
    assert str(first) == "FusedGemm activation=Relu [4, 8]"


def test_nothing_is_left_behind(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temp"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "temp").mkdir()
    path = write(tmp_path / "sin.onnx", [node("Sin", "x", "y")], {"x": ["batch"]}, ["y"])
    assert [str(found) for found in optimised_nodes(path)] == ["Sin -> (batch)"]
    assert (os.listdir(tmp_path / "temp"), sorted(os.listdir(tmp_path))) == ([], ["sin.onnx", "temp"])
    assert capfd.readouterr() == ("", "")


def test_a_file_that_is_no_onnx_is_refused(tmp_path):
    (tmp_path / "e.onnx").write_bytes(b"nothing")
    with pytest.raises(ArtifactError, match=r"ONNX Runtime cannot load 'e\.onnx'"):
        optimised_nodes(tmp_path / "e.onnx")
