"""The proof: every artifact is loaded back and compared with the loop over every member.

The reference is the loop in float64. An artifact may be as far from it as the loop in the members' own dtype is,
times four, or as far as a floor per dtype, whichever is more (`Tolerance`). Integer and boolean outputs must agree
exactly with the loop in the members' own dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ensexport.batching.examples import find_example
from ensexport.compare import Array, compare_arrays, is_exact
from ensexport.errors import ArtifactError, MismatchError
from ensexport.members import Members
from ensexport.probes import BATCHES, SEEDS, Probe, make_probes
from ensexport.runtime import open_runners, read_metadata
from ensexport.runtime.torch_runner import array_from_tensor
from ensexport.spec import Check, TensorSpec, Tolerance, ValidationReport, parse_inputs
from ensexport.stacking.baseline import MemberSource, run_member

OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Reference:
    """What one member returns on one probe.

    Attributes:
        expected: Output name -> value of the float64 loop (of the native loop for integers and booleans).
        loop_error: Output name -> the native loop's own `max|y - expected| / max|expected|`.
        dtype: Output name -> dtype name the member itself returns.
    """

    expected: Mapping[str, Array]
    loop_error: Mapping[str, float]
    dtype: Mapping[str, str]

    def renamed(self, names: Mapping[str, str]) -> Reference:
        """The same values under the artifact's output names."""
        return Reference(
            {names[name]: value for name, value in self.expected.items()},
            {names[name]: value for name, value in self.loop_error.items()},
            {names[name]: value for name, value in self.dtype.items()},
        )


def reference_outputs(
    source: MemberSource,
    probes: Sequence[Probe],
    per_member: Sequence[str],
    *,
    on_progress: OnProgress | None = None,
) -> list[list[Reference]]:
    """Run the loop over the members; returns `references[member_index][probe]`.

    One member is in memory at a time, first in its own dtype, then in float64.
    """
    references = []
    for member_index in range(len(source)):
        module = source.build(member_index)
        feeds = [probe.member_feed(member_index, per_member) for probe in probes]
        native = [_arrays(run_member(module, feed)) for feed in feeds]
        exact = _run_float64(module, feeds)
        references.append(
            [_reference(own, own if better is None else better) for own, better in zip(native, exact, strict=True)]
        )
        if on_progress is not None:
            on_progress("loop", member_index + 1, len(source))
    return references


def _run_float64(module: nn.Module, feeds: Sequence[dict[str, torch.Tensor]]) -> list[dict[str, Array] | None]:
    """The float64 outputs, or None for each feed if the model's code insists on another dtype."""
    try:
        return [_arrays(run_member(module, feed, dtype=torch.float64)) for feed in feeds]
    except RuntimeError as error:
        if "dtype" not in str(error).lower() and "type" not in str(error).lower():
            raise
        return [None] * len(feeds)


def _arrays(outputs: Mapping[str, torch.Tensor]) -> dict[str, Array]:
    return {name: array_from_tensor(value) for name, value in outputs.items()}


def _reference(native: Mapping[str, Array], exact: Mapping[str, Array]) -> Reference:
    expected: dict[str, Array] = {}
    errors: dict[str, float] = {}
    for name, own in native.items():
        exactly = is_exact(own.dtype)
        expected[name] = own if exactly else exact[name]
        errors[name] = 0.0 if exactly else compare_arrays(exact[name], own).max_rel
    return Reference(expected, errors, {name: str(own.dtype) for name, own in native.items()})


def check_artifact(
    path: Path,
    shown_as: str,
    references: Sequence[Sequence[Reference]],
    probes: Sequence[Probe],
    *,
    output_names: Sequence[str],
    tolerance: Tolerance,
    provider: str = "cpu",
    member_axis: int = 0,
) -> list[Check]:
    """Load an artifact and compare every output of every member on every probe.

    Args:
        path: The file to load.
        shown_as: The path that reports name (the file may still be staged).
        references: `references[member_index][probe]`.
        probes: The inputs.
        output_names: Contract names of the outputs, in order.
        tolerance: The bound.
        provider: `cpu`, `cuda` or `tensorrt`.
        member_axis: Where N stands in the outputs.

    Raises:
        ArtifactError, ProviderError, OpsetError: The file cannot be loaded and run.
    """
    checks = []
    for runner in open_runners(path, provider=provider, output_names=tuple(output_names)):
        for number, probe in enumerate(probes):
            try:
                outputs = runner.run(_arrays(probe.feed))
            except Exception as error:
                raise MismatchError(
                    f"'{shown_as}' fails on {runner.provider} at sizes {dict(probe.sizes)}, where the members run: "
                    f"{type(error).__name__}: {str(error).strip()[:400]}",
                    hint="Give that dimension a number in --input if this size is not needed.",
                ) from error
            for member_index, member in enumerate(references):
                for name in output_names:
                    checks.append(
                        _check(
                            shown_as,
                            runner.provider,
                            runner.optimization,
                            probe,
                            member_index,
                            name,
                            member[number],
                            outputs[name],
                            tolerance,
                            member_axis,
                        )
                    )
    return checks


