"""`pack`: checkpoint files in, proven artifacts out. What the command line calls, usable alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ensexport.choice import ALL_MEMBERS, MemberChoice
from ensexport.clock import Clock, OnStage
from ensexport.dtypes import AS_THEY_ARE, DtypeChoice
from ensexport.emission import ALL_MEMBERS_ONLY, Emission
from ensexport.estimates import Estimate
from ensexport.input_data import check_exists
from ensexport.members import Members, load_members
from ensexport.members.inspection import Inspection, inspect_members
from ensexport.members.selection import NO_SELECTION, Selection
from ensexport.members.trust import NO_TRUST, Trust
from ensexport.package.choice import DEFAULT_PACKAGE, PackageChoice
from ensexport.package.planning import plan_outputs
from ensexport.pipeline import ExportReport, export
from ensexport.spec import TensorSpec, Tolerance, parse_inputs
from ensexport.strategies import TUNE_BATCHES
from ensexport.weighting import MemberWeights


@dataclass(frozen=True)
class PackReport:
    """What was packed.

    Attributes:
        members: The members, in order, and what was skipped; after a dry run what `inspect` says of them.
        export: The artifacts and their proof; None after a dry run.
        timings_s: Seconds per stage, loading first.
        peak_bytes: The most resident memory per stage; empty where the system does not say.
    """

    members: Members | Inspection
    export: ExportReport | None
    timings_s: Mapping[str, float]
    peak_bytes: Mapping[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object of the contract, less `command` and `ok`."""
        done = self.export
        return {
            **(members_dict(self.members) if isinstance(self.members, Members) else self.members.to_dict()),
            "artifacts": [] if done is None else [asdict(artifact) for artifact in done.artifacts],
            "validation": None if done is None else done.validation.to_dict(),
            "plan": None if done is None else asdict(done.plan),
            "dtypes": None if done is None or done.conversion is None else done.conversion.to_json(),
            "dims": {} if done is None else {name: list(bounds) for name, bounds in done.dims.items()},
            "timings_s": {stage: round(seconds, 4) for stage, seconds in self.timings_s.items()},
            "peak_memory_mb": {stage: round(size / 1e6, 1) for stage, size in self.peak_bytes.items()},
            "estimate": None if done is None or done.estimate is None else done.estimate.to_dict(),
            "warnings": list(self.members.warnings if done is None else done.warnings),
        }


def members_dict(members: Members) -> dict[str, Any]:
    """Return the `members` and `skipped` entries of the JSON contract."""
    names = ("index", "path", "sha256", "container_key", "stripped_prefix")
    return {
        "members": [{name: getattr(member, name) for name in names} for member in members],
        "skipped": [asdict(skipped) for skipped in members.skipped],
    }


def pack(
    checkpoints: Sequence[str | Path],
    outputs: Sequence[str | Path],
    *,
    model: str | Callable[..., Any],
    inputs: Sequence[TensorSpec | str],
    model_args: Mapping[str, Any] | None = None,
    base_dir: str | Path | None = None,
    selection: Selection = NO_SELECTION,
    trust: Trust = NO_TRUST,
    allow_nonfinite: bool = False,
    per_member: Sequence[str] = (),
    member_axis: int = 0,
    opset: int | None = None,
    target: str = "portable",
    provider: str | None = None,
    strategy: str = "auto",
    tune_batches: Sequence[int] = TUNE_BATCHES,
    output_names: Sequence[str] | None = None,
    emission: Emission = ALL_MEMBERS_ONLY,
    weights: MemberWeights | None = None,
    dtypes: DtypeChoice = AS_THEY_ARE,
    tolerance: Tolerance | None = None,
    choice: MemberChoice = ALL_MEMBERS,
    package: PackageChoice = DEFAULT_PACKAGE,
    external_data: bool = False,
    sample_inputs: str | Path | None = None,
    force: bool = False,
    dry_run: bool = False,
    on_stage: OnStage | None = None,
    on_estimate: Callable[[Estimate], None] | None = None,
) -> PackReport:
    """Load checkpoints, batch them, export, prove, write.

    Args:
        checkpoints: Folders, files or globs.
        outputs: Files to write; each suffix says its format, and one without a suffix becomes a package folder.
        model: The architecture, as for `load_members`.
        inputs: Input specs, as for `export`.
        model_args: Keyword arguments of the architecture.
        base_dir: What a relative path in `model` is relative to.
        selection: Where in the files the weights lie, as for `load_members`.
        trust: What may run code, as for `load_members`.
        allow_nonfinite: Take members that hold NaN or Inf, with a warning.
        per_member: Names of the inputs that get a leading N axis.
        member_axis: 0 for outputs `(N, B, ...)`, 1 for `(B, N, ...)`.
        opset: ONNX opset version.
        target: `portable`, `cpu`, `cuda` or `tensorrt`, as for `export`.
        provider: Where ONNX files are checked and timed, as for `export`.
        strategy: `auto`, `stacked`, `unrolled` or `tune`, as for `export`.
        tune_batches: Batch sizes that `tune` times.
        output_names: New names for the outputs.
        emission: What the outputs become, as for `export`.
        weights: How much each member counts in what is combined, as for `export`.
        dtypes: What the files compute in, take and return, as for `export`.
        tolerance: The bound.
        choice: The members to compare with the loop, as for `export`.
        package: What package folders are to hold, as for `export`.
        external_data: Put the weights of ONNX files into a file beside them, as for `export`.
        sample_inputs: Inputs to compare on too, as for `export`.
        force: Replace files that exist.
        dry_run: Load and compare the members, check the outputs, write nothing.
        on_stage: Called as `(stage, done, total)`.
        on_estimate: Called with what memory and disk will be needed, when the members were read.

    Raises:
        EnsexportError: As documented at `load_members` and `export`.
    """
    specs = parse_inputs(inputs)
    targets = [Path(output) for output in outputs]
    request = plan_outputs(targets, package)
    request.staging(force=force)  # refuse a bad target before the work, not after
    clock, base = Clock(on_stage), Path.cwd()
    if sample_inputs is not None:
        check_exists(sample_inputs)
    reading: dict[str, Any] = {
        "model_args": model_args,
        "base_dir": base_dir,
        "selection": selection,
        "trust": trust,
        "allow_nonfinite": allow_nonfinite,
        "any_float": dtypes.inside is not None,
        "on_progress": lambda _path, done, total: clock.tell("load", done, total),
    }
    if dry_run:
        with clock.stage("load"):
            inspection = inspect_members(list(checkpoints), model, **reading)
        if inspection.problems:
            raise inspection.problems[0]
        return PackReport(inspection, None, clock.seconds, clock.peak_bytes)
    with clock.stage("load"):
        members = load_members(list(checkpoints), model, **reading)
    if Path.cwd() != base:  # the model's code changed it
        targets = [base / path for path in targets]
        sample_inputs = None if sample_inputs is None else base / sample_inputs
    done = export(
        members,
        targets,
        inputs=specs,
        per_member=per_member,
        member_axis=member_axis,
        opset=opset,
        target=target,
        provider=provider,
        strategy=strategy,
        tune_batches=tune_batches,
        output_names=output_names,
        emission=emission,
        weights=weights,
        dtypes=dtypes,
        tolerance=tolerance,
        choice=choice,
        package=package,
        external_data=external_data,
        sample_inputs=sample_inputs,
        force=force,
        on_stage=on_stage,
        on_estimate=on_estimate,
    )
    return PackReport(members, done, {**clock.seconds, **done.timings_s}, {**clock.peak_bytes, **done.peak_bytes})
