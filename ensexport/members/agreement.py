"""Do state dicts fit on one member axis? Names, then shapes, then dtypes, each against the first.

Every difference that is reported names the tensor, both members and both values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ensexport.errors import StackError

_MAX_SHOWN = 5
_HINTS = {
    "key": "Stack only members of one architecture.",
    "shape": "Stack only members trained with the same config.",
    "dtype": "Save all members in one dtype, or say with --dtype which the file is to have.",
}


@dataclass(frozen=True)
class Difference:
    """One tensor in which two members differ.

    Attributes:
        kind: `key`, `shape` or `dtype`.
        key: Name of the tensor.
        text: Both values and both members, to stand after the tensor's name.
    """

    kind: str
    key: str
    text: str


def check_states_agree(members: Sequence[tuple[str, Mapping[str, torch.Tensor]]], *, any_float: bool = False) -> None:
    """Refuse state dicts whose names, shapes or dtypes differ from the first one's.

    Args:
        members: `(label, state)` for each member, for example `("member 3 (runs/s3.pt)", {...})`.
        any_float: Take floats of different dtypes.

    Raises:
        StackError: Something differs: up to five differences, and how many more there are.
    """
    found = [
        difference
        for member in members[1:]
        for difference in _differences(members[0], member)
        if not (any_float and difference.kind == "dtype" and _are_floats(difference.key, members[0], member))
    ]
    if not found:
        return
    texts = [f"{difference.key!r}: {difference.text}" for difference in found[:_MAX_SHOWN]]
    more = f"; and {_count(len(found) - _MAX_SHOWN)}" if len(found) > _MAX_SHOWN else ""
    details: list[dict[str, Any]] = [vars(difference) for difference in found[:_MAX_SHOWN]]
    raise StackError(
        f"cannot stack {'; '.join(texts)}{more}.",
        hint=_HINTS[found[0].kind],
        differences=details,
        n_differences=len(found),
    )


def _are_floats(key: str, *members: tuple[str, Mapping[str, torch.Tensor]]) -> bool:
    return all(state[key].is_floating_point() for _, state in members)


def describe_tensor(tensor: torch.Tensor) -> str:
    """Return `shape (10, 64) of float32`."""
    return f"shape {tuple(tensor.shape)} of {str(tensor.dtype).removeprefix('torch.')}"


def _differences(
    first: tuple[str, Mapping[str, torch.Tensor]], other: tuple[str, Mapping[str, torch.Tensor]]
) -> Iterator[Difference]:
    (first_label, expected), (label, got) = first, other
    for key in expected:
        if key not in got:
            what = describe_tensor(expected[key])
            yield Difference("key", key, f"expected {what} as in {first_label}, missing in {label}")
    for key in got:
        if key not in expected:
            what = describe_tensor(got[key])
            yield Difference("key", key, f"missing in {first_label}, got {what} in {label}")
    for key in expected:
        if key in got:
            yield from _tensor_difference(key, first_label, expected[key], label, got[key])


def _tensor_difference(
    key: str, first_label: str, expected: torch.Tensor, label: str, got: torch.Tensor
) -> Iterator[Difference]:
    for kind in ("shape", "dtype"):
        a, b = getattr(expected, kind), getattr(got, kind)
        if a != b:
            a, b = (tuple(a), tuple(b)) if kind == "shape" else (_short(a), _short(b))
            yield Difference(kind, key, f"expected {kind} {a} as in {first_label}, got {b} in {label}")


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _count(number: int) -> str:
    return "1 more difference" if number == 1 else f"{number} more differences"
