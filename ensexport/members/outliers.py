"""A member that stands far from the others: diverged, collapsed, hardly trained, scaled. A dead fold spoils every mean.

Each member is summed up by one norm a tensor and the batches its BatchNorm layers have seen, so that members need not
be in memory together. Three members or more are compared with their median, their own number included, so that one of
three cannot pull it. Of two nobody can say which is wrong.

The bounds were found on ensembles of eight small architectures (perceptrons with BatchNorm, LayerNorm and neither, a
convnet, a transformer, an LSTM, regressors) whose members differed in seed and fold, in learning rate (33 times), in
weight decay or in epochs (6 times). Six to ten healthy members stayed within 6.2 times the median in every tensor and
within 2.1 times in half of them; all subsets of three and two within 12.6 and 2.9 times. A member scaled by ten was off
by 5.6 times or more in half of its tensors even in those subsets, one trained with Adam at a learning rate of 1 by 9
times. Among members of one training, one stopped after its first step was off by 40 times in some tensor, if the
network had norms; with BatchNorm the number of batches says it too.

What cannot be seen: an untrained member of a network without norms, whose tensors are much like the others', and one
layer that is ten times too large.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ensexport.members.scalars import MAX_NAME, shorten

FAR = 20.0
"""Times the median, or one part in as many, in one tensor: the member stands apart."""
FAR_IN_MOST = 4.0
"""The same, where more than half of the tensors are that far off in one direction."""
FEW_BATCHES = 20.0
"""A member whose BatchNorm layers have seen less than one in as many of the median's batches is hardly trained."""
MIN_ELEMENTS = 8
"""The norm of fewer values is a matter of chance: the one bias of a regressor differed by 230 times."""

_BATCH_COUNTER = "num_batches_tracked"
_CHUNK = 2**16
_LARGE_CHUNK = 2**20
_SMALLEST = 1e-20  # the squares of smaller numbers are no normal float32
_ADVICE = "look at its training log; leave it out or train it again."
_ADVICE_FOR_TWO = "look at both training logs; train the worse one again."


@dataclass(frozen=True)
class Summary:
    """What is kept of one member's tensors.

    Attributes:
        norms: By name, the 2-norm of each floating-point or complex tensor of `MIN_ELEMENTS` or more.
        batches: The most batches that any BatchNorm layer has seen; None if no layer counts them.
    """

    norms: Mapping[str, float]
    batches: int | None

    @property
    def is_finite(self) -> bool:
        """False if a norm is NaN or Inf."""
        return all(math.isfinite(norm) for norm in self.norms.values())


@dataclass(frozen=True)
class Outlier:
    """A member that stands apart, or two of which one may be wrong.

    Attributes:
        member_index: Which; None where there are only two members.
        tensor: The tensor that shows it best; None if it shows in the number of batches alone.
        text: What was found and what to do, for the user.
    """

    member_index: int | None
    tensor: str | None
    text: str


def summarise(state: Mapping[str, torch.Tensor]) -> Summary:
    """Return the norm of each tensor. Integers, but for BatchNorm's counters, say nothing.

    Args:
        state: One member's plain, dense tensors.
    """
    norms: dict[str, float] = {}
    counts: list[int] = []
    for name, tensor in state.items():
        if tensor.is_floating_point() or tensor.is_complex():
            if tensor.numel() >= MIN_ELEMENTS:
                norms[name] = _norm(tensor)
        elif name.rpartition(".")[2] == _BATCH_COUNTER and tensor.numel() == 1:
            counts.append(int(tensor))
    return Summary(norms, max(counts, default=None))


def find_outliers(summaries: Sequence[Summary], labels: Sequence[str]) -> list[Outlier]:
    """Return the members that stand far from the others, in order.

    Args:
        summaries: One member each. Those that hold NaN or Inf are passed over.
        labels: How messages name them: `member 3 (fold_3.pt)`.

    Returns:
        At most one a member. Of two members that differ, one outlier that names both.
    """
    members = {index: summary for index, summary in enumerate(summaries) if summary.is_finite}
    if len(members) < 3:
        return _compare_two([(labels[index], summary) for index, summary in members.items()])
    shared = set.intersection(*(set(summary.norms) for summary in members.values()))
    medians = {name: statistics.median(summary.norms[name] for summary in members.values()) for name in shared}
    counts = [summary.batches for summary in members.values() if summary.batches is not None]
    median = Summary(medians, int(statistics.median(counts)) if len(counts) == len(members) else None)
    outliers = []
    for index, summary in members.items():
        tensor, reasons = _reasons(summary, median, "the members' median", "most members")
        if reasons:
            outliers.append(Outlier(index, tensor, f"{labels[index]}: {'; '.join(reasons)}: {_ADVICE}"))
    return outliers


