"""`pack` end to end: what every option does to the files that come out."""

import hashlib
import json

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from tests.cli.projects import MLP, X, change_state, load_script, make_members, make_project, run, snapshot

PACK = ("pack", "ckpts", "--model", "model.py:Net", "--input", X)


def run_onnx(path, **feed):
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, feed)


def loop(members, x):
    with torch.no_grad():
        return torch.stack([member.eval()(torch.from_numpy(x)) for member in members]).numpy()


def inputs(*shape):
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def pack(*arguments):
    result = run(*PACK, *arguments, "--json")
    assert result.exit_code == 0, result.out
    return result.answer


def test_the_json_answer_is_the_contract(project):
    result = run(*PACK, "-o", "e.onnx", "-o", "e.ts", "-o", "e.pt2", "--json")
    answer = result.answer
    assert (result.exit_code, answer["command"], answer["ok"]) == (0, "pack", True)
    keys = {"command", "ok", "members", "skipped", "artifacts", "validation", "plan", "timings_s", "warnings"}
    assert keys <= set(answer)
    assert [member["index"] for member in answer["members"]] == [0, 1, 2]
    for member in answer["members"]:
        assert set(member) == {"index", "path", "sha256", "container_key", "stripped_prefix"}
        assert member["sha256"] == hashlib.sha256((project / member["path"]).read_bytes()).hexdigest()
    assert [artifact["format"] for artifact in answer["artifacts"]] == ["onnx", "torchscript", "pt2"]
    for artifact in answer["artifacts"]:
        data = (project / artifact["path"]).read_bytes()
        assert (artifact["size_bytes"], artifact["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    validation = answer["validation"]
    assert validation["passed"] is True
    assert validation["max_error"] <= validation["tolerance"] == 1e-5
    seen = {(c["artifact"], c["batch"], c["member_index"]) for c in validation["checks"]}
    assert seen == {(f"e.{s}", b, m) for s in ("onnx", "ts", "pt2") for b in (1, 2, 3, 7, 13) for m in range(3)}
    for check in validation["checks"]:
        keys = {"artifact", "provider", "batch", "member_index", "output", "max_abs", "max_rel", "passed"}
        assert keys <= set(check)
    plan = answer["plan"]
    assert set(plan) == {"strategy", "fallbacks", "target", "stages", "winner", "trials"}
    assert (plan["strategy"], plan["target"], plan["fallbacks"], plan["winner"]) == ("auto", "portable", [], None)
    assert [stage["form"] for stage in plan["stages"]] == ["batched"]
    assert {"load", "export_onnx", "validate"} <= set(answer["timings_s"])
    assert answer["warnings"] == []


def test_the_text_answer_says_members_proof_and_artifacts(project):
    result = run(*PACK, "-o", "e.ts")
    digest = hashlib.sha256((project / "e.ts").read_bytes()).hexdigest()
    assert result.exit_code == 0
    assert result.err == ""
    assert "members (3)" in result.out
    assert "ckpts/m2.pt" in result.out
    assert "45 comparisons with the loop" in result.out
    assert digest in result.out
    assert "seconds: load" in result.out


def test_all_three_formats_equal_the_loop_at_sizes_never_seen(project):
    pack("-o", "e.onnx", "-o", "e.ts", "-o", "e.pt2")
    for batch in (1, 5, 64):
        x = inputs(batch, 4)
        expected = loop(make_members(), x)
        assert np.allclose(run_onnx("e.onnx", x=x)[0], expected, atol=1e-6)
        assert np.allclose(load_script("e.ts")(torch.from_numpy(x)).detach(), expected, atol=1e-6)
        program = torch.export.load("e.pt2").module()
        assert np.allclose(program(torch.from_numpy(x)).detach(), expected, atol=1e-6)


def test_a_per_member_input_has_a_leading_member_axis(project):
    pack("--per-member", "x", "-o", "e.onnx")
    x = inputs(3, 6, 4)
    expected = np.stack([loop([member], x[k])[0] for k, member in enumerate(make_members())])
    assert np.allclose(run_onnx("e.onnx", x=x)[0], expected, atol=1e-6)


def test_the_member_axis_may_stand_second(project):
    pack("--member-axis", 1, "-o", "e.onnx", "-o", "e.ts")
    x = inputs(6, 4)
    expected = loop(make_members(), x).swapaxes(0, 1)
    assert np.allclose(run_onnx("e.onnx", x=x)[0], expected, atol=1e-6)
    assert np.allclose(load_script("e.ts")(torch.from_numpy(x)).detach(), expected, atol=1e-6)


def test_names_dims_opset_and_metadata_are_in_the_file(project):
    pack("--output-names", "logits", "--opset", 18, "-o", "e.onnx")
    model = onnx.load("e.onnx")
    (given,), (returned,) = model.graph.input, model.graph.output
    assert (given.name, returned.name) == ("x", "logits")
    assert [dim.dim_param or dim.dim_value for dim in given.type.tensor_type.shape.dim] == ["batch", 4]
    assert [entry.version for entry in model.opset_import if entry.domain == ""] == [18]
    metadata = json.loads({entry.key: entry.value for entry in model.metadata_props}["ensexport"])
    assert [member["name"] for member in metadata["members"]] == ["m0.pt", "m1.pt", "m2.pt"]
    assert str(project).encode() not in (project / "e.onnx").read_bytes()


def test_a_dry_run_reads_everything_and_writes_nothing(project):
    before = snapshot(project)
    answer = pack("--dry-run", "-o", "e.onnx")
    assert snapshot(project) == before
    assert len(answer["members"]) == 3
    assert (answer["artifacts"], answer["validation"], answer["plan"]) == ([], None, None)
    assert "dry run" in run(*PACK, "--dry-run", "-o", "e.onnx").out
    change_state(project / "ckpts" / "m1.pt", lambda state: state.pop("last.bias"))
    assert run(*PACK, "--dry-run", "-o", "e.onnx").exit_code == 4


def test_force_replaces_and_leaves_nothing_else(project):
    (project / "e.ts").write_bytes(b"old")
    pack("-o", "e.ts", "--force")
    assert load_script("e.ts")(torch.zeros(2, 4)).shape == (3, 2, 3)
    assert {path.name for path in project.iterdir()} - {"__pycache__"} == {"ckpts", "model.py", "e.ts"}


def test_an_unrolled_graph_says_so_and_agrees(project):
    answer = pack("--strategy", "unrolled", "-o", "e.onnx")
    x = inputs(5, 4)
    assert answer["plan"]["strategy"] == "unrolled"
    assert np.allclose(run_onnx("e.onnx", x=x)[0], loop(make_members(), x), atol=1e-6)


def test_model_args_reach_the_factory(tmp_path, monkeypatch):
    monkeypatch.chdir(make_project(tmp_path / "project", width=5))
    pack("--model-args", '{"width": 5}', "-o", "e.ts")
    assert load_script("e.ts")(torch.zeros(2, 4)).shape == (3, 2, 3)


def test_files_and_globs_are_taken_in_their_order(project):
    answer = run("pack", "ckpts/m2.pt", "ckpts/m[01].pt", *PACK[2:], "-o", "e.ts", "--json").answer
    assert [member["path"] for member in answer["members"]] == ["ckpts/m2.pt", "ckpts/m0.pt", "ckpts/m1.pt"]


def test_a_loose_tolerance_is_reported(project):
    assert pack("--rtol", "1e-3", "-o", "e.ts")["validation"]["tolerance"] == 1e-3


# -- models that are fine --------------------------------------------------------------------------

NOISY = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))

    def forward(self, x):
        return self.layers(x)

