"""What packing has found out -> what a package holds beside its models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ensexport.batching.engine import BatchedGraph
from ensexport.compare import Array
from ensexport.dtypes import Conversion
from ensexport.emission import OutputEmission, names_of
from ensexport.members import Members
from ensexport.package.cases import SampleCase, make_cases
from ensexport.package.choice import PackageChoice
from ensexport.package.contents import make_manifest, member_entry
from ensexport.package.samples import DTYPES
from ensexport.package.triton import ServingOptions
from ensexport.package.writing import Contents, signature_of
from ensexport.proving import Proof
from ensexport.recipe.coding import KEY, decode
from ensexport.recipe.member import kept_names
from ensexport.recipe.state_file import write_kept
from ensexport.runtime import open_runners
from ensexport.stacking import Ensemble
from ensexport.targets.onnx import DEFAULT_OPSET
from ensexport.weighting import MemberWeights


@dataclass(frozen=True)
class PackageMaking:
    """What packing knows when all models are written.

    Attributes:
        ensemble: The members.
        batched: The finished graph.
        emitted: What each output of the model became.
        weights: How the members are weighed.
        conversion: What the files do in another dtype than their members.
        metadata: What the files say of themselves.
        opset: ONNX opset version; None for the default.
        provider: Where ONNX files are run.
    """

    ensemble: Ensemble | Members
    batched: BatchedGraph
    emitted: Sequence[OutputEmission]
    weights: MemberWeights | None
    conversion: Conversion | None
    metadata: Mapping[str, Any]
    opset: int | None
    provider: str

    def contents(self, proof: Proof, choice: PackageChoice, model: Path) -> Contents:
        """Put together what the packages of one run hold beside their models.

        Args:
            proof: How the files were compared with the loop.
            choice: What the user asked for.
            model: One of the files, to be run.
        """
        inputs, outputs = signature_of(self.batched, self.emitted, self.metadata["formulas"], self.conversion)
        manifest = make_manifest(
            self.metadata,
            members=self._members(),
            inputs=inputs,
            outputs=outputs,
            opset=self.opset or DEFAULT_OPSET,
            plan=self.batched.plan,
        )
        can_store = all(entry["dtype"] in DTYPES for entry in (*inputs, *outputs))
        cases = self._cases(proof, model) if can_store and proof.probes else []
        return Contents(
            manifest,
            proof.report,
            cases,
            self._write_state if choice.keep_state else _nothing,
            choice.labels,
            ServingOptions(max_batch_size=choice.max_batch_size),
        )

    def _write_state(self, path: Path) -> bool:
        """Keep the members' tensors that cannot be read back from the graph."""
        names = kept_names(decode(self.metadata[KEY])["member"])
        if names:
            write_kept(path, self.ensemble, names)
        return bool(names)

    def _members(self) -> list[dict[str, Any]]:
        sources: Sequence[Any] = self.ensemble if isinstance(self.ensemble, Members) else [None] * len(self.ensemble)
        return [member_entry(*pair) for pair in zip(self.metadata["members"], sources, strict=True)]

    def _cases(self, proof: Proof, model: Path) -> list[SampleCase]:
        *_, runner = open_runners(model, provider=self.provider, output_names=names_of(self.emitted))

        def run(feed: Mapping[str, Array]) -> Mapping[str, Array]:
            return runner.run(feed)

        return make_cases(
            run,
            proof.probes,
            proof.references,
            proof.report.checks,
            emitted=self.emitted,
            n_members=self.batched.n_members,
            member_axis=self.batched.member_axis,
            weights=self.weights,
            conversion=self.conversion,
        )


def _nothing(_path: Path) -> bool:
    return False
