"""Packed files, each with what a manifest says of it, and a sample of its inputs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch

import ensexport
from ensexport.emission import parse_emission
from ensexport.pipeline import export
from ensexport.runtime.runner import METADATA_KEY
from ensexport.weighting import MemberWeights
from tests.cli.projects import MLP, X, load_factory

CNN = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(torch.relu(self.conv(x)).mean((2, 3)))
"""
TOKENS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(11, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, ids, keep):
        return self.head(self.table(ids) * keep.unsqueeze(-1))
"""
SCALAR = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.line = nn.Linear(4, 3)

    def forward(self, x, scale):
        return (self.line(x) * scale).mean()
"""
ROWS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.line = nn.Linear(1, 1)

    def forward(self, x):
        return self.line(x.unsqueeze(-1)).squeeze(-1)
"""


@dataclass(frozen=True)
class Pack:
    """One packed file.

    Attributes:
        path: The ONNX file; a TorchScript file of the same ensemble lies beside it where asked for.
        session: On it.
        manifest: The part of a manifest that the configuration is made of.
        samples: Its inputs, drawn at random, five in each dynamic dim but the first.
    """

    path: Path
    session: ort.InferenceSession
    manifest: dict[str, Any]
    samples: dict[str, np.ndarray]


# Name -> source, input specs, arguments of `export`, dtype of the members.
PACKS: dict[str, tuple[str, list[str], dict[str, Any], torch.dtype]] = {
    "mlp": (MLP, [X], {"member_axis": 1}, torch.float32),
    "mlp, members first": (MLP, [X], {}, torch.float32),
    "cnn": (CNN, ["x:float32[batch,1,8,8]"], {"emission": parse_emission("probs,entropy")}, torch.float32),
    "tokens": (
        TOKENS, ["ids:int64[batch,seq]", "keep:bool[batch,seq]"], {"emission": parse_emission("mean,std")},
        torch.float32,
    ),
    "per member": (MLP, [X], {"per_member": ["x"], "member_axis": 1}, torch.float32),
    "fixed batch": (MLP, ["x:float32[8,4]"], {"member_axis": 1}, torch.float32),
    "float16": (MLP, ["x:float16[batch,4]"], {"emission": parse_emission("mean")}, torch.float16),
    "weights": (
        MLP, [X], {"emission": parse_emission("mean,var"), "weights": MemberWeights()}, torch.float32,
    ),
    "scalar": (SCALAR, ["x:float32[rows,4]", "scale:float32[]"], {"emission": parse_emission("mean")}, torch.float32),
    "rows": (ROWS, ["x:float32[batch]"], {"emission": parse_emission("mean")}, torch.float32),
}  # fmt: skip


def make_pack(folder: Path, name: str, *, suffixes: tuple[str, ...] = (".onnx",), **changes: Any) -> Pack:
    """Pack one row of the table.

    Args:
        folder: Where to.
        name: Of the row.
        suffixes: Which files.
        changes: To the arguments of `export`.
    """
    source, inputs, options, dtype = PACKS[name]
    factory, members = load_factory(source), []
    for seed in range(3):
        torch.manual_seed(seed)
        members.append(factory().to(dtype))
    ensemble = ensexport.stack(members)
    paths = [folder / f"model{suffix}" for suffix in suffixes]
    export(ensemble, paths, inputs=inputs, seeds=(0,), batches=(1, 2), **(options | changes))
    session = ort.InferenceSession(paths[0], providers=["CPUExecutionProvider"])
    manifest = manifest_of(paths[0])
    return Pack(paths[0], session, manifest, draw_samples(manifest))


def manifest_of(path: Path) -> dict[str, Any]:
    """What a manifest says of an ONNX file, read from the file."""
    model = onnx.load(path)
    says = json.loads(next(entry.value for entry in model.metadata_props if entry.key == METADATA_KEY))
    defaults = {initializer.name for initializer in model.graph.initializer}
    return {
        "tool": {"name": "ensexport", "version": says["ensexport_version"]},
        "name": None,
        "n_members": says["n_members"],
        "member_axis": says["member_axis"],
        "inputs": [
            _entry(value) | {"is_per_member": value.name in says["per_member"], "is_optional": value.name in defaults}
            for value in model.graph.input
        ],
        "outputs": [_entry(value) | {"formula": says["formulas"][value.name]} for value in model.graph.output],
        "dims": says["dims"],
        "emit": says["emit"],
        "dtypes": says.get("dtypes"),
        "plan": {"target": says["target"]},
    }


def _entry(value: onnx.ValueInfoProto) -> dict[str, Any]:
    kind = value.type.tensor_type
    dtype = "bfloat16" if kind.elem_type == onnx.TensorProto.BFLOAT16 else None
    return {
        "name": value.name,
        "dtype": dtype or onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name,
        "shape": [dim.dim_param or dim.dim_value for dim in kind.shape.dim],
    }


def draw_samples(manifest: dict[str, Any]) -> dict[str, np.ndarray]:
    """Inputs at random: two of the leading dim where it is dynamic, five of the others."""
    generator = np.random.default_rng(0)
    samples = {}
    for entry in manifest["inputs"]:
        if entry["is_optional"]:
            continue
        sizes = [dim if isinstance(dim, int) else (2 if place == 0 else 5) for place, dim in enumerate(entry["shape"])]
        if entry["dtype"] in ("bool", "int64"):
            values = generator.integers(0, 2, sizes)
        else:
            values = generator.normal(size=sizes)
        samples[entry["name"]] = np.asarray(values).astype(entry["dtype"])
    return samples
