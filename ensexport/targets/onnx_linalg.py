"""ONNX forms of small dense linear algebra: determinants, inverses, solvers, Cholesky factors.

torch's exporter (2.13) has none but for `det`, and that one is wrong for more than one matrix. The size of the matrices
is known when exporting, so each elimination is written out, one step a column, for all matrices of the batch at once.
Where torch raises for a singular matrix, the graph returns Inf or NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from ensexport.targets.onnx_values import constant, ints, like, op

aten = torch.ops.aten
MAX_SIZE = 32  # an elimination is about a dozen nodes a column


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """The translation table for `torch.onnx.export`."""
    return {
        **dict.fromkeys((aten.det.default, aten.linalg_det.default), _det),
        aten._linalg_det.default: _det_and_factors,
        **dict.fromkeys((aten.slogdet.default, aten.linalg_slogdet.default), _slogdet),
        aten._linalg_slogdet.default: _slogdet_and_factors,
        aten.logdet.default: _logdet,
        **dict.fromkeys((aten.inverse.default, aten.linalg_inv.default), _inv),
        aten.linalg_inv_ex.default: _inv_ex,
        aten.linalg_solve.default: _solve,
        aten.linalg_solve_ex.default: _solve_ex,
        aten._linalg_solve_ex.default: _solve_and_factors,
        **dict.fromkeys((aten.cholesky.default, aten.linalg_cholesky.default), _cholesky),
        aten.linalg_cholesky_ex.default: _cholesky_ex,
        aten.cholesky_solve.default: _cholesky_solve,
        aten.cholesky_inverse.default: _cholesky_inverse,
        aten.linalg_solve_triangular.default: _solve_triangular,
        aten.triangular_solve.default: _triangular_solve,
        aten._linalg_check_errors.default: _nothing,
    }


def _size(a: Any) -> int:
    size = a.shape[-1]
    if not isinstance(size, int) or size > MAX_SIZE:
        raise ValueError(
            f"ONNX has no operators for inverses, solvers and factors, and they are written out up to {MAX_SIZE} x "
            f"{MAX_SIZE} only, got {size} x {size}."
        )
    return size


def _nothing(*_: Any, **__: Any) -> None:
    """Checks of `info`: see the first lines of this file."""


def _transposed(x: Any, rank: int) -> Any:
    return op.Transpose(x, perm=[*range(rank - 2), rank - 1, rank - 2])


def _info(a: Any) -> Any:
    """Zeros in int32, one for each matrix: all went well."""
    corner = op.Squeeze(_column(_row(a, 0), 0), ints(-2, -1))
    return op.Cast(op.Less(corner, corner), to=ir.DataType.INT32)


def _column(x: Any, k: int) -> Any:
    """`(..., rows, 1)`."""
    return op.Slice(x, ints(k), ints(k + 1), ints(-1))


def _row(x: Any, k: int) -> Any:
    """`(..., 1, columns)`."""
    return op.Slice(x, ints(k), ints(k + 1), ints(-2))


def _unit(size: int, k: int) -> Any:
    """`(size, 1)`: true in row `k`."""
    return constant(np.arange(size)[:, None] == k)


def _pivoted(table: Any, size: int, k: int) -> tuple[Any, Any]:
    """Swap the largest of column `k` at or below the diagonal into row `k`.

    Returns:
        The table, and whether rows were swapped, `(..., 1, 1)`.
    """
    allowed = constant(np.arange(size)[:, None] >= k)
    candidates = op.Where(allowed, op.Abs(_column(table, k)), like(-1.0, table))
    place = op.ArgMax(candidates, axis=-2, keepdims=1)
    is_place = op.Equal(constant(np.arange(size, dtype=np.int64)[:, None]), place)
    best = op.ReduceSum(op.Where(is_place, table, like(0.0, table)), ints(-2), keepdims=1)
    swapped = op.Where(_unit(size, k), best, op.Where(is_place, _row(table, k), table))
    return swapped, op.Not(op.Equal(place, ints(k)))


def _determinant(a: Any) -> tuple[Any, Any]:
    """Signs of the swaps `(..., 1, 1)` and the pivots `(..., 1, n)`, by Gauss's elimination."""
    size = _size(a)
    one, minus = like(1.0, a), like(-1.0, a)
    sign: Any = None
    pivots = []
    for k in range(size):
        if k < size - 1:
            a, is_swapped = _pivoted(a, size, k)
            factor = op.Where(is_swapped, minus, one)
            sign = factor if sign is None else op.Mul(sign, factor)
        row = _row(a, k)
        pivot = _column(row, k)
        pivots.append(pivot)
        if k < size - 1:
            below = op.Where(constant(np.arange(size)[:, None] > k), _column(a, k), like(0.0, a))
            nonzero = op.Where(op.Equal(pivot, like(0.0, a)), one, pivot)  # a zero pivot has zeros below it
            a = op.Sub(a, op.Mul(op.Div(below, nonzero), row))
    return (one if sign is None else sign), op.Concat(*pivots, axis=-1)


