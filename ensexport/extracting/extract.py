"""`extract`: one member out of a packed file, as an ONNX file of its own or as the tensors of its checkpoint."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ensexport.clock import Clock, OnStage
from ensexport.errors import ExportError, UsageError
from ensexport.extracting.packed_file import PackedFile, Pieces, open_packed
from ensexport.extracting.proof import prove_member
from ensexport.extracting.tensors import OwnState, read_state, write_state
from ensexport.output_files import data_file, describe_artifact
from ensexport.recipe.member_reading import MemberRecipe
from ensexport.runtime.describing import describe_artifact as describe_file
from ensexport.runtime.runner import MEMBER_KEY
from ensexport.spec import Artifact, Tolerance, ValidationReport, artifact_format
from ensexport.staging import Staging, writing
from ensexport.targets.onnx import lay_out_onnx, onnx_model
from ensexport.targets.onnx_cpu import spell_out_elu
from ensexport.targets.onnx_file import weight_of
from ensexport.targets.weight_file import WeightFile, fill
from ensexport.version import __version__


@dataclass(frozen=True)
class ExtractReport:
    """What was taken out.

    Attributes:
        artifact: Where of.
        member: The member, as the packed file names it.
        artifacts: The files that were written.
        validation: The comparison with the packed file; None if no graph was asked for.
        state: The member's own tensors; None if they were not asked for.
        warnings: What the user should know.
        timings_s: Seconds per stage.
    """

    artifact: str
    member: Mapping[str, Any]
    artifacts: tuple[Artifact, ...]
    validation: ValidationReport | None
    state: OwnState | None
    warnings: tuple[str, ...]
    timings_s: Mapping[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object of the contract, less `command` and `ok`."""
        state = self.state
        return {
            "artifact": self.artifact,
            "member": dict(self.member),
            "artifacts": [asdict(artifact) for artifact in self.artifacts],
            "validation": None if self.validation is None else self.validation.to_dict(),
            "state": None
            if state is None
            else {
                "tensors": len(state.tensors),
                "kept": state.kept,
                "lost": dict(state.lost),
                "is_proven": state.is_proven,
            },
            "timings_s": {stage: round(seconds, 4) for stage, seconds in self.timings_s.items()},
            "warnings": list(self.warnings),
        }


def extract(
    artifact: str | Path,
    member_index: int,
    *,
    onnx: str | Path | None = None,
    state_dict: str | Path | None = None,
    partial: bool = False,
    provider: str = "cpu",
    tolerance: Tolerance | None = None,
    force: bool = False,
    on_stage: OnStage | None = None,
) -> ExtractReport:
    """Take one member out of a packed file: nothing else is read, neither checkpoints nor the model's code.

    Args:
        artifact: An `.onnx` file that ensexport packed, or a package folder that holds one.
        member_index: The member, from 0.
        onnx: Write the member as an ONNX file: inputs and outputs `(B, ...)` under the packed file's names, the packed
            file's opset and dtypes. It is compared with the packed file's member first.
        state_dict: Write the member's own tensors as a safetensors file, bit for bit under its checkpoint's names.
        partial: Write the tensors that there are, where others are not in the file.
        provider: Where the files are compared: `cpu`, `cuda` or `tensorrt`.
        tolerance: The bound; the default is described at `Tolerance`.
        force: Replace files that exist.
        on_stage: Called as `(stage, done, total)`.

    Raises:
        UsageError: Nothing is asked for, there is no such member, or a suffix is wrong.
        ArtifactError: The file cannot be read, or carries no recipe.
        LostTensorsError: Tensors of the member are not in the file bit for bit, and `partial` is False.
        ExportError: The member's graph cannot be had or written.
        MismatchError: The member's file differs from the packed file, or its tensors from those that were packed.
        OutputError: A target exists or cannot be written.
        ProviderError: The provider is not there.
    """
    wanted = {"onnx": onnx, "state": state_dict}
    targets = {kind: Path(path) for kind, path in wanted.items() if path is not None}
    _check_targets(targets)
    clock = Clock(on_stage)
    validation = state = None
    with Staging(list(targets.values()), force=force) as staging:
        with clock.stage("read"):
            file = open_packed(artifact)
            record = file.member(member_index)
            recipe = file.member_recipe(with_graph="onnx" in targets)
        files = []
        if "onnx" in targets:
            staged = staging.path(targets["onnx"])
            _write_graph(file, recipe, member_index, staged, targets["onnx"], clock)
            with clock.stage("validate"):
                validation = prove_member(
                    file,
                    staged,
                    str(targets["onnx"]),
                    member_index,
                    sizes=file.recipe["sizes"],
                    tolerance=tolerance or Tolerance(),
                    provider=provider,
                )
            files.append((staged, targets["onnx"], "onnx"))
            if data_file(staged).exists():
                files.append((data_file(staged), data_file(targets["onnx"]), "onnx_data"))
        if "state" in targets:
            with clock.stage("state"):
                state = read_state(file, recipe, member_index, partial=partial)
                staged = staging.path(targets["state"])
                with writing(targets["state"]):
                    write_state(staged, state)
            files.append((staged, targets["state"], "state"))
        with clock.stage("digest"):
            artifacts = tuple(describe_artifact(*names, lambda _done: None) for names in files)
        with clock.stage("write"):
            staging.commit()
    warnings = () if state is None else tuple(_state_warnings(state, member_index))
    return ExtractReport(str(artifact), record, artifacts, validation, state, warnings, clock.seconds)


