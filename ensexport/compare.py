"""Comparing one output with its reference: names first, then shapes, then values. NumPy only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]


@dataclass(frozen=True)
class Difference:
    """How far an array is from its reference.

    Attributes:
        max_abs: Largest absolute difference; infinite where NaN or Inf are in other places or shapes differ.
        scale: Largest finite reference value, or 1 when that is 0: what `max_rel` is a share of.
        index: Where the largest difference is; empty where shapes differ.
        expected: The reference value there; NaN where shapes differ.
        actual: The compared value there; likewise.
    """

    max_abs: float
    scale: float
    index: tuple[int, ...]
    expected: float | int
    actual: float | int

    @property
    def max_rel(self) -> float:
        """`max_abs / scale`."""
        return self.max_abs / self.scale


def compare_arrays(expected: Array, actual: Array) -> Difference:
    """Compare `actual` with `expected`, by value: dtypes may differ.

    NaN equals NaN and Inf equals Inf of the same sign; anything else non-finite is an infinite difference.
    Two integer or boolean arrays are compared exactly, floats in float64. A complex array counts as one of floats
    with a last axis of size 2, the real and the imaginary part.
    """
    if expected.shape != actual.shape:
        return Difference(float("inf"), 1.0, (), float("nan"), float("nan"))
    if expected.size == 0:
        return Difference(0.0, 1.0, (), 0.0, 0.0)
    if is_exact(expected.dtype) and is_exact(actual.dtype):
        return _compare_integers(expected, actual)
    if "c" in (expected.dtype.kind, actual.dtype.kind):
        expected, actual = _parts(expected), _parts(actual)
    return _compare_floats(expected.astype(np.float64), actual.astype(np.float64))


def compare_members(expected: Array, actual: Array) -> list[Difference]:
    """Compare member by member, `(N, ...)` each: the same as `compare_arrays` of each slice, in one pass over all."""
    pairs = [(expected[k], actual[k]) for k in range(len(expected))]
    kinds = {expected.dtype.kind, actual.dtype.kind}
    if expected.shape != actual.shape or expected.size == 0 or kinds != {"f"}:
        return [compare_arrays(left, right) for left, right in pairs]
    left, right = (array.astype(np.float64).reshape(len(array), -1) for array in (expected, actual))
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.abs(left - right)
    largest = difference.argmax(axis=1)  # the first NaN, if there is one
    rows = np.arange(len(left))
    worst, scale = difference[rows, largest], np.abs(left).max(axis=1)
    if not (np.isfinite(worst).all() and np.isfinite(scale).all()):
        return [compare_arrays(*pair) for pair in pairs]
    shape = expected.shape[1:]
    return [
        Difference(float(worst[k]), float(scale[k]) or 1.0, _index(largest[k], shape), float(a), float(b))
        for k, (a, b) in enumerate(zip(left[rows, largest], right[rows, largest], strict=True))
    ]


def count_other_top1(expected: Array, actual: Array, axis: int) -> tuple[int, int]:
    """Count the inputs whose largest class, the first of equal ones, is another.

    Args:
        expected: Class scores.
        actual: Class scores of the same shape.
        axis: The axis of the classes.

    Returns:
        How many differ, and how many there are.
    """
    other = expected.astype(np.float64).argmax(axis) != actual.astype(np.float64).argmax(axis)
    return int(other.sum()), int(other.size)


def _compare_floats(left: npt.NDArray[np.float64], right: npt.NDArray[np.float64]) -> Difference:
    finite = np.isfinite(left) & np.isfinite(right)
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.where(finite, np.abs(left - right), np.inf)
    difference[(left == right) | (np.isnan(left) & np.isnan(right))] = 0.0
    index = _largest(difference)
    magnitude = np.abs(left[np.isfinite(left)])
    scale = float(magnitude.max()) if magnitude.size and magnitude.max() > 0 else 1.0
    return Difference(float(difference[index]), scale, index, float(left[index]), float(right[index]))


def _compare_integers(left: Array, right: Array) -> Difference:
    """Without a detour through float64, which holds no more than 53 bits: 2**53 and 2**53 + 1 are not equal."""
    same = left == right
    index = (0,) * left.ndim
    distance = 0
    if not same.all():
        wide = np.object_ if np.uint64 in (left.dtype, right.dtype) else np.int64
        a: npt.NDArray[Any] = left.astype(wide)
        b: npt.NDArray[Any] = right.astype(wide)
        difference = np.where(a > b, a - b, b - a)
        # The distance of two int64 values may need 64 bits: it wraps into the sign, and the bits are still right.
        index = _largest(difference if wide is np.object_ else difference.view(np.uint64))
        distance = abs(int(left[index]) - int(right[index]))
    magnitude = max(abs(int(left.max())), abs(int(left.min())))
    return Difference(float(distance), float(magnitude or 1), index, int(left[index]), int(right[index]))


def _largest(difference: npt.NDArray[np.generic]) -> tuple[int, ...]:
    return _index(int(np.argmax(difference)), difference.shape)


def _index(position: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(int(position), shape))


def _parts(array: Array) -> Array:
    return np.ascontiguousarray(array.astype(np.complex128)[..., None]).view(np.float64)


def is_exact(dtype: np.dtype[np.generic]) -> bool:
    """True for integers and booleans, where any difference is an error."""
    return dtype.kind in "biu"
