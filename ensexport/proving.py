"""The proof of a pack: every file that was written against the loop over the members, before it is put in place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ensexport.batching.examples import integer_inputs
from ensexport.choice import MemberChoice, describe_choice
from ensexport.clock import Clock
from ensexport.dtypes import Conversion
from ensexport.emission import OutputEmission
from ensexport.errors import ArtifactError, ExportError
from ensexport.input_data import read_data
from ensexport.probes import Probe, batches_that_fit, find_probes, through
from ensexport.references import Reference, reference_outputs
from ensexport.runtime import member_specs
from ensexport.runtime.torch_runner import tensor_from_array
from ensexport.source import Source
from ensexport.spec import FORMAT_BY_SUFFIX, Check, Tolerance, ValidationReport, batch_dim
from ensexport.stacking.state import release_tensors
from ensexport.validation import check_artifact, raise_on_mismatch
from ensexport.weighting import MemberWeights


@dataclass(frozen=True)
class Proof:
    """How the files were compared with the loop.

    Attributes:
        report: Every comparison.
        notes: What the user should know of it.
        probes: The inputs; none where nothing was to be compared.
        references: What the members return, a list a member that was compared.
    """

    report: ValidationReport
    notes: tuple[str, ...]
    probes: Sequence[Probe] = ()
    references: Sequence[Sequence[Reference]] = ()


@dataclass(frozen=True)
class Proving:
    """How the files are compared with the loop.

    Attributes:
        provider: Where ONNX files are run.
        member_axis: Where N stands in the outputs.
        tolerance: The bound.
        batches: Batch sizes.
        seeds: Seeds of the random inputs.
        choice: The members to compare.
        emitted: What each output of the model became.
        weights: How the members are weighed.
        conversion: What the files do in another dtype than their members.
        needs_probes: Make inputs even where nothing is to be compared.
        real: Inputs of the user's own to compare on too.
    """

    provider: str
    member_axis: int
    tolerance: Tolerance
    batches: Sequence[int]
    seeds: Sequence[int]
    choice: MemberChoice
    emitted: Sequence[OutputEmission]
    weights: MemberWeights | None
    conversion: Conversion | None
    needs_probes: bool
    real: Probe | None = None


def prove(source: Source, staged: Mapping[Path, Path], how: Proving, clock: Clock) -> Proof:
    """Compare every file with the loop.

    Args:
        source: What was exported.
        staged: What a file will be called -> where it lies now.
        how: How to compare.
        clock: Is told how far the loop is.

    Raises:
        MismatchError: A file differs from the loop.
        ExportError: A file cannot be run.
    """
    chosen = how.choice.indices(len(source.ensemble))
    if not chosen and not how.needs_probes:
        return Proof(ValidationReport((), {}, ()), (_UNPROVEN,))
    batches, left_out = batches_that_fit(how.batches, source.activation_bytes)
    module = source.ensemble.build(0)
    found = find_probes(
        module,
        source.specs,
        source.per_member,
        len(source.ensemble),
        **source.sizes,
        batches=batches,
        seeds=how.seeds,
    )
    release_tensors(module)
    probes = through(found.probes, how.conversion) + ([] if how.real is None else [how.real])
    if not chosen:
        return Proof(ValidationReport((), {}, ()), (_UNPROVEN,), probes)
    references = reference_outputs(
        source.ensemble, probes, source.per_member, members=chosen, conversion=how.conversion, on_progress=clock.tell
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
                tolerance=how.tolerance,
                provider=how.provider,
                member_axis=how.member_axis,
                source=source.ensemble,
                member_names=tuple(source.example.outputs),
                per_member=source.per_member,
                members=chosen,
                n_members=len(source.ensemble),
                emitted=how.emitted,
                weights=how.weights,
                conversion=how.conversion,
            )
        except ArtifactError as error:
            others = sorted(FORMAT_BY_SUFFIX.keys() - {path.suffix})
            raise ExportError(
                f"cannot write '{path}': what the exporter made of the model does not run: {error.message}",
                hint=f"Ship another format for this model: {' or '.join(others)}.",
            ) from error
    report = ValidationReport(
        tuple(checks), integer_inputs(source.specs, source.ranges), None if how.choice.is_all else chosen
    )
    raise_on_mismatch(report, source.ensemble.labels, how.conversion)
    notes = (*_partly(how.choice, chosen, len(source.ensemble)), *left_out, *found.warnings)
    notes = (*notes, *_few_batches(checks, probes), *_check_notes(checks))
    return Proof(report, notes, probes, references)


_UNPROVEN = (
    "nothing was compared with the loop (--validate-members none): "
    "run `ensexport validate` before anybody relies on it."
)


def _partly(choice: MemberChoice, chosen: Sequence[int], n_members: int) -> Iterator[str]:
    if not choice.is_all:
        yield f"only {describe_choice(chosen, n_members)} were compared with the loop (--validate-members)."


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


_ROWS = 8


def real_probe(path: str | Path, metadata: Mapping[str, Any], conversion: Conversion | None) -> Probe:
    """Return the first rows of the user's own inputs, to compare on.

    Args:
        path: An `.npz`, as for `read_data`.
        metadata: What the files say of their inputs.
        conversion: What they do in another dtype than their members.

    Raises:
        DataError: The file cannot be read or does not fit.
    """
    data = read_data(path, metadata)
    specs, sizes, feed = member_specs(metadata), dict[str, int](), dict[str, torch.Tensor]()
    for spec in specs:
        tensor = tensor_from_array(data.first(_ROWS)[spec.name])
        is_converted = conversion is not None and tensor.dtype == getattr(torch, conversion.io)
        feed[spec.name] = tensor.to(getattr(torch, spec.dtype)) if is_converted else tensor
        shape = tensor.shape[1:] if spec.name in metadata["per_member"] else tensor.shape
        sizes |= {dim: size for dim, size in zip(spec.dims, shape, strict=True) if isinstance(dim, str)}
    batch = batch_dim(specs)
    return Probe(sizes, None if batch is None else sizes[batch], 0, feed, source=Path(path).name)
