"""What an artifact returns, and the members behind it: what the alternatives are compared with.

An artifact may combine its members (`pack --emit probs,entropy`). It is timed as it ships. The alternatives return the
members' outputs and combine nothing, which favours them; so what is compared is the members that the artifact holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ensexport.compare import Array
from ensexport.dtypes import AS_THEY_ARE, Conversion, DtypeChoice
from ensexport.emission import Emission, OutputEmission, from_json, hidden_of, names_of
from ensexport.timing.graphs import Feed, Job, Run
from ensexport.weighting import WEIGHTS_INPUT, MemberWeights


@dataclass(frozen=True)
class Contents:
    """What an artifact's metadata say of its outputs.

    Attributes:
        emitted: What each output of the model became.
        weights: How the members are weighed where they are combined; None for all alike.
        member_axis: Where N stands in the members' outputs.
        conversion: What it does in another dtype than its members.
    """

    emitted: tuple[OutputEmission, ...]
    weights: MemberWeights | None
    member_axis: int
    conversion: Conversion | None = None

    @classmethod
    def of(cls, metadata: Mapping[str, Any]) -> Contents:
        """Read metadata.

        Raises:
            ArtifactError: They do not fit together.
        """
        emitted = from_json(metadata.get("emit"), metadata["outputs"])
        weights = MemberWeights.from_json(metadata.get("member_weights"))
        return cls(emitted, weights, metadata["member_axis"], Conversion.from_json(metadata.get("dtypes")))

    @property
    def outputs(self) -> tuple[str, ...]:
        """The model's outputs, which every alternative returns."""
        return tuple(entry.output for entry in self.emitted)

    @property
    def hidden(self) -> tuple[str, ...]:
        """Those that the artifact holds and does not return."""
        return hidden_of(self.emitted)

    @property
    def note(self) -> str:
        """What a report must say of the comparison; empty where the artifact returns its members only."""
        notes = []
        if any(entry.combined for entry in self.emitted):
            notes.append(
                f"the artifact returns {', '.join(names_of(self.emitted))}; the alternatives return the members' "
                "outputs and combine nothing, which favours them"
            )
        if self.conversion is not None:
            notes.append(f"the artifact has {self.conversion.describe()}; the alternatives run the members as they are")
        return "; ".join(notes)

    @property
    def casts(self) -> dict[str, str]:
        """Dtype of the members' inputs -> the artifact's, where they differ."""
        conversion = self.conversion
        return {} if conversion is None else {conversion.members: conversion.io}

    @property
    def dtypes(self) -> DtypeChoice:
        """How to convert other members likewise."""
        return AS_THEY_ARE if self.conversion is None else DtypeChoice(self.conversion.inside, self.conversion.io)

    @property
    def emission(self) -> Emission:
        """How to pack other members likewise."""
        return Emission(
            by_output={entry.output: entry.names for entry in self.emitted},
            class_axes={entry.output: entry.class_axis for entry in self.emitted},
        )

    def first_weights(self, n_members: int) -> MemberWeights | None:
        """The weights of the first members; all alike where those are 0, for the time is the same."""
        if self.weights is None or self.weights.values is None:
            return self.weights
        values = self.weights.values[:n_members]
        return MemberWeights(values if any(values) else (1.0,) * n_members)

    def members_first(self, outputs: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs as the artifact lays them out -> the members' with N first, and all others as they are."""
        return {
            name: np.moveaxis(value, min(self.member_axis, value.ndim - 1), 0) if name in self.outputs else value
            for name, value in outputs.items()
        }

    def must_be_given_weights(self, path: Path) -> bool:
        """Has a file an input for the weights that cannot be left out? Exported programs have no optional inputs."""
        return self.weights is not None and self.weights.is_input and path.suffix == ".pt2"


def weighed(job: Job) -> Run:
    """An artifact that must be given the weights of its members: all alike."""
    from ensexport.timing import graphs

    run = graphs.torch(job)
    weights = {WEIGHTS_INPUT: np.ones(job["n_members"], np.float32)}
    return lambda feed: run({**feed, **weights})


def with_members(job: Job) -> Run:
    """An artifact that also returns the members it hides: the job's `hidden`, and what `timing.graphs` needs."""
    path, hidden = Path(job["path"]), tuple(job["hidden"])
    if path.suffix == ".onnx":
        from ensexport.runtime.onnx_runner import OnnxRunner, options_for, tf32_options

        options = tf32_options(job["provider"], tf32=job.get("tf32", False))
        return OnnxRunner(
            path, provider=job["provider"], options=options_for(path), provider_options=options, shown=hidden
        ).run
    from ensexport.runtime.torch_runner import ExportedRunner, ScriptRunner

    runner = ScriptRunner if path.suffix == ".ts" else ExportedRunner
    run = runner(path, provider=job["provider"], output_names=tuple(job["outputs"]), hidden=hidden).run
    more = {WEIGHTS_INPUT: np.ones(job["n_members"], np.float32)} if job["needs_weights"] else {}

    def run_with_weights(feed: Feed) -> dict[str, Array]:
        return run({**feed, **more})

    return run_with_weights