def _compare_two(members: Sequence[tuple[str, Summary]]) -> list[Outlier]:
    """Compare either of two with the other; of fewer there is nothing to say."""
    for (label, summary), (other_label, other) in zip(members, members[::-1], strict=True):
        tensor, reasons = _reasons(summary, other, "that of the second", "the second")
        if reasons and len(members) == 2:
            what = f"{label} and {other_label} stand far apart, and nothing says which of two is wrong"
            return [Outlier(None, tensor, f"{what}: in the first, {'; '.join(reasons)}: {_ADVICE_FOR_TWO}")]
    return []


def _reasons(member: Summary, reference: Summary, norm_of: str, others: str) -> tuple[str | None, list[str]]:
    """Say how a member differs from a reference.

    Args:
        member: The one that may be an outlier.
        reference: What it is compared with.
        norm_of: The reference's norm, in words.
        others: Whom it stands for, in words.

    Returns:
        The tensor that shows it best, and a text for each reason.
    """
    ratios = {name: norm / reference.norms[name] for name, norm in member.norms.items() if reference.norms.get(name)}
    zeros = [name for name, ratio in ratios.items() if not ratio]
    tensor, reasons = None, []
    if zeros:
        tensor = zeros[0]
        reasons.append(f"{_and_others(zeros)} {'is' if len(zeros) == 1 else 'are'} all zeros, unlike in {others}")
    larger = {name: ratio for name, ratio in ratios.items() if ratio > 1}
    smaller = {name: 1 / ratio for name, ratio in ratios.items() if 0 < ratio < 1}
    for times, start, end in ((larger, "", " times"), (smaller, "1/", " of")):
        far = _far(times, len(ratios))
        if far:
            tensor = tensor or far[0]
            ends = dict.fromkeys(f"{start}{_number(times[name])}" for name in (far[-1], far[0]))
            reasons.append(f"the norm of {_and_others(far)} is {' to '.join(ends)}{end} {norm_of}")
    seen, usual = member.batches, reference.batches
    if seen is not None and usual is not None and seen * FEW_BATCHES < usual:
        batches = "1 training batch" if seen == 1 else f"{seen} training batches"
        reasons.append(f"its BatchNorm layers have seen {batches}, against {usual} in {others}")
    return tensor, reasons


def _far(times: Mapping[str, float], n_tensors: int) -> list[str]:
    """The tensors that are far off in one direction, the furthest first; a lower bound holds where most are."""
    names = sorted((name for name, ratio in times.items() if ratio >= FAR_IN_MOST), key=lambda name: -times[name])
    if len(names) > max(n_tensors / 2, 1):
        return names
    return [name for name in names if times[name] >= FAR]


def _and_others(names: Sequence[str]) -> str:
    others = len(names) - 1
    return repr(shorten(names[0], MAX_NAME)) + (f" and {others} other tensor{'s' * (others > 1)}" if others else "")


def _number(ratio: float) -> str:
    return f"{ratio:.0f}" if ratio < 1e6 else f"{ratio:.0e}"


def _norm(tensor: torch.Tensor) -> float:
    """The 2-norm: squares are added up in the tensor's dtype where that is wide enough, chunk by chunk in float64.

    In one piece, torch would make a float64 copy of the whole tensor.
    """
    flat = (torch.view_as_real(tensor) if tensor.is_complex() else tensor).detach().reshape(-1)
    if flat.dtype == torch.float32:
        total = math.fsum(float(torch.dot(part, part)) for part in torch.split(flat, _LARGE_CHUNK))
        if _SMALLEST < total < math.inf:
            return math.sqrt(total)
    chunks = (flat[start : start + _CHUNK] for start in range(0, len(flat), _CHUNK))
    return math.hypot(*(float(torch.linalg.vector_norm(chunk.to(torch.float64))) for chunk in chunks))
