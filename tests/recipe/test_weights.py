"""The weight half of a recipe: the same bits after a way through JSON, and what is refused of a stranger's."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from torch import nn

from ensexport.batching.engine import BatchedGraph, batch_graph
from ensexport.errors import ArtifactError, ExportError, StackError
from ensexport.recipe import making, weights
from ensexport.recipe.coding import decode
from ensexport.recipe.making import make_recipe
from ensexport.recipe.own_tensors import OwnTensors
from ensexport.recipe.weights import weights_from_json, weights_to_json
from ensexport.stacking.state import named_tensors
from tests.batching.runs import capture
from tests.batching.table import TABLE, make_member

_EACH = {name: pytest.param(name, marks=() if number % 8 == 3 else (pytest.mark.slow,), id=name)
         for number, name in enumerate(TABLE)}  # fmt: skip


def _graph(name: str, n_members: int = 3, **options: Any) -> tuple[BatchedGraph, list[nn.Module]]:
    modules = [make_member(TABLE[name], seed) for seed in range(n_members)]
    member, _ = capture(modules[0], *TABLE[name].inputs)
    return batch_graph(member, n_members, **options), modules


def _json(graph: BatchedGraph) -> Any:
    return json.loads(json.dumps(weights_to_json(graph.weights, fills_buffers=False, sizes={"batch": 3})))


@pytest.mark.parametrize("name", list(_EACH.values()))
def test_each_row_of_the_table_packs_to_the_same_bits(name: str) -> None:
    graph, modules = _graph(name)
    recipe = weights_from_json(_json(graph), 3)
    assert recipe.program.packed == graph.weights.packed
    assert (recipe.fills_buffers, dict(recipe.sizes)) == (False, {"batch": 3})
    state = named_tensors(modules[1])
    own = {weight.name: bytes(values) for weight, values in graph.weights.finished(state, 1, lambda weight: True)}
    again = {
        weight.name: bytes(values)
        for weight, values in recipe.program.finished(state, 1, lambda weight: True, recipe.wanted)
    }
    assert again == {weight.name: own[weight.name] for weight in recipe.program.packed if weight.piece in recipe.wanted}


class _WithTables(nn.Module):
    """One tensor made of nothing that is read alone, and one that a weight is multiplied with."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        alone, beside = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([0.1, 0.2, 0.3, 0.4])
        return x * alone + self.weight * beside


def test_a_constant_is_kept_where_a_weight_needs_it() -> None:
    member, _ = capture(_WithTables().eval(), "x:float32[batch,4]")
    graph = batch_graph(member, 3)
    data = _json(graph)
    kept = [value for value in data["constants"].values() if value is not None]
    assert [value[:2] for value in kept] == [[[4], "float32"]]
    assert len(data["constants"]) == 2
    recipe = weights_from_json(data, 3)
    assert len(recipe.wanted) == len({weight.piece for weight in graph.weights.packed}) - 1


def _recipe(graph: BatchedGraph) -> Any:
    return decode(make_recipe(graph, fills_buffers=False, sizes={}, conversion=None, own=OwnTensors({}))["recipe"])


def test_too_large_a_constant_leaves_the_file_without_a_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "_MAX_CONSTANT_BYTES", 8)
    member, _ = capture(_WithTables().eval(), "x:float32[batch,4]")
    graph = batch_graph(member, 3)
    with pytest.raises(ExportError, match="the model's own constants take 16 bytes"):
        _json(graph)
    recipe = _recipe(graph)
    assert recipe["no_weights"] == "the model's own constants take 16 bytes, more than a file should hold twice."
    assert recipe.keys() == {"version", "no_weights", "member"}


def test_an_op_that_cannot_be_written_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise ExportError("cannot write aten.strange.default as JSON: it is none of the ops that a file may hold.")

    monkeypatch.setattr(making, "weights_to_json", refuse)
    graph, _ = _graph("mlp")
    recipe = _recipe(graph)
    assert "aten.strange.default" in recipe["no_weights"]


def test_a_tensor_that_is_missing_is_named() -> None:
    graph, modules = _graph("mlp")
    recipe = weights_from_json(_json(graph), 3)
    state = named_tensors(modules[0])
    del state["2.bias"]
    with pytest.raises(StackError, match=r"cannot pack '2\.bias': expected shape \(16,\), and there is no such tensor"):
        list(recipe.program.pieces(state))


def _with(path: tuple[Any, ...], value: Any) -> Any:
    graph, _ = _graph("mlp")
    data = _json(graph)
    place = data
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return data


@pytest.mark.parametrize(
    ("path", "value"),
    [
        pytest.param(("graph",), None, id="no-graph"),
        pytest.param(("graph", "output"), [{"node": 0}], id="pieces-a-list"),
        pytest.param(("graph", "output"), {"tuple": []}, id="no-pieces"),
        pytest.param(("graph", "output"), {"tuple": [1]}, id="piece-a-number"),
        pytest.param(("graph", "nodes", 0, "val"), None, id="no-shape"),
        pytest.param(("graph", "nodes", 0, "val"), {"size": 3}, id="a-size"),
        pytest.param(("leaves",), ["a"], id="too-few-leaves"),
        pytest.param(("leaves", 0), "2.bias", id="a-leaf-twice"),
        pytest.param(("constants",), [], id="constants-a-list"),
        pytest.param(("constants", "x"), [[2], "float32", "AAAA"], id="constant-too-short"),
        pytest.param(("constants", "x"), [[1], "float32", "*"], id="constant-no-letters"),
        pytest.param(("constants", "x"), [[-1], "float32", ""], id="constant-negative"),
        pytest.param(("packed",), 3, id="packed-a-number"),
        pytest.param(("packed", 0), [], id="weight-empty"),
        pytest.param(("packed", 0, 0), None, id="weight-without-name"),
        pytest.param(("packed", 0, 0), "2.weight", id="weight-twice"),
        pytest.param(("packed", 0, 1), 99, id="piece-not-there"),
        pytest.param(("packed", 0, 1), -1, id="piece-negative"),
        pytest.param(("packed", 0, 1), True, id="piece-is-true"),
        pytest.param(("packed", 0, 2), "other", id="kind"),
        pytest.param(("packed", 0, 2), "member", id="kind-member-without-one"),
        pytest.param(("packed", 0, 3), 7, id="member-not-there"),
        pytest.param(("packed", 0, 4), [2, 9], id="members-not-there"),
        pytest.param(("packed", 0, 4), [2, 1], id="members-backwards"),
        pytest.param(("packed", 0, 5), [3, 3], id="another-shape"),
        pytest.param(("packed", 0, 5), [2**61, 2**61], id="huge-shape"),
        pytest.param(("packed", 0, 6), "object", id="dtype"),
        pytest.param(("sizes",), None, id="no-sizes"),
    ],
)
def test_a_damaged_recipe_is_refused(path: tuple[Any, ...], value: Any) -> None:
    with pytest.raises(ArtifactError, match="its recipe is damaged"):
        weights_from_json(_with(path, value), 3)


@pytest.mark.parametrize("data", [None, 3, [], {}, {"graph": {}}], ids=str)
def test_what_is_no_recipe_is_refused(data: Any) -> None:
    with pytest.raises(ArtifactError, match="its recipe is damaged"):
        weights_from_json(copy.deepcopy(data), 3)
