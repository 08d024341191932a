"""Each rewrite of the ONNX model: its effect on small models, and that names never clash."""

from __future__ import annotations

from collections import Counter, namedtuple
from pathlib import Path

import onnx
import onnx_ir as ir
import torch
from torch import nn

from ensexport.targets.onnx import onnx_model
from ensexport.targets.onnx_passes import gather_in_place, rename
from tests.batching.runs import assert_equals_loop, batched, capture, onnx_run

Out = namedtuple("Out", ["mean", "index"])


class Clashes(nn.Module):
    """Buffers called like an output, like a node's value and like an input's dim."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.register_buffer("mean", torch.rand(4))
        self.register_buffer("index", torch.tensor([2, 0, 1]))
        self.register_buffer("add", torch.rand(4))
        self.register_buffer("batch", torch.rand(4))

    def forward(self, x: torch.Tensor) -> Out:
        y = self.fc(x - self.mean) + self.add * self.batch
        return Out(y, y[:, self.index])


def test_names_of_buffers_give_way_to_inputs_outputs_and_dims(tmp_path: Path) -> None:
    members = [Clashes().eval() for _ in range(3)]
    graph, weights = batched(members, "x:float32[batch,4]")
    _, example = capture(members[0], "x:float32[batch,4]")
    assert_equals_loop([onnx_run(graph, weights, tmp_path)], members, graph, example)
    model = onnx_model(graph, ["mean", "index"])
    values = [v.name for n in model.graph for v in n.outputs] + [v.name for v in model.graph.initializers.values()]
    values += [v.name for v in model.graph.inputs]
    assert max(Counter(values).values()) == 1
    assert [v.name for v in model.graph.outputs] == ["mean", "index"]
    assert model.graph.initializers["mean_value"].meta["packed_name"] == "mean"
    assert all(name == value.name for name, value in model.graph.initializers.items())


def test_rename_leaves_names_that_do_not_clash() -> None:
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 20]> g (float[s0] a) => (float[s0] b) {b = Relu(a)}'
    )
    rename(model, ["x"], ["y"], {"s0": "batch"})
    assert (model.graph.inputs[0].name, model.graph.outputs[0].name) == ("x", "y")
    assert str(model.graph.outputs[0].shape[0]) == "batch"


def gathers(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == "Gather"]


FLATTENED = """<ir_version: 10, opset_import: ["" : 20]>
g (float[3,9,4] table, int64[b,s] ids) => (float[3,b,s,4] y)
<int64[1] flat = {-1}, int64[4] back = {3, 0, 0, 4}, float[3,d,4] taken> {
    vector = Reshape(ids, flat)
    taken = Gather<axis = 1>(table, vector)
    y = Reshape(taken, back)
}"""


def test_gather_takes_its_indices_as_they_are() -> None:
    model = ir.from_onnx_text(FLATTENED)
    assert gather_in_place(model)
    assert gathers(model)[0].inputs[1].name == "ids"
    assert [output.name for output in model.graph.outputs] == ["y"]
    assert not gather_in_place(model)


def test_gather_stays_where_its_result_is_reshaped_otherwise() -> None:
    model = ir.from_onnx_text(FLATTENED.replace("float[3,b,s,4] y", "float[3,s,b,4] y"))
    assert not gather_in_place(model)
    assert gathers(model)[0].inputs[1].name == "vector"


def test_embedding_is_one_gather(tmp_path: Path) -> None:
    members = [nn.Embedding(11, 4).eval() for _ in range(3)]
    graph, weights = batched(members, "ids:int64[batch,seq]")
    _, example = capture(members[0], "ids:int64[batch,seq]")
    assert_equals_loop([onnx_run(graph, weights, tmp_path)], members, graph, example)
    model = onnx.load(tmp_path / "graph.onnx")
    assert [node.op_type for node in model.graph.node if node.op_type != "Constant"] == ["Gather"]


def test_constants_are_written_in_the_dtype_they_are_cast_to(tmp_path: Path) -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 12)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.scaled_dot_product_attention(*self.fc(x).chunk(3, -1))

    members = [Attention().double().eval() for _ in range(2)]
    graph, weights = batched(members, "x:float64[batch,5,4]")
    _, example = capture(members[0], "x:float64[batch,5,4]")
    assert_equals_loop([onnx_run(graph, weights, tmp_path)], members, graph, example)
    model = onnx.load(tmp_path / "graph.onnx")
    counts = Counter(node.op_type for node in model.graph.node)
    assert (counts["CastLike"], counts["SplitToSequence"], counts["SequenceAt"], counts["Split"]) == (0, 0, 0, 1)


def test_sizes_are_joined_as_they_are_read(tmp_path: Path) -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(x)

    members = [Flat().eval() for _ in range(2)]
    graph, weights = batched(members, "x:float32[batch,seq,4]", per_member=["x"])
    _, example = capture(members[0], "x:float32[batch,seq,4]")
    assert_equals_loop([onnx_run(graph, weights, tmp_path)], members, graph, example)
    assert "Squeeze" not in {node.op_type for node in onnx.load(tmp_path / "graph.onnx").graph.node}