def _check(
    artifact: str,
    provider: str,
    optimization: str,
    probe: Probe,
    member_index: int,
    name: str,
    reference: Reference,
    output: Array,
    tolerance: Tolerance,
    member_axis: int,
) -> Check:
    expected = reference.expected[name]
    axis = min(member_axis, expected.ndim)
    has_member = output.ndim == expected.ndim + 1 and output.shape[axis] > member_index
    actual: Array = np.take(output, member_index, axis=axis) if has_member else output
    difference = compare_arrays(expected, actual)
    dtype = reference.dtype[name]
    exact = is_exact(np.dtype(output.dtype))
    bound = (
        0.0 if exact else tolerance.bound(dtype=dtype, scale=difference.scale, loop_error=reference.loop_error[name])
    )
    return Check(
        artifact=artifact,
        provider=provider,
        optimization=optimization,
        batch=probe.batch,
        member_index=member_index,
        output=name,
        max_abs=difference.max_abs,
        max_rel=difference.max_rel,
        bound=bound,
        passed=has_member and str(output.dtype) == dtype and difference.max_rel <= bound,
        index=difference.index,
        expected=difference.expected,
        actual=difference.actual,
        dtype=dtype,
        seed=probe.seed,
    )


def raise_on_mismatch(report: ValidationReport, labels: Sequence[str]) -> None:
    """Raise for the worst failed check, if any failed.

    Raises:
        MismatchError: Names artifact, member, output, index, both values, bound and provider.
    """
    if report.passed:
        return
    worst = report.worst
    level = f", graph optimisation {worst.optimization}" if worst.optimization else ""
    others = sum(not check.passed for check in report.checks) - 1
    raise MismatchError(
        f"output '{worst.output}' of '{worst.artifact}' differs from the baseline: max abs diff {worst.max_abs:.3g}, "
        f"relative {worst.max_rel:.3g} > {worst.bound:.3g}, at {labels[worst.member_index]}, index {worst.index}, "
        f"batch {worst.batch}, {worst.dtype}, {worst.provider}{level}: expected {worst.expected:.9g}, "
        f"got {worst.actual:.9g}." + (f" {others} other checks failed too." if others else ""),
        hint="If the members themselves are right and this is rounding, --rtol sets the bound.",
        validation=report.to_dict(),
        member_index=worst.member_index,
        output=worst.output,
        index=list(worst.index),
        expected=worst.expected,
        actual=worst.actual,
    )


def validate(
    artifact: str | Path,
    members: Members,
    *,
    tolerance: Tolerance | None = None,
    provider: str = "cpu",
    batches: Sequence[int] = BATCHES,
    seeds: Sequence[int] = SEEDS,
    on_progress: OnProgress | None = None,
) -> ValidationReport:
    """Compare an existing artifact with the loop over the members' checkpoints.

    Args:
        artifact: An `.onnx`, `.ts` or `.pt2` file that ensexport wrote.
        members: The checkpoints it should equal, in order, with their architecture.
        tolerance: The bound; the default is described at `Tolerance`.
        provider: `cpu`, `cuda` or `tensorrt`.
        batches: Batch sizes to compare at.
        seeds: Seeds of the random inputs.
        on_progress: Called as `(stage, done, total)`.

    Raises:
        ArtifactError: The file cannot be read, or holds another number of members.
        MismatchError: Values differ; or a member's weights are not those that were packed.
    """
    path = Path(artifact)
    metadata = read_metadata(path)
    if metadata["n_members"] != len(members):
        raise ArtifactError(
            f"'{artifact}' holds {metadata['n_members']} members, and {len(members)} checkpoints were given.",
            hint="Give exactly the checkpoints that were packed, in the same order.",
        )
    specs: tuple[TensorSpec, ...] = parse_inputs(metadata["inputs"])
    per_member = tuple(metadata["per_member"])
    example = find_example(members.build(0), specs)
    probes = make_probes(
        specs,
        per_member,
        len(members),
        example_sizes=example.sizes,
        dim_ranges={name: (bounds[0], bounds[1]) for name, bounds in metadata["dims"].items()},
        batches=batches,
        seeds=seeds,
    )
    names = dict(zip(example.outputs, metadata["outputs"], strict=True))
    references = [
        [reference.renamed(names) for reference in row]
        for row in reference_outputs(members, probes, per_member, on_progress=on_progress)
    ]
    report = ValidationReport(
        tuple(
            check_artifact(
                path,
                str(artifact),
                references,
                probes,
                output_names=metadata["outputs"],
                tolerance=tolerance or Tolerance(),
                provider=provider,
                member_axis=metadata["member_axis"],
            )
        )
    )
    raise_on_mismatch(report, [member.label for member in members])
    _check_provenance(path, metadata, members, report)
    return report


def _check_provenance(path: Path, metadata: Mapping[str, object], members: Members, report: ValidationReport) -> None:
    """A change too small for random inputs to show still makes it another network."""
    packed = metadata["members"]
    assert isinstance(packed, list)
    for member, record in zip(members, packed, strict=True):
        if record["weights_sha256"] and record["weights_sha256"] != member.weights_sha256:
            worst = max((c for c in report.checks if c.member_index == member.index), key=lambda c: c.max_rel)
            raise MismatchError(
                f"{member.label} is not the network that '{path}' holds as member {member.index} "
                f"('{record['name']}'): expected weights sha256 {record['weights_sha256'][:12]}..., got "
                f"{member.weights_sha256[:12]}.... Their outputs on random inputs differ by up to {worst.max_abs:.3g} "
                f"(relative {worst.max_rel:.3g}, within the bound {worst.bound:.3g}).",
                hint="Pack again, or give the checkpoint that was packed.",
                member_index=member.index,
                validation=report.to_dict(),
            )
