"""The proof: every artifact is loaded back and compared with the loop over every member.

The reference is the loop in float64. An artifact may be as far from it as the loop in the members' own dtype is,
there or as a rule, times four, or as far as a floor per dtype, whichever is more (`Tolerance`). Integer and boolean
outputs must agree exactly with the loop in the members' own dtype.

Names come first, then dtypes and shapes, then values: an output of another dtype fails even if its values agree.
"""

from __future__ import annotations

import math
import re
import statistics
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ensexport.batching.examples import find_example, integer_inputs, range_from_json
from ensexport.choice import ALL_MEMBERS, MemberChoice
from ensexport.combined_checks import Judged, Weighting, judge_combined, weightings
from ensexport.compare import Array, Difference, compare_members, count_other_top1, is_exact
from ensexport.dtypes import Conversion
from ensexport.emission import OutputEmission, from_json, hidden_of, names_of
from ensexport.errors import ArtifactError, EnsexportError, MismatchError, UsageError
from ensexport.members import Members
from ensexport.probes import BATCHES, SEEDS, Probe, few_probes, file_feed, find_probes, through
from ensexport.references import OnProgress, Reference, arrays, reference_outputs
from ensexport.runtime import Runner, open_runners, read_metadata
from ensexport.runtime.torch_runner import array_from_tensor
from ensexport.spec import Check, TensorSpec, Tolerance, ValidationReport, json_number, parse_inputs
from ensexport.stacking.baseline import MemberSource, run_member
from ensexport.weighting import MemberWeights

_ROUNDING = "If the members themselves are right and this is rounding, --rtol or --atol sets the bound."
_NOT_ROUNDING = "If these are the members that were packed, this is an error of the export: please report it."


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
    source: MemberSource | None = None,
    member_names: Sequence[str] = (),
    per_member: Sequence[str] = (),
    members: Sequence[int] | None = None,
    n_members: int | None = None,
    emitted: Sequence[OutputEmission] | None = None,
    weights: MemberWeights | None = None,
    conversion: Conversion | None = None,
) -> list[Check]:
    """Load an artifact and compare every output of every member, and all that is made of them, on every probe.

    Args:
        path: The file to load.
        shown_as: The path that reports name (the file may still be staged).
        references: A list a member, a reference a probe.
        probes: The inputs.
        output_names: Contract names of the model's outputs, in order.
        tolerance: The bound.
        provider: `cpu`, `cuda` or `tensorrt`.
        member_axis: Where N stands in the outputs.
        source: The members, to find out whether integers that differ do so by rounding; without it they fail.
        member_names: What the members themselves call the outputs, where that differs.
        per_member: Names of the inputs with a leading N.
        members: Whose references are given; None for all.
        n_members: N, where not all are.
        emitted: What each output became; None for the members as they are.
        weights: How the members are weighed where they are combined.
        conversion: What the file does in another dtype than its members.

    Raises:
        ArtifactError, ProviderError, OpsetError: The file cannot be loaded and run.
    """
    emitted = [OutputEmission(name) for name in output_names] if emitted is None else emitted
    file_names, hidden = names_of(emitted), hidden_of(emitted)
    chosen = list(range(len(references)) if members is None else members)
    share = _Share(tuple(chosen), n_members or len(chosen), member_axis)
    own_names = dict(zip(output_names, member_names or output_names, strict=True))
    judge = _Judge(shown_as, references, share, tolerance, source, own_names, tuple(per_member), conversion)
    checks: list[Check] = []
    for runner in open_runners(path, provider=provider, output_names=file_names, hidden=hidden):
        kept: Collection[int] = range(len(probes))
        for number, probe in enumerate(probes):
            if number not in kept or (probe.is_brief and runner.optimization == "disabled" and number):
                continue
            begin = time.perf_counter()
            # Of the formats only `.pt2` has no optional inputs.
            sets = weightings(weights, share.n_members, number, has_default=path.suffix != ".pt2")
            for turn, weighting in enumerate(sets):
                outputs = _run(runner, probe, weighting, shown_as, conversion)
                missing = [name for name in (*file_names, *hidden) if name not in outputs]
                if missing:
                    raise MismatchError(
                        f"'{shown_as}' has no output '{missing[0]}': it returns {', '.join(outputs)}.",
                        hint=_NOT_ROUNDING,
                    )
                for entry in emitted:
                    compared = judge.members(runner, number, probe, entry, outputs)
                    checks += [] if turn else compared.checks
                    checks += judge.combined(runner, probe, entry, outputs, compared, weighting)
            if number == 0 and conversion is not None and not runner.optimization:
                kept = few_probes(probes, time.perf_counter() - begin)
        del runner  # the next one takes as much memory
    return checks


