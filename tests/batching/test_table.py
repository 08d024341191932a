"""Every row of the table against the loop, in the formats users run.

The default run takes one case a row: N=3, a shared or per-member input, ONNX or TorchScript, changing over from row to
row; `-m slow` takes all the others and N=1.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from ensexport.batching.engine import batch_graph
from ensexport.stacking.state import named_tensors
from tests.batching.runs import assert_equals_loop, capture, fx_run, onnx_run, torchscript_run
from tests.batching.table import FIXED, TABLE, Row, make_member

_NAMES = list(TABLE)


def _cases() -> list[object]:
    cases = []
    for number, name in enumerate(_NAMES):
        for n_members in (3, 1):
            for per_member in (False, True):
                for target in ("onnx", "torchscript"):
                    turn = (per_member, target) == (number % 4 >= 2, ("onnx", "torchscript")[number % 2])
                    is_default = n_members == 3 and turn
                    case = f"{name}-{'own' if per_member else 'shared'}-{target}-{n_members}"
                    marks = () if is_default else (pytest.mark.slow,)
                    cases.append(pytest.param(name, n_members, per_member, target, id=case, marks=marks))
    return cases


def _per_member(row: Row) -> tuple[str, ...]:
    names = [text.partition(":")[0] for text in row.inputs]
    return tuple(name for name in names if name not in row.only_shared)


@pytest.mark.parametrize(("name", "n_members", "per_member", "target"), _cases())
def test_row_equals_the_loop(name: str, n_members: int, per_member: bool, target: str, tmp_path: Path) -> None:
    row = TABLE[name]
    members = [make_member(row, seed) for seed in range(n_members)]
    member, example = capture(members[0], *row.inputs)
    graph = batch_graph(member, n_members, per_member=_per_member(row) if per_member else ())
    weights = graph.weights.pack([named_tensors(module) for module in members], n_members)
    runs = [fx_run(graph, weights)]
    if target == "torchscript":
        runs.append(torchscript_run(graph, weights))
    else:
        runs.append(onnx_run(graph, weights, tmp_path))
    assert_equals_loop(runs, members, graph, example, fixed=FIXED.get(name, ()))
    if n_members > 1:
        assert {fallback.step for fallback in graph.plan.fallbacks} <= row.steps, graph.plan.fallbacks


def test_table_is_large_enough() -> None:
    assert len(TABLE) >= 120
