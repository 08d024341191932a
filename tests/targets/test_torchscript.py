"""TorchScript files: what is particular to them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import ensexport


class MakesTensors(nn.Module):
    """Makes positions, masks and constants in forward, as token models do."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(32, 6), nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length = x.shape[0], x.shape[1]
        y = x + self.table(torch.arange(length, device=x.device))
        mask = torch.triu(torch.full((length, length), float("-inf"), device=x.device), diagonal=1)
        y = (y @ y.transpose(1, 2) + mask).softmax(-1) @ self.out(y)
        start = torch.zeros(batch, 1, 6, device=x.device)
        return (
            torch.cat([start, y], 1) * torch.tensor([1.0, 2.0], device=x.device).sum()
            + torch.eye(6, device=x.device)[0]
        )


@pytest.mark.filterwarnings("ignore:.*torch.jit.load:DeprecationWarning")
@pytest.mark.parametrize("strategy", ["auto", "unrolled"])
def test_tensors_made_in_forward_are_on_the_device_of_the_inputs(strategy: str, tmp_path: Path) -> None:
    """`meta` stands for another device: torch refuses to mix it with the CPU, as it does with CUDA."""
    path = tmp_path / "e.ts"
    ensemble = ensexport.stack([MakesTensors().eval() for _ in range(2)])
    ensexport.export(ensemble, path, inputs=["x:float32[batch,seq,6]"], strategy=strategy, batches=(1, 3), seeds=(0,))
    loaded = torch.jit.load(path).to("meta")
    result = loaded(torch.empty(4, 9, 6, device="meta"))
    assert (result.device.type, result.shape) == ("meta", (2, 4, 10, 6))
