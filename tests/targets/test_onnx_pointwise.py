"""Elementwise ops and scans in ONNX against torch: signed zeros, NaN, infinities, ties."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.targets.forms import assert_form

NAN, INF = float("nan"), float("inf")
EDGES = torch.tensor([0.0, -0.0, 1.5, -1.5, INF, -INF, NAN, 3e30, -2e-30])
PAIRS = torch.cartesian_prod(EDGES, EDGES)


def test_signs_lengths_and_numbers_beside_nan(tmp_path: Path) -> None:
    def function(x: Tensor) -> tuple[Tensor, ...]:
        a, b = x.unbind(-1)
        sign = torch.where(b.isnan(), 1.0, b)  # the sign of a NaN is not kept
        return (
            torch.copysign(a, sign),
            torch.copysign(a, -1.0),
            torch.fmax(a, b),
            torch.fmin(a, b),
            torch.hypot(torch.where(b.isinf(), 2.0, a), b),
            torch.copysign(x.nan_to_num(0, 3, -3).to(torch.int64), 2.0),
            +a,
        )

    assert_form(function, ("x:float32[batch,2]",), [(PAIRS,), (PAIRS[3:4],)], tmp_path)


def test_random_slopes_are_their_mean_outside_of_training(tmp_path: Path) -> None:
    assert_form(lambda x: F.rrelu(x, 0.1, 0.4), ("x:float32[batch,3]",), [(torch.randn(4, 3),)], tmp_path)


def test_elu_with_scales_inside_and_outside(tmp_path: Path) -> None:
    def function(x: Tensor) -> tuple[Tensor, ...]:
        return F.elu(x), F.elu(x, 0.5), torch.ops.aten.elu(x, 1.7, 1.1), torch.ops.aten.elu(x, 1.7, 1.1, 0.5)

    assert_form(function, ("x:float32[batch,3]",), [(torch.randn(4, 3),), (EDGES.view(3, 3),)], tmp_path)


def scans(x: Tensor, dim: int) -> tuple[Tensor, ...]:
    whole = x.nan_to_num(0, 1, -1).to(torch.int32)
    return (
        *x.cummax(dim),
        *x.cummin(dim),
        x.logcumsumexp(dim),
        x.cumprod(dim),
        whole.cummax(dim)[0],
        whole.cumprod(dim),
    )


def test_scans_along_a_dynamic_dim(tmp_path: Path) -> None:
    feeds = [((torch.randn(batch, seq, 3) * 3).round(),) for batch, seq in ((2, 5), (1, 7), (3, 1))]
    feeds[0][0][0, 2, 1] = NAN
    assert_form(lambda x: scans(x, 1), ("x:float32[batch,seq,3]",), feeds, tmp_path)


def test_scans_along_the_last_dim(tmp_path: Path) -> None:
    feeds = [(torch.randn(batch, 4, 6) * 5,) for batch in (2, 1)]
    feeds[0][0][0, 0, 0] = feeds[0][0][1, 2, 3] = -INF
    assert_form(lambda x: scans(x, -1), ("x:float32[batch,4,6]",), feeds, tmp_path, scales=(1.0, 2.0))
