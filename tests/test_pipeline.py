"""Exporting: what a file says of itself, and that nothing of the machine gets into it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

import ensexport
from ensexport.errors import MismatchError, TargetExistsError, UsageError
from ensexport.runtime import read_metadata

INPUTS = ["x:float32[batch,4]"]


def _net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def _checkpoints(folder: Path) -> Path:
    folder.mkdir()
    for seed in range(3):
        torch.manual_seed(seed)
        torch.save(_net().state_dict(), folder / f"seed_{seed}.pt")
    return folder


@pytest.mark.parametrize("stacked", [False, True], ids=["members", "stacked"])
@pytest.mark.parametrize("name", ["e.onnx", "e.ts", "e.pt2"])
def test_file_names_its_members_and_no_folder_of_this_machine(tmp_path: Path, stacked: bool, name: str) -> None:
    members = ensexport.load_members(_checkpoints(tmp_path / "ckpts"), model=_net)
    path = tmp_path / name
    ensexport.export(ensexport.stack(members) if stacked else members, path, inputs=INPUTS, batches=(2,), seeds=(0,))
    metadata = read_metadata(path)
    assert [record["name"] for record in metadata["members"]] == ["seed_0.pt", "seed_1.pt", "seed_2.pt"]
    assert [record["weights_sha256"] for record in metadata["members"]] == [m.weights_sha256 for m in members]
    assert str(tmp_path).encode() not in path.read_bytes()
    assert str(Path(ensexport.__file__).parent).encode() not in path.read_bytes()


def test_weight_changed_too_little_to_show_is_found_by_its_digest(tmp_path: Path) -> None:
    folder = _checkpoints(tmp_path / "ckpts")
    path = tmp_path / "e.onnx"
    ensexport.export(ensexport.load_members(folder, model=_net), path, inputs=INPUTS, batches=(2,), seeds=(0,))
    state = torch.load(folder / "seed_1.pt", weights_only=True)
    state["0.weight"][2, 1] *= 1 + 1e-6
    torch.save(state, folder / "seed_1.pt")
    with pytest.raises(MismatchError, match=r"seed_1\.pt"):
        ensexport.validate(path, ensexport.load_members(folder, model=_net), batches=(2,), seeds=(0,))


@pytest.mark.parametrize("layer", [lambda: nn.Linear(4, 8), lambda: nn.Conv1d(4, 8, 1)], ids=["linear", "conv"])
def test_folding_a_batch_norm_hides_no_bad_member(tmp_path: Path, layer: Callable[[], nn.Module]) -> None:
    """A variance of -eps divides by zero in float32 and not in float64, where the folded weights are computed."""
    members = [nn.Sequential(layer(), nn.BatchNorm1d(8), nn.Flatten(1)).eval() for _ in range(3)]
    members[1][1].running_var[3] = -members[1][1].eps
    size = "" if isinstance(members[0][0], nn.Linear) else ",1"
    with pytest.raises(MismatchError, match=r"NaN or Inf on one side only, at member 1\b"):
        ensexport.export(ensexport.stack(members), tmp_path / "e.ts", inputs=[f"x:float32[batch,4{size}]"])
    assert not (tmp_path / "e.ts").exists()


class _FillsBuffer(nn.Module):
    """Computes a table on the first call and keeps it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(4))
        self.register_buffer("table", torch.zeros(1), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.table.shape != self.weight.shape:
            self.table = self.weight.detach().cumsum(0)
        return x + self.table


def test_buffers_that_the_first_call_fills_are_each_members_own(tmp_path: Path) -> None:
    paths = [tmp_path / "e.onnx", tmp_path / "e.ts"]
    ensexport.export(ensexport.stack([_FillsBuffer() for _ in range(3)]), paths, inputs=INPUTS)
    assert paths[0].exists()


def test_onnx_carries_names_dims_and_opset(tmp_path: Path) -> None:
    path = tmp_path / "e.onnx"
    ensexport.export(
        ensexport.stack([_net() for _ in range(2)]), path, inputs=INPUTS, opset=18, output_names=["logits"]
    )
    model = onnx.load(path)
    assert [entry.version for entry in model.opset_import if entry.domain == ""] == [18]
    (given,), (result,) = model.graph.input, model.graph.output
    assert (given.name, result.name) == ("x", "logits")
    assert given.type.tensor_type.shape.dim[0].dim_param == "batch"
    assert result.type.tensor_type.shape.dim[1].dim_param == "batch"
    assert {entry.key for entry in model.metadata_props} == {"ensexport", "ensexport_version"}
    assert json.loads(model.metadata_props[0].value)["n_members"] == 2
    assert not [node for node in model.graph.node if node.metadata_props or node.doc_string]
    assert not list(tmp_path.glob("*.data"))


def test_batchnorm_convnet_has_one_transpose_and_no_shape_nodes(tmp_path: Path) -> None:
    def convnet() -> nn.Module:
        layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3)]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))

    path = tmp_path / "e.onnx"
    ensexport.export(ensexport.stack([convnet() for _ in range(3)]), path, inputs=["x:float32[batch,3,12,12]"])
    ops = [node.op_type for node in onnx.load(path).graph.node]
    assert ops.count("Conv") == 2
    assert ops.count("Transpose") == 1
    assert not {"Shape", "Gather", "Expand", "Identity"} & set(ops)


def test_nothing_is_written_when_a_target_exists(tmp_path: Path) -> None:
    (tmp_path / "e.ts").write_text("mine")
    with pytest.raises(TargetExistsError, match=r"e\.ts"):
        ensexport.export(
            ensexport.stack([_net() for _ in range(2)]), [tmp_path / "e.onnx", tmp_path / "e.ts"], inputs=INPUTS
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e.ts"]
    assert (tmp_path / "e.ts").read_text() == "mine"


@pytest.mark.parametrize(
    ("options", "fact"),
    [
        pytest.param({"per_member": ["y"]}, "'y' is said to be per-member", id="per-member"),
        pytest.param({"output_names": ["a", "b"]}, "2 output names are given: expected 1", id="too-many-names"),
        pytest.param({"output_names": ["x"]}, "unique and no input's name", id="name-of-an-input"),
    ],
)
def test_bad_names_are_refused(tmp_path: Path, options: dict[str, object], fact: str) -> None:
    with pytest.raises(UsageError, match=fact):
        ensexport.export(
            ensexport.stack([_net() for _ in range(2)]),
            tmp_path / "e.onnx",
            inputs=INPUTS,
            **options,  # type: ignore[arg-type]
        )
    assert not list(tmp_path.iterdir())
