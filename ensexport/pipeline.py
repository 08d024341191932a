"""The main job: members -> batched graph -> files, proven before they are put in place."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ensexport.artifacts import Output, for_target, make_metadata, write_artifacts
from ensexport.batching.activations import activation_bytes
from ensexport.batching.converting import convert, dtype_of
from ensexport.batching.engine import BatchedGraph, batch_graph
from ensexport.batching.examples import Example, ValueRange, find_example, integer_inputs
from ensexport.batching.integers import accepted_ranges
from ensexport.batching.member_graph import MemberGraph, capture_member
from ensexport.batching.rule_sets import rule_set
from ensexport.choice import ALL_MEMBERS, MemberChoice, describe_choice
from ensexport.clock import Clock, OnStage
from ensexport.compare import Array
from ensexport.dtypes import AS_THEY_ARE, Conversion, DtypeChoice
from ensexport.emission import ALL_MEMBERS_ONLY, Emission, OutputEmission, hidden_of, names_of
from ensexport.errors import ArtifactError, ExportError, UsageError
from ensexport.estimates import Estimate, estimate
from ensexport.heads import add_heads
from ensexport.members import Members
from ensexport.members.equality import EqualTensors
from ensexport.output_files import data_file, describe_artifact
from ensexport.probes import BATCHES, SEEDS, Probe, batches_that_fit, file_feed, find_probes, make_probes, through
from ensexport.recipe.making import make_recipe
from ensexport.recipe.own_tensors import OwnTensors, own_tensors
from ensexport.references import reference_outputs
from ensexport.runtime.onnx_runner import check_provider
from ensexport.runtime.torch_runner import array_from_tensor
from ensexport.spec import (
    FORMAT_BY_SUFFIX,
    Artifact,
    Check,
    Plan,
    TensorSpec,
    Tolerance,
    ValidationReport,
    artifact_format,
    batch_dim,
    parse_inputs,
)
from ensexport.stacking import Ensemble
from ensexport.stacking.baseline import run_member
from ensexport.stacking.state import named_tensors, release_tensors
from ensexport.staging import Staging
from ensexport.strategies import TUNE_BATCHES, Candidates, graph_options, tuned
from ensexport.validation import check_artifact, raise_on_mismatch
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
    on_stage: OnStage | None = None,
    on_estimate: Callable[[Estimate], None] | None = None,
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
    if not targets:
        raise UsageError("no output is named.", hint="Add -o ensemble.onnx.")
    formats = [artifact_format(path) for path in targets]
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
        _member_bytes(ensemble),
        len(ensemble),
        n_validated=len(choice.indices(len(ensemble))),
        equal_bytes=ensemble.equal_bytes if isinstance(ensemble, Members) else 0,
    )
    if on_estimate is not None:
        on_estimate(expected)
    expected.check_memory()
    expected.check_disk(targets)
    with Staging(targets, force=force) as staging:
        with clock.stage("capture"):
            source = _captured(ensemble, specs, per_member, output_names)
        emitted = emission.resolve(source.names)
        conversion = dtypes.resolve(_dtype_name(source.member))
        with clock.stage("batch"):
            batch = functools.partial(
                _batched,
                conversion,
                source.member,
                len(ensemble),
                shared_state=_equal_in_all(source),
                per_member=per_member,
                member_axis=member_axis,
            )
            batched = None if strategy == "tune" else batch(**graph_options(strategy, rules, chunks=_chunks(source)))
        if batched is None:
            with clock.stage("tune"):
                files = _TuneFiles(source, formats, opset, target)
                candidates = Candidates(
                    make=lambda options: batch(**options),
                    write=files.write,
                    suffix=files.suffix,
                    feeds=_feeds(source, tune_batches, conversion),
                    outputs=source.names,
                )
                batched = tuned(candidates, rules, provider, tell=functools.partial(clock.tell, "tune"))
        batched = add_heads(for_target(batched, target), emitted, weights)
        outputs = [Output(kind, staging.path(path), path) for path, kind in zip(targets, formats, strict=True)]
        write_artifacts(
            outputs,
            batched,
            _States(source),
            make_metadata(ensemble, batched, emitted, source.ranges, weights, conversion)
            | make_recipe(
                batched,
                fills_buffers=source.fills_buffers,
                conversion=conversion,
                own=source.own,
                sizes=source.example.sizes,
            )
            | _chosen(choice, len(ensemble)),
            (*names_of(emitted), *hidden_of(emitted)),
            opset,
            scratch=staging.scratch(targets[0]),
            clock=clock,
        )
        with clock.stage("validate"):
            staged = {path: staging.path(path) for path in targets}
            bound = tolerance or Tolerance()
            report, notes = _proven(
                source,
                staged,
                provider,
                member_axis,
                bound,
                batches,
                seeds,
                choice,
                clock,
                emitted,
                weights,
                conversion,
            )
        with clock.stage("digest"):
            artifacts = tuple(_described(outputs, clock))
        with clock.stage("write"):
            staging.commit()
    warnings = (*(ensemble.warnings if isinstance(ensemble, Members) else ()), *source.notes, *notes)
    return ExportReport(
        artifacts,
        report,
        batched.plan,
        clock.seconds,
        source.member.dim_ranges,
        warnings,
        clock.peak_bytes,
        expected,
        conversion,
    )


def _batched(conversion: Conversion | None, *args: Any, **options: Any) -> BatchedGraph:
    batched = batch_graph(*args, **options)
    return batched if conversion is None else convert(batched, conversion)


def _dtype_name(member: MemberGraph) -> str:
    """The dtype that most of the members' weights have."""
    state = [node.meta["val"] for node, name in member.state.items() if name not in member.constants]
    return str(dtype_of(state, [node.meta["val"] for node in member.inputs.values()])).removeprefix("torch.")


