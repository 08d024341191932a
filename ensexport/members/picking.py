"""Several checkpoints of one training run -> the one to take: the best, else the last, else the newest.

A run leaves `best`, `last` and a file an epoch. They are one network at several moments, not an ensemble, and to
take them all would be one by accident. Names are all that is looked at. Standard library only.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_BEST = re.compile(r"(?<![a-z])best(?![a-z])")
_LAST = re.compile(r"(?<![a-z])(?:last|final|latest)(?![a-z])")
_MOMENT = re.compile(r"(?<![a-z])(?:global_?steps?|epochs?|steps?|iter(?:ation)?s?|checkpoint|ckpt)[-_=]*([0-9]+)")
_NUMBERED = re.compile(r"[a-z_.-]*([0-9]+)")
_BARE = "checkpoint"  # torchvision's references write `checkpoint.pth` beside one `model_{epoch}.pth` an epoch


@dataclass(frozen=True)
class Picked:
    """What to take of one run.

    Attributes:
        taken: The entries to take.
        left: The others.
        why: What `taken` is: `the best`, `the last`, `the newest`; empty if all were taken.
    """

    taken: tuple[Path, ...]
    left: tuple[Path, ...]
    why: str


def pick(entries: Sequence[Path]) -> Picked:
    """Choose between the entries of one folder by their names.

    Args:
        entries: Files or folders, in natural order.

    Returns:
        One entry if the names speak of moments of one run, else all of them.
    """
    if len(entries) > 1:
        for why, chosen in (("the best", _best(entries)), ("the last", _last(entries))):
            if chosen:
                return _only(entries, max(chosen, key=lambda path: (moment(path), entries.index(path))), why)
        if all(moment(path) for path in entries):
            return _only(entries, max(entries, key=lambda path: (moment(path), entries.index(path))), "the newest")
    return Picked(tuple(entries), (), "")


def moment(path: Path) -> tuple[int, ...]:
    """The numbers of epoch and step in a name (`epoch=9-step=1000` has 9 and 1000); empty if it has none."""
    return tuple(int(number) for number in _MOMENT.findall(_stem(path)))


def _named(entries: Sequence[Path], pattern: re.Pattern[str]) -> list[Path]:
    return [path for path in entries if pattern.search(_stem(path))]


def _best(entries: Sequence[Path]) -> list[Path]:
    found = _named(entries, _BEST)
    return found if len(found) < len(entries) or all(moment(path) for path in found) else []


def _last(entries: Sequence[Path]) -> list[Path]:
    found = _named(entries, _LAST)
    if found:
        return found
    bare = [path for path in entries if _stem(path) == _BARE]
    others = [path for path in entries if path not in bare]
    return bare if all(_NUMBERED.fullmatch(_stem(path)) for path in others) else []


def _only(entries: Sequence[Path], chosen: Path, why: str) -> Picked:
    return Picked((chosen,), tuple(path for path in entries if path != chosen), why)


def _stem(path: Path) -> str:
    """The name in lower case without its suffix: `Model_Best.pth.tar` becomes `model_best`."""
    name = path.name.lower()
    for suffix in (".pth.tar", ".pt.tar", *(path.suffix.lower(),) * bool(path.suffix)):
        if name.endswith(suffix):
            return name.removesuffix(suffix)
    return name
