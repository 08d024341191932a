"""`pack --emit` as it is typed: what users rely on, what is refused, and that nothing hides behind a mean."""

from __future__ import annotations

import shutil

import numpy as np
import onnxruntime as ort
import pytest
import torch

from ensexport.emission import QUANTITIES
from tests.cli.projects import X, load_script, make_project, run
from tests.cli.test_bad_input import check_refused

PACK = ("pack", "ckpts", "--model", "model.py:Net", "--input", X)
COMBINED = [name for name in QUANTITIES if name != "members"]


def returned(path, *feed):
    """What a file returns, by name: run as its users do."""
    if path.endswith(".onnx"):
        session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
        # An input with a default is "overridable" in ONNX Runtime's words.
        names = [value.name for value in (*session.get_inputs(), *session.get_overridable_initializers())]
        outputs = session.run(None, {name: x.numpy() for name, x in zip(names, feed, strict=False)})
        return dict(zip([value.name for value in session.get_outputs()], outputs, strict=True))
    outputs = load_script(path)(*feed)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    names = run("inspect", path, "--json").answer["outputs"]
    return dict(zip(names, (tensor.numpy() for tensor in outputs), strict=True))


def packed(*arguments):
    result = run(*arguments)
    assert result.exit_code == 0, result.err
    return result


# -- subsets ---------------------------------------------------------------------------------------


def test_zeros_for_five_of_ten_members_equal_packing_the_other_five(tmp_path, monkeypatch):
    folder = make_project(tmp_path / "ten", n_members=10)
    monkeypatch.chdir(folder)
    emit = ("--emit", ",".join(COMBINED))
    packed(*PACK, *emit, "--member-weights", "input", "-o", "ten.onnx", "-o", "ten.ts")
    kept = [0, 3, 4, 7, 8]
    paths = [f"ckpts/m{index}.pt" for index in kept]
    packed("pack", *paths, *PACK[2:], *emit, "-o", "five.onnx", "-o", "five.ts")
    weights = torch.zeros(10)
    weights[kept] = 1
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    for suffix in ("onnx", "ts"):
        part, other = returned(f"ten.{suffix}", x, weights), returned(f"five.{suffix}", x)
        assert list(part) == list(other) == [f"output.{name}" for name in COMBINED]
        for name, expected in other.items():
            np.testing.assert_allclose(part[name], expected, rtol=1e-5, atol=1e-6, err_msg=f"{name} in .{suffix}")
        alike, ones = returned(f"ten.{suffix}", x), returned(f"ten.{suffix}", x, torch.ones(10))
        for name, expected in ones.items():
            np.testing.assert_array_equal(alike[name], expected)


# -- nothing hides behind a mean -------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["onnx", "ts", "pt2"])
def test_validate_finds_checkpoints_that_changed_places_behind_a_mean(project, suffix):
    packed(*PACK, "--emit", "mean", "-o", f"e.{suffix}")
    model = ("--model", "model.py:Net")
    assert run("validate", f"e.{suffix}", "ckpts", *model).exit_code == 0
    for order, named in (((0, 2, 1), (1, 2)), ((0, 1, 1), (2,))):
        result = run("validate", f"e.{suffix}", *(f"ckpts/m{index}.pt" for index in order), *model, "--json")
        assert result.exit_code == 5
        assert result.error["member_index"] in named
        assert (
            f"at member {result.error['member_index']} (ckpts/m{order[result.error['member_index']]}.pt)"
            in (result.error["message"])
        )
        failed = {check["member_index"] for check in result.error["validation"]["checks"] if not check["passed"]}
        assert failed - {None} == set(named)


def test_validate_finds_a_checkpoint_that_was_written_over_another_behind_a_mean(project):
    shutil.copy("ckpts/m1.pt", "kept.pt")
    shutil.copy("ckpts/m0.pt", "ckpts/m1.pt")
    packed(*PACK, "--emit", "mean", "-o", "e.onnx")
    shutil.copy("kept.pt", "ckpts/m1.pt")
    result = run("validate", "e.onnx", "ckpts", "--model", "model.py:Net")
    assert result.exit_code == 5
    assert "at member 1 (ckpts/m1.pt)" in result.err


# -- class scores ----------------------------------------------------------------------------------


