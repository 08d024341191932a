"""One output of a stored sample: what a file gives for it, and what it should give."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ensexport.compare import Array, Difference, compare_arrays, compare_members
from ensexport.errors import MismatchError
from ensexport.members.wording import quote_path, show_path
from ensexport.package.integrity import CheckedPackage
from ensexport.spec import json_number

_EQUAL = Difference(0.0, 1.0, (), 0.0, 0.0)
_APART = Difference(float("inf"), 1.0, (), float("nan"), float("nan"))
_HINT = (
    "The files are those that the manifest lists, and they compute something else: the package was rewritten, or this "
    "runtime differs from the one it was packed with (`libraries` in the manifest)."
)


@dataclass(frozen=True)
class Place:
    """Where a sample was run.

    Attributes:
        file: The model, below the package.
        provider: Execution provider, or `torch-cpu` and `torch-cuda` for torch's own formats.
        optimization: ONNX Runtime's graph optimisation level; empty for torch's formats.
        sample: Folder of the sample.
    """

    file: str
    provider: str
    optimization: str
    sample: str

    def __str__(self) -> str:
        level = f", graph optimisation {self.optimization}" if self.optimization else ""
        return f"sample {quote_path(self.sample)}, {self.provider}{level}"


@dataclass(frozen=True)
class SampleCheck:
    """One output of one stored sample, as one file gives it on one provider.

    Attributes:
        place: Where it was run.
        output: Name of the output.
        bound: What `max_rel` may be.
        difference: Of the member that is furthest off, where the output holds members.
        member_index: That member; None for an output that combines them.
        problem: What differs before any value does; else empty.
    """

    place: Place
    output: str
    bound: float
    difference: Difference
    member_index: int | None = None
    problem: str = ""

    @property
    def passed(self) -> bool:
        """Is it within the bound, for every member?"""
        return not self.problem and self.difference.max_rel <= self.bound

    def to_dict(self) -> dict[str, Any]:
        """Return its entry in the answer of `verify`."""
        values = {"max_abs": self.difference.max_abs, "max_rel": self.difference.max_rel, "bound": self.bound}
        numbers = {name: json_number(value) for name, value in values.items()}
        return {**asdict(self.place), "output": self.output, **numbers, "passed": self.passed}


def check_output(place: Place, output: Mapping[str, Any], expected: Array, actual: Array | None) -> SampleCheck:
    """Compare one output with what is stored.

    Args:
        place: Where it was run.
        output: Its entry in the manifest: `name`, `bound` and `member_axis`.
        expected: What is stored.
        actual: What came; None if the file does not return it.
    """
    name, bound, axis = output["name"], output["bound"], output["member_axis"]
    if actual is None:
        return SampleCheck(place, name, bound, _APART, problem="the file does not return it")
    if (actual.dtype, actual.shape) != (expected.dtype, expected.shape):
        problem = f"expected {_kind(expected)}, got {_kind(actual)}"
        return SampleCheck(place, name, bound, _APART, problem=problem)
    if axis is None:
        return SampleCheck(place, name, bound, compare_arrays(expected, actual))
    each = compare_members(np.moveaxis(expected, axis, 0), np.moveaxis(actual, axis, 0))
    worst = max(range(len(each)), key=lambda k: each[k].max_rel, default=None)
    return SampleCheck(place, name, bound, _EQUAL if worst is None else each[worst], worst)


def mismatch(package: CheckedPackage, check: SampleCheck) -> MismatchError:
    """The error for an output that is not what is stored.

    Args:
        package: The package.
        check: What did not pass.
    """
    found, place, member = check.difference, check.place, check.member_index
    whose = "" if member is None else f"member {member} ({show_path(package.manifest['members'][member]['name'])}), "
    what = check.problem or (
        f"max abs diff {found.max_abs:.3g}, relative {found.max_rel:.3g} > {check.bound:.3g}, at {whose}"
        f"index {found.index}: expected {found.expected:.9g}, got {found.actual:.9g}"
    )
    return MismatchError(
        f"output {check.output!r} of {quote_path(package.path / place.file)} differs from what is stored ({place}): "
        f"{what}.",
        hint=_HINT,
        **asdict(place),
        output=check.output,
        member_index=member,
        index=list(found.index),
        expected=json_number(found.expected),
        actual=json_number(found.actual),
    )


def _kind(array: Array) -> str:
    return f"{array.dtype.name}{list(array.shape)}"
