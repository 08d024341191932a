"""Weights-only sub-graphs: computed in float64 and rounded once, or left exactly as the member computes them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ensexport.stacking.state import named_tensors
from tests.batching.runs import assert_equals_loop, batched, capture, fx_run

DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


class Made(nn.Module):
    """A linear layer whose weight the test makes out of `w (4, 1000)`, `g (4, 1)` and `ints (4, 1000)`."""

    def __init__(self, make: Callable[[Made], Tensor], dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(4, 1000).to(dtype))
        self.g = nn.Parameter(torch.rand(4, 1).to(dtype))
        self.low = nn.Parameter(torch.rand(4, 1000).bfloat16())
        self.register_buffer("ints", torch.randint(-100, 100, (4, 1000)))
        self.make = make

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.make(self))


def packed(make: Callable[[Made], Tensor], dtype: torch.dtype = torch.float32) -> tuple[list[Made], list[Tensor]]:
    """Three members and the weight that was packed for each."""
    members = [Made(make, dtype).eval() for _ in range(3)]
    _, weights = batched(members, f"x:{DTYPES[dtype]}[batch,1000]")
    (weight,) = weights.values()
    return members, list(weight.view(3, 4, 1000))


def rounded_once(make: Callable[[Made], Tensor], member: Made, dtype: torch.dtype = torch.float32) -> Tensor:
    """What the weight is in float64, rounded."""
    exact = Made(make).double()
    exact.load_state_dict({name: tensor.double() for name, tensor in member.state_dict().items()})
    with torch.no_grad():
        return nearest(make(exact), dtype)


def nearest(exact: Tensor, dtype: torch.dtype) -> Tensor:
    """Each number's nearest, of two equally near the even one; `Tensor.to` rounds float64 by way of float32."""
    rounded = exact.to(dtype)
    if dtype.itemsize > 2:
        return rounded
    bits = rounded.view(torch.int16)
    near = torch.stack([rounded, *((bits + step).view(dtype) for step in (1, -1))])
    apart = (near.double() - exact).abs() + (near.view(torch.int16) & 1) * 1e-30
    return near.gather(0, apart.argmin(0, keepdim=True))[0]


def normalized(m: Made) -> Tensor:
    return m.g * m.w / m.w.norm(dim=1, keepdim=True)


def standardized(m: Made) -> Tensor:
    variance, mean = torch.var_mean(m.w, 1, keepdim=True)
    return (m.w - mean) * torch.rsqrt(variance + 1e-5) * m.g


def summed(m: Made) -> Tensor:
    total = m.w.cumsum(1)[:, -1:] + m.w.sum(1, keepdim=True)
    for _ in range(5):
        total = (total + m.w.flip(1).cumsum(1)[:, -1:]).tanh() * m.w.abs().sum()
    return m.w + total


ARITHMETIC = {"weight-norm": normalized, "standardized": standardized, "sums": summed}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ARITHMETIC)
def test_arithmetic_is_rounded_once(name: str, dtype: torch.dtype) -> None:
    make = ARITHMETIC[name]
    members, weights = packed(make, dtype)
    with torch.no_grad():
        for member, weight in zip(members, weights, strict=True):
            assert torch.equal(weight, rounded_once(make, member, dtype))
        assert any(not torch.equal(weight, make(member)) for member, weight in zip(members, weights, strict=True))


@pytest.mark.parametrize("name", ARITHMETIC)
def test_arithmetic_equals_the_loop(name: str) -> None:
    members: list[nn.Module] = [Made(ARITHMETIC[name]).eval() for _ in range(3)]
    graph, weights = batched(members, "x:float32[batch,1000]")
    _, example = capture(members[0], "x:float32[batch,1000]")
    assert_equals_loop([fx_run(graph, weights)], members, graph, example)