def _det(a: Any) -> Any:
    sign, pivots = _determinant(a)
    product = op.Mul(sign, op.ReduceProd(pivots, ints(-1), keepdims=1))
    return op.Squeeze(product, ints(-2, -1))


def _slogdet(a: Any) -> tuple[Any, Any]:
    sign, pivots = _determinant(a)
    signs = op.Mul(sign, op.ReduceProd(op.Sign(pivots), ints(-1), keepdims=1))
    size = op.ReduceSum(op.Log(op.Abs(pivots)), ints(-1), keepdims=1)
    return op.Squeeze(signs, ints(-2, -1)), op.Squeeze(size, ints(-2, -1))


def _logdet(a: Any) -> Any:
    """NaN where the determinant is negative."""
    sign, size = _slogdet(a)
    return op.Where(op.Less(sign, like(0.0, sign)), like(np.nan, size), size)


def _det_and_factors(a: Any) -> tuple[Any, Any, Any]:
    return _det(a), a, a


def _slogdet_and_factors(a: Any) -> tuple[Any, Any, Any, Any]:
    return (*_slogdet(a), a, a)


def _eliminated(a: Any, b: Any, size: int) -> Any:
    """`a (..., n, n)`, `b (..., n, m)` -> the solution of `a x = b`, by Gauss and Jordan's elimination."""
    table = op.Concat(a, b, axis=-1)
    for k in range(size):
        if k < size - 1:
            table, _ = _pivoted(table, size, k)
        row = _row(table, k)
        row = op.Div(row, _column(row, k))
        table = op.Where(_unit(size, k), row, op.Sub(table, op.Mul(_column(table, k), row)))
    return op.Slice(table, ints(size), ints(2**62), ints(-1))


def _together(a: Any, b: Any) -> tuple[Any, Any]:
    """Give both the same batch dims."""
    if [str(size) for size in a.shape[:-2]] == [str(size) for size in b.shape[:-2]]:
        return a, b
    wide = op.Expand(b, op.Concat(op.Shape(a, end=-2), op.Shape(b, start=-2), axis=0))
    return op.Expand(a, op.Concat(op.Shape(wide, end=-2), op.Shape(a, start=-2), axis=0)), wide


def _identity(a: Any) -> Any:
    return op.Expand(like(np.eye(_size(a)), a), op.Shape(a))


def _inv(a: Any) -> Any:
    return _eliminated(a, _identity(a), _size(a))


def _inv_ex(a: Any, check_errors: bool = False) -> tuple[Any, Any]:
    return _inv(a), _info(a)


