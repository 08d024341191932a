"""Judging combined outputs: against the formulas in float64, from the loop's outputs.

A combined output may be as far off as the members behind it may be, carried through its formula, and a rounding of its
own more. The members are compared one by one beside it (`validation`), in the same file: a mean alone would not tell
that two of them were swapped.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from ensexport.combined_reference import Floats, combine, shares_of
from ensexport.compare import Array, Difference, compare_arrays, count_other_top1, is_exact
from ensexport.emission import CLASS_NAMES, OutputEmission
from ensexport.spec import Tolerance
from ensexport.weighting import WEIGHTS_INPUT, MemberWeights

_SCORES = ("mean", "probs", "logprobs")
"""What has a largest class. The shares of a vote are often equal, and rounding decides between them."""


@dataclass(frozen=True)
class Judged:
    """A combined output that was compared.

    Attributes:
        name: Its name in the file.
        difference: How far it is from the formula.
        bound: What `difference.max_rel` may be.
        problem: What differs before any value does; else empty.
        note: Why it passed where a value differs; else empty.
        top1: For class scores, how many inputs have another largest class, and of how many.
    """

    name: str
    difference: Difference
    bound: float
    problem: str = ""
    note: str = ""
    top1: tuple[int, int] = (0, 0)

    @property
    def passed(self) -> bool:
        """Is it within the bound?"""
        return not self.problem and self.difference.max_rel <= self.bound


def judge_combined(
    entry: OutputEmission,
    outputs: dict[str, Array],
    members: Sequence[Array],
    *,
    dtype: str,
    slack: float,
    tolerance: Tolerance,
    weights: Sequence[float] | None,
) -> Iterator[Judged]:
    """Compare what one output of the model became.

    Args:
        entry: What it became.
        outputs: What the file returned, by name.
        members: What the members should return, `(B, C)` each.
        dtype: Their dtype.
        slack: How far the file's members may be from these.
        tolerance: The bound on rounding.
        weights: The members' weights; None for all alike.
    """
    for name, file_name in entry.combined:
        actual = outputs[file_name]
        expected = _in_range(combine(name, members, class_axis=entry.class_axis, weights=weights), dtype)
        problem = "" if str(actual.dtype) == dtype else f"expected dtype {dtype}, got {actual.dtype}"
        if actual.shape != expected.shape:
            problem = f"expected shape {expected.shape}, got {actual.shape}"
            yield Judged(file_name, Difference(math.inf, 1.0, (), math.nan, math.nan), 0.0, problem)
            continue
        note = ""
        if name == "vote":
            nearest = _nearest_vote(actual, members, entry.class_axis, weights, slack)
            ties = int((np.abs(nearest - expected.astype(np.float64)) > Tolerance.FLOORS.get(dtype, 0.0)).sum())
            note = f"{ties} of {expected.size} shares of votes differ where two classes are equal but for rounding"
            expected, note = (nearest, note) if ties else (expected, "")
        difference = compare_arrays(expected, actual)
        allowed = 0.0 if is_exact(expected.dtype) else _allowed(name, expected, members, entry, dtype, slack, tolerance)
        is_scored = entry.needs_classes and name in _SCORES
        top1 = count_other_top1(expected, actual, entry.class_axis) if is_scored else (0, 0)
        yield Judged(file_name, difference, allowed / difference.scale, problem, note, top1)


def _in_range(expected: Array, dtype: str) -> Array:
    """What is beyond the largest number of the dtype is infinite in it."""
    if is_exact(expected.dtype):
        return expected
    largest = float(ml_dtypes.finfo(dtype).max)  # type: ignore[no-untyped-call]
    return np.where(np.abs(expected) > largest, np.copysign(np.inf, expected), expected)


def _allowed(
    name: str,
    expected: Array,
    members: Sequence[Array],
    entry: OutputEmission,
    dtype: str,
    slack: float,
    tolerance: Tolerance,
) -> float:
    """How far an output may be off, in its own units.

    With members that are off by up to s: mean, min, max, median, quantiles and std by s; var by `2 std s + s^2`;
    log-probabilities and the logarithms of their mean by 2s, so probabilities by less than s and entropies by 2s of the
    largest there is.
    """
    largest = _largest(expected)
    if name == "var":
        carried = 2 * math.sqrt(largest) * slack + slack**2
    elif name in ("entropy", "expected_entropy", "mutual_information"):
        largest = math.log(np.asarray(members[0]).shape[entry.class_axis])
        carried = 2 * slack * largest
    elif name == "vote":
        carried = 0.0
    else:
        carried = slack * (2 if name in CLASS_NAMES else 1)
    scale = largest or 1.0
    return carried + tolerance.bound(dtype=dtype, scale=scale, loop_error=0.0) * scale


def _largest(array: Array) -> float:
    finite = np.abs(array[np.isfinite(array)].astype(np.float64))
    return float(finite.max()) if finite.size else 0.0


def _nearest_vote(
    actual: Array, members: Sequence[Array], class_axis: int, weights: Sequence[float] | None, slack: float
) -> Floats:
    """The shares of votes nearest to the actual ones that members within their slack could give.

    A class has a member's vote for certain if it leads by more than twice the slack, and may have it if it is behind
    by no more than that.
    """
    fewest = np.zeros(np.asarray(members[0]).shape)
    most = np.zeros_like(fewest)
    for share, scores in zip(shares_of(weights, len(members)), members, strict=True):
        ordered = np.sort(scores.astype(np.float64), axis=class_axis)
        best, second = (np.take(ordered, [place], axis=class_axis) for place in (-1, -2))
        values = scores.astype(np.float64)
        fewest += share * ((values == best) & (best - second > 2 * slack))
        most += share * (values >= best - 2 * slack)
    return np.clip(actual.astype(np.float64), fewest, most)


@dataclass(frozen=True)
class Weighting:
    """One set of weights to run a file with.

    Attributes:
        values: The weights; None for all alike.
        feed: What is given to the file beside its inputs.
    """

    values: tuple[float, ...] | None
    feed: dict[str, Array]


def weightings(weights: MemberWeights | None, n_members: int, number: int, *, has_default: bool) -> list[Weighting]:
    """The weights that a probe is run with: the file's own, and on the first two probes others where it takes some.

    Args:
        weights: What the file was packed with.
        n_members: N.
        number: Number of the probe.
        has_default: May the input be left out?
    """
    if weights is None or weights.values is not None:
        return [Weighting(None if weights is None else weights.values, {})]
    ones: dict[str, Array] = {} if has_default else {WEIGHTS_INPUT: np.ones(n_members, np.float32)}
    if number > 1:
        return [Weighting(None, ones)]
    drawn: Array = np.random.default_rng(number).integers(1, 5, n_members).astype(np.float32)
    drawn[number % n_members] = 0 if n_members > 1 else 1
    return [Weighting(None, ones), Weighting(tuple(map(float, drawn)), {WEIGHTS_INPUT: drawn})]
