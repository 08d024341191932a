"""What combined outputs should be, from the members' own outputs: NumPy in float64, written from the formulas.

The oracle for `heads.py`, which shares no code with it: the weights that are 0 are taken out first, probabilities are
averaged with `logaddexp`, and the mutual information is the plain difference of the two entropies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from ensexport.compare import Array
from ensexport.emission import percent_of

Floats = npt.NDArray[np.float64]


def combine(
    name: str, members: Sequence[Array] | Array, *, class_axis: int = -1, weights: Sequence[float] | None = None
) -> Array:
    """Return a combined output.

    Args:
        name: A name that `emission` knows other than `members`.
        members: The members' outputs, `(B, C)` each.
        class_axis: The axis of one member's output that holds the classes.
        weights: How much each member counts; None for all alike.

    Returns:
        Float64, but the members' own dtype for `min` and `max` of integers.
    """
    given = shares_of(weights, len(members))
    kept = np.flatnonzero(given > 0)
    values = np.stack([np.asarray(members[int(index)]) for index in kept])
    if name in ("min", "max") and values.dtype.kind in "iu":
        return np.asarray(values.min(0) if name == "min" else values.max(0))
    shares = given[kept]
    percent = percent_of(name)
    axis = class_axis if class_axis < 0 else class_axis + 1
    with np.errstate(divide="ignore", invalid="ignore", over="ignore", under="ignore"):
        if percent is not None:
            return _quantile(values.astype(np.float64), percent)
        if name in _OF_VALUES:
            return _OF_VALUES[name](values.astype(np.float64), shares)
        return np.asarray(_OF_CLASSES[name](np.moveaxis(values.astype(np.float64), axis, -1), shares, axis))


def shares_of(weights: Sequence[float] | None, n_members: int) -> Floats:
    """The weights as shares that sum to 1, all alike for None. The largest goes first: no sum of them overflows."""
    given = np.ones(n_members) if weights is None else np.asarray(weights, np.float64)
    given = given / given.max()
    return np.asarray(given / given.sum())


def _mean(values: Floats, shares: Floats) -> Floats:
    return np.asarray(np.tensordot(shares, values, 1))


def _var(values: Floats, shares: Floats) -> Floats:
    return _mean((values - _mean(values, shares)) ** 2, shares)


def _median(values: Floats, shares: Floats) -> Floats:
    if np.ptp(shares) == 0:
        return np.asarray(np.median(values, axis=0))
    order = np.argsort(values, axis=0, kind="stable")
    ordered = np.take_along_axis(values, order, 0)
    reached = np.cumsum(shares[order], axis=0)
    places = [np.minimum((reached < bound).sum(0), len(values) - 1) for bound in (0.5 - 1e-6, 0.5 + 1e-6)]
    lower, upper = (np.take_along_axis(ordered, place[None], 0)[0] for place in places)
    return np.asarray((lower + upper) / 2)


def _quantile(values: Floats, percent: int) -> Floats:
    """Linear between neighbours. `np.quantile` gives NaN where both are infinite."""
    place = percent / 100 * (len(values) - 1)
    ordered = np.sort(values, axis=0)
    lower, upper = ordered[math.floor(place + 1e-9)], ordered[math.ceil(place - 1e-9)]
    t = place - math.floor(place + 1e-9)
    return np.asarray(np.where(lower == upper, lower, (1 - t) * lower + t * upper))


_OF_VALUES: Mapping[str, Callable[[Floats, Floats], Floats]] = {
    "mean": _mean,
    "var": _var,
    "std": lambda values, shares: np.sqrt(_var(values, shares)),
    "min": lambda values, shares: values.min(0),
    "max": lambda values, shares: values.max(0),
    "median": _median,
}


def _logs(scores: Floats) -> Floats:
    """The members' logarithms of the probabilities, classes last."""
    return np.asarray(scores - np.logaddexp.reduce(scores, axis=-1, keepdims=True))


def _log_of_mean(scores: Floats, shares: Floats) -> Floats:
    terms = [log + np.log(share) for log, share in zip(_logs(scores), shares, strict=True)]
    return np.asarray(np.logaddexp.reduce(terms, axis=0))


def _entropy_of(logs: Floats) -> Floats:
    p = np.exp(logs)
    return np.asarray(-np.multiply(p, logs, where=p > 0, out=np.zeros_like(p)).sum(-1))


def _vote(scores: Floats, shares: Floats) -> Floats:
    one_hot = np.eye(scores.shape[-1])
    return _mean(one_hot[scores.argmax(-1)], shares)


def _back(array: Floats, axis: int) -> Floats:
    """Classes from last to where they stand in one member's output."""
    return np.moveaxis(array, -1, axis if axis < 0 else axis - 1)


def _expected(scores: Floats, shares: Floats) -> Floats:
    return _mean(_entropy_of(_logs(scores)), shares)


_OF_CLASSES: Mapping[str, Callable[[Floats, Floats, int], Floats]] = {
    "probs": lambda scores, shares, axis: _back(np.exp(_log_of_mean(scores, shares)), axis),
    "logprobs": lambda scores, shares, axis: _back(_log_of_mean(scores, shares), axis),
    "vote": lambda scores, shares, axis: _back(_vote(scores, shares), axis),
    "entropy": lambda scores, shares, axis: _entropy_of(_log_of_mean(scores, shares)),
    "expected_entropy": lambda scores, shares, axis: _expected(scores, shares),
    "mutual_information": lambda scores, shares, axis: np.maximum(
        _entropy_of(_log_of_mean(scores, shares)) - _expected(scores, shares), 0
    ),
}
