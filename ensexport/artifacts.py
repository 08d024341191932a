"""What is written: the files of one batched graph, and what they say of themselves."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ensexport.batching.engine import BatchedGraph
from ensexport.batching.examples import ValueRange
from ensexport.batching.member_graph import MemberGraph
from ensexport.clock import Clock
from ensexport.dtypes import Conversion
from ensexport.emission import OutputEmission, formulas, names_of, to_json
from ensexport.members import Members, weights_digest
from ensexport.members.widening import saved_dtypes_json
from ensexport.output_files import RENAMED_KEY, Output
from ensexport.resources import check_disk
from ensexport.runtime.runner import METADATA_FILE, METADATA_KEY
from ensexport.spec import Plan, TensorSpec
from ensexport.stacking import Ensemble
from ensexport.staging import writing
from ensexport.targets.onnx_file import OnnxFile, Weight, weight_of
from ensexport.targets.weight_file import States, WeightFile, fill, make_scratch
from ensexport.version import __version__
from ensexport.weighting import MemberWeights

if TYPE_CHECKING:
    import onnx_ir as ir


def make_metadata(
    ensemble: Ensemble | Members,
    batched: BatchedGraph,
    emitted: Sequence[OutputEmission],
    ranges: Mapping[str, ValueRange],
    weights: MemberWeights | None = None,
    conversion: Conversion | None = None,
) -> dict[str, Any]:
    """What an artifact says of itself. No absolute paths: the bytes must not depend on where it was packed."""
    member: MemberGraph = batched.member
    return {
        "ensexport_version": __version__,
        "n_members": batched.n_members,
        "member_axis": batched.member_axis,
        "inputs": [str(spec) for spec in _file_specs(member, conversion)],
        **_conversion_dict(member, conversion),
        "per_member": list(batched.per_member),
        "outputs": list(names_of(emitted)),
        "emit": to_json(emitted),
        "formulas": formulas(emitted),
        "member_weights": None if weights is None else weights.to_json(),
        "dims": {name: list(bounds) for name, bounds in sorted(member.dim_ranges.items())},
        "ranges": {name: values.to_json() for name, values in sorted(ranges.items())},
        "strategy": batched.plan.strategy,
        "target": batched.plan.target,
        "plan": _plan_dict(batched.plan),
        "members": _member_records(ensemble),
    }


def _file_specs(member: MemberGraph, conversion: Conversion | None) -> Sequence[TensorSpec]:
    if conversion is None:
        return member.specs
    return [replace(spec, dtype=conversion.io_dtype(spec.dtype)) for spec in member.specs]


def _conversion_dict(member: MemberGraph, conversion: Conversion | None) -> dict[str, Any]:
    """What a file says that has other dtypes than its members, and what they take themselves."""
    if conversion is None:
        return {}
    return {"dtypes": conversion.to_json(), "member_inputs": [str(spec) for spec in member.specs]}


def _plan_dict(plan: Plan) -> dict[str, Any]:
    """The part of the plan that says what was chosen, and why."""
    return {
        "stages": [asdict(stage) for stage in plan.stages],
        "winner": plan.winner,
        "trials": [asdict(trial) for trial in plan.trials],
    }


def _member_records(ensemble: Ensemble | Members) -> list[dict[str, Any]]:
    """Name and digests of each member. A stacked ensemble knows no files, so only its weights' digests."""
    if isinstance(ensemble, Members):
        paths = [Path(member.path) for member in ensemble]
        digests = [(member.sha256, member.weights_sha256) for member in ensemble]
        saved = [saved_dtypes_json(member) for member in ensemble]
    else:
        # A label is `member 3 (runs/s3.pt)` where the member came from a file.
        paths = [Path(label.partition("(")[2].rstrip(")") or label) for label in ensemble.labels]
        digests = [("", weights_digest(ensemble.build(k).state_dict())) for k in range(len(ensemble))]
        saved = [{} for _ in range(len(ensemble))]
    return [
        {"index": index, "name": name, "sha256": sha256, "weights_sha256": weights_sha256, **saved[index]}
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


def for_target(batched: BatchedGraph, target: str) -> BatchedGraph:
    """The same graph with a plan that names the hardware it is for."""
    return replace(batched, plan=replace(batched.plan, target=target))


def write_artifacts(
    outputs: Sequence[Output],
    batched: BatchedGraph,
    states: States,
    metadata: Mapping[str, Any],
    names: Sequence[str],
    opset: int | None,
    *,
    scratch: Path,
    clock: Clock,
    external_data: bool = False,
) -> None:
    """Write the files of a batched graph: first the graphs, then the weights, one member at a time.

    ONNX files take the weights directly. TorchScript and `.pt2` are written by torch, which takes them from a file
    mapped into memory: the ONNX file's external data, or a scratch file.

    Args:
        outputs: The files.
        batched: The graph.
        states: The members, read one at a time.
        metadata: What the files say of themselves.
        names: Names of the outputs, hidden ones last.
        opset: ONNX opset version; None for the default.
        scratch: A file that may be made meanwhile, beside the staged ones; the caller removes it.
        clock: Is told of the stages.
        external_data: Put the weights of ONNX files into a file beside them, however small they are.

    Raises:
        ExportError: A format cannot hold the graph.
        OutputError: A file cannot be written.
    """
    text = json.dumps(metadata, sort_keys=True)
    layouts: dict[Output, OnnxFile] = {}
    for output in outputs:
        if output.kind == "onnx":
            with clock.stage("export_onnx"):
                layouts[output] = _laid_out(output, batched, metadata, names, opset, external_data=external_data)
    others = [output for output in outputs if output.kind != "onnx"]
    total = sum(weight.n_bytes(batched.n_members) for weight in batched.weights.packed)
    needs_scratch = bool(others) and not any(layout.data for layout in layouts.values())
    room = {output.target: layout.n_bytes + layout.data_bytes for output, layout in layouts.items()}
    room |= {output.target: total for output in others} | ({scratch: total} if needs_scratch else {})
    check_disk(room)
    with ExitStack() as stack:
        files = [stack.enter_context(_opened(output, layout)) for output, layout in layouts.items()]
        if needs_scratch:
            with writing(others[0].target):
                places = make_scratch(scratch, batched.weights.packed, batched.n_members)
                files.append(stack.enter_context(WeightFile(scratch, places)))
        with clock.stage("weights"), writing(outputs[0].target):
            fill(files, batched.weights, states, lambda done: clock.tell("weights", done, total))
        if others:
            whole = next(
                (file for file, layout in zip(files, layouts.values(), strict=False) if layout.data), files[-1]
            )
            weights = {w.name: whole.mapped(w, batched.n_members) for w in batched.weights.packed}
        for output in others:
            with clock.stage(f"export_{output.kind}"):
                data = _serialised(output.kind, batched, weights, text)
                with writing(output.target):
                    output.staged.write_bytes(data)


def _laid_out(
    output: Output,
    batched: BatchedGraph,
    metadata: Mapping[str, Any],
    names: Sequence[str],
    opset: int | None,
    *,
    external_data: bool,
) -> OnnxFile:
    from ensexport.targets.onnx import lay_out_onnx, onnx_model
    from ensexport.targets.onnx_cpu import spell_out_elu

    model = onnx_model(batched, names, opset=opset)
    if batched.plan.target == "cpu":
        spell_out_elu(model)
    weights = {w.name: weight_of(w.shape(batched.n_members), w.dtype) for w in batched.weights.packed}
    text = json.dumps({**metadata, **_renamed(model, weights)}, sort_keys=True)
    own = {METADATA_KEY: text, "ensexport_version": __version__}
    return lay_out_onnx(model, output.target.name, weights, own, external_data=external_data)


def _renamed(model: ir.Model, weights: Mapping[str, Weight]) -> dict[str, dict[str, str]]:
    """Packed weights that have another name in the ONNX file, for one of the user's was in the way."""
    packed = {value.meta.get("packed_name", name): name for name, value in model.graph.initializers.items()}
    names = {name: own for name, own in sorted(packed.items()) if name in weights and name != own}
    return {RENAMED_KEY: names} if names else {}


def _opened(output: Output, layout: OnnxFile) -> WeightFile:
    with writing(output.target):
        return WeightFile(layout.write(output.staged), layout.places)


def _serialised(kind: str, batched: BatchedGraph, weights: Mapping[str, torch.Tensor], text: str) -> bytes:
    if kind == "torchscript":
        from ensexport.targets.torchscript import torchscript_bytes

        return torchscript_bytes(batched, weights, {METADATA_FILE: text})
    from ensexport.targets.pt2 import pt2_bytes

    return pt2_bytes(batched, weights, {METADATA_FILE: text})
