"""Packages made by hand: real exported files, a manifest of our own, and ways to change both."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from safetensors.torch import save_file

import ensexport
from ensexport.emission import parse_emission
from ensexport.package.manifest import MANIFEST, manifest_text
from ensexport.package.samples import write_sample
from ensexport.pipeline import export
from ensexport.runtime.torch_runner import array_from_tensor
from tests.cli.projects import MLP, X, make_members, make_project
from tests.package.manifests import make_manifest

FORMATS = {"onnx": "onnx", "ts": "torchscript", "pt2": "pt2"}
SUFFIX_OF_TRITON = {"onnx": "model.onnx", "ts": "model.pt", "pt2": "model.pt2"}


def build_package(
    folder: Path,
    *,
    formats: Sequence[str] = ("onnx",),
    source: str = MLP,
    dtype: str = "float32",
    emit: Sequence[str] = (),
    member_axis: int = 0,
    layout: str = "folder",
    external: bool = False,
    batches: Sequence[int] = (2, 3),
    weights: Any = None,
    bound: float = 1e-5,
) -> Path:
    """Write a package of three members; returns its folder."""
    folder.mkdir(parents=True)
    members = make_members(source, 3, dtype=dtype)
    base = folder if layout == "folder" else folder / "1"
    base.mkdir(exist_ok=True)
    scratch = make_project(folder.parent / f".{folder.name}", source, 3, dtype=dtype)
    loaded = ensexport.load_members([scratch / "ckpts"], model="model.py:Net", base_dir=scratch)
    paths = [scratch / f"model.{suffix}" for suffix in formats]
    emission = parse_emission(emit)
    spec = X.replace("float32", dtype)
    export(loaded, paths, inputs=[spec], emission=emission, member_axis=member_axis, weights=weights,
           batches=(1, 2), seeds=(0,))  # fmt: skip
    kinds, model, metadata = {}, None, {}
    for suffix, path in zip(formats, paths, strict=True):
        name = path.name if layout == "folder" else SUFFIX_OF_TRITON[suffix]
        if suffix == "onnx":
            model = onnx.load(path)
            metadata = json.loads(next(entry.value for entry in model.metadata_props if entry.key == "ensexport"))
        target = base / name
        if suffix == "onnx" and external:
            target = target if layout == "folder" else target / name
            target.parent.mkdir(exist_ok=True)
            onnx.save_model(
                onnx.load(path), target, save_as_external_data=True, location="model.onnx.data", size_threshold=0
            )
            kinds[f"{target}.data"] = "onnx_data"
        else:
            path.rename(target)
        kinds[str(target)] = FORMATS[suffix]
        path.unlink(missing_ok=True)
    shutil.rmtree(scratch)
    kinds |= _other_files(folder, layout, members)
    kinds = {Path(path).relative_to(folder).as_posix(): kind for path, kind in kinds.items()}
    assert model is not None
    samples = [_sample(folder, place, batch, members, metadata, dtype, bound) for place, batch in enumerate(batches)]
    for sample in samples:
        kinds |= {entry["path"]: "sample" for kind in ("inputs", "outputs") for entry in sample[kind]}
    manifest = make_manifest(
        layout=layout,
        name=None if layout == "folder" else "fraud",
        files=[{"path": path, "format": kind, "size_bytes": 0, "sha256": ""} for path, kind in sorted(kinds.items())],
        opset=next(entry.version for entry in model.opset_import if entry.domain == ""),
        members=[record | {"container_key": None, "stripped_prefix": None} for record in metadata["members"]],
        inputs=[_value(value) | {"is_per_member": False,
                "is_optional": value.name in {tensor.name for tensor in model.graph.initializer}}
                for value in model.graph.input],
        outputs=[_value(value) | {"formula": metadata["formulas"].get(value.name, "y_k")}
                 for value in model.graph.output],
        samples=samples,
        dtypes=metadata.get("dtypes"),
        plan=metadata["plan"] | {"strategy": metadata["strategy"], "target": metadata["target"], "fallbacks": []},
        validation={"passed": True, "members": "all", "tolerance": 1e-5, "max_error": 1e-7, "batches": [1, 2],
                    "seeds": [0], "top1": {}, "table": []},
        **{key: metadata[key] for key in ("n_members", "member_axis", "dims", "emit", "member_weights")},
    )  # fmt: skip
    write_manifest(folder, manifest)
    reseal(folder)
    return folder


def _other_files(folder: Path, layout: str, members: Sequence[torch.nn.Module]) -> dict[str, str]:
    (folder / "README.md").write_text("# a card\n")
    state = {f"{k}.{name}": value for k, member in enumerate(members) for name, value in member.state_dict().items()}
    save_file(state, folder / "state.safetensors")
    kinds = {"README.md": "card", "state.safetensors": "state"}
    if layout == "triton":
        (folder / "warmup").mkdir()
        for name, kind in (("config.pbtxt", "triton_config"), ("labels.txt", "labels"), ("warmup/x", "warmup")):
            (folder / name).write_text(f"{name}\n")
            kinds[name] = kind
    return {str(folder / name): kind for name, kind in kinds.items()}


def _value(value: onnx.ValueInfoProto) -> dict[str, Any]:
    tensor = value.type.tensor_type
    dims = [dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None for dim in tensor.shape.dim]
    dtype = {1: "float32", 10: "float16", 16: "bfloat16", 11: "float64", 7: "int64", 9: "bool"}[tensor.elem_type]
    return {"name": value.name, "dtype": dtype, "shape": dims}


def _sample(
    folder: Path, place: int, batch: int, members: Sequence[Any], metadata: dict[str, Any], dtype: str, bound: float
) -> dict[str, Any]:
    name = f"test_data_set_{place}"
    x = torch.randn(batch, 4, generator=torch.Generator().manual_seed(place)).to(getattr(torch, dtype))
    axis = metadata["member_axis"]
    with torch.no_grad():
        outputs = torch.stack([member(x) for member in members], dim=axis)
    values = {"output": outputs, "output.mean": outputs.float().mean(axis).to(outputs.dtype)}
    arrays = {output: array_from_tensor(values[output]) for output in metadata["outputs"]}
    write_sample(folder / name, {"x": array_from_tensor(x)}, arrays)
    return {
        "folder": name, "source": f"seed {place}", "expected_from": "loop", "batch": batch,
        "inputs": [{"path": f"{name}/input_0.pb", "name": "x"}],
        "outputs": [{"path": f"{name}/output_{k}.pb", "name": output, "bound": bound,
                     "member_axis": None if "." in output else axis} for k, output in enumerate(arrays)],
    }  # fmt: skip


def read(folder: Path) -> dict[str, Any]:
    """The manifest, unchecked."""
    return json.loads((folder / MANIFEST).read_text())


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    (folder / MANIFEST).write_text(manifest_text(manifest))


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest."""
    manifest = read(folder)
    change(manifest)
    write_manifest(folder, manifest)


def reseal(folder: Path) -> None:
    """Write the sizes and digests of the files into the manifest, as one does who rewrites a package."""

    def seal(manifest: dict[str, Any]) -> None:
        manifest["files"].sort(key=lambda entry: entry["path"])
        for entry in manifest["files"]:
            content = (folder / entry["path"]).read_bytes()
            entry |= {"size_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}

    edit(folder, seal)


def edit_model(folder: Path, change: Callable[[onnx.ModelProto], object], path: str = "model.onnx") -> None:
    """Change the ONNX file, its external data apart, and the manifest with it."""
    model = onnx.load(folder / path, load_external_data=False)
    change(model)
    (folder / path).write_bytes(model.SerializeToString())
    reseal(folder)


def scale_weight(folder: Path, name: str, member: int, factor: float) -> None:
    """Change one member's part of a weight in the file, and the manifest with it."""

    def change(model: onnx.ModelProto) -> None:
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
        array = onnx.numpy_helper.to_array(tensor).copy()
        assert array.shape[0] == 3
        array[member] = array[member] * np.float32(factor) + np.float32(factor)
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, name))

    edit_model(folder, change)
