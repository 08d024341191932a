"""What a checkpoint's pickle would build, worked out without building it.

`torch.load(..., weights_only=True)` keeps code out, but it believes the numbers in a file: a tensor may claim
10^12 elements, a storage more bytes than its record, a tuple may be nested so deep that hashing it ends the process.
So every pickle is first walked here, with plain Python values in place of tensors. Only the instructions that
torch's own loader knows are known here, every call is looked up in `calls.py`, and memory is counted. What passes
is then given to torch.

Source: torch 2.13.0 _weights_only_unpickler.py (instructions, and what may be called), torch/serialization.py.
"""

from __future__ import annotations

import argparse
import pickle
import struct
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from ensexport.members.allowed import NotPlainError, PlainArray, PlainDtype
from ensexport.members.calls import (
    BlockedError,
    Global,
    Storage,
    TensorOutline,
    UnreadableError,
    call,
    check_key,
    is_known,
    storage_of,
)

MAX_STEPS = 8_000_000
MAX_DEPTH = 100
MAX_ENTRIES = 5_000_000
_BASE_BYTES = 2**24
_BYTES_PER_BYTE = 32
"""Memory a pickle may fill for each of its own bytes; honest ones need about 13."""
_LIST, _DICT, _SET, _TUPLE, _CALL, _MEMO = 72, 80, 232, 64, 400, 100
_MAX_LINE = 1024


class UnknownStepError(UnreadableError):
    """The pickle holds an instruction that torch's safe loader does not know either."""


@dataclass
class Outline:
    """What one pickle holds.

    Attributes:
        content: Plain values; `TensorOutline` where a tensor would be.
        storages: What its tensors lie in, by key.
        odd: Kinds of tensors that cannot be packed: `sparse`, `quantised`, `nested` ...
    """

    content: Any
    storages: dict[str, Storage]
    odd: list[str]


def read_outline(file: BinaryIO, size_bytes: int) -> Outline:
    """Walk one pickle; afterwards the file stands behind it.

    Args:
        file: Stands at the pickle's first byte.
        size_bytes: How many bytes it may read.

    Raises:
        BlockedError: It names a class or function that is not on the list, or calls one with other than plain data.
        UnknownStepError: It is written with instructions that torch's loader lacks (pickle protocols 3 to 5).
        UnreadableError: It is cut, contradicts itself, or would fill far more memory than it has bytes.
    """
    machine = _Machine(file, size_bytes)
    try:
        content = machine.run()
    except NotPlainError as error:
        raise BlockedError(str(error)) from error
    except (IndexError, KeyError, TypeError, ValueError, OverflowError, AttributeError, struct.error) as error:
        raise UnreadableError(f"its pickle is damaged ({type(error).__name__})") from error
    check_tree(content)
    return Outline(content, machine.storages, machine.odd)