def _run(
    runner: Runner, probe: Probe, weighting: Weighting, shown_as: str, conversion: Conversion | None
) -> dict[str, Array]:
    where = f"on {runner.provider} at sizes {dict(probe.sizes)}"
    feed = probe.feed if conversion is None else file_feed(probe.feed, conversion)
    try:
        return runner.run(arrays(feed) | weighting.feed)
    except EnsexportError:
        raise
    except Exception as error:
        if re.search("NOT_IMPLEMENTED|not support", str(error)):
            raise ArtifactError(
                f"'{shown_as}' cannot be run {where}: {_describe(error)}",
                hint="What runs it lacks an operator for this dtype.",
            ) from error
        raise MismatchError(
            f"'{shown_as}' fails {where}, where the members run: {_describe(error)}",
            hint="Give that dimension a number in --input if this size is not needed.",
        ) from error


@dataclass(frozen=True)
class _Compared:
    """The members' outputs on one probe.

    Attributes:
        checks: One a member.
        row: What each should return, in the shape the file has.
        slack: How far the file's may be from it.
    """

    checks: list[Check]
    row: Sequence[Reference]
    slack: float


@dataclass(frozen=True)
class _Judge:
    """Compares what an artifact returned with the references."""

    shown_as: str
    references: Sequence[Sequence[Reference]]
    share: _Share
    tolerance: Tolerance
    source: MemberSource | None
    own_names: Mapping[str, str]
    per_member: tuple[str, ...]
    conversion: Conversion | None

    def members(
        self, runner: Runner, number: int, probe: Probe, entry: OutputEmission, outputs: Mapping[str, Array]
    ) -> _Compared:
        """Compare the members of one output, one by one."""
        name = entry.output
        output, share, checks, slack = outputs[name], self.share, [], 0.0
        usual = _usual_error(self.references, name)
        row: Sequence[Reference] = [member[number] for member in self.references]
        kept = _with_kept_dims(row, name, output, share) if probe.batch == 1 else None
        row, remark = (row, "") if kept is None else (kept, _DROPPED)
        compared = _differences(row, name, output, share)
        for place, (member_index, (difference, problem)) in enumerate(zip(share.members, compared, strict=True)):
            bound = _bound(self.tolerance, row[place], name, difference.scale, usual)
            slack = max(slack, bound * difference.scale)
            passed, note = not problem and difference.max_rel <= bound, ""
            if not passed and not problem and is_exact(output.dtype) and self.source is not None:
                own = np.take(output, member_index, min(share.axis, output.ndim - 1))
                feed = probe.member_feed(member_index, self.per_member)
                build = partial(self.source.build, member_index)
                inside = None if self.conversion is None else self.conversion.coarsest
                note = explain_integers(build, feed, self.own_names[name], own, inside)
            is_scored = entry.needs_classes and not problem
            top1 = self._top1(row[place], member_index, entry, output) if is_scored else (0, 0)
            judged = Judged(name, difference, bound, problem, note or (remark if passed else ""), top1)
            checks.append(self._check(runner, probe, judged, row[place].dtype[name], member_index, bool(note)))
        return _Compared(checks, row, slack)

    def _top1(self, reference: Reference, member_index: int, entry: OutputEmission, output: Array) -> tuple[int, int]:
        own = np.take(output, member_index, min(self.share.axis, output.ndim - 1))
        return count_other_top1(reference.expected[entry.output], own, entry.class_axis)

    def combined(
        self,
        runner: Runner,
        probe: Probe,
        entry: OutputEmission,
        outputs: dict[str, Array],
        compared: _Compared,
        weighting: Weighting,
    ) -> Iterator[Check]:
        """Compare what is made of the members: from the loop's outputs, or where not all are at hand the file's own."""
        if not entry.combined or any(check.problem for check in compared.checks):
            return
        output, dtype, slack = outputs[entry.output], compared.row[0].dtype[entry.output], compared.slack
        expected = [reference.expected[entry.output] for reference in compared.row]
        if is_exact(output.dtype) or len(expected) < self.share.n_members:
            expected, slack = list(np.moveaxis(output, min(self.share.axis, output.ndim - 1), 0)), 0.0
        for judged in judge_combined(
            entry,
            outputs,
            expected,
            dtype=dtype,
            slack=slack,
            tolerance=self.tolerance,
            weights=weighting.values,
        ):
            yield self._check(runner, probe, judged, dtype, None, False)

    def _check(
        self, runner: Runner, probe: Probe, judged: Judged, dtype: str, member_index: int | None, explained: bool
    ) -> Check:
        return Check(
            artifact=self.shown_as,
            provider=runner.provider,
            optimization=runner.optimization,
            batch=probe.batch,
            member_index=member_index,
            output=judged.name,
            max_abs=judged.difference.max_abs,
            max_rel=judged.difference.max_rel,
            bound=judged.bound,
            passed=judged.passed or explained,
            index=judged.difference.index,
            expected=judged.difference.expected,
            actual=judged.difference.actual,
            dtype=dtype,
            seed=probe.seed,
            problem=judged.problem,
            note=judged.note,
            top1_inputs=judged.top1[1],
            top1_differs=judged.top1[0],
        )


