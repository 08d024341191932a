import io
import pathlib

import numpy as np
import pytest
import torch

from ensexport.members.allowed import (
    ALLOWED,
    NotPlainError,
    PlainArray,
    PlainDtype,
    empty_bytes,
    posix_path,
    rebuild_array,
    rebuild_scalar,
    safe_globals,
    windows_path,
)

STATE = (3, "<", None, None, None, -1, -1, 0)


def reloaded(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    with torch.serialization.safe_globals(safe_globals()):
        return torch.load(buffer, weights_only=True)


@pytest.mark.parametrize(
    "value",
    [np.float64(0.5), np.float32(0.5), np.int64(-3), np.uint8(7), np.bool_(True), np.complex64(1 + 2j), np.str_("ab")],
    ids=lambda value: type(value).__name__,
)
def test_numpy_numbers_become_plain_ones(value):
    found = reloaded({"a": value})["a"]
    assert found == value.item()
    assert type(found) is type(value.item())


@pytest.mark.parametrize("dtype", ["f8", ">f4", "i2", "?", "c16", "U3", "S2", "<u4"])
@pytest.mark.parametrize("shape", [(2, 3), (0, 3), ()], ids=str)
def test_numpy_arrays_come_back_equal(dtype, shape):
    array = np.zeros(shape, dtype)
    if shape == (2, 3):
        array[:] = np.arange(6).reshape(shape).astype(dtype)
    found = reloaded([array])[0]
    assert isinstance(found, np.ndarray)
    assert found.dtype == array.dtype.newbyteorder("=")
    assert np.array_equal(found, array)


def test_fortran_order_is_kept():
    array = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    assert np.array_equal(reloaded([array])[0], array)


def test_paths_come_back_as_texts_that_open_nothing():
    assert reloaded(pathlib.Path("runs/a")) == pathlib.PurePosixPath("runs/a")
    assert type(reloaded(pathlib.Path("runs/a"))) is pathlib.PurePosixPath
    assert windows_path("C:\\", "a") == pathlib.PureWindowsPath("C:\\a")
    assert ALLOWED["pathlib._local.PosixPath"] is posix_path, "how Python 3.13 spells it"
    assert ALLOWED["pathlib._local.WindowsPath"] is windows_path


def test_empty_bytes_come_back():
    assert reloaded([b"", b"ab"]) == [b"", b"ab"]


@pytest.mark.parametrize(
    "code", ["O", "O8", "V8", "f3x", "", "f8,f8", "i4, O", 8, None, "U9999999", "M8[ns]"], ids=repr
)
def test_other_dtypes_are_refused(code):
    with pytest.raises(NotPlainError, match=r"numpy\.dtype"):
        PlainDtype(code)


@pytest.mark.parametrize(
    ("state", "what"),
    [
        (None, "unknown state"),
        ((4, *STATE[1:]), "unknown state"),
        ((3, "<", None, ("a",), {"a": 1}, -1, -1, 0), "with fields"),
        ((3, "<", (1, 2), None, None, -1, -1, 0), "with fields"),
        ((3, "O", None, None, None, -1, -1, 0), "with fields"),
        ((3, "|", None, None, None, -1, -1, 63), "with fields"),
    ],
    ids=["none", "version", "fields", "subarray", "order", "flags"],
)
def test_dtypes_with_more_than_an_order_are_refused(state, what):
    with pytest.raises(NotPlainError, match=what):
        PlainDtype("f8").__setstate__(state)


@pytest.mark.parametrize(
    "state",
    [None, (1, (2,), PlainDtype("f8"), False, bytes(15)), (1, (-2,), PlainDtype("f8"), False, b""),
     (1, (2,), np.dtype("O"), False, bytes(16)), (1, (2,), PlainDtype("f8"), False, [1, 2]),
     (1, (1,) * 33, PlainDtype("i1"), False, b"x"), (1, [2], PlainDtype("i1"), False, b"xy"),
     (2, (2,), PlainDtype("i1"), False, b"xy")],
    ids=["none", "cut", "negative", "object", "objects", "33 dimensions", "shape is a list", "version"],
)  # fmt: skip
def test_arrays_whose_state_does_not_fit_are_refused(state):
    with pytest.raises(NotPlainError, match=r"numpy\.ndarray with"):
        PlainArray().__setstate__(state)


def test_a_class_takes_no_memory_that_no_one_wrote():
    assert PlainArray((10**6, 10**6), object).shape == (0,)
    assert PlainArray((10**6, 10**6), object).dtype == np.int8


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: rebuild_scalar(np.dtype("O"), b"cos\nsystem\n."), "scalar"),
        (lambda: rebuild_scalar(PlainDtype("f8"), bytes(7)), "scalar"),
        (lambda: rebuild_scalar(PlainDtype("f8")), "scalar"),
        (lambda: rebuild_array(dict, (0,), b"b"), "_reconstruct of another class"),
        (lambda: posix_path("a", 1), "pathlib"),
        (lambda: empty_bytes(10**9), "builtins.bytes"),
    ],
    ids=["object", "too short", "no bytes", "class", "path", "bytes"],
)
def test_other_than_plain_data_is_refused(make, what):
    with pytest.raises(NotPlainError, match=what):
        make()
