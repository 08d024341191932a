"""`swap`: another checkpoint in one member's place."""

import json
import shutil
import subprocess
import sys

import pytest
import torch

from tests.cli.projects import X, make_members, make_project, run, run_process, snapshot

MODEL = ("--model", "model.py:Net")


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A project with its three formats as they are, and in `fresh/` as packing the new checkpoint too writes them."""
    folder = make_project(tmp_path_factory.mktemp("swap") / "project")
    new = make_members(n_members=5)[4]
    torch.save(new.state_dict(), folder / "m9.pt")
    shutil.copytree(folder / "ckpts", folder / "fresh")
    for name, checkpoints in (("", ["ckpts/m0.pt", "ckpts/m1.pt"]), ("fresh/", ["ckpts/m0.pt", "m9.pt"])):
        outputs = [part for suffix in ("onnx", "ts", "pt2") for part in ("-o", f"{name}e.{suffix}")]
        files = [*checkpoints, "ckpts/m2.pt"]
        result = run_process("pack", *files, *MODEL, "--input", X, *outputs, cwd=folder)
        assert result.exit_code == 0, result.err
    return folder


@pytest.fixture
def project(packed, tmp_path, monkeypatch):
    """A copy of it, to be spoilt."""
    shutil.copytree(packed, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


@pytest.mark.parametrize("suffix", ["onnx", "ts", "pt2"])
def test_the_file_is_the_one_that_packing_writes(project, suffix):
    before = snapshot(project)
    result = run("swap", f"e.{suffix}", "--member", 1, "m9.pt", *MODEL, "-o", f"out.{suffix}", "--json")
    answer = result.answer
    assert (result.exit_code, answer["command"], answer["ok"], answer["artifact"]) == (0, "swap", True, f"e.{suffix}")
    assert (project / f"out.{suffix}").read_bytes() == (project / "fresh" / f"e.{suffix}").read_bytes()
    member = answer["member"]
    assert (member["index"], member["path"], member["name"], member["replaced"]["name"]) == (
        1,
        "m9.pt",
        "m9.pt",
        "m1.pt",
    )
    assert member["sha256"] != member["replaced"]["sha256"]
    assert answer["validation"]["passed"] is True
    assert answer["validation"]["members"] == [1]
    assert [artifact["path"] for artifact in answer["artifacts"]] == [f"out.{suffix}"]
    assert set(answer["timings_s"]) == {"read", "load", "weights", "validate", "digest", "write"}
    assert snapshot(project) == before | {f"out.{suffix}": (project / f"out.{suffix}").read_bytes()}


def test_the_text_says_what_was_done(project):
    result = run("swap", "e.onnx", "--member", 1, "m9.pt", *MODEL, "-o", "out.onnx")
    assert (result.exit_code, result.err) == (0, "")
    lines = result.out.splitlines()
    assert lines[0].startswith("member 1 is m9.pt now, sha256 ")
    assert lines[1].startswith("  it was m1.pt, sha256 ")
    assert lines[2].startswith("proof: 2 comparisons with the loop over 1 of the members (1) at batch 2")


def test_inspect_says_who_the_members_are_and_nothing_of_the_recipe(project):
    run("swap", "e.onnx", "--member", 1, "m9.pt", *MODEL, "-o", "out.onnx")
    text, answer = run("inspect", "out.onnx"), run("inspect", "out.onnx", "--json").answer
    assert "m9.pt" in text.out
    assert [member["name"] for member in answer["members"]] == ["m0.pt", "m9.pt", "m2.pt"]
    assert "recipe" not in text.out + json.dumps(answer)


def test_settings_name_the_model(project):
    (project / "ensexport.toml").write_text('model = "model.py:Net"\n')
    assert run("swap", "e.ts", "--member", 0, "ckpts/m1.pt", "-o", "out.ts").exit_code == 0


def test_a_file_may_be_replaced(project):
    assert run("swap", "e.onnx", "--member", 1, "m9.pt", *MODEL, "-o", "e.onnx", "--force").exit_code == 0
    assert (project / "e.onnx").read_bytes() == (project / "fresh" / "e.onnx").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "exit_code", "code", "message"),
    [
        pytest.param(["--member", 3, "m9.pt", "-o", "o.onnx"], 2, "E_USAGE", "there is no member 3", id="member"),
        pytest.param(
            ["--member", 1, "m9.pt", "-o", "o.ts"], 2, "E_USAGE", "expected the format of 'e.onnx'", id="format"
        ),
        pytest.param(["--member", 1, "m9.pt", "-o", "o.txt"], 2, "E_USAGE", "o.txt", id="suffix"),
        pytest.param(["--member", 1, "gone.pt", "-o", "o.onnx"], 2, "E_USAGE", "gone.pt", id="no-checkpoint"),
        pytest.param(["--member", 1, "ckpts", "-o", "o.onnx"], 2, "E_USAGE", "expected one", id="several"),
        pytest.param(["--member", 1, "m9.pt", "-o", "e.onnx"], 7, "E_TARGET_EXISTS", "it exists", id="exists"),
        pytest.param(["--member", 1, "model.py", "-o", "o.onnx"], 3, "E_CHECKPOINT", "model.py", id="no-weights"),
        pytest.param(["--member", 1, "wide.pt", "-o", "o.onnx"], 4, "E_STACK", "first.weight", id="other-shape"),
        pytest.param(
            ["--member", 1, "wide.pt", "-o", "o.onnx", "--model-args", '{"width": 9}'],
            4,
            "E_STACK",
            "cannot swap 'first.weight': expected shape (8, 4) as in the file, got (9, 4)",
            id="other-width",
        ),
        pytest.param(
            ["--member", 1, "m9.pt", "-o", "o.onnx", "--atol", 0, "--rtol", 0], 5, "E_MISMATCH", "member 1", id="bound"
        ),
    ],
)
def test_what_is_refused_leaves_nothing_behind(project, arguments, exit_code, code, message):
    torch.save(make_members(n_members=1, width=9)[0].state_dict(), project / "wide.pt")
    before = snapshot(project)
    result = run("swap", "e.onnx", *MODEL, *arguments, "--json")
    assert result.exit_code == exit_code
    assert result.error["code"] == code
    assert message in result.error["message"]
    assert snapshot(project) == before


def test_a_damaged_file_is_refused(project):
    data = (project / "e.onnx").read_bytes()
    (project / "e.onnx").write_bytes(data[: len(data) // 2])
    result = run("swap", "e.onnx", "--member", 1, "m9.pt", *MODEL, "-o", "o.onnx")
    assert result.exit_code == 3
    assert "as ONNX it is damaged" in result.err


def test_it_takes_no_exporter(project):
    """What makes packing slow is not even imported."""
    code = (
        "import sys; from ensexport.cli import cli\n"
        "try:\n    cli.main(sys.argv[1:])\nexcept SystemExit as stop:\n    assert stop.code == 0\n"
        "print([n for n in ('onnxscript', 'onnx_ir', 'torch._dynamo', 'torch.onnx', 'sympy') if n in sys.modules])"
    )
    arguments = ["swap", "e.onnx", "--member", "1", "m9.pt", *MODEL, "-o", "o.onnx"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
