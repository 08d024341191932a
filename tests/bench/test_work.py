"""Work of small files, counted by hand."""

import os
import tempfile

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import helper

from ensexport.bench.roofline import count_work
from ensexport.errors import ArtifactError
from tests.bench.graphs import FLOAT, node, tensor, write


def test_an_mlp(tmp_path):
    nodes = [node("Gemm", "x,w,b", "h", transB=1), node("Relu", "h", "r"), node("MatMul", "r,v", "y")]
    weights = {"w": tensor(8, 4), "b": tensor(8), "v": tensor(8, 2)}
    path = write(tmp_path / "mlp.onnx", nodes, {"x": ["batch", 4]}, ["y"], weights)
    work = count_work(path, {"x": tensor(3, 4)})
    assert work.flops == 2 * 3 * (4 * 8 + 8 * 2)
    assert (work.weight_bytes, work.input_bytes, work.output_bytes) == (4 * (32 + 8 + 16), 4 * 12, 4 * 6)
    assert (work.total_bytes, work.dtype) == (4 * (56 + 12 + 6), "float32")


def test_the_batch_of_the_feed_counts(tmp_path):
    path = write(tmp_path / "m.onnx", [node("MatMul", "x,w", "y")], {"x": ["batch", 4]}, ["y"], {"w": tensor(4, 2)})
    assert [count_work(path, {"x": tensor(batch, 4)}).flops for batch in (1, 10)] == [16, 160]


CASES = {
    # op, attributes, shapes of the inputs (None: absent), outputs, multiply-adds
    "conv with groups and stride": (
        "Conv", {"group": 2, "strides": [2, 2], "pads": [1, 1, 1, 1]}, [(3, 4, 8, 6), (10, 2, 3, 3), (10,)], "y",
        3 * 10 * 4 * 3 * 2 * 9,
    ),
    "depthwise conv": ("Conv", {"group": 6}, [(1, 6, 5), (6, 1, 3)], "y", 6 * 3 * 3),
    "transposed conv": ("ConvTranspose", {"strides": [2, 2]}, [(2, 3, 4, 4), (3, 5, 2, 2)], "y", 2 * 3 * 16 * 5 * 4),
    "matmul with broadcast": ("MatMul", {}, [(5, 1, 3, 4), (2, 4, 6)], "y", 5 * 2 * 3 * 4 * 6),
    "matmul with a vector": ("MatMul", {}, [(5, 4), (4,)], "y", 20),
    "gemm, both transposed": ("Gemm", {"transA": 1, "transB": 1}, [(4, 3), (6, 4)], "y", 3 * 4 * 6),
    "lstm": ("LSTM", {"hidden_size": 3}, [(7, 2, 5), (1, 12, 5), (1, 12, 3)], "y", 7 * 2 * 12 * (5 + 3)),
    "gru, both directions, a state and no lengths": (
        "GRU", {"hidden_size": 3, "direction": "bidirectional"},
        [(7, 2, 5), (2, 9, 5), (2, 9, 3), None, None, (2, 2, 3)], "y", 7 * 2 * 2 * 9 * (5 + 3),
    ),
    "attention": ("Attention", {}, [(2, 4, 3, 8), (2, 2, 5, 8), (2, 2, 5, 6)], "y", 2 * 4 * 3 * 5 * (8 + 6)),
    "attention, rank 3, with a past": (
        "Attention", {"q_num_heads": 2, "kv_num_heads": 2},
        [(2, 3, 8), (2, 5, 8), (2, 5, 8), None, (2, 2, 6, 4), (2, 2, 6, 4)], "y,k,v", 2 * 3 * (5 + 6) * (8 + 8),
    ),
    "einsum": ("Einsum", {"equation": "nbk, nko -> nbo"}, [(5, 2, 3), (5, 3, 4)], "y", 5 * 2 * 3 * 4),
    "einsum with dots": ("Einsum", {"equation": "...ij,...jk->...ik"}, [(7, 2, 3), (1, 3, 4)], "y", 7 * 2 * 3 * 4),
    "einsum of one factor": ("Einsum", {"equation": "ij->ji"}, [(2, 3)], "y", 0),
    "an op that counts nothing": ("Softmax", {}, [(2, 3)], "y", 0),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_multiply_adds(tmp_path, case):
    op, attributes, shapes, outputs, expected = case
    names = [f"x{i}" if shape else "" for i, shape in enumerate(shapes)]
    inputs = {name: list(shape) for name, shape in zip(names, shapes, strict=True) if shape}
    nodes = [node(op, ",".join(names), outputs, **attributes)]
    path = write(tmp_path / "one.onnx", nodes, inputs, outputs.split(","), opset=23)
    assert count_work(path, {name: tensor(*shape) for name, shape in inputs.items()}).flops == 2 * expected


def test_the_body_of_a_loop_counts_as_often_as_it_runs(tmp_path):
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [node("Identity", "go", "go_on"), node("MatMul", "h,w", "h_next")],
        "body",
        [info("i", onnx.TensorProto.INT64, []), info("go", onnx.TensorProto.BOOL, []), info("h", FLOAT, ["batch", 4])],
        [info("go_on", onnx.TensorProto.BOOL, []), info("h_next", FLOAT, ["batch", 4])],
    )
    nodes = [node("Loop", "trips,,x", "y", body=body)]
    inputs = {"trips": ([], onnx.TensorProto.INT64), "x": ["batch", 4]}
    path = write(tmp_path / "loop.onnx", nodes, inputs, ["y"], {"w": tensor(4, 4)})
    assert count_work(path, {"trips": np.array(5), "x": tensor(3, 4)}).flops == 2 * 5 * 3 * 16


