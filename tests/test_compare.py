import math

import ml_dtypes
import numpy as np
import pytest

from ensexport.compare import compare_arrays, count_other_top1, is_exact

NAN, INF = math.nan, math.inf


def array(*values, dtype=np.float32):
    return np.array(values, dtype=dtype)


def test_the_largest_difference_is_found_and_named():
    found = compare_arrays(np.array([[1.0, 2.0], [3.0, -4.0]]), np.array([[1.0, 2.5], [3.0, -4.25]]))
    assert (found.max_abs, found.scale, found.index, found.expected, found.actual) == (0.5, 4.0, (0, 1), 2.0, 2.5)
    assert found.max_rel == 0.125


EQUAL = {
    "equal": (array(1, 2), array(1, 2)),
    "NaN at the same place": (array(NAN, 2), array(NAN, 2)),
    "Inf of the same sign": (array(INF, -INF), array(INF, -INF)),
    "all NaN": (array(NAN, NAN), array(NAN, NAN)),
    "zeros of both signs": (array(0.0), array(-0.0)),
    "empty": (np.zeros((0, 3)), np.zeros((0, 3))),
    "empty integers": (np.zeros((0, 3), np.int64), np.zeros((0, 3), np.int64)),
    "0-d": (np.array(2.0), np.array(2.0)),
    "0-d integer": (np.array(2), np.array(2)),
    "booleans": (array(True, False, dtype=bool), array(True, False, dtype=bool)),
    "another dtype, same values": (array(1.5, 2), array(1.5, 2, dtype=np.float64)),
    "bfloat16": (array(1.5, dtype=ml_dtypes.bfloat16), array(1.5, dtype=ml_dtypes.bfloat16)),
    "float16 infinity": (array(INF, dtype=np.float16), array(INF, dtype=np.float16)),
    "complex": (array(1 + 2j, dtype=np.complex64), array(1 + 2j, dtype=np.complex64)),
    "complex with NaN": (array(complex(NAN, 2), dtype=complex), array(complex(NAN, 2), dtype=complex)),
}


@pytest.mark.parametrize(("expected", "actual"), EQUAL.values(), ids=EQUAL)
def test_equal_arrays_have_no_difference(expected, actual):
    found = compare_arrays(expected, actual)
    assert found.max_abs == found.max_rel == 0.0
    assert found.scale > 0


INFINITELY_DIFFERENT = {
    "NaN only in the reference": (array(1, NAN), array(1, 2), (1,), NAN, 2),
    "NaN only in the other": (array(1, 2), array(1, NAN), (1,), 2, NAN),
    "Inf of the other sign": (array(INF), array(-INF), (0,), INF, -INF),
    "Inf only in the reference": (array(INF, 1), array(3e38, 1), (0,), INF, pytest.approx(3e38)),
    "Inf only in the other": (array(3, 1), array(3, INF), (1,), 1, INF),
    "NaN against Inf": (array(NAN), array(INF), (0,), NAN, INF),
    "0-d": (np.array(NAN), np.array(0.0), (), NAN, 0),
    "bfloat16": (array(NAN, dtype=ml_dtypes.bfloat16), array(0, dtype=ml_dtypes.bfloat16), (0,), NAN, 0),
    "imaginary part": (array(1 + 2j, dtype=complex), array(complex(1, NAN), dtype=complex), (0, 1), 2, NAN),
}


@pytest.mark.parametrize(
    ("expected", "actual", "index", "left", "right"), INFINITELY_DIFFERENT.values(), ids=INFINITELY_DIFFERENT
)
def test_what_is_not_finite_on_one_side_only_is_an_infinite_difference(expected, actual, index, left, right):
    found = compare_arrays(expected, actual)
    assert found.max_abs == found.max_rel == INF
    assert found.index == index
    assert found.expected == pytest.approx(left, nan_ok=True)
    assert found.actual == pytest.approx(right, nan_ok=True)


@pytest.mark.parametrize(
    "shapes", [((2, 3), (3, 2)), ((2,), (2, 1)), ((), (1,)), ((0, 2), (0, 3)), ((3,), (1,))], ids=str
)
def test_other_shapes_are_infinitely_different_and_never_broadcast(shapes):
    found = compare_arrays(np.zeros(shapes[0]), np.zeros(shapes[1]))
    assert found.max_rel == INF
    assert found.index == ()
    assert math.isnan(found.expected)


INTEGERS = {
    "above 2**53": (2**53, 2**53 + 1, np.int64, 1.0),
    "near the top": (2**63 - 1, 2**63 - 2, np.int64, 1.0),
    "from end to end": (-(2**63), 2**63 - 1, np.int64, 2.0**64),
    "unsigned 64 bits": (2**64 - 1, 2**64 - 2, np.uint64, 1.0),
    "unsigned bytes do not wrap": (0, 255, np.uint8, 255.0),
    "signed bytes do not wrap": (-128, 127, np.int8, 255.0),
    "booleans": (True, False, bool, 1.0),
}


@pytest.mark.parametrize(("left", "right", "dtype", "distance"), INTEGERS.values(), ids=INTEGERS)
def test_integers_are_compared_exactly(left, right, dtype, distance):
    found = compare_arrays(np.array([5, left], dtype), np.array([5, right], dtype))
    assert found.max_abs == distance
    assert found.max_rel > 0
    assert found.index == (1,)
    assert (found.expected, found.actual) == (left, right)
    assert type(found.expected) is int


def test_integers_of_two_dtypes_are_compared_by_value():
    assert compare_arrays(array(3, dtype=np.int32), array(3, dtype=np.int64)).max_abs == 0
    assert compare_arrays(array(2**63, dtype=np.uint64), array(2, dtype=np.int64)).max_abs == 2.0**63 - 2
    assert compare_arrays(array(1, dtype=np.int64), array(1.5)).max_abs == 0.5


def test_a_reference_of_zeros_has_scale_1():
    found = compare_arrays(array(0, 0), array(0, 1e-3))
    assert found.scale == 1.0
    assert found.max_rel == pytest.approx(1e-3)
    assert compare_arrays(array(0, dtype=np.int64), array(2, dtype=np.int64)).max_rel == 2.0


def test_the_scale_is_the_largest_finite_reference_value():
    assert compare_arrays(array(-8, INF, NAN), array(-8, INF, NAN)).scale == 8.0
    assert compare_arrays(array(-7, 3, dtype=np.int64), array(-7, 3, dtype=np.int64)).scale == 7.0


def test_a_difference_too_large_for_a_float_is_infinite():
    assert compare_arrays(array(1e308, dtype=np.float64), array(-1e308, dtype=np.float64)).max_abs == INF


@pytest.mark.parametrize(
    ("dtype", "exact"),
    [("int64", True), ("uint8", True), ("bool", True), ("float32", False), (ml_dtypes.bfloat16, False), ("c8", False)],
    ids=str,
)
def test_integers_and_booleans_are_exact(dtype, exact):
    assert is_exact(np.dtype(dtype)) is exact


def test_inputs_with_another_largest_class_are_counted():
    expected = np.array([[1, 2, 3], [3, 2, 1], [1, 1, 0], [NAN, 0, 1]])
    actual = np.array([[1, 3, 2], [3, 2, 1], [0, 1, 0], [NAN, 1, 0]], dtype=ml_dtypes.bfloat16)
    assert count_other_top1(expected, actual, -1) == (2, 4)
    assert count_other_top1(expected.T[None], actual.T[None].astype(np.float32), 1) == (2, 4)
