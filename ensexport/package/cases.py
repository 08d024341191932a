"""Inputs and outputs that a package carries, so that whoever receives it can run it and compare.

The outputs are those of the loop over the members, in float64 and rounded once to the file's dtype: the oracle of the
proof travels with the file. Where there is no such answer (members that were not compared, integers that rounding
decides) they are the file's own, and the package says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from ensexport.combined_reference import combine
from ensexport.compare import Array, compare_arrays, compare_members, is_exact
from ensexport.dtypes import Conversion
from ensexport.emission import MEMBERS, OutputEmission, names_of
from ensexport.probes import Probe, file_feed
from ensexport.references import Reference, arrays
from ensexport.spec import Check, Tolerance
from ensexport.weighting import MemberWeights

_MAX_BYTES = 16_000_000  # of a case that is not the first
_MOST = 2


@dataclass(frozen=True)
class SampleCase:
    """Inputs, and what the file should return for them.

    Attributes:
        source: Where the inputs come from, such as `seed 0`.
        expected_from: `loop` for the loop over the members, `file` for the file itself.
        batch: Size of the batch dim; None when no dim is dynamic.
        inputs: By name, as the file takes them.
        outputs: By name, in the file's order and dtype.
        bounds: Output -> how far it may be off, as a share of its largest value (of each member's, see `axes`).
        axes: Output -> the axis of the members, which are judged one by one; None where they are combined.
    """

    source: str
    expected_from: str
    batch: int | None
    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]
    bounds: Mapping[str, float]
    axes: Mapping[str, int | None]

    @property
    def n_bytes(self) -> int:
        """Size of all arrays."""
        return sum(array.nbytes for array in (*self.inputs.values(), *self.outputs.values()))


def make_cases(
    run: Callable[[Mapping[str, Array]], Mapping[str, Array]],
    probes: Sequence[Probe],
    references: Sequence[Sequence[Reference]],
    checks: Sequence[Check],
    *,
    emitted: Sequence[OutputEmission],
    n_members: int,
    member_axis: int,
    weights: MemberWeights | None = None,
    conversion: Conversion | None = None,
) -> list[SampleCase]:
    """Make one or two cases out of the probes that the file was compared on.

    Args:
        run: Runs the file on inputs by name.
        probes: What it was compared on.
        references: What the members return, a list a member; empty where none was compared.
        checks: What the comparisons found.
        emitted: What each output of the model became.
        n_members: N.
        member_axis: Where N stands in the outputs.
        weights: How the members are weighed.
        conversion: What the file does in another dtype than its members.
    """
    making = _Making(run, references, checks, emitted, n_members, member_axis, weights, conversion)
    cases: list[SampleCase] = []
    for number in _chosen(probes):
        case = making.case(number, probes[number])
        if not cases or case.n_bytes <= _MAX_BYTES:
            cases.append(case)
    return cases


def _chosen(probes: Sequence[Probe]) -> list[int]:
    """Inputs of the user's own, a small batch of several rows, the largest; with dims as the model usually has."""
    real = [n for n, probe in enumerate(probes) if probe.source]
    usual = [n for n, p in enumerate(probes) if not p.is_extreme and not p.source and p.seed == probes[0].seed]
    several = [n for n in usual if (probes[n].batch or 0) > 1] or usual
    sizes = sorted(several, key=lambda n: probes[n].batch or 0)
    return list(dict.fromkeys((*real, sizes[0], sizes[-1])))[:_MOST]


@dataclass(frozen=True)
class _Making:
    run: Callable[[Mapping[str, Array]], Mapping[str, Array]]
    references: Sequence[Sequence[Reference]]
    checks: Sequence[Check]
    emitted: Sequence[OutputEmission]
    n_members: int
    member_axis: int
    weights: MemberWeights | None
    conversion: Conversion | None

    def case(self, number: int, probe: Probe) -> SampleCase:
        inputs = arrays(probe.feed if self.conversion is None else file_feed(probe.feed, self.conversion))
        own = {name: array for name, array in self.run(inputs).items() if name in names_of(self.emitted)}
        axes = {
            file_name: self._axis(own[file_name]) if name == MEMBERS else None
            for entry in self.emitted
            for name, file_name in zip(entry.names, entry.file_names, strict=True)
        }
        bounds = {name: self._bound(name, probe, own[name]) for name in own}
        expected = dict(self._expected(number, own)) if len(self.references) == self.n_members else {}
        is_loop = bool(expected) and all(
            is_within(expected[name], own[name], bound=bounds[name], axis=axes[name]) for name in own
        )
        return SampleCase(
            probe.source or f"seed {probe.seed}",
            "loop" if is_loop else "file",
            probe.batch,
            inputs,
            expected if is_loop else own,
            bounds,
            axes,
        )

    def _axis(self, output: Array) -> int:
        return min(self.member_axis, output.ndim - 1)

    def _expected(self, number: int, own: Mapping[str, Array]) -> Iterator[tuple[str, Array]]:
        """What the loop says, in the file's dtypes."""
        values = None if self.weights is None else self.weights.values
        for entry in self.emitted:
            members = [member[number].expected[entry.output] for member in self.references]
            for name, file_name in zip(entry.names, entry.file_names, strict=True):
                if name == MEMBERS:
                    exact = np.stack(members, self._axis(own[file_name]))
                else:
                    exact = combine(name, members, class_axis=entry.class_axis, weights=values)
                with np.errstate(over="ignore"):
                    yield file_name, np.asarray(exact).astype(own[file_name].dtype)

    def _bound(self, name: str, probe: Probe, output: Array) -> float:
        """The proof's own bound on this output, and the rounding of what is stored."""
        if is_exact(output.dtype):
            return 0.0
        found = [check for check in self.checks if check.output == name and np.isfinite(check.bound)]
        here = [check.bound for check in found if (check.batch, check.seed) == (probe.batch, probe.seed)]
        dtype = str(output.dtype)
        bound = max(here or [check.bound for check in found] or [Tolerance.FLOORS.get(dtype, 1e-5)])
        return float(bound + rounding_of(dtype))


def rounding_of(dtype: str) -> float:
    """What rounding a stored value to its dtype costs, as a share of it."""
    real = {"complex64": "float32", "complex128": "float64"}.get(dtype, dtype)
    return float(ml_dtypes.finfo(real).eps) / 2  # type: ignore[no-untyped-call]


def is_within(expected: Array, actual: Array, *, bound: float, axis: int | None) -> bool:
    """Is an output as near to what is expected as it must be?

    Args:
        expected: What it should be.
        actual: What it is.
        bound: As in `SampleCase`.
        axis: The axis of the members, which are judged one by one; None for no such axis.
    """
    if expected.shape != actual.shape or expected.dtype != actual.dtype:
        return False
    if axis is None:
        return compare_arrays(expected, actual).max_rel <= bound
    moved = (np.moveaxis(expected, axis, 0), np.moveaxis(actual, axis, 0))
    return all(difference.max_rel <= bound for difference in compare_members(*moved))