def test_nodes_of_one_name_are_told_apart(tmp_path):
    nodes = [node("Einsum", "x,w", "h", equation="bk,ko->bo"), node("Einsum", "h,v", "y", equation="bk,ok->bo")]
    for each in nodes:
        each.name = "same"
    weights = {"w": tensor(4, 8), "v": tensor(2, 8)}
    path = write(tmp_path / "same.onnx", nodes, {"x": ["batch", 4]}, ["y"], weights)
    assert count_work(path, {"x": tensor(3, 4)}).flops == 2 * 3 * (4 * 8 + 8 * 2)


def test_of_a_table_only_the_rows_read_count(tmp_path):
    nodes = [node("Gather", "table,ids", "h"), node("Gather", "small,ids", "s"), node("Add", "h,s", "y")]
    weights = {"table": tensor(1000, 4), "small": tensor(2, 4)}
    path = write(tmp_path / "t.onnx", nodes, {"ids": (["batch"], onnx.TensorProto.INT64)}, ["y"], weights)
    work = count_work(path, {"ids": np.array([0, 1, 1])})
    assert (work.weight_bytes, work.flops, work.dtype) == (4 * (3 * 4 + 2 * 4), 0, "float32")


def test_a_table_that_is_also_multiplied_counts_whole(tmp_path):
    nodes = [node("Gather", "table,ids", "h"), node("MatMul", "h,table", "y")]
    path = write(
        tmp_path / "t.onnx", nodes, {"ids": (["batch"], onnx.TensorProto.INT64)}, ["y"], {"table": tensor(9, 9)}
    )
    assert count_work(path, {"ids": np.array([0])}).weight_bytes == 4 * 81


def test_weights_beside_the_file_are_read(tmp_path, monkeypatch):
    nodes = [node("MatMul", "x,w", "y")]
    write(tmp_path / "e.onnx", nodes, {"x": ["batch", 4]}, ["y"], {"w": tensor(4, 2)}, external=True)
    monkeypatch.chdir(tmp_path)
    work = count_work(tmp_path.__class__("e.onnx"), {"x": tensor(3, 4)})
    assert (work.weight_bytes, work.flops, sorted(os.listdir())) == (32, 48, ["e.onnx", "e.onnx.data"])


def test_float16_is_named_where_the_cpu_computes_in_float32(tmp_path):
    inputs = {"x": ([1, 2, 5, 5], onnx.TensorProto.FLOAT16)}
    nodes = [node("Relu", "x", "h"), node("Conv", "h,w", "y")]
    path = write(tmp_path / "half.onnx", nodes, inputs, ["y"], {"w": tensor(3, 2, 3, 3, dtype=np.float16)})
    work = count_work(path, {"x": tensor(1, 2, 5, 5, dtype=np.float16)})
    assert (work.dtype, work.flops, work.weight_bytes) == ("float16", 2 * 27 * 18, 2 * 54)


def test_bfloat16_that_is_computed_in_float32(tmp_path):
    kind = onnx.TensorProto.BFLOAT16
    nodes = [node("Cast", "x", "a", to=FLOAT), node("Cast", "w", "b", to=FLOAT), node("MatMul", "a,b", "y")]
    weights = {"w": tensor(4, 2).astype(ml_dtypes.bfloat16)}
    path = write(tmp_path / "b.onnx", nodes, {"x": (["batch", 4], kind)}, ["y"], weights)
    work = count_work(path, {"x": tensor(3, 4).astype(ml_dtypes.bfloat16)})
    assert (work.dtype, work.weight_bytes, work.input_bytes, work.output_bytes) == ("float32", 16, 24, 24)


def test_functions_are_looked_into(tmp_path):
    path = write(tmp_path / "f.onnx", [node("Relu", "x", "y")], {"x": ["batch", 4]}, ["y"], {"w": tensor(4, 2)})
    model = onnx.load(path)
    model.graph.node[0].CopyFrom(helper.make_node("Times", ["x", "w"], ["y"], domain="local"))
    model.opset_import.append(helper.make_opsetid("local", 1))
    opsets = [helper.make_opsetid("", 20)]
    model.functions.append(
        helper.make_function("local", "Times", ["a", "b"], ["c"], [node("MatMul", "a,b", "c")], opsets)
    )
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", FLOAT, ["batch", 2]))
    onnx.save(model, path)
    assert count_work(path, {"x": tensor(3, 4)}).flops == 48


def test_nothing_is_left_behind(tmp_path, monkeypatch):
    (tmp_path / "temp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temp"))
    count_work(write(tmp_path / "s.onnx", [node("Sin", "x", "y")], {"x": ["b"]}, ["y"]), {"x": tensor(3)})
    assert os.listdir(tmp_path / "temp") == []


def test_files_that_cannot_be_counted_are_refused(tmp_path):
    (tmp_path / "no.onnx").write_bytes(b"nothing")
    with pytest.raises(ArtifactError, match=r"cannot read '.*no\.onnx' as ONNX"):
        count_work(tmp_path / "no.onnx", {})
    path = write(tmp_path / "e.onnx", [node("Sin", "x", "y")], {"x": (["b"], onnx.TensorProto.BFLOAT16)}, ["y"])
    with pytest.raises(ArtifactError, match=r"cannot count the work of 'e\.onnx', which the CPU cannot run: .*Sin"):
        count_work(path, {"x": tensor(3).astype(ml_dtypes.bfloat16)})
