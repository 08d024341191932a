"""Which members are compared with the loop: all, unless an ensemble is too large for that."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from ensexport.errors import UsageError

_FORM = "expected all, none, or a list of first, last and a number of random ones, such as first,last,8"
_RANDOM = re.compile(r"([0-9]+)(?: random)?")


@dataclass(frozen=True)
class MemberChoice:
    """The members that `--validate-members` names.

    Attributes:
        text: As the user wrote it.
        is_all: Every member.
        ends: Which ends are named: `first`, `last`.
        n_random: How many others are drawn.
    """

    text: str = "all"
    is_all: bool = True
    ends: tuple[str, ...] = ()
    n_random: int = 0

    def indices(self, n_members: int) -> tuple[int, ...]:
        """The members in an ensemble of `n_members`, in order; the random ones are the same in every run."""
        if self.is_all:
            return tuple(range(n_members))
        named = {0 if end == "first" else n_members - 1 for end in self.ends}
        others = [index for index in range(n_members) if index not in named]
        drawn = random.Random(0).sample(others, min(self.n_random, len(others)))  # noqa: S311 - no secret
        return tuple(sorted(named | set(drawn)))


ALL_MEMBERS = MemberChoice()


def parse_choice(text: str) -> MemberChoice:
    """Read `all`, `none`, or a list such as `first,last,8` or `first,last,8 random`.

    Raises:
        UsageError: It is none of these.
    """
    parts = [part.strip() for part in text.split(",")]
    if parts == ["all"]:
        return MemberChoice(text)
    if parts == ["none"]:
        return MemberChoice(text, is_all=False)
    ends = tuple(part for part in parts if part in ("first", "last"))
    numbers = [match for part in parts if (match := _RANDOM.fullmatch(part))]
    n_random = sum(int(match[1]) for match in numbers)
    if len(ends) + len(numbers) < len(parts) or len(numbers) > 1 or not (ends or n_random):
        raise UsageError(f"cannot read the members to validate {text!r}: {_FORM}.")
    return MemberChoice(text, is_all=False, ends=ends, n_random=n_random)


def describe_choice(members: Sequence[int], n_members: int) -> str:
    """`members 0, 7 and 999 of 1000`, or `all 1000 members`."""
    if len(members) == n_members:
        return f"all {n_members} members"
    shown = [str(index) for index in members[:10]]
    more = f" and {len(members) - 10} others" if len(members) > 10 else ""
    return f"{len(members)} of {n_members} members ({', '.join(shown)}{more})"