@dataclass(frozen=True)
class _Share:
    """The members that are compared: which, of how many, and on which axis of an output."""

    members: tuple[int, ...]
    n_members: int
    axis: int


def explain_integers(
    build: Callable[[], nn.Module],
    feed: Mapping[str, torch.Tensor],
    name: str,
    actual: Array,
    inside: str | None = None,
) -> str:
    """Say that rounding explains integers that differ from a member's, or return an empty string.

    `argmax`, `sort` or `x > 0` turn a difference in the last digit into another integer. Rounding is what explains it
    if the member's own integers become these, each of them at least once, when its weights and inputs change by as
    little as its other outputs may differ by.

    Args:
        build: Builds the member.
        feed: Its inputs.
        name: The output, as the member names it.
        actual: What the artifact returns for it.
        inside: The dtype that the artifact computes in, if it is not the member's.
    """
    module = build()
    before = array_from_tensor(run_member(module, dict(feed))[name])
    kinds = (
        {inside}
        if inside
        else {str(t.dtype).removeprefix("torch.") for t in module.state_dict().values() if t.is_floating_point()}
    )
    share = max((Tolerance.FLOORS.get(kind, 0.0) for kind in kinds), default=0.0)
    generator = torch.Generator().manual_seed(0)

    def shaken(tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_floating_point():
            return tensor
        noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        return (tensor.to(torch.float64) * (1 + share * noise)).to(tensor.dtype)

    unexplained = before != actual
    for _ in range(_SHAKES):
        module = build()._apply(shaken)  # type: ignore[no-untyped-call]
        outputs = run_member(module, {key: shaken(tensor) for key, tensor in feed.items()})
        unexplained = unexplained & (array_from_tensor(outputs[name]) != actual)
        if not unexplained.any():
            return (
                f"{int((before != actual).sum())} of {before.size} differ, as the member's own do when its weights "
                f"and inputs change by {share:g} of their size"
            )
    return ""


_SHAKES = 16


def _describe(error: Exception) -> str:
    """One line. TorchScript puts a traceback first, and what went wrong last."""
    text = str(error).strip()
    text = text.splitlines()[-1] if "Traceback of TorchScript" in text else text
    return f"{type(error).__name__}: {' '.join(text.split())}"[:400]


_DROPPED = "at batch 1 the members drop dims of size 1 (squeeze() without a dim?), the file keeps them"


def _with_kept_dims(row: Sequence[Reference], name: str, output: Array, share: _Share) -> list[Reference] | None:
    """The references with the dims of size 1 that the artifact has and the members do not; None if that is not all."""
    axis = min(share.axis, output.ndim - 1)
    if output.ndim == 0 or output.shape[axis] != share.n_members:
        return None
    shape = (*output.shape[:axis], *output.shape[axis + 1 :])
    for reference in row:
        own = reference.expected[name].shape
        if len(own) >= len(shape) or [size for size in own if size != 1] != [size for size in shape if size != 1]:
            return None
    return [
        replace(reference, expected={**reference.expected, name: reference.expected[name].reshape(shape)})
        for reference in row
    ]


def _differences(row: Sequence[Reference], name: str, output: Array, share: _Share) -> list[tuple[Difference, str]]:
    """Compare each member's slice of an output; the text says what differs before any value does."""
    shapes = [reference.expected[name].shape for reference in row]
    axis = min(share.axis, len(shapes[0]))
    shape = (*shapes[0][:axis], share.n_members, *shapes[0][axis:])
    if output.shape != shape or len(set(shapes)) > 1:
        # The shapes are in the text; the slice, if there is one, would tell less.
        nothing = Difference(math.inf, 1.0, (), math.nan, math.nan)
        return [
            (nothing, f"expected shape {(*s[:axis], share.n_members, *s[axis:])}, got {output.shape}") for s in shapes
        ]
    expected = np.stack([reference.expected[name] for reference in row])
    compared = compare_members(expected, np.moveaxis(output, axis, 0)[list(share.members)])
    got = str(output.dtype)
    wanted_dtypes = [reference.dtype[name] for reference in row]
    problems = ["" if got == dtype else f"expected dtype {dtype}, got {got}" for dtype in wanted_dtypes]
    return list(zip(compared, problems, strict=True))


def _bound(tolerance: Tolerance, reference: Reference, name: str, scale: float, usual_error: float) -> float:
    if is_exact(reference.expected[name].dtype):
        return 0.0
    loop_error = max(reference.loop_error[name], usual_error)
    return tolerance.bound(dtype=reference.precision[name], scale=scale, loop_error=loop_error)


def _usual_error(references: Sequence[Sequence[Reference]], name: str) -> float:
    """The loop's own error on an output, as a rule: the lower median over all members and probes.

    On one probe it may happen to be small where a network multiplies rounding by hundreds.
    """
    return statistics.median_low(reference.loop_error[name] for member in references for reference in member)


def raise_on_mismatch(report: ValidationReport, labels: Sequence[str], conversion: Conversion | None = None) -> None:
    """Raise for the worst failed check, if any failed.

    Raises:
        MismatchError: Names artifact, member, output, index, both values (or dtypes, or shapes), bound and provider.
            Its details are as JSON can hold them, see `json_number`.
    """
    if report.passed:
        return
    if not report.checks:
        raise MismatchError("nothing was compared, so nothing is proven.", validation=report.to_dict())
    worst = report.worst
    others = sum(not check.passed for check in report.checks) - 1
    raise MismatchError(
        f"output '{worst.output}' of '{worst.artifact}' differs from the baseline: {_what(worst)}, at "
        f"{_whose(worst, labels)}, {_where(worst)}." + (f" {others} other checks failed too." if others else ""),
        hint=_hint(worst, conversion),
        validation=report.to_dict(),
        member_index=worst.member_index,
        output=worst.output,
        index=list(worst.index),
        expected=json_number(worst.expected),
        actual=json_number(worst.actual),
    )


def _hint(check: Check, conversion: Conversion | None) -> str:
    if conversion is not None and conversion.inside == "float16" and not check.problem and not _is_rounding(check):
        return "What is beyond 65504 is Inf in float16: --dtype bfloat16 has the range of float32."
    return _ROUNDING if _is_rounding(check) else _NOT_ROUNDING


def _whose(check: Check, labels: Sequence[str]) -> str:
    return "all members combined" if check.member_index is None else labels[check.member_index]


def _what(check: Check) -> str:
    if check.problem:
        return check.problem
    if not math.isfinite(check.max_abs):
        return "NaN or Inf on one side only"
    return f"max abs diff {check.max_abs:.3g}, relative {check.max_rel:.3g} > {check.bound:.3g}"


def _where(check: Check) -> str:
    level = f", graph optimisation {check.optimization}" if check.optimization else ""
    where = f"batch {check.batch}, {check.dtype}, {check.provider}{level}"
    if check.problem and not math.isfinite(check.max_abs):
        return where
    return f"index {check.index}, {where}: expected {_value(check.expected)}, got {_value(check.actual)}"


def _value(value: float | int) -> str:
    return f"{value:.9g}" if isinstance(value, float) else str(value)


def _is_rounding(check: Check) -> bool:
    return not check.problem and math.isfinite(check.max_abs) and isinstance(check.expected, float)


def validate(
    artifact: str | Path,
    members: Members,
    *,
    tolerance: Tolerance | None = None,
    provider: str = "cpu",
    batches: Sequence[int] = BATCHES,
    seeds: Sequence[int] = SEEDS,
    choice: MemberChoice = ALL_MEMBERS,
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
        choice: The members to compare.
        on_progress: Called as `(stage, done, total)`.

    Raises:
        ArtifactError: The file cannot be read, or holds another number of members or outputs.
        ModelInputError: The members accept none of the artifact's inputs.
        MismatchError: Values differ; or a member's weights are not those that were packed.
        UsageError: No seed is given, or an unknown provider.
    """
    path = Path(artifact)
    metadata = read_metadata(path)
    if metadata["n_members"] != len(members):
        raise ArtifactError(
            f"'{artifact}' holds {metadata['n_members']} members, and {len(members)} checkpoints were given.",
            hint="Give exactly the checkpoints that were packed, in the same order.",
        )
    conversion = Conversion.from_json(metadata.get("dtypes"))
    specs: tuple[TensorSpec, ...] = parse_inputs(metadata.get("member_inputs") or metadata["inputs"])
    per_member = tuple(metadata["per_member"])
    emitted = from_json(metadata.get("emit"), metadata["outputs"])
    outputs = [entry.output for entry in emitted]
    example = find_example(members.build(0), specs)
    if len(example.outputs) != len(outputs):
        raise ArtifactError(
            f"'{artifact}' has the outputs {', '.join(outputs)}, and the model returns {', '.join(example.outputs)}.",
            hint="Give the architecture that was packed.",
        )
    ranges = {name: range_from_json(values) for name, values in metadata.get("ranges", {}).items()}
    found = find_probes(
        members.build(0),
        specs,
        per_member,
        len(members),
        example_sizes=example.sizes,
        dim_ranges={name: (bounds[0], bounds[1]) for name, bounds in metadata["dims"].items()},
        ranges=ranges,
        batches=batches,
        seeds=seeds,
    )
    probes = through(found.probes, conversion)
    names = dict(zip(example.outputs, outputs, strict=True))
    chosen = choice.indices(len(members))
    if not chosen:
        raise UsageError(f"no member is chosen ({choice.text!r}): expected at least one to compare.")
    references = [
        [reference.renamed(names) for reference in row]
        for row in reference_outputs(
            members, probes, per_member, members=chosen, conversion=conversion, on_progress=on_progress
        )
    ]
    report = ValidationReport(
        tuple(
            check_artifact(
                path,
                str(artifact),
                references,
                probes,
                output_names=outputs,
                tolerance=tolerance or Tolerance(),
                provider=provider,
                member_axis=metadata["member_axis"],
                source=members,
                member_names=tuple(example.outputs),
                per_member=per_member,
                members=chosen,
                n_members=len(members),
                emitted=emitted,
                weights=MemberWeights.from_json(metadata.get("member_weights")),
                conversion=conversion,
            )
        ),
        integer_inputs(specs, ranges),
        None if choice.is_all else chosen,
    )
    raise_on_mismatch(report, [member.label for member in members], conversion)
    _check_provenance(path, metadata, members, report)
    return report


def joined(reports: Iterable[ValidationReport]) -> ValidationReport:
    """The reports of several files of one ensemble as one."""
    first, *others = reports
    checks = [check for report in (first, *others) for check in report.checks]
    return replace(first, checks=tuple(checks))


def _check_provenance(path: Path, metadata: Mapping[str, object], members: Members, report: ValidationReport) -> None:
    """A change too small for random inputs to show still makes it another network."""
    packed = metadata["members"]
    assert isinstance(packed, list)
    for member, record in zip(members, packed, strict=True):
        digest = record.get("weights_sha256", "")  # empty for an ensemble of live modules
        if digest and digest != member.weights_sha256:
            own = [check for check in report.checks if check.member_index == member.index]
            worst = max(own or report.checks, key=lambda check: check.max_rel)
            raise MismatchError(
                f"{member.label} is not the network that '{path}' holds as member {member.index} "
                f"('{record.get('name', '')}'): expected weights sha256 {digest[:12]}..., got "
                f"{member.weights_sha256[:12]}.... Their outputs on random inputs differ by up to {worst.max_abs:.3g} "
                f"(relative {worst.max_rel:.3g}, within the bound {worst.bound:.3g}).",
                hint="Pack again, or give the checkpoint that was packed.",
                member_index=member.index,
                validation=report.to_dict(),
            )
