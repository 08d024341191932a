"""How much each member counts in what is combined: `--member-weights`, fixed when packing or given at run time."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ensexport.errors import UsageError

WEIGHTS_INPUT = "member_weights"
_FORM = "expected `input`, numbers like 0.5,0.3,0.2, or a file that holds them"


@dataclass(frozen=True)
class MemberWeights:
    """The weights of the members.

    Attributes:
        values: One number a member, 0 or more, not all 0; they need not sum to 1. None: the file has an input
            `member_weights` of shape `(N,)` and dtype float32, by default all ones.
    """

    values: tuple[float, ...] | None = None

    @property
    def is_input(self) -> bool:
        """Are they an input of the file?"""
        return self.values is None

    def check(self, n_members: int) -> None:
        """Refuse weights that fit no ensemble of `n_members`.

        Raises:
            UsageError: There are more or fewer than members, one is negative, NaN or Inf, or all are zero.
        """
        if self.values is None:
            return
        if len(self.values) != n_members:
            raise UsageError(
                f"{len(self.values)} member weights are given: expected {n_members}, one a member.",
                hint="Give them in the order of the members; 0 leaves one out.",
            )
        self.check_values()

    def check_values(self) -> None:
        """Refuse weights that fit no ensemble at all.

        Raises:
            UsageError: One is negative, NaN or Inf, or all are zero.
        """
        if self.values is None:
            return
        for index, value in enumerate(self.values):
            if not (math.isfinite(value) and value >= 0):
                raise UsageError(
                    f"the weight of member {index} is {value:g}: expected a finite number, 0 or more.",
                    hint="0 leaves a member out.",
                )
        if not any(self.values):
            raise UsageError(
                "all member weights are 0: expected at least one above 0.", hint="1,1,... weighs all members alike."
            )

    def to_json(self) -> str | list[float]:
        """What the file's metadata says of them."""
        return "input" if self.values is None else list(self.values)

    @classmethod
    def from_json(cls, value: str | Sequence[float] | None) -> MemberWeights | None:
        """The inverse of `to_json`; None for a file without weights."""
        if value is None:
            return None
        return cls() if isinstance(value, str) else cls(tuple(float(number) for number in value))


def parse_member_weights(text: str | Sequence[float], folder: Path = Path()) -> MemberWeights:
    """Read `input`, a list such as `0.5,0.3,0.2`, or a file that holds one.

    A file has numbers between commas, white space or line ends; a JSON list is one.

    Args:
        text: The text, or the numbers themselves.
        folder: Where a relative path begins.

    Raises:
        UsageError: It is none of these, or a number is no weight.
    """
    weights = MemberWeights(_parsed(text, folder))
    weights.check_values()
    return weights


def _parsed(text: str | Sequence[float], folder: Path) -> tuple[float, ...] | None:
    if not isinstance(text, str):
        return tuple(map(float, text))
    if text.strip() == "input":
        return None
    numbers = _numbers(text)
    if numbers is not None:
        return numbers
    try:
        content = (folder / text).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise UsageError(f"cannot read --member-weights {text!r}: {_FORM}.", hint="Is it a text file?") from error
    numbers = _numbers(content)
    if numbers is None:
        raise UsageError(
            f"cannot read --member-weights {text!r}: the file holds {content.strip()[:40]!r}, {_FORM}.",
            hint="One number a member, between commas or line ends.",
        )
    return numbers


def _numbers(text: str) -> tuple[float, ...] | None:
    """The numbers of a list, or None if it is no list of numbers."""
    parts = re.split(r"\s*,\s*|\s+", text.strip().removeprefix("[").removesuffix("]").strip())
    try:
        return tuple(map(float, parts))
    except ValueError:
        return None