class _Machine:
    """The stack, the memo, and what was spent; one method a group of instructions."""

    def __init__(self, file: BinaryIO, size_bytes: int) -> None:
        self.file, self.left = file, size_bytes
        self.budget = _BASE_BYTES + _BYTES_PER_BYTE * size_bytes
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}
        self.odd: list[str] = []

    def run(self) -> object:
        for _ in range(MAX_STEPS):
            code = self.take(1)
            if code == pickle.STOP:
                return self.stack.pop()
            step = _STEPS.get(code)
            if step is None:
                raise UnknownStepError(
                    f"its pickle holds the instruction {code!r}, which the safe loader does not know"
                )
            step(self)
        raise UnreadableError(f"its pickle has more than {MAX_STEPS} instructions")

    # -- bytes and memory --------------------------------------------------------------------------

    def take(self, count: int) -> bytes:
        if count > self.left:
            raise UnreadableError("its pickle is cut short")
        data = self.file.read(count)
        self.left -= count
        if len(data) != count:
            raise UnreadableError("its pickle is cut short")
        return data

    def number(self, form: str) -> int:
        (value,) = struct.unpack(form, self.take(struct.calcsize(form)))
        return int(value)

    def line(self) -> str:
        data = self.file.readline(_MAX_LINE)
        self.left -= len(data)
        if not data.endswith(b"\n") or self.left < 0:
            raise UnreadableError("its pickle is cut short inside a name")
        return data[:-1].decode("utf-8")

    def push(self, value: Any, cost: int = 8) -> None:
        self.spend(cost)
        self.stack.append(value)

    def spend(self, cost: int) -> None:
        self.budget -= cost
        if self.budget < 0:
            raise UnreadableError("its pickle would fill far more memory than it has bytes")

    # -- instructions ------------------------------------------------------------------------------

    def skip_version(self) -> None:
        self.take(1)

    def mark(self) -> None:
        self.spend(_LIST)
        self.marked.append(self.stack)
        self.stack = []

    def pop_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marked.pop()
        return items

    def push_tuple(self, count: int | None = None) -> None:
        items = self.pop_mark() if count is None else [self.stack.pop() for _ in range(count)][::-1]
        self.push(tuple(items), _TUPLE + 8 * len(items))

    def push_text(self, data: bytes, errors: str = "strict") -> None:
        self.push(str(data, "utf-8", errors), 64 + len(data))

    def find(self) -> None:
        module, name = self.line(), self.line()
        full = f"{'builtins' if module == '__builtin__' else module}.{name}"
        if not is_known(full):
            raise BlockedError(full)
        self.push(Global(full), _TUPLE)

    def reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        made = call(function, arguments)
        if isinstance(made, TensorOutline) and made.kind != "dense":
            self.odd.append(made.kind)
        self.push(made, _CALL)

    def new_object(self) -> None:
        arguments, kind = self.stack.pop(), self.stack.pop()
        if not (isinstance(kind, Global) and kind.name == "argparse.Namespace" and arguments == ()):
            raise BlockedError(kind.name if isinstance(kind, Global) else "a class that it made itself")
        self.push(argparse.Namespace(), _CALL)

    def build(self) -> None:
        state, made = self.stack.pop(), self.stack[-1]
        if isinstance(made, PlainDtype | PlainArray):
            made.__setstate__(state)
        elif type(made) in (OrderedDict, argparse.Namespace) and type(state) is dict:
            hidden = [name for name in state if not isinstance(name, str) or name.startswith("__")]
            if hidden:
                raise BlockedError(f"{type(made).__name__}.{hidden[0]}" if isinstance(hidden[0], str) else "BUILD")
            vars(made).update(state)
        else:
            raise BlockedError("__setstate__ of a class that holds no plain data")

    def append(self) -> None:
        item, target = self.stack.pop(), self.stack[-1]
        _expect(type(target) is list)
        target.append(item)

    def extend(self) -> None:
        items = self.pop_mark()
        _expect(type(self.stack[-1]) is list)
        self.stack[-1].extend(items)

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        _expect(type(target) in (dict, OrderedDict, Counter) and len(items) % 2 == 0)
        for key, value in zip(items[::2], items[1::2], strict=True):
            check_key(key)
            self.spend(_MEMO)
            target[key] = value

    def set_one(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.set_items([key, value])

    def remember(self, index: int) -> None:
        self.spend(_MEMO)
        self.memo[index] = self.stack[-1]

    def push_storage(self) -> None:
        storage = storage_of(self.stack.pop())
        known = self.storages.setdefault(storage.key, storage)
        if known != storage:
            raise UnreadableError(f"its storage {storage.key!r} has two sizes or types")
        self.push(storage, _CALL)


def _expect(holds: bool) -> None:
    if not holds:
        raise UnreadableError("its pickle fills something that is no list or dict")


_STEPS: dict[bytes, Callable[[_Machine], None]] = {
    pickle.PROTO: _Machine.skip_version,
    pickle.GLOBAL: _Machine.find,
    pickle.REDUCE: _Machine.reduce,
    pickle.NEWOBJ: _Machine.new_object,
    pickle.BUILD: _Machine.build,
    pickle.BINPERSID: _Machine.push_storage,
    pickle.MARK: _Machine.mark,
    pickle.APPEND: _Machine.append,
    pickle.APPENDS: _Machine.extend,
    pickle.SETITEM: _Machine.set_one,
    pickle.SETITEMS: lambda m: m.set_items(m.pop_mark()),
    pickle.TUPLE: _Machine.push_tuple,
    pickle.TUPLE1: lambda m: m.push_tuple(1),
    pickle.TUPLE2: lambda m: m.push_tuple(2),
    pickle.TUPLE3: lambda m: m.push_tuple(3),
    pickle.EMPTY_TUPLE: lambda m: m.push(()),
    pickle.EMPTY_LIST: lambda m: m.push([], _LIST),
    pickle.EMPTY_DICT: lambda m: m.push({}, _DICT),
    pickle.EMPTY_SET: lambda m: m.push(set(), _SET),
    pickle.NONE: lambda m: m.push(None),
    pickle.NEWFALSE: lambda m: m.push(False),
    pickle.NEWTRUE: lambda m: m.push(True),
    pickle.BININT: lambda m: m.push(m.number("<i"), 40),
    pickle.BININT1: lambda m: m.push(m.number("<B")),
    pickle.BININT2: lambda m: m.push(m.number("<H"), 40),
    pickle.LONG1: lambda m: m.push(pickle.decode_long(m.take(m.number("<B"))), 72),
    pickle.BINFLOAT: lambda m: m.push(struct.unpack(">d", m.take(8))[0], 32),
    pickle.BINUNICODE: lambda m: m.push_text(m.take(m.number("<I")), "surrogatepass"),
    pickle.SHORT_BINSTRING: lambda m: m.push_text(m.take(m.number("<B"))),
    pickle.BINGET: lambda m: m.push(m.memo[m.number("<B")]),
    pickle.LONG_BINGET: lambda m: m.push(m.memo[m.number("<I")]),
    pickle.BINPUT: lambda m: m.remember(m.number("<B")),
    pickle.LONG_BINPUT: lambda m: m.remember(m.number("<I")),
}


def find_odd(content: object) -> str:
    """Return the name under which a tensor that cannot be packed lies; empty if none can be reached."""
    seen: set[int] = set()
    waiting: list[tuple[str, object]] = [("", content)]
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, TensorOutline) and value.kind != "dense":
            return name
        if id(value) not in seen:
            seen.add(id(value))
            waiting += [(key if isinstance(key, str) else name, child) for key, child in _children(value)]
    return ""


