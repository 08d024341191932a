"""Small dense linear algebra in ONNX against torch: general and positive definite matrices, singular ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ensexport.errors import ExportError
from tests.batching.runs import batched, onnx_run
from tests.targets.forms import Scaled, assert_form

L = torch.linalg


def general(*batch: int, size: int = 4) -> Tensor:
    """Well-conditioned matrices whose rows must be swapped: zeros on the diagonal."""
    return torch.eye(size).roll(1, 0) * 4 + torch.randn(*batch, size, size).clamp(-1, 1) * (1 - torch.eye(size))


def definite(x: Tensor) -> Tensor:
    return x @ x.transpose(-2, -1) + torch.eye(x.shape[-1])


FEEDS = [(general(3),), (general(1),)]


def check(function: Callable[[Tensor], object], folder: Path) -> None:
    assert_form(function, ("x:float32[batch,4,4]",), FEEDS, folder, scales=(1.0, -0.7), atol=1e-4, rtol=1e-4)


def test_determinants(tmp_path: Path) -> None:
    check(lambda x: (torch.det(x), *L.slogdet(x), torch.logdet(definite(x)), torch.logdet(x)), tmp_path)


def test_determinant_of_singular_matrices(tmp_path: Path) -> None:
    def function(x: Tensor) -> tuple[Tensor, ...]:
        y = torch.cat([x[:, :3], x[:, :1] + x[:, 1:2]], 1).round()
        return L.det(y * 0), L.det(torch.cat([y[..., :1] * 0, y[..., 1:]], -1))

    check(function, tmp_path)


def test_inverses_and_solutions(tmp_path: Path) -> None:
    def function(x: Tensor) -> tuple[Tensor, ...]:
        return (
            L.inv(x),
            torch.inverse(x[:, :1, 1:2] + 9.0),
            L.inv_ex(x)[0],
            L.solve(x, x[..., :2] * 3),
            L.solve(x, x[..., 0]),
            L.solve(x, x[:, :2], left=False),
            L.solve(x[:1], x[..., :2]),
        )

    check(function, tmp_path)


def test_matrix_powers_and_unrolled_members(tmp_path: Path) -> None:
    check(lambda x: (L.matrix_power(x, 3), L.matrix_power(definite(x), -2), L.solve(x[0], x[0])), tmp_path)


def test_cholesky_factors(tmp_path: Path) -> None:
    def function(x: Tensor) -> tuple[Tensor, ...]:
        factor = L.cholesky(definite(x))
        return (
            factor,
            L.cholesky(definite(x), upper=True),
            L.cholesky_ex(definite(x))[0],
            torch.cholesky_solve(x, factor),
            torch.cholesky_solve(x, factor.transpose(-2, -1), upper=True),
            torch.cholesky_inverse(factor),
        )

    check(function, tmp_path)


def test_triangular_solutions(tmp_path: Path) -> None:
    def function(x: Tensor) -> tuple[Tensor, ...]:
        a = definite(x)
        return (
            L.solve_triangular(a.tril(), x, upper=False),
            L.solve_triangular(a, x[..., :2], upper=True),
            L.solve_triangular(a / 8, x, upper=True, left=False, unitriangular=True),
        )

    check(function, tmp_path)


def test_density_of_a_multivariate_normal(tmp_path: Path) -> None:
    def function(x: Tensor) -> Tensor:
        normal = torch.distributions.MultivariateNormal(
            x[:, 0], scale_tril=L.cholesky(definite(x)), validate_args=False
        )
        return normal.log_prob(x[:, 1])

    check(function, tmp_path)


def test_large_matrices_are_refused_with_their_size(tmp_path: Path) -> None:
    members = [Scaled(L.inv, scale).eval() for scale in (1.0, 2.0)]
    graph, weights = batched(members, "x:float32[batch,40,40]")
    with pytest.raises(ExportError, match="written out up to 32 x 32 only, got 40 x 40"):
        onnx_run(graph, weights, tmp_path)
