"""Files with combined outputs: written, proven, and members that changed places behind them found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

import ensexport
from ensexport.combined_reference import combine
from ensexport.emission import parse_emission
from ensexport.errors import MismatchError, UsageError
from ensexport.runtime import onnx_runner, open_runners, read_metadata
from ensexport.spec import Tolerance
from ensexport.weighting import MemberWeights

INPUTS = ["x:float32[batch,4]"]
QUICK = {"batches": (1, 3), "seeds": (0,)}
CLASSES = "probs,entropy,mutual_information,vote"


def _net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


@pytest.fixture
def members(tmp_path: Path) -> ensexport.Members:
    (tmp_path / "ckpts").mkdir()
    for seed in range(3):
        torch.manual_seed(seed)
        torch.save(_net().state_dict(), tmp_path / "ckpts" / f"seed_{seed}.pt")
    return ensexport.load_members(tmp_path / "ckpts", model=_net)


@pytest.mark.parametrize(
    "weights", [None, MemberWeights(), MemberWeights((1.0, 0.0, 2.0))], ids=["alike", "input", "baked"]
)
@pytest.mark.parametrize("name", ["e.onnx", "e.ts", "e.pt2"])
def test_every_format_is_written_and_proven(
    tmp_path: Path, members: ensexport.Members, name: str, weights: MemberWeights | None
) -> None:
    path = tmp_path / name
    report = ensexport.export(
        members, path, inputs=INPUTS, emission=parse_emission(CLASSES), weights=weights, member_axis=1, **QUICK
    )
    compared = {(check.output, check.member_index) for check in report.validation.checks}
    assert {("output", index) for index in range(3)} < compared
    assert {(f"output.{name}", None) for name in CLASSES.split(",")} < compared
    assert ensexport.validate(path, members, **QUICK).passed
    metadata = read_metadata(path)
    assert metadata["outputs"] == [f"output.{name}" for name in CLASSES.split(",")]
    assert metadata["formulas"]["output.probs"] == "p = sum_k w_k p_k"
    assert metadata["member_weights"] == (None if weights is None else weights.to_json())


def test_onnx_returns_what_was_asked_for_and_numpy_agrees(tmp_path: Path, members: ensexport.Members) -> None:
    path = tmp_path / "e.onnx"
    ensexport.export(members, path, inputs=INPUTS, emission=parse_emission(CLASSES), output_names=["logits"], **QUICK)
    x = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    logits = [members.build(index)(torch.from_numpy(x)).detach().numpy() for index in range(3)]
    for runner in open_runners(path, output_names=()):
        outputs = runner.run({"x": x})
        assert list(outputs) == [f"logits.{name}" for name in CLASSES.split(",")]
        for name in CLASSES.split(","):
            np.testing.assert_allclose(outputs[f"logits.{name}"], combine(name, logits), rtol=1e-5, atol=1e-6)
    (batch,) = {value.type.tensor_type.shape.dim[0].dim_param for value in onnx.load(path).graph.output}
    assert batch == "batch"


def _swapped(path: Path, first: int, second: int) -> None:
    """Change the places of two members' weights in an ONNX file, and nothing else."""
    model = onnx.load(path)
    changed = 0
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor).copy()
        n_members = 3
        if array.ndim and array.shape[0] % n_members == 0 and ("weight" in tensor.name or "bias" in tensor.name):
            parts = array.reshape(n_members, -1)
            parts[[first, second]] = parts[[second, first]]
            tensor.raw_data = array.tobytes()
            changed += 1
    assert changed == 4
    onnx.save(model, path)


def test_two_members_that_changed_places_behind_a_mean_are_found(tmp_path: Path, members: ensexport.Members) -> None:
    path = tmp_path / "e.onnx"
    ensexport.export(members, path, inputs=INPUTS, emission=parse_emission("mean"), **QUICK)
    x = np.ones((2, 4), np.float32)
    before = [runner.run({"x": x})["output.mean"] for runner in open_runners(path, output_names=())]
    _swapped(path, 0, 2)
    after = [runner.run({"x": x})["output.mean"] for runner in open_runners(path, output_names=())]
    np.testing.assert_allclose(before, after, rtol=1e-6)
    with pytest.raises(MismatchError, match=r"output 'output' of .* differs from the baseline.* at member [02] "):
        ensexport.validate(path, members, **QUICK)


@pytest.mark.parametrize("name", ["e.onnx", "e.ts", "e.pt2"])
def test_two_checkpoints_that_changed_places_behind_a_mean_are_found(
    tmp_path: Path, members: ensexport.Members, name: str
) -> None:
    path, folder = tmp_path / name, tmp_path / "ckpts"
    ensexport.export(members, path, inputs=INPUTS, emission=parse_emission("mean"), **QUICK)
    other = [folder / f"seed_{seed}.pt" for seed in (1, 0, 2)]
    with pytest.raises(MismatchError, match=r"output 'output' of .* at member [01] "):
        ensexport.validate(path, ensexport.load_members(other, model=_net), **QUICK)


def test_a_wrong_formula_is_found(tmp_path: Path, members: ensexport.Members) -> None:
    path = tmp_path / "e.onnx"
    ensexport.export(members, path, inputs=INPUTS, emission=parse_emission("var"), **QUICK)
    model = onnx.load(path)
    numbers = [
        t for t in model.graph.initializer if t.name in {n.input[1] for n in model.graph.node if n.op_type == "Div"}
    ]
    numbers += [n.attribute[0].t for n in model.graph.node if n.op_type == "Constant" and not n.attribute[0].t.dims]
    divisors = [t for t in numbers if numpy_helper.to_array(t).size == 1 and float(numpy_helper.to_array(t)) == 3.0]
    assert divisors
    divisors[-1].CopyFrom(numpy_helper.from_array(np.array(2.0, np.float32), divisors[-1].name))
    onnx.save(model, path)
    with pytest.raises(MismatchError, match=r"output 'output.var' of .* at all members combined"):
        ensexport.validate(path, members, **QUICK)


