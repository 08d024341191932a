"""Architectures whose weights reach a file in different ways: as they are, folded, tied, kept once, filled late."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ensexport.dtypes import DtypeChoice
from ensexport.emission import parse_emission
from ensexport.weighting import MemberWeights


class ConvNet(nn.Module):
    """Convolutions with norms that are folded into them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 6, 3, groups=2)
        self.last_norm = nn.BatchNorm2d(6)
        self.head = nn.Linear(6 * 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.first(x)))
        return self.head(F.relu(self.last_norm(self.second(x))).flatten(1))


class Transformer(nn.Module):
    """Attention with layer norms, a table of positions and a mask that the architecture makes."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 8)
        self.positions = nn.Parameter(torch.zeros(6, 8))
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)
        self.norm = nn.LayerNorm(8)
        self.register_buffer("mask", torch.triu(torch.full((6, 6), -1e4), 1), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids) + self.positions
        return self.norm(self.layer(x, src_mask=self.mask)).mean(1)


class Recurrent(nn.Module):
    """An LSTM over a sequence of any length."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 5, batch_first=True)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


class Tied(nn.Module):
    """One weight under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


class Scaled(nn.Module):
    """A buffer that is the same in all members, read by itself and beside a weight; and one that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)
        self.register_buffer("mean", torch.tensor([0.5, 1.0, -1.0, 2.0]))
        self.register_buffer("steps", torch.tensor(3))
        self.register_buffer("own", torch.zeros(3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = (x - self.mean) * self.steps
        return self.head(x), self.own.round() + self.head.bias * torch.arange(3)


class Filling(nn.Module):
    """Computes a table from its weight on the first call, and keeps it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4))
        self.register_buffer("table", torch.zeros(1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.table.shape != self.weight.shape:
            self.table = self.weight.detach().cumsum(0)
        return x + self.table


class Complex(nn.Module):
    """Complex weights: in ONNX two real numbers each."""

    def __init__(self) -> None:
        super().__init__()
        self.filter = nn.Parameter(torch.zeros(5, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.irfft(torch.fft.rfft(x) * self.filter, n=8)


class Clashing(nn.Module):
    """Its buffer is called like its output, so that it has another name in ONNX."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("output", torch.zeros(3))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"output": self.head(x) + self.output}


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


@dataclass(frozen=True)
class Net:
    """One architecture.

    Attributes:
        build: Makes it.
        inputs: Its inputs.
        options: More for `export`.
        n_members: N.
        common: Names of tensors that are equal in all members.
    """

    build: Callable[[], nn.Module]
    inputs: tuple[str, ...] = ("x:float32[batch,4]",)
    options: dict[str, Any] = field(default_factory=dict)
    n_members: int = 3
    common: tuple[str, ...] = ("num_batches_tracked",)

    def save(self, path: Path, seed: int) -> Path:
        """Write a checkpoint whose weights and statistics are random."""
        module, generator = self.build(), torch.Generator().manual_seed(seed)
        for name, tensor in {**dict(module.named_parameters()), **dict(module.named_buffers())}.items():
            if not name.endswith(self.common) and tensor.numel():
                real = torch.rand(tensor.shape, generator=generator) + 0.5
                tensor.data.copy_(torch.complex(real, real - 1) if tensor.is_complex() else real)
        path.parent.mkdir(exist_ok=True)
        torch.save(module.state_dict(), path)
        return path


NETS = {
    "mlp": Net(mlp),
    "one-member": Net(mlp, n_members=1),
    "conv": Net(ConvNet, ("x:float32[batch,1,8,8]",)),
    "float16": Net(ConvNet, ("x:float32[batch,1,8,8]",), {"dtypes": DtypeChoice("float16")}),
    "bfloat16": Net(mlp, options={"dtypes": DtypeChoice("bfloat16", io="float32")}),
    "transformer": Net(Transformer, ("ids:int64[batch,6]",), common=("mask",)),
    "lstm": Net(Recurrent, ("x:float32[batch,time,4]",)),
    "tied": Net(Tied),
    "buffers": Net(Scaled, common=("mean", "steps")),
    "filling": Net(Filling, common=("table",)),
    "complex": Net(Complex, ("x:float32[batch,8]",)),
    "clashing": Net(Clashing),
    "unrolled": Net(mlp, options={"strategy": "unrolled"}),
    "probs": Net(mlp, options={"emission": parse_emission(("probs,vote,members",), ())}),
    "weighed": Net(
        mlp,
        options={"emission": parse_emission(("probs",), ()), "weights": MemberWeights((0.5, 0.3, 0.2))},
    ),
    "weights-input": Net(mlp, options={"emission": parse_emission(("mean",), ()), "weights": MemberWeights()}),
    "axis-1": Net(mlp, options={"member_axis": 1}),
    "own-inputs": Net(mlp, options={"per_member": ("x",)}),
    "cpu": Net(ConvNet, ("x:float32[batch,1,8,8]",), {"target": "cpu"}),
}
