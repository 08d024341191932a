"""`verify`, and `inspect` of a package: text, JSON and exit codes."""

import json
import shutil

import pytest
import torch

from ensexport.package.manifest import MANIFEST
from tests.cli.projects import run, run_process, snapshot
from tests.package.builder import build_package, edit, read, scale_weight

SAMPLE = "test_data_set_0"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return build_package(tmp_path_factory.mktemp("base") / "ensemble", formats=("onnx", "ts"))


@pytest.fixture
def package(base, tmp_path, monkeypatch):
    shutil.copytree(base, tmp_path / "ensemble")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "ensemble"


def test_the_json_answer(package):
    before = snapshot(package)
    result = run("verify", "ensemble", "--json")
    answer = result.answer
    assert (result.exit_code, result.err, answer["command"], answer["ok"]) == (0, "", "verify", True)
    assert set(answer) == {
        "command",
        "ok",
        "package",
        "manifest_sha256",
        "files",
        "members",
        "checks",
        "not_run",
        "warnings",
    }
    assert answer["package"] == "ensemble"
    assert len(answer["manifest_sha256"]) == 64
    assert set(answer["checks"][0]) == {
        "file", "provider", "optimization", "sample", "output", "max_abs", "max_rel", "bound", "passed",
    }  # fmt: skip
    assert answer["not_run"][0]["file"] == "model.ts"
    assert snapshot(package) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU, where samples run too")
def test_by_default_samples_run_on_the_cpu_and_nothing_is_said_of_what_is_not_there(package):
    answer = run("verify", "ensemble", "--json").answer
    assert {check["provider"] for check in answer["checks"]} == {"CPUExecutionProvider"}
    assert [entry["file"] for entry in answer["not_run"]] == ["model.ts"]


def test_the_text(package):
    result = run("verify", "ensemble")
    assert (result.exit_code, result.err) == (0, "")
    lines = result.out.splitlines()
    assert lines[0].startswith("ensemble  manifest sha256 ")
    assert "files: 8, all as the manifest lists them, and nothing else" in lines
    assert any(
        line.startswith(f"  model.onnx  CPUExecutionProvider, graph optimisation all, {SAMPLE}, output: ")
        for line in lines
    )
    assert any(line.startswith("not run: model.ts: it is a program") for line in lines)
    assert lines[-1] == "verified: the package is what its manifest says; model.onnx gives what the samples hold"


def test_one_byte_flipped_is_exit_3_and_names_the_file(package):
    content = bytearray((package / "model.onnx").read_bytes())
    content[-20] ^= 1
    (package / "model.onnx").write_bytes(content)
    result = run("verify", "ensemble")
    assert (result.exit_code, result.out) == (3, "")
    assert "error [E_PACKAGE]: 'ensemble' is not what its manifest says: 'model.onnx': expected sha256 " in result.err
    error = run("verify", "ensemble", "--json").error
    assert [problem["path"] for problem in error["problems"]] == ["model.onnx"]


def test_changed_weights_are_exit_5_and_name_the_member(package):
    scale_weight(package, "last.weight", 1, 1.01)
    result = run("verify", "ensemble")
    assert (result.exit_code, result.out) == (5, "")
    assert f"(sample '{SAMPLE}', CPUExecutionProvider, graph optimisation disabled)" in result.err
    assert "at member 1 (m1.pt), index (" in result.err
    error = run("verify", "ensemble", "--json").error
    assert (error["code"], error["member_index"], error["file"]) == ("E_MISMATCH", 1, "model.onnx")


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_provider_that_is_not_there_is_exit_7(package, provider):
    if any(check["provider"].lower().startswith(provider) for check in run(
        "verify", "ensemble", "--provider", "all", "--json").answer["checks"]):  # fmt: skip
        pytest.skip("it is there")
    assert run("verify", "ensemble", "--provider", provider, "--json").error["code"] == "E_PROVIDER"


def test_programs_run_with_trust_code(package):
    answer = run("verify", "ensemble", "--trust-code", "--json").answer
    assert {check["file"] for check in answer["checks"]} == {"model.onnx", "model.ts"}
    assert answer["not_run"] == []


def test_what_was_never_proven_is_said(package):
    edit(package, lambda manifest: manifest["validation"].update(passed=None, members=[]))
    assert "warning: the package was never compared with the loop" in run("verify", "ensemble").out
    assert "proof: NONE" in run("inspect", "ensemble").out


def test_a_folder_that_is_no_package(package):
    (package / MANIFEST).unlink()
    assert "holds no manifest.json" in run("verify", "ensemble", "--json").error["message"]
    assert run("verify", "nowhere").exit_code == 3
    assert run("verify").exit_code == 2


def test_it_runs_as_a_process_of_its_own(package, tmp_path):
    assert run_process("verify", "ensemble", "--json", cwd=tmp_path).answer["ok"] is True


def test_inspect_says_what_the_manifest_says(package):
    answer = run("inspect", "ensemble", "--json").answer
    assert (answer["command"], answer["ok"], answer["is_verified"]) == ("inspect", True, False)
    assert answer["manifest"] == read(package)
    lines = run("inspect", "ensemble").out.splitlines()
    assert lines[0].startswith("ensemble  package, layout folder, 8 files, ")
    assert "  x:float32[batch,4]" in lines
    assert "  output:float32[3,batch,3]  y_k" in lines
    assert "members (3)" in lines
    assert "files, as listed: `ensexport verify ensemble` hashes them" in lines
    assert f"sample {SAMPLE}: seed 0 at batch 2, expected from the loop over the members" in lines


def test_inspect_refuses_a_manifest_that_is_wrong(package):
    edit(package, lambda manifest: manifest.update(n_members=4))
    assert "expected the indices 0 to 3" in run("inspect", "ensemble", "--json").error["message"]


def test_inspect_still_reads_folders_of_checkpoints_with_a_manifest_of_others(package, tmp_path):
    (package / MANIFEST).write_text(json.dumps({"schema_version": 1}))
    answer = run("inspect", "ensemble", "--json").answer
    assert [member["path"] for member in answer["members"]] == ["ensemble/state.safetensors"]
