"""The main job: members -> batched graph -> files, proven before they are put in place."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ensexport.artifacts import for_target, make_metadata, write_artifacts
from ensexport.batching.converting import convert
from ensexport.batching.engine import BatchedGraph, batch_graph
from ensexport.batching.rule_sets import RuleSet, rule_set
from ensexport.choice import ALL_MEMBERS, MemberChoice
from ensexport.clock import Clock, OnStage
from ensexport.compare import Array
from ensexport.dtypes import AS_THEY_ARE, Conversion, DtypeChoice
from ensexport.emission import ALL_MEMBERS_ONLY, Emission, hidden_of, names_of
from ensexport.errors import UsageError
from ensexport.estimates import Estimate, estimate
from ensexport.heads import add_heads
from ensexport.members import Members
from ensexport.output_files import Output, data_file, describe_artifacts
from ensexport.package.choice import DEFAULT_PACKAGE, PackageChoice, PackagePlan
from ensexport.package.making import PackageMaking
from ensexport.package.planning import plan_outputs
from ensexport.package.writing import Contents, write_package
from ensexport.probes import BATCHES, SEEDS, file_feed, make_probes
from ensexport.proving import Proving, prove, real_probe
from ensexport.recipe.making import make_recipe
from ensexport.runtime.onnx_runner import check_provider
from ensexport.runtime.torch_runner import array_from_tensor
from ensexport.source import Source, States, capture_source, chunks_of, dtype_name, equal_in_all, member_bytes
from ensexport.spec import (
    FORMAT_BY_SUFFIX,
    Artifact,
    Plan,
    TensorSpec,
    Tolerance,
    ValidationReport,
    parse_inputs,
)
from ensexport.stacking import Ensemble
from ensexport.staging import Staging
from ensexport.strategies import TUNE_BATCHES, Candidates, graph_options, tuned
from ensexport.weighting import MemberWeights


@dataclass(frozen=True)
class ExportReport:
    """What was written and how it was proven.

    Attributes:
        artifacts: The files, in the order asked for.
        validation: Every comparison made.
        plan: How the batched graph was made.
        timings_s: Seconds per stage.
        peak_bytes: The most resident memory per stage; empty where the system does not say.
        estimate: What was expected to be needed.
        conversion: What the files do in another dtype than the members; None for nothing.
        dims: Dynamic dim -> smallest and largest size (None = no end).
        warnings: What the user should know.
    """

    artifacts: tuple[Artifact, ...]
    validation: ValidationReport
    plan: Plan
    timings_s: Mapping[str, float]
    dims: Mapping[str, tuple[int, int | None]]
    warnings: tuple[str, ...] = ()
    peak_bytes: Mapping[str, int] = field(default_factory=dict)
    estimate: Estimate | None = None
    conversion: Conversion | None = None


def export(
    ensemble: Ensemble | Members,
    paths: str | Path | Sequence[str | Path],
    *,
    inputs: Sequence[TensorSpec | str],
    per_member: Sequence[str] | None = None,
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
    force: bool = False,
    batches: Sequence[int] = BATCHES,
    seeds: Sequence[int] = SEEDS,
    choice: MemberChoice = ALL_MEMBERS,
    package: PackageChoice = DEFAULT_PACKAGE,
    external_data: bool = False,
    sample_inputs: str | Path | None = None,
    on_stage: OnStage | None = None,
    on_estimate: Callable[[Estimate], None] | None = None,
) -> ExportReport:
    """Write an ensemble as ONNX, TorchScript or `.pt2`, each proven equal to the loop over its members.

    Args:
        ensemble: What `stack` or `load_members(..., model=...)` returned.
        paths: One or several files; the suffix says the format: `.onnx`, `.ts` or `.pt2`. One without a suffix
            becomes a package folder.
        inputs: One spec an input, as ONE member sees it: `x:float32[batch,1,28,28]`; a named dim is dynamic.
        per_member: Names of the inputs that get a leading N axis; all others are shared. By default what
            `stack(..., in_dims=...)` said.
        member_axis: 0 for outputs `(N, B, ...)`, 1 for `(B, N, ...)`.
        opset: ONNX opset version.
        target: Where the files will run: `portable` (anywhere), `cpu`, `cuda` or `tensorrt`; it chooses the rules.
        provider: Where ONNX files are checked and timed: `cpu`, `cuda` or `tensorrt`; by default where they will run,
            portable ones on the CPU.
        strategy: `auto` batches where the target's rules promise a gain, `stacked` batches everything, `unrolled`
            writes N branches; `tune` times these and more and keeps the fastest.
        tune_batches: Batch sizes that `tune` times.
        output_names: New names for the outputs, in order.
        emission: What the outputs become: the members as they are, or what `parse_emission("probs,entropy")` says.
        weights: How much each member counts in what is combined: `MemberWeights((0.5, 0.3, 0.2))`, or
            `MemberWeights()` for an input `member_weights`; by default all count alike.
        dtypes: What the files compute in, take and return: `DtypeChoice("float16", io="float32")`; by default the
            members' own dtype.
        tolerance: The bound; the default is described at `Tolerance`.
        force: Replace files that exist.
        batches: Batch sizes to compare at.
        seeds: Seeds of the random inputs to compare on.
        choice: The members to compare with the loop; all unless an ensemble is too large for that.
        package: What package folders are to hold.
        external_data: Put the weights of ONNX files into a file beside them, not only above 2 GiB.
        sample_inputs: An `.npz` of inputs to compare on too; its first rows become the first sample of packages.
        on_stage: Called as `(stage, done, total)`.
        on_estimate: Called with what memory and disk will be needed, before the work.

    Raises:
        UsageError: An option or spec is malformed.
        MemoryLimitError: The machine, or a limit of the process, has less memory than is needed.
        MemberError: The model cannot be packed.
        MismatchError: An artifact differs from the loop; nothing is written.
        ExportError: A format cannot be written, or a dynamic dim cannot be kept.
        OutputError: A target exists or cannot be written.
        ProviderError: The provider is not there.
    """
    targets = [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths]
    request = plan_outputs(targets, package)
    formats = request.formats
    specs = parse_inputs(inputs)
    if per_member is None:
        per_member = _per_member_of(ensemble, specs)
    _check_names(per_member, specs)
    rules = rule_set(target)
    provider = provider or rules.provider
    if "onnx" in formats:
        check_provider(provider)  # before the work, not after
    clock = Clock(on_stage)
    expected = estimate(
        formats,
        member_bytes(ensemble),
        len(ensemble),
        n_validated=len(choice.indices(len(ensemble))),
        equal_bytes=ensemble.equal_bytes if isinstance(ensemble, Members) else 0,
    )
    if on_estimate is not None:
        on_estimate(expected)
    expected.check_memory()
    expected.check_disk(targets)
    with request.staging(force=force) as staging:
        with clock.stage("capture"):
            source = capture_source(ensemble, specs, per_member, output_names)
        emitted = emission.resolve(source.names)
        conversion = dtypes.resolve(dtype_name(source.member))
        with clock.stage("batch"):
            batch = functools.partial(
                _batched,
                conversion,
                source.member,
                len(ensemble),
                shared_state=equal_in_all(source),
                per_member=per_member,
                member_axis=member_axis,
            )
            batched = None if strategy == "tune" else batch(**graph_options(strategy, rules, chunks=chunks_of(source)))
        if batched is None:
            files = _TuneFiles(source, formats, opset, target)
            batched = _tuned(files, batch, _feeds(source, tune_batches, conversion), rules, provider, clock)
        batched = add_heads(for_target(batched, target), emitted, weights)
        outputs = request.outputs(staging)
        metadata = make_metadata(ensemble, batched, emitted, source.ranges, weights, conversion)
        metadata |= _recipe(source, batched, conversion) | _chosen(choice, len(ensemble))
        real = None if sample_inputs is None else real_probe(sample_inputs, metadata, conversion)
        write_artifacts(
            outputs,
            batched,
            States(source),
            metadata,
            (*names_of(emitted), *hidden_of(emitted)),
            opset,
            scratch=staging.scratch((*request.files, *request.folders)[0]),
            clock=clock,
            external_data=external_data,
        )
        with clock.stage("validate"):
            how = Proving(
                provider,
                member_axis,
                tolerance or Tolerance(),
                batches,
                seeds,
                choice,
                emitted,
                weights,
                conversion,
                needs_probes=bool(request.packages),
                real=real,
            )
            proof = prove(source, {output.target: output.staged for output in outputs}, how, clock)
        with clock.stage("digest"):
            single = _with_data([output for output in outputs if output.target in request.files])
            artifacts = tuple(describe_artifacts(list(single), functools.partial(clock.tell, "digest")))
        if request.packages:
            making = PackageMaking(ensemble, batched, emitted, weights, conversion, metadata, opset, provider)
            with clock.stage("package"):
                contents = making.contents(proof, package, _first_onnx(outputs))
                artifacts += tuple(_packages(request.packages, staging, contents, clock))
        with clock.stage("write"):
            staging.commit()
    warnings = (*(ensemble.warnings if isinstance(ensemble, Members) else ()), *source.notes, *proof.notes)
    return ExportReport(
        artifacts,
        proof.report,
        batched.plan,
        clock.seconds,
        source.member.dim_ranges,
        warnings,
        clock.peak_bytes,
        expected,
        conversion,
    )


def _recipe(source: Source, batched: BatchedGraph, conversion: Conversion | None) -> dict[str, Any]:
    """What a file carries for `swap` and `extract`."""
    return make_recipe(
        batched,
        fills_buffers=source.fills_buffers,
        conversion=conversion,
        own=source.own,
        sizes=source.example.sizes,
    )


def _packages(plans: Sequence[PackagePlan], staging: Staging, contents: Contents, clock: Clock) -> Iterator[Artifact]:
    for plan in plans:
        tell = functools.partial(clock.tell, "package")
        yield from write_package(plan, staging.path(plan.target) / plan.inside, contents, tell)


def _first_onnx(outputs: Sequence[Output]) -> Path:
    """The file that is run for the samples of packages: the one that loads quickest."""
    return next((output for output in outputs if output.kind == "onnx"), outputs[0]).staged


def _batched(conversion: Conversion | None, *args: Any, **options: Any) -> BatchedGraph:
    batched = batch_graph(*args, **options)
    return batched if conversion is None else convert(batched, conversion)


def _with_data(outputs: Sequence[Output]) -> Iterator[Output]:
    """Every file that is about to be put in place, external data last."""
    yield from outputs
    for output in outputs:
        data = data_file(output.staged)
        if output.kind == "onnx" and data.exists():
            yield Output("onnx_data", data, data_file(output.target))


@dataclass(frozen=True)
class _TuneFiles:
    """How the candidates of `tune` are written: as ONNX, if that is asked for."""

    source: Source
    formats: Sequence[str]
    opset: int | None
    target: str

    @property
    def kind(self) -> str:
        return "onnx" if "onnx" in self.formats else self.formats[0]

    @property
    def suffix(self) -> str:
        return next(suffix for suffix, kind in FORMAT_BY_SUFFIX.items() if kind == self.kind)

    def write(self, graph: BatchedGraph, path: Path) -> None:
        write_artifacts(
            [Output(self.kind, path, path)],
            for_target(graph, self.target),
            States(self.source),
            {},
            self.source.names,
            self.opset,
            scratch=path.with_name(f"{path.name}.weights"),
            clock=Clock(),
        )


def _tuned(
    files: _TuneFiles,
    batch: Callable[..., BatchedGraph],
    feeds: Mapping[int | None, dict[str, Array]],
    rules: RuleSet,
    provider: str,
    clock: Clock,
) -> BatchedGraph:
    """The candidate that runs fastest here."""
    with clock.stage("tune"):
        candidates = Candidates(
            make=lambda options: batch(**options),
            write=files.write,
            suffix=files.suffix,
            feeds=feeds,
            outputs=files.source.names,
        )
        return tuned(candidates, rules, provider, tell=functools.partial(clock.tell, "tune"))


def _feeds(source: Source, batches: Sequence[int], conversion: Conversion | None) -> dict[int | None, dict[str, Array]]:
    probes = make_probes(
        source.specs,
        source.per_member,
        len(source.ensemble),
        **source.sizes,
        batches=batches,
        seeds=(0,),
    )
    feeds = {p.batch: p.feed if conversion is None else file_feed(p.feed, conversion) for p in probes}
    return {batch: {name: array_from_tensor(t) for name, t in feed.items()} for batch, feed in feeds.items()}


def _chosen(choice: MemberChoice, n_members: int) -> dict[str, list[int]]:
    """What a file says of members that were to be compared, where that is not all."""
    return {} if choice.is_all else {"validated_members": list(choice.indices(n_members))}


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