def _check_targets(targets: Mapping[str, Path]) -> None:
    if not targets:
        raise UsageError("nothing is asked for.", hint="Add -o member.onnx or --state-dict member.safetensors.")
    if "onnx" in targets and artifact_format(targets["onnx"]) != "onnx":
        raise UsageError(
            f"cannot write '{targets['onnx']}': a member is taken out as ONNX.", hint="End the name with .onnx."
        )
    if "state" in targets and targets["state"].suffix != ".safetensors":
        raise UsageError(
            f"cannot write '{targets['state']}': a member's tensors are written as safetensors.",
            hint="End the name with .safetensors.",
        )


def _write_graph(
    file: PackedFile, recipe: MemberRecipe, member_index: int, staged: Path, target: Path, clock: Clock
) -> None:
    one = recipe.graph
    if one is None:
        raise ExportError(
            f"cannot take member {member_index} out of '{file.shown_as}' as a graph: {recipe.problem}",
            hint="Pack that checkpoint alone.",
        )
    facts = describe_file(file.path)
    with clock.stage("export_onnx"):
        model = onnx_model(one, file.outputs, opset=facts["opset"])
        if file.metadata.get("target") == "cpu":
            spell_out_elu(model)
        text = json.dumps(_metadata(file, member_index), sort_keys=True)
        weights = {w.name: weight_of(w.shape(1), w.dtype) for w in one.weights.packed}
        layout = lay_out_onnx(model, target.name, weights, {MEMBER_KEY: text, "ensexport_version": __version__})
    with clock.stage("weights"), writing(target), WeightFile(layout.write(staged), layout.places) as weight_file:
        fill([weight_file], one.weights, Pieces(file, recipe, member_index), lambda _done: None)


def _metadata(file: PackedFile, member_index: int) -> dict[str, Any]:
    """What the member's file says of itself; it has no member axis, so it says nothing under the packed files' key."""
    same = {name: file.metadata[name] for name in ("inputs", "dims", "ranges", "dtypes") if name in file.metadata}
    return {
        "ensexport_version": __version__,
        "member": dict(file.member(member_index)),
        "packed": {"n_members": file.n_members, **file.digests()},
        "outputs": list(file.outputs),
        **same,
    }


def _state_warnings(state: OwnState, member_index: int) -> Iterator[str]:
    if state.lost:
        names = ", ".join(f"'{name}' ({why})" for name, why in state.lost.items())
        yield f"{len(state.lost)} tensors of member {member_index} are NOT in the file that was written: {names}."
