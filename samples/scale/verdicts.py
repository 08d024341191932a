"""What packing at size may cost, and what of it was measured."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import linear_regression

from records import Record, find

NOTES = Path(__file__).with_name("notes.toml")
ALLOWANCE_MB = 1000.0  # the interpreter, torch, ONNX and the graph
PACKED_TIMES = 1.2  # of the packed size, while it is compared
TIME_TIMES = 1.3  # of one export and a copy
SLOPE_TIMES = 1.5  # of a copy's seconds a byte
LINEAR_WITHIN = 0.1  # of the longest time: how far from the line a linear growth may be
MANY_S, MANY_MB = 60.0, 3000.0
LARGER_BYTES, LARGER_MB = 30e9, 4000.0
GROWTH = ("vit-4", "vit-10", "vit-16")


@dataclass(frozen=True)
class Verdict:
    """A goal and what was measured.

    Attributes:
        key: How notes call it.
        what: What it is about.
        goal: What should be reached.
        measured: What was; empty if nothing was.
        is_met: None if it was not measured, or not under the goal's conditions.
        reason: Why it is missed, or cannot be judged; empty if that is not known.
    """

    key: str
    what: str
    goal: str
    measured: str
    is_met: bool | None
    reason: str


@dataclass(frozen=True)
class Goal:
    """One line of the table.

    Attributes:
        key: How notes call it.
        what: What it is about.
        goal: What should be reached, in words.
        needs: The rows it is judged by.
        validate: How these must have been validated.
        judge: Told their records; returns what was measured, in words, and if that is good enough.
    """

    key: str
    what: str
    goal: str
    needs: tuple[str, ...]
    validate: str
    judge: Callable[[Sequence[Record]], tuple[str, bool]]


def judge_all(records: Sequence[Record], notes: Mapping[str, str]) -> Iterator[Verdict]:
    """Compare every goal with what was measured."""
    for goal in goals():
        yield judge(goal, records, notes)


def judge(goal: Goal, records: Sequence[Record], notes: Mapping[str, str]) -> Verdict:
    """Compare a goal with what was measured."""
    found = [find(records, name) for name in goal.needs]
    own = [record for record in found if record is not None]
    if len(own) < len(goal.needs):
        failed = [record["error"] for record in records if record["name"] in goal.needs and "error" in record]
        reason = "; ".join(dict.fromkeys(failed)) or notes.get(goal.key, "")
        # A row that failed was tried: the goal is missed, not open.
        return Verdict(goal.key, goal.what, goal.goal, "", False if failed else None, reason)
    measured, is_met = goal.judge(own)
    known = (goal.key, goal.what, goal.goal, measured)
    if any(record["is_quick"] for record in own):
        return Verdict(*known, None, "a quick run, on another network")
    if any(record["validate"] != goal.validate for record in own):
        return Verdict(*known, None, f"measured with validation of {own[0]['validate']} members")
    return Verdict(*known, is_met, "" if is_met else notes.get(goal.key, ""))


def goals() -> Iterator[Goal]:
    """All of them, in the order of the page. Sizes count a million bytes as an MB."""
    for name in GROWTH:
        n_members = name.removeprefix("vit-")
        yield Goal(
            f"memory {name}", f"peak memory without validation, ViT-B, N = {n_members}",
            "one member + one packed tensor + 1 GB", (name,), "none", _memory,
        )  # fmt: skip
    yield Goal(
        "memory vit-10-validated", "peak memory with validation of all members, ViT-B, N = 10",
        f"packed size x {PACKED_TIMES} + one member + 1 GB", ("vit-10-validated",), "all", _memory_validated,
    )  # fmt: skip
    yield Goal(
        "time vit-10", "time without validation, ViT-B, N = 10",
        f"{TIME_TIMES} x (`torch.onnx.export` of one member + a copy of the checkpoints)", ("vit-10",), "none", _time,
    )  # fmt: skip
    yield Goal(
        "many", "N = 1000 MLPs of 101,252 parameters, with validation of all members",
        f"{MANY_S:g} s, {MANY_MB:.0f} MB", ("mlp-1000-validated",), "all", _many,
    )  # fmt: skip
    yield Goal(
        "growth", "growth from N = 4 to N = 16, ViT-B, without validation",
        f"linear in bytes, at most {SLOPE_TIMES} x a copy's seconds a GB", GROWTH, "none", _growth,
    )  # fmt: skip
    yield Goal(
        "larger", "an ensemble larger than memory, without validation",
        f"{LARGER_BYTES / 1e9:.0f} GB packed, within {LARGER_MB:.0f} MB", ("larger",), "none", _larger,
    )  # fmt: skip


def bound_mb(record: Record) -> float:
    """The memory a pack without validation may take: one member, one packed tensor, and the allowance."""
    return float(record["member_bytes"] + record["n_members"] * record["largest_tensor_bytes"]) / 1e6 + ALLOWANCE_MB


def line_of(records: Sequence[Record]) -> tuple[float, float]:
    """Seconds at no bytes, and seconds a GB packed: the straight line nearest to the measured times."""
    slope, begin = linear_regression(
        [record["packed_bytes"] / 1e9 for record in records], [record["seconds"] for record in records]
    )
    return begin, slope


def copy_s_per_gb(records: Sequence[Record]) -> float:
    """Seconds a GB of the plain copies, before and after the packing, of all these rows."""
    seconds = sum(sum(record["copy_s"]) for record in records)
    n_bytes = sum(len(record["copy_s"]) * record["checkpoint_bytes"] for record in records)
    return float(seconds / (n_bytes / 1e9))


def read_notes() -> dict[str, str]:
    """Why goals were missed: key of a goal -> text."""
    notes: dict[str, str] = tomllib.loads(NOTES.read_text())
    return notes


# -- judging ---------------------------------------------------------------------------------------


def _memory(records: Sequence[Record]) -> tuple[str, bool]:
    (record,) = records
    return _against(record["peak_mb"], bound_mb(record), "MB")


def _memory_validated(records: Sequence[Record]) -> tuple[str, bool]:
    (record,) = records
    bound = (PACKED_TIMES * record["packed_bytes"] + record["member_bytes"]) / 1e6 + ALLOWANCE_MB
    return _against(record["peak_mb"], bound, "MB")


def _time(records: Sequence[Record]) -> tuple[str, bool]:
    (record,) = records
    copy_s = sum(record["copy_s"]) / len(record["copy_s"])
    text, is_met = _against(record["seconds"], TIME_TIMES * (record["export_s"] + copy_s), "s")
    ratio = record["seconds"] / (record["export_s"] + copy_s)
    return f"{text}: {ratio:.2f} x ({record['export_s']:.1f} + {copy_s:.1f} s)", is_met


def _many(records: Sequence[Record]) -> tuple[str, bool]:
    (record,) = records
    is_met = record["seconds"] < MANY_S and record["peak_mb"] < MANY_MB
    return f"{record['seconds']:.1f} s, {record['peak_mb']:.0f} MB", is_met


def _growth(records: Sequence[Record]) -> tuple[str, bool]:
    begin, slope = line_of(records)
    copy = copy_s_per_gb(records)
    off = max(abs(begin + slope * record["packed_bytes"] / 1e9 - record["seconds"]) for record in records)
    share = off / max(record["seconds"] for record in records)
    text = f"{begin:.1f} s + {slope:.2f} s a GB, {slope / copy:.2f} x a copy's {copy:.2f}; {share:.1%} off the line"
    return text, slope <= SLOPE_TIMES * copy and share <= LINEAR_WITHIN


def _larger(records: Sequence[Record]) -> tuple[str, bool]:
    (record,) = records
    packed, memory = record["packed_bytes"], record["environment"]["memory_mb"]
    text = f"{packed / 1e9:.1f} GB on a machine of {memory / 1e3:.1f} GB, {record['peak_mb']:.0f} MB"
    is_large = packed >= LARGER_BYTES and packed / 1e6 > memory
    return text, is_large and record["peak_mb"] < LARGER_MB


def _against(value: float, bound: float, unit: str) -> tuple[str, bool]:
    digits = 0 if unit == "MB" else 1
    return f"{value:.{digits}f} of {bound:.{digits}f} {unit}", value <= bound