def check_tree(content: object) -> None:
    """Refuse what would send a reader round in circles: cycles, deep nests, bytes that unfold to millions.

    Raises:
        UnreadableError: Says which.
    """
    facts: dict[int, tuple[int, int]] = {}  # by identity: depth and number of entries, all shared parts counted again
    open_ids: set[int] = set()
    path: list[tuple[object, Iterator[tuple[object, object]]]] = []

    def enter(value: object) -> None:
        if id(value) in open_ids:
            raise UnreadableError("it holds a list or dict that contains itself")
        if len(path) > MAX_DEPTH:
            raise UnreadableError(f"it is nested deeper than {MAX_DEPTH} levels")
        open_ids.add(id(value))
        path.append((value, iter(_children(value))))

    enter(content)
    while path:
        value, rest = path[-1]
        child = next((item for _, item in rest if _holds(item) and id(item) not in facts), None)
        if child is not None:
            enter(child)
            continue
        below = [facts[id(item)] if _holds(item) else (0, 1) for _, item in _children(value)]
        depth = 1 + max((depth for depth, _ in below), default=0)
        entries = 1 + sum(entries for _, entries in below)
        if depth > MAX_DEPTH:
            raise UnreadableError(f"it is nested deeper than {MAX_DEPTH} levels")
        if entries > MAX_ENTRIES:
            raise UnreadableError(f"it unfolds to more than {MAX_ENTRIES} entries")
        facts[id(value)] = (depth, entries)
        open_ids.discard(id(value))
        path.pop()


def _holds(value: object) -> bool:
    return isinstance(value, list | tuple | dict | argparse.Namespace) and bool(_children(value))


def _children(value: object) -> list[tuple[object, object]]:
    if isinstance(value, dict):
        return [*value.items(), *(vars(value).items() if isinstance(value, OrderedDict) else ())]
    if isinstance(value, list | tuple):
        return list(enumerate(value))
    if isinstance(value, argparse.Namespace):
        return list(vars(value).items())
    return []
