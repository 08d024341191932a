"""A package folder, put together from what packing has made: models, samples, kept tensors, card and manifest."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from ensexport.batching.engine import BatchedGraph
from ensexport.dtypes import Conversion
from ensexport.emission import OutputEmission, names_of
from ensexport.output_files import Output, data_file, describe_artifact, describe_artifacts
from ensexport.package.card import card_text
from ensexport.package.cases import SampleCase
from ensexport.package.choice import PackagePlan
from ensexport.package.contents import sample_entry, validation_entry
from ensexport.package.manifest import MANIFEST, manifest_text
from ensexport.package.samples import write_sample
from ensexport.package.triton import DEFAULTS, ServingOptions, file_format, model_places, triton_files
from ensexport.recipe.state_file import STATE_FILE
from ensexport.spec import SUFFIX_BY_FORMAT, Artifact, ValidationReport
from ensexport.staging import writing
from ensexport.weighting import WEIGHTS_INPUT

CARD = "README.md"


@dataclass(frozen=True)
class Contents:
    """What goes into a package beside its models.

    Attributes:
        manifest: What `make_manifest` returned.
        report: The proof of all files.
        cases: The samples.
        write_state: Writes the members' tensors that cannot be read back from the graph into a file; returns False
            and writes nothing where there are none.
        labels: Names of the classes, for Triton.
        serving: How Triton is to serve the model.
    """

    manifest: Mapping[str, Any]
    report: ValidationReport
    cases: Sequence[SampleCase]
    write_state: Callable[[Path], bool]
    labels: Sequence[str] | None = None
    serving: ServingOptions = DEFAULTS


def write_package(
    plan: PackagePlan, folder: Path, contents: Contents, tell: Callable[[int, int], None]
) -> list[Artifact]:
    """Complete a package whose models are written: samples, tensors, card, and last the manifest.

    Args:
        plan: What it is to be.
        folder: The package while it is being made; it holds the models of `plan`.
        contents: All else.
        tell: Called as `(done, total)` with bytes that were read for digests.

    Returns:
        The package itself, then its files.

    Raises:
        OutputError: The system refuses.
        TritonError: Triton cannot serve the model, or not as was asked.
    """
    formats: dict[str, str] = {}
    with writing(plan.folder):
        for kind, model in plan.models.items():
            formats |= _placed(folder, model, kind, is_triton=plan.layout == "triton")
        models = {kind: name for name, kind in formats.items() if kind in plan.models}
        entries = []
        for index, case in enumerate(contents.cases):
            name = f"test_data_set_{index}"
            write_sample(folder / name, case.inputs, case.outputs)
            entries.append(sample_entry(name, case))
            formats |= {item["path"]: "sample" for item in (*entries[-1]["inputs"], *entries[-1]["outputs"])}
        if contents.write_state(folder / STATE_FILE):
            formats[STATE_FILE] = "state"
        names = {str(plan.folder / model): models[kind] for kind, model in plan.models.items()}
        manifest = {
            **contents.manifest,
            "layout": plan.layout,
            "name": plan.name,
            "validation": validation_entry(contents.report, names),
            "samples": entries,
            "notes": [],
            "swaps": [],
        }
        if "onnx" not in plan.models:
            manifest["opset"] = None
        if plan.layout == "triton":
            files, notes = _write_triton(plan, folder, manifest, contents)
            formats |= files
            manifest["notes"] = list(notes)
        return finish_package(folder, plan.folder, manifest, formats, tell)


def finish_package(
    folder: Path, shown: Path, manifest: dict[str, Any], formats: Mapping[str, str], tell: Callable[[int, int], None]
) -> list[Artifact]:
    """Write the card, and last the manifest with the digests of all files.

    Args:
        folder: The package while it is being made.
        shown: What it will be called.
        manifest: What it says of itself; its files are put in.
        formats: Path -> format of each file that is there.
        tell: Called as `(done, total)` with bytes that were read for digests.

    Returns:
        The package itself, then its files.

    Raises:
        OSError: The system refuses.
    """
    (folder / CARD).write_text(card_text(manifest), encoding="utf-8")
    kinds = {**formats, CARD: "card"}
    paths = sorted(kinds)
    files = describe_artifacts([Output(kinds[path], folder / path, shown / path) for path in paths], tell)
    manifest["files"] = [
        {"path": path, "format": file.format, "size_bytes": file.size_bytes, "sha256": file.sha256}
        for path, file in zip(paths, files, strict=True)
    ]
    (folder / MANIFEST).write_text(manifest_text(manifest), encoding="utf-8")
    whole = describe_artifact(folder / MANIFEST, shown / MANIFEST, "manifest", lambda _: None)
    size = whole.size_bytes + sum(file.size_bytes for file in files)
    return [Artifact(str(shown), "package", size, whole.sha256), *files, whole]


def _placed(folder: Path, model: PurePosixPath, kind: str, *, is_triton: bool) -> dict[str, str]:
    """Move a model and its external data to where they belong; returns the formats of the files."""
    path = (folder / model).with_suffix(SUFFIX_BY_FORMAT[kind])
    data = data_file(path)
    has_data = kind == "onnx" and data.exists()
    formats = {str(model): kind} | ({str(model.with_name(data.name)): "onnx_data"} if has_data else {})
    if not is_triton:
        return formats
    aside = path.with_name("aside")
    aside.mkdir()
    for file in (path, data) if has_data else (path,):
        file.rename(aside / file.name)
    formats = {}
    for name, place in model_places(kind, has_external_data=has_data).items():
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (aside / name).rename(folder / place)
        formats[place] = "onnx_data" if name.endswith(".data") else kind
    aside.rmdir()
    return formats


def _write_triton(
    plan: PackagePlan, folder: Path, manifest: Mapping[str, Any], contents: Contents
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Write what Triton reads beside the model; returns the formats of the files, and what a client must know."""
    (kind,) = plan.models
    samples = contents.cases[0].inputs if contents.cases else {}
    made = triton_files(manifest, samples, kind=kind, labels=contents.labels, options=contents.serving)
    for name, data in made.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return {name: file_format(name) for name in made.files}, made.notes


