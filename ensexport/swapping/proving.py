"""The proof of a swap: the new member of the file against the loop over its checkpoint.

The graph is the one that was proven when it was packed, so a few inputs are enough to see that the new values are in
their places. Every artifact is run with graph optimisation off and on, as when packing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from ensexport.batching.examples import integer_inputs, range_from_json
from ensexport.dtypes import Conversion
from ensexport.emission import from_json
from ensexport.errors import ArtifactError
from ensexport.probes import find_probes, through
from ensexport.references import reference_outputs
from ensexport.runtime import member_specs
from ensexport.spec import Check, Tolerance, ValidationReport
from ensexport.swapping.contents import Contents
from ensexport.swapping.pieces import NewMember
from ensexport.validation import check_artifact, raise_on_mismatch
from ensexport.weighting import MemberWeights

_BATCHES, _SEEDS = (2,), (0,)


class _InItsPlace:
    """The one checkpoint as the member whose place it takes."""

    def __init__(self, new: NewMember, n_members: int) -> None:
        self._new, self._n_members = new, n_members

    def __len__(self) -> int:
        return self._n_members

    def build(self, member_index: int) -> nn.Module:
        assert member_index == self._new.index
        return self._new.members.build(0)


def prove_member(
    files: Sequence[tuple[Contents, Path, str]], new: NewMember, *, tolerance: Tolerance, provider: str
) -> tuple[ValidationReport, tuple[str, ...]]:
    """Compare the new member in every file with the loop over its checkpoint.

    Args:
        files: What each file holds, where it is staged, and the path that reports name.
        new: The checkpoint.
        tolerance: The bound.
        provider: `cpu`, `cuda` or `tensorrt`.

    Returns:
        The report, and what the user should know of it.

    Raises:
        MismatchError: They differ.
        ArtifactError: A file cannot be run, or has other outputs than the architecture.
    """
    contents = files[0][0]
    metadata, n_members = contents.metadata, contents.n_members
    specs, per_member = member_specs(metadata), tuple(metadata["per_member"])
    conversion = Conversion.from_json(metadata.get("dtypes"))
    emitted = from_json(metadata.get("emit"), metadata["outputs"])
    outputs = [entry.output for entry in emitted]
    ranges = {name: range_from_json(values) for name, values in metadata.get("ranges", {}).items()}
    found = find_probes(
        new.module,
        specs,
        per_member,
        n_members,
        example_sizes=contents.recipe.sizes,
        dim_ranges={name: (bounds[0], bounds[1]) for name, bounds in metadata["dims"].items()},
        ranges=ranges,
        batches=_BATCHES,
        seeds=_SEEDS,
        with_extremes=False,
    )
    probes = through(found.probes, conversion)
    source, chosen = _InItsPlace(new, n_members), [new.index]
    made = reference_outputs(source, probes, per_member, members=chosen, conversion=conversion)
    own_names = tuple(made[0][0].expected)
    if len(own_names) != len(outputs):
        raise ArtifactError(
            f"'{contents.path}' has the outputs {', '.join(outputs)}, and the model returns {', '.join(own_names)}.",
            hint="Give the architecture that was packed.",
        )
    names = dict(zip(own_names, outputs, strict=True))
    references = [[reference.renamed(names) for reference in row] for row in made]
    checks: list[Check] = []
    for _, staged, shown_as in files:
        checks += check_artifact(
            staged,
            shown_as,
            references,
            probes,
            output_names=outputs,
            tolerance=tolerance,
            provider=provider,
            member_axis=metadata["member_axis"],
            source=source,
            member_names=own_names,
            per_member=per_member,
            members=chosen,
            n_members=n_members,
            emitted=emitted,
            weights=MemberWeights.from_json(metadata.get("member_weights")),
            conversion=conversion,
        )
    report = ValidationReport(tuple(checks), integer_inputs(specs, ranges), tuple(chosen))
    labels = [f"member {index} ('{record['name']}')" for index, record in enumerate(metadata["members"])]
    labels[new.index] = new.label
    raise_on_mismatch(report, labels, conversion)
    return report, found.warnings
