"""ONNX forms of our own against torch, where torch's exporter writes something else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.batching.runs import assert_equals_loop, batched, capture, onnx_run


class Attention(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.q, self.kv = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, _ = x.shape
        q = self.q(x).view(batch, length, 4, 2).transpose(1, 2)
        kv = self.kv(x).view(batch, length, 4, 2).transpose(1, 2)
        if self.kind == "causal":
            return F.scaled_dot_product_attention(q, kv, kv, is_causal=True)
        if self.kind == "grouped":
            return F.scaled_dot_product_attention(q, kv[:, :2], kv[:, :2], enable_gqa=True, scale=0.3)
        mask = (x[:, :, 0] > 0)[:, None, None, :].expand(batch, 1, length, length)
        mask = mask & (x[:, :, 1] > 0)[:, None, :, None]  # queries that see no key at all
        if self.kind == "float":
            mask = torch.zeros_like(mask, dtype=x.dtype).masked_fill(~mask, float("-inf"))
        return F.scaled_dot_product_attention(q, kv, kv, attn_mask=mask)


@pytest.mark.parametrize("kind", ["bool", "float", "causal", "grouped"])
def test_attention_as_torch_computes_it(kind: str, tmp_path: Path) -> None:
    members = [Attention(kind).eval() for _ in range(2)]
    graph, weights = batched(members, "x:float32[batch,seq,8]")
    _, example = capture(members[0], "x:float32[batch,seq,8]")
    assert_equals_loop([onnx_run(graph, weights, tmp_path)], members, graph, example, batches=(1, 4))


@pytest.mark.parametrize("options", [{}, {"stride": 2, "padding": (1, 0, 2), "groups": 3}])
def test_three_dimensional_convolution_without_a_bias(options: dict[str, int], tmp_path: Path) -> None:
    members = [nn.Conv3d(3, 6, 2, bias=False, **options).eval() for _ in range(2)]
    graph, weights = batched(members, "x:float32[batch,3,4,5,6]")
    _, example = capture(members[0], "x:float32[batch,3,4,5,6]")
    assert_equals_loop([onnx_run(graph, weights, tmp_path)], members, graph, example, batches=(1, 4))