def test_the_share_of_inputs_with_another_top_class_is_reported(tmp_path: Path, members: ensexport.Members) -> None:
    path = tmp_path / "e.onnx"
    report = ensexport.export(members, path, inputs=INPUTS, emission=parse_emission("mean,probs,vote"), **QUICK)
    rows = 2 * (1 + 3)  # both levels of ONNX Runtime's optimisation, batch 1 and 3
    assert report.validation.top1 == {"output": (0, 3 * rows), "output.mean": (0, rows), "output.probs": (0, rows)}
    _swapped(path, 0, 2)
    loose = ensexport.validate(path, members, tolerance=Tolerance(atol=100.0), **QUICK)
    assert loose.passed
    differs, inputs = loose.top1["output"]
    assert 0 < differs <= inputs == 3 * rows
    assert loose.to_dict()["top1"]["output"] == {"differs": differs, "inputs": inputs, "share": differs / inputs}
    assert [c.top1_differs for c in loose.checks if c.member_index == 1] == [0] * 4
    ensexport.export(members, path, inputs=INPUTS, emission=parse_emission("mean"), force=True, **QUICK)
    assert ensexport.validate(path, members, **QUICK).top1 == {}  # nothing says that these are class scores


@pytest.mark.parametrize("choice", ["first", "last,1"])
def test_with_some_members_compared_the_rest_is_judged_from_the_files_own(
    tmp_path: Path, members: ensexport.Members, choice: str
) -> None:
    from ensexport.choice import parse_choice

    path = tmp_path / "e.onnx"
    report = ensexport.export(
        members, path, inputs=INPUTS, emission=parse_emission("std,vote"), choice=parse_choice(choice), **QUICK
    )
    assert {check.output for check in report.validation.checks} == {"output", "output.std", "output.vote"}


class _Two(nn.Module):
    """Two outputs: class scores and a number a row."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.layer(x)
        return {"logits": logits, "value": logits.sum(-1)}


@pytest.mark.parametrize("suffix", [".onnx", ".ts", ".pt2"])
def test_each_output_becomes_what_it_should(tmp_path: Path, suffix: str) -> None:
    ensemble = ensexport.stack([_Two() for _ in range(3)])
    path = tmp_path / f"e{suffix}"
    emission = parse_emission(["value=members,std", "logits=probs"])
    ensexport.export(ensemble, path, inputs=INPUTS, emission=emission, **QUICK)
    assert read_metadata(path)["outputs"] == ["logits.probs", "value", "value.std"]
    with pytest.raises(UsageError, match="cannot emit 'probs' of output 'value'"):
        ensexport.export(ensemble, tmp_path / "f.ts", inputs=INPUTS, emission=parse_emission("probs"), **QUICK)
    assert not (tmp_path / "f.ts").exists()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("suffix", [".onnx", ".ts"])
def test_members_in_half_precision(tmp_path: Path, suffix: str, dtype: torch.dtype) -> None:
    ensemble = ensexport.stack([_net().to(dtype) for _ in range(3)])
    kind = str(dtype).removeprefix("torch.")
    report = ensexport.export(
        ensemble,
        tmp_path / f"e{suffix}",
        inputs=[f"x:{kind}[batch,4]"],
        emission=parse_emission(CLASSES + ",mean,std"),
        **QUICK,
    )
    assert {check.dtype for check in report.validation.checks} == {kind}


def test_one_file_serves_any_subset(tmp_path: Path, members: ensexport.Members) -> None:
    whole, part = tmp_path / "whole.onnx", tmp_path / "part.onnx"
    emission = parse_emission(CLASSES + ",median,var")
    ensexport.export(members, whole, inputs=INPUTS, emission=emission, weights=MemberWeights(), **QUICK)
    two = ensexport.load_members([tmp_path / "ckpts" / f"seed_{seed}.pt" for seed in (0, 2)], model=_net)
    ensexport.export(two, part, inputs=INPUTS, emission=emission, **QUICK)
    x = np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32)
    left = next(open_runners(whole, output_names=())).run({"x": x, "member_weights": np.array([1, 0, 1], np.float32)})
    right = next(open_runners(part, output_names=())).run({"x": x})
    assert list(left) == list(right)
    for name in left:
        np.testing.assert_allclose(left[name], right[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_large_files_are_checked_in_one_session(
    tmp_path: Path, members: ensexport.Members, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "e.onnx"
    made: list[str] = []
    init = onnx_runner.OnnxRunner.__init__

    def counted(self: onnx_runner.OnnxRunner, file: Path, **options: object) -> None:
        made.append(str(options.get("shown")))
        init(self, file, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(onnx_runner.OnnxRunner, "__init__", counted)
    ensexport.export(members, path, inputs=INPUTS, emission=parse_emission("probs"), **QUICK)
    assert made == ["('output',)", "()"] * 2
    made.clear()
    monkeypatch.setattr(onnx_runner, "_LARGE_BYTES", 0)
    assert ensexport.validate(path, members, **QUICK).passed
    assert made == ["('output',)"] * 2