def trained():
    return Net().train()
"""

TIED = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Linear(4, 4)
        self.down = nn.Linear(4, 4)
        self.down.weight = self.up.weight

    def forward(self, x):
        return self.down(self.up(x).tanh())
"""


@pytest.mark.parametrize("factory", ["Net", "trained"])
def test_dropout_and_batch_norm_run_in_eval_mode(tmp_path, monkeypatch, factory):
    monkeypatch.chdir(make_project(tmp_path / "project", NOISY))
    result = run("pack", "ckpts", "--model", f"model.py:{factory}", "--input", X, "-o", "e.onnx", "--json")
    x = inputs(5, 4)
    assert result.exit_code == 0, result.out
    assert np.allclose(run_onnx("e.onnx", x=x)[0], loop(make_members(NOISY), x), atol=1e-6)


def test_tied_weights_stay_tied(tmp_path, monkeypatch):
    monkeypatch.chdir(make_project(tmp_path / "project", TIED))
    pack("-o", "e.onnx", "-o", "e.ts")
    x = inputs(5, 4)
    expected = loop(make_members(TIED), x)
    assert np.allclose(run_onnx("e.onnx", x=x)[0], expected, atol=1e-6)
    assert np.allclose(load_script("e.ts")(torch.from_numpy(x)).detach(), expected, atol=1e-6)


def test_one_member_keeps_its_axis(tmp_path, monkeypatch):
    monkeypatch.chdir(make_project(tmp_path / "project", MLP, n_members=1))
    pack("-o", "e.onnx")
    x = inputs(5, 4)
    assert np.allclose(run_onnx("e.onnx", x=x)[0], loop(make_members(n_members=1), x), atol=1e-6)


def test_a_warning_is_said_and_listed(project):
    result = run("pack", "ckpts/m0.pt", "ckpts/m0.pt", *PACK[2:], "-o", "e.ts", "--json")
    assert result.exit_code == 0
    (warning,) = result.answer["warnings"]
    assert "same file" in warning
    assert result.err == f"warning: {warning}\n"
    quiet = run("-q", "pack", "ckpts/m0.pt", "ckpts/m0.pt", *PACK[2:], "-o", "f.ts", "--json")
    assert (quiet.answer["warnings"], quiet.err) == ([warning], "")


def test_tune_prints_its_table_and_keeps_the_fastest(project):
    result = run(*PACK, "--strategy", "tune", "--tune-batch", "1,4", "-o", "e.onnx")
    assert result.exit_code == 0
    assert "tuned: '" in result.out
    assert {"stacked", "unrolled"} <= {
        line.split()[2] for line in result.out.splitlines() if line.startswith("  batch ")
    }
    assert run_onnx("e.onnx", x=inputs(5, 4))[0].shape == (3, 5, 3)
    plan = pack("--strategy", "tune", "--tune-batch", "4", "-o", "f.ts")["plan"]
    assert plan["winner"] in {trial["candidate"] for trial in plan["trials"]}
    assert {trial["batch"] for trial in plan["trials"]} == {4}


def test_a_target_that_is_not_there_is_refused_before_the_work(project):
    result = run(*PACK, "--target", "tensorrt", "-o", "e.onnx", "--json")
    assert (result.exit_code, result.error["code"]) == (7, "E_PROVIDER")
    assert not (project / "e.onnx").exists()


def test_a_file_for_a_gpu_can_be_packed_without_one(project):
    answer = pack("--target", "cuda", "--provider", "cpu", "-o", "e.onnx")
    assert answer["plan"]["target"] == "cuda"
    assert {check["provider"] for check in answer["validation"]["checks"]} == {"CPUExecutionProvider"}
    x = inputs(5, 4)
    assert np.allclose(run_onnx("e.onnx", x=x)[0], loop(make_members(), x), atol=1e-6)
