"""Comparing one output with its reference: names first, then shapes, then values. NumPy only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]


@dataclass(frozen=True)
class Difference:
    """How far an array is from its reference.

    Attributes:
        max_abs: Largest absolute difference; infinite where NaN or Inf are in other places or shapes differ.
        scale: Largest finite reference value, or 1 when that is 0: what `max_rel` is a share of.
        index: Where the largest difference is.
        expected: The reference value there.
        actual: The compared value there.
    """

    max_abs: float
    scale: float
    index: tuple[int, ...]
    expected: float
    actual: float

    @property
    def max_rel(self) -> float:
        """`max_abs / scale`."""
        return self.max_abs / self.scale


def compare_arrays(expected: Array, actual: Array) -> Difference:
    """Compare `actual` with `expected`.

    NaN equals NaN and Inf equals Inf of the same sign; anything else non-finite is an infinite difference.
    """
    if expected.shape != actual.shape:
        return Difference(float("inf"), 1.0, (), float("nan"), float("nan"))
    if expected.size == 0:
        return Difference(0.0, 1.0, (), 0.0, 0.0)
    left, right = _as_float64(expected), _as_float64(actual)
    finite = np.isfinite(left) & np.isfinite(right)
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.where(finite, np.abs(left - right), np.inf)
        difference[(left == right) | (np.isnan(left) & np.isnan(right))] = 0.0
    where = np.unravel_index(int(np.argmax(difference)), difference.shape)
    magnitude = np.abs(left[np.isfinite(left)])
    scale = float(magnitude.max()) if magnitude.size and magnitude.max() > 0 else 1.0
    index = tuple(int(i) for i in where)
    return Difference(float(difference[where]), scale, index, float(left[where]), float(right[where]))


def _as_float64(array: Array) -> npt.NDArray[np.float64]:
    """Values as float64; int64 values above 2**53 would round, so those are compared through their difference."""
    return np.atleast_1d(array).astype(np.float64).reshape(array.shape)


def is_exact(dtype: np.dtype[np.generic]) -> bool:
    """True for integers and booleans, where any difference is an error."""
    return dtype.kind in "biu"
