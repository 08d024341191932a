"""Splits are one node, whatever becomes of their parts."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from tests.batching.runs import assert_equals_loop, batched, capture, onnx_run


class Parts(nn.Module):
    """One part is an output itself."""

    def __init__(self, sizes: int | list[int]) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 12)
        self.sizes = sizes

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        first, *others = self.fc(x).split(self.sizes, -1)
        return first, sum(part.sum(-1) for part in others) + first.sum(-1)


@pytest.mark.parametrize("sizes", [5, [2, 10], [3, 4, 5]])
def test_splits_make_no_sequences(sizes: int | list[int], tmp_path: Path) -> None:
    members = [Parts(sizes).eval() for _ in range(2)]
    graph, weights = batched(members, "x:float32[batch,4]")
    _, example = capture(members[0], "x:float32[batch,4]")
    assert_equals_loop([onnx_run(graph, weights, tmp_path)], members, graph, example)
    op_types = [node.op_type for node in onnx.load(tmp_path / "graph.onnx").graph.node]
    assert op_types.count("Split") == 1
    assert "SplitToSequence" not in op_types
