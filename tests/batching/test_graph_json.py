"""Graphs as JSON: every row of the table there and back, and what a file of a stranger may not ask for."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import fx, nn

from ensexport.batching.engine import batch_graph
from ensexport.batching.graph_json import graph_from_json, graph_to_json
from ensexport.batching.graph_ops import find_op, name_of
from ensexport.batching.member_graph import MemberGraph
from ensexport.batching.sizes_json import size_from_json
from ensexport.errors import ArtifactError, ExportError
from ensexport.stacking.state import named_tensors
from tests.batching.runs import capture
from tests.batching.table import TABLE, make_member

aten = torch.ops.aten
_EACH = {name: pytest.param(name, marks=() if number % 8 == 0 else (pytest.mark.slow,), id=name)
         for number, name in enumerate(TABLE)}  # fmt: skip


def _symbols(member: MemberGraph) -> dict[str, torch.SymInt]:
    """The sizes of the inputs and those the graph counts itself, by name."""
    values = [node.meta["val"] for node in member.graph.nodes if "val" in node.meta]
    tensors = [value for value in values if isinstance(value, torch.Tensor)]
    sizes = [value for value in values if isinstance(value, torch.SymInt)] + [s for t in tensors for s in t.shape]
    return {str(s.node.expr): s for s in sizes if isinstance(s, torch.SymInt) and s.node.expr.is_Symbol}


def _through_text(graph: fx.Graph) -> object:
    return json.loads(json.dumps(graph_to_json(graph)))


@pytest.mark.parametrize("name", list(_EACH.values()))
def test_member_and_batched_graphs_survive(name: str) -> None:
    member, _ = capture(make_member(TABLE[name], 0), *TABLE[name].inputs)
    for graph in (member.graph, batch_graph(member, 3).graph):
        data = _through_text(graph)
        with member.fake_mode:
            again = graph_from_json(data, make=lambda shape, dtype: torch.empty(shape, dtype=dtype),
                                    symbols=_symbols(member))  # fmt: skip
        assert graph_to_json(again) == data
        assert [node.target for node in again.nodes if node.op == "call_function"] == [
            node.target for node in graph.nodes if node.op == "call_function"
        ]


@pytest.mark.parametrize("name", ["mlp", "residual"])
def test_a_weight_graph_computes_the_same_bits(name: str) -> None:
    module = make_member(TABLE[name], 0)
    member, _ = capture(module, *TABLE[name].inputs)
    program = batch_graph(member, 3).weights
    again = graph_from_json(_through_text(program.module.graph))
    state = named_tensors(module)
    leaves = [state[leaf] if leaf in state else program.constants[leaf] for leaf in program.leaves]
    expected, actual = program.module(*leaves), fx.GraphModule(nn.Module(), again)(*leaves)
    assert all(torch.equal(a, b) for a, b in zip(expected, actual, strict=True))
    shapes = [(node.meta["val"].shape, node.meta["val"].dtype) for node in again.nodes if node.op != "output"]
    assert (program.packed[0].piece_shape, program.packed[0].dtype) in [(tuple(s), d) for s, d in shapes]


def test_arguments_keep_their_kind() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    node = graph.call_function(aten.full.default, ([2, 3], math.inf), {"dtype": torch.float16, "pin_memory": False})
    other = graph.call_function(aten.add.Tensor, (x, 2), {"alpha": -0.0})
    cast = graph.call_function(
        aten._to_copy.default,
        (other,),
        {"device": torch.device("cpu"), "layout": torch.strided, "memory_format": torch.preserve_format},
    )
    graph.output((node, [cast, None, True, "s", (1, 2.0), slice(0, None, 1), 1j]))
    again = graph_from_json(json.loads(json.dumps(graph_to_json(graph, with_values=False))))
    for one, two in zip(graph.nodes, again.nodes, strict=True):
        assert str(one.format_node()) == str(two.format_node())
        assert repr(one.args) == repr(two.args)
        assert repr(one.kwargs) == repr(two.kwargs)


def test_nan_is_written_as_a_name() -> None:
    graph = fx.Graph()
    graph.output((graph.call_function(aten.full.default, ([1], math.nan)),))
    text = json.dumps(graph_to_json(graph, with_values=False), allow_nan=False)
    again = graph_from_json(json.loads(text))
    assert math.isnan(next(iter(again.nodes)).args[1])


def test_an_op_that_no_file_may_hold_is_named_when_writing() -> None:
    graph = fx.Graph()
    graph.output((graph.call_function(aten.relu_.default, (graph.placeholder("x"),)),))
    with pytest.raises(ExportError, match=r"cannot write aten\.relu_\.default as JSON: it is none of the ops"):
        graph_to_json(graph, with_values=False)


def test_a_value_that_json_cannot_hold_is_named_when_writing() -> None:
    graph = fx.Graph()
    graph.output((graph.call_function(aten.add.Tensor, (graph.placeholder("x"), torch.ones(2))),))
    with pytest.raises(ExportError, match=r"cannot write aten\.add\.Tensor as JSON: it takes .*, a Tensor"):
        graph_to_json(graph, with_values=False)


REFUSED = (
    *("aten.from_file.default", "aten.from_file.out", "aten.relu_.default", "aten.add.out", "aten.set_.source_Tensor"),
    *("aten.set.source_Tensor", "aten.resize.default", "aten.save.default", "aten._print.default", "aten.item.default"),
    *("aten.warn.default", "aten.manual_seed.default", "aten._cudnn_init_dropout_state.default"),
    *("aten._nested_view_from_buffer.default", "aten._sparse_coo_tensor_unsafe.default", "aten.record_stream.default"),
    *("aten._foobar.default", "aten.__class__.default", "aten.__getattr__.default", "aten.__init__.default"),
    *("aten.add.__class__", "aten.add.op", "aten.add.overloads", "aten.nothing.default", "aten.add"),
    *("prim.add.Tensor", "prims.add.default", "os.system", "operator.attrgetter", "operator.call", "builtins.eval"),
    *("torch.load", "torch.ops.aten.add", "operator.getitem.x", "torchvision.nms.default", "inductor.x.y", ""),
    *("aten.rand.default", "aten.cuda.default", "aten.pin_memory.default", "aten.tensor.float", "profiler.x.default"),
)


@pytest.mark.parametrize("name", REFUSED, ids=[name or "empty" for name in REFUSED])
def test_a_file_may_not_ask_for(name: str) -> None:
    assert find_op(name) is None
    item = {"op": "call", "target": name, "args": ["/etc/passwd"], "kwargs": {}}
    with pytest.raises(ArtifactError, match="none of the ops that a file may hold"):
        graph_from_json({"nodes": [item], "output": [{"node": 0}]})


def test_every_op_that_a_file_may_hold_returns_tensors_and_writes_to_none() -> None:
    known = 0
    for schema in torch._C._jit_get_all_schemas():
        if not schema.name.startswith("aten::"):
            continue
        name = f"aten.{schema.name[6:]}.{schema.overload_name or 'default'}"
        op = find_op(name)
        if op is None:
            continue
        known += 1
        assert name_of(op) == name
        assert not op._schema.is_mutable
        kinds = {str(argument.type) for argument in op._schema.arguments}
        assert not [kind for kind in kinds if "Storage" in kind or "Stream" in kind or "__torch__" in kind], name
        assert not {argument.name for argument in op._schema.arguments} & {"filename", "file"}, name
    assert known > 700


_X = {"op": "placeholder", "name": "x", "val": [[2], "float32"]}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(None, "'nodes' is missing", id="no-object"),
        pytest.param({"nodes": {}}, "'nodes' is missing, or no list", id="nodes-no-list"),
        pytest.param({"nodes": [3]}, "'op' is missing", id="node-no-object"),
        pytest.param({"nodes": [{"op": "get_attr"}]}, "its node 0 is a 'get_attr'", id="other-op"),
        pytest.param({"nodes": [{"op": "placeholder", "name": "x)\nimport os"}]}, "is no name", id="name-is-code"),
        pytest.param({"nodes": [_X | {"val": [[2], "object"]}]}, "'object' is no dtype", id="dtype"),
        pytest.param({"nodes": [_X | {"val": [[-1], "float32"]}]}, "there is no tensor of shape", id="negative"),
        pytest.param({"nodes": [_X | {"val": [[2**40] * 9, "float32"]}]}, "there is no tensor of shape", id="huge"),
        pytest.param({"nodes": [_X | {"val": [["s0"], "int8"]}]}, "is none", id="size-is-text"),
        pytest.param({"nodes": [_X | {"val": [[["s0"]], "int8"]}]}, "there is no dynamic size 's0'", id="symbol"),
        pytest.param({"nodes": [_X | {"val": "float32"}]}, "is no tensor's shape and dtype", id="value"),
        pytest.param({"nodes": [_X], "output": [{"node": 1}]}, "is no argument", id="node-not-there"),
        pytest.param({"nodes": [_X], "output": [{"node": -1}]}, "is no argument", id="node-negative"),
        pytest.param({"nodes": [_X], "output": [{"node": True}]}, "is no argument", id="node-is-true"),
        pytest.param({"nodes": [_X], "output": [{"device": "cuda"}]}, "is no argument", id="device"),
        pytest.param({"nodes": [_X], "output": [{"float": "1"}]}, "is no argument", id="float"),
        pytest.param({"nodes": [_X], "output": [{"slice": [1]}]}, "is no argument", id="slice"),
        pytest.param({"nodes": [_X], "output": [{"dtype": 3}]}, "is no dtype", id="dtype-argument"),
        pytest.param({"nodes": [_X], "output": {}}, "is no argument", id="empty-object"),
    ],
)
def test_what_is_no_graph_is_refused(data: object, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        graph_from_json(data)


def test_an_argument_that_is_nested_without_end_is_refused() -> None:
    data: object = []
    for _ in range(100):
        data = [data]
    with pytest.raises(ArtifactError, match="nested too deep"):
        graph_from_json({"nodes": [], "output": data})


@pytest.mark.parametrize(
    ("data", "size"),
    [
        pytest.param(["Add", ["s0"], 4], 11, id="add"),
        pytest.param(["Mul", ["s0"], ["s0"], 2], 98, id="mul"),
        pytest.param(["FloorDiv", ["Add", ["s0"], -1], 2], 3, id="floordiv"),
        pytest.param(["Mod", ["s0"], 4], 3, id="mod"),
        pytest.param(["Max", ["s0"], 9], 9, id="max"),
        pytest.param(["Min", ["s0"], 9], 7, id="min"),
    ],
)
def test_sizes_are_computed_from_those_that_are_given(data: object, size: int) -> None:
    assert size_from_json(data, {"s0": 7}) == size


@pytest.mark.parametrize(
    "data",
    [["Pow", ["s0"], 2], ["FloorDiv", 1, 0], ["Mod", 1], ["Add"], [], True, 2.5, None, "s0", 2**63, [["s0"], 1]],
    ids=str,
)
def test_what_is_no_size_is_refused(data: object) -> None:
    with pytest.raises(ArtifactError, match="cannot read a size of a graph"):
        size_from_json(data, {"s0": 7})
