"""bfloat16 members in ONNX: the same bytes, dtypes and names outside, float32 inside, and it runs on a CPU."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto
from torch import nn

import ensexport


def _convnet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Upsample(scale_factor=2, mode="bilinear"),
        nn.Conv2d(8, 2, 3),
    )


def _encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    return nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)


class Mixed(nn.Module):
    """Casts up for a norm, makes a bfloat16 constant, returns an input and an integer beside its result."""

    def __init__(self) -> None:
        super().__init__()
        self.emb, self.out = nn.Embedding(10, 6), nn.Linear(6, 3)

    def forward(self, ids: torch.Tensor, x: torch.Tensor) -> dict[str, torch.Tensor]:
        y = self.emb(ids).float()
        y = (y / y.norm(dim=-1, keepdim=True)).to(torch.bfloat16) + torch.full((6,), 0.5, dtype=torch.bfloat16)
        return {"y": self.out(y + x[:, None]), "x": x, "best": ids.max(-1).values}


@pytest.mark.parametrize(
    ("build", "inputs"),
    [
        (_convnet, ["x:bfloat16[batch,3,8,8]"]),
        (_encoder, ["x:bfloat16[batch,seq,8]"]),
        (lambda: nn.LSTM(4, 6, batch_first=True), ["x:bfloat16[batch,seq,4]"]),
        (Mixed, ["ids:int64[batch,seq]", "x:bfloat16[batch,6]"]),
    ],
    ids=["convnet", "encoder", "lstm", "mixed"],
)
def test_is_stored_in_bfloat16_and_computed_in_float32(build, inputs, tmp_path: Path) -> None:
    members = [build().to(torch.bfloat16).eval() for _ in range(2)]
    report = ensexport.export(ensexport.stack(members), tmp_path / "e.onnx", inputs=inputs, batches=(1, 3), seeds=(0,))
    assert report.validation.passed
    graph = onnx.load(tmp_path / "e.onnx").graph
    dtype_of = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
    results = [name for node in graph.node for name in node.output if name in dtype_of]
    assert results
    assert not [name for name in results if dtype_of[name] == TensorProto.BFLOAT16]
    floats = [t for t in graph.initializer if t.data_type in (TensorProto.FLOAT, TensorProto.BFLOAT16) and t.dims]
    assert {t.data_type for t in floats if "." in t.name} <= {TensorProto.BFLOAT16}
    ends = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)}
    assert TensorProto.FLOAT not in ends.values()
    assert TensorProto.BFLOAT16 in ends.values()
