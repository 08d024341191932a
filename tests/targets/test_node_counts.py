"""Packed graphs have hardly more nodes than one member's own export, after ONNX Runtime's basic optimisation.

`python -m tests.zoo.nodes` counts whole networks of timm and transformers; these are their building blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.batching.table import Permute
from tests.zoo.nodes import counts


class Sum(nn.Module):
    """A residual block."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layers(x)


class Attention(nn.Module):
    """Self-attention as timm and transformers write it."""

    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(size, size) for _ in range(4))
        self.heads = heads

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (p(x).view(*x.shape[:2], self.heads, -1).transpose(1, 2) for p in (self.q, self.k, self.v))
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).flatten(2))


def residual_net() -> nn.Module:
    def block() -> nn.Module:
        conv = (nn.Conv2d(8, 8, 3, padding=1, bias=False) for _ in range(2))
        return Sum(next(conv), nn.BatchNorm2d(8), nn.ReLU(), next(conv), nn.BatchNorm2d(8))

    return nn.Sequential(
        nn.Conv2d(3, 8, 3), *[block() for _ in range(6)], nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(8, 5)
    )


def convnext() -> nn.Module:
    def block() -> nn.Module:
        return Sum(
            nn.Conv2d(8, 8, 3, padding=1, groups=8),
            Permute(0, 2, 3, 1),
            nn.LayerNorm(8),
            nn.Linear(8, 16),
            nn.GELU(),
            nn.Linear(16, 8),
            Permute(0, 3, 1, 2),
        )

    return nn.Sequential(nn.Conv2d(3, 8, 2, 2), *[block() for _ in range(6)], nn.AdaptiveAvgPool2d(1), nn.Flatten(1))


def transformer(norm_first: bool) -> Callable[[], nn.Module]:
    def feed_forward() -> nn.Module:
        return nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))

    def blocks() -> list[nn.Module]:
        parts = (Attention(8, 2), feed_forward())
        if norm_first:
            return [Sum(nn.LayerNorm(8), part) for part in parts]
        return [nn.Sequential(Sum(part), nn.LayerNorm(8)) for part in parts]

    return lambda: nn.Sequential(*[block for _ in range(4) for block in blocks()])


@pytest.mark.parametrize(
    ("build", "inputs"),
    [
        (residual_net, "x:float32[batch,3,16,16]"),
        (convnext, "x:float32[batch,3,16,16]"),
        (transformer(norm_first=True), "x:float32[batch,seq,8]"),
    ],
    ids=["resnet", "convnext", "transformer"],
)
def test_at_most_15_percent_more(build: Callable[[], nn.Module], inputs: str, tmp_path: Path) -> None:
    single, packed = counts(build, (inputs,), tmp_path)
    assert packed.total() <= 1.15 * single.total(), (single, packed)


def test_norm_that_a_residual_sum_reads_costs_a_scale(tmp_path: Path) -> None:
    single, packed = counts(transformer(norm_first=False), ("x:float32[batch,seq,8]",), tmp_path)
    norms = single["LayerNormalization"]
    assert norms == 8
    assert packed.total() - norms <= 1.1 * single.total(), (single, packed)


def test_mlp_costs_an_add_a_layer_one_reshape_and_one_transpose(tmp_path: Path) -> None:
    def mlp() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))

    single, packed = counts(mlp, ("x:float32[batch,4]",), tmp_path)
    assert packed.total() <= single.total() + 3 + 2
    assert (packed["Reshape"], packed["Transpose"]) == (1, 1)