def _described(outputs: Sequence[Output], clock: Clock) -> Iterator[Artifact]:
    """Every file that is about to be put in place, external data too."""
    files = [(output.staged, output.target, output.kind) for output in outputs]
    for output in outputs:
        data = data_file(output.staged)
        if output.kind == "onnx" and data.exists():
            files.append((data, data_file(output.target), "onnx_data"))
    total, done = sum(staged.stat().st_size for staged, _, _ in files), 0

    def tell(count: int) -> None:
        clock.tell("digest", done + count, total)

    for staged, target, kind in files:
        artifact = describe_artifact(staged, target, kind, tell)
        done += artifact.size_bytes
        yield artifact


@dataclass(frozen=True)
class _Source:
    """What is exported: the ensemble, and what is known of one member."""

    ensemble: Ensemble | Members
    specs: tuple[TensorSpec, ...]
    per_member: Sequence[str]
    example: Example
    member: MemberGraph
    ranges: Mapping[str, ValueRange]
    notes: Sequence[str]
    names: tuple[str, ...]
    fills_buffers: bool
    own: OwnTensors

    def activation_bytes(self, batch: int) -> int:
        """What the activations of all members take at a batch size, as a runtime needs it."""
        name = batch_dim(self.specs)
        sizes = dict(self.example.sizes) | ({name: batch} if name else {})
        return _OVER_ALIVE * len(self.ensemble) * activation_bytes(self.member, sizes)

    @property
    def sizes(self) -> dict[str, Any]:
        """What probes are made of: sizes that are accepted, and values."""
        return {
            "example_sizes": self.example.sizes,
            "dim_ranges": self.member.dim_ranges,
            "ranges": self.ranges,
        }


_OVER_ALIVE = 3
"""ONNX Runtime's memory over what is alive in the graph: 2.8 for ten ViT-B at batch 13 (1.31, CPU, no arena)."""
_MAX_CHUNK_BYTES = 2_000_000_000