def signature_of(
    batched: BatchedGraph, emitted: Sequence[OutputEmission], formulas: Mapping[str, str], conversion: Conversion | None
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the manifest's entries of inputs and outputs, as the files have them.

    Args:
        batched: The finished graph.
        emitted: What each output of the model became.
        formulas: Output -> how it is made.
        conversion: What the files do in another dtype than their members.
    """
    inputs: list[dict[str, Any]] = []
    for spec in batched.member.specs:
        is_per_member = spec.name in batched.per_member
        dims: list[int | str] = [*([batched.n_members] if is_per_member else []), *spec.dims]
        dtype = spec.dtype if conversion is None else conversion.io_dtype(spec.dtype)
        inputs.append(_input(spec.name, dtype, dims, is_per_member=is_per_member))
    if batched.weights_input is not None:
        inputs.append(_input(WEIGHTS_INPUT, "float32", [batched.n_members], is_optional=True))
    outputs = []
    for name, node in zip(names_of(emitted), batched.outputs, strict=False):
        value = node.meta["val"]
        dtype = str(value.dtype).removeprefix("torch.")
        shape = [_size(size, batched.member.symbols) for size in value.shape]
        outputs.append({"name": name, "dtype": dtype, "shape": shape, "formula": formulas[name]})
    return inputs, outputs


def _input(
    name: str, dtype: str, shape: Sequence[int | str], *, is_per_member: bool = False, is_optional: bool = False
) -> dict[str, Any]:
    return {
        "name": name,
        "dtype": dtype,
        "shape": list(shape),
        "is_per_member": is_per_member,
        "is_optional": is_optional,
    }


def _size(size: Any, symbols: Mapping[str, str]) -> int | str:
    """A number, a dim's name, or an expression of these such as `2*length`."""
    if not isinstance(size, torch.SymInt):
        return int(size)
    return re.sub(r"\w+", lambda match: symbols.get(match[0], match[0]), str(size.node.expr))
