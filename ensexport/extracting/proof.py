"""The proof of an extracted member: its file against the packed file's own member, on the same random inputs.

There are no checkpoints to compare with, and none are needed: the packed file was proven against them. Both files run
in ONNX Runtime, without graph optimisation and with it; how far that alone moves their results says what rounding does
to this network, and is allowed four times, as everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ensexport.batching.examples import range_from_json
from ensexport.compare import Array, compare_arrays, is_exact
from ensexport.errors import EnsexportError, ExportError, MismatchError
from ensexport.extracting.packed_file import PackedFile
from ensexport.probes import Probe, make_probes
from ensexport.references import arrays
from ensexport.runtime.onnx_runner import HiddenRunner, OnnxRunner, options_for
from ensexport.spec import Check, Tolerance, ValidationReport
from ensexport.validation import raise_on_mismatch

BATCHES = (1, 2, 5)
SEEDS = (0,)
_LEVELS = ("disabled", "all")
Outputs = Mapping[str, Array]


@dataclass(frozen=True)
class _Runs:
    """What a file returned: level -> one entry a probe, None where it refused the inputs."""

    by_level: Mapping[str, Sequence[Outputs | None]]

    def noise(self, name: str) -> float:
        """How far graph optimisation moves an output, as a share of its largest value."""
        pairs = zip(*(self.by_level[level] for level in _LEVELS), strict=True)
        compared = [compare_arrays(one[name], two[name]).max_rel for one, two in pairs if one and two]
        return max((difference for difference in compared if np.isfinite(difference)), default=0.0)


def prove_member(
    file: PackedFile,
    extracted: Path,
    shown_as: str,
    member_index: int,
    *,
    sizes: Mapping[str, int],
    tolerance: Tolerance,
    provider: str,
) -> ValidationReport:
    """Compare an extracted member with the packed file's.

    Args:
        file: The packed file.
        extracted: The member's file.
        shown_as: What messages call it.
        member_index: The member.
        sizes: Sizes of the dynamic dims that a member accepts.
        tolerance: The bound.
        provider: `cpu`, `cuda` or `tensorrt`.

    Raises:
        MismatchError: They differ.
        ExportError: The extracted file does not run.
        ArtifactError, ProviderError: The packed file does not.
    """
    probes = _probes(file, sizes)
    packed = _Runs({level: _packed(file, level, probes, member_index, provider) for level in _LEVELS})
    own = _Runs({level: _extracted(file, extracted, level, probes, member_index, provider) for level in _LEVELS})
    judge = _Judge(file, shown_as, member_index, tolerance, provider)
    noise = {name: max(packed.noise(name), own.noise(name)) for name in file.outputs}
    checks = []
    for level in _LEVELS:
        for probe, expected, got in zip(probes, packed.by_level[level], own.by_level[level], strict=True):
            if expected is not None:
                checks += [judge.compared(level, probe, name, expected, got, noise[name]) for name in file.outputs]
    report = ValidationReport(tuple(checks), members=(member_index,))
    raise_on_mismatch(report, [f"member {index} of '{file.shown_as}'" for index in range(file.n_members)])
    return report


def _probes(file: PackedFile, sizes: Mapping[str, int]) -> list[Probe]:
    ranges = {name: range_from_json(values) for name, values in file.metadata.get("ranges", {}).items()}
    return make_probes(
        file.specs,
        file.metadata["per_member"],
        file.n_members,
        example_sizes=sizes,
        dim_ranges=file.ranges,
        ranges=ranges,
        batches=BATCHES,
        seeds=SEEDS,
    )


def _packed(
    file: PackedFile, level: str, probes: Sequence[Probe], member_index: int, provider: str
) -> list[Outputs | None]:
    """Member K's outputs of the packed file."""
    runner: OnnxRunner | HiddenRunner
    if file.hidden:
        runner = HiddenRunner(file.path, provider=provider, optimization=level, hidden=file.hidden, is_silent=True)
    else:
        runner = _runner(file.path, level, provider)
    results: list[Outputs | None] = []
    for probe in probes:
        outputs = _run(runner, arrays(probe.feed))
        results.append(outputs and {name: _slice(file, outputs[name], member_index) for name in file.outputs})
    if not any(results):
        raise ExportError(f"'{file.shown_as}' does not run on any of the inputs that were tried.", hint="Pack again.")
    return results


def _slice(file: PackedFile, output: Array, member_index: int) -> Array:
    axis = min(int(file.metadata["member_axis"]), output.ndim - 1)
    own: Array = np.take(output, member_index, axis)
    return own


def _extracted(
    file: PackedFile, path: Path, level: str, probes: Sequence[Probe], member_index: int, provider: str
) -> list[Outputs | None]:
    try:
        runner = _runner(path, level, provider)
    except EnsexportError as error:
        raise ExportError(f"the member's own graph does not load: {error.message}", hint=error.hint) from error
    return [_run(runner, arrays(probe.member_feed(member_index, file.metadata["per_member"]))) for probe in probes]


def _runner(path: Path, level: str, provider: str) -> OnnxRunner:
    return OnnxRunner(path, provider=provider, optimization=level, options=options_for(path), is_silent=True)


def _run(runner: OnnxRunner | HiddenRunner, feed: Mapping[str, Array]) -> Outputs | None:
    try:
        return runner.run(feed)
    except EnsexportError:
        raise
    except Exception:  # noqa: BLE001 - a size that a member refuses; the caller sees which file refused it
        return None


@dataclass(frozen=True)
class _Judge:
    """Compares what the two files returned."""

    file: PackedFile
    shown_as: str
    member_index: int
    tolerance: Tolerance
    provider: str

    def compared(
        self, level: str, probe: Probe, name: str, expected: Outputs, got: Outputs | None, noise: float
    ) -> Check:
        """Compare one output on one probe."""
        if got is None:
            raise MismatchError(
                f"'{self.shown_as}' fails at sizes {dict(probe.sizes)}, where '{self.file.shown_as}' runs.",
                hint="This is an error of ensexport: please report it.",
            )
        wanted, actual, problem = expected[name], got[name], ""
        if wanted.shape != actual.shape or wanted.dtype != actual.dtype:
            problem = f"expected {wanted.dtype} of shape {wanted.shape}, got {actual.dtype} of shape {actual.shape}"
        difference = compare_arrays(wanted, actual)
        conversion = self.file.conversion
        dtype = str(wanted.dtype) if conversion is None else conversion.coarsest
        # Both files may be off the members by the bound, to either side.
        allowed = 2 * self.tolerance.bound(dtype=dtype, scale=difference.scale, loop_error=noise)
        bound = 0.0 if is_exact(wanted.dtype) else allowed
        return Check(
            artifact=self.shown_as,
            provider=self.provider,
            batch=probe.batch,
            member_index=self.member_index,
            output=name,
            max_abs=difference.max_abs,
            max_rel=difference.max_rel,
            bound=bound,
            passed=not problem and difference.max_rel <= bound,
            index=difference.index,
            expected=difference.expected,
            actual=difference.actual,
            dtype=dtype,
            optimization=level,
            seed=probe.seed,
            problem=problem,
        )