def _chunks(source: _Source) -> int:
    """Groups of members to run one after the other, so that a group's activations fit into memory at batch 1."""
    return min(len(source.ensemble), -(-source.activation_bytes(1) // _MAX_CHUNK_BYTES) or 1)


def _captured(
    ensemble: Ensemble | Members,
    specs: tuple[TensorSpec, ...],
    per_member: Sequence[str],
    output_names: Sequence[str] | None,
) -> _Source:
    module = ensemble.build(0)
    built = named_tensors(module)
    example = find_example(module, specs)
    fills_buffers = any(built.get(name) is not tensor for name, tensor in named_tensors(module).items())
    member = capture_member(module, specs, example)
    ranges, notes = accepted_ranges(module, member, example)
    names = _output_names(output_names, tuple(example.outputs), specs)
    own = own_tensors(ensemble, module, set(member.state.values()), fills_buffers=fills_buffers)
    member.forget_weights()
    release_tensors(module)
    return _Source(ensemble, specs, per_member, example, member, ranges, notes, names, fills_buffers, own)


def _member_bytes(ensemble: Ensemble | Members) -> int:
    """Bytes of one member's tensors, tied ones counted once."""
    if isinstance(ensemble, Members):
        return max(member.n_bytes for member in ensemble)
    tensors = {id(tensor): tensor for tensor in named_tensors(ensemble).values()}
    return sum(tensor.nbytes for tensor in tensors.values()) // len(ensemble)


@dataclass(frozen=True)
class _States:
    """The members' tensors, one member in memory at a time."""

    source: _Source

    def __len__(self) -> int:
        return len(self.source.ensemble)

    def visit(self, member_index: int, use: Callable[[Mapping[str, torch.Tensor]], None]) -> None:
        module = self.source.ensemble.build(member_index)
        if self.source.fills_buffers:  # on the first call, as member 0 was captured after it
            run_member(module, self.source.example.feed)
        use(named_tensors(module))
        release_tensors(module)


def _equal_in_all(source: _Source) -> frozenset[str]:
    """Names of the parameters and buffers that are bit-equal in all members: those are kept once."""
    if isinstance(source.ensemble, Members) and not source.fills_buffers:
        known = source.ensemble.equal_names()
        if known is not None:
            return known
    equal = EqualTensors()
    states = _States(source)
    for member_index in range(len(states)):
        states.visit(member_index, equal.add)
    return equal.names


@dataclass(frozen=True)
class _TuneFiles:
    """How the candidates of `tune` are written: as ONNX, if that is asked for."""

    source: _Source
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
            _States(self.source),
            {},
            self.source.names,
            self.opset,
            scratch=path.with_name(f"{path.name}.weights"),
            clock=Clock(),
        )


def _feeds(
    source: _Source, batches: Sequence[int], conversion: Conversion | None
) -> dict[int | None, dict[str, Array]]:
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


def _proven(
    source: _Source,
    staged: Mapping[Path, Path],
    provider: str,
    member_axis: int,
    tolerance: Tolerance,
    batches: Sequence[int],
    seeds: Sequence[int],
    choice: MemberChoice,
    clock: Clock,
    emitted: Sequence[OutputEmission],
    weights: MemberWeights | None,
    conversion: Conversion | None,
) -> tuple[ValidationReport, tuple[str, ...]]:
    """Compare every file with the loop; returns the report and what the user should know of it."""
    chosen = choice.indices(len(source.ensemble))
    if not chosen:
        return ValidationReport((), {}, ()), (_UNPROVEN,)
    batches, left_out = batches_that_fit(batches, source.activation_bytes)
    module = source.ensemble.build(0)
    found = find_probes(
        module,
        source.specs,
        source.per_member,
        len(source.ensemble),
        **source.sizes,
        batches=batches,
        seeds=seeds,
    )
    release_tensors(module)
    probes = through(found.probes, conversion)
    references = reference_outputs(
        source.ensemble, probes, source.per_member, members=chosen, conversion=conversion, on_progress=clock.tell
    )
    renamed = dict(zip(source.example.outputs, source.names, strict=True))
    references = [[reference.renamed(renamed) for reference in row] for row in references]
    checks: list[Check] = []
    for path, file in staged.items():
        try:
            checks += check_artifact(
                file,
                str(path),
                references,
                probes,
                output_names=source.names,
                tolerance=tolerance,
                provider=provider,
                member_axis=member_axis,
                source=source.ensemble,
                member_names=tuple(source.example.outputs),
                per_member=source.per_member,
                members=chosen,
                n_members=len(source.ensemble),
                emitted=emitted,
                weights=weights,
                conversion=conversion,
            )
        except ArtifactError as error:
            others = sorted(FORMAT_BY_SUFFIX.keys() - {path.suffix})
            raise ExportError(
                f"cannot write '{path}': what the exporter made of the model does not run: {error.message}",
                hint=f"Ship another format for this model: {' or '.join(others)}.",
            ) from error
    report = ValidationReport(
        tuple(checks), integer_inputs(source.specs, source.ranges), None if choice.is_all else chosen
    )
    raise_on_mismatch(report, source.ensemble.labels, conversion)
    notes = (*_partly(choice, chosen, len(source.ensemble)), *left_out, *found.warnings)
    return report, (*notes, *_few_batches(checks, probes), *_check_notes(checks))


_UNPROVEN = (
    "nothing was compared with the loop (--validate-members none): "
    "run `ensexport validate` before anybody relies on it."
)


def _partly(choice: MemberChoice, chosen: Sequence[int], n_members: int) -> Iterator[str]:
    if not choice.is_all:
        yield f"only {describe_choice(chosen, n_members)} were compared with the loop (--validate-members)."


def _chosen(choice: MemberChoice, n_members: int) -> dict[str, list[int]]:
    """What a file says of members that were to be compared, where that is not all."""
    return {} if choice.is_all else {"validated_members": list(choice.indices(n_members))}


def _few_batches(checks: Sequence[Check], probes: Sequence[Probe]) -> Iterator[str]:
    """Say which files were not run at all batch sizes."""
    for artifact in dict.fromkeys(check.artifact for check in checks):
        done = {check.batch for check in checks if check.artifact == artifact}
        if {probe.batch for probe in probes} - done:
            sizes = ", ".join(str(batch) for batch in sorted(batch for batch in done if batch is not None))
            yield (
                f"'{artifact}' was compared at batch {sizes} only, where others would have taken too long: torch's "
                "kernels for 16 bits are slow on a CPU."
            )


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
