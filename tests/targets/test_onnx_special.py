"""Special functions in ONNX against torch: near zero, far out, at poles and ends."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.targets.forms import assert_form

INF = float("inf")
WIDE = torch.cat(
    [torch.linspace(-8.3, 8.2, 200), torch.tensor([1e-6, -1e-6, 0.5, 1, 2, 3, 1e2, 1e6, INF]), -torch.arange(1.0, 5.0)]
)
UNIT = torch.cat([torch.linspace(-1, 1, 401), torch.tensor([1e-7, -1e-7, 0.85, 0.999999, -0.9999999, 1.5, 1e-30])])


def special(x: Tensor) -> tuple[Tensor, ...]:
    """`x (batch, 2)`: any number, and one around the unit interval."""
    wide, unit = x.unbind(-1)
    return torch.lgamma(wide), torch.digamma(wide), torch.erfinv(unit), torch.special.ndtri(unit.abs())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_special_functions(dtype: str, tmp_path: Path) -> None:
    size = max(len(WIDE), len(UNIT))
    points = [torch.cat([line, line[:1].expand(size - len(line))]) for line in (WIDE, UNIT)]
    x = torch.stack(points, -1).to(getattr(torch, dtype))
    tolerance = 2e-6 if dtype == "float32" else 1e-10
    options = {"scales": (1.0, 1.0), "atol": tolerance, "rtol": tolerance}
    assert_form(special, (f"x:{dtype}[batch,2]",), [(x,), (x[:1],)], tmp_path, **options)  # type: ignore[arg-type]


def test_special_functions_of_integers(tmp_path: Path) -> None:
    function = lambda x: torch.lgamma(x.to(torch.int64)) + torch.digamma(x.to(torch.int64))  # noqa: E731
    assert_form(function, ("x:float32[batch]",), [(torch.arange(1.0, 30.0),)], tmp_path, scales=(1.0, 2.0))


def test_density_of_student_t(tmp_path: Path) -> None:
    def density(x: Tensor) -> Tensor:
        df, loc, scale = x.chunk(3, -1)
        return torch.distributions.StudentT(df.exp() + 2, loc, scale.exp()).log_prob(x[..., :2])

    feed = torch.randn(5, 6)
    assert_form(density, ("x:float32[batch,6]",), [(feed,), (feed[:1],)], tmp_path)
