"""`validate`: an existing artifact against the checkpoints it should equal."""

import shutil

import pytest

from tests.cli.projects import MLP, X, change_state, make_project, run, snapshot

MODEL = ("--model", "model.py:Net")


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A project with its three formats, packed once."""
    folder = make_project(tmp_path_factory.mktemp("validate") / "project")
    outputs = [part for suffix in ("onnx", "ts", "pt2") for part in ("-o", folder / f"e.{suffix}")]
    result = run("pack", folder / "ckpts", "--model", f"{folder}/model.py:Net", "--input", X, *outputs)
    assert result.exit_code == 0, result.err
    return folder


@pytest.fixture
def project(packed, tmp_path, monkeypatch):
    """A copy of it, to be spoilt."""
    shutil.copytree(packed, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


@pytest.mark.parametrize("suffix", ["onnx", "ts", "pt2"])
def test_what_was_packed_passes(project, suffix):
    before = snapshot(project)
    result = run("validate", f"e.{suffix}", "ckpts", *MODEL, "--json")
    answer = result.answer
    assert (result.exit_code, answer["command"], answer["ok"], answer["artifact"]) == (
        0,
        "validate",
        True,
        f"e.{suffix}",
    )
    assert answer["validation"]["passed"] is True
    assert {check["member_index"] for check in answer["validation"]["checks"]} == {0, 1, 2}
    assert len(answer["members"]) == 3
    assert snapshot(project) == before


def test_the_text_says_what_was_compared(project):
    result = run("validate", "e.ts", "ckpts", *MODEL)
    assert (result.exit_code, result.err) == (0, "")
    assert "45 comparisons with the loop over the members at batch 1, 2, 3, 7, 13" in result.out


def scale_one_weight(state):
    state["first.weight"][2, 3] *= 1.01


@pytest.mark.parametrize("suffix", ["onnx", "ts", "pt2"])
@pytest.mark.parametrize("member", [0, 2])
def test_one_weight_changed_by_one_percent_names_the_member(project, suffix, member):
    change_state(project / "ckpts" / f"m{member}.pt", scale_one_weight)
    as_text = run("validate", f"e.{suffix}", "ckpts", *MODEL)
    as_json = run("validate", f"e.{suffix}", "ckpts", *MODEL, "--json")
    assert (as_text.exit_code, as_text.out) == (5, "")
    assert f"member {member} (ckpts/m{member}.pt)" in as_text.err
    assert as_json.exit_code == 5
    error = as_json.error
    assert (error["code"], error["member_index"]) == ("E_MISMATCH", member)
    assert f"member {member} (ckpts/m{member}.pt)" in error["message"]


def test_swapped_members_are_found(project):
    result = run("validate", "e.ts", "ckpts/m1.pt", "ckpts/m0.pt", "ckpts/m2.pt", *MODEL, "--json")
    assert result.exit_code == 5
    assert result.error["code"] == "E_MISMATCH"


def test_another_number_of_members_is_said(project):
    result = run("validate", "e.ts", "ckpts/m0.pt", *MODEL)
    assert result.exit_code == 3
    assert "holds 3 members" in result.err


@pytest.mark.parametrize("data", [b"", b"no artifact"], ids=["empty", "text"])
@pytest.mark.parametrize("suffix", ["onnx", "ts", "pt2"])
def test_a_file_that_is_no_artifact(project, suffix, data):
    (project / f"e.{suffix}").write_bytes(data)
    result = run("validate", f"e.{suffix}", "ckpts", *MODEL, "--json")
    assert result.exit_code == 3
    assert (result.error["code"], f"e.{suffix}" in result.error["message"]) == ("E_ARTIFACT", True)


def test_a_missing_artifact(project):
    result = run("validate", "nowhere.onnx", "ckpts", *MODEL)
    assert result.exit_code == 3
    assert "nowhere.onnx" in result.err


def test_another_architecture_is_refused(project):
    (project / "model.py").write_text(MLP.replace("nn.Linear(width, 3)", "nn.Linear(width, 2)"))
    result = run("validate", "e.ts", "ckpts", *MODEL)
    assert result.exit_code == 4
    assert "last.weight" in result.err


def test_the_bound_can_be_set(project):
    assert run("validate", "e.onnx", "ckpts", *MODEL, "--rtol", "1e-12").exit_code == 5
    answer = run("validate", "e.onnx", "ckpts", *MODEL, "--atol", "1e-3", "--json").answer
    assert answer["validation"]["passed"] is True
