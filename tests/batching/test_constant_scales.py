"""Products with a number that move into weights: which do, which must not, and that the numbers stay."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.batching.runs import batched
from tests.batching.runs import ops as compared

IMAGE, TOKENS = "x:float32[batch,6,5,5]", "x:float32[batch,seq,6]"
Forward = Callable[[nn.Module, Tensor], Tensor]


class Flow(nn.Module):
    """Linear layers and convolutions joined as the test says."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 4, bias=False)
        self.conv, self.grouped = nn.Conv2d(6, 4, 3, padding=1), nn.Conv2d(6, 4, 3, groups=2)
        self.up, self.norm = nn.ConvTranspose2d(6, 4, 2, 2, groups=2), nn.BatchNorm2d(4)
        self.flow = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.flow(self, x)


def heads(x: Tensor) -> Tensor:
    return x.view(*x.shape[:2], 2, 3).transpose(1, 2)


def attention(m: nn.Module, x: Tensor) -> Tensor:
    return ((heads(m.a(x)) * 3**-0.5) @ heads(x.sin()).transpose(-2, -1)).softmax(-1)


def ops(forward: Forward, spec: str, folder: Path | None = None, **options: object) -> Counter[str]:
    members: list[nn.Module] = [Flow(forward).eval() for _ in range(3)]
    return compared(members, spec, folder=folder, **options)


FOLDED: dict[str, tuple[Forward, str]] = {
    "behind-linear": (lambda m, x: m.a(x) * 0.3, TOKENS),
    "integer": (lambda m, x: 2 * m.b(x), TOKENS),
    "temperature": (lambda m, x: m.b(x) / 0.7, TOKENS),
    "negative": (lambda m, x: m.b(x) * -0.1, TOKENS),
    "attention": (attention, TOKENS),
    "behind-conv": (lambda m, x: m.conv(x) / 3, IMAGE),
    "behind-norm": (lambda m, x: m.norm(m.conv(x)) * 0.3, IMAGE),
    "behind-transposed": (lambda m, x: m.up(x) * 0.3, IMAGE),
    "before-linear": (lambda m, x: m.b(x.sin() * 0.3), TOKENS),
    "before-two": (lambda m, x: m.b(y := x.sin() / 3) + m.a(y)[..., :4], TOKENS),
    "before-padded": (lambda m, x: m.conv(x / 255), IMAGE),
    "before-groups": (lambda m, x: m.grouped(x * 0.3), IMAGE),
    "before-transposed": (lambda m, x: m.up(x * 0.3), IMAGE),
    "twice": (lambda m, x: m.b(m.a(x) * 0.3 / 0.7), TOKENS),
}


def is_scaled(counted: Counter[str]) -> bool:
    return bool(counted["mul.Tensor"] + counted["div.Tensor"])


@pytest.mark.parametrize("name", FOLDED)
def test_number_costs_nothing(name: str, tmp_path: Path) -> None:
    forward, spec = FOLDED[name]
    assert not is_scaled(ops(forward, spec, tmp_path))


@pytest.mark.parametrize("name", ["attention", "before-padded"])
def test_per_member_input(name: str) -> None:
    forward, spec = FOLDED[name]
    assert not is_scaled(ops(forward, spec, per_member=("x",)))


KEPT: dict[str, tuple[Forward, str]] = {
    "zero": (lambda m, x: m.a(x) * 0.0, TOKENS),
    "huge": (lambda m, x: m.b(x) * 1e30, TOKENS),
    "tiny": (lambda m, x: m.b(x) * 1e-30, TOKENS),
    "read-elsewhere": (lambda m, x: (y := m.a(x)) * 0.5 + y, TOKENS),
    "activation": (lambda m, x: m.a(x).tanh() * 0.5, TOKENS),
    "activation-behind": (lambda m, x: m.b((x * 0.5).sin()), TOKENS),
    "rounded": (lambda m, x: torch.div(m.a(x), 0.5, rounding_mode="floor"), TOKENS),
}


@pytest.mark.parametrize("name", KEPT)
def test_number_stays(name: str) -> None:
    forward, spec = KEPT[name]
    counted = ops(forward, spec)
    assert is_scaled(counted) or counted["div.Tensor_mode"] == 1


def test_gelu_that_is_written_out_stays_whole() -> None:
    counted = ops(lambda m, x: m.b(0.5 * ((y := m.a(x)) * (1 + torch.erf(y / 2**0.5)))), TOKENS)
    assert (counted["mul.Tensor"], counted["div.Tensor"]) == (2, 1)


def test_layer_equal_in_all_members_stays_shared() -> None:
    members = [Flow(lambda m, x: m.a(x) * 0.3).eval() for _ in range(3)]
    for member in members:
        member.a.load_state_dict(members[0].a.state_dict())
    graph, _ = batched(members, TOKENS, shared_state={"a.weight", "a.bias"})
    assert {weight.name: weight.kind for weight in graph.packed.values()} == {"a.weight": "shared", "a.bias": "shared"}


def test_weights_are_rounded_once() -> None:
    members = [Flow(lambda m, x: m.b(x) * 0.3 / 0.7).eval() for _ in range(2)]
    _, weights = batched(members, TOKENS)
    (weight,) = weights.values()
    with torch.no_grad():
        exact = torch.cat([m.b.weight.double() * 0.3 * (1 / 0.7) for m in members]).float()
    assert torch.equal(weight, exact)
