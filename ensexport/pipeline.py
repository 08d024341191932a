"""The main job: members -> batched graph -> files, proven before they are put in place."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ensexport.batching.engine import BatchedGraph, batch_graph
from ensexport.batching.examples import ValueRange, find_example, integer_inputs
from ensexport.batching.integers import accepted_ranges
from ensexport.batching.member_graph import MemberGraph, capture_member
from ensexport.errors import ArtifactError, ExportError, UsageError
from ensexport.members import Members, weights_digest
from ensexport.probes import BATCHES, SEEDS, find_probes
from ensexport.references import reference_outputs
from ensexport.runtime.runner import METADATA_FILE, METADATA_KEY
from ensexport.spec import (
    Artifact,
    Check,
    Plan,
    TensorSpec,
    Tolerance,
    ValidationReport,
    artifact_format,
    parse_inputs,
)
from ensexport.stacking import Ensemble
from ensexport.stacking.baseline import run_member
from ensexport.stacking.state import named_tensors
from ensexport.staging import Staging, writing
from ensexport.validation import check_artifact, raise_on_mismatch
from ensexport.version import __version__

OnStage = Callable[[str, int, int], None]


@dataclass(frozen=True)
class ExportReport:
    """What was written and how it was proven.

    Attributes:
        artifacts: The files, in the order asked for.
        validation: Every comparison made.
        plan: How the batched graph was made.
        timings_s: Seconds per stage.
        dims: Dynamic dim -> smallest and largest size (None = no end).
        warnings: What the user should know.
    """

    artifacts: tuple[Artifact, ...]
    validation: ValidationReport
    plan: Plan
    timings_s: Mapping[str, float]
    dims: Mapping[str, tuple[int, int | None]]
    warnings: tuple[str, ...] = ()


@dataclass
class _Clock:
    """Times the stages and tells a listener of them."""

    listener: OnStage | None
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self.tell(name, 0, 0)
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begin

    def tell(self, name: str, done: int, total: int) -> None:
        if self.listener is not None:
            self.listener(name, done, total)


def export(
    ensemble: Ensemble | Members,
    paths: str | Path | Sequence[str | Path],
    *,
    inputs: Sequence[TensorSpec | str],
    per_member: Sequence[str] | None = None,
    member_axis: int = 0,
    opset: int | None = None,
    strategy: str = "auto",
    provider: str = "cpu",
    output_names: Sequence[str] | None = None,
    tolerance: Tolerance | None = None,
    force: bool = False,
    batches: Sequence[int] = BATCHES,
    seeds: Sequence[int] = SEEDS,
    on_stage: OnStage | None = None,
) -> ExportReport:
    """Write an ensemble as ONNX, TorchScript or `.pt2`, each proven equal to the loop over its members.

    Args:
        ensemble: What `stack` or `load_members(..., model=...)` returned.
        paths: One or several files; the suffix says the format: `.onnx`, `.ts` or `.pt2`.
        inputs: One spec an input, as ONE member sees it: `x:float32[batch,1,28,28]`; a named dim is dynamic.
        per_member: Names of the inputs that get a leading N axis; all others are shared. By default what
            `stack(..., in_dims=...)` said.
        member_axis: 0 for outputs `(N, B, ...)`, 1 for `(B, N, ...)`.
        opset: ONNX opset version.
        strategy: `auto`, `stacked` or `unrolled`.
        provider: Where ONNX files are to run, and are checked: `cpu`, `cuda` or `tensorrt`.
        output_names: New names for the outputs, in order.
        tolerance: The bound; the default is described at `Tolerance`.
        force: Replace files that exist.
        batches: Batch sizes to compare at.
        seeds: Seeds of the random inputs to compare on.
        on_stage: Called as `(stage, done, total)`.

    Raises:
        UsageError: An option or spec is malformed.
        MemberError: The model cannot be packed.
        MismatchError: An artifact differs from the loop; nothing is written.
        ExportError: A format cannot be written, or a dynamic dim cannot be kept.
        OutputError: A target exists or cannot be written.
    """
    targets = [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths]
    if not targets:
        raise UsageError("no output is named.", hint="Add -o ensemble.onnx.")
    formats = [artifact_format(target) for target in targets]
    specs = parse_inputs(inputs)
    if per_member is None:
        per_member = _per_member_of(ensemble, specs)
    _check_names(per_member, specs)
    clock = _Clock(on_stage)
    with Staging(targets, force=force) as staging:
        with clock.stage("capture"):
            module = ensemble.build(0)
            built = named_tensors(module)
            example = find_example(module, specs)
            fills_buffers = any(built.get(name) is not tensor for name, tensor in named_tensors(module).items())
            member = capture_member(module, specs, example)
            ranges, notes = accepted_ranges(module, member, example)
            names = _output_names(output_names, tuple(example.outputs), specs)
        with clock.stage("batch"):
            # No copies: the tensors are the members' own.
            members = [ensemble.build(member_index) for member_index in range(len(ensemble))]
            if fills_buffers:  # on the first call, as member 0 was captured after it
                for one in members:
                    run_member(one, example.feed)
            states = [named_tensors(one) for one in members]
            del members
            batched = batch_graph(
                member,
                len(ensemble),
                shared_state=equal_in_all(states),
                per_member=per_member,
                member_axis=member_axis,
                strategy=strategy,
            )
            weights = batched.weights.pack(states, len(ensemble))
            del states
        metadata = _metadata(ensemble, batched, names, ranges)
        for target, kind in zip(targets, formats, strict=True):
            with clock.stage(f"export_{kind}"):
                _write(kind, staging.path(target), target, batched, weights, metadata, names, opset, provider)
        del weights
        with clock.stage("validate"):
            found = find_probes(
                ensemble.build(0),
                specs,
                per_member,
                len(ensemble),
                example_sizes=example.sizes,
                dim_ranges=member.dim_ranges,
                ranges=ranges,
                batches=batches,
                seeds=seeds,
            )
            probes = found.probes
            references = reference_outputs(ensemble, probes, per_member, on_progress=clock.tell)
            renamed = dict(zip(example.outputs, names, strict=True))
            references = [[reference.renamed(renamed) for reference in row] for row in references]
            checks: list[Check] = []
            for target in targets:
                try:
                    checks += check_artifact(
                        staging.path(target),
                        str(target),
                        references,
                        probes,
                        output_names=names,
                        tolerance=tolerance or Tolerance(),
                        provider=provider,
                        member_axis=member_axis,
                        source=ensemble,
                        member_names=tuple(example.outputs),
                        per_member=per_member,
                    )
                except ArtifactError as error:
                    raise ExportError(
                        f"cannot write '{target}': what the exporter made of the model does not run: {error.message}",
                        hint=f"Ship another format for this model: "
                        f"{' or '.join(sorted({'.onnx', '.ts', '.pt2'} - {target.suffix}))}.",
                    ) from error
            report = ValidationReport(tuple(checks), integer_inputs(specs, ranges))
            raise_on_mismatch(report, ensemble.labels)
        with clock.stage("write"):
            artifacts = tuple(
                _artifact(staging.path(target), target, kind) for target, kind in zip(targets, formats, strict=True)
            )
            staging.commit()
    warnings = (
        *(ensemble.warnings if isinstance(ensemble, Members) else ()),
        *notes,
        *found.warnings,
        *_check_notes(checks),
    )
    return ExportReport(artifacts, report, batched.plan, clock.seconds, member.dim_ranges, warnings)


def equal_in_all(states: Sequence[Mapping[str, torch.Tensor]]) -> frozenset[str]:
    """Names of the parameters and buffers that are bit-equal in all members: those are kept once."""
    first, *others = states
    return frozenset(name for name in first if all(torch.equal(first[name], state[name]) for state in others))


def _check_notes(checks: Sequence[Check]) -> Iterator[str]:
    """One line an output that passed with a note."""
    noted = {check.output: check for check in checks if check.note}
    for name, check in noted.items():
        yield f"output '{name}' of '{check.artifact}' is not equal everywhere: {check.note}"


def _per_member_of(ensemble: Ensemble | Members, specs: Sequence[TensorSpec]) -> tuple[str, ...]:
    if isinstance(ensemble, Members):
        return ()
    return tuple(spec.name for number, spec in enumerate(specs) if ensemble.in_dim(spec.name, number) == 0)


def _check_names(per_member: Sequence[str], specs: Sequence[TensorSpec]) -> None:
    known = [spec.name for spec in specs]
    for name in per_member:
        if name not in known:
            raise UsageError(
                f"'{name}' is said to be per-member, but is no input: expected one of {', '.join(known)}.",
                hint="Name it as in --input.",
            )


def _output_names(wanted: Sequence[str] | None, own: tuple[str, ...], specs: Sequence[TensorSpec]) -> tuple[str, ...]:
    names = tuple(wanted) if wanted else own
    if len(names) != len(own):
        raise UsageError(
            f"{len(names)} output names are given: expected {len(own)}, for {', '.join(own)}.",
            hint="Give one name per output, in order.",
        )
    inputs = {spec.name for spec in specs}
    if len(set(names)) < len(names) or (wanted and inputs & set(names)):
        raise UsageError(f"output names must be unique and no input's name: got {', '.join(names)}.")
    return tuple(name if name not in inputs else f"{name}_out" for name in names)


def _metadata(
    ensemble: Ensemble | Members, batched: BatchedGraph, names: Sequence[str], ranges: Mapping[str, ValueRange]
) -> dict[str, Any]:
    """What an artifact says of itself. No absolute paths: the bytes must not depend on where it was packed."""
    member: MemberGraph = batched.member
    return {
        "ensexport_version": __version__,
        "n_members": batched.n_members,
        "member_axis": batched.member_axis,
        "inputs": [str(spec) for spec in member.specs],
        "per_member": list(batched.per_member),
        "outputs": list(names),
        "emit": ["members"],
        "dims": {name: list(bounds) for name, bounds in sorted(member.dim_ranges.items())},
        "ranges": {name: values.to_json() for name, values in sorted(ranges.items())},
        "strategy": batched.plan.strategy,
        "members": _member_records(ensemble),
    }


def _member_records(ensemble: Ensemble | Members) -> list[dict[str, Any]]:
    """Name and digests of each member. A stacked ensemble knows no files, so only its weights' digests."""
    if isinstance(ensemble, Members):
        paths = [Path(member.path) for member in ensemble]
        digests = [(member.sha256, member.weights_sha256) for member in ensemble]
    else:
        # A label is `member 3 (runs/s3.pt)` where the member came from a file.
        paths = [Path(label.partition("(")[2].rstrip(")") or label) for label in ensemble.labels]
        digests = [("", weights_digest(ensemble.build(k).state_dict())) for k in range(len(ensemble))]
    return [
        {"index": index, "name": name, "sha256": sha256, "weights_sha256": weights_sha256}
        for index, (name, (sha256, weights_sha256)) in enumerate(zip(_short_names(paths), digests, strict=True))
    ]


