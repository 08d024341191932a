"""`extract`: one member out of a packed file."""

import shutil

import onnxruntime as ort
import pytest
import torch
from safetensors.torch import load_file

from tests.cli.projects import MLP, X, make_members, make_project, run, run_process, snapshot

MODEL = ("--model", "model.py:Net")
FOLDS = MLP.replace("nn.Linear(4, width)", "nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width))")


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A project with `e.onnx`, whose members' batch norms are folded into other tensors in `folded.onnx`."""
    folder = make_project(tmp_path_factory.mktemp("extract") / "project")
    assert run_process("pack", "ckpts", *MODEL, "--input", X, "-o", "e.onnx", cwd=folder).exit_code == 0
    folds = make_project(folder / "folds", FOLDS)
    assert run_process("pack", "ckpts", *MODEL, "--input", X, "-o", folder / "folded.onnx", cwd=folds).exit_code == 0
    return folder


@pytest.fixture
def project(packed, tmp_path, monkeypatch):
    """The packed files alone, without checkpoints and code."""
    (tmp_path / "project").mkdir()
    for name in ("e.onnx", "folded.onnx"):
        shutil.copy(packed / name, tmp_path / "project" / name)
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


def test_a_member_comes_out_as_graph_and_tensors(project):
    result = run("extract", "e.onnx", "--member", 1, "-o", "m.onnx", "--state-dict", "m.safetensors", "--json")
    answer = result.answer
    assert (result.exit_code, answer["command"], answer["ok"], answer["artifact"]) == (0, "extract", True, "e.onnx")
    assert (answer["member"]["index"], answer["member"]["name"]) == (1, "m1.pt")
    assert answer["validation"]["passed"] is True
    assert answer["state"] == {"tensors": 4, "kept": 0, "lost": {}, "is_proven": True}
    assert [artifact["path"] for artifact in answer["artifacts"]] == ["m.onnx", "m.safetensors"]
    member = make_members()[1]
    x = torch.randn(5, 4)
    session = ort.InferenceSession("m.onnx", providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {"x": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(got), member(x).detach(), rtol=1e-5, atol=1e-6)
    tensors = load_file("m.safetensors")
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in member.state_dict().items())


def test_the_text_says_how_it_was_proven(project):
    result = run("extract", "e.onnx", "--member", 0, "-o", "m.onnx", "--state-dict", "m.safetensors")
    assert (result.exit_code, result.err) == (0, "")
    assert result.out.startswith("member 0  m0.pt  sha256 ")
    assert "6 comparisons with e.onnx at batch 1, 2, 5, all within tolerance" in result.out
    assert "tensors: 4: bit for bit those that were packed" in result.out


def test_lost_tensors_are_refused_and_partial_writes_the_others(project):
    before = snapshot(project)
    refused = run("extract", "folded.onnx", "--member", 2, "--state-dict", "m.safetensors", "--json")
    assert (refused.exit_code, refused.error["code"]) == (4, "E_LOST_TENSORS")
    assert "'first.0.bias': it is folded into 'first.0.bias" in refused.error["message"]
    assert "--partial" in refused.error["hint"]
    assert refused.error["lost"]["first.1.num_batches_tracked"] == "nothing in the graph reads it"
    assert snapshot(project) == before
    partial = run("extract", "folded.onnx", "--member", 2, "--state-dict", "m.safetensors", "--partial")
    assert partial.exit_code == 0
    assert "warning: 7 tensors of member 2 are NOT in the file that was written: 'first.0.bias'" in partial.err
    assert load_file("m.safetensors").keys() == {"last.weight", "last.bias"}


@pytest.mark.parametrize(
    ("arguments", "exit_code", "text"),
    [
        (("e.onnx", "--member", 1), 2, "nothing is asked for"),
        (("e.onnx", "--member", 3, "-o", "m.onnx"), 2, "has no member 3: expected 0 to 2"),
        (("e.onnx", "--member", -1, "-o", "m.onnx"), 2, "--member"),
        (("e.onnx", "-o", "m.onnx"), 2, "--member"),
        (("nowhere.onnx", "--member", 1, "-o", "m.onnx"), 2, "'nowhere.onnx' does not exist"),
        (("e.onnx", "--member", 1, "-o", "e.onnx"), 7, "it exists"),
        (("e.onnx", "--member", 1, "-o", "no/m.onnx"), 7, "'no' does not exist"),
        (("text.onnx", "--member", 1, "-o", "m.onnx"), 3, "text.onnx"),
        ((".", "--member", 1, "-o", "m.onnx"), 3, "the folder holds no model.onnx"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_what_is_wrong_is_said_and_nothing_is_written(project, arguments, exit_code, text):
    (project / "text.onnx").write_text("no artifact")
    before = snapshot(project)
    result = run("extract", *arguments)
    assert (result.exit_code, result.out) == (exit_code, "")
    assert text in result.err
    assert snapshot(project) == before


def test_a_member_is_no_ensemble(project):
    assert run("extract", "e.onnx", "--member", 1, "-o", "m.onnx").exit_code == 0
    result = run("inspect", "m.onnx")
    assert result.exit_code == 3
    assert "it is member 1 ('m1.pt'), taken out of a packed file" in result.err


def test_a_swapped_member_comes_out_as_it_came_in(packed, project):
    new = make_members(n_members=5)[4]
    torch.save(new.state_dict(), "new.pt")
    model = ("--model", f"{packed}/model.py:Net")
    assert run("swap", "e.onnx", "--member", 1, "new.pt", *model, "-o", "swapped.onnx").exit_code == 0
    arguments = ("--member", 1, "-o", "m.onnx", "--state-dict", "m.safetensors", "--json")
    answer = run("extract", "swapped.onnx", *arguments).answer
    assert (answer["member"]["name"], answer["state"]["is_proven"]) == ("new.pt", True)
    tensors = load_file("m.safetensors")
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in new.state_dict().items())