def test_weight_norm_of_torch_is_rounded_once() -> None:
    def build() -> nn.Module:
        return nn.utils.parametrizations.weight_norm(nn.Linear(1000, 4, bias=False)).eval()

    members = [build() for _ in range(3)]
    _, weights = batched(members, "x:float32[batch,1000]")
    (weight,) = weights.values()
    for member, own in zip(members, weight.view(3, 4, 1000), strict=True):
        state = {name: tensor.detach().double() for name, tensor in named_tensors(member).items()}
        g, v = state["parametrizations.weight.original0"], state["parametrizations.weight.original1"]
        assert torch.equal(own, torch._weight_norm(v, g, 0).float())


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_only_moves_is_bit_equal(dtype: torch.dtype) -> None:
    """Also numbers that arithmetic would not keep: a NaN with a message, a negative zero."""
    bits = {4: torch.int32, 2: torch.int16}[dtype.itemsize]

    def make(m: Made) -> Tensor:
        return torch.cat([m.w.t()[:500], m.w.t()[500:].flip(0)]).reshape(1000, 4).transpose(0, 1)

    members = [Made(make, dtype).eval() for _ in range(2)]
    for member in members:
        with torch.no_grad():
            member.w.view(bits)[0, :3] = torch.tensor([-1, -2, torch.iinfo(bits).min])
    _, weights = batched(members, f"x:{DTYPES[dtype]}[batch,1000]")
    (weight,) = weights.values()
    for member, own in zip(members, weight.view(2, 4, 1000), strict=True):
        assert torch.equal(own.view(bits), make(member).detach().contiguous().view(bits))


AS_WRITTEN: dict[str, Callable[[Made], Tensor]] = {
    "half-and-back": lambda m: (m.w * 0.1).half().float(),
    "bfloat16-and-back": lambda m: normalized(m).bfloat16().float(),
    "quantized": lambda m: torch.round(m.w / (m.w.abs().max() / 7)),
    "sign": lambda m: torch.sign(m.w - m.w.mean(1, keepdim=True)),
    "mask": lambda m: (normalized(m) > normalized(m).mean()).float(),
    "sorted": lambda m: m.w.gather(1, normalized(m).argsort(1)),
    "whole": lambda m: (normalized(m) * 100).int().float(),
    "steps": lambda m: torch.div(m.w, m.g, rounding_mode="floor"),
    "integers": lambda m: m.ints * 0.1,
    "bits": lambda m: normalized(m).view(torch.int32).bitwise_and(-256).view(torch.float32),
    "largest": lambda m: torch.nan_to_num(m.w / torch.zeros_like(m.g)),
}


@pytest.mark.parametrize("name", AS_WRITTEN)
def test_a_step_that_jumps_reads_what_the_member_computes(name: str) -> None:
    members, weights = packed(AS_WRITTEN[name])
    with torch.no_grad():
        for member, weight in zip(members, weights, strict=True):
            assert torch.equal(weight, AS_WRITTEN[name](member))


def test_behind_a_jump_arithmetic_is_rounded_once() -> None:
    """Quantized weights: the steps are the member's own, their scaling is not."""

    def make(m: Made) -> Tensor:
        scale = m.w.abs().max() / 7
        return torch.round(m.w / scale) * (m.g * m.g * m.g)

    members, weights = packed(make)
    with torch.no_grad():
        for member, weight in zip(members, weights, strict=True):
            steps = torch.round(member.w / (member.w.abs().max() / 7)).double()
            assert torch.equal(weight, (steps * member.g.double() ** 3).float())


MIXED: dict[str, Callable[[Made], Tensor]] = {
    "product": lambda m: m.w * m.low,
    "joined": lambda m: torch.cat([m.w[:2] * 2, m.low[2:].float()]),
    "integers": lambda m: m.w * m.ints + m.low,
    "chosen": lambda m: torch.where(m.ints > 0, m.w / 3, m.low),
    "matmul": lambda m: (m.low.float() @ m.w.t() / 7) @ m.w,
    "double": lambda m: (m.w.double() / 3 * m.low).float(),
    "summed-in": lambda m: m.w + m.low.sum(1, keepdim=True, dtype=torch.float32),
    "scalar": lambda m: m.w / m.g[0, 0].double(),
}


@pytest.mark.parametrize("name", MIXED)
def test_mixed_dtypes_are_rounded_once(name: str) -> None:
    members, weights = packed(MIXED[name])
    for member, weight in zip(members, weights, strict=True):
        assert weight.dtype == torch.float32
        with torch.no_grad():
            torch.testing.assert_close(weight, MIXED[name](member))
        if name not in ("summed-in", "matmul"):  # they name float32 themselves
            assert torch.equal(weight, rounded_once(MIXED[name], member))


def test_integer_weights_are_untouched() -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("ints", torch.randint(-(2**62), 2**62, (5,)))

        def forward(self, x: Tensor) -> Tensor:
            return x + (self.ints * 3 + 1)

    members = [Table().eval() for _ in range(2)]
    _, weights = batched(members, "x:int64[batch,5]")
    (weight,) = weights.values()
    assert torch.equal(weight.reshape(2, 5), torch.stack([member.ints * 3 + 1 for member in members]))