def _short_names(paths: Sequence[Path]) -> list[str]:
    """The last parts of each path, as many as tell all apart: `fold_0/model.pth`."""
    longest = max(len(path.parts) for path in paths)
    for count in range(1, longest + 1):
        names = ["/".join(part for part in path.parts[-count:] if part != "/") for path in paths]
        if len(set(names)) == len(set(paths)):
            return names
    return [path.name for path in paths]


def _write(
    kind: str,
    staged: Path,
    target: Path,
    batched: BatchedGraph,
    weights: Mapping[str, torch.Tensor],
    metadata: Mapping[str, Any],
    names: Sequence[str],
    opset: int | None,
    provider: str,
) -> None:
    text = json.dumps(metadata, sort_keys=True)
    if kind == "onnx":
        from ensexport.targets.onnx import onnx_model, write_onnx
        from ensexport.targets.onnx_cpu import spell_out_elu

        model = onnx_model(batched, names, opset=opset)
        if provider == "cpu":
            spell_out_elu(model)
        with writing(target):
            write_onnx(model, staged, weights, {METADATA_KEY: text, "ensexport_version": __version__})
        return
    if kind == "torchscript":
        from ensexport.targets.torchscript import torchscript_bytes

        data = torchscript_bytes(batched, weights, {METADATA_FILE: text})
    else:
        from ensexport.targets.pt2 import pt2_bytes

        data = pt2_bytes(batched, weights, {METADATA_FILE: text})
    with writing(target):
        staged.write_bytes(data)


def _artifact(staged: Path, target: Path, kind: str) -> Artifact:
    with staged.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Artifact(str(target), kind, staged.stat().st_size, digest)