def test_the_proof_says_how_often_the_top_class_is_another(project):
    result = packed(*PACK, "--emit", "probs,vote", "-o", "e.ts")
    rows = 3 * (1 + 2 + 3 + 7 + 13)  # three seeds
    assert f"\n  top-1 class of output: another than the loop's for 0 of {3 * rows} inputs\n" in result.out
    assert f"\n  top-1 class of output.probs: another than the loop's for 0 of {rows} inputs\n" in result.out
    answer = run("validate", "e.ts", "ckpts", "--model", "model.py:Net", "--json").answer
    assert answer["validation"]["top1"]["output.probs"] == {"differs": 0, "inputs": rows, "share": 0.0}
    by_member = [check for check in answer["validation"]["checks"] if check["member_index"] == 2]
    assert sum(check["top1_inputs"] for check in by_member) == rows


EXTREME = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return self.layer(x) * 1e4
"""


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("kind", ["differ", "equal", "one"])
def test_scores_of_ten_thousands_give_neither_nan_nor_negative_information(tmp_path, monkeypatch, kind, dtype):
    folder = make_project(tmp_path / "p", EXTREME, 1 if kind == "one" else 3, dtype=dtype)
    monkeypatch.chdir(folder)
    if kind == "equal":
        for name in ("m1.pt", "m2.pt"):
            shutil.copy("ckpts/m0.pt", f"ckpts/{name}")
    names = [name for name in COMBINED if QUANTITIES[name].needs_classes]
    spec = f"x:{dtype}[batch,4]"
    packed(*PACK[:4], "--input", spec, "--emit", ",".join(names), "-o", "e.onnx", "-o", "e.ts")
    x = torch.randn(500, 4, generator=torch.Generator().manual_seed(0)).to(getattr(torch, dtype))
    for path in ("e.onnx", "e.ts"):
        outputs = returned(path, x)
        assert all(np.isfinite(outputs[f"output.{name}"]).all() for name in names)
        np.testing.assert_allclose(outputs["output.probs"].astype(float).sum(-1), 1, atol=1e-3)
        information = outputs["output.mutual_information"]
        assert information.min() >= 0
        assert (information.max() > 0.5) == (kind == "differ")
        assert kind == "differ" or (information == 0).all()


# -- what is refused -------------------------------------------------------------------------------

MIXED = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 5)

    def forward(self, x):
        y = self.layer(x)
        return {"logits": y, "value": y.sum(-1), "label": y.argmax(-1), "scale": self.layer.weight.sum(0)}
"""
ANY = "members, mean, var, std, min, max, median"
FLOATS = f"Valid for it: {ANY}, q1 to q99."
REFUSED = {
    "unknown": (("--emit", "porbs"), "unknown name 'porbs'", f"{ANY}, probs,", "'probs'?"),
    "unknown-output": (("--emit", "logit=probs"), "'logit'", "logits, value, label, scale"),
    "no-classes": (
        ("--emit", "value=probs"),
        "cannot emit 'probs' of output 'value'",
        f"Valid for it: {ANY}, q1 to q99.",
    ),
    "batch-is-no-class": (
        ("--emit", "logits=vote", "--class-axis", "0"),
        "axis 0",
        "(?, 5)",
        f"for it: {ANY}, q1 to q99.",
    ),
    "integers": (("--emit", "label=mean"), "it is int64", "Valid for it: members, min, max."),
    "negative": (("--emit", "logits=mean", "--member-weights=1,-1,1"), "weight of member 1 is -1", "0 or more"),
    "nan": (("--emit", "logits=mean", "--member-weights", "1,1,nan"), "weight of member 2 is nan", "a finite number"),
    "all-zero": (("--emit", "logits=mean", "--member-weights", "0,0,0"), "all member weights are 0", "at least one"),
    "too-few": (("--emit", "logits=mean", "--member-weights", "1,2"), "2 member weights are given", "expected 3"),
    "nothing-to-weigh": (("--member-weights", "1,2,3"), "nothing is combined", "mean, var"),
    "no-batch": (("--member-axis", "1"), "output 'scale' at axis 1", "(4)", "--member-axis 0", "mean, var"),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_emitted_is_refused_with_what_can(tmp_path, monkeypatch, case):
    arguments, *facts = case
    folder = make_project(tmp_path / "p", MIXED)
    monkeypatch.chdir(folder)
    check_refused(folder, (*PACK, *arguments, "-o", "e.onnx", "-o", "e.ts"), 2, *facts, code="E_USAGE")