def _solve(a: Any, b: Any, left: bool = True) -> Any:
    """`b` may be a vector a matrix, as torch reads it."""
    size, rank = _size(a), max(len(a.shape), len(b.shape))
    is_vector = len(b.shape) == 1 or (
        len(b.shape) == len(a.shape) - 1 and [str(dim) for dim in b.shape] == [str(dim) for dim in a.shape[:-1]]
    )
    if is_vector:
        column = op.Unsqueeze(b, ints(-1))
        if len(b.shape) == 1 < len(a.shape) - 1:
            column = op.Expand(column, op.Concat(op.Shape(a, end=-2), op.Shape(column), axis=0))
        return op.Squeeze(_eliminated(a, column, size), ints(-1))
    a, b = _together(a, b)
    if left:
        return _eliminated(a, b, size)
    return _transposed(_eliminated(_transposed(a, rank), _transposed(b, rank), size), rank)


def _solve_ex(a: Any, b: Any, left: bool = True, check_errors: bool = False) -> tuple[Any, Any]:
    return _solve(a, b, left), _info(a)


def _solve_and_factors(a: Any, b: Any, left: bool = True, check_errors: bool = False) -> tuple[Any, Any, Any, Any]:
    info = _info(a)
    return _solve(a, b, left), a, info, info


def _cholesky(a: Any, upper: bool = False) -> Any:
    """The factor of a positive definite matrix, of which one triangle is read; NaN for another matrix."""
    size, rank = _size(a), len(a.shape)
    rest = _transposed(a, rank) if upper else a
    columns = []
    for k in range(size):
        column = _column(rest, k)
        is_read = constant(np.arange(size)[:, None] >= k)
        column = op.Where(is_read, op.Div(column, op.Sqrt(_row(column, k))), like(0.0, a))
        columns.append(column)
        if k < size - 1:
            rest = op.Sub(rest, op.Mul(column, _transposed(column, rank)))
    factor = op.Concat(*columns, axis=-1)
    return _transposed(factor, rank) if upper else factor


def _cholesky_ex(a: Any, upper: bool = False, check_errors: bool = False) -> tuple[Any, Any]:
    return _cholesky(a, upper), _info(a)


def _substituted(a: Any, b: Any, size: int, *, upper: bool, unitriangular: bool = False) -> Any:
    """The solution of `a x = b` for a triangular `a`, row by row."""
    rows: dict[int, Any] = {}
    for k in reversed(range(size)) if upper else range(size):
        column, row = _column(a, k), _row(b, k)
        rows[k] = row if unitriangular else op.Div(row, _row(column, k))
        b = op.Sub(b, op.Mul(column, rows[k]))
    return op.Concat(*(rows[k] for k in range(size)), axis=-2)


def _solve_triangular(a: Any, b: Any, upper: bool, left: bool = True, unitriangular: bool = False) -> Any:
    size, rank = _size(a), max(len(a.shape), len(b.shape))
    a, b = _together(a, b)
    if left:
        return _substituted(a, b, size, upper=upper, unitriangular=unitriangular)
    a, b = _transposed(a, rank), _transposed(b, rank)
    return _transposed(_substituted(a, b, size, upper=not upper, unitriangular=unitriangular), rank)


def _triangular_solve(
    b: Any, a: Any, upper: bool = True, transpose: bool = False, unitriangular: bool = False
) -> tuple[Any, Any]:
    size, rank = _size(a), max(len(a.shape), len(b.shape))
    wide, b = _together(a, b)
    if transpose:
        wide, upper = _transposed(wide, rank), not upper
    return _substituted(wide, b, size, upper=upper, unitriangular=unitriangular), a


def _cholesky_solve(b: Any, factor: Any, upper: bool = False) -> Any:
    size, rank = _size(factor), max(len(factor.shape), len(b.shape))
    return _factor_solved(*_together(factor, b), size, rank, upper)


def _factor_solved(factor: Any, b: Any, size: int, rank: int, upper: bool) -> Any:
    other = _transposed(factor, rank)
    lower, raised = (other, factor) if upper else (factor, other)
    return _substituted(raised, _substituted(lower, b, size, upper=False), size, upper=True)


def _cholesky_inverse(factor: Any, upper: bool = False) -> Any:
    return _factor_solved(factor, _identity(factor), _size(factor), len(factor.shape), upper)
