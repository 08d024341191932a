import argparse
import collections
import json
import time

import numpy as np
import pytest
import torch

from ensexport.members.scalars import MAX_NAME, MAX_TEXT, NotPlainError, entries, flatten, plain_scalar, shorten


class Trap:
    """Fails when anything in it is called."""

    def __getattribute__(self, name):
        raise AssertionError(f"{name} was asked for")

    __str__ = __repr__ = __len__ = __iter__ = __eq__ = __hash__ = __bool__ = __float__ = lambda *_: 1 / 0


class TrapDict(dict):
    __iter__ = __len__ = __getitem__ = items = keys = values = get = lambda *_: 1 / 0


class TrapFloat(np.float64):
    def item(self):
        raise AssertionError("item was called")


def kind_name(value):
    return type(value).__name__


def walk(value, max_entries=100, max_depth=5):
    return flatten(value, "x", max_entries=max_entries, max_depth=max_depth)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        (True, True),
        (3, 3),
        (2.5, 2.5),
        ("text", "text"),
        (np.float32(0.5), 0.5),
        (np.int64(7), 7),
        (np.bool_(True), True),
        (np.str_("abc"), "abc"),
        (np.array(4), 4),
        (TrapFloat(1.5), 1.5),
        (torch.tensor(3), 3),
        (torch.tensor(0.5, dtype=torch.bfloat16), 0.5),
        (torch.nn.Parameter(torch.tensor(2.0)), 2.0),
        (-(2**63) + 1, -(2**63) + 1),
        (10**5000, "an integer of 16610 bits"),
    ],
    ids=kind_name,
)
def test_scalars_become_pythons_own(value, expected):
    plain = plain_scalar(value)
    assert plain == expected
    assert type(plain) is type(expected)


@pytest.mark.parametrize(
    "value",
    [
        1j,
        b"bytes",
        [1],
        {},
        np.zeros(3),
        np.array({}, dtype=object),
        np.datetime64("2024-01-01"),
        np.longdouble(1),
        torch.zeros(1),
        torch.tensor(1j),
        torch.empty((), device="meta"),
        torch.tensor(1.0).to_sparse(),
    ],
    ids=kind_name,
)
def test_anything_else_is_no_scalar(value):
    with pytest.raises(NotPlainError):
        plain_scalar(value)


def test_nothing_of_an_unknown_object_is_called():
    with pytest.raises(NotPlainError):
        plain_scalar(Trap())


def test_a_long_text_is_cut_and_still_compares():
    first, second = "a" * 10**6 + "b", "a" * 10**6 + "c"
    assert len(plain_scalar(first)) < MAX_TEXT + 60
    assert plain_scalar(first) != plain_scalar(second)
    assert "(1000001 characters, sha256 " in plain_scalar(first)
    assert shorten("\ud800" * 5, 2).startswith("\ud800\ud800... (5 characters")


def test_nested_options_become_flat_names():
    value = {"a": 1, "b": {"c": [True, (None,)], 3: "three"}, "n": argparse.Namespace(lr=0.1)}
    assert walk(value) == {"x.a": 1, "x.b.3": "three", "x.n.lr": 0.1, "x.b.c.0": True, "x.b.c.1.0": None}
    assert walk(collections.OrderedDict(a=1)) == {"x.a": 1}
    assert walk(5) == {"x": 5}


def test_objects_are_left_out_and_nothing_of_theirs_is_called():
    evil = TrapDict()
    dict.__setitem__(evil, "a", 1)
    dict.__setitem__(evil, "b", Trap())
    assert walk({"evil": evil, "trap": Trap(), "k": [Trap()]}) == {"x.evil.a": 1}
    assert list(entries(Trap())) == []
    assert list(entries({Trap.__new__: 1, ("a",): 2, b"b": 3, "c": 4})) == [("c", 4)]


def test_a_structure_that_holds_itself_ends():
    ring = {"a": 1}
    ring["self"] = ring
    names = [1]
    names.append(names)
    found = walk({"ring": ring, "list": names}, max_depth=4)
    assert found["x.ring.self.a"] == found["x.list.1.0"] == 1
    assert len(found) < 20


def test_deep_and_wide_structures_are_bounded():
    deep = 1
    for _ in range(100_000):
        deep = {"d" * 1000: deep}
    started = time.monotonic()
    found = walk({"deep": deep, "wide": dict.fromkeys(range(10**6), 1), "top": 2}, max_entries=50)
    assert time.monotonic() - started < 2
    assert found["x.top"] == 2
    assert len(found) <= 50
    assert all(len(name) < MAX_NAME + 60 for name in found)
    json.dumps(found)
    while isinstance(deep, dict):  # one level at a time: Python frees a nest by recursion
        deep = next(iter(deep.values()))
