"""What a checkpoint may hold beside tensors: numpy numbers and arrays, paths, training options. None of it runs code.

A trainer saves more than weights. numpy's own functions cannot be let in as they are: `scalar` and
`ndarray.__setstate__` unpickle what they are given where the dtype is `object`. So each name stands for a function
or class of ours, which takes plain data of plain dtypes and nothing else.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable
from pathlib import PurePath, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np

_PLAIN_DTYPE = re.compile(r"[biufc](?:1|2|4|8|16|32)|\?|[SU]\d{1,6}")
_NO_FIELDS = (None, None, None, -1, -1, 0)
_MAX_DIMS = 32


class NotPlainError(ValueError):
    """A checkpoint gave one of the functions here something else than plain data; says what."""


class PlainDtype:
    """Stands for `numpy.dtype`: numbers, bools and texts of a fixed length."""

    def __init__(self, code: object, align: object = False, copy: object = True) -> None:
        if not (isinstance(code, str) and _PLAIN_DTYPE.fullmatch(code)):
            raise NotPlainError(f"numpy.dtype({_show(code)})")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: object) -> None:
        """Take numpy's state: version, byte order, and that there are no fields."""
        if not (isinstance(state, tuple) and len(state) == 8 and state[0] == 3 and isinstance(state[1], str)):
            raise NotPlainError("numpy.dtype with an unknown state")
        plain = all(item is None or type(item) is int for item in state[2:5]) and state[2:5] == _NO_FIELDS[:3]
        if state[1] not in {"<", ">", "|", "="} or not plain or state[7] not in {0, 8}:
            raise NotPlainError("numpy.dtype with fields")
        self.dtype = self.dtype.newbyteorder("<" if state[1] == "<" else ">" if state[1] == ">" else "=")


class PlainArray(np.ndarray[Any, Any]):
    """Stands for `numpy.ndarray`: empty until its state is set, and then of a plain dtype and the right size."""

    def __new__(cls, *_: object) -> PlainArray:
        """Make an empty one, whatever shape is asked for."""
        return np.ndarray.__new__(cls, (0,), np.int8)

    def __setstate__(self, state: Any) -> None:
        """Take numpy's state: version, shape, dtype, order, and bytes."""
        if not (isinstance(state, tuple) and len(state) == 5 and state[0] == 1):
            raise NotPlainError("numpy.ndarray with an unknown state")
        _, shape, dtype, fortran, data = state
        plain = isinstance(dtype, PlainDtype) and isinstance(data, bytes) and type(fortran) is bool
        if not plain or not _is_shape(shape) or math.prod(shape) * dtype.dtype.itemsize != len(data):
            raise NotPlainError("numpy.ndarray with a state that does not fit its data")
        super().__setstate__((1, shape, dtype.dtype, fortran, data))


def rebuild_scalar(dtype: object, data: object = b"") -> object:
    """Stands for `numpy.core.multiarray.scalar`: a plain number, bool or text of Python."""
    if not (isinstance(dtype, PlainDtype) and isinstance(data, bytes) and len(data) == dtype.dtype.itemsize > 0):
        raise NotPlainError("numpy.core.multiarray.scalar with other than the bytes of one number")
    value: object = np.frombuffer(data, dtype.dtype)[0].item()
    return value


def rebuild_array(kind: object, shape: object = (0,), code: object = b"b") -> PlainArray:
    """Stands for `numpy.core.multiarray._reconstruct`: an array that waits for its state."""
    if kind is not PlainArray:
        raise NotPlainError("numpy.core.multiarray._reconstruct of another class")
    return PlainArray()


def empty_bytes(*arguments: object) -> bytes:
    """Stands for `bytes`, which pickle's protocol 2 calls without arguments for `b''`."""
    if arguments:
        raise NotPlainError("builtins.bytes with arguments")
    return b""


def posix_path(*parts: object) -> PurePath:
    """Stands for the POSIX classes of `pathlib`; a path as a text, that opens nothing."""
    return PurePosixPath(*_texts(parts))


def windows_path(*parts: object) -> PurePath:
    """Stands for the Windows classes of `pathlib`."""
    return PureWindowsPath(*_texts(parts))


ALLOWED: dict[str, Callable[..., Any]] = {
    "argparse.Namespace": argparse.Namespace,  # the training options of timm and torchvision; only holds attributes
    "builtins.bytes": empty_bytes,
    "numpy.dtype": PlainDtype,
    "numpy.ndarray": PlainArray,
    **{f"numpy.{core}.multiarray.scalar": rebuild_scalar for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray._reconstruct": rebuild_array for core in ("core", "_core")},
    **{
        f"{home}.{kind}": posix_path
        for home in ("pathlib", "pathlib._local")
        for kind in ("PosixPath", "PurePosixPath")
    },
    **{f"{home}.{kind}": posix_path for home in ("pathlib", "pathlib._local") for kind in ("Path", "PurePath")},
    **{
        f"{home}.{kind}": windows_path
        for home in ("pathlib", "pathlib._local")
        for kind in ("WindowsPath", "PureWindowsPath")
    },
}
"""The name in a pickle -> what is called in its place. `pathlib._local` is how Python 3.13 spells it."""


def safe_globals() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """Return the list in the form that `torch.serialization.safe_globals` takes."""
    return [(function, name) for name, function in ALLOWED.items()]


def _texts(parts: tuple[object, ...]) -> list[str]:
    texts = [part for part in parts if isinstance(part, str)]
    if len(texts) != len(parts):
        raise NotPlainError("pathlib.Path of something else than texts")
    return texts


def _is_shape(shape: object) -> bool:
    return (
        isinstance(shape, tuple)
        and len(shape) <= _MAX_DIMS
        and all(type(size) is int and 0 <= size < 2**40 for size in shape)
    )


def _show(value: object) -> str:
    return repr(value[:20]) if isinstance(value, str) else f"a {type(value).__name__}"
