"""Files in another dtype than their members: written, proven, and differences still found."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from ml_dtypes import bfloat16
from torch import nn

import ensexport
from ensexport.dtypes import DtypeChoice
from ensexport.emission import parse_emission
from ensexport.errors import MismatchError, WeightRangeError
from ensexport.runtime import open_runners, read_metadata

QUICK = {"batches": (1, 3), "seeds": (0,)}


def _net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 3))


def _members(folder: Path, dtype: torch.dtype = torch.float32, *, n_members: int = 3) -> ensexport.Members:
    (folder / "ckpts").mkdir()
    for seed in range(n_members):
        torch.manual_seed(seed)
        torch.save(_net().to(dtype).state_dict(), folder / "ckpts" / f"seed_{seed}.pt")
    return ensexport.load_members(folder / "ckpts", model=lambda: _net().to(dtype))


@pytest.mark.parametrize("io", [None, "float16", "bfloat16"])
@pytest.mark.parametrize("inside", ["float16", "bfloat16"])
def test_every_format_is_proven_and_takes_what_it_says(tmp_path: Path, inside: str, io: str | None) -> None:
    members, kind = _members(tmp_path), io or "float32"
    paths = [tmp_path / name for name in ("e.onnx", "e.ts", "e.pt2")]
    report = ensexport.export(members, paths, inputs=["x:float32[batch,4]"], dtypes=DtypeChoice(inside, io), **QUICK)
    assert report.conversion is not None
    assert {check.dtype for check in report.validation.checks} == {kind}
    for path in paths:
        metadata = read_metadata(path)
        assert metadata["inputs"] == [f"x:{kind}[batch,4]"]
        assert metadata["member_inputs"] == ["x:float32[batch,4]"]
        assert metadata["dtypes"] == {"members": "float32", "inside": inside, "io": kind}
        assert ensexport.validate(path, members, **QUICK).passed
        for runner in open_runners(path, output_names=("output",)):
            (result,) = runner.run(
                {"x": np.ones((2, 4), np.float32).astype(bfloat16 if kind == "bfloat16" else kind)}
            ).values()
            assert (str(result.dtype), result.shape) == (kind, (3, 2, 3))


@pytest.mark.parametrize("own", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_members_of_other_dtypes_become_float32(tmp_path: Path, own: torch.dtype) -> None:
    members, kind = _members(tmp_path, own), str(own).removeprefix("torch.")
    paths = [tmp_path / "e.onnx", tmp_path / "e.ts"]
    choice = DtypeChoice("float32", "float32")
    report = ensexport.export(members, paths, inputs=[f"x:{kind}[batch,4]"], dtypes=choice, **QUICK)
    assert {check.dtype for check in report.validation.checks} == {"float32"}
    assert ensexport.validate(paths[0], members, **QUICK).passed


def test_members_that_were_saved_in_different_dtypes(tmp_path: Path) -> None:
    members = _members(tmp_path)
    path = tmp_path / "ckpts" / "seed_1.pt"
    torch.save({name: tensor.half() for name, tensor in torch.load(path).items()}, path)
    members = ensexport.load_members(tmp_path / "ckpts", model=_net, any_float=True)
    for inside in ("float16", "float32"):
        file = tmp_path / f"{inside}.onnx"
        ensexport.export(members, file, inputs=["x:float32[batch,4]"], dtypes=DtypeChoice(inside), **QUICK)
        assert ensexport.validate(file, members, **QUICK).passed


def test_float16_weights_are_half_the_file(tmp_path: Path) -> None:
    members = _members(tmp_path)
    path = tmp_path / "e.onnx"
    ensexport.export(members, path, inputs=["x:float32[batch,4]"], dtypes=DtypeChoice("float16"), **QUICK)
    kinds = {tensor.name: tensor.data_type for tensor in onnx.load(path).graph.initializer}
    assert kinds["3.weight"] == kinds["0.weight"] == onnx.TensorProto.FLOAT16


@pytest.mark.parametrize("name", ["e.onnx", "e.ts"])
def test_swapped_and_changed_members_are_found_in_float16(tmp_path: Path, name: str) -> None:
    members = _members(tmp_path)
    path = tmp_path / name
    ensexport.export(
        members, path, inputs=["x:float32[batch,4]"], dtypes=DtypeChoice("float16", "float16"),
        emission=parse_emission("mean"), **QUICK,
    )  # fmt: skip
    files = [tmp_path / "ckpts" / f"seed_{seed}.pt" for seed in (1, 0, 2)]
    swapped = ensexport.load_members(files, model=_net)
    with pytest.raises(MismatchError, match=r"member [01] "):
        ensexport.validate(path, swapped, **QUICK)


def test_a_weight_out_of_range_leaves_no_file(tmp_path: Path) -> None:
    members = _members(tmp_path)
    state = torch.load(tmp_path / "ckpts" / "seed_2.pt")
    state["3.bias"][1] = -1e5
    torch.save(state, tmp_path / "ckpts" / "seed_2.pt")
    members = ensexport.load_members(tmp_path / "ckpts", model=_net)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(
        WeightRangeError, match=re.escape("member 2: '3.bias' holds 100000, beyond the largest float16")
    ):
        ensexport.export(
            members, tmp_path / "e.onnx", inputs=["x:float32[batch,4]"], dtypes=DtypeChoice("float16"), **QUICK
        )
    assert sorted(tmp_path.iterdir()) == before


class _Loud(nn.Module):
    """Values on the way are beyond float16's largest."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 4), nn.Linear(4, 2)
        self.up.weight.data = 6e4 * torch.eye(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.up(x).abs())


def test_values_out_of_range_are_a_mismatch_that_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "ckpts").mkdir()
    for seed in range(2):
        torch.manual_seed(seed)
        torch.save(_Loud().state_dict(), tmp_path / "ckpts" / f"{seed}.pt")
    members = ensexport.load_members(tmp_path / "ckpts", model=_Loud)
    common = {"inputs": ["x:float32[batch,4]"], **QUICK}
    with pytest.raises(MismatchError) as caught:
        ensexport.export(members, tmp_path / "e.ts", dtypes=DtypeChoice("float16"), **common)
    assert "65504" in str(caught.value.hint)
    assert "--dtype bfloat16" in str(caught.value.hint)
    ensexport.export(members, tmp_path / "e.ts", dtypes=DtypeChoice("bfloat16"), **common)


def test_combined_outputs_of_a_float16_file(tmp_path: Path) -> None:
    """Each value against NumPy on the file's own members."""
    members = _members(tmp_path)
    path = tmp_path / "e.onnx"
    names = "members,probs,entropy,mutual_information,vote"
    ensexport.export(
        members, path, inputs=["x:float32[batch,4]"], dtypes=DtypeChoice("float16"), emission=parse_emission(names),
        member_axis=1, **QUICK,
    )  # fmt: skip
    x = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)
    runner = next(iter(open_runners(path, output_names=())))
    outputs = runner.run({"x": x})
    logits = outputs["output"].astype(np.float64)  # (B, N, C)
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    mean = p.mean(1)
    entropy = -(mean * np.log(mean)).sum(-1)
    expected = {
        "probs": mean,
        "entropy": entropy,
        "mutual_information": entropy + (p * np.log(p)).sum(-1).mean(1),
        "vote": np.eye(3)[logits.argmax(-1)].mean(1),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(outputs[f"output.{name}"], value, rtol=0, atol=2e-6)
