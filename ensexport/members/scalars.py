"""Anything a checkpoint can hold -> flat plain values: bounded in number and length, and nothing in it is called.

What is read here comes out of files that others wrote, and with `--allow-pickle` may be objects of any class. So only
exact, known types are looked into, a structure is walked level by level up to a number of entries and a depth (a dict
that holds itself ends there), and a long text is cut, with a digest so that two long texts still compare.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from typing import cast

import numpy as np
import torch

Scalar = bool | int | float | str | None

MAX_TEXT = 200
"""Characters kept of a text."""
MAX_NAME = 120
"""Characters kept of a name."""
_MAX_INTEGER = 2**63
_PLAIN_TENSORS = (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer)


class NotPlainError(Exception):
    """A value is no scalar; never leaves this package's readers."""


def plain_scalar(value: object) -> Scalar:
    """Return the value as one of Python's own scalars.

    Args:
        value: A bool, int, float, text or None, a NumPy scalar, or a tensor or array without dimensions.

    Returns:
        An integer of more than 63 bits as a text that says how many it has; a long text cut, with its digest.

    Raises:
        NotPlainError: It is anything else.
    """
    if type(value) in _PLAIN_TENSORS or type(value) is np.ndarray or issubclass(type(value), np.generic):
        value = _item(value)
    if value is None or type(value) is bool or type(value) is float:
        return value
    if type(value) is int:
        return value if abs(value) < _MAX_INTEGER else f"an integer of {value.bit_length()} bits"
    if type(value) is str:
        return shorten(value, MAX_TEXT)
    raise NotPlainError


def flatten(value: object, name: str, *, max_entries: int, max_depth: int) -> dict[str, Scalar]:
    """Return the scalars in nested dicts, lists, tuples and namespaces, those nearest the top first.

    Args:
        value: Where to start.
        name: Its name; entries are called `name.key`, items of a list `name.0`.
        max_entries: How many entries are looked at. The rest is left out.
        max_depth: How many levels are entered.
    """
    found: dict[str, Scalar] = {}
    waiting: deque[tuple[str, object, int]] = deque([(name, value, 0)])
    room = max_entries
    while waiting:
        where, item, depth = waiting.popleft()
        try:
            found[where] = plain_scalar(item)
        except NotPlainError:
            if depth < max_depth:
                some = itertools.islice(entries(item), room)
                inner = [(shorten(f"{where}.{key}", MAX_NAME), entry, depth + 1) for key, entry in some]
                room -= len(inner)
                waiting.extend(inner)
    return found


def entries(value: object) -> Iterator[tuple[str, object]]:
    """Yield name and value of what a dict, a namespace, a list or a tuple holds; nothing for any other object."""
    pairs: Iterable[tuple[object, object]] = ()
    if issubclass(type(value), dict):
        pairs = dict.items(cast("dict[object, object]", value))  # a subclass may have another `items`
    elif type(value) is argparse.Namespace:
        pairs = vars(value).items()
    elif type(value) is list or type(value) is tuple:
        pairs = enumerate(value)
    for key, entry in pairs:
        if type(key) is str or type(key) is int:
            yield shorten(str(plain_scalar(key)), MAX_NAME), entry


def shorten(text: str, limit: int) -> str:
    """Return the text, cut after `limit` characters and with a digest of the whole where it is longer."""
    if len(text) <= limit:
        return text
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{text[:limit]}... ({len(text)} characters, sha256 {digest[:12]})"


def _item(value: object) -> object:
    """The one value of a tensor, array or NumPy scalar without dimensions."""
    try:
        if isinstance(value, torch.Tensor):
            is_plain = not value.dim() and value.layout is torch.strided and not value.is_meta
            if is_plain:
                return value.item()
        elif isinstance(value, np.generic):
            return np.generic.item(value)  # a subclass may have another `item`
        elif isinstance(value, np.ndarray) and not value.ndim:
            return value.item()
    except (RuntimeError, NotImplementedError, TypeError, ValueError, OverflowError) as error:
        raise NotPlainError from error  # quantised, without storage, of a type without a kernel
    raise NotPlainError
